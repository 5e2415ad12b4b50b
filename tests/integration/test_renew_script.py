"""Renewing: a worker keeps what is still its own, and takes nothing back."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from contract.keys import GROUP
from tests.conditions import eventually
from tests.lanes import LEASE_MS, ModelLanes, finish
from tests.servers import RedisServer

pytestmark = pytest.mark.integration


@pytest.fixture
def lanes(redis_client: redis.Redis, prefix: str) -> ModelLanes:
    return ModelLanes(redis_client, prefix)


def test_a_renewed_lease_begins_anew_and_is_no_delivery(lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2")
    lanes.read("w1")
    lanes.abandon(*ids)
    assert lanes.renew("w1", *ids) == 2
    assert lanes.retry("w2") is None
    assert lanes.deliveries() == {each.decode(): 1 for each in ids}


def test_what_another_claimed_is_not_taken_back(lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2")
    lanes.read("w1")
    lanes.abandon(*ids)
    lanes.retry("w2")
    assert lanes.renew("w1", *ids) == 1
    assert lanes.held() == {ids[0].decode(): "w2", ids[1].decode(): "w1"}


def test_what_was_handed_over_is_not_taken_back(lanes: ModelLanes) -> None:
    """The supervisor thought a worker dead that was only stopped."""
    (entry_id,) = lanes.append("r1")
    lanes.read("w1")
    lanes.hand_over("w1")
    assert lanes.renew("w1", entry_id) == 0
    assert lanes.retry("w2")[0] == entry_id


def test_what_is_finished_is_nobodys(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read("w1")
    lanes.leave(finish(entry_id, "r1"))
    assert lanes.renew("w1", entry_id) == 0
    assert lanes.held() == {}


def test_an_entry_that_was_deleted_is_dropped(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read("w1")
    lanes.client.xdel(lanes.keys.requests, entry_id)
    lanes.renew("w1", entry_id)
    assert lanes.held() == {}


def test_the_lone_attempt_lives_as_long_as_its_lease(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read("w1")
    lanes.abandon(entry_id)
    lanes.retry("w2")
    lanes.client.pexpire(lanes.keys.lone, 20_000)
    lanes.renew("w2", entry_id)
    assert 20_000 < int(lanes.client.pttl(lanes.keys.lone)) <= LEASE_MS


def test_the_lone_attempt_of_another_is_not_prolonged(lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2")
    lanes.read("w1")
    lanes.abandon(ids[0])
    lanes.retry("w2")
    lanes.client.pexpire(lanes.keys.lone, 10)
    lanes.renew("w1", *ids)
    eventually(lambda: not lanes.client.exists(lanes.keys.lone))


def test_nothing_to_renew_is_nothing_renewed(lanes: ModelLanes) -> None:
    assert lanes.renew("w1") == 0


def test_without_a_group_nothing_is_a_workers_own(lanes: ModelLanes) -> None:
    """A server that was flushed: the other lanes of the same heartbeat must still be renewed."""
    (entry_id,) = lanes.append("r1")
    lanes.client.xgroup_destroy(lanes.keys.requests, GROUP)
    assert lanes.renew("w1", entry_id) == 0


def test_a_full_server_still_lets_a_worker_renew(tmp_path: Path, prefix: str) -> None:
    with RedisServer(tmp_path, config={"appendonly": "no"}) as server, server.client() as client:
        lanes = ModelLanes(client, prefix)
        ids = lanes.append("r1")
        lanes.read("w1")
        client.config_set("maxmemory", "1")
        assert lanes.renew("w1", *ids) == 1
