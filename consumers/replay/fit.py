"""Fit: rows that one version answered, as another one takes them.

recorded rows + features of the version that answered  ->  by name  ->  the other's rows, or which features do not fit

A value counts by the rule that admits requests, `Feature.accept`; what the log has not is the other's default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from consumers.model.rows import DTYPES, Column, Rows
from consumers.replay.recorded import Unreadable, count
from contract.signature import Feature, Signature, Value
from contract.signature_parts import shown


class Misfit(NamedTuple):
    """Why a row is no row of the other version."""

    feature: str
    expected: str


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """Rows as the other version takes them."""

    columns: Sequence[Column]
    """One for each of its features; where a row does not fit, any value that does."""
    wrong: Mapping[int, Mapping[Misfit, str]]
    """Row -> everything that does not fit, and what came instead."""
    rows: int
    _as_recorded: Rows | None
    _matrix: bool

    def taken(self) -> Rows:
        """What `predict` takes: all rows, each that does not fit in the place of which another stands.

        Raises Unreadable where none fits.
        """
        if self._as_recorded is not None:
            return self._as_recorded
        good = next((row for row in range(self.rows) if row not in self.wrong), None)
        if good is None:
            raise Unreadable("no row fits")
        order = np.array([good if row in self.wrong else row for row in range(self.rows)])
        columns = [
            each[order] if isinstance(each, np.ndarray) else [each[row] for row in order] for each in self.columns
        ]
        if not self._matrix:
            return columns
        table = np.column_stack([np.asarray(column, dtype="<f8") for column in columns])
        # A worker's rows are a view of the bytes that came: nothing may write to them.
        return np.frombuffer(table.tobytes(), dtype="<f8").reshape(table.shape)


class Fit:
    """How rows of a version with these features become rows of `candidate`.

    `recorded` is None where the version that answered is not to be had: then values count by their position, if there
    are as many.
    """

    def __init__(self, recorded: Sequence[Feature] | None, candidate: Signature) -> None:
        self._candidate = candidate
        self._by_position = recorded is None
        there = {feature.name: feature for feature in (candidate.features if recorded is None else recorded)}
        self._width = len(there)
        self._sources = [there.get(feature.name) for feature in candidate.features]
        self.defaulted = tuple(
            feature.name
            for feature, source in zip(candidate.features, self._sources, strict=True)
            if source is None and feature.has_default
        )
        """Features that the log has not, for which their default stands."""
        self.unused = tuple(sorted(there.keys() - {feature.name for feature in candidate.features}))
        """Features that the log has and the other version does not take."""
        self._trusted = [
            source is not None and not self._by_position and _is_as_wide(source, feature)
            for feature, source in zip(candidate.features, self._sources, strict=True)
        ]
        self._as_it_is = (
            all(self._trusted)
            and self._width == len(candidate.features)
            and all(
                source is not None and source.index == feature.index
                for feature, source in zip(candidate.features, self._sources, strict=True)
            )
        )

    def of(self, rows: Rows) -> Fitted:
        """Recorded rows, each to its feature. Raises Unreadable where they are not of as many features."""
        is_matrix, number = isinstance(rows, np.ndarray), count(rows)
        columns: Sequence[Column] = list(rows.T) if isinstance(rows, np.ndarray) else rows
        if len(columns) != self._width:
            named = "the candidate has" if self._by_position else "the version that answered has"
            raise Unreadable(f"its inputs have {len(columns)} features, {named} {self._width}")
        wrong: dict[int, dict[Misfit, str]] = {}
        taken = [
            self._column(feature, source, columns, number, trusted, wrong)
            for feature, source, trusted in zip(self._candidate.features, self._sources, self._trusted, strict=True)
        ]
        same = self._as_it_is and is_matrix == self._candidate.matrix
        return Fitted(taken, wrong, number, rows if same else None, self._candidate.matrix)

    def _column(
        self,
        feature: Feature,
        source: Feature | None,
        columns: Sequence[Column],
        rows: int,
        trusted: bool,
        wrong: dict[int, dict[Misfit, str]],
    ) -> Column:
        if source is None:
            if not feature.has_default:
                for row in range(rows):
                    wrong.setdefault(row, {})[Misfit(feature.name, "it was not recorded and has no default")] = ""
            return _typed(feature, [feature.default if feature.has_default else feature.sample()] * rows)
        found = columns[source.index]
        if trusted:
            if feature.type == "string":
                return found
            return np.asarray(found).astype(DTYPES[feature.type], copy=False)
        values: list[Value] = []
        plain = _PLAIN[source.type]
        for row, item in enumerate(found.tolist() if isinstance(found, np.ndarray) else found):
            value = plain(item)
            try:
                values.append(feature.accept(value))
            except ValueError:
                wrong.setdefault(row, {})[Misfit(feature.name, f"expected {feature.expected}")] = shown(value)
                values.append(feature.sample())
        return _typed(feature, values)


def _number(item: Any) -> Value:
    return None if item is None or math.isnan(item) else item


_PLAIN: Mapping[str, Callable[[Any], Value]] = {
    "float": _number,
    "int": _number,
    # In a matrix a boolean is 0 or 1; anything else was no boolean.
    "bool": lambda item: bool(item) if item in (0, 1) else item,
    "string": lambda item: item,
}


def _typed(feature: Feature, values: Sequence[Value]) -> Column:
    if feature.type == "string":
        return [value if isinstance(value, str) else None for value in values]
    dtype: npt.DTypeLike = DTYPES[feature.type]
    return np.array([math.nan if value is None else value for value in values], dtype=dtype)


def _is_as_wide(old: Feature, new: Feature) -> bool:
    """Whether the new one takes every value that the old one took."""
    if old.type != new.type or (old.nullable and not new.nullable):
        return False
    if new.categories is not None and (old.categories is None or not set(old.categories) <= set(new.categories)):
        return False
    low = new.min is None or (old.min is not None and old.min >= new.min)
    high = new.max is None or (old.max is not None and old.max <= new.max)
    return low and high
