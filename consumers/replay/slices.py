"""Slices: where among the values of a feature, and when, answers changed.

values + changed or not  ->  fine bins in bounded memory  ->  slices of about as many rows each  ->  where changes are
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from consumers.model.rows import Column
from contract.signature import Feature

Floats: TypeAlias = npt.NDArray[np.float64]

SLICES, SCANNED = 10, 20
"""Slices of a feature that are shown, and those that are looked through for where changes concentrate."""
FEW = 12
"""So many different values or fewer stand each for itself."""
MOST_BINS, ALL_BINS = 4096, 1 << 21
"""Fine bins of one feature, and of all together."""
MOST_CATEGORIES = 1000
OTHERS = "all others"
LEAST_ROWS, LEAST_CHANGED = 30, 5
"""Slices with fewer say nothing."""
CHANCE = 0.001
"""How likely the strongest concentration that is told may be, over all features, where there is none."""
_STEPS_S = (1, 10, 60, 600, 3600, 21600, 86400, 604800)
_MOST_TIMES = 60
_CUT = 40
WIDTH = 4
"""What is added up of each row: that it is one, whether it changed, whether it decides otherwise, and by how much."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows whose value of a feature lies in a range, or is one text, or is null."""

    label: str
    """What the value is, for people: `45 to 52`, `"salaried"`, `null`."""
    rows: int
    changed: int
    """Rows that changed beyond the tolerance."""
    flips: int
    """Rows that decide otherwise."""
    size: float
    """Sum of the largest differences of each row."""
    low: float | None = None
    """The smallest value in it, where values are numbers."""
    high: float | None = None

    @property
    def share(self) -> float:
        return self.changed / self.rows if self.rows else 0.0

    @property
    def mean_size(self) -> float:
        return self.size / self.rows if self.rows else 0.0

    @property
    def between(self) -> tuple[float, float]:
        """The share that stands behind such a count, 95 % of the time."""
        return wilson(self.changed, self.rows)


@dataclass(frozen=True, slots=True)
class Concentration:
    """A slice, or several side by side, in which more changed, or decide otherwise, than elsewhere."""

    feature: str
    condition: str
    """What makes a row part of it: `≥ 60`."""
    rows: int
    changed: int
    elsewhere: float
    """The share in all other rows."""
    strength: float
    """Logarithm of the likelihood ratio against one share for all (Kulldorff's scan statistic)."""

    @property
    def share(self) -> float:
        return self.changed / self.rows

    @property
    def between(self) -> tuple[float, float]:
        return wilson(self.changed, self.rows)


@dataclass(frozen=True, slots=True)
class FeatureSlices:
    """One feature's slices, in order of its values, and where in it changes concentrate, if anywhere."""

    feature: str
    slices: Sequence[Slice]
    changes: Concentration | None
    """Where those are that changed."""
    flips: Concentration | None
    """Where those are that decide otherwise."""


