"""Attempts alone: only a process that died while it computed an entry alone counts against it."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest

from contract.connection import living
from contract.keys import ORPHANS
from contract.presence import TTL_S
from contract.record import Routing
from contract.trust import private_key
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.greedy_model import GASPS, HOARDS, HOLDS, GreedyModel
from tests.odd_models import OddModel
from tests.publishing import put
from tests.servers import RedisServer
from tests.stage import ODD, Stage, Worker, outputs

pytestmark = [pytest.mark.integration, pytest.mark.faults]

GREEDY = "greedy"
LEASE_S = 0.5
FEATURES = [{"name": "x", "type": "float", "example": 1.0}]

Staged = Callable[..., Stage]


@pytest.fixture
def staged(tmp_path_factory: pytest.TempPathFactory, prefix: str) -> Iterator[Staged]:
    """Makes a stage with an odd model, where one crash is enough; workers have no supervisor, and short leases."""
    stages: list[Stage] = []

    def make(server: RedisServer, **settings: object) -> Stage:
        short = {"lease_s": LEASE_S, "heartbeat_s": 0.1, "max_crashes": 1, **settings}
        stage = Stage(tmp_path_factory.mktemp("attempts"), server.url, prefix, **short)
        stages.append(stage.__enter__())
        stage.publish_odd()
        return stage

    yield make
    for stage in stages:
        stage.__exit__(None, None, None)


def retries(worker: Worker) -> int:
    """How many attempts alone it has begun."""
    return worker.log.read_text().count("retrying alone")


def holder(stage: Stage, workers: Sequence[Worker]) -> Worker:
    """The worker that holds the one entry of the bulk lane."""
    pending: Any = stage.redis.xpending_range(stage.keys.model(ODD).bulk, "workers", "-", "+", 10)
    [held] = pending
    pid = int(held["consumer"].decode().split("-")[-2])
    return next(worker for worker in workers if worker.running and worker.pid == pid)


def abandoned(stage: Stage, workers: Sequence[Worker], value: float, request_id: str) -> Worker:
    """A bulk entry whose reader was lost with its machine, and which a worker computes alone just now: that one.

    The gate must be closed.
    """
    stream = stage.keys.model(ODD).bulk
    # In one step, so that no worker reads it first.
    pipe = stage.redis.pipeline(transaction=True)
    pipe.xadd(stream, {"json": orjson.dumps({"inputs": [value], "request_id": request_id})})
    pipe.xreadgroup("workers", "lost-1-000000", {stream: ">"})
    pipe.execute()
    eventually(lambda: stage.odd.saw(value) == 1)
    return holder(stage, workers)


def tried(stage: Stage) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = stage.redis.hgetall(stage.keys.model(ODD).crashes)  # type: ignore[assignment]
    return found


def test_a_worker_told_to_stop_hands_an_attempt_over_that_takes_longer_than_a_stop_may(
    valkey: RedisServer, staged: Staged
) -> None:
    """It ends in order and in bounded time, and the entry is as good as before."""
    stage = staged(valkey, drain_s=0.3)
    worker = stage.worker()
    with stage.odd.closed():
        abandoned(stage, [worker], 5.0, "drained")
        assert len(tried(stage)) == 1
        worker.terminate()
        assert worker.wait() == 0
        assert tried(stage) == {}
        consumers: Any = stage.redis.xinfo_consumers(stage.keys.model(ODD).bulk, "workers")
        assert [each["pending"] for each in consumers if each["name"] == ORPHANS.encode()] == [1]
    stage.worker()
    assert outputs(stage.stored(ODD, "drained")) == [{"out": 10.0}]
    assert stage.ended(ODD, "drained").status == wire.OK
    stage.drained(ODD)


def test_a_redis_that_is_restarted_during_an_attempt_makes_no_crash_of_it(tmp_path: Path, staged: Staged) -> None:
    """Its lease ran out meanwhile, and another worker looks for what was abandoned as soon as Redis is back."""
    with RedisServer(tmp_path / "redis", config={"appendfsync": "always"}) as server:
        stage = staged(server)
        workers = [stage.worker(), stage.worker()]
        with stage.odd.closed():
            first = abandoned(stage, workers, 6.0, "restarted")
            server.kill()
            lost_at = time.monotonic()
            eventually(lambda: time.monotonic() > lost_at + 2 * LEASE_S)
            server.start()
            stage.push(ODD, {"inputs": [7.0], "request_id": "later"})
            eventually(lambda: stage.odd.saw(7.0) == 1)
            # The other one reads again, and has had time to take what seems abandoned.
            eventually(lambda: time.monotonic() > lost_at + 6 * LEASE_S)
            assert (stage.odd.saw(6.0), first.running) == (1, True)
        assert outputs(stage.stored(ODD, "restarted")) == [{"out": 12.0}]
        assert stage.ended(ODD, "restarted").status == wire.OK
        assert outputs(stage.stored(ODD, "later")) == [{"out": 14.0}]
        stage.drained(ODD)


def test_a_worker_that_slept_through_its_lease_is_not_taken_for_dead(valkey: RedisServer, staged: Staged) -> None:
    """As long as it is seen; here it wakes before that, and its answer counts."""
    stage = staged(valkey)
    workers = [stage.worker(), stage.worker()]
    with stage.odd.closed():
        first = abandoned(stage, workers, 8.0, "slept")
        first.pause()
        [other] = [worker for worker in workers if worker is not first]
        eventually(lambda: "is not given up yet" in other.log.read_text(), within=TTL_S)
        first.resume()
    assert outputs(stage.stored(ODD, "slept")) == [{"out": 16.0}]
    assert stage.ended(ODD, "slept").status == wire.OK
    assert stage.odd.saw(8.0) == 1
    stage.drained(ODD)


def test_lost_workers_are_taken_for_dead_once_they_are_not_seen_and_forgotten_once_they_hold_nothing(
    valkey: RedisServer, staged: Staged
) -> None:
    """Nobody reaps them here, as where a machine is lost. (And so the test above could fail.)"""
    stage = staged(valkey)
    workers = [stage.worker(), stage.worker()]
    with stage.odd.closed():
        abandoned(stage, workers, 9.0, "died").kill()
        assert stage.ended(ODD, "died", within=TTL_S + 10).status == wire.POISON
    assert stage.odd.saw(9.0) == 1
    [letter] = stage.dead(ODD)
    assert (letter["reason"], letter["crashes"], letter["lane"]) == (b"MODEL_CRASHED", b"1", b"bulk")
    stage.drained(ODD)
    [last] = eventually(lambda: _alone(stage), within=TTL_S + 5)
    keys = stage.keys.model(ODD)

    def names() -> set[str]:
        found: list[Any] = [stage.redis.xinfo_consumers(stream, "workers") for stream in (keys.requests, keys.bulk)]
        return {each["name"].decode() for consumers in found for each in consumers}

    eventually(lambda: names() <= {last, ORPHANS}, within=20)


def test_an_attempt_that_redis_refused_to_complete_is_no_crash_however_often(
    valkey: RedisServer, staged: Staged
) -> None:
    """Somebody put something else under the reply's key; once that is gone the request is answered."""
    stage = staged(valkey)
    worker = stage.worker()
    key = stage.keys.model(ODD).reply("blocked")
    stage.redis.rpush(key, "not a reply")
    stage.push(ODD, {"inputs": [10.0], "request_id": "blocked"})
    eventually(lambda: retries(worker) >= 3, within=20)
    stage.redis.delete(key)
    assert outputs(stage.stored(ODD, "blocked")) == [{"out": 20.0}]
    assert stage.ended(ODD, "blocked").status == wire.OK
    stage.drained(ODD)


