"""Claiming ids: the bulk lane's entrance, after its first read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import ResponseError

from contract.completion import BULK, INTERACTIVE, pending_state, routed
from protos import millstream_wire_v1_pb2 as wire
from tests.lanes import BODY, OTHER_BODY, ModelLanes, entry, finish
from tests.servers import RedisServer

pytestmark = pytest.mark.integration

NEW, OWN, DUPLICATE, REUSED = 1, 2, 0, -1


@pytest.fixture
def lanes(redis_client: redis.Redis, prefix: str) -> ModelLanes:
    return ModelLanes(redis_client, prefix)


def produce(lanes: ModelLanes, count: int = 1) -> list[bytes]:
    """What a producer appended and a worker read."""
    found: list[Any] = [lanes.client.xadd(lanes.keys.bulk, {"json": f'{{"n":{number}}}'}) for number in range(count)]
    assert lanes.read(lane=BULK) == found
    return found


def test_a_new_id_is_accepted_and_pending_under_its_entry(lanes: ModelLanes) -> None:
    (entry_id,) = produce(lanes)
    assert lanes.claim((entry_id, 3, BODY, "r1"), ttl_s=500) == [NEW]
    assert lanes.state("r1") == wire.ReplyState(body_sha256=BODY, lane=BULK, entry_id=entry_id.decode())
    assert 0 < int(lanes.client.ttl(lanes.keys.reply("r1"))) <= 500
    assert lanes.counts() == {"accepted": 1}
    assert lanes.rows(BULK) == 3


def test_a_redelivery_finds_its_own_claim_and_is_not_counted_again(lanes: ModelLanes) -> None:
    (entry_id,) = produce(lanes)
    lanes.claim((entry_id, 3, BODY, "r1"))
    before = lanes.snapshot()
    assert lanes.claim((entry_id, 3, BODY, "r1")) == [OWN]
    assert lanes.snapshot() == before


LIVE, CANARY = routed(b"L" * 32, "1.0.0"), routed(b"C" * 32, "1.1.0")


def test_a_redelivery_is_told_where_it_was_routed_at_its_first_read(lanes: ModelLanes) -> None:
    """Under its own id, and under the stream's for a producer that gave none."""
    named, nameless = produce(lanes, 2)
    items = [(named, 1, BODY, "r1"), (nameless, 1, BODY, nameless.decode())]
    assert lanes.claim(*items, ttl_s=500, routing=CANARY) == [NEW, NEW]
    state = lanes.state("r1")
    assert state is not None
    assert (state.digest, state.version, state.entry_id) == (b"C" * 32, "1.1.0", named.decode())
    before = lanes.snapshot()
    assert lanes.claim(*items, routing=LIVE) == [CANARY, CANARY]
    assert lanes.claim(*items, routing=b"") == [CANARY, CANARY]
    assert lanes.snapshot() == before
    assert wire.ReplyState.FromString(CANARY) == wire.ReplyState(digest=b"C" * 32, version="1.1.0")


