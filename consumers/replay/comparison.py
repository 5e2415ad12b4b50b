"""Comparison: what a candidate answers beside what was answered, added up in bounded memory.

answers of some thousand rows at a time  ->  counts, sketches, slices and the largest changes  ->  one Comparison
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from consumers.model.outputs import OutputColumn, OutputValues
from consumers.model.rows import Column
from consumers.replay.fit import Misfit
from consumers.replay.outputs import Change, Compared, LabelOutput, NumberOutput, Terms
from consumers.replay.recorded import Answer, RecordedEvent
from consumers.replay.slices import Concentration, FeatureBins, FeatureSlices, TimeBins, strongest_first, sums_of
from contract.request import Native
from contract.signature import Signature, Value, ValueType

LADDER = (1e-12, 1e-9, 1e-6, 1e-5, 1e-4, *(float(f"{digit}e{power}") for power in range(-3, 7) for digit in (1, 2, 5)))
EXAMPLES = 20
REASONS = 200
"""Reasons that are told apart; the texts of failures are a model's own."""
_MANY = "other reasons"
_DECIDING = 60
"""Outputs of which decisions are looked at together, row by row."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One row of a recorded request: what was answered, and where its inputs and the candidate's answer stand."""

    event: RecordedEvent
    row: int
    """Within the request."""
    then: Answer


@dataclass(frozen=True, slots=True)
class Example:
    """One answer that changed."""

    event: RecordedEvent
    row: int
    inputs: Mapping[str, Value]
    """As the candidate takes them."""
    then: Mapping[str, Native]
    now: Mapping[str, Native]
    size: float
    """The largest difference among its outputs; infinite where a number became none."""
    flips: bool


@dataclass(slots=True)
class VersionCount:
    """What one version had answered."""

    version: str
    digest: str
    events: int = 0
    rows: int = 0
    changed: int = 0


@dataclass(slots=True)
class Reasons:
    """Why requests were not compared: each reason with how many, and one example."""

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, str] = field(default_factory=dict)

    def add(self, why: str, example: str = "") -> None:
        if why not in self.counts and len(self.counts) >= REASONS:
            why = _MANY
        self.counts[why] += 1
        if example:
            self.examples.setdefault(why, example)

    @property
    def total(self) -> int:
        return self.counts.total()


