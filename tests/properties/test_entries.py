"""Entries: a request is the same whichever way it was written, and any bytes at all are either read or refused."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from consumers.worker.work import Work, rows_of_entries
from contract import entry
from contract.admission import Admitted
from contract.errors import Reason, Refused
from contract.request import Native, Request
from contract.strict_json import MAX_INTEGER_DIGITS
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.records import LOAN, admission

FINITE = st.floats(allow_nan=False, allow_infinity=False)
INT64 = st.integers(min_value=-(2**63), max_value=2**63 - 1)
VALUES: st.SearchStrategy[Native] = st.one_of(st.none(), st.booleans(), INT64, FINITE, st.text(max_size=20))
TEXTS = st.text(max_size=20)


@st.composite
def asked(draw: st.DrawFn) -> Request:
    """A request by position, by name or by entity, of values that gRPC and JSON can both hold."""
    form: dict[str, Any] = draw(
        st.one_of(
            st.fixed_dictionaries({"inputs": st.lists(VALUES, min_size=1, max_size=6)}),
            st.fixed_dictionaries({"features": st.dictionaries(TEXTS, VALUES, min_size=1, max_size=6)}),
            st.just({}),
        )
    )
    return Request(
        "churn",
        version=draw(TEXTS),
        entity_id=draw(TEXTS),
        request_id=draw(TEXTS),
        discard_reply=draw(st.booleans()),
        **form,
    )


def entry_of(request: Request) -> bytes:
    """The JSON a producer writes."""
    body = {name: value for name, value in request._asdict().items() if value is not None and name != "packed"}
    return orjson.dumps(body)


@given(asked())
def test_a_request_is_the_same_by_json_and_by_grpc(request_: Request) -> None:
    by_json = Request.from_json(entry_of(request_), "churn")
    by_grpc = Request.from_bytes(request_.to_message().SerializeToString())
    assert by_json == by_grpc == request_
    assert by_json.body_sha256() == by_grpc.body_sha256() == request_.body_sha256()


@given(asked())
def test_a_request_that_came_as_json_goes_on_as_grpc_with_the_same_digest(request_: Request) -> None:
    by_json = Request.from_json(entry_of(request_), "churn")
    assert Request.from_bytes(by_json.to_message().SerializeToString()).body_sha256() == request_.body_sha256()


@given(st.lists(st.one_of(INT64, FINITE), min_size=1, max_size=6))
def test_whole_numbers_have_one_digest_with_and_without_their_point(numbers: list[float | int]) -> None:
    def other(number: float | int) -> float | int:
        if isinstance(number, float):
            return int(number) if number.is_integer() and number != 0 else number
        return float(number) if int(float(number)) == number else number

    one = Request("churn", inputs=numbers)
    assert one.body_sha256() == Request("churn", inputs=[other(number) for number in numbers]).body_sha256()


@given(asked(), asked())
def test_two_requests_have_one_digest_only_if_they_ask_the_same(one: Request, other: Request) -> None:
    assert (_asked(one) == _asked(other)) == (one.body_sha256() == other.body_sha256())


def _asked(request: Request) -> list[Any]:
    def plain(item: Native) -> Any:
        kind = "number" if isinstance(item, int | float) and not isinstance(item, bool) else type(item).__name__
        return (kind, repr(item) if item == 0 and isinstance(item, float) and str(item) == "-0.0" else item)

    features = {name: plain(item) for name, item in (request.features or {}).items()}
    inputs = None if request.inputs is None else [plain(item) for item in request.inputs]
    return [request.version, request.entity_id, inputs, features]


def read(reader: Callable[..., Request], *arguments: object) -> Request | Refused:
    try:
        return reader(*arguments)
    except Refused as refused:
        return refused


@given(st.binary(max_size=300))
@example(v1.PredictRequest(model_id="churn", inputs=[v1.Value(number=1)]).SerializeToString() + b"\x00")
def test_any_bytes_are_a_request_or_malformed(raw: bytes) -> None:
    request = read(Request.from_bytes, raw)
    if isinstance(request, Refused):
        assert request.reason is Reason.MALFORMED
    else:
        assert len(request.body_sha256()) == 32


@st.composite
def rows_sent(draw: st.DrawFn) -> bytes:
    """A serialized request for one row by position, mostly numbers, and at times something else in it."""
    message = draw(asked()).to_message() if draw(st.booleans()) else v1.PredictRequest(model_id="churn")
    del message.inputs[:]
    numbers = st.one_of(st.builds(v1.Value, number=st.floats()), st.builds(v1.Value, integer=INT64))
    others = st.one_of(st.just(v1.Value()), st.builds(v1.Value, boolean=st.booleans()))
    message.inputs.extend(draw(st.lists(numbers | others if draw(st.booleans()) else numbers, max_size=8)))
    if draw(st.booleans()):
        message.ClearField("entity_id")
        message.ClearField("discard_reply")
        message.ClearField("features")
    return message.SerializeToString()


@given(rows_sent(), st.data())
def test_a_row_read_where_it_stands_is_the_one_that_protobuf_reads(raw: bytes, data: st.DataObject) -> None:
    changed = bytearray(raw)
    if changed and data.draw(st.booleans()):
        changed[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        changed = changed[: data.draw(st.integers(0, len(raw)))]
    at_once, parsed = (read(reader, bytes(changed)) for reader in (Request.from_bytes, Request.from_any_bytes))
    assert repr(at_once) == repr(parsed)


def test_numbers_and_integers_of_every_length_are_read_where_they_stand() -> None:
    integers = [sign * (1 << bits) + more for bits in range(63) for sign in (1, -1) for more in (-1, 0)]
    values: list[Native] = [0.5, *integers, 1e308, -0.0]
    for inputs in ([0.1] * 20, values, [1.0, 2, 3.0], [7], [0.25]):
        sent = Request("churn", inputs=inputs, request_id="r1")
        assert repr(Request.from_bytes(sent.to_message().SerializeToString())) == repr(sent)


MICROS = st.one_of(st.integers(0, 2**24), st.integers(0, 2**63 - 1), st.integers(1_700_000_000_000_000, 2**51))


@given(
    st.text(max_size=150),
    TEXTS,
    TEXTS,
    st.binary(max_size=40),
    st.one_of(
        st.builds(v1.Matrix, rows=st.integers(0, 2**32 - 1), float64=st.binary(max_size=300)),
        st.builds(v1.Columns, rows=st.integers(0, 3)),
    ),
    st.text(max_size=100),
    st.tuples(MICROS, MICROS, MICROS),
    TEXTS,
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 3)), max_size=3),
    st.tuples(st.booleans(), st.booleans()),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=40),
    TEXTS,
)
def test_a_joined_entry_is_what_protobuf_writes(
    request_id: str,
    model_id: str,
    version: str,
    digest: bytes,
    rows: v1.Matrix | v1.Columns,
    entity_id: str,
    times: tuple[int, int, int],
    gateway: str,
    hydrated: list[tuple[int, wire.Origin]],
    flags: tuple[bool, bool],
    reply_ttl_s: int,
    body_sha256: bytes,
    replay: str,
) -> None:
    """To the byte: the event log rebuilds entries from its columns, and compares."""
    field: dict[str, Any] = {"matrix" if isinstance(rows, v1.Matrix) else "columns": rows}
    expected = wire.Entry(
        request_id=request_id,
        model_id=model_id,
        version=version,
        digest=digest,
        entity_id=entity_id,
        deadline_us=times[0],
        user_request_us=times[1],
        admitted_us=times[2],
        gateway=gateway,
        hydrated=[wire.Hydrated(index=index, origin=origin) for index, origin in hydrated],
        degraded=flags[0],
        packed=flags[1],
        reply_ttl_s=reply_ttl_s,
        body_sha256=body_sha256,
        replay=replay,
        **field,
    )
    extras = entry.extras(
        hydrated=hydrated,
        degraded=flags[0],
        packed=flags[1],
        reply_ttl_s=reply_ttl_s,
        body_sha256=body_sha256,
        replay=replay,
    )
    pinned, woken = entry.pinned(model_id, version, digest), entry.woken(gateway)
    rows_field = wire.Entry(**field).SerializeToString()
    joined = entry.joined(request_id, pinned, rows_field, entity_id, *times, woken, extras)
    assert joined == expected.SerializeToString(deterministic=True)


@given(st.builds(v1.PredictRequest.SerializeToString, st.builds(Request.to_message, asked())), st.data())
def test_a_request_that_was_cut_or_changed_is_read_or_malformed(raw: bytes, data: st.DataObject) -> None:
    changed = bytearray(raw)
    if changed:
        changed[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
        changed = changed[: data.draw(st.integers(0, len(raw)))]
    request = read(Request.from_bytes, bytes(changed))
    if isinstance(request, Refused):
        assert request.reason is Reason.MALFORMED
    else:
        request.check_ids()
        assert len(request.body_sha256()) == 32


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | INT64 | FINITE | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=10,
)
FIELDS = ["model_id", "version", "inputs", "features", "rows", "entity_id", "request_id", "discard_reply", "x"]


@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(str.encode),
        JSON.map(orjson.dumps),
        st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=5).map(orjson.dumps),
        st.integers(min_value=10 ** (MAX_INTEGER_DIGITS - 3), max_value=10 ** (MAX_INTEGER_DIGITS + 3)).map(
            lambda number: b'{"inputs":[%b]}' % str(number).encode()
        ),
    )
)
def test_any_entry_is_a_request_or_refused(raw: bytes) -> None:
    request = read(Request.from_json, raw, "churn")
    if isinstance(request, Refused):
        assert request.reason in (Reason.MALFORMED, Reason.INPUT_INVALID)
        assert request.message
        request.to_error().SerializeToString()
    else:
        assert request.model_id == "churn"
        assert len(request.body_sha256()) == 32
        request.check_ids()
        assert request.row_count >= 0


def work_of(admitted: Admitted, number: int) -> Work:
    """Admitted rows on their way through a stream, as a worker holds them."""
    entry = wire.Entry(request_id=f"r{number}")
    if isinstance(admitted.rows, v1.Matrix):
        entry.matrix.CopyFrom(admitted.rows)
    else:
        entry.columns.CopyFrom(admitted.rows)
    raw = entry.SerializeToString()
    return Work(wire.INTERACTIVE, b"1-0", wire.Entry.FromString(raw), raw, admitted.n, 0)


@given(st.lists(st.lists(st.tuples(FINITE, FINITE), min_size=1, max_size=4), min_size=1, max_size=5))
def test_rows_of_a_batch_reach_the_model_bit_by_bit_and_in_order(sent: list[list[tuple[float, float]]]) -> None:
    checked = admission({"name": "a", "type": "float"}, {"name": "b", "type": "float"})
    works = []
    for number, rows in enumerate(sent):
        answer = checked.draft(Request("churn", rows=rows))
        assert isinstance(answer, Admitted)
        works.append(work_of(answer, number))
    table = rows_of_entries(works)
    assert isinstance(table, np.ndarray)
    flat = [value for rows in sent for row in rows for value in row]
    assert table.tobytes() == struct.pack(f"<{len(flat)}d", *flat)
    assert table.shape == (len(flat) // 2, 2)


LOANS = st.tuples(
    st.floats(min_value=0, allow_infinity=False),
    st.sampled_from(["salaried", "student"]),
    st.booleans(),
    st.none() | st.text(max_size=10),
)


@given(st.lists(st.lists(LOANS, min_size=1, max_size=4), min_size=1, max_size=5))
def test_columns_of_a_batch_reach_the_model_in_order_with_their_nulls(sent: list[list[tuple[Any, ...]]]) -> None:
    checked = admission(*LOAN)
    works = []
    for number, rows in enumerate(sent):
        answer = checked.draft(Request("churn", rows=rows))
        assert isinstance(answer, Admitted)
        works.append(work_of(answer, number))
    columns = rows_of_entries(works)
    assert isinstance(columns, list)
    amount, employment, guarantor, remark = columns
    expected = [row for rows in sent for row in rows]
    numbers, flags = np.asarray(amount, dtype=float).tolist(), np.asarray(guarantor, dtype=bool).tolist()
    assert list(zip(numbers, employment, flags, remark, strict=True)) == expected
