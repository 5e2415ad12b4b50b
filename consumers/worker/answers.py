"""Replies as bytes: what a model answered for each request of a batch, joined from parts the batch shares.

They are canonical, as the event log rebuilds them: in the order of the fields, none that holds its default, outputs
sorted by name.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from consumers.model.model import OutputColumn
from contract.wire import SIZE, length_delimited, map_order, tag_bytes, timestamp, varint
from protos import millstream_v1_pb2 as v1

_REQUEST_ID, _MODEL_ID, _VERSION = tag_bytes(1), tag_bytes(2), tag_bytes(3)
_PREDICTION, _USER_TIME, _PREDICTED_TIME, _COLUMN = tag_bytes(4), tag_bytes(5), tag_bytes(6), tag_bytes(8)
_DEGRADED = b"\x48\x01"


class Answers:
    """The responses of one predict call."""

    def __init__(self, model_id: str, version: str, columns: Sequence[OutputColumn], predicted_us: int) -> None:
        self._model = length_delimited(_MODEL_ID, model_id.encode()) + length_delimited(_VERSION, version.encode())
        self._predicted = length_delimited(_PREDICTED_TIME, timestamp(predicted_us))
        self._columns = columns
        self._predictions: list[bytes] | None = None

    def response(
        self, request_id: bytes, start: int, rows: int, user_request_us: int, *, packed: bool, degraded: bool
    ) -> bytes:
        """A serialized PredictResponse for `rows` rows of the call from row `start`."""
        predictions = columns = b""
        if packed:
            columns = b"".join([length_delimited(_COLUMN, _packed(column, start, rows)) for column in self._columns])
        else:
            if self._predictions is None:
                self._predictions = _predictions(self._columns)
            one = self._predictions
            predictions = one[start] if rows == 1 else b"".join(one[start : start + rows])
        asked = timestamp(user_request_us)
        return b"".join(
            (
                *(_REQUEST_ID, SIZE[len(request_id)], request_id, self._model, predictions),
                *(_USER_TIME, SIZE[len(asked)], asked, self._predicted, columns),
                _DEGRADED if degraded else b"",
            )
        )


def _predictions(columns: Sequence[OutputColumn]) -> list[bytes]:
    """For each row the `predictions` field of a PredictResponse."""
    cells = [_cells(column) for column in sorted(columns, key=lambda column: map_order(column.name))]
    rows = cells[0] if len(cells) == 1 else map(b"".join, zip(*cells, strict=True))
    return [b"".join((_PREDICTION, SIZE[len(row)], row)) for row in rows]


def _cells(column: OutputColumn) -> list[bytes]:
    """For each row the map entry {name: value} of a Prediction."""
    key = length_delimited(b"\x0a", column.name.encode())
    values = column.values
    if isinstance(values, list):
        texts = [length_delimited(b"\x22", value.encode()) for value in values]
        return [_entry(key, text) for text in texts]
    if column.kind == "float":
        # Every float takes eight bytes, so that all in front of it is the same for all rows.
        head = _entry(key, b"\x09" + bytes(8))[:-8]
        raw = np.asarray(values, dtype="<f8").tobytes()
        return [head + raw[place : place + 8] for place in range(0, len(raw), 8)]
    if column.kind == "bool":
        both = (_entry(key, b"\x18\x00"), _entry(key, b"\x18\x01"))
        return [both[bool(value)] for value in values]
    # sint64: zigzag, so that small negative numbers stay short.
    return [_entry(key, b"\x10" + varint((value << 1) ^ (value >> 63))) for value in values.tolist()]


def _entry(key: bytes, value: bytes) -> bytes:
    return length_delimited(b"\x0a", key + length_delimited(b"\x12", value))


def _packed(column: OutputColumn, start: int, rows: int) -> bytes:
    """An OutputColumn: its name, and the values of some rows."""
    values = column.values[start : start + rows]
    out = v1.Column()
    if isinstance(values, list):
        out.strings.values.extend(values)
    elif column.kind == "float":
        # Packed doubles are what numpy holds: no loop over rows.
        doubles = length_delimited(b"\x0a", np.asarray(values, dtype="<f8").tobytes())
        return _named(column.name, length_delimited(b"\x0a", doubles))
    elif column.kind == "bool":
        out.booleans.values.extend(values.tolist())
    else:
        out.integers.values.extend(values.tolist())
    return _named(column.name, out.SerializeToString())


def _named(name: str, column: bytes) -> bytes:
    return length_delimited(b"\x0a", name.encode()) + length_delimited(b"\x12", column)
