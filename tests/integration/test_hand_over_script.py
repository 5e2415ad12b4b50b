"""Handing over: what a dead worker held goes back to the pool at once, and the worker is forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from redis.exceptions import ResponseError

from contract.keys import GROUP, ORPHANS
from tests.lanes import ModelLanes, finish
from tests.servers import RedisServer

pytestmark = pytest.mark.integration


@pytest.fixture
def lanes(redis_client: redis.Redis, prefix: str) -> ModelLanes:
    return ModelLanes(redis_client, prefix)


def test_what_a_dead_worker_held_can_be_claimed_at_once(lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2")
    lanes.read("dead")
    assert lanes.retry("w2") is None
    assert lanes.hand_over("dead") == 2
    assert lanes.held() == {each.decode(): ORPHANS for each in ids}
    assert lanes.retry("w2")[0] == ids[0]


def test_a_hand_over_is_no_delivery(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read("dead")
    lanes.hand_over("dead")
    assert lanes.deliveries() == {entry_id.decode(): 1}


def test_what_others_hold_and_what_nobody_read_stays(lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2", "r3")
    lanes.read("dead", count=1)
    lanes.read("living", count=1)
    assert lanes.hand_over("dead") == 1
    assert lanes.held() == {ids[0].decode(): ORPHANS, ids[1].decode(): "living"}
    assert lanes.read("living") == [ids[2]]


def test_the_dead_consumer_is_removed_once_it_holds_nothing(lanes: ModelLanes) -> None:
    lanes.append("r1")
    lanes.read("dead")
    lanes.read("living")
    lanes.hand_over("dead")
    assert lanes.consumers() == {"living", ORPHANS}


def test_a_consumer_that_holds_nothing_is_just_removed(lanes: ModelLanes) -> None:
    lanes.append("r1")
    (entry_id,) = lanes.read("done")
    lanes.leave(finish(entry_id, "r1"))
    assert lanes.hand_over("done") == 0
    assert lanes.consumers() == set()


def test_more_than_asked_for_takes_several_calls_and_loses_nothing(lanes: ModelLanes) -> None:
    ids = lanes.append(*[f"r{number}" for number in range(7)])
    lanes.read("dead")
    assert lanes.hand_over("dead", most=3) == 3
    assert "dead" in lanes.consumers()
    assert lanes.hand_over("dead", most=3) == 3
    assert lanes.hand_over("dead", most=3) == 1
    assert lanes.held() == {each.decode(): ORPHANS for each in ids}
    assert lanes.consumers() == {ORPHANS}


def test_as_many_as_asked_for_exactly_needs_one_call_more(lanes: ModelLanes) -> None:
    lanes.append("r1", "r2")
    lanes.read("dead")
    assert [lanes.hand_over("dead", most=2), lanes.hand_over("dead", most=2)] == [2, 0]
    assert lanes.consumers() == {ORPHANS}


def test_its_lone_attempt_ends_so_that_the_next_may_begin(lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2")
    lanes.read("w1")
    lanes.abandon(*ids)
    assert lanes.retry("dead")[0] == ids[0]
    assert lanes.retry("w2") is None
    lanes.hand_over("dead")
    again = lanes.retry("w2")
    assert (again[0], again[2]) == (ids[0], 1)


def test_the_lone_attempt_of_another_goes_on(lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2")
    lanes.read("dead")
    lanes.abandon(ids[0], consumer="dead")
    lanes.retry("living")
    assert lanes.hand_over("dead") == 1
    assert lanes.client.get(lanes.keys.lone) == ids[0]


def test_an_entry_that_was_deleted_does_not_keep_the_consumer(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read("dead")
    lanes.client.xdel(lanes.keys.requests, entry_id)
    lanes.hand_over("dead")
    assert lanes.consumers() <= {ORPHANS}
    assert lanes.held() == {}


def test_without_a_group_there_is_nothing_to_hand_over(lanes: ModelLanes) -> None:
    lanes.client.xgroup_destroy(lanes.keys.requests, GROUP)
    assert lanes.hand_over("dead") == 0


def test_a_consumer_that_never_was_is_none(lanes: ModelLanes) -> None:
    assert lanes.hand_over("never") == 0
    assert lanes.consumers() == set()


def test_a_lone_key_of_the_wrong_type_stops_it_before_anything_is_written(lanes: ModelLanes) -> None:
    lanes.append("r1")
    lanes.read("dead")
    lanes.client.zadd(lanes.keys.lone, {"wrong": 1})
    before = lanes.snapshot()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        lanes.hand_over("dead")
    assert lanes.snapshot() == before


def test_a_full_server_still_takes_back_what_a_dead_worker_held(tmp_path: Path, prefix: str) -> None:
    with RedisServer(tmp_path, config={"appendonly": "no"}) as server, server.client() as client:
        lanes = ModelLanes(client, prefix)
        lanes.append("r1")
        lanes.read("dead")
        client.config_set("maxmemory", "1")
        assert lanes.hand_over("dead") == 1
