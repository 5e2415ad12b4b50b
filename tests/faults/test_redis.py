"""Redis that dies, forgets, fills up, stands still and loses its groups under load: nothing accepted is lost by it."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import redis

from contract.keys import GROUP
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.faults import ORDINARY_S, REPEATS, SECONDS, TIMEOUT_S
from tests.faults.crowd import Crowd, Pushing
from tests.faults.ledger import closed
from tests.servers import RedisServer
from tests.stage import ODD, GatewayProcess, Stage, ask, failure, outputs

pytestmark = [pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(TIMEOUT_S)]

PREFIX = "ms"


@contextmanager
def staged(folder: Path, config: dict[str, str], **settings: object) -> Iterator[tuple[RedisServer, Stage]]:
    """A server of its own and a stage on it, with leases of a second."""
    settings = {"lease_s": 1.0, "heartbeat_s": 0.2, **settings}
    with RedisServer(folder / "redis", config=config) as server, Stage(folder, server.url, PREFIX, **settings) as stage:
        stage.publish_odd()
        yield server, stage


def lane(stage: Stage) -> int:
    """Entries of callers that wait."""
    return int(stage.redis.xlen(stage.keys.model(ODD).requests))


def held(stage: Stage) -> int:
    """Entries of both lanes that workers have."""
    names = stage.keys.model(ODD)
    summaries: list[Any] = [stage.redis.xpending(stream, GROUP) for stream in (names.requests, names.bulk)]
    return sum(int(summary["pending"]) for summary in summaries)


def test_of_a_redis_killed_under_load_that_writes_always_every_accepted_entry_is_there(tmp_path: Path) -> None:
    with staged(tmp_path, {"appendfsync": "always"}) as (server, stage):
        stage.worker(workers=2)
        gateway = stage.gateway(ODD)
        with Crowd([gateway.address], 60, "caller", again=True) as crowd, Pushing(server.url, "pushed") as pushing:
            for _ in range(2 * REPEATS):
                crowd.under_way()
                pushing.under_way()
                with stage.odd.closed():
                    eventually(lambda: lane(stage) >= 40, within=20)
                    before = lane(stage)
                    server.kill()
                    server.start()
                    # Nothing was taken out meanwhile; callers whose append was not answered come again.
                    assert lane(stage) >= before
            crowd.under_way()
        assert {each.ended for each in crowd.told.values()} == {"OK"}
        closed(stage, ODD, crowd.told, pushed=pushing.acknowledged)


def test_of_what_a_redis_lost_callers_are_told_and_what_came_back_is_answered_once(tmp_path: Path) -> None:
    """Its append-only file ends where the disk had got to: so a power cut under `everysec` looks."""
    with staged(tmp_path, {"appendfsync": "everysec"}) as (server, stage):
        stage.worker()
        gateway = stage.gateway(ODD)
        with stage.odd.closed():
            kept = [gateway.start_predict(ask(ODD, float(n), request_id=f"kept-{n}"), timeout=40) for n in range(50)]
            eventually(lambda: stage.waiting(ODD) == 50)
            [file] = (server.folder / "appendonlydir").glob("*.incr.aof")
            size = file.stat().st_size
            lost = [gateway.start_predict(ask(ODD, float(n), request_id=f"lost-{n}"), timeout=4) for n in range(50)]
            eventually(lambda: stage.waiting(ODD) == 100)
            server.kill()
            with file.open("r+b") as opened:
                opened.truncate(size)
            server.start()
            assert stage.waiting(ODD) == 50
        assert [outputs(call.result()) for call in kept] == [[{"out": 2.0 * n}] for n in range(50)]
        codes = {failure(call.exception()).code for call in lost}
        assert codes <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
        # Nothing of them is left: asked again under their ids, they are requests like any other.
        again = [gateway.start_predict(ask(ODD, float(n), request_id=f"lost-{n}")) for n in range(50)]
        assert [outputs(call.result()) for call in again] == [[{"out": 2.0 * n}] for n in range(50)]
        closed(stage, ODD)
        assert len(stage.events(ODD)) == 100


PADDED = b'{"inputs":[1.0]' + b" " * 20_000 + b"}"


def filled(stage: Stage, until_share: float) -> int:
    """Pushes entries until so much of maxmemory is used, or above 1 until the server takes no more; how many went."""
    for pushed in itertools.count():
        if pushed % 50 == 0:
            memory: Any = stage.redis.info("memory")
            if memory["used_memory"] >= until_share * memory["maxmemory"]:
                return pushed
        try:
            stage.push(ODD, PADDED)
        except redis.OutOfMemoryError:
            return pushed
    raise AssertionError("the server never fills")


def test_a_redis_filled_through_bulk_is_drained_by_the_pool_and_callers_are_refused_meanwhile(tmp_path: Path) -> None:
    with staged(tmp_path, {"maxmemory": "30mb"}) as (_, stage):
        stage.worker(workers=2)
        gateway = stage.gateway(ODD)

        def refusal() -> tuple[grpc.StatusCode, str]:
            call = gateway.start_predict(ask(ODD, 2.0), timeout=0.3)
            found = failure(call.exception()) if call.exception() is not None else None
            assert found is None or found.reason != "STORE_FULL" or (found.retry_s or 0) > 0
            return (found.code, found.reason) if found else (grpc.StatusCode.OK, "")

        with stage.odd.closed():
            pushed = filled(stage, 0.82)
            eventually(lambda: refusal() == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL"))
            # From 80 % on callers are refused, while what is full is not yet.
            pushed += 1
            stage.push(ODD, PADDED)
            pushed += filled(stage, 2.0)
            with pytest.raises(redis.OutOfMemoryError):
                stage.push(ODD, PADDED)
            assert refusal() == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
        closed(stage, ODD)
        assert outputs(_once_let_in(gateway)) == [{"out": 4.0}]
        done = sum(event.lane == wire.BULK for event in stage.events(ODD))
        assert done == pushed


def _once_let_in(gateway: GatewayProcess) -> Any:
    def answer() -> Any:
        call = gateway.start_predict(ask(ODD, 2.0))
        return call.result() if call.exception() is None else None

    return eventually(answer, within=10)


@pytest.mark.parametrize("group", ["made before", "not made yet"])
def test_a_worker_that_starts_on_a_full_redis_drains_it(tmp_path: Path, group: str) -> None:
    """After the whole pool died, or where producers were there first: nobody else could make room."""
    with staged(tmp_path, {"maxmemory": "30mb"}) as (_, stage):
        if group == "made before":
            stage.worker().stop()
        pushed = filled(stage, 2.0)
        # Well over it: what is freed by the end of a connection is no room.
        memory: Any = stage.redis.info("memory")
        stage.redis.config_set("maxmemory", int(0.8 * memory["used_memory"]))
        stage.worker()
        closed(stage, ODD)
        assert len(stage.events(ODD)) == pushed


PAUSES_S = [6.0] if SECONDS <= ORDINARY_S else [6.0, 12.0]
"""Longer than every client's socket timeout; the second longer than a line that is silent is kept, too."""


