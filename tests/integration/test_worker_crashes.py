"""Models that raise, crash or hang, and workers that are killed: each costs itself only, and nothing is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import redis

from contract.keys import ORPHANS
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.odd_models import CRASHES, EXITS, HANGS, INTERRUPTS, RAISES
from tests.servers import RedisServer
from tests.stage import ODD, GatewayProcess, Stage, Worker, ask, failure, outputs

pytestmark = [pytest.mark.integration, pytest.mark.faults]

LIMIT_S = 6.0
"""Far above the time that a test holds a batch back: a worker that ended itself then would count as another crash."""


@pytest.fixture(scope="module")
def crash_stage(valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One odd model, whose batches may take LIMIT_S at most."""
    prefix = f"c{uuid.uuid4().hex[:12]}"
    folder = tmp_path_factory.mktemp("crash")
    settings = {
        "batch_limit_s": LIMIT_S,
        # Calls that a test holds back must not teach the workers to read one row at a time.
        "batch_target_ms": 60_000,
        "heartbeat_s": 0.1,
        "lease_s": 60,
        "max_crashes": 1,
    }
    with Stage(folder, valkey.url, prefix, **settings) as stage:
        stage.publish_odd()
        yield stage


@pytest.fixture(scope="module")
def pool(crash_stage: Stage) -> Worker:
    """Two workers under their supervisor; the lease is so long that only the supervisor can help in time."""
    return crash_stage.worker(workers=2)


@pytest.fixture(scope="module")
def crash_gateway(crash_stage: Stage, pool: Worker) -> GatewayProcess:
    return crash_stage.gateway(ODD)


@pytest.fixture(autouse=True)
def _two_workers_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test left behind: both workers live, nothing waits, and each accepted request has its one event."""
    yield
    if "pool" in request.fixturenames:
        pool, stage = request.getfixturevalue("pool"), request.getfixturevalue("crash_stage")
        eventually(lambda: len(pool.pids) == 2, within=30)
        stage.drained(ODD)
        ids = [event.entry.request_id for event in stage.events(ODD)]
        assert len(ids) == len(set(ids))


def test_of_a_batch_one_row_of_which_makes_the_model_raise_the_others_are_answered(
    crash_stage: Stage, crash_gateway: GatewayProcess, pool: Worker
) -> None:
    with crash_stage.odd.closed():
        held = [crash_gateway.start_predict(ask(ODD, 1.0)) for _ in range(2)]
        eventually(lambda: crash_stage.held(ODD) >= 1)
        good = [crash_gateway.start_predict(ask(ODD, float(number))) for number in range(60)]
        bad = crash_gateway.start_predict(ask(ODD, RAISES, request_id="raises-1"))
        good += [crash_gateway.start_predict(ask(ODD, float(number))) for number in range(60, 100)]
        eventually(lambda: crash_stage.waiting(ODD) == 103)
    assert [outputs(call.result())[0]["out"] for call in good] == [2.0 * number for number in range(100)]
    assert [outputs(call.result())[0]["out"] for call in held] == [2.0, 2.0]
    refused = failure(bad.exception())
    assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "MODEL_FAILED")
    assert "minus thirteen" in refused.message
    assert crash_stage.ended(ODD, "raises-1").status == wire.FAILED


@pytest.mark.parametrize("value", [CRASHES, INTERRUPTS], ids=["SIGKILL", "KeyboardInterrupt"])
def test_a_request_that_ends_the_process_is_tried_alone_and_then_poison(
    crash_stage: Stage, crash_gateway: GatewayProcess, pool: Worker, value: float
) -> None:
    request_id = f"poison{value:g}"
    with crash_stage.odd.closed():
        held = [crash_gateway.start_predict(ask(ODD, 1.0)) for _ in range(2)]
        eventually(lambda: crash_stage.held(ODD) >= 1)
        mates = [crash_gateway.start_predict(ask(ODD, float(number))) for number in range(20)]
        bad = crash_gateway.start_predict(ask(ODD, value, request_id=request_id), timeout=60)
        mates += [crash_gateway.start_predict(ask(ODD, float(number))) for number in range(20, 40)]
        eventually(lambda: crash_stage.waiting(ODD) == 43)
    assert [outputs(call.result())[0]["out"] for call in mates] == [2.0 * number for number in range(40)]
    assert [outputs(call.result())[0]["out"] for call in held] == [2.0, 2.0]
    refused = failure(bad.exception())
    assert (refused.code, refused.reason) == (grpc.StatusCode.INTERNAL, "MODEL_CRASHED")
    assert crash_stage.ended(ODD, request_id).status == wire.POISON
    [letter] = [d for d in crash_stage.dead(ODD) if wire.Entry.FromString(d["body"]).request_id == request_id]
    assert (letter["reason"], letter["crashes"], letter["field"]) == (b"MODEL_CRASHED", b"1", b"pb")
    # With others at first, then alone.
    first, alone = [call for call in crash_stage.odd.calls if value in call]
    assert (len(first) > 1, alone) == (True, [value])


def test_a_request_that_hangs_ends_its_worker_and_is_poison(
    crash_stage: Stage, crash_gateway: GatewayProcess, pool: Worker
) -> None:
    bad = crash_gateway.start_predict(ask(ODD, HANGS, request_id="hangs-1"), timeout=60)
    assert failure(bad.exception()).reason == "MODEL_CRASHED"
    assert crash_stage.ended(ODD, "hangs-1").status == wire.POISON


def test_what_a_killed_worker_held_is_handed_over_at_once(
    crash_stage: Stage, crash_gateway: GatewayProcess, pool: Worker
) -> None:
    """Under a lease of a minute, within the calls' twenty seconds."""
    with crash_stage.odd.closed():
        calls = [crash_gateway.start_predict(ask(ODD, float(number))) for number in range(200)]
        eventually(lambda: crash_stage.waiting(ODD) == 200 and len(crash_stage.odd.calls) == 2)
        before = pool.pids
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not before & crash_stage.worker_pids())
    assert [outputs(call.result())[0]["out"] for call in calls] == [2.0 * number for number in range(200)]
    eventually(lambda: len(pool.pids) == 2, within=30)
    assert not before & pool.pids
    eventually(lambda: crash_gateway.serves(ODD))


