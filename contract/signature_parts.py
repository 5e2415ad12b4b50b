"""The parts of a signature: features, outputs, the entity whose features are stored, golden examples."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from math import isfinite
from typing import Literal, TypeAlias

from contract.id_pattern import DEFAULT_PATTERN, MAX_ID_LENGTH, compile_id_pattern

Value: TypeAlias = float | int | bool | str | None
"""A feature or an output of one row; None is null."""

ValueType: TypeAlias = Literal["float", "int", "bool", "string"]
VALUE_TYPES: tuple[ValueType, ...] = ("float", "int", "bool", "string")

Call: TypeAlias = Literal["predict", "predict_proba", "decision_function"]
CALLS: tuple[Call, ...] = ("predict", "predict_proba", "decision_function")

MAX_INT = 2**53
"""Largest absolute value of an int feature; beyond it float64 skips integers."""

MAX_STRING_BYTES = 1024


def shown(value: object) -> str:
    """A value as a message shows it: as JSON would have it, and not endless."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


class KeyTemplateError(ValueError):
    """A key template that can't be used; the message says why."""


@dataclass(frozen=True, slots=True)
class KeyTemplate:
    """A Redis key with room for `{id}` and `{feature}`; `{{` and `}}` are literal braces."""

    text: str
    parts: tuple[str, ...]
    """Literal text at even places; "id" or "feature" at odd ones."""

    @classmethod
    def parse(cls, text: str) -> KeyTemplate:
        """Raises KeyTemplateError for unbalanced braces, other names, and templates without `{id}`."""
        parts = [""]
        for token in re.findall(r"\{\{|\}\}|\{[^{}]*\}|[^{}]+|[{}]", text):
            if token in ("{{", "}}"):
                parts[-1] += token[0]
            elif token in ("{id}", "{feature}"):
                parts += [token[1:-1], ""]
            elif token in ("{", "}"):
                raise KeyTemplateError(f"a single {token!r} in {text!r}; write {token * 2!r} for a literal brace")
            elif token[0] == "{":
                raise KeyTemplateError(f"expected only {{id}} and {{feature}} in {text!r}, got {token}")
            else:
                parts[-1] += token
        if "id" not in parts[1::2]:
            raise KeyTemplateError(f"expected {{id}} in {text!r}; without it every entity would share one key")
        return cls(text, tuple(parts))

    def render(self, entity_id: str, feature: str) -> str:
        """The key; braces in the id or the name stay what they are."""
        if len(self.parts) == 3:
            return f"{self.parts[0]}{entity_id if self.parts[1] == 'id' else feature}{self.parts[2]}"
        values = {"id": entity_id, "feature": feature}
        return "".join(values[part] if place % 2 else part for place, part in enumerate(self.parts))


@dataclass(frozen=True, slots=True)
class Feature:
    """One input of a model: its type and what values it takes."""

    index: int
    name: str
    type: ValueType
    has_default: bool = False
    default: Value = None
    """Used for what was neither sent nor stored, where `has_default`; may itself be None where `nullable`."""
    nullable: bool = False
    categories: tuple[Value, ...] | None = None
    """The only values taken."""
    min: float | int | None = None
    max: float | int | None = None
    store_key: KeyTemplate | None = None
    example: Value = None
    unit: str = ""
    description: str = ""

    def accept(self, value: object) -> Value:
        """The value as this feature's own Python type; raises ValueError saying what was expected and what came.

        An int is taken for a float, and 3.0 for an int, since JSON and JavaScript do not tell them apart.
        """
        if value is None:
            if self.nullable:
                return None
            raise ValueError(f"expected {self.expected}, got null")
        typed = typed_value(value, self.type)
        if typed is None:
            raise ValueError(f"expected {self.expected}, got {shown(value)}")
        if self.categories is not None and typed not in self.categories:
            raise ValueError(f"expected {self.expected}, got {shown(value)}")
        if not isinstance(typed, str) and (
            (self.min is not None and typed < self.min) or (self.max is not None and typed > self.max)
        ):
            raise ValueError(f"expected {self.expected}, got {shown(value)}")
        return typed

    @property
    def usual(self) -> tuple[float, float]:
        """Between what numbers its values lie, where they are numbers: as it says, else around its example."""
        numbers = [float(v) for v in (*(self.categories or ()), self.example) if isinstance(v, int | float)]
        size = max(1.0, *(abs(number) for number in numbers), 1.0)
        low = float(self.min) if self.min is not None else min([-size, *numbers])
        high = float(self.max) if self.max is not None else max([low + 2 * size, *numbers])
        return low, high

    @property
    def expected(self) -> str:
        """What a value must be, for a message: `an int from 18 to 120`."""
        if self.categories:
            some = ", ".join(shown(category) for category in self.categories[:10])
            return f"one of {some}" + (", …" if len(self.categories) > 10 else "")
        kind = _EXPECTED[self.type]
        if self.min is not None and self.max is not None:
            return f"{kind} from {self.min} to {self.max}"
        if self.min is not None:
            return f"{kind} of at least {self.min}"
        return kind if self.max is None else f"{kind} of at most {self.max}"

    def sample(self) -> Value:
        """A value this feature takes: its example, default, first category, minimum or zero."""
        if self.example is not None:
            return self.example
        if self.has_default and self.default is not None:
            return self.default
        if self.categories:
            return self.categories[0]
        if self.min is not None:
            return self.min
        if self.max is not None and self.max < 0:
            return self.max
        return _ZERO[self.type]


