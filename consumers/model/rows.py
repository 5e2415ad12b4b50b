"""Rows as a model takes them: a float64 matrix, or a DataFrame with the features' names and types."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from contract.signature import Feature, Signature, Value, ValueType

Column: TypeAlias = npt.NDArray[Any] | Sequence[str | None]
"""One feature of all rows: an array for float, int and bool, a list for string."""

Rows: TypeAlias = npt.NDArray[np.float64] | Sequence[Column]
"""Either a float64 matrix (rows x features), booleans as 0 and 1, or one column per feature in index order."""

DTYPES: dict[ValueType, type[np.generic]] = {"float": np.float64, "int": np.int64, "bool": np.bool_}
"""How each type travels in arrays; strings travel in lists."""


def rows_of(signature: Signature, rows: Sequence[Sequence[Value]]) -> Rows:
    """Rows of values in index order, in the form `predict` takes."""
    if signature.matrix:
        table = [[np.nan if value is None else float(value) for value in row] for row in rows]
        return np.array(table, dtype=np.float64).reshape(len(rows), len(signature.features))
    return [_column(feature, [row[feature.index] for row in rows]) for feature in signature.features]


def _column(feature: Feature, values: list[Value]) -> Column:
    if feature.type == "string":
        return cast("list[str | None]", values)
    filled = [np.nan if value is None else value for value in values]
    return np.array(filled, dtype=DTYPES[feature.type])


def to_matrix(rows: Rows) -> npt.NDArray[np.float64]:
    """Rows x features, float64; ints are exact up to 2^53."""
    if isinstance(rows, np.ndarray):
        return rows
    return np.column_stack([np.asarray(column, dtype=np.float64) for column in rows])


def to_frame(signature: Signature, rows: Rows) -> Any:
    """A DataFrame with the features' names and types: float64, int64, bool, and object for strings, None for null."""
    import pandas as pd  # only where a model asks for it

    columns = rows.T if isinstance(rows, np.ndarray) else rows
    series = {
        feature.name: pd.Series(column, dtype=DTYPES.get(feature.type, object))
        for feature, column in zip(signature.features, columns, strict=True)
    }
    return pd.DataFrame(series)
