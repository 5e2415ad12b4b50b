"""Reading one JSON object field by field, keeping every problem instead of stopping at the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isfinite
from typing import TypeVar, overload

from contract.signature_parts import shown
from contract.strict_json import Json

Choice = TypeVar("Choice", bound=str)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a signature, and where: `expected_features[2].type`."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(slots=True)
class Findings:
    """What reading a signature has found so far."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def problem(self, path: str, message: str) -> None:
        self.problems.append(Problem(path, message))


class Fields:
    """The fields of one JSON object; each is asked for once, and what nobody asked for is a warning."""

    def __init__(self, content: Json, path: str, findings: Findings) -> None:
        self.path = path
        self.findings = findings
        self.is_object = isinstance(content, dict)
        self._content = content if isinstance(content, dict) else {}
        self._asked: set[str] = set()
        if not self.is_object:
            findings.problem(path, f"expected an object, got {kind_of(content)}")

    def at(self, name: str) -> str:
        """The path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def problem(self, name: str, message: str) -> None:
        self.findings.problem(self.at(name), message)

    def has(self, name: str) -> bool:
        return name in self._content

    def raw(self, name: str) -> Json:
        self._asked.add(name)
        return self._content.get(name)

    def missing(self, name: str, expected: str) -> None:
        # A value that is no object was said already; its fields are not missing one by one.
        if self.is_object:
            self.problem(name, f"missing; expected {expected}")

    def required_text(self, name: str, expected: str) -> str | None:
        """A string that must be there; None where there was a problem."""
        if not self.has(name):
            self._asked.add(name)
            self.missing(name, expected)
            return None
        return self.text(name, expected)

    def text(self, name: str, expected: str = "a string") -> str | None:
        """A string; None where it is absent or there was a problem."""
        value = self.raw(name)
        if isinstance(value, str):
            return value
        if self.has(name):
            self.problem(name, f"expected {expected}, got {kind_of(value)}")
        return None

    @overload
    def choice(self, name: str, choices: Sequence[Choice]) -> Choice | None: ...
    @overload
    def choice(self, name: str, choices: Sequence[Choice], absent: Choice) -> Choice: ...
    def choice(self, name: str, choices: Sequence[Choice], absent: Choice | None = None) -> Choice | None:
        """One of some strings; required where there is no `absent`, which also stands in after a problem."""
        value = self.raw(name)
        found = next((choice for choice in choices if choice == value), None)
        if found is not None:
            return found
        expected = "one of " + ", ".join(choices)
        if self.has(name):
            self.problem(name, f"expected {expected}, got {shown(value)}")
        elif absent is None:
            self.missing(name, expected)
        return absent

    def flag(self, name: str) -> bool:
        value = self.raw(name)
        if isinstance(value, bool):
            return value
        if self.has(name):
            self.problem(name, f"expected true or false, got {shown(value)}")
        return False

    def whole(self, name: str) -> int | None:
        """An integer of at least 0."""
        value = self.raw(name)
        if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
            return value
        if self.has(name):
            self.problem(name, f"expected an integer of at least 0, got {shown(value)}")
        return None

    def number(self, name: str) -> float | int | None:
        value = self.raw(name)
        if isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
            return value
        if self.has(name):
            self.problem(name, f"expected a finite number, got {shown(value)}")
        return None

    def items(self, name: str, least: int, most: int) -> list[Json] | None:
        """A list within bounds; None where it is absent or there was a problem."""
        value = self.raw(name)
        if isinstance(value, list) and least <= len(value) <= most:
            return value
        if self.has(name):
            came = f"{len(value)}" if isinstance(value, list) else kind_of(value)
            self.problem(name, f"expected a list of {least} to {most:,}, got {came}")
        return None

    def finish(self) -> None:
        """Warn of each field that nothing read, `x-…` apart."""
        for name in self._content:
            if name not in self._asked and not name.startswith("x-"):
                self.findings.warnings.append(f"{self.at(name)}: no such field; a field of your own is called x-{name}")


def kind_of(value: Json) -> str:
    """What a JSON value is, for a message; scalars are shown."""
    match value:
        case dict():
            return "an object"
        case list():
            return "a list"
        case _:
            return shown(value)
