"""Verdicts: what became of each event that was replayed, and how many of each there are."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from math import isnan
from typing import Any

import numpy as np

from consumers.model.outputs import OutputColumn
from consumers.replay.recorded import Answer, RecordedEvent
from contract.request import Native

SHOWN = 8
"""Differences that a verdict keeps; a request may have a hundred thousand rows."""


class Outcome(StrEnum):
    """How the replay of an event ended."""

    REPRODUCED = "REPRODUCED"
    """The same bits, by a runtime in which nothing differs."""
    DIFFERENT = "DIFFERENT"
    """Other bits, by a runtime in which nothing differs."""
    RUNTIME_DIFFERS = "RUNTIME_DIFFERS"
    """What predicts here is not what predicted then, so that equal bits prove nothing, and neither do others."""
    NOT_REPRODUCIBLE = "NOT_REPRODUCIBLE"
    """Something that is needed is not there any more."""
    NOT_PREDICTED = "NOT_PREDICTED"
    """No model ever answered it: there is nothing to do again."""


class Why(StrEnum):
    """Why an event can't be reproduced."""

    ERASED = "erased"
    NO_ANSWER = "no answer was recorded"
    NO_CALL = "no predict call was recorded"
    INCOMPLETE = "incomplete call"
    BROKEN = "the records of its call do not fit together"
    GONE = "artifact gone"
    UNLOADABLE = "the version does not load here"


@dataclass(frozen=True, slots=True)
class Difference:
    """One output of one row that is not what was recorded."""

    row: int
    """Within the request."""
    output: str
    recorded: Native
    """None where nothing of this name was recorded, or now is answered."""
    computed: Native


@dataclass(frozen=True, slots=True)
class Compared:
    """Recorded answers of a request beside computed ones."""

    differences: tuple[Difference, ...]
    """The first few."""
    count: int
    """How many there are."""
    largest: float
    """The largest difference of two numbers; 0 where none differ, infinite where one of the two is no number."""


SAME = Compared((), 0, 0.0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one event."""

    event: RecordedEvent
    outcome: Outcome
    why: str = ""
    """One of Why, or the status of what was never predicted."""
    detail: str = ""
    """The same at length, in a sentence."""
    compared: Compared = SAME
    runtime: tuple[str, ...] = ()
    """What differs between the runtimes, each in a few words."""


def compare(recorded: Sequence[Answer], columns: Sequence[OutputColumn], start: int) -> Compared:
    """A request's recorded answers beside the rows of a call from row `start`, bit by bit: -0.0 is not 0.0, 1 is not
    1.0, and NaN is NaN only with the same payload.
    """
    found: list[Difference] = []
    count, largest = 0, 0.0
    known = {column.name for column in columns}
    for row, answer in enumerate(recorded):
        for name in answer.keys() - known:
            count += 1
            if len(found) < SHOWN:
                found.append(Difference(row, name, answer[name], None))
    for column in columns:
        computed: Any = column.values[start : start + len(recorded)]
        values = [answer.get(column.name) for answer in recorded]
        if column.kind == "float" and all(type(value) is float for value in values):
            old, new = np.array(values, dtype=np.float64), np.ascontiguousarray(computed, dtype=np.float64)
            rows = np.flatnonzero(old.view(np.uint64) != new.view(np.uint64)).tolist()
        else:
            computed = computed if isinstance(computed, list) else computed.tolist()
            rows = [row for row, value in enumerate(values) if not same(value, computed[row])]
        for row in rows:
            count += 1
            after = computed[row] if isinstance(computed, list) else computed[row].item()
            largest = max(largest, distance(values[row], after))
            if len(found) < SHOWN:
                found.append(Difference(row, column.name, values[row], after))
    return Compared(tuple(found), count, largest) if count else SAME


def same(one: Native, other: Native) -> bool:
    """Whether two values are of one type and equal to the last bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float) and isinstance(other, float):
        return struct.pack("<d", one) == struct.pack("<d", other)
    return one == other


def distance(one: Native, other: Native) -> float:
    """Between two numbers; 0 where one is no number at all but a text or a boolean, infinite where one is NaN."""
    if not isinstance(one, int | float) or not isinstance(other, int | float) or isinstance(one, bool):
        return 0.0
    if isnan(one) or isnan(other):
        return 0.0 if isnan(one) and isnan(other) else float("inf")
    return 0.0 if one == other else float(abs(one - other))


@dataclass(slots=True)
class Tally:
    """Verdicts so far, counted."""

    outcomes: Counter[tuple[str, str, Outcome]] = field(default_factory=Counter)
    """By model, version and outcome."""
    reasons: Counter[tuple[Outcome, str]] = field(default_factory=Counter)
    """Of what can't be reproduced and of what was never predicted."""
    examples: dict[tuple[Outcome, str], str] = field(default_factory=dict)
    """The first reason of each kind at length."""
    runtimes: Counter[str] = field(default_factory=Counter)
    """What differs between runtimes -> events."""
    equal_elsewhere: int = 0
    """Of those whose runtime differs: how many have the same bits nevertheless."""
    largest: float = 0.0
    """The largest difference of two numbers, whatever the runtime."""

    def add(self, verdict: Verdict) -> None:
        event, outcome = verdict.event, verdict.outcome
        self.outcomes[event.model_id, event.version, outcome] += 1
        if verdict.why:
            self.reasons[outcome, verdict.why] += 1
            if verdict.detail:
                self.examples.setdefault((outcome, verdict.why), verdict.detail)
        for each in verdict.runtime:
            self.runtimes[each] += 1
        if outcome in (Outcome.DIFFERENT, Outcome.RUNTIME_DIFFERS):
            self.largest = max(self.largest, verdict.compared.largest)
        if outcome is Outcome.RUNTIME_DIFFERS and not verdict.compared.count:
            self.equal_elsewhere += 1

    def count(self, outcome: Outcome) -> int:
        """Events that ended so."""
        return sum(n for (_, _, each), n in self.outcomes.items() if each is outcome)

    @property
    def events(self) -> int:
        return self.outcomes.total()
