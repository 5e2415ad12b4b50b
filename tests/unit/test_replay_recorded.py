"""Rows of the log read back: inputs as a worker had them, outputs as they were answered, to the last bit."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.model.outputs import OutputColumn
from consumers.model.rows import Rows
from consumers.replay.recorded import RecordedEvent, Unreadable, joined, repeated
from consumers.replay.verdict import compare
from consumers.sink.rows import Link
from consumers.worker.answers import Answers
from consumers.worker.work import Work, rows_of_entries
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.event_entries import header, ok

FLOATS = st.floats(width=64) | st.sampled_from([-0.0, 5e-324, math.nan, math.inf, 1e16, 1e22, 0.1])
INTS = st.integers(-(2**63), 2**63 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
QUIET_NAN = struct.unpack("<d", struct.pack("<Q", 0x7FF8_0000_DEAD_BEEF))[0]


def through_the_log(event: wire.Event) -> RecordedEvent:
    """As the sink's columns have it."""
    raw = wire.EventBatch(header=header(), events=[event]).SerializeToString()
    link = Link.decode("roi_prediction", "1-1", {b"n": b"1", b"pb": raw})

    def column(name: str) -> Any:
        return link.column(name)[0]

    return recorded(
        rows=int(column("rows")),
        inputs_text=column("inputs"),
        inputs_form=column("inputs_form"),
        outputs_text=column("outputs"),
        exact=column("exact"),
    )


def recorded(**changes: Any) -> RecordedEvent:
    fields: dict[str, Any] = {
        "sequence": 1,
        "model_id": "m",
        "number": 1,
        "request_id": "r1",
        "status": "OK",
        "version": "1.0.0",
        "digest": "d1",
        "engine": "sklearn 1.9.1",
        "runtime_id": "here",
        "batch_id": "w1-1",
        "batch_rows": 1,
        "position": 0,
        "rows": 1,
        "asked_us": 0,
        "entity_id": "",
        "is_erased": False,
        "error": "",
        "wanted": True,
        "inputs_text": "[[1.0]]",
        "inputs_form": "matrix",
        "outputs_text": '[{"out":1.0}]',
        "exact": None,
    }
    return RecordedEvent(**{**fields, **changes})


def work(entry: wire.Entry, rows: int) -> Work:
    return Work(wire.INTERACTIVE, b"1-1", entry, b"", rows, 0)


def assert_same(expected: Rows, actual: Rows) -> None:
    if isinstance(expected, np.ndarray):
        assert isinstance(actual, np.ndarray)
        assert (expected.shape, expected.tobytes()) == (actual.shape, actual.tobytes())
        return
    assert len(expected) == len(actual)
    for one, other in zip(expected, actual, strict=True):
        if isinstance(one, np.ndarray):
            assert isinstance(other, np.ndarray)
            assert (one.dtype, one.tobytes()) == (other.dtype, other.tobytes())
        else:
            assert list(one) == list(other)


@given(st.integers(1, 4).flatmap(lambda width: st.lists(st.lists(FLOATS, min_size=width, max_size=width), min_size=1)))
def test_a_matrix_is_read_as_a_worker_reads_it(rows: list[list[float]]) -> None:
    table = np.array(rows, dtype="<f8")
    event = ok("r1", matrix=v1.Matrix(rows=len(rows), float64=table.tobytes()))
    read = through_the_log(event).inputs()
    assert_same(rows_of_entries([work(event.entry, len(rows))]), joined([read]))


@given(st.integers(1, 4).flatmap(lambda n: st.tuples(*(st.lists(each, min_size=n, max_size=n) for each in (
    FLOATS, INTS, st.booleans(), TEXTS | st.none()
)))))  # fmt: skip
def test_columns_are_read_as_a_worker_reads_them(columns: tuple[list[Any], ...]) -> None:
    floats, ints, flags, texts = columns
    sent = v1.Columns(rows=len(floats))
    sent.columns.add().doubles.values.extend(floats)
    sent.columns.add().integers.values.extend(ints)
    sent.columns.add().booleans.values.extend(flags)
    last = sent.columns.add()
    last.strings.values.extend(text or "" for text in texts)
    last.nulls.extend(row for row, text in enumerate(texts) if text is None)
    event = ok("r1")
    event.entry.columns.CopyFrom(sent)
    read = through_the_log(event).inputs()
    assert_same(rows_of_entries([work(event.entry, len(floats))]), joined([read]))


