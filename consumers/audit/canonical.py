"""Headers and events as canonical bytes, from the values of a row: https://protobuf.dev/programming-guides/encoding/

Canonical: in the order of the fields, none that holds its default, maps sorted. Joined by hand, so that the bytes that
a row stands for depend on no library's version.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import orjson

from contract.wire import length_delimited, map_order, tag_bytes, timestamp, varint
from protos import millstream_wire_v1_pb2 as wire

PREDICTED = frozenset({wire.Status.Name(wire.OK), wire.Status.Name(wire.SHADOW)})
"""Statuses of events that a predict call answered: the time of the call is theirs."""

STATUSES = {wire.Status.Name(number): number for number in wire.Status.values()}
LANES = {"requests": wire.INTERACTIVE, "bulk": wire.BULK}

_TAGS = [b"", *map(tag_bytes, range(1, 21))]
_TRUE = [b"", *(varint(field << 3) + b"\x01" for field in range(1, 21))]
_VARINTS = [b"", *(varint(field << 3) for field in range(1, 21))]


def _text(field: int, value: str | None) -> bytes:
    return length_delimited(_TAGS[field], value.encode()) if value else b""


def _blob(field: int, value: bytes | None) -> bytes:
    return length_delimited(_TAGS[field], value) if value else b""


def _number(field: int, value: int | None) -> bytes:
    return _VARINTS[field] + varint(value) if value else b""


def _time(field: int, micros: int | None) -> bytes:
    return length_delimited(_TAGS[field], timestamp(micros)) if micros else b""


def join_header(
    model_id: str | None,
    version: str | None,
    digest: str | None,
    worker: str | None,
    batch_id: str | None,
    batch_rows: int | None,
    engine: str | None,
    runtime_id: str | None,
    predicted_us: int | None,
) -> bytes:
    """A serialized `wire.Header`; None for what it has not. Raises ValueError."""
    return b"".join(
        (
            _text(1, model_id),
            _text(2, version),
            _blob(3, bytes.fromhex(digest or "")),
            _text(4, worker),
            _text(5, batch_id),
            _number(6, batch_rows),
            _text(7, engine),
            _text(8, runtime_id),
            _number(9, predicted_us),
        )
    )


def join_event(row: Any) -> bytes:
    """A serialized `wire.Event`, from a row of the log.

    Raises ValueError, TypeError, LookupError, AttributeError, OverflowError or struct.error for values that no sink
    writes.
    """
    entry = join_entry(row)
    response = join_response(row)
    return b"".join(
        (
            length_delimited(b"\x0a", entry),
            length_delimited(b"\x12", response),
            _number(3, _named(row.status, STATUSES)),
            _number(4, _named(row.lane, LANES)),
            _text(5, row.entry_id),
            _number(6, row.delivered_timestamp),
            _number(7, row.deliveries),
            _number(8, row.batch_position),
            _blob(9, row.refused_body),
        )
    )


def _named(name: str, numbers: Mapping[str, int]) -> int:
    """The number of a status or lane; one of a later version of the protocol stands there as it is."""
    found = numbers.get(name)
    return int(name) if found is None else found


def join_entry(row: Any) -> bytes:
    """A serialized `wire.Entry`, from a row of the log. Raises what `join_event` raises."""
    return b"".join(
        (
            _text(1, row.request_id),
            _text(2, row.model_id),
            _text(3, row.version),
            _blob(4, bytes.fromhex(row.digest or "")),
            _inputs(row.inputs, row.inputs_form),
            _text(7, row.entity_id),
            _number(8, row.deadline_timestamp),
            _number(9, row.user_request_timestamp),
            _number(10, row.admitted_timestamp),
            _text(11, row.gateway),
            row.hydrated or b"",
            _TRUE[13] if row.degraded else b"",
            _TRUE[14] if row.packed else b"",
            _number(15, row.reply_ttl_s),
            _blob(16, row.body_sha256),
            _TRUE[17] if row.discard_reply else b"",
            _text(18, row.caller),
            _text(19, row.trace),
            _text(20, row.replay),
        )
    )


def join_response(row: Any) -> bytes:
    """A serialized `v1.PredictResponse`, from a row of the log. Raises what `join_event` raises."""
    predictions, columns = _outputs(row.outputs, row.outputs_form)
    return b"".join(
        (
            _text(1, row.request_id),
            _text(2, row.model_id),
            _text(3, row.version),
            predictions,
            _time(5, row.user_request_timestamp),
            _time(6, row.predicted_at_timestamp),
            b"" if row.error_code is None else length_delimited(_TAGS[7], _error(row)),
            columns,
            _TRUE[9] if row.degraded else b"",
        )
    )


def _error(row: Any) -> bytes:
    violations = orjson.loads(row.error_violations) if row.error_violations else ()
    return b"".join(
        (
            _text(1, row.error_reason),
            _text(2, row.error_message),
            *(
                length_delimited(_TAGS[3], _text(1, violation["field"]) + _text(2, violation["description"]))
                for violation in violations
            ),
            _number(4, row.error_code),
        )
    )


# ---------------------------------------------------------------------- rows and answers


def _inputs(text: str | None, form: str | None) -> bytes:
    """The field of an Entry that holds its rows."""
    if not form:
        return b""
    rows = orjson.loads(text or "")
    if form == "matrix":
        values = rows[0] if len(rows) == 1 else [value for row in rows for value in row]
        matrix = _number(1, len(rows)) + _blob(2, _doubles(len(values)).pack(*values))
        return length_delimited(_TAGS[5], matrix)
    letters = _letters(form)
    table = list(zip(*rows, strict=True)) if rows else [()] * len(letters)
    columns = [length_delimited(_TAGS[2], _column(*each)) for each in zip(letters, table, strict=True)]
    return length_delimited(_TAGS[6], _number(1, len(rows)) + b"".join(columns))


def _outputs(text: str | None, form: str | None) -> tuple[bytes, bytes]:
    """The fields of a PredictResponse that hold one answer per row, and one column per output; one of them is empty."""
    if not form:
        return b"", b""
    rows = orjson.loads(text or "")
    if form == "rows":
        return b"".join([length_delimited(_TAGS[4], _prediction(row)) for row in rows]), b""
    names = list(rows[0])
    letters = _letters(form)
    columns = [
        length_delimited(
            _TAGS[8], _text(1, name) + length_delimited(_TAGS[2], _column(letter, [row[name] for row in rows]))
        )
        for name, letter in zip(names, letters, strict=True)
    ]
    return b"", b"".join(columns)


def _letters(form: str) -> str:
    kind, _, letters = form.partition(":")
    if kind != "columns":
        raise ValueError(f"expected rows as matrix or columns, got {form[:40]!r}")
    return letters


def _prediction(row: dict[str, Any]) -> bytes:
    """A serialized `v1.Prediction`."""
    return b"".join(
        [
            length_delimited(
                b"\x0a", length_delimited(b"\x0a", name.encode()) + length_delimited(b"\x12", _value(row[name]))
            )
            for name in (row if len(row) == 1 else sorted(row, key=map_order))
        ]
    )


def _value(value: Any) -> bytes:
    """A serialized `v1.Value`."""
    kind = type(value)
    if kind is float:
        return b"\x09" + _ONE.pack(value)
    if kind is bool:
        return b"\x18\x01" if value else b"\x18\x00"
    if kind is int:
        return b"\x10" + _zigzag(value)
    return length_delimited(b"\x22", value.encode())


_ONE = struct.Struct("<d")


@lru_cache(maxsize=256)
def _doubles(count: int) -> struct.Struct:
    return struct.Struct(f"<{count}d")


def _zigzag(value: int) -> bytes:
    if not -(2**63) <= value < 2**63:
        raise ValueError(f"expected an integer of 64 bits, got {value}")
    return varint((value << 1) ^ (value >> 63))


def _column(letter: str, values: Sequence[Any]) -> bytes:
    """A serialized `v1.Column`."""
    nulls = [row for row, value in enumerate(values) if value is None] if None in values else []
    if letter == "d":
        plain = [0.0 if value is None else value for value in values] if nulls else values
        kind = length_delimited(_TAGS[1], _blob(1, _doubles(len(plain)).pack(*plain)))
    elif letter == "i":
        kind = length_delimited(_TAGS[2], _blob(1, b"".join([_zigzag(value or 0) for value in values])))
    elif letter == "b":
        kind = length_delimited(_TAGS[3], _blob(1, bytes([bool(value) for value in values])))
    elif letter == "s":
        kind = length_delimited(
            _TAGS[4], b"".join([length_delimited(b"\x0a", (value or "").encode()) for value in values])
        )
    else:
        raise ValueError(f"expected a column of d, i, b or s, got {letter!r}")
    return kind + _blob(5, b"".join(map(varint, nulls)))
