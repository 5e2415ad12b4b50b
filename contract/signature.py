"""What a model expects and answers: its signature, read from `signature.json`.

bytes -> strict JSON -> fields, every problem kept -> Signature.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from contract.id_pattern import DEFAULT_PATTERN
from contract.signature_fields import Fields, Findings, Problem
from contract.signature_parts import Entity, Feature, Golden, KeyTemplate, Output, Value, ValueType, shown
from contract.signature_reading import (
    check_file_name,
    read_entity,
    read_features,
    read_golden,
    read_outputs,
    read_transforms,
)
from contract.strict_json import Json, StrictJsonError, parse_json

__all__ = [
    "Entity",
    "Feature",
    "Golden",
    "KeyTemplate",
    "Output",
    "Problem",
    "Signature",
    "SignatureError",
    "Value",
    "ValueType",
    "parse_signature",
]

Status: TypeAlias = Literal["production", "canary", "shadow", "staging", "retired"]
STATUSES: tuple[Status, ...] = ("production", "canary", "shadow", "staging", "retired")

InputForm: TypeAlias = Literal["auto", "array", "dataframe"]
INPUT_FORMS: tuple[InputForm, ...] = ("auto", "array", "dataframe")

MAX_BYTES = 1 << 20

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_RFC_3339 = re.compile(_DATE.pattern + r"[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})")
_LOCATION = re.compile(r"(azure://)?[a-z0-9](-?[a-z0-9]){2,62}(/[^\x00-\x1f\x7f]{0,1024})?")


class SignatureError(ValueError):
    """A text that is no signature: all problems at once, each with its place."""

    def __init__(self, problems: tuple[Problem, ...]) -> None:
        lines = [str(problem) for problem in problems[:50]]
        super().__init__("\n".join(lines if len(problems) <= 50 else [*lines, f"… and {len(problems) - 50} more"]))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Signature:
    """A model version's own description: who it is, what it expects, what it answers."""

    model_id: str
    version: str
    trained_date: str
    status: Status
    azure_location: str
    features: tuple[Feature, ...]
    """In index order."""
    model_file: str | None = None
    transforms: tuple[str, ...] = ()
    input: InputForm = "auto"
    outputs: tuple[Output, ...] = (Output("prediction"),)
    entity: Entity | None = None
    golden: tuple[Golden, ...] = ()
    matrix: bool = field(init=False)
    """Whether rows travel as one float64 matrix: no feature is a string."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", all(feature.type != "string" for feature in self.features))

    @property
    def takes_dataframe(self) -> bool:
        """Whether the model is called with a DataFrame instead of a float64 matrix."""
        return self.input == "dataframe" or (self.input == "auto" and not self.matrix)

    @property
    def trained_at(self) -> datetime:
        """`trained_date` as a time with a zone; a date alone is its midnight in UTC."""
        return _time(self.trained_date)

    def canonical(self) -> bytes:
        """The whole signature as deterministic JSON; reading it gives an equal signature."""
        return _packed(
            self._content()
            | {"status": self.status, "azure_location": self.azure_location}
            | ({"model_file": self.model_file} if self.model_file else {})
            | ({"transforms": list(self.transforms)} if self.transforms else {})
        )

    def identity(self) -> bytes:
        """Deterministic JSON without status, location and file names, for the version digest."""
        return _packed(self._content())

    def _content(self) -> dict[str, Json]:
        content: dict[str, Json] = {
            "model_id": self.model_id,
            "version": self.version,
            "trained_date": self.trained_date,
            "expected_features": [_feature_json(feature) for feature in self.features],
            "input": self.input,
            "outputs": [_output_json(output) for output in self.outputs],
        }
        if self.entity:
            content["entity"] = _entity_json(self.entity)
        if self.golden:
            content["golden"] = [
                {"inputs": list(golden.inputs), "outputs": dict(golden.outputs), "tolerance": golden.tolerance}
                for golden in self.golden
            ]
        return content


def parse_signature(raw: bytes | memoryview) -> tuple[Signature, tuple[str, ...]]:
    """The signature that a `signature.json` holds, and warnings, such as unknown fields, with their paths.

    Raises SignatureError with every problem found; one of syntax comes alone, with line and column.
    """
    if len(raw) > MAX_BYTES:
        raise SignatureError((Problem("", f"expected at most {MAX_BYTES:,} bytes, got {len(raw):,}"),))
    try:
        content = parse_json(raw)
    except StrictJsonError as error:
        raise SignatureError((Problem(f"line {error.line}, column {error.column}", error.message),)) from None
    findings = Findings()
    signature = _signature(Fields(content, "", findings))
    if findings.problems or signature is None:
        raise SignatureError(tuple(findings.problems))
    return signature, tuple(findings.warnings)


def _signature(fields: Fields) -> Signature | None:
    model_id = fields.required_text("model_id", "a name such as credit_risk")
    if model_id is not None and not _MODEL_ID.fullmatch(model_id):
        fields.problem("model_id", f"expected 1 to 128 of A-Z a-z 0-9 _ . -, not first a sign, got {shown(model_id)}")
    version = fields.required_text("version", "a version such as 1.0.0")
    if version is not None and not _VERSION.fullmatch(version):
        fields.problem("version", f"expected 1 to 64 of A-Z a-z 0-9 _ . + -, not first a sign, got {shown(version)}")
    trained_date = fields.required_text("trained_date", "a date such as 2023-10-25")
    if trained_date is not None and not _is_date(trained_date):
        fields.problem("trained_date", f"expected YYYY-MM-DD or an RFC 3339 time, got {shown(trained_date)}")
    status = fields.choice("status", STATUSES)
    location = fields.required_text("azure_location", "the container, such as ai-models")
    if location is not None and not _LOCATION.fullmatch(location):
        expected = "a container, container/prefix or azure://container/path"
        fields.problem("azure_location", f"expected {expected}, got {shown(location)}")

    features = read_features(fields)
    model_file = fields.text("model_file", "a file name")
    if model_file is not None:
        check_file_name(fields, "model_file", model_file)
    transforms = read_transforms(fields, model_file)
    form = fields.choice("input", INPUT_FORMS, absent="auto")
    if form == "array" and features and any(feature.type == "string" for feature in features):
        fields.problem("input", "expected dataframe or auto where a feature is a string, got array")
    outputs = read_outputs(fields)
    entity = read_entity(Fields(fields.raw("entity"), "entity", fields.findings)) if fields.has("entity") else None
    if features and entity and len(features) > 1 and "feature" not in entity.key.parts[1::2]:
        fields.findings.warnings.append("entity.key: without {feature} all features are read from one key")
    own_key = next((feature.name for feature in features or () if feature.store_key), None)
    if own_key is not None and not fields.has("entity"):
        fields.problem("entity", f"missing; {own_key} has a store_key, and an entity says what an id looks like")
    golden = read_golden(fields, features, outputs)
    fields.finish()
    if fields.findings.problems or not (model_id and version and trained_date and status and location and features):
        return None
    return Signature(
        model_id=model_id,
        version=version,
        trained_date=trained_date,
        status=status,
        azure_location=location,
        features=features,
        model_file=model_file,
        transforms=transforms,
        input=form,
        outputs=outputs,
        entity=entity,
        golden=golden,
    )


def _time(text: str) -> datetime:
    moment = datetime.fromisoformat(text.upper().replace(" ", "T"))
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _is_date(text: str) -> bool:
    if not (_DATE.fullmatch(text) or _RFC_3339.fullmatch(text)):
        return False
    try:
        _time(text)
    except ValueError:
        return False
    return True


def _packed(content: dict[str, Json]) -> bytes:
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    return text.encode("utf-8")


def _feature_json(feature: Feature) -> dict[str, Json]:
    content: dict[str, Json] = {"index": feature.index, "name": feature.name, "type": feature.type}
    if feature.has_default:
        content["default"] = feature.default
    if feature.nullable:
        content["nullable"] = True
    if feature.categories:
        content["categories"] = list(feature.categories)
    if feature.store_key:
        content["store_key"] = feature.store_key.text
    optional = {"min": feature.min, "max": feature.max, "example": feature.example}
    content |= {name: value for name, value in optional.items() if value is not None}
    content |= {name: text for name, text in (("unit", feature.unit), ("description", feature.description)) if text}
    return content


def _output_json(output: Output) -> dict[str, Json]:
    content: dict[str, Json] = {"name": output.name, "call": output.call}
    optional = {"class": output.class_label, "column": output.column, "type": output.type}
    return content | {name: value for name, value in optional.items() if value is not None}


def _entity_json(entity: Entity) -> dict[str, Json]:
    content: dict[str, Json] = {"name": entity.name, "key": entity.key.text}
    if entity.pattern != DEFAULT_PATTERN:
        content["pattern"] = entity.pattern
    if entity.on_store_error != "default":
        content["on_store_error"] = entity.on_store_error
    return content
