"""One reply and one event for each accepted request, in any order of anything: on a real server, with its scripts."""

from __future__ import annotations

import pytest
import redis
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from contract.completion import BULK, INTERACTIVE, Item, header
from contract.keys import GROUP
from protos import millstream_wire_v1_pb2 as wire
from tests.lanes import ModelLanes, entry, finish
from tests.properties.delivery_machine import Delivery
from tests.servers import RedisServer

pytestmark = pytest.mark.integration


class NaiveDelivery(Delivery):
    """The same with the exit that one would write first: all that the exit does, one command after the other."""

    def complete(self, items: list[Item], head: wire.Header) -> list[int]:
        client, keys = self.client, self.lanes.keys
        acknowledged = []
        for item in items:
            stream, rows = [(keys.requests, keys.rows_requests), (keys.bulk, keys.rows_bulk)][item.way.lane - 1]
            if item.state:
                client.set(keys.reply(item.request_id), item.state, ex=600)
            else:
                client.delete(keys.reply(item.request_id))
            number = client.hincrby(keys.count, "completed", 1)
            client.xadd(keys.events, {"n": number, "pb": header(head) + item.event})
            acknowledged.append(int(client.xack(stream, GROUP, item.entry_id)))
            client.xdel(stream, item.entry_id)
            client.decrby(rows, item.way.rows)
            client.hdel(keys.crashes, item.entry_id)
        return acknowledged


@pytest.fixture(autouse=True)
def _scripts_are_known(valkey: RedisServer) -> None:
    Delivery.url = valkey.url


def test_whatever_happens_each_accepted_request_has_one_reply_and_one_event() -> None:
    run_state_machine_as_test(
        Delivery, settings=settings(max_examples=150, stateful_step_count=40, derandomize=True, print_blob=False)
    )


@pytest.mark.slow
def test_the_same_for_longer_and_on_new_paths_each_time() -> None:
    run_state_machine_as_test(Delivery, settings=settings(max_examples=150, stateful_step_count=80, print_blob=True))


def test_the_machine_finds_an_exit_without_a_gate() -> None:
    """Otherwise the tests above could not fail."""
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            NaiveDelivery,
            settings=settings(
                max_examples=200,
                stateful_step_count=40,
                derandomize=True,
                phases=[Phase.generate],
                report_multiple_bugs=False,
                print_blob=False,
            ),
        )


def test_an_id_that_both_lanes_have_is_two_entries(redis_client: redis.Redis, prefix: str) -> None:
    """Ids count milliseconds, so under load the lanes share many."""
    lanes = ModelLanes(redis_client, prefix)
    for lane in (INTERACTIVE, BULK):
        redis_client.xadd(lanes.stream(lane), {"pb": entry("r1")}, id="7-7")
        lanes.read("w1", lane=lane)
        lanes.abandon(b"7-7", lane=lane)
    assert lanes.retry("w2")[2] == 0
    assert lanes.leave(finish(b"7-7", "b1", lane=BULK)) == [1]
    assert lanes.retry("w3", lane=BULK) is None, "the attempt on the other one goes on"
    lanes.hand_over("w2")
    assert lanes.retry("w3")[2] == 1, "and so does its count"
    assert lanes.leave(finish(b"7-7", "r1")) == [1]
    assert redis_client.exists(lanes.keys.lone, lanes.keys.crashes) == 0