@pytest.mark.parametrize("pause_s", PAUSES_S)
def test_a_redis_that_stands_still_takes_nothing_twice_and_answers_who_waited(tmp_path: Path, pause_s: float) -> None:
    with staged(tmp_path, {}) as (server, stage):
        stage.worker(workers=2)
        gateway = stage.gateway(ODD)
        with Crowd([gateway.address], 20, "caller", again=True) as crowd, Pushing(server.url, "pushed") as pushing:
            crowd.under_way()
            server.pause()
            # Ids that the gateway makes: nothing but the absence of repeats keeps these from being appended twice.
            calls = [gateway.start_predict(ask(ODD, 1e6 + n), timeout=40) for n in range(100)]
            woken = time.monotonic() + pause_s
            eventually(lambda: time.monotonic() >= woken, within=pause_s + 1)
            server.resume()
            crowd.under_way()
        ended = {"" if call.exception() is None else failure(call.exception()).reason for call in calls}
        assert ended <= ({""} if pause_s < 10 else {"", "STORE_UNAVAILABLE"})
        assert {each.ended for each in crowd.told.values()} == {"OK"}
        closed(stage, ODD, crowd.told, pushed=pushing.acknowledged)
        for n in range(100):
            entries = [event for event in stage.events(ODD) if event.entry.matrix.float64 == _bytes(1e6 + n)]
            assert len(entries) <= 1
            assert calls[n].exception() is not None or len(entries) == 1


def _bytes(value: float) -> bytes:
    return struct.pack("<d", value)


def test_groups_destroyed_under_load_are_made_again_from_the_beginning(tmp_path: Path) -> None:
    """What was read and not completed is read again; what is completed twice is recorded once."""
    with staged(tmp_path, {}) as (server, stage):
        stage.worker(workers=2)
        gateway = stage.gateway(ODD)
        names = stage.keys.model(ODD)
        with Crowd([gateway.address], 60, "caller") as crowd, Pushing(server.url, "pushed") as pushing:
            for _ in range(3 * REPEATS):
                crowd.under_way()
                with stage.odd.closed():
                    eventually(lambda: held(stage) > 0 and crowd.waiting >= 30, within=20)
                    for stream in (names.requests, names.bulk):
                        stage.redis.xgroup_destroy(stream, GROUP)
        assert {each.ended for each in crowd.told.values()} == {"OK"}
        closed(stage, ODD, crowd.told, pushed=pushing.acknowledged)
