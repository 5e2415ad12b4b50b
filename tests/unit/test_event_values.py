"""Rows as JSON: exact, and honest about what JSON can't hold."""

from __future__ import annotations

import math
import struct

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.sink.values import NOTHING, UNREADABLE, write_all_inputs, write_all_outputs, write_inputs, write_outputs
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.event_entries import matrix

FINITE = st.floats(allow_nan=False, allow_infinity=False)
ANY_FLOAT = st.floats()


def bits(rows: list[list[float]]) -> list[list[bytes]]:
    return [[struct.pack("<d", value) for value in row] for row in rows]


def answer(*rows: dict[str, float | int | bool | str | None]) -> v1.PredictResponse:
    response = v1.PredictResponse()
    for row in rows:
        outputs = response.predictions.add().outputs
        for name, value in row.items():
            if value is None:
                outputs.get_or_create(name)
            elif isinstance(value, bool):
                outputs[name].boolean = value
            elif isinstance(value, int):
                outputs[name].integer = value
            elif isinstance(value, float):
                outputs[name].number = value
            else:
                outputs[name].text = value
    return response


@given(st.integers(1, 5).flatmap(lambda width: st.lists(st.lists(FINITE, min_size=width, max_size=width), min_size=1)))
def test_a_matrix_reads_back_to_the_same_bits(rows: list[list[float]]) -> None:
    written = write_inputs(wire.Entry(matrix=matrix(*rows)))
    assert bits(rows) == bits(orjson.loads(written.text or ""))
    assert ("matrix", len(rows), False) == written[1:]


@given(st.lists(st.lists(ANY_FLOAT, min_size=2, max_size=2), min_size=1, max_size=8))
def test_many_single_rows_are_written_as_each_alone(rows: list[list[float]]) -> None:
    entries = [wire.Entry(matrix=matrix(row)) for row in rows]
    together = write_all_inputs(entries)
    assert [tuple(write_inputs(entry)) for entry in entries] == list(zip(*together, strict=True))


def test_requests_of_different_shapes_are_written_as_each_alone() -> None:
    entries = [
        wire.Entry(matrix=matrix((1.0, 2.0))),
        wire.Entry(matrix=matrix((1.0, 2.0), (3.0, 4.0))),
        wire.Entry(matrix=matrix((1.0,))),
        wire.Entry(),
    ]
    expected = ["[[1.0,2.0]]", "[[1.0,2.0],[3.0,4.0]]", "[[1.0]]", None]
    assert expected == list(write_all_inputs(entries).texts)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_json_cannot_hold_is_null_and_said(value: float) -> None:
    assert write_inputs(wire.Entry(matrix=matrix((1.0, value)))) == ("[[1.0,null]]", "matrix", 1, True)
    assert write_outputs(answer({"roi": value})) == ('[{"roi":null}]', "rows", 1, True)


@pytest.mark.parametrize(
    "odd",
    [
        wire.Entry(matrix=v1.Matrix(rows=1, float64=b"1234567")),
        wire.Entry(matrix=v1.Matrix(rows=3, float64=bytes(32))),
        wire.Entry(matrix=v1.Matrix(rows=0, float64=bytes(8))),
        wire.Entry(matrix=v1.Matrix(rows=2)),
        wire.Entry(columns=v1.Columns(rows=1, columns=[v1.Column()])),
        wire.Entry(columns=v1.Columns(rows=2, columns=[v1.Column(doubles=v1.Doubles(values=[1.0]))])),
        wire.Entry(columns=v1.Columns(rows=1, columns=[v1.Column(doubles=v1.Doubles(values=[1.0]), nulls=[1])])),
    ],
    ids=repr,
)
def test_rows_that_do_not_fit_together_are_unreadable(odd: wire.Entry) -> None:
    assert write_inputs(odd) == UNREADABLE


def test_columns_are_written_row_by_row_with_their_types() -> None:
    columns = [
        v1.Column(doubles=v1.Doubles(values=[12000.0, -0.0])),
        v1.Column(integers=v1.Integers(values=[2**53 + 1, -(2**63)])),
        v1.Column(booleans=v1.Booleans(values=[True, False])),
        v1.Column(strings=v1.Strings(values=["salarié", ""]), nulls=[1]),
    ]
    written = write_inputs(wire.Entry(columns=v1.Columns(rows=2, columns=columns)))
    expected = '[[12000.0,9007199254740993,true,"salarié"],[-0.0,-9223372036854775808,false,null]]'
    assert (expected, "columns:dibs", 2, False) == written


def test_a_request_without_rows_has_none() -> None:
    assert write_inputs(wire.Entry(request_id="r")) == NOTHING
    assert write_outputs(v1.PredictResponse(request_id="r")) == NOTHING


def test_outputs_are_objects_of_their_own_types() -> None:
    response = answer({"b": "approve", "a": 0.85, "c": 3, "d": True}, {"a": 0.0, "b": "", "c": 0, "d": False})
    expected = '[{"a":0.85,"b":"approve","c":3,"d":true},{"a":0.0,"b":"","c":0,"d":false}]'
    assert (expected, "rows", 2, False) == write_outputs(response)


@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(["roi", 'a"b', "é"]),
            st.one_of(ANY_FLOAT, st.integers(-(2**63), 2**63 - 1), st.booleans(), st.text(max_size=3)),
            max_size=2,
        ),
        min_size=1,
        max_size=6,
    )
)
def test_many_answers_are_written_as_each_alone(rows: list[dict[str, float | int | bool | str | None]]) -> None:
    responses = [answer(row) for row in rows]
    together = write_all_outputs(responses)
    assert [tuple(write_outputs(response)) for response in responses] == list(zip(*together, strict=True))


def test_answers_of_zero_keep_their_type() -> None:
    responses = [
        answer({"roi": 0}),
        answer({"roi": 0.0}),
        answer({"roi": -0.0}),
        answer({"roi": False}),
        answer({"roi": ""}),
    ]
    expected = ['[{"roi":0}]', '[{"roi":0.0}]', '[{"roi":-0.0}]', '[{"roi":false}]', '[{"roi":""}]']
    assert expected == list(write_all_outputs(responses).texts)


def test_packed_answers_are_objects_too() -> None:
    response = v1.PredictResponse()
    response.columns.add(name="decision").column.strings.values.extend(["approve", "reject"])
    response.columns.add(name="p").column.doubles.values.extend([0.75, 0.5])
    expected = '[{"decision":"approve","p":0.75},{"decision":"reject","p":0.5}]'
    assert (expected, "columns:sd", 2, False) == write_outputs(response)


def test_packed_answers_of_unequal_length_are_unreadable() -> None:
    response = v1.PredictResponse()
    response.columns.add(name="a").column.doubles.values.extend([0.75, 0.5])
    response.columns.add(name="b").column.doubles.values.extend([0.75])
    assert write_outputs(response) == UNREADABLE
