"""A pool that is killed, crashed, hung and paused under load: every request is answered, and recorded once."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from contract.keys import GROUP
from loadgen.closed_loop import closed_loop
from loadgen.report import Report
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.faults import SECONDS, TIMEOUT_S
from tests.faults.crowd import Crowd
from tests.faults.ledger import closed
from tests.odd_models import EXITS, HANGS, SEGFAULTS
from tests.servers import RedisServer
from tests.stage import ODD, GatewayProcess, Stage, Worker, ask, failure, outputs

pytestmark = [pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(TIMEOUT_S)]

WORKERS = 3
LEASE_S = 1.0
LIMIT_S = 2.0
KILL_EVERY_S = 2.0
HURRY_S = 1.0
LONGEST_S = 60.0
"""Deadline of a call here: a pool that was killed as a whole loads its models first."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("pool-redis")) as server:
        yield server


@pytest.fixture(scope="module")
def stage(server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("pool")
    with Stage(folder, server.url, "pool", lease_s=LEASE_S, heartbeat_s=0.2) as stage:
        stage.publish_odd()
        yield stage


@pytest.fixture(scope="module")
def pool(stage: Stage) -> Worker:
    return stage.worker(workers=WORKERS)


@pytest.fixture(scope="module")
def gateway(stage: Stage, pool: Worker) -> GatewayProcess:
    return stage.gateway(ODD)


@pytest.fixture(autouse=True)
def _nothing_is_left(stage: Stage, pool: Worker, gateway: GatewayProcess) -> Iterator[None]:
    """Before a test the whole pool lives."""
    eventually(lambda: len(pool.pids) == WORKERS, within=60)
    yield
    closed(stage, ODD)


REQUESTS = [ask(ODD, float(number)) for number in range(100)]


async def load(
    gateway: GatewayProcess, users: int, *, seconds: float | None = None, count: int | None = None
) -> Report:
    """A closed loop of requests that the model answers."""
    return await closed_loop(gateway.address, users, REQUESTS, seconds=seconds, count=count, timeout_s=LONGEST_S)


def deaths(pool: Worker) -> int:
    """How many workers of the pool have died so far, as its supervisor saw it."""
    return pool.log.read_text().count("a worker died")


def test_a_worker_is_killed_every_two_seconds_under_load_and_every_request_is_answered(
    stage: Stage, pool: Worker, gateway: GatewayProcess
) -> None:
    """Of those in a hurry some may pass their deadline while a worker starts; nobody else is told anything else."""
    source, killed = random.Random(1), 0
    patient = Crowd([gateway.address], 150, "patient", deadline_s=LONGEST_S)
    hurried = Crowd([gateway.address], 50, "hurried", deadline_s=HURRY_S)
    with patient, hurried:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            patient.under_way()
            living = eventually(lambda: sorted(pool.pids), within=30)
            os.kill(source.choice(living), signal.SIGKILL)
            killed += 1
            next_at = time.monotonic() + KILL_EVERY_S
            eventually(lambda at=next_at: time.monotonic() >= at)  # type: ignore[misc]
        told = {**patient.finish(), **hurried.finish()}
    assert killed >= 3
    assert [each for each in patient.told.values() if each.ended != "OK"] == []
    eventually(lambda: len(pool.pids) == WORKERS, within=60)
    closed(stage, ODD, told, reasons={"QUEUE_FULL"})
    assert deaths(pool) >= killed


def test_of_1000_waiting_calls_900_are_cancelled_and_the_model_sees_100(
    stage: Stage, pool: Worker, gateway: GatewayProcess
) -> None:
    keys = stage.keys.model(ODD)
    with stage.odd.closed():
        held = []
        for number in range(WORKERS):
            held.append(gateway.start_predict(ask(ODD, 40.0)))
            eventually(lambda number=number: len(stage.odd.calls) == number + 1)  # type: ignore[misc]
        calls = [gateway.start_predict(ask(ODD, 41.0, request_id=f"cancel-{number}")) for number in range(1000)]
        eventually(lambda: stage.waiting(ODD) == 1000 + WORKERS, within=30)
        # One of ten stays, between others that go.
        left = [number for number in range(1000) if number % 10 == 3]
        for number in set(range(1000)) - set(left):
            calls[number].cancel()
        eventually(lambda: stage.waiting(ODD) == 100 + WORKERS, within=30)
        assert int(stage.redis.get(keys.rows_requests) or 0) == 100 + WORKERS
    assert [outputs(call.result()) for call in held] == [[{"out": 80.0}]] * WORKERS
    assert [outputs(calls[number].result()) for number in left] == [[{"out": 82.0}]] * 100
    stage.drained(ODD)
    assert stage.odd.saw(41.0) == 100
    ended = {e.entry.request_id: e for e in stage.events(ODD) if e.entry.request_id.startswith("cancel-")}
    expected = {f"cancel-{number}": wire.OK if number in left else wire.CANCELLED for number in range(1000)}
    assert {request_id: event.status for request_id, event in ended.items()} == expected
    error = ended["cancel-999"].response.error
    assert (error.reason, error.code) == ("WITHDRAWN", 1)
    # Who asks again is asked anew: of what was withdrawn nothing is remembered.
    assert stage.redis.exists(keys.reply("cancel-999")) == 0


@pytest.mark.parametrize("value", [EXITS, SEGFAULTS], ids=["os._exit", "a segmentation fault"])
def test_a_poison_request_among_a_thousand_costs_itself_only(
    stage: Stage, pool: Worker, gateway: GatewayProcess, value: float
) -> None:
    dead, before = len(stage.dead(ODD)), deaths(pool)
    request_id = f"poison{value:g}"
    with stage.odd.closed():
        held = [gateway.start_predict(ask(ODD, 1.0), timeout=LONGEST_S) for _ in range(WORKERS)]
        eventually(lambda: stage.held(ODD) >= 1, within=30)
        good = [gateway.start_predict(ask(ODD, float(number)), timeout=LONGEST_S) for number in range(500)]
        bad = gateway.start_predict(ask(ODD, value, request_id=request_id), timeout=LONGEST_S)
        good += [gateway.start_predict(ask(ODD, float(number)), timeout=LONGEST_S) for number in range(500, 1000)]
        eventually(lambda: stage.waiting(ODD) == 1001 + WORKERS, within=30)
    assert [outputs(call.result()) for call in good] == [[{"out": 2.0 * number}] for number in range(1000)]
    assert [outputs(call.result()) for call in held] == [[{"out": 2.0}]] * WORKERS
    refused = failure(bad.exception())
    assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "MODEL_CRASHED")
    assert stage.ended(ODD, request_id).status == wire.POISON
    letters = stage.dead(ODD)[dead:]
    assert [(letter["reason"], letter["crashes"]) for letter in letters] == [(b"MODEL_CRASHED", b"2")]
    assert wire.Entry.FromString(letters[0]["body"]).request_id == request_id
    assert deaths(pool) - before <= 3


