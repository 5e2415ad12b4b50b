"""Callers who go away: what no worker has is taken back, and nothing of them stays behind in the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.util import find_spec

import anyio
import grpc
import numpy as np
import pytest

from gateway import waiters
from gateway.app import Gateway
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually, eventually_async
from tests.stage import ODD, TIMEOUT_S, GatewayProcess, Stage, ask, failure, outputs

pytestmark = pytest.mark.integration

ENGINES = ("grpcio", "native") if find_spec("pygrpc_native") else ("grpcio",)


def test_a_call_cancelled_while_a_worker_computes_it_is_recorded_and_its_result_kept(
    gateway: GatewayProcess, stage: Stage
) -> None:
    with stage.odd.closed():
        call = gateway.start_predict(ask(ODD, 42.0, request_id="cancel-held"))
        eventually(lambda: stage.odd.saw(42.0) == 1)
        call.cancel()
    assert outputs(gateway.result(ODD, "cancel-held", wait_s=10)) == [{"out": 84.0}]
    assert stage.ended(ODD, "cancel-held").status == wire.OK


def test_a_withdrawn_request_may_be_sent_again_under_its_id(gateway: GatewayProcess, stage: Stage) -> None:
    with stage.odd.closed():
        held = gateway.start_predict(ask(ODD, 43.0))
        eventually(lambda: stage.held(ODD) == 1)
        call = gateway.start_predict(ask(ODD, 44.0, request_id="cancel-again"))
        eventually(lambda: stage.waiting(ODD) == 2)
        call.cancel()
        eventually(lambda: stage.waiting(ODD) == 1)
        with pytest.raises(grpc.RpcError) as raised:
            gateway.result(ODD, "cancel-again")
        assert failure(raised.value).reason == "RESULT_UNKNOWN"
    held.result()
    assert outputs(gateway.predict(ask(ODD, 44.0, request_id="cancel-again"))) == [{"out": 88.0}]
    assert [e.status for e in stage.events(ODD, "cancel-again")] == [wire.CANCELLED, wire.OK]


def test_a_cancelled_call_does_not_take_the_answer_from_another_for_the_same_request(
    gateway: GatewayProcess, other_gateway: GatewayProcess, stage: Stage
) -> None:
    """Whoever asked for it first, on whichever gateway."""
    for second in (gateway, other_gateway):
        request = ask(ODD, 45.0, request_id=f"cancel-shared-{second is gateway}")
        with stage.odd.closed():
            held = gateway.start_predict(ask(ODD, 46.0))
            eventually(lambda: stage.held(ODD) == 1)
            first = gateway.start_predict(request)
            eventually(lambda: stage.waiting(ODD) == 2)
            other = second.start_predict(request)
            # The second call is known to wait once a third of the same gateway was answered behind it.
            with pytest.raises(grpc.RpcError):
                second.predict(ask(ODD, 47.0, request_id=request.request_id))
            first.cancel()
        assert outputs(other.result()) == [{"out": 90.0}]
        held.result()
        stage.drained(ODD)


def test_who_waits_for_a_result_that_is_withdrawn_is_told_at_once(
    gateway: GatewayProcess, other_gateway: GatewayProcess, stage: Stage
) -> None:
    request = v1.GetResultRequest(model_id=ODD, request_id="cancel-result")
    request.wait.FromSeconds(60)
    with stage.odd.closed():
        held = gateway.start_predict(ask(ODD, 53.0))
        eventually(lambda: stage.held(ODD) == 1)
        call = gateway.start_predict(ask(ODD, 54.0, request_id="cancel-result"))
        eventually(lambda: stage.waiting(ODD) == 2)
        result = other_gateway.stub.GetResult.future(request, timeout=60)
        assert other_gateway.result(ODD, "cancel-result").pending
        call.cancel()
        assert failure(result.exception()).reason == "RESULT_UNKNOWN"
    held.result()
    stage.drained(ODD)


@asynccontextmanager
async def running_gateway(
    stage: Stage, engine: str = "grpcio"
) -> AsyncIterator[tuple[Gateway, v1_grpc.PredictorStub, anyio.Event]]:
    """A gateway in the test's own event loop, so that its inside can be looked at."""
    settings = stage.settings(listen="127.0.0.1:0", engine=engine)
    assert settings.registry_public_key is not None
    app = Gateway(settings, stage.url, settings.registry_public_key, "")
    addresses: list[str] = []
    stop = anyio.Event()

    async def run() -> None:
        await app.run(stop, on_ready=addresses.append, on_finding=lambda _finding: None)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        await eventually_async(lambda: _true(bool(addresses)), within=20)
        async with grpc.aio.insecure_channel(addresses[0]) as channel:
            stub = v1_grpc.PredictorStub(channel)
            await eventually_async(lambda: _true(ODD in app.waiters.subscribed))
            yield app, stub, stop
        stop.set()


