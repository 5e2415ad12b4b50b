"""The feature store: one fetch for a turn's requests, a timeout of its own, never one caller's value for another's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import redis
import redis.asyncio

from contract.admission import Draft
from contract.connection import connect, connect_async
from contract.errors import StoreFailed
from contract.request import Request
from ingest.features import MOST_KEYS, FeatureStore, fetch_now, stored_now
from protos import millstream_wire_v1_pb2 as wire
from tests.records import USER, admission
from tests.servers import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

PATIENT_S = 10.0
"""No answer is this late."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A store of its own, which the tests freeze and kill."""
    with RedisServer(tmp_path_factory.mktemp("features"), config={"appendonly": "no"}) as running:
        yield running


@pytest.fixture
async def client(server: RedisServer) -> AsyncIterator[redis.asyncio.Redis]:
    if not server.running:
        server.start()
    found = connect_async(server.url)
    await found.flushall()
    yield found
    await found.aclose()


def draft(entity_id: str = "101", **features: int) -> Draft:
    answer = admission(entity=USER).draft(Request("churn", features=features, entity_id=entity_id))
    assert isinstance(answer, Draft)
    return answer


async def calls(client: redis.asyncio.Redis) -> int:
    """How many MGETs the server has seen."""
    stats: Any = await client.info("commandstats")
    return int(stats.get("cmdstat_mget", {}).get("calls", 0))


async def test_values_come_in_the_order_of_the_keys_and_none_where_there_is_none(client: redis.asyncio.Redis) -> None:
    await client.mset({"user:101:age": b"25", "user:101:name": b"\xff\x00", "user:101:empty": b""})
    await client.rpush("user:101:list", "a")
    store = FeatureStore(client, PATIENT_S)
    keys = ["user:101:name", "user:101:none", "user:101:age", "user:101:list", "user:101:empty", "user:101:age"]
    assert await store.fetch(keys) == [b"\xff\x00", None, b"25", None, b"", b"25"]


async def test_all_requests_of_a_turn_are_one_fetch_and_each_gets_its_own(client: redis.asyncio.Redis) -> None:
    await client.mset({f"user:{number}:age": str(number) for number in range(100)})
    store = FeatureStore(client, PATIENT_S)
    before = await calls(client)
    answers = await asyncio.gather(*[store.fetch([f"user:{number}:age", "none"]) for number in range(100)])
    assert answers == [[str(number).encode(), None] for number in range(100)]
    assert await calls(client) == before + 1


async def test_the_next_turn_is_another_fetch(client: redis.asyncio.Redis) -> None:
    store = FeatureStore(client, PATIENT_S)
    before = await calls(client)
    await store.fetch(["a"])
    await store.fetch(["b"])
    assert await calls(client) == before + 2


async def test_many_keys_are_fetched_in_parts_of_whole_requests(client: redis.asyncio.Redis) -> None:
    await client.set("last", "x")
    store = FeatureStore(client, PATIENT_S)
    before = await calls(client)
    sizes = [MOST_KEYS - 1, 2, MOST_KEYS + 5, 1, 1]
    answers = await asyncio.gather(*[store.fetch(["none"] * (size - 1) + ["last"]) for size in sizes])
    assert [len(answer) for answer in answers] == sizes
    assert all(answer[-1] == b"x" and not any(answer[:-1]) for answer in answers)
    assert await calls(client) == before + 4


async def test_a_caller_who_went_away_does_not_disturb_the_others(client: redis.asyncio.Redis) -> None:
    await client.mset({"a": "1", "b": "2", "c": "3"})
    store = FeatureStore(client, PATIENT_S)
    first, gone, last = (asyncio.create_task(store.fetch([name])) for name in "abc")
    await asyncio.sleep(0)
    gone.cancel()
    assert (await first, await last) == ([b"1"], [b"3"])
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_a_late_store_fails_after_its_timeout_and_later_answers_are_never_mixed_up(
    server: RedisServer, client: redis.asyncio.Redis
) -> None:
    """The late answer must not be taken for the one to the next question on the same connection."""
    await client.mset({"user:1:age": "1", "user:2:age": "2"})
    store = FeatureStore(client, 0.05)
    patient = FeatureStore(client, PATIENT_S)
    assert await patient.fetch(["user:1:age"]) == [b"1"]
    server.pause()
    try:
        late = await asyncio.gather(*[store.fetch(["user:1:age"]) for _ in range(3)], return_exceptions=True)
    finally:
        server.resume()
    assert [type(each) for each in late] == [StoreFailed] * 3
    assert str(late[0]) == "no answer within 50 ms"
    for _ in range(20):
        assert await patient.fetch(["user:2:age"]) == [b"2"]


