"""Submit, GetResult and request ids: a result is found by its id, and a repeated request is not done twice."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest

from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.odd_models import RAISES
from tests.stage import ODD, GatewayProcess, Stage, ask, failure, named, outputs

pytestmark = pytest.mark.integration


def test_a_submitted_request_is_pending_and_then_done(gateway: GatewayProcess, stage: Stage) -> None:
    with stage.odd.closed():
        submitted = gateway.submit(ask(ODD, 4.0, request_id="submit-1"))
        assert (submitted.request_id, submitted.model_id, submitted.duplicate) == ("submit-1", ODD, False)
        pending = gateway.result(ODD, "submit-1")
        assert (pending.pending, pending.request_id, pending.model_id) == (True, "submit-1", ODD)
        assert gateway.result(ODD, "submit-1", wait_s=0.05).pending
    done = gateway.result(ODD, "submit-1", wait_s=10)
    assert (outputs(done), done.pending, done.version) == ([{"out": 8.0}], False, "1.0.0")
    event = stage.ended(ODD, "submit-1")
    assert (event.status, event.lane) == (wire.OK, wire.BULK)


def test_a_submitted_request_without_an_id_gets_one(gateway: GatewayProcess, other_gateway: GatewayProcess) -> None:
    request_id = gateway.submit(ask(ODD, 5.0)).request_id
    assert request_id
    assert outputs(other_gateway.result(ODD, request_id, wait_s=10)) == [{"out": 10.0}]


def test_a_result_is_waited_for_on_another_gateway(
    gateway: GatewayProcess, other_gateway: GatewayProcess, stage: Stage
) -> None:
    with stage.odd.closed():
        gateway.submit(ask(ODD, 6.0, request_id="submit-2"))
        request = v1.GetResultRequest(model_id=ODD, request_id="submit-2")
        request.wait.FromSeconds(10)
        waiting = other_gateway.stub.GetResult.future(request, timeout=15)
        eventually(lambda: stage.odd.saw(6.0) == 1)
        assert not waiting.done()
    assert outputs(waiting.result()) == [{"out": 12.0}]


def test_waiting_as_long_as_the_call_may_take_ends_in_pending_and_no_error(
    gateway: GatewayProcess, stage: Stage
) -> None:
    request = v1.GetResultRequest(model_id=ODD, request_id="submit-3")
    request.wait.FromSeconds(60)
    with stage.odd.closed():
        gateway.submit(ask(ODD, 7.0, request_id="submit-3"))
        assert gateway.stub.GetResult(request, timeout=1.0).pending


def test_an_unknown_result_is_not_found(gateway: GatewayProcess) -> None:
    for model_id, request_id in ((ODD, "never-sent"), ("nothing", "x"), (ODD, "{a}:b*\n"), (ODD, "r" * 100_000)):
        with pytest.raises(grpc.RpcError) as raised:
            gateway.result(model_id, request_id, wait_s=1)
        assert (failure(raised.value).code, failure(raised.value).reason) == (
            grpc.StatusCode.NOT_FOUND,
            "RESULT_UNKNOWN",
        )
    with pytest.raises(grpc.RpcError) as raised:
        gateway.result("", "")
    assert set(failure(raised.value).violations) == {"model_id", "request_id"}


def test_a_failed_result_holds_its_error(gateway: GatewayProcess, stage: Stage) -> None:
    gateway.submit(ask(ODD, RAISES, request_id="submit-4"))
    done = gateway.result(ODD, "submit-4", wait_s=10)
    assert (done.error.reason, done.error.code) == ("MODEL_FAILED", 13)
    assert "thirteen" in done.error.message
    assert stage.ended(ODD, "submit-4").status == wire.FAILED


def test_what_does_not_fit_is_refused_before_it_is_submitted(gateway: GatewayProcess, stage: Stage) -> None:
    with pytest.raises(grpc.RpcError) as raised:
        gateway.submit(ask("credit_risk", "x", 200, request_id="submit-5"))
    assert set(failure(raised.value).violations) == {"debt_to_income_ratio", "age_years"}
    with pytest.raises(grpc.RpcError):
        gateway.result("credit_risk", "submit-5")


def test_packed_rows_and_entities_can_be_submitted(gateway: GatewayProcess, stage: Stage) -> None:
    stage.redis.mset({"user:t201:age": "25", "user:t201:clicks": "120"})
    gateway.submit(v1.PredictRequest(model_id="churn", entity_id="t201", request_id="submit-6"))
    rows = v1.Rows(matrix=v1.Matrix(rows=3, float64=np.array([1.0, 2.0, 3.0]).tobytes()))
    gateway.submit(v1.PredictRequest(model_id=ODD, rows=rows, request_id="submit-7"))
    assert outputs(gateway.result("churn", "submit-6", wait_s=10)) == outputs(gateway.predict(ask("churn", 25, 120)))
    done = gateway.result(ODD, "submit-7", wait_s=10)
    assert list(done.columns[0].column.doubles.values) == [2.0, 4.0, 6.0]
    stage.drained(ODD)


def test_many_results_can_be_asked_for_at_once(gateway: GatewayProcess) -> None:
    for number in range(200):
        gateway.submit(ask(ODD, 1000.0 + number, request_id=f"many-{number}"))
    requests = [v1.GetResultRequest(model_id=ODD, request_id=f"many-{number}") for number in range(200)]
    for request in requests:
        request.wait.FromSeconds(10)
    calls = [gateway.stub.GetResult.future(request, timeout=15) for request in requests]
    assert [outputs(call.result())[0]["out"] for call in calls] == [2.0 * (1000 + number) for number in range(200)]


def test_the_same_request_a_hundred_times_at_once_by_every_way_is_computed_once(
    gateway: GatewayProcess, other_gateway: GatewayProcess, stage: Stage
) -> None:
    """Two gateways, unary and streamed, Submit, and a producer of the bulk lane; some of them before it is computed,
    some meanwhile."""
    stage.odd.forget()
    before = stage.count(ODD)
    request = ask(ODD, 9.0, request_id="twice-1")
    with ThreadPoolExecutor(2) as pool, stage.odd.closed():
        held = gateway.start_predict(ask(ODD, 8.0))
        eventually(lambda: stage.odd.saw(8.0) == 1)
        calls = [g.start_predict(request) for g in (gateway, other_gateway) for _ in range(40)]
        streams = [
            pool.submit(lambda g=g: list(g.stub.PredictStream(iter([request] * 5), timeout=20)))  # type: ignore[misc]
            for g in (gateway, other_gateway)
        ]
        eventually(lambda: stage.waiting(ODD) == 2)
        submitted = [g.submit(request).duplicate for g in (gateway, other_gateway)]
        pushed = [stage.push(ODD, {"inputs": [9.0], "request_id": "twice-1"}) for _ in range(8)]
        assert stage.waiting(ODD) == 2 + len(pushed)
        for other in (other_gateway.start_predict(ask(ODD, 9.5, request_id="twice-1")), *_reused(gateway)):
            assert failure(other.exception()).reason == "REQUEST_ID_REUSED"
    answers = [call.result() for call in calls] + [answer for stream in streams for answer in stream.result()]
    assert len(answers) + len(submitted) + len(pushed) == 100
    assert len({answer.SerializeToString(deterministic=True) for answer in answers}) == 1
    assert outputs(answers[0]) == [{"out": 18.0}]
    assert outputs(held.result()) == [{"out": 16.0}]
    assert submitted == [True, True]
    stage.drained(ODD)
    after = stage.count(ODD)
    assert after["accepted"] - before.get("accepted", 0) == 2
    assert after["duplicates"] - before.get("duplicates", 0) == len(pushed)
    assert stage.odd.saw(9.0) == 1
    assert stage.odd.saw(9.5) == 0
    assert stage.ended(ODD, "twice-1").status == wire.OK
    assert gateway.result(ODD, "twice-1") == answers[0]


def _reused(gateway: GatewayProcess) -> list[Any]:
    """Other requests under the same id, which is known by now."""
    return [
        gateway.start_predict(ask(ODD, 9.0, request_id="twice-1", version="1.0.0")),
        gateway.stub.Submit.future(ask(ODD, 10.0, request_id="twice-1"), timeout=20),
    ]


def test_the_same_request_later_gets_the_first_answer_by_every_way(
    gateway: GatewayProcess, other_gateway: GatewayProcess, stage: Stage
) -> None:
    first = gateway.predict(ask(ODD, 10.0, request_id="twice-2"))
    again = other_gateway.predict(named(ODD, {"x": 10}, request_id="twice-3"))
    assert outputs(again) == outputs(first)
    assert other_gateway.predict(ask(ODD, 10, request_id="twice-2")) == first
    assert gateway.submit(ask(ODD, 10.0, request_id="twice-2")).duplicate
    assert gateway.result(ODD, "twice-2") == first
    assert len(stage.events(ODD, "twice-2")) == 1


def test_a_failure_is_the_answer_of_a_repeated_request_too(gateway: GatewayProcess, stage: Stage) -> None:
    for _ in range(2):
        with pytest.raises(grpc.RpcError) as raised:
            gateway.predict(ask(ODD, RAISES, request_id="twice-4"))
        assert failure(raised.value).reason == "MODEL_FAILED"
    assert len(stage.events(ODD, "twice-4")) == 1


def test_another_request_under_a_known_id_is_refused(
    gateway: GatewayProcess, other_gateway: GatewayProcess, stage: Stage
) -> None:
    gateway.predict(ask(ODD, 11.0, request_id="reused-1"))
    others: list[Callable[[], object]] = [
        lambda: other_gateway.predict(ask(ODD, 12.0, request_id="reused-1")),
        lambda: other_gateway.predict(ask(ODD, 11.0, request_id="reused-1", version="1.0.0")),
        lambda: gateway.submit(ask(ODD, 12.0, request_id="reused-1")),
    ]
    for other in others:
        with pytest.raises(grpc.RpcError) as raised:
            other()
        assert (failure(raised.value).code, failure(raised.value).reason) == (
            grpc.StatusCode.ALREADY_EXISTS,
            "REQUEST_ID_REUSED",
        )
    assert len(stage.events(ODD, "reused-1")) == 1


def test_a_request_pushed_onto_the_stream_and_asked_over_grpc_is_one(gateway: GatewayProcess, stage: Stage) -> None:
    stage.push(ODD, {"inputs": [14.5], "request_id": "both-ways"})
    stage.stored(ODD, "both-ways")
    assert outputs(gateway.predict(ask(ODD, 14.5, request_id="both-ways"))) == [{"out": 29.0}]
    assert len(stage.events(ODD, "both-ways")) == 1


def test_a_discarded_reply_leaves_an_event_and_no_key(gateway: GatewayProcess, stage: Stage) -> None:
    gateway.submit(ask(ODD, 15.0, request_id="discard-1", discard_reply=True))
    assert stage.ended(ODD, "discard-1").status == wire.OK
    assert stage.redis.exists(stage.keys.model(ODD).reply("discard-1")) == 0
