"""Batches of events as any process might write them, by hypothesis: ordinary, odd, and in odd encodings."""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf.message import Message
from hypothesis import strategies as st

from contract.wire import length_delimited
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.event_entries import DIGEST, PREDICTED_US, T0

MODEL = "roi_prediction"

INT64 = st.integers(-(2**63), 2**63 - 1)
UINT32 = st.integers(0, 2**32 - 1)
TEXTS = st.text(max_size=8)
FLOATS = st.floats() | st.sampled_from([-0.0, 1e16, 5e-324, 0.1])
TIMES = (
    st.sampled_from([0, 1, 999_999, 1_000_000, T0, T0 + 1, -1, -(2**63), 2**63 - 1, -62_135_596_800_000_000]) | INT64
)
VERSIONS = st.sampled_from(["1.0.0", "2.0.0", ""])
OUTPUTS = ("b", "a", "é", "", 'q"', "ab", "aba")
DIGESTS = st.sampled_from([DIGEST, bytes(32), b"", b"\0\xff"])


def maybe(odd: st.SearchStrategy[Any], usual: Any) -> st.SearchStrategy[Any]:
    """Mostly as usual, so that one oddity is not hidden by another."""
    return st.integers(0, 7).flatmap(lambda at: odd if at == 0 else st.just(usual))


