"""Health, reflection, stopping, and a Redis that goes away: what callers see meanwhile, and that all works again."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from contract.connection import living
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.servers import RedisServer
from tests.stage import ODD, GatewayProcess, Stage, ask, failure, outputs

pytestmark = pytest.mark.integration


def refused(call: object) -> tuple[grpc.StatusCode, str]:
    """Code and reason of a call that must fail."""
    error = call.exception()  # type: ignore[attr-defined]
    assert isinstance(error, grpc.RpcError)
    return failure(error).code, failure(error).reason


def test_health_knows_the_whole_the_service_and_each_model(gateway: GatewayProcess, stage: Stage) -> None:
    eventually(gateway.serves, within=10)
    for service in ("millstream.v1.Predictor", *(f"millstream.v1.Predictor/{m}" for m in ("churn", ODD))):
        answer = gateway.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    with pytest.raises(grpc.RpcError) as raised:
        gateway.health.Check(health_pb2.HealthCheckRequest(service="millstream.v1.Predictor/nothing"), timeout=5)
    assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_lists_the_services_and_describes_them(gateway: GatewayProcess) -> None:
    request = reflection_pb2.ServerReflectionRequest
    stub = reflection_pb2_grpc.ServerReflectionStub(gateway.channel)
    asked = [request(list_services=""), request(file_containing_symbol="millstream.v1.Predictor")]
    listed, described = stub.ServerReflectionInfo(iter(asked), timeout=5)
    names = {service.name for service in listed.list_services_response.service}
    assert {"millstream.v1.Predictor", "grpc.health.v1.Health"} <= names
    files = [FileDescriptorProto.FromString(raw) for raw in described.file_descriptor_response.file_descriptor_proto]
    [predictor] = [s for file in files for s in file.service if s.name == "Predictor"]
    assert {"Predict", "PredictStream", "Submit", "GetResult"} <= {method.name for method in predictor.method}


def test_a_stopping_gateway_answers_what_it_has_takes_nothing_new_and_ends(stage: Stage) -> None:
    leaving = stage.gateway(ODD, drain_s=10)
    with stage.odd.closed():
        calls = [leaving.start_predict(ask(ODD, float(number))) for number in range(40)]
        eventually(lambda: stage.odd.calls)
        eventually(lambda: stage.waiting(ODD) == 40)
        leaving.terminate()
        eventually(lambda: not leaving.serves())
        code, reason = refused(leaving.start_predict(ask(ODD, 1.0)))
        assert (code, reason in ("DRAINING", "")) == (grpc.StatusCode.UNAVAILABLE, True)
        assert not any(call.done() for call in calls)
    assert [outputs(call.result())[0]["out"] for call in calls] == [2.0 * number for number in range(40)]
    assert leaving.wait() == 0
    stage.drained(ODD)


def test_a_gateway_that_cant_finish_ends_in_bounded_time_and_withdraws(stage: Stage) -> None:
    leaving = stage.gateway(ODD, drain_s=0.3)
    with stage.odd.closed():
        held = leaving.start_predict(ask(ODD, 1.0))
        eventually(lambda: stage.odd.saw(1.0) == 1)
        calls = [leaving.start_predict(ask(ODD, 2.0, request_id=f"drain-{n}")) for n in range(20)]
        eventually(lambda: stage.waiting(ODD) == 21)
        leaving.terminate()
        assert leaving.wait() == 0
        assert {refused(call)[0] for call in (held, *calls)} <= {
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.CANCELLED,
        }
    stage.drained(ODD)
    statuses = {stage.ended(ODD, f"drain-{n}").status for n in range(20)}
    assert statuses <= {wire.CANCELLED, wire.OK}


def test_results_outlive_the_gateway_that_was_asked(other_gateway: GatewayProcess, stage: Stage) -> None:
    before = {p.name for p in living(stage.redis, stage.keys, "gateway")}
    dying = stage.gateway(ODD)
    with stage.odd.closed():
        requests = [ask(ODD, float(number), request_id=f"outlive-{number}") for number in range(100)]
        calls = [dying.start_predict(request) for request in requests]
        eventually(lambda: stage.waiting(ODD) == 100)
        os.kill(dying.pid, signal.SIGKILL)
        assert {refused(call)[0] for call in calls} == {grpc.StatusCode.UNAVAILABLE}
    answers = [other_gateway.result(ODD, f"outlive-{number}", wait_s=10) for number in range(100)]
    assert [outputs(answer)[0]["out"] for answer in answers] == [2.0 * number for number in range(100)]
    stage.drained(ODD)
    assert {stage.ended(ODD, f"outlive-{number}").status for number in range(100)} == {wire.OK}
    # Nobody took its presence away; it is gone with its time.
    eventually(lambda: {p.name for p in living(stage.redis, stage.keys, "gateway")} <= before, within=10)


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server that tests may stop, with everything on disk before it answers."""
    with RedisServer(tmp_path_factory.mktemp("own"), config={"appendfsync": "always"}) as server:
        yield server


