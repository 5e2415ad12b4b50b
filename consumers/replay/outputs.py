"""Outputs compared: one named output as it was answered then, and as the candidate answers it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from consumers.model.outputs import OutputValues
from consumers.replay.sketch import Floats, Reservoir, Sketch
from consumers.replay.verdict import same
from contract.request import Native

MOST_TRANSITIONS = 1000
"""Pairs of labels that are told apart."""
OTHER = "(others)"


@dataclass(frozen=True, slots=True)
class Terms:
    """What counts as a change."""

    tolerance: float = 0.01
    """Numbers that differ by more than this changed; labels that differ always did."""
    threshold: float = 0.5
    """A probability from here on decides otherwise than one below."""
    sample: int = 2000
    """Answers that plots show one by one."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """What became of one output, row by row."""

    bits: npt.NDArray[np.bool_]
    """Not the same to the last bit."""
    beyond: npt.NDArray[np.bool_]
    """By more than the tolerance."""
    flips: npt.NDArray[np.bool_]
    """Another label, or on the other side of the threshold."""
    size: Floats
    """How far apart two numbers are; infinite where one of the two is none, 0 for labels."""


@dataclass(slots=True)
class NumberOutput:
    """A float output."""

    name: str
    terms: Terms
    rows: int = 0
    bits: int = 0
    beyond: int = 0
    broken: int = 0
    """Rows where one of the two is NaN, infinite or no number, and the other is not the same."""
    raised: int = 0
    """Rows below the threshold then, and not now."""
    lowered: int = 0
    """Rows not below the threshold then, and below it now."""
    within: bool = True
    """Whether every number, then and now, lies within 0 and 1, as a probability does."""
    difference: Sketch = field(default_factory=Sketch)
    """Now less then."""
    then: Sketch = field(default_factory=Sketch)
    now: Sketch = field(default_factory=Sketch)
    sample: Reservoir = field(init=False)
    """Then and now."""

    def __post_init__(self) -> None:
        self.sample = Reservoir(self.terms.sample)

    @property
    def decides(self) -> bool:
        """Whether the threshold says anything of it."""
        return self.within and self.rows > 0

    @property
    def flips(self) -> int:
        return self.raised + self.lowered if self.decides else 0

    def add(self, then: Sequence[Native], values: OutputValues) -> Change:
        now = np.asarray(values, dtype=np.float64)
        there = np.array([value is not None for value in then])
        numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in then]
        old = np.array([value if ok else np.nan for value, ok in zip(then, numbers, strict=True)], dtype=np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            difference = now - old
            size = np.abs(difference)
        alike = (now == old) | (np.isnan(now) & np.isnan(old) & np.array(numbers))
        size = np.where(alike, 0.0, np.where(np.isfinite(size), size, np.inf)) * 1.0
        floats = np.array([isinstance(value, float) for value in then])
        bits = there & ~(floats & (old.view(np.uint64) == now.view(np.uint64)))
        beyond = there & (size > self.terms.tolerance)
        threshold = self.terms.threshold
        raised, lowered = there & (old < threshold) & (now >= threshold), there & (old >= threshold) & (now < threshold)
        self.rows += int(there.sum())
        self.bits += int(bits.sum())
        self.beyond += int(beyond.sum())
        self.broken += int((there & np.isinf(size)).sum())
        self.raised += int(raised.sum())
        self.lowered += int(lowered.sum())
        old, now, difference = old[there], now[there], difference[there]
        both = np.concatenate([old, now])
        self.within = self.within and bool(np.all(np.isnan(both) | ((both >= 0) & (both <= 1))))
        self.difference.add(difference)
        self.then.add(old)
        self.now.add(now)
        self.sample.add(np.column_stack([old, now])[np.isfinite(difference)])
        return Change(bits, beyond, raised | lowered, np.where(there, size, 0.0))


@dataclass(slots=True)
class LabelOutput:
    """A text, boolean or integer output: what a model decides, which either changes or not."""

    name: str
    rows: int = 0
    changed: int = 0
    transitions: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(then, now) -> rows, the same label included."""

    @property
    def bits(self) -> int:
        return self.changed

    @property
    def beyond(self) -> int:
        return self.changed

    @property
    def flips(self) -> int:
        return self.changed

    @property
    def decides(self) -> bool:
        return self.rows > 0

    def add(self, then: Sequence[Native], values: OutputValues) -> Change:
        now: list[Native] = values if isinstance(values, list) else values.tolist()  # type: ignore[assignment]
        there = np.array([value is not None for value in then])
        changed = there & np.array([not same(old, new) for old, new in zip(then, now, strict=True)])
        self.rows += int(there.sum())
        self.changed += int(changed.sum())
        for old, new in zip(then, now, strict=True):
            if old is None:
                continue
            pair = label(old), label(new)
            if pair not in self.transitions and len(self.transitions) >= MOST_TRANSITIONS:
                pair = (OTHER, OTHER) if pair[0] == pair[1] else (OTHER, f"{OTHER} else")
            self.transitions[pair] += 1
        return Change(changed, changed, changed, np.zeros(len(then)))


Compared = NumberOutput | LabelOutput


def label(value: Native) -> str:
    """As people read it: a text as it is, booleans as JSON has them."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def plain(value: object) -> object:
    """As JSON can hold it: NaN and the infinities as texts."""
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value