def _column(rows: int, *, odd: bool) -> st.SearchStrategy[v1.Column]:
    def of(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
        return st.lists(values, min_size=rows, max_size=rows)

    nulls = st.lists(st.integers(0, max(0, rows - 1) + odd), max_size=2, unique=not odd).map(
        lambda found: found if odd else sorted(found)[:rows]
    )
    kinds = st.one_of(
        of(FLOATS).map(lambda values: v1.Column(doubles=v1.Doubles(values=values))),
        of(INT64).map(lambda values: v1.Column(integers=v1.Integers(values=values))),
        of(st.booleans()).map(lambda values: v1.Column(booleans=v1.Booleans(values=values))),
        of(TEXTS).map(lambda values: v1.Column(strings=v1.Strings(values=values))),
    )

    def with_nulls(column: v1.Column, rows: list[int]) -> v1.Column:
        values = getattr(column, str(column.WhichOneof("kind"))).values
        for row in rows:
            if not odd and row < len(values):
                values[row] = type(values[row])()
        column.nulls.extend(rows)
        return column

    made = st.builds(with_nulls, kinds, nulls)
    return st.one_of(made, st.just(v1.Column())) if odd else made


@st.composite
def inputs(draw: st.DrawFn) -> dict[str, Any]:
    """The rows of an entry."""
    kind = draw(st.sampled_from(["one", "one", "many", "columns", "none", "odd matrix", "odd columns"]))
    rows = 1 if kind == "one" else draw(st.integers(1, 3))
    if kind in ("one", "many"):
        width = draw(st.integers(1, 3))
        values = draw(st.lists(FLOATS, min_size=rows * width, max_size=rows * width))
        return {"matrix": v1.Matrix(rows=rows, float64=np.array(values, dtype="<f8").tobytes())}
    if kind == "odd matrix":
        return {"matrix": v1.Matrix(rows=draw(st.integers(0, 4)), float64=draw(st.binary(max_size=24)))}
    if kind == "none":
        return {}
    odd = kind == "odd columns"
    columns = draw(st.lists(_column(rows, odd=odd), min_size=0 if odd else 1, max_size=3))
    return {"columns": v1.Columns(rows=draw(maybe(st.integers(0, 3), rows)) if odd else rows, columns=columns)}


@st.composite
def answers(draw: st.DrawFn, response: v1.PredictResponse) -> None:
    """Fills in what was predicted, or why not."""
    kind = draw(st.sampled_from(["number", "number", "rows", "columns", "none", "error", "both"]))
    if kind == "number":
        response.predictions.add().outputs["roi"].number = draw(FLOATS)
    if kind in ("rows", "both"):
        for _ in range(draw(st.integers(1, 2))):
            outputs = response.predictions.add().outputs
            for name in draw(st.lists(st.sampled_from(OUTPUTS), max_size=3, unique=True)):
                which = draw(st.sampled_from(["number", "integer", "boolean", "text", "none"]))
                value = {"number": FLOATS, "integer": INT64, "boolean": st.booleans(), "text": TEXTS}.get(which)
                if value is None:
                    outputs.get_or_create(name)
                else:
                    setattr(outputs[name], which, draw(value))
    if kind in ("columns", "both"):
        rows = draw(st.integers(0, 2))
        for name in draw(st.lists(st.sampled_from(["b", "a", ""]), min_size=1, max_size=2)):
            response.columns.add(name=name, column=draw(_column(rows, odd=draw(st.booleans()))))
    if kind == "error":
        response.error.reason, response.error.message = draw(TEXTS), draw(TEXTS)
        response.error.code = draw(st.sampled_from([0, 13, -1]))
        for _ in range(draw(st.integers(0, 2))):
            response.error.violations.add(field=draw(TEXTS), description=draw(TEXTS))


@st.composite
def events(draw: st.DrawFn) -> wire.Event:
    request_id, version, asked = draw(TEXTS), draw(maybe(VERSIONS, "1.0.0")), draw(maybe(TIMES, T0))
    status = draw(st.sampled_from([1, 1, 1, 1, 2, 3, 4, 7, 0, 99, -3]))
    entry = wire.Entry(
        request_id=request_id,
        model_id=draw(maybe(TEXTS, MODEL)),
        version=version,
        digest=draw(maybe(DIGESTS, DIGEST)),
        entity_id=draw(maybe(TEXTS, "")),
        deadline_us=draw(maybe(TIMES, 0)),
        user_request_us=asked,
        admitted_us=draw(maybe(TIMES, T0 + 1)),
        gateway=draw(TEXTS),
        hydrated=draw(maybe(st.just([wire.Hydrated(index=0, origin=wire.FILE), wire.Hydrated(origin=5)]), [])),  # type: ignore[arg-type]
        degraded=draw(st.booleans()),
        packed=draw(maybe(st.booleans(), False)),
        reply_ttl_s=draw(maybe(UINT32, 0)),
        body_sha256=draw(maybe(st.binary(max_size=33), b"")),
        discard_reply=draw(maybe(st.booleans(), False)),
        caller=draw(maybe(TEXTS, "")),
        trace=draw(maybe(TEXTS, "")),
        replay=draw(maybe(TEXTS, "")),
        **draw(inputs()),
    )
    response = v1.PredictResponse(
        request_id=draw(maybe(TEXTS, request_id)),
        model_id=draw(maybe(TEXTS, MODEL)),
        version=draw(maybe(VERSIONS, version)),
        degraded=draw(maybe(st.booleans(), entry.degraded)),
        pending=draw(maybe(st.booleans(), False)),
    )
    _stamp(response.user_request_timestamp, asked, draw(maybe(st.sampled_from(["ns", "big", "other", "none"]), "")))
    answered = PREDICTED_US if status in (1, 7) else draw(st.sampled_from([0, 0, T0 + 9]))
    _stamp(response.predicted_at_timestamp, answered, draw(maybe(st.sampled_from(["ns", "big", "other", "empty"]), "")))
    if not answered:
        response.ClearField("predicted_at_timestamp")
    draw(answers(response))
    event = wire.Event(
        status=status,  # type: ignore[arg-type]
        lane=draw(st.sampled_from([0, 0, 1, 5])),  # type: ignore[arg-type]
        entry_id=draw(maybe(TEXTS | st.sampled_from(["1e3-0", "18446744073709551615-0"]), f"{T0 // 1000}-0")),
        delivered_us=draw(maybe(TIMES, T0 + 2)),
        deliveries=draw(maybe(UINT32, 1)),
        batch_position=draw(maybe(UINT32, 0)),
        refused_body=draw(maybe(st.binary(max_size=9), b"")),
    )
    if draw(maybe(st.just(False), True)):
        event.entry.CopyFrom(entry)
    if draw(maybe(st.just(False), True)):
        event.response.CopyFrom(response)
    return event


def _stamp(stamp: Any, micros: int, odd: str) -> None:
    seconds, rest = divmod(micros, 1_000_000)
    stamp.SetInParent()
    if odd == "none":
        return
    stamp.seconds, stamp.nanos = seconds, rest * 1000
    if odd == "ns":
        stamp.nanos += 1
    elif odd == "big":
        stamp.seconds -= 1
        stamp.nanos += 1_000_000_000
    elif odd == "other":
        stamp.seconds = 2**62
    elif odd == "empty":
        stamp.Clear()


HEADERS = st.builds(
    wire.Header,
    model_id=maybe(TEXTS, MODEL),
    version=maybe(VERSIONS, "1.0.0"),
    digest=maybe(DIGESTS, DIGEST),
    worker=TEXTS,
    batch_id=TEXTS,
    batch_rows=UINT32,
    engine=TEXTS,
    runtime_id=TEXTS,
    predicted_us=maybe(TIMES, PREDICTED_US),
)

UNKNOWN = bytes.fromhex("fa3e0178") + bytes.fromhex("f83e05")
"""Fields 1007, bytes and a number: no message has them."""


def _encoded(message: Message, odd: str) -> bytes:
    """The same message, or one more than it, in another encoding."""
    raw = message.SerializeToString(deterministic=True)
    if odd == "unknown":
        return raw + UNKNOWN
    if odd == "unknown first":
        return UNKNOWN + raw
    if odd == "inside" and isinstance(message, wire.Event) and message.HasField("entry"):
        return raw + length_delimited(b"\x0a", UNKNOWN)
    if odd == "default" and isinstance(message, wire.Event):
        return raw + b"\x38\x00"  # deliveries, said to be none
    if odd == "twice":
        return raw + raw
    return raw


ODD = st.sampled_from(["unknown", "unknown first", "inside", "default", "twice"])


@st.composite
def batches(draw: st.DrawFn) -> bytes:
    """Serialized EventBatches of one to four events."""
    header = _encoded(draw(HEADERS), draw(maybe(ODD, "")))
    some = draw(st.lists(events(), min_size=1, max_size=4))
    parts = [length_delimited(b"\x12", _encoded(event, draw(maybe(ODD, "")))) for event in some]
    place = draw(maybe(st.integers(0, len(parts)), 0))
    parts.insert(place, length_delimited(b"\x0a", header))
    if draw(maybe(st.just(True), False)):
        parts.insert(place, UNKNOWN + bytes.fromhex("1b08011c"))  # and a group
    return b"".join(parts)