def test_what_was_submitted_is_routed_at_its_first_read_too_and_stays_as_long_as_before(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.enter((entry("r1"), 1, pending_state(BODY, BULK), "r1"), lane=BULK, ttl_s=50)
    lanes.read(lane=BULK)
    item = (entry_id, 1, BODY, "r1")
    assert lanes.claim(item, routing=LIVE) == [OWN]
    assert lanes.claim(item, routing=CANARY) == [LIVE]
    assert 0 < int(lanes.client.ttl(lanes.keys.reply("r1"))) <= 50


def test_what_no_version_could_be_said_for_is_routed_by_the_next_read(lanes: ModelLanes) -> None:
    (entry_id,) = produce(lanes)
    item = (entry_id, 1, BODY, "r1")
    assert lanes.claim(item, routing=b"") == [NEW]
    assert lanes.claim(item, routing=LIVE) == [OWN]
    assert lanes.claim(item, routing=CANARY) == [LIVE]


def test_a_response_that_is_there_already_is_no_routing(lanes: ModelLanes) -> None:
    """A slow worker comes to it after another: its exit will refuse it."""
    (entry_id,) = produce(lanes)
    lanes.claim((entry_id, 1, BODY, "r1"), routing=LIVE)
    lanes.leave(finish(entry_id, "r1", lane=BULK))
    before = lanes.snapshot()
    assert lanes.claim((entry_id, 1, BODY, "r1"), routing=CANARY) == [OWN]
    assert lanes.snapshot() == before


def test_what_was_submitted_through_the_entrance_is_its_own(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.enter((entry("r1"), 2, pending_state(BODY, BULK), "r1"), lane=BULK)
    lanes.read(lane=BULK)
    assert lanes.claim((entry_id, 2, BODY, "r1")) == [OWN]
    assert lanes.counts() == {"accepted": 1}
    assert lanes.rows(BULK) == 2


def test_a_second_entry_under_the_id_is_a_duplicate_and_gone(lanes: ModelLanes) -> None:
    first, second = produce(lanes, 2)
    assert lanes.claim((first, 1, BODY, "r1")) == [NEW]
    assert lanes.claim((second, 1, BODY, "r1")) == [DUPLICATE]
    assert lanes.counts() == {"accepted": 1, "duplicates": 1}
    assert lanes.rows(BULK) == 1
    assert lanes.held(BULK) == {first.decode(): "w1"}
    stored: Any = lanes.client.xrange(lanes.keys.bulk)
    assert [entry_id for entry_id, _ in stored] == [first]
    assert lanes.dead() == []


def test_one_id_many_times_in_one_batch_is_accepted_once(lanes: ModelLanes) -> None:
    ids = produce(lanes, 4)
    assert lanes.claim(*[(each, 1, BODY, "r1") for each in ids]) == [NEW, DUPLICATE, DUPLICATE, DUPLICATE]
    assert lanes.counts() == {"accepted": 1, "duplicates": 3}


def test_a_duplicate_of_a_finished_request_is_still_one(lanes: ModelLanes) -> None:
    first, second = produce(lanes, 2)
    lanes.claim((first, 1, BODY, "r1"))
    lanes.leave(finish(first, "r1", lane=BULK))
    answered = lanes.state("r1")
    assert lanes.claim((second, 1, BODY, "r1")) == [DUPLICATE]
    assert lanes.state("r1") == answered
    assert lanes.events() == ["r1"]


def test_an_entry_that_was_completed_without_a_reply_is_not_accepted_again(lanes: ModelLanes) -> None:
    """A slow worker comes to it after another: nothing is remembered of its id."""
    (entry_id,) = produce(lanes)
    lanes.claim((entry_id, 1, BODY, "r1"))
    lanes.leave(finish(entry_id, "r1", lane=BULK, reply_ttl_s=b"", state=b""))
    before = lanes.snapshot()
    assert lanes.claim((entry_id, 1, BODY, "r1")) == [DUPLICATE]
    assert lanes.snapshot() == before


def test_a_duplicate_on_a_lone_attempt_leaves_nothing_of_it(lanes: ModelLanes) -> None:
    first, second = produce(lanes, 2)
    lanes.claim((first, 1, BODY, "r1"))
    lanes.abandon(second, lane=BULK)
    assert lanes.retry("w2", lane=BULK)[0] == second
    assert lanes.claim((second, 1, BODY, "r1")) == [DUPLICATE]
    assert lanes.client.exists(lanes.keys.lone, lanes.keys.crashes) == 0


def test_an_id_that_a_gateway_took_in_is_a_duplicate_in_the_bulk_lane(lanes: ModelLanes) -> None:
    (interactive,) = lanes.enter((entry("r1"), 1, pending_state(BODY, INTERACTIVE), "r1"))
    (entry_id,) = produce(lanes)
    assert lanes.claim((entry_id, 1, BODY, "r1")) == [DUPLICATE]
    state = lanes.state("r1")
    assert state is not None
    assert (state.lane, state.entry_id) == (INTERACTIVE, interactive.decode())


def test_the_same_entry_id_in_the_other_lane_is_not_its_own(lanes: ModelLanes) -> None:
    (entry_id,) = produce(lanes)
    done = pending_state(BODY, INTERACTIVE) + b"\x1a" + bytes([len(entry_id)]) + entry_id
    lanes.client.set(lanes.keys.reply("r1"), done)
    assert lanes.claim((entry_id, 1, BODY, "r1")) == [DUPLICATE]


def test_an_entry_id_that_another_begins_with_is_not_its_own(lanes: ModelLanes) -> None:
    lanes.client.set(lanes.keys.reply("r1"), pending_state(BODY, BULK) + b"\x1a\x0417-1" + b"x")
    lanes.client.xadd(lanes.keys.bulk, {"json": "{}"}, id="17-10")
    assert lanes.claim((b"17-10", 1, BODY, "r1")) == [DUPLICATE]


def test_another_body_under_a_known_id_goes_to_the_dead_letters(lanes: ModelLanes) -> None:
    first, second = produce(lanes, 2)
    assert lanes.claim((first, 1, BODY, "r1"), (second, 1, OTHER_BODY, "r1")) == [NEW, REUSED]
    assert lanes.dead() == [
        {
            b"reason": b"REQUEST_ID_REUSED",
            b"entry_id": second,
            b"lane": b"bulk",
            b"crashes": b"0",
            b"field": b"json",
            b"body": b'{"n":1}',
        }
    ]
    assert lanes.counts() == {"accepted": 1, "duplicates": 1}
    assert lanes.held(BULK) == {first.decode(): "w1"}
    state = lanes.state("r1")
    assert state is not None
    assert state.body_sha256 == BODY


def test_another_body_whose_entry_was_deleted_leaves_no_dead_letter(lanes: ModelLanes) -> None:
    first, second = produce(lanes, 2)
    lanes.client.xdel(lanes.keys.bulk, second)
    assert lanes.claim((first, 1, BODY, "r1"), (second, 1, OTHER_BODY, "r1")) == [NEW, REUSED]
    assert lanes.dead() == []
    assert lanes.held(BULK) == {first.decode(): "w1"}


@pytest.mark.parametrize("name", ["bulk", "rows_bulk", "count", "dead", "crashes", "lone"])
def test_a_key_of_the_wrong_type_stops_it_before_anything_is_written(name: str, lanes: ModelLanes) -> None:
    (entry_id,) = produce(lanes)
    key = getattr(lanes.keys, name)
    lanes.client.delete(key)
    lanes.client.zadd(key, {"wrong": 1})
    before = lanes.snapshot()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        lanes.claim((entry_id, 1, BODY, "r1"))
    assert lanes.snapshot() == before


def test_a_reply_key_of_the_wrong_type_stops_it_before_the_items_in_front_are_claimed(lanes: ModelLanes) -> None:
    first, second = produce(lanes, 2)
    lanes.client.rpush(lanes.keys.reply("r2"), "a list")
    before = lanes.snapshot()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        lanes.claim((first, 1, BODY, "r1"), (second, 1, BODY, "r2"))
    assert lanes.snapshot() == before


def test_a_full_server_still_lets_a_worker_claim(tmp_path: Path, prefix: str) -> None:
    with RedisServer(tmp_path, config={"appendonly": "no"}) as server, server.client() as client:
        lanes = ModelLanes(client, prefix)
        first, second = produce(lanes, 2)
        client.config_set("maxmemory", "1")
        assert lanes.claim((first, 1, BODY, "r1"), (second, 1, BODY, "r1")) == [NEW, DUPLICATE]
        assert lanes.leave(finish(first, "r1", lane=BULK)) == [1]
