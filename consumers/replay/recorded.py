"""Recorded events: rows of the log, with inputs and outputs read back to the last bit.

inputs JSON + how they travelled  ->  Rows, as a model takes them
outputs JSON                      ->  one mapping of named outputs for each row
exact                             ->  both, from the serialized event, where JSON could not hold them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from google.protobuf.message import DecodeError

from consumers.model.rows import Column, Rows
from contract.request import Native, native
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

Answer = Mapping[str, Native]
"""The named outputs of one row."""

ANSWERED = frozenset({"OK", "SHADOW"})
"""Statuses of what a model may have answered; all others never were."""

MATRIX, COLUMNS = "matrix", "columns:"
_TYPES: Mapping[str, Any] = {"d": np.float64, "i": np.int64, "b": np.bool_}


class Unreadable(ValueError):
    """Inputs or outputs of a row that do not fit together; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """One event, as far as replay needs it. Its texts are read when they are asked for."""

    sequence: int
    """Its place in the order of commit; no two rows of a log have the same."""
    model_id: str
    number: int
    """The model's running number, which begins again where Redis was emptied."""
    request_id: str
    status: str
    version: str
    digest: str
    """Hex digest of the version."""
    engine: str
    runtime_id: str
    batch_id: str
    batch_rows: int
    """Rows of its predict call."""
    position: int
    """Its first row within the call."""
    rows: int
    asked_us: int
    """When it was asked, in microseconds since the Unix epoch."""
    entity_id: str
    is_erased: bool
    error: str
    """Reason of the error that stands in place of an answer."""
    wanted: bool
    """Whether it was asked for itself; else it is here for the sake of its predict call."""
    inputs_text: str | None = field(repr=False)
    inputs_form: str | None = field(repr=False)
    outputs_text: str | None = field(repr=False)
    exact: bytes | None = field(repr=False)

    @property
    def was_predicted(self) -> bool:
        return self.status in ANSWERED and not self.error

    def inputs(self) -> Rows:
        """Its rows, features in index order: a float64 matrix, or one column for each feature. Raises Unreadable."""
        try:
            rows = _sent(_event(self.exact).entry) if self.exact else _read(self.inputs_text, self.inputs_form)
        except (ValueError, TypeError, KeyError, OverflowError, DecodeError) as error:
            raise Unreadable(f"inputs of event {self.number}: {error}") from None
        if not len(rows) or count(rows) != self.rows:
            raise Unreadable(f"inputs of event {self.number}: expected {self.rows} rows of {self.inputs_form}")
        return rows

    def outputs(self) -> Sequence[Answer]:
        """What was answered, one mapping for each row. Raises Unreadable."""
        try:
            answers: list[Answer]
            if self.exact:
                answers = _answered(_event(self.exact).response)
            else:
                answers = orjson.loads(self.outputs_text or "[]")
            if len(answers) != self.rows or not all(isinstance(answer, dict) for answer in answers):
                raise ValueError(f"expected an object for each of {self.rows} rows")
        except (ValueError, TypeError, DecodeError) as error:
            raise Unreadable(f"outputs of event {self.number}: {error}") from None
        return answers


def count(rows: Rows) -> int:
    """How many rows these are."""
    return len(rows) if isinstance(rows, np.ndarray) else len(rows[0])


def joined(parts: Sequence[Rows]) -> Rows:
    """Rows of several events of one version in this order, laid out as a worker does it; at least one.

    Raises Unreadable where they are not of the same features.
    """
    first = parts[0]
    try:
        if isinstance(first, np.ndarray):
            whole = np.concatenate([np.asarray(part, dtype="<f8") for part in parts])
            # A worker's rows are a view of the bytes that came: nothing may write to them.
            return np.frombuffer(whole.tobytes(), dtype="<f8").reshape(whole.shape)
        return [_joined([part[place] for part in parts]) for place in range(len(first))]
    except (ValueError, IndexError, TypeError):
        raise Unreadable("the rows of this call are not all of the same features") from None


def repeated(rows: Rows, times: int) -> Rows:
    """The first row, so many times."""
    if isinstance(rows, np.ndarray):
        return np.repeat(rows[:1], times, axis=0)
    return [np.repeat(c[:1], times) if isinstance(c, np.ndarray) else list(c[:1]) * times for c in rows]


def _joined(columns: list[Any]) -> Column:
    if isinstance(columns[0], np.ndarray):
        if not all(isinstance(column, np.ndarray) and column.dtype == columns[0].dtype for column in columns):
            raise ValueError("columns of different types")
        return np.concatenate(columns)
    return [value for column in columns for value in column]


def _read(text: str | None, form: str | None) -> Rows:
    """From JSON and the form it travelled in."""
    if text is None or form is None:
        raise ValueError("nothing is recorded")
    table = orjson.loads(text)
    if form == MATRIX:
        if "null" in text:
            raise ValueError("expected numbers alone in a matrix")
        return np.array(table, dtype=np.float64).reshape(len(table), -1)
    if not form.startswith(COLUMNS):
        raise ValueError(f"expected {MATRIX} or {COLUMNS}…, got {form!r}")
    columns = list(zip(*table, strict=True))
    return [_column(letter, values) for letter, values in zip(form.removeprefix(COLUMNS), columns, strict=True)]


def _column(letter: str, values: Sequence[Any]) -> Column:
    if letter == "s":
        return list(values)
    # What is null and of no text stood in the column as 0; where it was anything else, `exact` has it.
    return np.array([0 if value is None else value for value in values], dtype=_TYPES[letter])


def _event(raw: bytes) -> wire.Event:
    return wire.Event.FromString(raw)


def _sent(entry: wire.Entry) -> Rows:
    """The rows of an entry as a worker reads them."""
    if entry.WhichOneof("rows") == "matrix":
        return np.frombuffer(entry.matrix.float64, dtype="<f8").reshape(entry.matrix.rows, -1)
    return [_travelled(column) for column in entry.columns.columns]


def _travelled(column: v1.Column) -> Column:
    kind = column.WhichOneof("kind")
    if kind is None:
        raise ValueError("expected a column with values")
    values: list[Any] = list(getattr(column, kind).values)
    if kind != "strings":
        return np.array(values, dtype={"doubles": np.float64, "integers": np.int64, "booleans": np.bool_}[kind])
    for row in column.nulls:
        if row < len(values):
            values[row] = None
    return values


def _answered(response: v1.PredictResponse) -> list[Answer]:
    if response.predictions:
        return [{name: native(value) for name, value in each.outputs.items()} for each in response.predictions]
    columns = {
        out.name: getattr(out.column, kind).values
        for out in response.columns
        if (kind := out.column.WhichOneof("kind"))
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