_EXPECTED: dict[ValueType, str] = {
    "float": "a finite number",
    "int": "an int",
    "bool": "true or false",
    "string": f"a string of at most {MAX_STRING_BYTES} bytes",
}


_ZERO: dict[ValueType, Value] = {"float": 0.0, "int": 0, "bool": False, "string": ""}


def typed_value(value: object, kind: ValueType) -> Value:
    """`value` as that type, or None where it is not of it."""
    match value:
        case bool():
            return value if kind == "bool" else None
        case str():
            return value if kind == "string" and _short_enough(value) else None
        case int() if kind == "int":
            return value if -MAX_INT <= value <= MAX_INT else None
        case float() if kind == "int":
            return int(value) if value.is_integer() and -MAX_INT <= value <= MAX_INT else None
        case int() | float() if kind == "float":
            try:
                return float(value) if isfinite(value) else None
            except OverflowError:
                return None
        case _:
            return None


def _short_enough(text: str) -> bool:
    if text.isascii():
        return len(text) <= MAX_STRING_BYTES
    try:
        return len(text.encode("utf-8")) <= MAX_STRING_BYTES
    except UnicodeEncodeError:
        return False


@dataclass(frozen=True, slots=True)
class Output:
    """One named output and the call it comes from."""

    name: str
    call: Call = "predict"
    class_label: Value = None
    """The label whose column of `predict_proba` this is."""
    column: int | None = None
    type: ValueType | None = None
    """What the caller gets; None: whatever the model answers."""


StoreErrorPolicy: TypeAlias = Literal["default", "refuse"]
STORE_ERROR_POLICIES: tuple[StoreErrorPolicy, ...] = ("default", "refuse")


@dataclass(frozen=True, slots=True)
class Entity:
    """Whose features are stored: the person, account or thing a request is about."""

    key: KeyTemplate
    """Where the features are, unless one has a key of its own."""
    name: str = "entity_id"
    pattern: str = DEFAULT_PATTERN
    """A regular expression for the whole id."""
    on_store_error: StoreErrorPolicy = "default"
    """Whether a request goes on with defaults while the store is late or gone, or is refused."""
    _compiled: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Raises IdPatternError."""
        object.__setattr__(self, "_compiled", compile_id_pattern(self.pattern))

    def matches(self, entity_id: str) -> bool:
        """Whether this can be an id: short enough, and the whole of it matches."""
        return len(entity_id) <= MAX_ID_LENGTH and self._compiled.fullmatch(entity_id) is not None

    def store_key(self, entity_id: str, feature: Feature) -> str:
        """The key of one feature, of an id that `matches`: the id goes into the key as it is."""
        return (feature.store_key or self.key).render(entity_id, feature.name)


@dataclass(frozen=True, slots=True)
class Golden:
    """An example and its answers, computed as a batch of one."""

    inputs: tuple[Value, ...]
    """In index order."""
    outputs: tuple[tuple[str, Value], ...]
    """By name; None is NaN."""
    tolerance: float = 0.0
    """Largest absolute difference; 0: the same bits."""
