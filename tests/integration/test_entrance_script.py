"""The entrance: appends what is new, answers what was there, and refuses what is too much."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import OutOfMemoryError, ResponseError

from contract.completion import BULK, INTERACTIVE, pending_state
from protos import millstream_wire_v1_pb2 as wire
from tests.lanes import BODY, OTHER_BODY, ModelLanes, entry, finish, response
from tests.servers import RedisServer

pytestmark = pytest.mark.integration

STATE = pending_state(BODY, INTERACTIVE)
OTHER = pending_state(OTHER_BODY, INTERACTIVE)


@pytest.fixture
def lanes(redis_client: redis.Redis, prefix: str) -> ModelLanes:
    return ModelLanes(redis_client, prefix)


def test_a_turns_requests_are_appended_in_order_and_answered_with_their_ids(lanes: ModelLanes) -> None:
    answers = lanes.enter((entry("r1"), 2, b"", "r1"), (entry("r2"), 3, b"", "r2"))
    stored: Any = lanes.client.xrange(lanes.keys.requests)
    assert stored == [(answers[0], {b"pb": entry("r1")}), (answers[1], {b"pb": entry("r2")})]
    assert lanes.rows() == 5
    assert lanes.counts() == {"accepted": 2}


def test_an_id_made_by_the_gateway_leaves_no_reply_key(lanes: ModelLanes) -> None:
    lanes.append("r1")
    assert lanes.client.exists(lanes.keys.reply("r1")) == 0


def test_a_callers_own_id_is_pending_under_its_entry_for_the_seconds_given(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.enter((entry("r1"), 1, STATE, "r1"), ttl_s=500)
    assert lanes.state("r1") == wire.ReplyState(body_sha256=BODY, entry_id=entry_id.decode())
    assert 0 < int(lanes.client.ttl(lanes.keys.reply("r1"))) <= 500


def test_the_bulk_lane_is_counted_by_itself(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.enter((entry("r1"), 4, pending_state(BODY, BULK), "r1"), lane=BULK)
    assert (lanes.rows(), lanes.rows(BULK)) == (0, 4)
    assert lanes.state("r1") == wire.ReplyState(body_sha256=BODY, lane=BULK, entry_id=entry_id.decode())
    assert lanes.client.xlen(lanes.keys.requests) == 0


def test_the_same_request_again_is_answered_with_the_state_of_the_first(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.enter((entry("r1"), 1, STATE, "r1"))
    ((kind, raw),) = lanes.enter((entry("r1"), 1, STATE, "r1"))
    assert kind == b"seen"
    assert wire.ReplyState.FromString(raw) == wire.ReplyState(body_sha256=BODY, entry_id=entry_id.decode())
    assert lanes.client.xlen(lanes.keys.requests) == 1
    assert lanes.counts() == {"accepted": 1}
    assert lanes.rows() == 1


def test_the_same_request_after_its_answer_gets_the_answer(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.enter((entry("r1"), 1, STATE, "r1"))
    lanes.read()
    lanes.leave(finish(entry_id, "r1"))
    ((kind, raw),) = lanes.enter((entry("r1"), 1, STATE, "r1"))
    assert kind == b"seen"
    assert wire.ReplyState.FromString(raw).response == response("r1")
    assert lanes.client.xlen(lanes.keys.requests) == 0


def test_another_body_under_a_known_id_is_reused(lanes: ModelLanes) -> None:
    lanes.enter((entry("r1"), 1, STATE, "r1"))
    before = lanes.snapshot()
    assert lanes.enter((entry("r1"), 1, OTHER, "r1")) == [[b"reused"]]
    assert lanes.snapshot() == before


def test_one_id_many_times_in_one_turn_is_one_entry(lanes: ModelLanes) -> None:
    answers = lanes.enter(*[(entry("r1"), 1, STATE, "r1")] * 5, (entry("r1"), 1, OTHER, "r1"))
    assert isinstance(answers[0], bytes)
    assert [each[0] for each in answers[1:]] == [b"seen"] * 4 + [b"reused"]
    assert lanes.client.xlen(lanes.keys.requests) == 1
    assert lanes.counts() == {"accepted": 1}


def test_ids_of_the_gateway_and_of_callers_mix_in_one_turn(lanes: ModelLanes) -> None:
    """Reply keys are passed only for items with a state: each must meet its own."""
    answers = lanes.enter(
        (entry("g1"), 1, b"", "g1"),
        (entry("r1"), 1, STATE, "r1"),
        (entry("g2"), 1, b"", "g2"),
        (entry("r2"), 1, OTHER, "r2"),
    )
    one, other = lanes.state("r1"), lanes.state("r2")
    assert one is not None
    assert other is not None
    assert (one.entry_id, one.body_sha256) == (answers[1].decode(), BODY)
    assert (other.entry_id, other.body_sha256) == (answers[3].decode(), OTHER_BODY)


def test_what_would_pass_the_bound_is_refused_and_what_fits_behind_it_is_not(lanes: ModelLanes) -> None:
    answers = lanes.enter(
        (entry("r1"), 4, b"", "r1"),
        (entry("r2"), 7, STATE, "r2"),
        (entry("r3"), 6, b"", "r3"),
        (entry("r4"), 1, b"", "r4"),
        bound=10,
    )
    assert [isinstance(each, bytes) for each in answers] == [True, False, True, False]
    assert answers[1] == [b"full", 4]
    assert answers[3] == [b"full", 10]
    assert lanes.rows() == 10
    assert lanes.counts() == {"accepted": 2}
    # A refused request may come again under its id.
    assert lanes.state("r2") is None


def test_a_request_larger_than_the_bound_goes_when_nothing_else_waits(lanes: ModelLanes) -> None:
    first, second = lanes.enter((entry("r1"), 50, b"", "r1"), (entry("r2"), 1, b"", "r2"), bound=10)
    assert isinstance(first, bytes)
    assert second == [b"full", 50]


def test_a_counter_that_was_left_behind_by_entries_that_are_gone_begins_anew(lanes: ModelLanes) -> None:
    """Somebody deleted the stream, or the server lost its end: nothing waits, and nobody may be refused for it."""
    lanes.client.set(lanes.keys.rows_requests, 1_000_000)
    (entry_id,) = lanes.enter((entry("r1"), 3, b"", "r1"), bound=10)
    assert isinstance(entry_id, bytes)
    assert lanes.rows() == 3


def test_what_a_worker_holds_still_counts_as_waiting(lanes: ModelLanes) -> None:
    lanes.enter((entry("r1"), 10, b"", "r1"))
    lanes.read()
    assert lanes.enter((entry("r2"), 1, b"", "r2"), bound=10) == [[b"full", 10]]


def test_a_duplicate_is_answered_even_when_the_lane_is_full(lanes: ModelLanes) -> None:
    lanes.enter((entry("r1"), 10, STATE, "r1"), bound=10)
    ((kind, _),) = lanes.enter((entry("r1"), 10, STATE, "r1"), bound=10)
    assert kind == b"seen"


def test_a_call_that_appends_nothing_counts_nothing(lanes: ModelLanes) -> None:
    lanes.enter((entry("r1"), 10, b"", "r1"), bound=10)
    before = lanes.snapshot()
    lanes.enter((entry("r2"), 1, b"", "r2"), bound=10)
    assert lanes.snapshot() == before


@pytest.mark.parametrize("name", ["requests", "rows_requests", "count"])
def test_a_key_of_the_wrong_type_stops_the_entrance_before_anything_is_written(name: str, lanes: ModelLanes) -> None:
    key = getattr(lanes.keys, name)
    lanes.client.delete(key)
    lanes.client.zadd(key, {"wrong": 1})
    before = lanes.snapshot()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        lanes.enter((entry("r1"), 1, STATE, "r1"))
    assert lanes.snapshot() == before


def test_a_reply_key_of_the_wrong_type_stops_it_before_the_items_in_front_are_appended(lanes: ModelLanes) -> None:
    lanes.client.rpush(lanes.keys.reply("r2"), "a list")
    before = lanes.snapshot()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        lanes.enter((entry("r1"), 1, STATE, "r1"), (entry("r2"), 1, STATE, "r2"))
    assert lanes.snapshot() == before


def test_a_full_server_refuses_the_whole_call_before_anything_is_written(tmp_path: Path, prefix: str) -> None:
    with RedisServer(tmp_path, config={"appendonly": "no"}) as server, server.client() as client:
        lanes = ModelLanes(client, prefix)
        lanes.append("before")
        client.config_set("maxmemory", "1")
        before = lanes.snapshot()
        with pytest.raises(OutOfMemoryError):
            lanes.enter((entry("r1"), 1, STATE, "r1"), (entry("r2"), 1, b"", "r2"))
        assert lanes.snapshot() == before
