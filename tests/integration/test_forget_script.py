"""Forgetting: consumers that hold nothing and are silent are removed, and never an entry with them."""

from __future__ import annotations

import pytest
import redis

from contract.keys import GROUP
from tests.conditions import eventually
from tests.lanes import ModelLanes, finish

pytestmark = pytest.mark.integration

LONG_MS = 60_000


@pytest.fixture
def lanes(redis_client: redis.Redis, prefix: str) -> ModelLanes:
    return ModelLanes(redis_client, prefix)


def test_who_holds_nothing_is_removed_once_it_was_silent_for_so_long(lanes: ModelLanes) -> None:
    lanes.read("idle")
    assert lanes.forget(LONG_MS) == 0
    assert lanes.consumers() == {"idle"}
    assert eventually(lambda: lanes.forget(5)) == 1
    assert lanes.consumers() == set()


def test_what_a_dead_one_holds_keeps_it_until_it_was_taken_over(lanes: ModelLanes) -> None:
    """Deleting a consumer throws its entries away."""
    (entry_id,) = lanes.append("r1")
    lanes.read("dead")
    assert lanes.forget(0) == 0
    assert lanes.held() == {entry_id.decode(): "dead"}
    lanes.abandon(entry_id, consumer="dead")
    lanes.retry("w2")
    assert lanes.forget(0) == 1
    assert lanes.consumers() == {"w2"}
    assert lanes.leave(finish(entry_id, "r1")) == [1]


def test_after_twenty_deaths_no_name_is_left_behind(lanes: ModelLanes) -> None:
    """Each died over one entry, on a machine that was lost with it: nobody handed anything over."""
    for number in range(20):
        (entry_id,) = lanes.append(f"r{number}")
        lanes.read(f"dead-{number}", count=1)
        lanes.abandon(entry_id, consumer=f"dead-{number}")
    assert len(lanes.consumers()) == 20
    for number in range(20):
        entry_id = lanes.retry("w")[0]
        assert lanes.leave(finish(entry_id, f"r{number}")) == [1]
    assert lanes.forget(0) == 21
    assert lanes.consumers() == set()
    assert len(lanes.events()) == 20


def test_who_was_forgotten_reads_on_under_its_name(lanes: ModelLanes) -> None:
    lanes.read("w1")
    lanes.forget(0)
    ids = lanes.append("r1")
    assert lanes.read("w1") == ids
    assert lanes.consumers() == {"w1"}


def test_there_is_nobody_to_forget_without_a_group_or_a_stream(lanes: ModelLanes) -> None:
    lanes.client.xgroup_destroy(lanes.keys.requests, GROUP)
    assert lanes.forget(0) == 0
    lanes.client.delete(lanes.keys.requests)
    assert lanes.forget(0) == 0