@pytest.mark.parametrize("packed", [False, True])
@given(floats=st.lists(FLOATS, min_size=2, max_size=2), ints=st.lists(INTS, min_size=2, max_size=2), text=TEXTS)
def test_answers_of_every_type_are_the_same_bits_again(
    floats: list[float], ints: list[int], text: str, *, packed: bool
) -> None:
    columns = [
        OutputColumn("float", "float", np.array(floats)),
        OutputColumn("int", "int", np.array(ints, dtype=np.int64)),
        OutputColumn("bool", "bool", np.array([True, False])),
        OutputColumn("string", "string", [text, ""]),
    ]
    answers = Answers("roi_prediction", "1.0.0", columns, 5)
    event = ok("r1", matrix=v1.Matrix(rows=2, float64=bytes(16)))
    event.response.ParseFromString(answers.response(b"r1", 0, 2, 1, packed=packed, degraded=False))
    assert compare(through_the_log(event).outputs(), columns, 0).count == 0


def test_every_kind_of_difference_is_one() -> None:
    def differences(answer: dict[str, Any], column: OutputColumn) -> int:
        return compare([answer], [column], 0).count

    def one(value: Any, kind: Any) -> OutputColumn:
        dtype = {"float": np.float64, "int": np.int64, "bool": np.bool_}.get(kind)
        return OutputColumn("out", kind, [value] if dtype is None else np.array([value], dtype=dtype))

    cases: list[tuple[Any, Any, Any, float]] = [
        (0.0, -0.0, "float", 0.0),
        (1.0, math.nextafter(1.0, 2.0), "float", math.nextafter(1.0, 2.0) - 1.0),
        (math.nan, 1.0, "float", math.inf),
        (QUIET_NAN, math.nan, "float", 0.0),
        (1, 1.0, "float", 0.0),
        (True, 1, "int", 0.0),
        (2**62, 2**62 + 1024, "int", 1024.0),
        (None, 1.0, "float", 0.0),
        ("a", "b", "string", 0.0),
    ]
    for then, now, kind, largest in cases:
        found = compare([{"out": then}], [one(now, kind)], 0)
        assert (found.count, found.largest) == (1, largest), (then, now)
    assert differences({}, one(1.0, "float")) == 1
    assert differences({"out": 1.0, "more": 1.0}, one(1.0, "float")) == 1
    assert differences({"out": QUIET_NAN}, one(QUIET_NAN, "float")) == 0


def test_a_long_answer_keeps_its_first_differences_and_counts_all() -> None:
    column = OutputColumn("out", "float", np.arange(1000.0))
    found = compare([{"out": -1.0}] * 1000, [column], 0)
    assert (found.count, len(found.differences), found.largest) == (1000, 8, 1000.0)


def test_rows_of_a_call_are_read_only_as_in_a_worker_and_may_be_repeated() -> None:
    rows = joined([recorded().inputs(), recorded(inputs_text="[[2.0],[3.0]]", rows=2).inputs()])
    assert isinstance(rows, np.ndarray)
    assert (rows.tolist(), rows.flags.writeable) == ([[1.0], [2.0], [3.0]], False)
    assert_same(np.array([[1.0], [1.0]]), repeated(rows, 2))
    assert_same([["a", "a"]], repeated([["a", "b"]], 2))


@pytest.mark.parametrize(
    "changes",
    [
        {"inputs_text": None},
        {"inputs_text": "[[1.0]"},
        {"inputs_text": "[[null]]"},
        {"inputs_text": "[[1.0],[2.0]]"},
        {"inputs_text": '[["x"]]'},
        {"inputs_text": "[]"},
        {"inputs_text": "7"},
        {"inputs_form": "columns:dd"},
        {"inputs_form": "columns:z"},
        {"inputs_form": "heap"},
        {"exact": b"\xff"},
    ],
)
def test_inputs_that_were_altered_are_unreadable_and_nothing_else(changes: dict[str, Any]) -> None:
    with pytest.raises(Unreadable, match="inputs of event 1"):
        recorded(**changes).inputs()


@pytest.mark.parametrize("text", ["[", "[]", "7", "[1]", '[{"out":1.0},{"out":1.0}]', None])
def test_outputs_that_were_altered_are_unreadable_and_nothing_else(text: str | None) -> None:
    with pytest.raises(Unreadable, match="outputs of event 1"):
        recorded(outputs_text=text).outputs()