class Comparison:
    """All that was compared so far. An answer is one row's: a request with many rows has as many answers."""

    def __init__(self, signature: Signature, outputs: Sequence[tuple[str, ValueType]], terms: Terms) -> None:
        self.signature = signature
        self.terms = terms
        self.events = 0
        self.rows = 0
        self.bits = 0
        """Answers in which any bit of any output is another."""
        self.changed = 0
        """Answers in which an output changed by more than the tolerance, or a label is another."""
        self.outputs: list[Compared] = [
            NumberOutput(name, terms) if kind == "float" else LabelOutput(name) for name, kind in outputs
        ]
        self.beyond: list[int] = [0] * len(LADDER)
        """Answers in which a number changed by more than each of LADDER."""
        self.versions: dict[tuple[str, str], VersionCount] = {}
        self.engines: Counter[str] = Counter()
        """What had answered -> requests."""
        self.dropped_outputs: Counter[str] = Counter()
        """Outputs that were answered then, and that the candidate has not -> answers."""
        self.defaulted: Counter[str] = Counter()
        """Features whose default stood for what the log has not -> requests."""
        self.left_out = Reasons()
        self.misfits: Counter[Misfit] = Counter()
        """What does not fit the candidate's signature -> requests; one may have several."""
        self.misfit_values: dict[Misfit, str] = {}
        self.unfit = 0
        """Requests that do not fit."""
        self.failed = Reasons()
        """Requests on which the candidate fails: the model's message."""
        self.first_us: int | None = None
        self.last_us: int | None = None
        self.last_sequence = 0
        self.times = TimeBins()
        self._features = [FeatureBins(each, len(signature.features)) for each in signature.features]
        self._flips: Counter[int] = Counter()
        """Which outputs of an answer decided otherwise, as bits -> answers."""
        self._examples: list[tuple[float, bool, int, Example]] = []
        self._ties = itertools.count(0, -1)

    # ------------------------------------------------------------------ what came of them

    @property
    def flips(self) -> int:
        """Answers that decide otherwise: another label, or a probability on the other side of the threshold."""
        deciding = sum(1 << place for place, each in enumerate(self.outputs[:_DECIDING]) if each.decides)
        return sum(count for mask, count in self._flips.items() if mask & deciding)

    @property
    def looked_at(self) -> int:
        """Requests, whatever came of them."""
        return self.events + self.left_out.total + self.unfit + self.failed.total

    @property
    def percent(self) -> float:
        """Of the answers that changed, those that the candidate fails to give included."""
        asked = self.rows + self.failed.total
        return 100 * (self.changed + self.failed.total) / asked if asked else 0.0

    def examples(self) -> list[Example]:
        """The answers that changed most, the largest change first."""
        return [each for *_, each in sorted(self._examples, key=lambda each: each[:3], reverse=True)]

    def slices(self) -> list[FeatureSlices]:
        """Of each feature, the one in which changes concentrate most first."""
        found = [each.slices(len(self._features)) for each in self._features]
        return sorted(found, key=lambda each: -max((of.strength for of in (each.changes, each.flips) if of), default=0))

    def changes_concentrate(self) -> list[Concentration]:
        """In which features, the strongest first."""
        return strongest_first(each.changes for each in self.slices())

    def flips_concentrate(self) -> list[Concentration]:
        """The same of answers that decide otherwise."""
        return strongest_first(each.flips for each in self.slices())

    # ------------------------------------------------------------------ adding

    def saw(self, event: RecordedEvent) -> None:
        """A request was looked at, whatever comes of it."""
        self.first_us = event.asked_us if self.first_us is None else min(self.first_us, event.asked_us)
        self.last_us = event.asked_us if self.last_us is None else max(self.last_us, event.asked_us)
        self.last_sequence = max(self.last_sequence, event.sequence)

    def misfit(self, wrong: Mapping[Misfit, str]) -> None:
        """A request that the candidate's signature refuses."""
        self.unfit += 1
        for each, came in wrong.items():
            self.misfits[each] += 1
            self.misfit_values.setdefault(each, came)

    def add(self, pairs: Sequence[Pair], inputs: Sequence[Column], now: Sequence[OutputColumn]) -> None:
        """Answers of so many rows; inputs by feature and outputs by name in the signature's order."""
        changes = [
            output.add([pair.then.get(output.name) for pair in pairs], column.values)
            for output, column in zip(self.outputs, now, strict=True)
        ]
        rows = len(pairs)
        changed, bits = np.zeros(rows, dtype=bool), np.zeros(rows, dtype=bool)
        size, flips = np.zeros(rows), np.zeros(rows, dtype=np.int64)
        for place, change in enumerate(changes):
            bits |= change.bits
            changed |= change.beyond
            size = np.maximum(size, change.size)
            if place < _DECIDING:
                flips |= change.flips.astype(np.int64) << place
        self.rows += rows
        self.bits += int(bits.sum())
        self.changed += int(changed.sum())
        for place, least in enumerate(LADDER):
            self.beyond[place] += int((size > least).sum())
        masks, counts = np.unique(flips, return_counts=True)
        self._flips.update(dict(zip(masks.tolist(), counts.tolist(), strict=True)))
        deciding = sum(1 << place for place, each in enumerate(self.outputs[:_DECIDING]) if each.decides)
        sums = sums_of(changed, (flips & deciding) != 0, size)
        for bins, column in zip(self._features, inputs, strict=True):
            bins.add(column, sums)
        self.times.add(np.array([pair.event.asked_us for pair in pairs], dtype=np.int64), sums)
        self._count(pairs, changed.tolist())
        self._keep(pairs, inputs, now, changes, size.tolist(), changed.tolist())

    def _count(self, pairs: Sequence[Pair], changed: Sequence[bool]) -> None:
        known = {output.name for output in self.outputs}
        for pair, is_other in zip(pairs, changed, strict=True):
            event = pair.event
            of = self.versions.setdefault((event.version, event.digest), VersionCount(event.version, event.digest))
            of.rows += 1
            of.changed += is_other
            for name in pair.then.keys() - known:
                self.dropped_outputs[name] += 1
            if not pair.row:
                self.events += 1
                of.events += 1
                self.engines[event.engine] += 1

    def _keep(
        self,
        pairs: Sequence[Pair],
        inputs: Sequence[Column],
        now: Sequence[OutputColumn],
        changes: Sequence[Change],
        size: Sequence[float],
        changed: Sequence[bool],
    ) -> None:
        """The largest changes; where as large, a decision that is another first, then the older."""
        for row in (row for row, is_other in enumerate(changed) if is_other):
            flips = any(
                bool(change.flips[row]) and output.decides for change, output in zip(changes, self.outputs, strict=True)
            )
            full = len(self._examples) >= EXAMPLES
            if full and (size[row], flips) <= self._examples[0][:2]:
                continue
            example = Example(
                pairs[row].event,
                pairs[row].row,
                {
                    feature.name: _item(column, row)
                    for feature, column in zip(self.signature.features, inputs, strict=True)
                },
                pairs[row].then,
                {column.name: _item(column.values, row) for column in now},
                size[row],
                flips,
            )
            entry = (size[row], flips, next(self._ties), example)
            if full:
                heapq.heapreplace(self._examples, entry)
            else:
                heapq.heappush(self._examples, entry)


def _item(column: Column | OutputValues, row: int) -> Value:
    item: Value = column[row].item() if isinstance(column, np.ndarray) else column[row]
    return None if isinstance(item, float) and item != item else item
