"""Sketch: how numbers are distributed, in bounded memory whatever their number.

Bins of equal width on a logarithmic scale, one side for each sign and one bin for zero, so that every quantile is true
to half a percent of its own size (DDSketch: Masson, Rim and Lee, VLDB 2019). Count, sum and extremes are exact.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float64]

ACCURACY = 0.005
"""How far a quantile may be off, as a part of itself."""
_GAMMA = math.log((1 + ACCURACY) / (1 - ACCURACY))
_OFFSET = 1 << 20
"""Keeps the bin numbers of both signs apart: a float64 has about 142,000 bins on each side."""


@dataclass(slots=True)
class Sketch:
    """Finite numbers, counted; `add` leaves out others."""

    bins: dict[int, int] = field(default_factory=dict)
    """Signed bin number -> how many; 0 is zero itself."""
    count: int = 0
    total: float = 0.0
    size: float = 0.0
    """The sum of absolute values."""
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: Floats) -> None:
        values = values[np.isfinite(values)]
        if not len(values):
            return
        self.count += len(values)
        self.total += float(values.sum())
        self.size += float(np.abs(values).sum())
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))
        numbers = np.zeros(len(values), dtype=np.int64)
        some = values != 0
        at = np.ceil(np.log(np.abs(values[some])) / _GAMMA).astype(np.int64) + _OFFSET
        numbers[some] = np.where(values[some] < 0, -at, at)
        found, counts = np.unique(numbers, return_counts=True)
        for number, count in zip(found.tolist(), counts.tolist(), strict=True):
            self.bins[number] = self.bins.get(number, 0) + count

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan

    @property
    def mean_size(self) -> float:
        """Mean of the absolute values."""
        return self.size / self.count if self.count else math.nan

    def quantiles(self, parts: Sequence[float]) -> list[float]:
        """The values below which these parts of all lie, 0 to 1; NaN where there are none."""
        if not self.count:
            return [math.nan] * len(parts)
        values, counts = self.points()
        ends = np.cumsum(counts)
        ranks = [math.ceil(part * self.count) for part in parts]
        found = values[np.minimum(np.searchsorted(ends, ranks), len(values) - 1)].tolist()
        return [
            self.low if rank <= 1 else self.high if rank >= self.count else float(value)
            for rank, value in zip(ranks, found, strict=True)
        ]

    def sizes(self, parts: Sequence[float]) -> list[float]:
        """The same of absolute values."""
        values, counts = self.points()
        if not self.count:
            return [math.nan] * len(parts)
        order = np.argsort(np.abs(values))
        ends = np.cumsum(counts[order])
        ranks = [math.ceil(part * self.count) for part in parts]
        found: list[float] = np.abs(values)[order][np.minimum(np.searchsorted(ends, ranks), len(values) - 1)].tolist()
        return found

    def histogram(self, edges: Floats) -> npt.NDArray[np.int64]:
        """How many lie in each interval; the first and the last hold what lies beyond them too."""
        values, counts = self.points()
        place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        return np.bincount(place, weights=counts, minlength=len(edges) - 1).astype(np.int64)

    def points(self) -> tuple[Floats, npt.NDArray[np.int64]]:
        """One value for each bin, ascending, and how many it holds."""
        numbers = sorted(self.bins)
        values = np.array(list(map(_middle, numbers)), dtype=np.float64)
        return np.clip(values, self.low, self.high), np.array([self.bins[n] for n in numbers], dtype=np.int64)


def _middle(number: int) -> float:
    """A value that is no further than ACCURACY from any in its bin."""
    if not number:
        return 0.0
    end = (abs(number) - _OFFSET) * _GAMMA
    # Of the largest numbers the middle is infinite, and of the smallest zero: the extremes bound what it stands for.
    value = math.exp(min(end, 709.78)) * (1 - ACCURACY)
    return value if number > 0 else -value


class Reservoir:
    """A sample of pairs of numbers in which each had the same chance to be (Vitter's algorithm R)."""

    def __init__(self, size: int, width: int = 2) -> None:
        self._kept = np.empty((size, width))
        self._random = np.random.default_rng(0)  # the same log gives the same sample
        self.seen = 0

    def add(self, rows: Floats) -> None:
        """`rows`: n × width."""
        size = len(self._kept)
        first = rows[: max(size - self.seen, 0)]
        self._kept[self.seen : self.seen + len(first)] = first
        self.seen += len(first)
        rest = rows[len(first) :]
        if not len(rest) or not size:
            self.seen += len(rest)
            return
        place = self._random.integers(0, np.arange(self.seen + 1, self.seen + len(rest) + 1))
        self.seen += len(rest)
        for at in np.flatnonzero(place < size).tolist():
            self._kept[place[at]] = rest[at]

    @property
    def rows(self) -> Floats:
        return self._kept[: min(self.seen, len(self._kept))]

    def __iter__(self) -> Iterator[list[float]]:
        return iter(self.rows.tolist())
