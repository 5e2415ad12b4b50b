"""What the gateway says to requests that can't be answered: the code, the reason, every violation; and it goes on."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from contract.request import Native, value_of
from protos import millstream_v1_pb2 as v1
from tests.conditions import eventually
from tests.stage import ODD, TIMEOUT_S, Failure, GatewayProcess, Stage, ask, failure, named, outputs

pytestmark = pytest.mark.integration

INVALID = grpc.StatusCode.INVALID_ARGUMENT


def refusal(gateway: GatewayProcess, request: v1.PredictRequest, timeout: float = TIMEOUT_S) -> Failure:
    with pytest.raises(grpc.RpcError) as raised:
        gateway.predict(request, timeout)
    return failure(raised.value)


@pytest.fixture(autouse=True)
def _others_are_served(gateway: GatewayProcess) -> Iterator[None]:
    """Whatever a test did: the next caller gets an answer."""
    yield
    assert outputs(gateway.predict(ask(ODD, 21.0))) == [{"out": 42.0}]


def matrix(rows: int, raw: bytes) -> v1.Rows:
    return v1.Rows(matrix=v1.Matrix(rows=rows, float64=raw))


def loans(amounts: list[float], employments: list[str], guarantors: list[bool], rows: int | None = None) -> v1.Rows:
    return v1.Rows(
        columns=v1.Columns(
            rows=len(amounts) if rows is None else rows,
            columns=[
                v1.Column(doubles=v1.Doubles(values=amounts)),
                v1.Column(strings=v1.Strings(values=employments)),
                v1.Column(booleans=v1.Booleans(values=guarantors)),
            ],
        )
    )


CREDIT = {"debt_to_income_ratio", "age_years"}
MISFITS: dict[str, tuple[v1.PredictRequest, set[str]]] = {
    "nothing sent": (ask("credit_risk"), {"inputs"}),
    "too few": (ask("credit_risk", 0.6), {"inputs"}),
    "too many": (ask("credit_risk", 0.6, 45, 1), {"inputs"}),
    "strings for numbers": (ask("credit_risk", "0.6", "45"), CREDIT),
    "not a number, and infinite": (ask("credit_risk", float("nan"), float("inf")), CREDIT),
    "1e400 as text": (ask("credit_risk", "1e400", 45), {"debt_to_income_ratio"}),
    "int beyond 2^53": (ask("credit_risk", 0.6, 2**62), {"age_years"}),
    "2^63 as a float": (ask("credit_risk", 0.6, float(2**63)), {"age_years"}),
    "int feature 45.5": (ask("credit_risk", 0.6, 45.5), {"age_years"}),
    "bool for a number": (ask("credit_risk", True, 45), {"debt_to_income_ratio"}),
    "null": (ask("credit_risk", None, 45), {"debt_to_income_ratio"}),
    "below min and above max": (ask("credit_risk", -0.1, 121), CREDIT),
    "unknown and missing by name": (
        named("credit_risk", {"debt": 0.6, "age_years": 45}),
        {"debt", "debt_to_income_ratio"},
    ),
    "bool feature 2": (ask("loan_approval", 1.0, "salaried", 2), {"has_guarantor"}),
    "unknown category": (ask("loan_approval", 1.0, "astronaut", False), {"employment"}),
    "three wrong at once": (
        ask("loan_approval", -1.0, 7, "yes"),
        {"amount_eur", "employment", "has_guarantor"},
    ),
    "two forms at once": (
        v1.PredictRequest(model_id=ODD, inputs=[value_of(1.0)], features={"x": value_of(1.0)}),
        {"features"},
    ),
    "neither matrix nor columns": (v1.PredictRequest(model_id=ODD, rows=v1.Rows()), {"rows"}),
    "no rows": (v1.PredictRequest(model_id=ODD, rows=matrix(0, b"")), {"rows"}),
    "100,001 rows": (v1.PredictRequest(model_id=ODD, rows=matrix(100_001, bytes(8 * 100_001))), {"rows"}),
    "a matrix of half a value": (v1.PredictRequest(model_id=ODD, rows=matrix(2, bytes(12))), {"rows.matrix.float64"}),
    "rows that are not there": (
        v1.PredictRequest(model_id=ODD, rows=matrix(4_000_000_000, bytes(16))),
        {"rows"},
    ),
    "NaN in one row of a matrix": (
        v1.PredictRequest(model_id=ODD, rows=matrix(3, np.array([1.0, np.nan, 2.0]).tobytes())),
        {"rows[1].x"},
    ),
    "a matrix for strings": (v1.PredictRequest(model_id="loan_approval", rows=matrix(1, bytes(24))), {"rows"}),
    "columns of differing length": (
        v1.PredictRequest(model_id="loan_approval", rows=loans([1.0, 2.0], ["student"], [True, False])),
        {"employment"},
    ),
    "too few columns": (
        v1.PredictRequest(model_id="loan_approval", rows=v1.Rows(columns=v1.Columns(rows=1, columns=[v1.Column()]))),
        {"rows.columns"},
    ),
    "billions of rows in no columns": (
        v1.PredictRequest(
            model_id="loan_approval",
            rows=v1.Rows(columns=v1.Columns(rows=4_000_000_000, columns=[v1.Column()] * 3)),
        ),
        {"rows"},
    ),
    "no model": (v1.PredictRequest(), {"model_id"}),
    "an entity for a model without": (ask("credit_risk", 0.6, 45, entity_id="7"), {"entity_id"}),
    "an entity that nothing is stored for": (
        v1.PredictRequest(model_id="churn", entity_id="nobody-stored-this"),
        {"age"},
    ),
    "a request id of 10 kB": (ask(ODD, 1.0, request_id="r" * 10_000), {"request_id"}),
    "a request id like a stream id": (ask(ODD, 1.0, request_id="123-4"), {"request_id"}),
    "an id of spaces and emoji": (ask(ODD, 1.0, request_id="a b \U0001f600"), {"request_id"}),
}


@pytest.mark.parametrize("case", MISFITS)
def test_input_that_does_not_fit_is_refused_with_every_violation(gateway: GatewayProcess, case: str) -> None:
    request, fields = MISFITS[case]
    refused = refusal(gateway, request)
    assert (refused.code, refused.reason, set(refused.violations)) == (INVALID, "INPUT_INVALID", fields)
    assert all(refused.violations.values())
    assert refused.message


@pytest.mark.parametrize(
    "entity_id",
    ["", "x" * 10_000, "{101}", "*", "a:b", "1\n2", "1\x002", "\u202e101", "\U0001f600", "../101", " "],
    ids=repr,
)
def test_an_entity_id_that_could_become_another_key_is_refused(gateway: GatewayProcess, entity_id: str) -> None:
    refused = refusal(gateway, v1.PredictRequest(model_id="churn", entity_id=entity_id))
    assert (refused.code, refused.reason) == (INVALID, "INPUT_INVALID")
    assert set(refused.violations) == {"entity_id" if entity_id else "inputs"}


@pytest.mark.parametrize(
    ("raw", "because"),
    [
        (b"\xff\xff\xff\xff", "not protobuf"),
        (b"\x0a\x05ab", "truncated"),
        (b"\x0a\x02\xff\xfe", "not UTF-8"),
        (b"\x2a" + b"\x2a" * 1000, "garbage"),
    ],
    ids=lambda item: item if isinstance(item, str) else "",
)
@pytest.mark.parametrize("method", ["Predict", "Submit", "GetResult", "GetModel"])
def test_bytes_that_are_no_request_are_malformed(
    gateway: GatewayProcess, method: str, raw: bytes, because: str
) -> None:
    call: Any = gateway.channel.unary_unary(f"/millstream.v1.Predictor/{method}")
    with pytest.raises(grpc.RpcError) as raised:
        call(raw, timeout=TIMEOUT_S)
    assert (failure(raised.value).code, failure(raised.value).reason) == (INVALID, "MALFORMED"), because


def test_unknown_models_and_versions_are_not_found_and_what_there_is_is_named(gateway: GatewayProcess) -> None:
    unknown = refusal(gateway, ask("nothing", 1.0))
    assert (unknown.code, unknown.reason) == (grpc.StatusCode.NOT_FOUND, "MODEL_UNKNOWN")
    assert "credit_risk" in unknown.message
    version = refusal(gateway, ask("credit_risk", 0.6, 45, version="9.9"))
    assert (version.code, version.reason) == (grpc.StatusCode.NOT_FOUND, "VERSION_UNKNOWN")
    assert "1.0.0" in version.message
    with pytest.raises(grpc.RpcError) as raised:
        gateway.stub.GetModel(v1.GetModelRequest(model_id="nothing"), timeout=5)
    assert failure(raised.value).reason == "MODEL_UNKNOWN"
    with pytest.raises(grpc.RpcError) as raised:
        gateway.submit(ask("x" * 100_000, 1.0))
    assert failure(raised.value).reason == "MODEL_UNKNOWN"


def test_hundreds_of_long_violations_still_reach_the_caller(gateway: GatewayProcess) -> None:
    """Details travel in a header, whose size HTTP/2 peers limit to 8 kB."""
    rows = 300
    packed = loans([-1.0] * rows, ["astronaut" * 20] * rows, [True] * rows)
    refused = refusal(gateway, v1.PredictRequest(model_id="loan_approval", rows=packed))
    assert (refused.code, refused.reason) == (INVALID, "INPUT_INVALID")
    assert len(refused.violations) >= 10
    long = "\U0001f600" * 190
    names: dict[str, Native] = {f"{long}{number}": 1.0 for number in range(100)}
    refused = refusal(gateway, named(ODD, names))
    assert (refused.code, refused.reason) == (INVALID, "INPUT_INVALID")
    assert refused.violations


def test_a_message_over_the_limit_is_refused_without_reading_on(gateway: GatewayProcess) -> None:
    request = v1.PredictRequest(model_id=ODD, rows=matrix(8_000_000, bytes(64_000_000)))
    with pytest.raises(grpc.RpcError) as raised:
        gateway.predict(request)
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_more_rows_than_may_wait_are_refused_with_when_to_ask_again(gateway: GatewayProcess, stage: Stage) -> None:
    some = v1.PredictRequest(model_id=ODD, rows=matrix(1500, np.ones(1500).tobytes()))
    with stage.odd.closed():
        first = gateway.start_predict(some)
        eventually(lambda: stage.held(ODD) == 1)
        refused = refusal(gateway, some)
        assert (refused.code, refused.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
        assert refused.retry_s is not None
        assert refused.retry_s > 0
        gateway.submit(some)
        with pytest.raises(grpc.RpcError) as raised:
            gateway.submit(some)
        assert failure(raised.value).reason == "QUEUE_FULL"
    assert len(first.result().columns[0].column.doubles.values) == 1500
    stage.drained(ODD)


def test_a_passed_deadline_is_exceeded(gateway: GatewayProcess, stage: Stage) -> None:
    assert refusal(gateway, ask(ODD, 1.0), timeout=-1.0).code == grpc.StatusCode.DEADLINE_EXCEEDED
    with stage.odd.closed():
        assert refusal(gateway, ask(ODD, 1.0), timeout=0.001).code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert refusal(gateway, ask(ODD, 1.0), timeout=0.2).code == grpc.StatusCode.DEADLINE_EXCEEDED
    stage.drained(ODD)


def test_a_call_without_a_deadline_gets_the_default_one(gateway: GatewayProcess, stage: Stage) -> None:
    response = gateway.stub.Predict(ask(ODD, 3.0, request_id="no-deadline"))
    assert outputs(response) == [{"out": 6.0}]
    entry = stage.ended(ODD, "no-deadline").entry
    assert entry.deadline_us - entry.user_request_us == 30_000_000


def test_calls_without_end_are_still_bounded(stage: Stage) -> None:
    """A default deadline of half a second, and a model that does not answer."""
    impatient = stage.gateway(ODD, default_deadline_s=0.5)
    with stage.odd.closed():
        with pytest.raises(grpc.RpcError) as raised:
            impatient.stub.Predict(ask(ODD, 1.0))
        assert failure(raised.value).code == grpc.StatusCode.DEADLINE_EXCEEDED
        assert failure(raised.value).reason == "DEADLINE_PASSED"
    stage.drained(ODD)
    impatient.stop()


def test_unknown_methods_and_what_is_no_grpc_leave_it_serving(gateway: GatewayProcess) -> None:
    nothing: Any = gateway.channel.unary_unary("/millstream.v1.Predictor/Nothing")
    with pytest.raises(grpc.RpcError) as raised:
        nothing(b"", timeout=5)
    assert raised.value.code() == grpc.StatusCode.UNIMPLEMENTED
    host, _, port = gateway.address.rpartition(":")
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    half_a_frame = preface + struct.pack(">I", 100)[1:] + b"\x04\x00\x00\x00\x00\x00half"
    for noise in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", bytes(1000), half_a_frame, b"\x16\x03\x01\x02\x00\x01\x00"):
        with socket.create_connection((host, int(port)), timeout=5.0) as connection:
            connection.sendall(noise)


def test_hundreds_of_streams_opened_and_dropped_leave_it_serving(gateway: GatewayProcess) -> None:
    calls = [gateway.stub.PredictStream(iter(()), timeout=TIMEOUT_S) for _ in range(300)]
    for call in calls:
        call.cancel()
    assert list(gateway.stub.PredictStream(iter(()), timeout=TIMEOUT_S)) == []
