"""More work than the workers can do: what can't be answered in time is refused at once, the rest is answered."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest

from contract.connection import living
from contract.keys import GROUP
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.servers import RedisServer
from tests.slow_model import SlowModel
from tests.stage import ODD, GatewayProcess, Stage, ask, failure, outputs

pytestmark = pytest.mark.integration

SLOW = "slow"
LARGE = "large"
"""Fast enough to be read in whole batches, of entries that are many rows each."""
ROW_S = 0.01
RATE = 1 / ROW_S
BATCH_ROWS = 8
FULL = (grpc.StatusCode.RESOURCE_EXHAUSTED, "QUEUE_FULL")
BEHIND = (grpc.StatusCode.RESOURCE_EXHAUSTED, "EVENTS_BACKLOG")


@pytest.fixture(scope="module")
def slow_stage(valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One worker with small batches; a slow model, and one that tests can stop."""
    prefix = f"o{uuid.uuid4().hex[:12]}"
    with Stage(tmp_path_factory.mktemp("overload"), valkey.url, prefix, batch_rows=BATCH_ROWS) as stage:
        stage.publish_odd()
        features = [{"name": "x", "type": "float", "example": 1.0}]
        stage.publish_model(SLOW, SlowModel(ROW_S), features)
        stage.publish_model(LARGE, SlowModel(ROW_S / 20), features)
        stage.worker()
        yield stage


@pytest.fixture(scope="module")
def slow_gateway(slow_stage: Stage) -> GatewayProcess:
    return slow_stage.gateway(ODD, SLOW, LARGE)


def many(model_id: str, rows: int, request_id: str = "") -> v1.PredictRequest:
    matrix = v1.Matrix(rows=rows, float64=np.ones(rows).tobytes())
    return v1.PredictRequest(model_id=model_id, rows=v1.Rows(matrix=matrix), request_id=request_id)


def refused(call: Any) -> tuple[grpc.StatusCode, str]:
    """The code and reason of a call that is refused with when to come again."""
    with pytest.raises(grpc.RpcError) as raised:
        call.result()
    found = failure(raised.value)
    assert found.retry_s is not None
    assert found.retry_s > 0
    return found.code, found.reason


def measured(stage: Stage, gateway: GatewayProcess) -> None:
    """Returns once the gateway knows the slow model's rate: two rows together are what a worker has to try."""
    keys = stage.keys

    def known() -> bool:
        for call in [gateway.start_predict(ask(SLOW, 1.0)) for _ in range(6)]:
            call.result()
        return any(p.rows_per_s.get(SLOW) and SLOW not in p.rough for p in living(stage.redis, keys, "worker"))

    eventually(known, within=15)

    def refuses() -> bool:
        """The gateway looks at the workers four times a second."""
        held = gateway.start_predict(many(SLOW, 30))
        try:
            gateway.predict(ask(SLOW, 1.0), timeout=0.1)
        except grpc.RpcError as error:
            return failure(error).reason == "QUEUE_FULL"
        finally:
            held.result()
        return False

    eventually(refuses, within=15)


def test_while_no_rate_is_known_two_batches_per_worker_are_let_in(
    slow_stage: Stage, slow_gateway: GatewayProcess
) -> None:
    """Those that a worker has in hand are among them. First of all, since later the rate is known."""
    with slow_stage.odd.closed():
        calls = [slow_gateway.start_predict(ask(ODD, float(number))) for number in range(30)]
        eventually(lambda: sum(call.done() for call in calls) >= 30 - 2 * BATCH_ROWS, within=10)
        done = [call for call in calls if call.done()]
        assert len(done) == 30 - 2 * BATCH_ROWS
        assert {refused(call) for call in done} == {FULL}
        left = [(number, call) for number, call in enumerate(calls) if call not in done]
    assert [outputs(call.result()) for _, call in left] == [[{"out": 2.0 * number}] for number, _ in left]
    slow_stage.drained(ODD)


def test_a_request_is_refused_by_its_own_deadline_and_not_by_its_neighbours(
    slow_stage: Stage, slow_gateway: GatewayProcess
) -> None:
    measured(slow_stage, slow_gateway)
    held = slow_gateway.start_predict(many(SLOW, 60))
    eventually(lambda: slow_stage.waiting(SLOW) == 1)
    short = slow_gateway.start_predict(ask(SLOW, 1.0), timeout=0.3)
    long = slow_gateway.start_predict(ask(SLOW, 2.0), timeout=20)
    assert refused(short) == FULL
    assert outputs(long.result()) == [{"out": 4.0}]
    assert len(held.result().columns[0].column.doubles.values) == 60
    slow_stage.drained(SLOW)


def test_a_request_goes_in_whatever_its_deadline_where_nothing_waits(
    slow_stage: Stage, slow_gateway: GatewayProcess
) -> None:
    """A rate that was measured too low could never be put right otherwise; and no request is too large for ever."""
    measured(slow_stage, slow_gateway)
    slow_stage.drained(SLOW)
    assert len(slow_gateway.predict(many(SLOW, 90), timeout=1.0).columns[0].column.doubles.values) == 90


def test_rows_that_are_counted_and_not_there_shut_nobody_out(slow_stage: Stage, slow_gateway: GatewayProcess) -> None:
    """Entries can be deleted by hand, or lost with a server's last moments."""
    measured(slow_stage, slow_gateway)
    slow_stage.drained(SLOW)
    slow_stage.redis.set(slow_stage.keys.model(SLOW).rows_requests, 10**9)
    assert outputs(slow_gateway.predict(ask(SLOW, 3.0), timeout=5.0)) == [{"out": 6.0}]
    slow_stage.drained(SLOW)


def test_bulk_requests_have_no_deadline_to_miss(slow_stage: Stage, slow_gateway: GatewayProcess) -> None:
    measured(slow_stage, slow_gateway)
    held = slow_gateway.start_predict(many(SLOW, 60))
    eventually(lambda: slow_stage.waiting(SLOW) == 1)
    ids = [slow_gateway.submit(ask(SLOW, float(number))).request_id for number in range(50)]
    held.result()
    assert outputs(slow_stage.stored(SLOW, ids[-1])) == [{"out": 98.0}]
    slow_stage.drained(SLOW)


def test_bulk_holds_up_an_interactive_request_for_one_predict_call_at_most(
    slow_stage: Stage, slow_gateway: GatewayProcess
) -> None:
    """One read of the bulk lane may be many calls, since an entry holds any number of rows."""
    keys = slow_stage.keys.model(LARGE)
    for _ in range(3 * BATCH_ROWS):
        slow_stage.push(LARGE, {"rows": [[7.0]] * 100})

    def held() -> int:
        found: Any = slow_stage.redis.xpending(keys.bulk, GROUP)
        return int(found["pending"])

    eventually(lambda: held() >= BATCH_ROWS - 1)
    assert outputs(slow_gateway.predict(ask(LARGE, 5.0, request_id="between"))) == [{"out": 10.0}]
    assert slow_stage.redis.xlen(keys.bulk) > 0
    slow_stage.drained(LARGE)
    ends: Any = slow_stage.redis.xrange(keys.events)
    order = [(_ms(entry_id), wire.EventBatch.FromString(fields[b"pb"]).events[0]) for entry_id, fields in ends]
    [place] = [place for place, (_, event) in enumerate(order) if event.entry.request_id == "between"]
    appended_ms = _ms(order[place][1].entry_id.encode())
    # The call that was under way, and one more where the worker had looked just before.
    assert sum(ended_ms > appended_ms for ended_ms, _ in order[:place]) <= 2


def _ms(entry_id: bytes) -> int:
    return int(entry_id.partition(b"-")[0])


class Asked(NamedTuple):
    """How one call of a load ended, and after how long."""

    ended: str
    seconds: float


async def _load(address: str, rate: float, seconds: float, deadline_s: float) -> list[Asked]:
    """Calls that come at a steady rate, whether the ones before were answered or not."""
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = v1_grpc.PredictorStub(channel)

        async def one(number: int) -> Asked:
            began = time.perf_counter()
            ended = "OK"
            try:
                await stub.Predict(ask(SLOW, float(number)), timeout=deadline_s)
            except grpc.aio.AioRpcError as error:
                ended = failure(error).reason or error.code().name
            return Asked(ended, time.perf_counter() - began)

        tasks = []
        start = time.perf_counter()
        for number in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + number / rate - time.perf_counter()))
            tasks.append(asyncio.create_task(one(number)))
        return list(await asyncio.gather(*tasks))