@pytest.fixture(scope="module")
def own_stage(own_redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    prefix = f"r{uuid.uuid4().hex[:12]}"
    with Stage(tmp_path_factory.mktemp("own-stage"), own_redis.url, prefix, lease_s=1, heartbeat_s=0.1) as stage:
        stage.publish_odd()
        stage.worker()
        yield stage


@pytest.fixture(scope="module")
def own_gateway(own_stage: Stage) -> GatewayProcess:
    return own_stage.gateway(ODD)


def _serves_again(gateway: GatewayProcess, stage: Stage, request_id: str) -> None:
    """A call, a bulk entry and health, once Redis is back; nothing was restarted."""

    def answered() -> bool:
        call = gateway.start_predict(ask(ODD, 3.0, request_id=request_id), timeout=5)
        return call.exception() is None and outputs(call.result()) == [{"out": 6.0}]

    eventually(answered, within=20)
    eventually(lambda: gateway.serves(ODD) and gateway.serves(), within=20)
    assert outputs(stage.stored(ODD, stage.push(ODD, {"inputs": [4.0]}))) == [{"out": 8.0}]
    assert len(stage.events(ODD, request_id)) == 1


@pytest.mark.faults
def test_while_redis_is_down_callers_are_told_and_afterwards_all_works_again(
    own_redis: RedisServer, own_stage: Stage, own_gateway: GatewayProcess
) -> None:
    with own_stage.odd.closed():
        calls = [own_gateway.start_predict(ask(ODD, float(n), request_id=f"down-{n}")) for n in range(20)]
        eventually(lambda: own_stage.waiting(ODD) == 20)
        own_redis.kill()
        eventually(lambda: not own_gateway.serves(ODD))
        for request in (ask(ODD, 1.0), ask(ODD, 1.0, request_id="down-new")):
            assert refused(own_gateway.start_predict(request)) == (
                grpc.StatusCode.UNAVAILABLE,
                "STORE_UNAVAILABLE",
            )
            assert refused(own_gateway.stub.Submit.future(request, timeout=5))[0] == grpc.StatusCode.UNAVAILABLE
        with pytest.raises(grpc.RpcError) as raised:
            own_gateway.result(ODD, "down-0")
        assert failure(raised.value).reason == "STORE_UNAVAILABLE"
        assert [m.model_id for m in own_gateway.stub.ListModels(v1.ListModelsRequest(), timeout=5).models] == [ODD]
    own_redis.start()
    # What was accepted is answered, by the very calls that waited all the time.
    assert [outputs(call.result())[0]["out"] for call in calls] == [2.0 * number for number in range(20)]
    _serves_again(own_gateway, own_stage, "after-down")
    own_stage.drained(ODD)
    assert {len(own_stage.events(ODD, f"down-{n}")) for n in range(20)} == {1}


@pytest.mark.faults
def test_a_script_flush_and_a_lost_group_repair_themselves(own_stage: Stage, own_gateway: GatewayProcess) -> None:
    keys = own_stage.keys.model(ODD)
    own_stage.redis.script_flush()
    assert outputs(own_gateway.predict(ask(ODD, 5.0))) == [{"out": 10.0}]
    own_stage.redis.xgroup_destroy(keys.requests, "workers")
    own_stage.redis.xgroup_destroy(keys.bulk, "workers")
    entry_id = own_stage.push(ODD, {"inputs": [7.0]})
    assert outputs(own_gateway.predict(ask(ODD, 6.0))) == [{"out": 12.0}]
    assert outputs(own_stage.stored(ODD, entry_id)) == [{"out": 14.0}]
    own_stage.drained(ODD)


@pytest.mark.faults
def test_a_redis_that_stands_still_holds_nobody_longer_than_their_deadline(
    own_redis: RedisServer, own_stage: Stage, own_gateway: GatewayProcess
) -> None:
    own_redis.pause()
    try:
        call = own_gateway.start_predict(ask(ODD, 1.0, request_id="still-1"), timeout=1.0)
        assert refused(call)[0] in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE)
    finally:
        own_redis.resume()
    _serves_again(own_gateway, own_stage, "after-still")
    own_stage.drained(ODD)


@pytest.mark.faults
def test_a_gateway_whose_pushes_were_cut_finds_the_replies_by_their_keys(
    own_stage: Stage, own_gateway: GatewayProcess
) -> None:
    with own_stage.odd.closed():
        calls = [own_gateway.start_predict(ask(ODD, float(number))) for number in range(20)]
        eventually(lambda: own_stage.waiting(ODD) == 20)
        own_stage.command("CLIENT", "KILL", "TYPE", "pubsub")
    assert [outputs(call.result())[0]["out"] for call in calls] == [2.0 * number for number in range(20)]


@pytest.mark.faults
def test_rubbish_in_keys_of_others_harms_nobody_else(own_stage: Stage, own_gateway: GatewayProcess) -> None:
    """Whoever may write to Redis can spoil a reply, not a gateway or a worker."""
    keys, client = own_stage.keys, own_stage.redis
    client.set(keys.model(ODD).reply("rubbish-1"), b"\xff\xff")
    client.lpush(keys.model(ODD).reply("rubbish-2"), "x")
    client.hset(keys.presence("worker", "rubbish"), "body", "{")
    client.zadd(keys.roll("worker"), {"rubbish": 4e9})
    gateways: Any = client.zrange(keys.roll("gateway"), 0, -1)
    for name in gateways:
        own_stage.command("SPUBLISH", keys.model(ODD).replies(name.decode()), b"\xff\xff")
    client.xadd(keys.model(ODD).requests, {"pb": b"\xff\xff"})
    client.xadd(keys.model(ODD).requests, {"other": b"x"})
    client.xadd(keys.model(ODD).requests, {"pb": wire.Entry(model_id="churn", request_id="x").SerializeToString()})
    for request_id in ("rubbish-1", "rubbish-2"):
        with pytest.raises(grpc.RpcError):
            own_gateway.result(ODD, request_id)
        with pytest.raises(grpc.RpcError):
            own_gateway.predict(ask(ODD, 1.0, request_id=request_id), timeout=2.0)
    eventually(lambda: own_stage.waiting(ODD) == 0)
    eventually(lambda: len(own_stage.dead(ODD)) == 3)
    client.delete(keys.presence("worker", "rubbish"), keys.model(ODD).reply("rubbish-2"))
    client.zrem(keys.roll("worker"), "rubbish")
    _serves_again(own_gateway, own_stage, "after-rubbish")