async def test_a_store_that_is_gone_fails_and_is_found_again_when_it_is_back(
    server: RedisServer, client: redis.asyncio.Redis
) -> None:
    store = FeatureStore(client, PATIENT_S)
    await client.set("a", "1")
    server.kill()
    with pytest.raises(StoreFailed, match="Error"):
        await store.fetch(["a"])
    server.start()
    await client.set("a", "2")
    assert await store.fetch(["a"]) == [b"2"]


async def test_a_store_with_another_password_fails_without_telling_it(server: RedisServer) -> None:
    client = connect_async(server.url + "&password=geheim&username=nobody")
    try:
        with pytest.raises(StoreFailed) as caught:
            await FeatureStore(client, PATIENT_S).fetch(["a"])
    finally:
        await client.aclose()
    assert "geheim" not in str(caught.value)


# ---------------------------------------------------------------- what a draft wants


async def test_a_draft_is_completed_from_what_is_stored_then_defaults(client: redis.asyncio.Redis) -> None:
    await client.mset({"user:101:age": "30"})
    wanting = draft()
    stored = await FeatureStore(client, PATIENT_S).stored(wanting)
    assert stored.values == {0: (b"30", wire.REDIS)}
    admitted = wanting.complete(stored.values, store_failed=stored.failed)
    assert list(admitted.hydrated) == [(0, wire.REDIS), (1, wire.DEFAULT)]
    assert not admitted.degraded


async def test_a_draft_of_a_store_that_failed_says_why(server: RedisServer, client: redis.asyncio.Redis) -> None:
    server.pause()
    try:
        stored = await FeatureStore(client, 0.02).stored(draft(age=25))
    finally:
        server.resume()
    assert (dict(stored.values), stored.failed) == ({}, "no answer within 20 ms")
    assert draft(age=25).complete(stored.values, store_failed=stored.failed).degraded


# ---------------------------------------------------------------- for threads


def test_a_thread_gets_the_same(server: RedisServer) -> None:
    with connect(server.url) as client:
        client.mset({"a": "1", "b": "2"})
        client.delete("list", "none")
        client.rpush("list", "x")
        assert fetch_now(client, ["b", "none", "list", "a"]) == [b"2", None, None, b"1"]
        assert fetch_now(client, []) == []
        many = fetch_now(client, ["none"] * (2 * MOST_KEYS) + ["a"])
        assert (len(many), many[-1]) == (2 * MOST_KEYS + 1, b"1")


def test_drafts_of_a_batch_are_filled_by_one_fetch(server: RedisServer) -> None:
    with connect(server.url) as client:
        client.mset({"user:1:age": "1", "user:1:clicks": "11", "user:2:age": "2"})
        client.delete("user:2:clicks")
        before: Any = client.info("commandstats")
        found = stored_now(client, None, [draft("1"), draft("2"), draft("1", age=9)])
        after: Any = client.info("commandstats")
        assert [dict(each.values) for each in found] == [
            {0: (b"1", wire.REDIS), 1: (b"11", wire.REDIS)},
            {0: (b"2", wire.REDIS)},
            {1: (b"11", wire.REDIS)},
        ]
        assert after["cmdstat_mget"]["calls"] == before.get("cmdstat_mget", {"calls": 0})["calls"] + 1


def test_a_thread_whose_store_is_gone_is_told(tmp_path_factory: pytest.TempPathFactory) -> None:
    with connect(f"unix://{tmp_path_factory.mktemp('none')}/redis.sock") as client:
        with pytest.raises(StoreFailed):
            fetch_now(client, ["a"])
        (stored,) = stored_now(client, None, [draft()])
        assert dict(stored.values) == {}
        assert stored.failed