def test_at_five_times_its_capacity_the_pool_goes_on_answering_and_refuses_the_rest_at_once(
    slow_stage: Stage, slow_gateway: GatewayProcess
) -> None:
    measured(slow_stage, slow_gateway)
    # A little less than it can do, whatever else this machine does meanwhile.
    before = Counter(each.ended for each in asyncio.run(_load(slow_gateway.address, 0.8 * RATE, 1.5, 1.0)))
    asked = asyncio.run(_load(slow_gateway.address, 5 * RATE, 4.0, 1.0))
    slow_stage.drained(SLOW)
    ended = Counter(each.ended for each in asked)
    assert set(ended) <= {"OK", "QUEUE_FULL", "DEADLINE_PASSED", "DEADLINE_EXCEEDED"}
    # Without admission nearly all would be let in, and after the first second nearly none be answered in time.
    assert ended["OK"] >= 2 / 3 * (len(asked) - ended["QUEUE_FULL"]), ended
    assert ended["OK"] / 4.0 >= 0.8 * before["OK"] / 1.5, (before, ended)
    assert ended["QUEUE_FULL"] >= 0.5 * len(asked), ended
    answers = statistics.median(each.seconds for each in asked if each.ended == "OK")
    refusals = statistics.median(each.seconds for each in asked if each.ended == "QUEUE_FULL")
    assert refusals < answers / 2


def test_a_log_that_is_far_behind_closes_the_door_until_it_has_caught_up(slow_stage: Stage) -> None:
    keys = slow_stage.keys.model(ODD)
    # Nobody sinks events here: the backlog is what the tests before left, and a few.
    backlog = sum(int(slow_stage.redis.xlen(slow_stage.keys.model(each).events)) for each in (ODD, SLOW, LARGE))
    gateway = slow_stage.gateway(ODD, max_event_backlog=backlog + 3)

    def predicted() -> str:
        try:
            gateway.predict(ask(ODD, 1.0))
        except grpc.RpcError as error:
            return failure(error).reason
        return "OK"

    assert predicted() == "OK"
    eventually(lambda: predicted() == "EVENTS_BACKLOG", within=10)
    assert refused(gateway.start_predict(ask(ODD, 1.0))) == BEHIND
    assert refused(gateway.stub.Submit.future(ask(ODD, 1.0))) == BEHIND
    assert gateway.log.read_text().count("the event log is far behind") == 1
    slow_stage.redis.xtrim(keys.events, maxlen=0, approximate=False)
    eventually(lambda: predicted() == "OK", within=10)
    gateway.stop()


def test_a_log_that_is_far_behind_is_only_said_where_the_policy_is_to_warn(slow_stage: Stage) -> None:
    gateway = slow_stage.gateway(ODD, max_event_backlog=1, event_backlog_policy="warn")
    for number in range(3):
        gateway.predict(ask(ODD, float(number)))
    eventually(lambda: "the event log is far behind" in gateway.log.read_text(), within=10)
    assert outputs(gateway.predict(ask(ODD, 4.0))) == [{"out": 8.0}]
    gateway.stop()


def test_the_bound_is_of_the_pool_and_not_of_one_gateway(slow_stage: Stage, slow_gateway: GatewayProcess) -> None:
    """Both see the same counter, within the step that appends."""
    measured(slow_stage, slow_gateway)
    other = slow_stage.gateway(SLOW)
    held = slow_gateway.start_predict(many(SLOW, 60))
    eventually(lambda: slow_stage.waiting(SLOW) == 1)
    eventually(lambda: refused(other.start_predict(ask(SLOW, 1.0), timeout=0.2)) == FULL)
    held.result()
    slow_stage.drained(SLOW)
    other.stop()


def test_a_worker_that_begins_with_a_backlog_knows_how_fast_it_is(
    valkey: RedisServer, prefix: str, tmp_path: Path
) -> None:
    """The time before its first batch is none that the batch took; or nobody would be let in any more."""
    with Stage(tmp_path, valkey.url, prefix) as stage:
        stage.publish_odd()
        for number in range(300):
            stage.push(ODD, {"inputs": [float(number)]})
        began = time.monotonic()
        stage.worker()
        stage.drained(ODD)
        seconds = time.monotonic() - began

        def rate() -> float:
            return sum(p.rows_per_s.get(ODD, 0.0) for p in living(stage.redis, stage.keys, "worker"))

        assert eventually(rate) > 0.5 * 300 / seconds