def _alone(stage: Stage) -> list[str]:
    names = [each.name for each in living(stage.redis, stage.keys, "worker")]
    return names if len(names) == 1 else []


def test_a_redelivered_bulk_entry_keeps_the_version_of_its_first_read(valkey: RedisServer, staged: Staged) -> None:
    """With an id of its own and without, while the canary takes all callers at first and none any more then."""
    stage = staged(valkey)
    stage.publish_model(ODD, OddModel(stage.odd.folder), FEATURES, version="1.1.0")
    record = stage.records[ODD]
    key = private_key(stage.folder / "registry.key")

    def share(basis_points: int) -> None:
        routing = Routing("1.0.0", "1.1.0" if basis_points else "", basis_points, "salt")
        nonlocal record
        record = replace(record, revision=record.revision + 1, routing=routing)
        put(stage.redis, stage.keys, key, record)

    share(10_000)
    first = stage.worker()
    with stage.odd.closed():
        named = "mine"
        stage.push(ODD, {"inputs": [30.0], "request_id": named})
        nameless = stage.push(ODD, {"inputs": [31.0]})
        eventually(lambda: stage.odd.saw(30.0) == 1)
        # The second may wait behind the first: then nobody has read it.
        read = {30.0: named} | ({31.0: nameless} if stage.odd.saw(31.0) else {})
        share(0)
        first.kill()
    stage.worker()
    for request_id in (named, nameless):
        stage.stored(ODD, request_id)
    canary = record.versions["1.1.0"].digest
    for request_id in read.values():
        [(header, event)] = [(h, e) for h, e in stage.batches(ODD) if e.entry.request_id == request_id]
        assert (event.deliveries, event.entry.version, event.entry.digest) == (2, "1.1.0", canary)
        assert header.digest == canary
    stage.push(ODD, {"inputs": [32.0], "request_id": "new"})
    assert stage.stored(ODD, "new").version == "1.0.0"
    stage.drained(ODD)


