"""Pace: how long a model's batches take on this worker, learned from those it has served, by their size.

Most models cost more per call than per row: a forest answers 256 rows in little more than the time of one. So sizes
are measured apart, in powers of two, and the next larger size is tried where one call already takes long.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

WEIGHT = 0.2
"""Of the newest measurement."""
MOST_RISE = 4.0
"""One call that stalled counts at most as this many times what was known; a model that became slow is still seen
within a few calls."""
PAYS = 0.75
"""A size is worth its longer call where a row takes at most this much of what it takes at half the size."""
FADES = 0.01
"""What is known of larger sizes becomes so much better with each batch, so that they are tried again now and then: one
call that stalled would otherwise keep batches small for good."""

Known = Mapping[int, float]
"""Power of two -> seconds that batches of up to so many rows take, per call or per row."""


class Most(NamedTuple):
    """Most rows of a predict call."""

    rows: int
    slow: int
    """Where calls take longer than they should, and more rows make each of them cheaper; at least as many."""

    @classmethod
    def always(cls, rows: int) -> Most:
        """The same for all."""
        return cls(rows, rows)


@dataclass(frozen=True, slots=True)
class Pace:
    """One model's; unknown at first."""

    target_s: float
    """How long one predict call should take."""
    predict: Known = field(default_factory=dict)
    """Per predict call. Not per row: a batch of few more rows than half its size would make that size look dear."""
    whole: Known = field(default_factory=dict)
    """Per row, from the rows to their completion."""

    def after(self, rows: int, predict_s: float, whole_s: float) -> Pace:
        """The same after one more batch, whose predict call and whose whole took so long."""
        size = _size_of(rows)
        faded = {known: seconds * (1 - FADES) if known > size else seconds for known, seconds in self.predict.items()}
        predict = _learnt(faded, size, predict_s)
        return Pace(self.target_s, predict, _learnt(self.whole, size, whole_s / max(1, rows)))

    def rows_per_s(self, most: Most) -> float:
        """What the worker does when it works on this model alone, in batches of the size that it would read.

        While that size is still to be tried, what it does at the best one so far; 0 where nothing is known.
        """
        row_s = self.whole.get(self._size(most)) or min(self.whole.values(), default=0.0)
        return 1 / row_s if row_s else 0.0

    def rough(self, most: Most) -> bool:
        """Whether a larger size is still to be tried, so that the rate may turn out to be far higher."""
        return self._size(most) not in self.predict

    def room(self, most: Most) -> int:
        """Rows for the next batch: as many as take the target time, all there may be while nothing is known.

        Where one row takes longer than that already, as many as make a row cheaper: a model whose calls are slow
        whatever their size would otherwise never be asked for more than one row.
        """
        return min(1 << self._size(most), most.slow)

    @property
    def call_s(self) -> float:
        """How long a call takes that has few rows, as far as is known."""
        return min(self.predict.values(), default=0.0)

    def _size(self, most: Most) -> int:
        usual, largest = _size_of(most.rows), _size_of(most.slow)
        if not self.predict:
            return usual
        size = 0
        while size < largest:
            call_s = self._call_s(size + 1)
            long, known = call_s > self.target_s, size + 1 in self.predict
            if size >= usual and not long:
                break
            if long and known and call_s > 2 * PAYS * self._call_s(size):
                break
            size += 1
            if long and not known:
                break  # tried once, then it is known
        return size

    def _call_s(self, size: int) -> float:
        """As measured; else by rows from the next smaller size that was, or the smallest."""
        if size in self.predict:
            return self.predict[size]
        smaller = [known for known in self.predict if known < size]
        nearest = max(smaller) if smaller else min(self.predict)
        return self.predict[nearest] * 2.0 ** (size - nearest)


def _size_of(rows: int) -> int:
    return (max(1, rows) - 1).bit_length()


def _learnt(known: Known, size: int, seconds: float) -> Known:
    now = max(seconds, 1e-9)
    before = known.get(size, now)
    return {**known, size: before + WEIGHT * (min(now, MOST_RISE * before) - before)}


class Paces:
    """Every model's on one worker. The thread that predicts adds to them, others ask."""

    def __init__(self, target_s: float, most: Most) -> None:
        self._target_s = target_s
        self._most = most
        self._known: dict[str, Pace] = {}

    def learn(self, model_id: str, rows: int, predict_s: float, whole_s: float) -> None:
        """One more batch was served, whose predict call and whose whole took so long."""
        self._known[model_id] = self._of(model_id).after(rows, predict_s, whole_s)

    def room(self, model_id: str) -> int:
        """Rows for the next batch of a model."""
        return self._of(model_id).room(self._most)

    def call_s(self, model_id: str) -> float:
        """How long a call of a model takes that has few rows, in seconds."""
        return self._of(model_id).call_s

    def rows_per_s(self) -> dict[str, float]:
        """What the worker does when it works on one model alone."""
        return {model_id: pace.rows_per_s(self._most) for model_id, pace in self._known.copy().items()}

    def rough(self) -> tuple[str, ...]:
        """Models whose rate may turn out to be far higher."""
        return tuple(model_id for model_id, pace in self._known.copy().items() if pace.rough(self._most))

    def _of(self, model_id: str) -> Pace:
        return self._known.get(model_id) or Pace(self._target_s)
