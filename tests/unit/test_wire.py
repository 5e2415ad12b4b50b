"""Hand-joined protobuf reads back as what was put in."""

from __future__ import annotations

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from consumers.model.model import OutputColumn
from consumers.worker.answers import Answers
from contract.wire import length_delimited, tag_bytes, timestamp, varint, varint_field
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

UINT64 = st.integers(min_value=0, max_value=2**64 - 1)
INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)


@pytest.mark.parametrize(
    ("number", "raw"),
    [(0, b"\0"), (1, b"\1"), (127, b"\x7f"), (128, b"\x80\1"), (300, b"\xac\2"), (-1, b"\xff" * 9 + b"\1")],
)
def test_a_varint_is_base_128(number: int, raw: bytes) -> None:
    assert varint(number) == raw


@given(INT64)
def test_an_int64_field_reads_back(number: int) -> None:
    assert wire.Entry.FromString(varint_field(9, number)).user_request_us == number


@given(st.integers(min_value=0, max_value=2**32 - 1))
def test_a_uint32_field_reads_back(number: int) -> None:
    assert wire.Event.FromString(varint_field(7, number)).deliveries == number


@given(st.binary(max_size=20_000))
def test_a_bytes_field_of_any_length_reads_back(payload: bytes) -> None:
    assert wire.Reply.FromString(length_delimited(tag_bytes(2), payload)).response == payload


@pytest.mark.parametrize("size", [0, 127, 128, 16_383, 16_384, 2_097_152])
def test_lengths_at_the_edges_of_their_encoding_read_back(size: int) -> None:
    assert len(wire.Reply.FromString(length_delimited(tag_bytes(2), bytes(size))).response) == size


@given(st.text(max_size=200))
def test_a_field_above_15_has_a_longer_tag(text: str) -> None:
    assert wire.Entry.FromString(length_delimited(tag_bytes(18), text.encode())).caller == text


@given(st.integers(min_value=0, max_value=253_402_300_799_999_999))
def test_a_timestamp_is_exact_to_the_microsecond(micros: int) -> None:
    assert Timestamp.FromString(timestamp(micros)).ToMicroseconds() == micros


# ---------------------------------------------------------------- replies

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
ROWS = st.integers(min_value=1, max_value=5)


@st.composite
def outputs(draw: st.DrawFn) -> list[OutputColumn]:
    rows = draw(ROWS)

    def of(item: st.SearchStrategy[object]) -> list[object]:
        return draw(st.lists(item, min_size=rows, max_size=rows))

    names = draw(st.lists(st.text(min_size=1, max_size=200), min_size=4, max_size=4, unique=True))
    return [
        OutputColumn(names[0], "float", np.array(of(FLOATS), dtype=np.float64)),
        OutputColumn(names[1], "int", np.array(of(INT64), dtype=np.int64)),
        OutputColumn(names[2], "bool", np.array(of(st.booleans()), dtype=np.bool_)),
        OutputColumn(names[3], "string", [str(item) for item in of(st.text(max_size=300))]),
    ]


def expected(columns: list[OutputColumn], start: int, rows: int, *, packed: bool, degraded: bool) -> v1.PredictResponse:
    """The same response made by protobuf itself."""
    response = v1.PredictResponse(request_id="r1", model_id="churn", version="1.0.0", degraded=degraded)
    response.user_request_timestamp.FromMicroseconds(1_700_000_000_000_001)
    response.predicted_at_timestamp.FromMicroseconds(1_700_000_000_500_000)
    number, integer, boolean, text = (column.values[start : start + rows] for column in columns)
    if packed:
        kinds = [
            v1.Column(doubles=v1.Doubles(values=[float(each) for each in number])),
            v1.Column(integers=v1.Integers(values=[int(each) for each in integer])),
            v1.Column(booleans=v1.Booleans(values=[bool(each) for each in boolean])),
            v1.Column(strings=v1.Strings(values=list(text))),
        ]
        for column, values in zip(columns, kinds, strict=True):
            response.columns.add(name=column.name, column=values)
        return response
    for row in range(rows):
        cells = [
            v1.Value(number=float(number[row])),
            v1.Value(integer=int(integer[row])),
            v1.Value(boolean=bool(boolean[row])),
            v1.Value(text=text[row]),
        ]
        names = [column.name for column in columns]
        response.predictions.add(outputs=dict(zip(names, cells, strict=True)))
    return response


@given(outputs(), st.booleans(), st.booleans(), st.data())
def test_a_reply_of_any_outputs_reads_back_as_protobuf_would_write_it(
    columns: list[OutputColumn], packed: bool, degraded: bool, data: st.DataObject
) -> None:
    there = len(columns[0].values)
    start = data.draw(st.integers(min_value=0, max_value=there - 1))
    rows = data.draw(st.integers(min_value=1, max_value=there - start))
    answers = Answers("churn", "1.0.0", columns, 1_700_000_000_500_000)
    raw = answers.response(b"r1", start, rows, 1_700_000_000_000_001, packed=packed, degraded=degraded)
    # Compared as bytes of one and the same encoder, since NaN is not equal to itself.
    came = v1.PredictResponse.FromString(raw).SerializeToString(deterministic=True)
    assert came == expected(columns, start, rows, packed=packed, degraded=degraded).SerializeToString(
        deterministic=True
    )
