"""The entrance of a process: a turn of the event loop is one call, and every request gets exactly one answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from contract.completion import BULK, INTERACTIVE, pending_state
from contract.errors import Reason, Refused
from contract.keys import Keys
from contract.line import AsyncLine
from contract.overload import Bound
from contract.settings import Settings
from ingest.entrance import MOST_IN_FLIGHT, MOST_ITEMS, Answer, Entrance, Seen
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually_async
from tests.lanes import BODY, OTHER_BODY, ModelLanes, entry, finish
from tests.servers import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

STATE, OTHER = pending_state(BODY, INTERACTIVE), pending_state(OTHER_BODY, INTERACTIVE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A server of its own, which the tests count commands on, freeze and kill."""
    with RedisServer(tmp_path_factory.mktemp("entrance"), config={"appendonly": "no"}) as running:
        yield running


@dataclass
class Sent:
    """A request on its way in, and who is told what became of it."""

    payload: bytes
    rows: int
    state: bytes
    request_id: str
    bound: Bound | None
    answered: Callable[[Answer], None]


class House:
    """An entrance with its line, and what it wrote."""

    def __init__(self, server: RedisServer, client: redis.Redis, prefix: str, **settings: Any) -> None:
        self.server = server
        self.client = client
        self.prefix = prefix
        self.lanes = ModelLanes(client, prefix)
        self.line = AsyncLine(server.url)
        self.entrance = Entrance(self.line, Keys(prefix), Settings.read(prefix=prefix, **settings))

    def send(
        self,
        request_id: str,
        *,
        model_id: str = "churn",
        lane: wire.Lane = INTERACTIVE,
        rows: int = 1,
        state: bytes = b"",
        bound: Bound | None = None,
    ) -> asyncio.Future[Answer]:
        """One request; a second answer to it raises where it is given."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.entrance.append(model_id, lane, Sent(entry(request_id), rows, state, request_id, bound, answer.set_result))
        return answer

    def calls(self) -> int:
        """How many scripts the server ran."""
        stats: Any = self.client.info("commandstats")
        return sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in ("evalsha", "eval"))


@pytest.fixture
async def house(server: RedisServer, prefix: str) -> AsyncIterator[House]:
    if not server.running:
        server.start()
    with server.client() as client:
        client.flushall()
        found = House(server, client, prefix, max_waiting_rows=1_000_000)
        keeper = asyncio.create_task(found.line.keep())
        await eventually_async(lambda: _true(found.line.open))
        yield found
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper


async def _true(value: bool) -> bool:
    return value


def refusal(answer: Answer) -> Refused:
    assert isinstance(answer, Refused)
    return answer


def appended(answer: Answer) -> bytes:
    assert isinstance(answer, bytes)
    return answer


async def answered(*answers: asyncio.Future[Answer]) -> list[Answer]:
    async with asyncio.timeout(20):
        return list(await asyncio.gather(*answers))


async def test_a_request_is_appended_and_told_its_entry(house: House) -> None:
    (answer,) = await answered(house.send("r1", rows=3))
    stored: Any = house.client.xrange(house.lanes.keys.requests)
    assert stored == [(appended(answer), {b"pb": entry("r1")})]
    assert house.lanes.rows() == 3


async def test_a_turns_requests_go_in_one_call_in_order_and_each_is_told_its_own(house: House) -> None:
    await answered(house.send("warm"))
    before = house.calls()
    answers = await answered(*[house.send(f"r{number}") for number in range(100)])
    assert house.calls() == before + 1
    stored: Any = house.client.xrange(house.lanes.keys.requests)
    ids = {fields[b"pb"]: entry_id for entry_id, fields in stored}
    assert [appended(each) for each in answers] == [ids[entry(f"r{number}")] for number in range(100)]


async def test_models_and_lanes_go_in_calls_of_their_own(house: House) -> None:
    await answered(house.send("warm"))
    before = house.calls()
    answers = await answered(
        house.send("r1"),
        house.send("r2", lane=BULK),
        house.send("r3", model_id="credit_risk"),
        house.send("r4"),
        house.send("r5", lane=BULK, state=pending_state(BODY, BULK)),
    )
    assert all(isinstance(each, bytes) for each in answers)
    assert house.calls() == before + 3
    keys = Keys(house.prefix)
    lengths = [
        house.client.xlen(name)
        for name in (keys.model("churn").requests, keys.model("churn").bulk, keys.model("credit_risk").requests)
    ]
    assert lengths == [3, 2, 1]


async def test_more_than_512_take_several_calls_and_keep_their_order(house: House) -> None:
    count = 3 * MOST_ITEMS + 10
    before = house.calls()
    answers = await answered(*[house.send(f"r{number}") for number in range(count)])
    assert house.calls() >= before + 4
    stored: Any = house.client.xrange(house.lanes.keys.requests)
    names = [wire.Entry.FromString(fields[b"pb"]).request_id for _, fields in stored]
    assert sorted(names) == sorted(f"r{number}" for number in range(count))
    assert {appended(each) for each in answers} == {entry_id for entry_id, _ in stored}
    assert house.lanes.counts() == {"accepted": count}


async def test_what_comes_while_calls_are_under_way_gathers(house: House) -> None:
    """So batches grow exactly when there is more to do."""
    await answered(house.send("warm"))
    before = house.calls()
    house.server.pause()
    try:
        waiting = []
        for turn in range(10):
            waiting += [house.send(f"r{turn}-{number}") for number in range(5)]
            await asyncio.sleep(0)
            await asyncio.sleep(0)
    finally:
        house.server.resume()
    answers = await answered(*waiting)
    assert all(isinstance(each, bytes) for each in answers)
    assert house.calls() <= before + MOST_IN_FLIGHT + 1


async def test_the_same_request_again_gets_the_first_ones_state(house: House) -> None:
    first, second = await answered(house.send("r1", state=STATE), house.send("r1", state=STATE))
    entry_id = appended(first)
    assert second == Seen(wire.ReplyState(body_sha256=BODY, entry_id=entry_id.decode()))
    house.lanes.read()
    house.lanes.leave(finish(entry_id, "r1"))
    (third,) = await answered(house.send("r1", state=STATE))
    assert isinstance(third, Seen)
    assert third.state.response
    assert house.client.xlen(house.lanes.keys.requests) == 0


async def test_another_request_under_the_id_is_refused(house: House) -> None:
    _, other = await answered(house.send("r1", state=STATE), house.send("r1", state=OTHER))
    assert refusal(other).reason is Reason.REQUEST_ID_REUSED


async def test_ids_of_callers_among_ids_of_the_gateway_keep_their_keys(house: House) -> None:
    await answered(house.send("g1"), house.send("r1", state=STATE), house.send("g2"), house.send("r2", state=OTHER))
    one, other = house.lanes.state("r1"), house.lanes.state("r2")
    assert one is not None
    assert other is not None
    assert (one.body_sha256, other.body_sha256) == (BODY, OTHER_BODY)


async def test_too_many_waiting_rows_are_refused_with_a_time_to_come_back(house: House) -> None:
    bound = Bound(10, 0.001)
    answers = await answered(*[house.send(f"r{number}", rows=5, bound=bound) for number in range(4)])
    assert [isinstance(each, bytes) for each in answers] == [True, True, False, False]
    refused = refusal(answers[2])
    assert refused.reason is Reason.QUEUE_FULL
    assert refused.retry_after_s is not None
    assert refused.message.startswith("10 rows are waiting for this model, the bound for this request is 10")


async def test_without_a_bound_of_its_own_the_setting_counts(server: RedisServer, house: House) -> None:
    house.entrance = Entrance(house.line, Keys(house.prefix), Settings.read(prefix=house.prefix, max_waiting_rows=5))
    answers = await answered(*[house.send(f"r{number}", rows=3) for number in range(2)])
    assert refusal(answers[1]).reason is Reason.QUEUE_FULL


async def test_a_full_store_is_refused_without_asking_it(house: House) -> None:
    await answered(house.send("warm"))
    before = house.calls()
    house.entrance.store_full = True
    answers = await answered(*[house.send(f"r{number}") for number in range(3)])
    assert {refusal(each).reason for each in answers} == {Reason.STORE_FULL}
    assert house.calls() == before
    house.entrance.store_full = False
    assert all(isinstance(each, bytes) for each in await answered(house.send("after")))


async def test_a_store_that_says_it_is_full_is_believed(house: House) -> None:
    await answered(house.send("warm"))
    house.client.config_set("maxmemory", "1")
    try:
        answers = await answered(house.send("r1"), house.send("r2", state=STATE))
    finally:
        house.client.config_set("maxmemory", "1gb")
    assert {refusal(each).reason for each in answers} == {Reason.STORE_FULL}
    assert all(refusal(each).retry_after_s for each in answers)
    assert house.lanes.counts() == {"accepted": 1}
    assert isinstance((await answered(house.send("r2", state=STATE)))[0], bytes)


async def test_every_caller_gets_a_refusal_of_its_own(house: House) -> None:
    """One that is raised by many holds on to the frames of all of them."""
    house.entrance.store_full = True
    full = await answered(*[house.send(f"a{number}") for number in range(3)])
    full += await answered(house.send("a4"))
    house.entrance.store_full = False
    house.client.config_set("maxmemory", "1")
    try:
        full += await answered(*[house.send(f"b{number}") for number in range(3)])
    finally:
        house.client.config_set("maxmemory", "1gb")
    assert len({id(each) for each in full}) == len(full)


async def test_a_key_of_the_wrong_type_refuses_that_model_alone_and_tells_nothing_of_it(house: House) -> None:
    house.client.delete(house.lanes.keys.requests)
    house.client.rpush(house.lanes.keys.requests, "a list")
    broken, well = await answered(house.send("r1"), house.send("r2", model_id="credit_risk"))
    assert refusal(broken).reason is Reason.INTERNAL
    assert "WRONGTYPE" not in refusal(broken).message
    assert isinstance(well, bytes)


async def test_a_reply_key_that_holds_nonsense_ends_in_an_answer_and_the_entrance_goes_on(house: House) -> None:
    house.client.set(house.lanes.keys.reply("r1"), STATE[:34] + b"\xff\xff\xff")
    for _ in range(MOST_IN_FLIGHT + 1):
        (answer,) = await answered(house.send("r1", state=STATE))
        assert refusal(answer).reason is Reason.INTERNAL
    assert isinstance((await answered(house.send("r2")))[0], bytes)


async def test_scripts_that_the_server_forgot_are_sent_again(house: House) -> None:
    await answered(house.send("r1"))
    house.client.script_flush()
    answers = await answered(*[house.send(f"r{number}", state=STATE) for number in range(2, 5)])
    assert all(isinstance(each, bytes) for each in answers)


async def test_a_server_that_dies_in_the_middle_answers_everybody_and_is_found_again(house: House) -> None:
    await answered(house.send("warm"))
    house.server.pause()
    waiting = [house.send(f"r{number}") for number in range(3 * MOST_ITEMS)]
    await asyncio.sleep(0)
    house.server.kill()
    answers = await answered(*waiting)
    assert {refusal(each).reason for each in answers} == {Reason.STORE_UNAVAILABLE}
    assert all(refusal(each).retry_after_s for each in answers)
    assert refusal((await answered(house.send("while away")))[0]).reason is Reason.STORE_UNAVAILABLE
    house.server.start()

    async def back() -> bool:
        return isinstance((await answered(house.send("back")))[0], bytes)

    await eventually_async(back, within=20)


async def test_draining_waits_for_every_answer(house: House) -> None:
    answers = [house.send(f"r{number}") for number in range(2 * MOST_ITEMS)]
    async with asyncio.timeout(20):
        await house.entrance.drain()
    assert all(each.done() for each in answers)
    assert house.lanes.counts() == {"accepted": 2 * MOST_ITEMS}


async def test_draining_an_idle_entrance_is_nothing(house: House) -> None:
    async with asyncio.timeout(20):
        await house.entrance.drain()


async def test_a_replica_that_takes_no_writes_is_unavailable(tmp_path: Path, prefix: str) -> None:
    with RedisServer(tmp_path, config={"appendonly": "no"}) as replica, replica.client() as client:
        house = House(replica, client, prefix)
        keeper = asyncio.create_task(house.line.keep())
        await eventually_async(lambda: _true(house.line.open))
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        (answer,) = await answered(house.send("r1"))
        assert refusal(answer).reason is Reason.STORE_UNAVAILABLE
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper
