"""Retrying: the oldest abandoned entry, alone, and one in the pool at a time."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from redis.exceptions import ResponseError

from contract.completion import BULK, INTERACTIVE
from contract.keys import GROUP
from tests.conditions import eventually
from tests.lanes import LEASE_MS, ModelLanes, entry, finish
from tests.servers import RedisServer

pytestmark = pytest.mark.integration


@pytest.fixture
def lanes(redis_client: redis.Redis, prefix: str) -> ModelLanes:
    return ModelLanes(redis_client, prefix)


def abandoned(lanes: ModelLanes, *request_ids: str) -> list[bytes]:
    ids = lanes.append(*request_ids)
    lanes.read("w1")
    lanes.abandon(*ids)
    return ids


def test_an_abandoned_entry_is_taken_with_its_fields_and_counts(lanes: ModelLanes) -> None:
    (entry_id,) = abandoned(lanes, "r1")
    assert lanes.retry("w2") == [entry_id, [b"pb", entry("r1")], 0, 2]
    assert lanes.held() == {entry_id.decode(): "w2"}
    assert lanes.deliveries() == {entry_id.decode(): 2}
    assert lanes.client.hgetall(lanes.keys.crashes) == {entry_id: b"w2"}
    assert lanes.client.get(lanes.keys.lone) == entry_id
    assert 0 < int(lanes.client.pttl(lanes.keys.lone)) <= LEASE_MS


def test_nothing_is_taken_where_nothing_was_abandoned(lanes: ModelLanes) -> None:
    lanes.append("unread", "held")
    lanes.read("w1", count=1)
    before = lanes.snapshot()
    assert lanes.retry() is None
    assert lanes.snapshot() == before


def test_there_is_nothing_to_take_without_a_group_or_a_stream(lanes: ModelLanes) -> None:
    lanes.client.xgroup_destroy(lanes.keys.requests, GROUP)
    assert lanes.retry() is None
    lanes.client.delete(lanes.keys.requests)
    assert lanes.retry() is None


def test_the_oldest_goes_first(lanes: ModelLanes) -> None:
    ids = abandoned(lanes, "r1", "r2", "r3")
    order = []
    for name in ("r1", "r2", "r3"):
        entry_id = lanes.retry()[0]
        order.append(entry_id)
        lanes.leave(finish(entry_id, name))
    assert order == ids
    assert lanes.retry() is None


def test_a_lease_that_has_not_run_out_is_respected_behind_one_that_has(lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2")
    lanes.read("w1")
    lanes.abandon(ids[1])
    assert lanes.retry()[0] == ids[1]


def test_one_lone_attempt_at_a_time_in_the_pool(lanes: ModelLanes) -> None:
    first, second = abandoned(lanes, "r1", "r2")
    assert lanes.retry("w2")[0] == first
    assert lanes.retry("w3") is None
    lanes.leave(finish(first, "r1"))
    assert lanes.retry("w3")[0] == second


def test_the_lone_attempt_ends_with_its_lease(lanes: ModelLanes) -> None:
    """Whoever made it is gone with its machine: nobody handed the entry over."""
    (entry_id,) = abandoned(lanes, "r1")
    assert lanes.retry("w2", lease_ms=20)[0] == entry_id
    assert eventually(lambda: lanes.retry("w3", lease_ms=20))[:1] == [entry_id]
    assert lanes.tried(entry_id) == ["w2", "w3"]


def test_the_crash_count_goes_up_before_each_attempt_and_stops_at_the_limit(lanes: ModelLanes) -> None:
    (entry_id,) = abandoned(lanes, "r1")
    seen = []
    for attempt in range(4):
        answer = lanes.retry(f"w{attempt}", most=2)
        seen.append((answer[2], answer[3]))
        lanes.hand_over(f"w{attempt}")
    # The third and fourth attempts are told to try no more: two ended in a dead process.
    assert seen == [(0, 2), (1, 3), (2, 4), (2, 5)]
    assert lanes.tried(entry_id) == ["w0", "w1"]


def test_who_tries_again_is_evidently_alive_and_its_attempt_before_no_crash(lanes: ModelLanes) -> None:
    """Its answer was lost with the connection, so it never knew of it."""
    (entry_id,) = abandoned(lanes, "r1")
    for _ in range(3):
        assert lanes.retry("w2", lease_ms=1)[2] == 0
        lanes.abandon(entry_id, consumer="w2")
        lanes.client.delete(lanes.keys.lone)
    assert lanes.tried(entry_id) == ["w2"]


def test_an_entry_that_was_deleted_is_dropped_and_does_not_block_the_next(lanes: ModelLanes) -> None:
    first, second = abandoned(lanes, "r1", "r2")
    lanes.client.xdel(lanes.keys.requests, first)
    assert lanes.retry() == [first]
    assert lanes.client.exists(lanes.keys.lone, lanes.keys.crashes) == 0
    assert lanes.retry()[0] == second


def test_one_id_in_both_lanes_is_two_entries(lanes: ModelLanes) -> None:
    for stream in (lanes.keys.requests, lanes.keys.bulk):
        lanes.client.xadd(stream, {"pb": b""}, id="5-0")
    for lane in (INTERACTIVE, BULK):
        lanes.read("w1", lane=lane)
        lanes.abandon(b"5-0", lane=lane)
    assert lanes.retry("w2")[2] == 0
    # The lone attempt is the other lane's: this one neither ends nor prolongs it.
    lanes.client.pexpire(lanes.keys.lone, 20_000)
    lanes.renew("w1", b"5-0", lane=BULK)
    assert int(lanes.client.pttl(lanes.keys.lone)) <= 20_000
    lanes.leave(finish(b"5-0", "b1", lane=BULK))
    assert lanes.retry("w3") is None
    lanes.client.xadd(lanes.keys.bulk, {"pb": b""}, id="6-0")
    lanes.read("w4", lane=BULK)
    lanes.hand_over("w4", lane=BULK)
    assert lanes.client.exists(lanes.keys.lone, lanes.keys.crashes) == 2
    lanes.leave(finish(b"5-0", "r1"))
    assert lanes.client.exists(lanes.keys.lone, lanes.keys.crashes) == 0


def test_crashes_of_the_bulk_lane_are_counted_and_told_like_the_others(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("b1", lane=BULK)
    lanes.read("w1", lane=BULK)
    lanes.abandon(entry_id, lane=BULK)
    assert lanes.retry("w2", lane=BULK)[2] == 0
    lanes.hand_over("w2", lane=BULK)
    assert lanes.retry("w3", lane=BULK)[2] == 1
    lanes.leave(finish(entry_id, "b1", lane=BULK, dead=b"MODEL_CRASHED"))
    (letter,) = lanes.dead()
    assert letter[b"crashes"] == b"2"
    assert lanes.client.exists(lanes.keys.lone, lanes.keys.crashes) == 0


def test_the_bulk_lane_shares_the_one_attempt(lanes: ModelLanes) -> None:
    abandoned(lanes, "r1")
    (bulk,) = lanes.append("b1", lane=BULK)
    lanes.read("w1", lane=BULK)
    lanes.abandon(bulk, lane=BULK)
    assert lanes.retry("w2", lane=BULK)[0] == bulk
    assert lanes.retry("w3") is None


@pytest.mark.parametrize("name", ["requests", "crashes"])
def test_a_key_of_the_wrong_type_stops_it_before_anything_is_written(name: str, lanes: ModelLanes) -> None:
    abandoned(lanes, "r1")
    key = getattr(lanes.keys, name)
    lanes.client.delete(key)
    lanes.client.zadd(key, {"wrong": 1})
    before = lanes.snapshot()
    if name == "requests":
        assert lanes.retry() is None
    else:
        with pytest.raises(ResponseError, match="WRONGTYPE"):
            lanes.retry()
    assert lanes.snapshot() == before


def test_a_full_server_still_lets_a_worker_retry(tmp_path: Path, prefix: str) -> None:
    with RedisServer(tmp_path, config={"appendonly": "no"}) as server, server.client() as client:
        lanes = ModelLanes(client, prefix)
        (entry_id,) = abandoned(lanes, "r1")
        client.config_set("maxmemory", "1")
        assert lanes.retry()[0] == entry_id
