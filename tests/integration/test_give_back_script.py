"""Giving back: an attempt alone that its process has outlived is no crash of the entry."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from redis.exceptions import ResponseError

from contract.completion import BULK
from tests.lanes import ModelLanes
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


def test_the_name_and_the_lone_attempt_go_and_the_lease_stays(lanes: ModelLanes) -> None:
    (entry_id,) = abandoned(lanes, "r1")
    lanes.retry("w2")
    assert lanes.give_back("w2") == 1
    assert lanes.client.exists(lanes.keys.lone, lanes.keys.crashes) == 0
    assert lanes.held() == {entry_id.decode(): "w2"}
    assert lanes.retry("w3") is None
    lanes.abandon(entry_id, consumer="w2")
    assert lanes.retry("w3")[2] == 0


def test_a_second_time_changes_nothing(lanes: ModelLanes) -> None:
    """As where the answer to the first was lost."""
    (entry_id,) = abandoned(lanes, "r1")
    lanes.retry("w2")
    lanes.give_back("w2")
    lanes.abandon(entry_id, consumer="w2")
    lanes.retry("w3")
    before = lanes.snapshot()
    assert lanes.give_back("w2") == 0
    assert lanes.snapshot() == before


def test_those_who_died_over_it_still_count(lanes: ModelLanes) -> None:
    (entry_id,) = abandoned(lanes, "r1")
    lanes.retry("w2")
    lanes.hand_over("w2")
    lanes.retry("w3")
    assert lanes.give_back("w3") == 1
    assert lanes.tried(entry_id) == ["w2"]


def test_who_lost_the_entry_meanwhile_takes_only_its_own_name_away(lanes: ModelLanes) -> None:
    """It slept for longer than its lease; the attempt that another one makes goes on, alone."""
    (entry_id,) = abandoned(lanes, "r1")
    lanes.retry("w2")
    lanes.abandon(entry_id, consumer="w2")
    lanes.client.delete(lanes.keys.lone)  # its time is over as well
    lanes.retry("w3")
    assert lanes.give_back("w2") == 1
    assert lanes.tried(entry_id) == ["w3"]
    assert lanes.client.get(lanes.keys.lone) == entry_id


def test_a_name_that_another_begins_or_ends_with_is_not_its_own(lanes: ModelLanes) -> None:
    lanes.client.hset(lanes.keys.crashes, mapping={"1-0": "w22 2w w-2", "bulk 1-0": "a w2 b"})
    assert lanes.give_back("w2") == 1
    assert lanes.client.hgetall(lanes.keys.crashes) == {b"1-0": b"w22 2w w-2", b"bulk 1-0": b"a b"}


def test_the_bulk_lane_is_no_different(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("b1", lane=BULK)
    lanes.read("w1", lane=BULK)
    lanes.abandon(entry_id, lane=BULK)
    lanes.retry("w2", lane=BULK)
    assert lanes.give_back("w2") == 1
    assert lanes.client.exists(lanes.keys.lone, lanes.keys.crashes) == 0


@pytest.mark.parametrize("name", ["crashes", "lone"])
def test_a_key_of_the_wrong_type_stops_it_before_anything_is_written(name: str, lanes: ModelLanes) -> None:
    abandoned(lanes, "r1")
    lanes.retry("w2")
    key = getattr(lanes.keys, name)
    lanes.client.delete(key)
    lanes.client.zadd(key, {"wrong": 1})
    before = lanes.snapshot()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        lanes.give_back("w2")
    assert lanes.snapshot() == before


def test_a_full_server_still_lets_a_worker_give_back(tmp_path: Path, prefix: str) -> None:
    with RedisServer(tmp_path, config={"appendonly": "no"}) as server, server.client() as client:
        lanes = ModelLanes(client, prefix)
        abandoned(lanes, "r1")
        lanes.retry("w2")
        client.config_set("maxmemory", "1")
        assert lanes.give_back("w2") == 1