async def _true(value: bool) -> bool:
    return value


@pytest.mark.anyio
async def test_a_reply_too_large_to_push_is_read_without_waiting_for_a_sweep(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiters, "QUICK_S", 3600.0)
    rows = v1.Rows(matrix=v1.Matrix(rows=5000, float64=np.ones(5000).tobytes()))
    async with running_gateway(stage) as (_, stub, _):
        response = await stub.Predict(v1.PredictRequest(model_id=ODD, rows=rows), timeout=TIMEOUT_S)
    assert list(response.columns[0].column.doubles.values) == [2.0] * 5000


@pytest.mark.anyio
@pytest.mark.parametrize("engine", ENGINES)
async def test_no_waiter_is_left_behind_whatever_became_of_its_call(stage: Stage, engine: str) -> None:
    async with running_gateway(stage, engine) as (app, stub, _):
        await asyncio.gather(*(stub.Predict(ask(ODD, 1.0), timeout=TIMEOUT_S) for _ in range(50)))
        with stage.odd.closed():
            calls = [stub.Predict(ask(ODD, 48.0), timeout=TIMEOUT_S) for _ in range(300)]
            late = [stub.Predict(ask(ODD, 49.0), timeout=0.2) for _ in range(20)]
            stream = stub.PredictStream(timeout=TIMEOUT_S)
            for number in range(50):
                await stream.write(ask(ODD, 50.0, request_id=f"leak-{engine}-{number}"))
            await eventually_async(lambda: _true(len(app.waiters) >= 350))
            for call in calls:
                call.cancel()
            stream.cancel()
            await asyncio.gather(*calls, *late, return_exceptions=True)
            await eventually_async(lambda: _true(len(app.waiters) == 0))
        refused = [stub.Predict(ask(ODD, "x"), timeout=TIMEOUT_S) for _ in range(50)]
        await asyncio.gather(*refused, return_exceptions=True)
        waits = v1.GetResultRequest(model_id=ODD, request_id="leak-nothing")
        waits.wait.FromSeconds(1)
        await asyncio.gather(*(stub.GetResult(waits) for _ in range(5)), return_exceptions=True)
        assert len(app.waiters) == 0
    await anyio.to_thread.run_sync(stage.drained, ODD)


@pytest.mark.anyio
async def test_hundreds_of_results_at_once_share_a_few_connections(stage: Stage) -> None:
    async with running_gateway(stage) as (_, stub, _stop):
        requests = [ask(ODD, float(number), request_id=f"share-{number}") for number in range(500)]
        await asyncio.gather(*(stub.Predict(request, timeout=TIMEOUT_S) for request in requests))
        asked = [v1.GetResultRequest(model_id=ODD, request_id=f"share-{number}") for number in range(500)]
        answers = await asyncio.gather(*(stub.GetResult(each, timeout=TIMEOUT_S) for each in asked))
        assert [outputs(answer) for answer in answers] == [[{"out": 2.0 * number}] for number in range(500)]