def test_a_request_that_hangs_ends_its_worker_and_then_itself(server: RedisServer, tmp_path: Path) -> None:
    """A pool of its own: with a limit this short a worker on a busy machine could be taken for one that hangs."""
    with Stage(tmp_path, server.url, "hang", lease_s=LEASE_S, heartbeat_s=0.2, batch_limit_s=LIMIT_S) as stage:
        stage.publish_odd()
        pool = stage.worker(workers=2)
        gateway = stage.gateway(ODD)
        bad = gateway.start_predict(ask(ODD, HANGS, request_id="hangs"), timeout=LONGEST_S)
        report = asyncio.run(load(gateway, 20, count=500))
        assert (report.answered, report.errors) == (500, {})
        assert failure(bad.exception()).reason == "MODEL_CRASHED"
        assert stage.ended(ODD, "hangs").status == wire.POISON
        assert deaths(pool) >= 2
        closed(stage, ODD)


def test_a_worker_that_was_paused_beyond_its_lease_wakes_to_find_its_work_done(
    stage: Stage, pool: Worker, gateway: GatewayProcess
) -> None:
    """It computed the answer too, and may even try to give it: one reply and one event, from whoever was first."""
    keys = stage.keys.model(ODD)
    with stage.odd.closed():
        calls = [gateway.start_predict(ask(ODD, 7.0, request_id=f"paused-{n}"), timeout=LONGEST_S) for n in range(8)]
        eventually(lambda: stage.held(ODD) >= 1, within=30)
        pending: Any = stage.redis.xpending_range(keys.requests, GROUP, "-", "+", 100)
        consumer = pending[0]["consumer"]
        pid = int(consumer.decode().split("-")[-2])
        own = {each["message_id"] for each in pending if each["consumer"] == consumer}
        os.kill(pid, signal.SIGSTOP)
    try:
        assert [outputs(call.result()) for call in calls] == [[{"out": 14.0}]] * 8
        assert stage.held(ODD) == 0
    finally:
        os.kill(pid, signal.SIGCONT)
    events = {event.entry_id.encode(): event for event in stage.events(ODD)}
    assert {events[entry_id].status for entry_id in own} == {wire.OK}
    assert all(events[entry_id].deliveries > 1 for entry_id in own)
    report = asyncio.run(load(gateway, 20, count=500))
    assert (report.answered, report.errors) == (500, {})
    eventually(lambda: pid in pool.pids, within=30)
