"""Cells: text that a person or a file gives for a feature, as the value the feature takes."""

from __future__ import annotations

import re

from contract.request import Native
from contract.signature_parts import Feature

_FLOAT = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")
_INT = re.compile(r"[+-]?[0-9]{1,40}(\.0*)?")
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def typed(text: str, feature: Feature) -> Native:
    """The text as the feature's type; bounds are left to the model's gateway.

    `null`, or nothing for a string, is null where the feature takes it. Raises ValueError saying what was expected.
    """
    plain = text.strip()
    if feature.nullable and (plain == "" or (plain == "null" and feature.type != "string")):
        return None
    if feature.type == "string":
        return text
    if feature.type == "bool" and plain.lower() in _BOOLS:
        return _BOOLS[plain.lower()]
    if feature.type == "int" and _INT.fullmatch(plain):
        return int(plain.partition(".")[0])
    if feature.type == "float" and _FLOAT.fullmatch(plain):
        return float(plain)
    raise ValueError(f"expected {feature.expected}, got {text[:60]!r}")