def test_a_bulk_entry_that_ends_the_process_is_poison_too(
    crash_stage: Stage, crash_gateway: GatewayProcess, pool: Worker
) -> None:
    crash_stage.push(ODD, {"inputs": [EXITS], "request_id": "bulk-poison"})
    good = [crash_stage.push(ODD, {"inputs": [float(number)]}) for number in range(20)]
    assert crash_stage.stored(ODD, "bulk-poison", within=30).error.reason == "MODEL_CRASHED"
    for number, entry_id in enumerate(good):
        assert outputs(crash_stage.stored(ODD, entry_id)) == [{"out": 2.0 * number}]
    event = crash_stage.ended(ODD, "bulk-poison")
    assert (event.status, event.lane) == (wire.POISON, wire.BULK)


@pytest.fixture
def lone(valkey: RedisServer, prefix: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """An odd model and no process yet; workers have no supervisor, and leases of half a second."""
    with Stage(tmp_path_factory.mktemp("lone"), valkey.url, prefix, lease_s=0.5, heartbeat_s=0.1) as stage:
        stage.publish_odd()
        yield stage


def test_without_a_supervisor_a_lost_workers_entries_are_claimed_after_their_lease(lone: Stage) -> None:
    first, gateway = lone.worker(), lone.gateway(ODD)
    with lone.odd.closed():
        calls = [gateway.start_predict(ask(ODD, float(number))) for number in range(20)]
        eventually(lambda: len(lone.odd.calls) == 1)
        first.kill()
    lone.worker()
    assert [outputs(call.result())[0]["out"] for call in calls] == [2.0 * number for number in range(20)]
    lone.drained(ODD)
    assert {event.status for event in lone.events(ODD)} == {wire.OK}
    assert max(event.deliveries for event in lone.events(ODD)) == 2


def test_a_worker_that_stands_still_is_overtaken_and_writes_nothing_when_it_wakes(lone: Stage) -> None:
    """Frozen for longer than its lease, as a machine that swaps: the other answers, the exit keeps the first out."""
    first, gateway = lone.worker(), lone.gateway(ODD)
    with lone.odd.closed():
        call = gateway.start_predict(ask(ODD, 5.0, request_id="frozen-1"))
        eventually(lambda: lone.odd.saw(5.0) == 1)
        first.pause()
    lone.worker()
    answer = call.result()
    assert outputs(answer) == [{"out": 10.0}]
    first.resume()
    # It serves on: two requests one after the other, until it had one.
    eventually(lambda: outputs(gateway.predict(ask(ODD, 6.0))) == [{"out": 12.0}] and _both_work(lone), within=10)
    assert len(lone.events(ODD, "frozen-1")) == 1
    assert gateway.result(ODD, "frozen-1") == answer
    lone.drained(ODD)


def _both_work(stage: Stage) -> bool:
    return len({header.worker for header, _ in stage.batches(ODD)}) == 2


def test_what_expired_while_it_waited_is_never_computed(lone: Stage) -> None:
    """The gateway is gone too, so that nobody withdraws."""
    lone.worker()
    gateway = lone.gateway(ODD)
    with lone.odd.closed():
        held = gateway.start_predict(ask(ODD, 1.0), timeout=30)
        eventually(lambda: lone.odd.saw(1.0) == 1)
        calls = [gateway.start_predict(ask(ODD, 7.0, request_id=f"late-{n}"), timeout=2.0) for n in range(50)]
        eventually(lambda: lone.waiting(ODD) == 51)
        os.kill(gateway.pid, signal.SIGKILL)
        for call in calls:
            assert isinstance(call.exception(), grpc.RpcError)
        assert isinstance(held.exception(), grpc.RpcError)
        deadline = max(entry.deadline_us for entry in _entries(lone))
        eventually(lambda: _now_us(lone.redis) > deadline)
    lone.drained(ODD)
    assert lone.odd.saw(7.0) == 0
    assert {lone.ended(ODD, f"late-{n}").status for n in range(50)} == {wire.EXPIRED}
    # Who asks again under the same id is answered: nothing was computed that could be repeated.
    again = lone.gateway(ODD).predict(ask(ODD, 7.0, request_id="late-0"))
    assert outputs(again) == [{"out": 14.0}]
    assert lone.odd.saw(7.0) == 1


def _entries(stage: Stage) -> list[wire.Entry]:
    """Those of the interactive lane that wait with a deadline soon."""
    raw: Any = stage.redis.xrange(stage.keys.model(ODD).requests)
    entries = [wire.Entry.FromString(fields[b"pb"]) for _, fields in raw]
    return [entry for entry in entries if entry.request_id.startswith("late-")]


def _now_us(client: redis.Redis) -> int:
    moment: Any = client.time()
    return int(moment[0]) * 1_000_000 + int(moment[1])


def test_a_worker_told_to_stop_finishes_its_batch_and_leaves_the_group(lone: Stage) -> None:
    """Told twice, as a person and a supervisor may; and it takes longer than its lease."""
    worker, gateway = lone.worker(), lone.gateway(ODD)
    with lone.odd.closed():
        call = gateway.start_predict(ask(ODD, 8.0))
        eventually(lambda: lone.odd.saw(8.0) == 1)
        waiting = gateway.start_predict(ask(ODD, 9.0))
        eventually(lambda: lone.waiting(ODD) == 2)
        worker.terminate()
        worker.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            worker.wait(within=1.0)
    assert outputs(call.result()) == [{"out": 16.0}]
    assert worker.wait() == 0
    consumers: Any = lone.redis.xinfo_consumers(lone.keys.model(ODD).requests, "workers")
    assert {consumer["name"] for consumer in consumers} <= {ORPHANS.encode()}
    assert not waiting.done()
    lone.worker()
    assert outputs(waiting.result()) == [{"out": 18.0}]
