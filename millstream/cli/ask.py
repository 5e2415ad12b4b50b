"""The conversation of `millstream predict` without arguments: which model, whose features, which values."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from contract.request import Native
from contract.signature_parts import Feature
from millstream.cli.errors import USAGE, CommandFailed
from millstream.cli.screen import shown
from millstream.cli.values import features_of, typed
from protos import millstream_v1_pb2 as v1

Read = Callable[[str], str]
"""Shows a prompt and gives the line that was entered, without its end; raises CommandFailed at the end of input."""


@dataclass(frozen=True, slots=True)
class Filled:
    """What a person entered for one request."""

    features: dict[str, Native]
    entity_id: str = ""


def from_stdin(prompt: str) -> str:
    """A line of stdin, whether a terminal, a pipe or a file; the prompt goes to stderr, since stdout is for results."""
    print(prompt, end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline()
    if not line:
        print(file=sys.stderr)
        raise CommandFailed("the input ended before everything was answered", USAGE)
    return line.rstrip("\r\n")


def choose_model(models: Sequence[v1.Model], read: Read, tell: Callable[[str], None]) -> v1.Model:
    """The model a person picks, by number or name; asks again until it is one of them."""
    while True:
        text = read("Which model (number or name)? ").strip()
        for number, model in enumerate(models, start=1):
            if text in (str(number), model.model_id):
                return model
        begun = [model for model in models if text and model.model_id.startswith(text)]
        if len(begun) == 1:
            return begun[0]
        tell(f"  there is no {text!r}: enter 1 to {len(models)}, or a name" if text else "  enter a number or a name")


def fill_in(model: v1.Model, read: Read, tell: Callable[[str], None], entity_id: str = "") -> Filled:
    """Asks for the entity, where features may be fetched, and then for each feature; asks again what does not fit.

    An empty answer leaves a feature out where it has a default or is fetched.
    """
    if model.entity and not entity_id:
        entity_id = read(f"{model.entity} whose features are fetched (empty: enter all yourself)? ").strip()
    values: dict[str, Native] = {}
    for feature in features_of(model):
        value = _ask(feature, bool(entity_id), read, tell)
        if value is not _LEFT_OUT:
            values[feature.name] = value
    return Filled(values, entity_id)


_LEFT_OUT: Any = object()


def _ask(feature: Feature, fetched: bool, read: Read, tell: Callable[[str], None]) -> Any:
    while True:
        text = read(prompt(feature, fetched))
        if not text.strip() and (fetched or feature.has_default):
            return _LEFT_OUT
        if not text.strip() and not feature.nullable:
            tell(f"  {feature.name} has no default: expected {feature.expected}")
            continue
        try:
            return feature.accept(typed(text, feature))
        except ValueError as error:
            tell(f"  {error}")


def prompt(feature: Feature, fetched: bool) -> str:
    """`age_years (an int from 18 to 120, such as 45): `, with what an empty answer means."""
    expected = feature.expected + (f", {feature.unit}" if feature.unit else "")
    if feature.example is not None:
        expected += f", such as {shown(feature.example)}"
    if fetched:
        expected += "; empty: fetched"
    elif feature.has_default:
        expected += f"; empty: {shown(feature.default) or 'null'}"
    elif feature.nullable:
        expected += "; empty: null"
    text = f"  {feature.description}\n" if feature.description else ""
    return f"{text}{feature.name} ({expected}): "
