"""The native engine's short way to Predict, where the other tests ran a gateway on grpcio: the same promises."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import grpc
import pytest

from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.stage import ODD, GatewayProcess, Stage, ask, failure, named, outputs

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(find_spec("pygrpc_native") is None, reason="the native engine is not installed"),
]

LIMIT = 100_000


@pytest.fixture(scope="module")
def native(stage: Stage) -> Iterator[GatewayProcess]:
    process = stage.gateway(ODD, "churn", engine="native", max_message_bytes=LIMIT, drain_s=5.0)
    yield process
    process.stop()


def code_and_reason(raised: pytest.ExceptionInfo[grpc.RpcError]) -> tuple[grpc.StatusCode, str]:
    return failure(raised.value).code, failure(raised.value).reason


def test_a_request_is_answered_and_the_same_one_again_with_the_same_reply(native: GatewayProcess) -> None:
    first = native.predict(ask(ODD, 60.0, request_id="native-twice"))
    assert outputs(first) == [{"out": 120.0}]
    assert native.predict(ask(ODD, 60.0, request_id="native-twice")) == first
    with pytest.raises(grpc.RpcError) as raised:
        native.predict(ask(ODD, 61.0, request_id="native-twice"))
    assert code_and_reason(raised) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")


def test_a_refusal_names_every_violation(native: GatewayProcess) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        native.predict(named("churn", {"age": "x", "clicks": -1}))
    assert code_and_reason(raised) == (grpc.StatusCode.INVALID_ARGUMENT, "INPUT_INVALID")
    assert set(failure(raised.value).violations) == {"age", "clicks"}


def test_bytes_that_are_no_request_and_more_than_the_limit_are_refused(native: GatewayProcess) -> None:
    call: Any = native.channel.unary_unary("/millstream.v1.Predictor/Predict")
    with pytest.raises(grpc.RpcError) as raised:
        call(b"\xff", timeout=10)
    assert code_and_reason(raised) == (grpc.StatusCode.INVALID_ARGUMENT, "MALFORMED")
    with pytest.raises(grpc.RpcError) as raised:
        call(bytes(LIMIT + 1), timeout=10)
    assert failure(raised.value).code == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_stored_features_are_fetched(native: GatewayProcess, stage: Stage) -> None:
    stage.redis.mset({"user:native-1:age": "25", "user:native-1:clicks": "120"})
    expected = outputs(native.predict(named("churn", {"age": 25, "clicks": 120})))
    assert outputs(native.predict(named("churn", {}, entity_id="native-1", request_id="native-stored"))) == expected
    assert [each.origin for each in stage.ended("churn", "native-stored").entry.hydrated] == [wire.REDIS, wire.REDIS]


@pytest.mark.parametrize("leaves", ["cancelled", "too late"])
def test_what_a_caller_left_behind_is_taken_back(native: GatewayProcess, stage: Stage, leaves: str) -> None:
    request_id = f"native-{leaves.partition(' ')[0]}"
    with stage.odd.closed():
        held = native.start_predict(ask(ODD, 62.0))
        eventually(lambda: stage.held(ODD) == 1)
        call = native.start_predict(ask(ODD, 63.0, request_id=request_id), timeout=10 if leaves == "cancelled" else 0.5)
        eventually(lambda: stage.waiting(ODD) == 2)
        if leaves == "cancelled":
            call.cancel()
        eventually(lambda: stage.waiting(ODD) == 1)
    assert outputs(held.result()) == [{"out": 124.0}]
    assert [event.status for event in stage.events(ODD, request_id)] == [wire.CANCELLED]


def test_a_gateway_that_is_told_to_stop_answers_who_waits(stage: Stage) -> None:
    leaving = stage.gateway(ODD, engine="native")
    with stage.odd.closed():
        call = leaving.start_predict(ask(ODD, 64.0))
        eventually(lambda: stage.held(ODD) == 1)
        leaving.terminate()
        eventually(lambda: not leaving.serves())
    assert outputs(call.result()) == [{"out": 128.0}]
    assert leaving.wait() == 0
