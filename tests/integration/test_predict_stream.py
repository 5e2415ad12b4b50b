"""PredictStream: many requests in flight on one call, each answered for itself."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest

from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.odd_models import RAISES
from tests.stage import ODD, TEXT, TIMEOUT_S, GatewayProcess, Stage, ask, outputs

pytestmark = pytest.mark.integration


class Sending:
    """Requests of a call that is still open; `end` closes it."""

    def __init__(self, *requests: v1.PredictRequest) -> None:
        self._waiting: queue.SimpleQueue[v1.PredictRequest | None] = queue.SimpleQueue()
        for request in requests:
            self._waiting.put(request)

    def send(self, request: v1.PredictRequest) -> None:
        self._waiting.put(request)

    def end(self) -> None:
        self._waiting.put(None)

    def __iter__(self) -> Iterator[v1.PredictRequest]:
        while (request := self._waiting.get()) is not None:
            yield request


def test_hundreds_in_flight_are_answered_as_they_finish_a_bad_one_at_once(
    gateway: GatewayProcess, stage: Stage
) -> None:
    sending = Sending(*(ask(ODD, float(number), request_id=f"stream-a-{number}") for number in range(500)))
    sending.send(ask(ODD, "x", request_id="stream-a-bad"))
    sending.send(ask("nothing", 1.0, request_id="stream-a-unknown"))
    with stage.odd.closed():
        call = gateway.stub.PredictStream(iter(sending), timeout=TIMEOUT_S)
        first = {answer.request_id: answer for answer in (next(call), next(call))}
        assert set(first) == {"stream-a-bad", "stream-a-unknown"}
        bad = first["stream-a-bad"].error
        assert (bad.reason, bad.code, [v.field for v in bad.violations]) == ("INPUT_INVALID", 3, ["x"])
        assert (first["stream-a-unknown"].error.reason, first["stream-a-unknown"].error.code) == ("MODEL_UNKNOWN", 5)
    sending.end()
    answers = {answer.request_id: outputs(answer) for answer in call}
    assert answers == {f"stream-a-{number}": [{"out": 2.0 * number}] for number in range(500)}
    assert call.code() == grpc.StatusCode.OK
    stage.drained(ODD)


def test_a_call_stays_open_for_more_after_its_answers(gateway: GatewayProcess) -> None:
    sending = Sending()
    call = gateway.stub.PredictStream(iter(sending), timeout=TIMEOUT_S)
    for number in range(3):
        sending.send(ask(ODD, float(number)))
        assert outputs(next(call)) == [{"out": 2.0 * number}]
    sending.end()
    assert list(call) == []


def test_what_is_no_request_and_what_the_model_fails_on_do_not_end_the_call(gateway: GatewayProcess) -> None:
    good = ask(ODD, 2.0, request_id="stream-b-good")
    raws = [b"\xff\xff", ask(ODD, RAISES, request_id="stream-b-fails").SerializeToString(), good.SerializeToString()]
    method: Any = gateway.channel.stream_stream("/millstream.v1.Predictor/PredictStream")
    call = method(iter(raws), timeout=TIMEOUT_S)
    answers = {answer.request_id: answer for answer in map(v1.PredictResponse.FromString, call)}
    assert {name: answer.error.reason for name, answer in answers.items()} == {
        "": "MALFORMED",
        "stream-b-fails": "MODEL_FAILED",
        "stream-b-good": "",
    }


def test_the_same_request_twice_on_one_call_is_answered_twice_and_computed_once(
    gateway: GatewayProcess, stage: Stage
) -> None:
    stage.odd.forget()
    request = ask(ODD, 31.0, request_id="stream-c")
    answers = list(gateway.stub.PredictStream(iter([request, request]), timeout=TIMEOUT_S))
    assert [outputs(answer) for answer in answers] == [[{"out": 62.0}]] * 2
    assert (stage.odd.saw(31.0), len(stage.events(ODD, "stream-c"))) == (1, 1)


def test_a_call_that_is_cancelled_midway_takes_its_waiting_requests_back(gateway: GatewayProcess, stage: Stage) -> None:
    stage.odd.forget()
    with stage.odd.closed():
        held = gateway.start_predict(ask(ODD, 32.0))
        eventually(lambda: stage.held(ODD) == 1)
        sending = Sending(*(ask(ODD, 33.0, request_id=f"stream-d-{number}") for number in range(200)))
        call = gateway.stub.PredictStream(iter(sending), timeout=TIMEOUT_S)
        eventually(lambda: stage.waiting(ODD) == 201)
        call.cancel()
        eventually(lambda: stage.waiting(ODD) == 1)
        sending.end()
    assert outputs(held.result()) == [{"out": 64.0}]
    stage.drained(ODD)
    assert stage.odd.saw(33.0) == 0
    statuses = [stage.ended(ODD, f"stream-d-{number}").status for number in range(200)]
    assert statuses == [wire.CANCELLED] * 200


def test_a_message_over_the_limit_ends_its_own_call_only(gateway: GatewayProcess) -> None:
    huge = v1.PredictRequest(model_id=ODD, rows=v1.Rows(matrix=v1.Matrix(rows=1, float64=bytes(20_000_000))))
    with pytest.raises(grpc.RpcError) as raised:
        list(gateway.stub.PredictStream(iter([ask(ODD, 1.0), huge]), timeout=5.0))
    assert raised.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert outputs(gateway.predict(ask(ODD, 1.0))) == [{"out": 2.0}]


def test_who_sends_without_reading_gets_everything_once_they_read(gateway: GatewayProcess) -> None:
    """Replies of 40 kB, far more than a connection's window holds."""
    rows = v1.Rows(matrix=v1.Matrix(rows=1000, float64=np.ones(1000).tobytes()))
    ids = [f"stream-e-{number}" for number in range(60)]
    sending = Sending(*(v1.PredictRequest(model_id=TEXT, rows=rows, request_id=each) for each in ids))
    sending.end()
    call = gateway.stub.PredictStream(iter(sending), timeout=TIMEOUT_S)
    assert outputs(gateway.predict(ask(ODD, 1.0))) == [{"out": 2.0}]
    assert sorted(answer.request_id for answer in call) == sorted(ids)


def test_a_deadline_ends_the_call_and_its_requests(gateway: GatewayProcess, stage: Stage) -> None:
    with stage.odd.closed():
        call = gateway.stub.PredictStream(iter(Sending(ask(ODD, 34.0, request_id="stream-f"))), timeout=0.3)
        with pytest.raises(grpc.RpcError) as raised:
            list(call)
        assert raised.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    stage.drained(ODD)
    assert stage.ended(ODD, "stream-f").status in (wire.OK, wire.EXPIRED, wire.CANCELLED)