def wilson(changed: int, rows: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of a share."""
    if not rows:
        return 0.0, 1.0
    share, spread = changed / rows, z * z / rows
    middle = (share + spread / 2) / (1 + spread)
    width = z / (1 + spread) * math.sqrt(share * (1 - share) / rows + spread / rows / 4)
    return max(0.0, middle - width), min(1.0, middle + width)


class NumberBins:
    """Rows by a number: every value for itself while there are few, then ranges of about as many rows each."""

    def __init__(self, most: int = MOST_BINS) -> None:
        self._most = most
        self._low: Floats = np.empty(0)
        self._high: Floats = np.empty(0)
        self._sums: Floats = np.empty((0, WIDTH))
        """What `sums_of` has of each row, added up for each bin."""
        self._null = np.zeros(WIDTH)

    def add(self, values: Floats, sums: Floats) -> None:
        """`sums`: what `sums_of` has of the row of each value."""
        null = np.isnan(values)
        if null.any():
            self._null += sums[null].sum(axis=0)
            values, sums = values[~null], sums[~null]
        if not len(values):
            return
        points, place = np.unique(values, return_inverse=True)
        new = np.column_stack([np.bincount(place, weights=sums[:, each]) for each in range(WIDTH)])
        at = np.searchsorted(self._low, points, side="right") - 1
        inside = np.zeros(len(points), dtype=bool)
        inside[at >= 0] = points[at >= 0] <= self._high[at[at >= 0]]
        np.add.at(self._sums, at[inside], new[inside])
        outside = points[~inside]
        if len(outside):
            low, high = np.concatenate([self._low, outside]), np.concatenate([self._high, outside])
            order = np.argsort(low, kind="stable")
            self._low, self._high = low[order], high[order]
            self._sums = np.concatenate([self._sums, new[~inside]])[order]
        if len(self._low) > self._most:
            self._low, self._high, self._sums = _merged(self._low, self._high, self._sums, self._most // 2)

    def slices(self, feature: Feature, most: int) -> tuple[list[Slice], Slice | None]:
        """About `most` slices of as many rows each, in order; and those that are null, if any."""
        low, high, sums = self._low, self._high, self._sums
        if len(low) > max(FEW, most):
            low, high, sums = _merged(low, high, sums, most)
        found = [
            _slice(_range_label(feature, start, end), of, start, end)
            for start, end, of in zip(low.tolist(), high.tolist(), sums.tolist(), strict=True)
        ]
        return found, _slice("null", self._null.tolist()) if self._null[0] else None


class CategoryBins:
    """Rows by a text."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self._null = [0.0] * WIDTH
        self._others = [0.0] * WIDTH

    def add(self, values: Sequence[str | None], sums: Floats) -> None:
        for value, row in zip(values, sums.tolist(), strict=True):
            if value is None:
                into = self._null
            elif value in self._sums or len(self._sums) < MOST_CATEGORIES:
                into = self._sums.setdefault(value, [0.0] * WIDTH)
            else:
                into = self._others
            for place, each in enumerate(row):
                into[place] += each

    def slices(self, most: int) -> tuple[list[Slice], Slice | None]:
        """Those of most rows, each for itself, then all others in one; and those that are null."""
        ranked = sorted(self._sums.items(), key=lambda each: -each[1][0])
        found = [_slice(told(value), sums) for value, sums in ranked[:most]]
        rest = np.array([self._others, *(sums for _, sums in ranked[most:])]).sum(axis=0)
        if rest[0]:
            found.append(_slice(OTHERS, rest.tolist()))
        return found, _slice("null", self._null) if self._null[0] else None


class FeatureBins:
    """Rows by one feature."""

    def __init__(self, feature: Feature, features: int) -> None:
        self.feature = feature
        most = max(64, min(MOST_BINS, ALL_BINS // max(features, 1)))
        self._bins: NumberBins | CategoryBins = CategoryBins() if feature.type == "string" else NumberBins(most)

    def add(self, column: Column, sums: Floats) -> None:
        if isinstance(self._bins, CategoryBins):
            self._bins.add([None if value is None else str(value) for value in column], sums)
        else:
            self._bins.add(np.asarray(column, dtype=np.float64), sums)

    def slices(self, features: int) -> FeatureSlices:
        """`features`: how many are looked at beside this one, for what may be chance."""
        bins, name = self._bins, self.feature.name
        if isinstance(bins, CategoryBins):
            found, null = bins.slices(SLICES)
            candidates = [(f"= {each.label}", [each]) for each in found if each.label != OTHERS]
            scanned = found
        else:
            found, null = bins.slices(self.feature, SLICES)
            scanned, _ = bins.slices(self.feature, SCANNED)
            candidates = [
                (_condition(self.feature, scanned, first, last), scanned[first : last + 1])
                for first in range(len(scanned))
                for last in range(first, len(scanned))
                if (first, last) != (0, len(scanned) - 1) or null
            ]
        if null is not None:
            candidates.append(("is null", [null]))
            found, scanned = [*found, null], [*scanned, null]
        return FeatureSlices(
            name,
            found,
            _strongest(name, candidates, scanned, features, lambda each: each.changed),
            _strongest(name, candidates, scanned, features, lambda each: each.flips),
        )


@dataclass(slots=True)
class TimeBins:
    """Rows by when they were asked, in steps that grow so that there are never many."""

    step_s: int = _STEPS_S[0]
    bins: dict[int, list[float]] = field(default_factory=dict)
    """Seconds since the Unix epoch // step -> sums of its rows."""

    def add(self, asked_us: npt.NDArray[np.int64], sums: Floats) -> None:
        places, which = np.unique(asked_us // (self.step_s * 1_000_000), return_inverse=True)
        new = np.column_stack([np.bincount(which, weights=sums[:, each]) for each in range(WIDTH)])
        for place, row in zip(places.tolist(), new.tolist(), strict=True):
            self._into(place, row)
        while self.bins and max(self.bins) - min(self.bins) >= _MOST_TIMES:
            step = next((each for each in _STEPS_S if each > self.step_s), self.step_s * 2)
            before, self.bins = self.bins, {}
            for place, row in before.items():
                self._into(place * self.step_s // step, row)
            self.step_s = step

    def _into(self, place: int, row: Sequence[float]) -> None:
        sums = self.bins.setdefault(place, [0.0] * WIDTH)
        for at, each in enumerate(row):
            sums[at] += each

    def slices(self) -> list[Slice]:
        """In order; `low` and `high` are seconds since the Unix epoch, `high` not included."""
        return [
            _slice("", self.bins[place], float(place * self.step_s), float((place + 1) * self.step_s))
            for place in sorted(self.bins)
        ]


def told(value: str) -> str:
    """A text as people read it: quoted, what can't be printed escaped, and not endless."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _CUT else text[: _CUT - 2] + '…"'


def number(value: float) -> str:
    """In as many digits as tell it apart."""
    if float(value).is_integer() and abs(value) < 1e7:
        return f"{value:.0f}"
    return f"{value:.4g}"


def _merged(low: Floats, high: Floats, sums: Floats, most: int) -> tuple[Floats, Floats, Floats]:
    """Neighbours in one, so that about `most` remain, each of as many rows as can be."""
    rows = sums[:, 0]
    middle = np.cumsum(rows) - rows / 2
    group = np.floor(middle / rows.sum() * most)
    first = np.flatnonzero(np.diff(group, prepend=-1.0))
    last = np.append(first[1:], len(low)) - 1
    return low[first], high[last], np.add.reduceat(sums, first, axis=0)


def _slice(label: str, sums: Sequence[float], low: float | None = None, high: float | None = None) -> Slice:
    rows, changed, flips, size = sums
    return Slice(label, round(rows), round(changed), round(flips), size, low, high)


def _range_label(feature: Feature, low: float, high: float) -> str:
    if feature.type == "bool":
        return "true" if low else "false"
    return number(low) if low == high else f"{number(low)} to {number(high)}"


def _condition(feature: Feature, slices: Sequence[Slice], first: int, last: int) -> str:
    low, high = slices[first].low or 0.0, slices[last].high or 0.0
    if feature.type == "bool" or low == high:
        return f"= {_range_label(feature, low, high)}"
    if last == len(slices) - 1:
        return "is not null" if not first else f"≥ {number(low)}"
    return f"≤ {number(high)}" if not first else f"from {number(low)} to {number(high)}"


def _strongest(
    feature: str,
    candidates: Sequence[tuple[str, Sequence[Slice]]],
    slices: Sequence[Slice],
    features: int,
    counted: Callable[[Slice], int],
) -> Concentration | None:
    """Where what is counted concentrates most; None where that may well be chance."""
    rows, changed = sum(each.rows for each in slices), sum(counted(each) for each in slices)
    best: Concentration | None = None
    for condition, inside in candidates:
        n, c = sum(each.rows for each in inside), sum(counted(each) for each in inside)
        if n < LEAST_ROWS or c < LEAST_CHANGED or n >= rows or c * rows <= changed * n:
            continue
        strength = _likelihood(c, n) + _likelihood(changed - c, rows - n) - _likelihood(changed, rows)
        if best is None or strength > best.strength:
            best = Concentration(feature, condition, n, c, (changed - c) / (rows - n), strength)
    # Twice the strength is about chi-squared: above s with a probability of at most exp(-s), each time one looks.
    looks = max(len(candidates), 1) * max(features, 1)
    if best is None or best.strength < math.log(looks / CHANCE) or best.between[0] <= changed / rows:
        return None
    return best


def _likelihood(changed: int, rows: int) -> float:
    """Logarithm of how likely so many changed ones of so many are, at their own share."""
    return sum(part * math.log(part / rows) for part in (changed, rows - changed) if part)


def sums_of(changed: npt.NDArray[np.bool_], flips: npt.NDArray[np.bool_], size: Floats) -> Floats:
    """What bins add up of each row: n × WIDTH."""
    finite = np.where(np.isfinite(size), size, 0.0)
    return np.column_stack([np.ones(len(changed)), changed.astype(np.float64), flips.astype(np.float64), finite])


def strongest_first(found: Iterable[Concentration | None]) -> list[Concentration]:
    """Those that there are."""
    return sorted((each for each in found if each is not None), key=lambda each: -each.strength)