@pytest.fixture(scope="module")
def greedy(valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, Worker]]:
    """A pool of two under its supervisor, whose leases only the supervisor can help in time."""
    settings = {"lease_s": 60, "heartbeat_s": 0.2, "batch_limit_s": 3.0, "batch_target_ms": 60_000}
    with Stage(tmp_path_factory.mktemp("greedy"), valkey.url, f"g{uuid.uuid4().hex[:12]}", **settings) as stage:
        stage.publish_model(GREEDY, GreedyModel(), FEATURES)
        yield stage, stage.worker(workers=2)


def deaths(pool: Worker) -> int:
    return pool.log.read_text().count("a worker died")


@pytest.mark.parametrize("value", [HOLDS, HOARDS], ids=["Python's lock", "all memory"])
def test_who_takes_what_the_process_needs_to_live_is_poison_after_two_and_costs_itself_only(
    greedy: tuple[Stage, Worker], value: float
) -> None:
    stage, pool = greedy
    before, letters = deaths(pool), len(stage.dead(GREEDY))
    bad = stage.push(GREEDY, {"inputs": [value]})
    good = [stage.push(GREEDY, {"inputs": [float(number)]}) for number in range(20)]
    for number, entry_id in enumerate(good):
        assert outputs(stage.stored(GREEDY, entry_id, within=25)) == [{"out": 2.0 * number}]
    assert stage.stored(GREEDY, bad, within=25).error.reason == "MODEL_CRASHED"
    assert stage.ended(GREEDY, bad).status == wire.POISON
    [letter] = stage.dead(GREEDY)[letters:]
    assert (letter["reason"], letter["crashes"], letter["entry_id"]) == (b"MODEL_CRASHED", b"2", bad.encode())
    assert str(value).encode() in letter["body"]
    stage.drained(GREEDY)
    eventually(lambda: len(pool.pids) == 2, within=30)
    assert 2 <= deaths(pool) - before <= 3


def test_who_asks_for_more_memory_than_there_is_fails_and_its_worker_serves_on(greedy: tuple[Stage, Worker]) -> None:
    stage, pool = greedy
    before = deaths(pool)
    bad = stage.push(GREEDY, {"inputs": [GASPS]})
    good = stage.push(GREEDY, {"inputs": [4.0]})
    error = stage.stored(GREEDY, bad, within=30).error
    assert error.reason == "MODEL_FAILED"
    assert outputs(stage.stored(GREEDY, good)) == [{"out": 8.0}]
    assert stage.ended(GREEDY, bad).status == wire.FAILED
    assert deaths(pool) == before
