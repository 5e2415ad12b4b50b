"""Recorded requests on a version on trial: what it answers to each row, and on which it raises."""

from __future__ import annotations

from typing import Any

import numpy as np

from consumers.model.model import LoadedModel, PredictFailed
from consumers.model.rows import DTYPES, Rows, rows_of
from contract.signature import Signature, Value
from contract.trial import Answers
from protos import millstream_v1_pb2 as v1

BATCH_ROWS = 256
"""Most rows in one call, as for a worker by default."""


def answered(model: LoadedModel, raw: bytes) -> Answers:
    """What a model answers to a serialized Rows of one row at least.

    A batch on which it raises is split until the rows that make it raise stand alone.
    """
    rows, count = _read(model.signature, v1.Rows.FromString(raw))
    answers: dict[str, Any] = {
        name: [""] * count if kind == "string" else np.zeros(count, dtype=DTYPES[kind]) for name, kind in model.outputs
    }
    failed: set[int] = set()
    why = ""
    left = [(start, min(start + BATCH_ROWS, count)) for start in range(0, count, BATCH_ROWS)][::-1]
    while left:
        start, end = left.pop()
        try:
            for column in model.predict(_part(rows, start, end)):
                answers[column.name][start:end] = column.values
        except PredictFailed as error:
            if end - start > 1:
                middle = (start + end) // 2
                left += [(middle, end), (start, middle)]
                continue
            failed.add(start)
            why = why or str(error)
    columns = {name: values if isinstance(values, list) else values.tolist() for name, values in answers.items()}
    return Answers(columns, frozenset(failed), why)


def _read(signature: Signature, message: v1.Rows) -> tuple[Rows, int]:
    """Rows as a model takes them, and how many."""
    if message.WhichOneof("form") == "matrix":
        count = message.matrix.rows
        return np.frombuffer(message.matrix.float64, dtype="<f8").reshape(count, -1), count
    columns: list[list[Value]] = []
    for column in message.columns.columns:
        values: list[Value] = list(getattr(column, str(column.WhichOneof("kind"))).values)
        for row in column.nulls:
            values[row] = None
        columns.append(values)
    return rows_of(signature, list(zip(*columns, strict=True))), message.columns.rows


def _part(rows: Rows, start: int, end: int) -> Rows:
    return rows[start:end] if isinstance(rows, np.ndarray) else [column[start:end] for column in rows]
