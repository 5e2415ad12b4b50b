"""The exit: one reply and one event for an entry, however often it is completed and by whom."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import OutOfMemoryError, ResponseError

from contract.completion import BULK, INTERACTIVE, MOST_ITEMS, header
from contract.connection import run
from contract.keys import GROUP
from contract.scripts import ALL, EXIT
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.lanes import BODY, ModelLanes, copy, entry, finish, response, withdraw
from tests.servers import RedisServer

pytestmark = pytest.mark.integration


@pytest.fixture
def lanes(redis_client: redis.Redis, prefix: str) -> ModelLanes:
    return ModelLanes(redis_client, prefix)


# ---------------------------------------------------------------- what a completion does


def test_a_completion_is_a_reply_an_event_and_the_end_of_the_entry(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read()
    assert lanes.leave(finish(entry_id, "r1")) == [1]
    state = lanes.state("r1")
    assert state == wire.ReplyState(body_sha256=BODY, entry_id=entry_id.decode(), response=response("r1"))
    assert lanes.events() == ["r1"]
    assert lanes.client.xlen(lanes.keys.requests) == 0
    assert lanes.held() == {}
    assert lanes.rows() == 0
    assert lanes.counts() == {"accepted": 1, "completed": 1}
    assert lanes.dead() == []


def test_two_completions_of_one_entry_give_one_reply_and_one_event(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read()
    assert lanes.leave(finish(entry_id, "r1")) == [1]
    late = finish(entry_id, "r1", state=b"of somebody who was slow")
    assert lanes.leave(late) == [0]
    assert lanes.events() == ["r1"]
    assert lanes.state("r1") == wire.ReplyState.FromString(finish(entry_id, "r1").state)
    assert lanes.counts() == {"accepted": 1, "completed": 1}
    assert lanes.rows() == 0


def test_the_same_entry_twice_in_one_call_is_completed_once(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read()
    assert lanes.leave(finish(entry_id, "r1"), finish(entry_id, "r1")) == [1, 0]
    assert lanes.events() == ["r1"]


def naive(lanes: ModelLanes, entry_id: bytes, request_id: str) -> None:
    """What one would write first: the reply, the event and the acknowledgement as three commands."""
    one = finish(entry_id, request_id)
    lanes.client.set(lanes.keys.reply(request_id), one.state, ex=60)
    lanes.client.xadd(lanes.keys.events, {"n": 0, "pb": header(wire.Header()) + one.event})
    lanes.client.xack(lanes.keys.requests, GROUP, entry_id)


@pytest.mark.parametrize("gated", [True, False])
def test_the_gate_is_what_makes_two_slow_workers_one_event(
    gated: bool, lanes: ModelLanes, valkey: RedisServer, prefix: str
) -> None:
    """Both computed the entry, one after a claim; without the gate the log has it twice."""
    ids = lanes.append(*[f"r{number}" for number in range(50)])
    lanes.read()
    start = threading.Barrier(2)

    def worker() -> None:
        with valkey.client() as client:
            own = ModelLanes(client, prefix)
            start.wait(10)
            for number, entry_id in enumerate(ids):
                if gated:
                    own.leave(finish(entry_id, f"r{number}"))
                else:
                    naive(own, entry_id, f"r{number}")

    workers = [threading.Thread(target=worker) for _ in range(2)]
    for each in workers:
        each.start()
    for each in workers:
        each.join(30)
    events = lanes.events()
    assert len(set(events)) == 50
    assert len(events) == (50 if gated else 100)


def test_an_entry_that_nobody_read_is_not_finished(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    before = lanes.snapshot()
    assert lanes.leave(finish(entry_id, "r1")) == [0]
    assert lanes.snapshot() == before


def test_who_holds_the_entry_does_not_matter(lanes: ModelLanes) -> None:
    """The first to finish wins: a claim does not undo the work of who was only slow."""
    (entry_id,) = lanes.append("r1")
    lanes.read("w1")
    lanes.abandon(entry_id)
    assert lanes.retry("w2")[0] == entry_id
    assert lanes.leave(finish(entry_id, "r1")) == [1]
    assert lanes.leave(finish(entry_id, "r1")) == [0]


def test_both_lanes_leave_through_one_call(lanes: ModelLanes) -> None:
    (one,) = lanes.append("r1")
    (other,) = lanes.append("b1", lane=BULK)
    lanes.read()
    lanes.read(lane=BULK)
    assert lanes.leave(finish(one, "r1"), finish(other, "b1", lane=BULK)) == [1, 1]
    assert (lanes.rows(), lanes.rows(BULK)) == (0, 0)
    assert lanes.events() == ["r1", "b1"]
    assert (lanes.client.xlen(lanes.keys.requests), lanes.client.xlen(lanes.keys.bulk)) == (0, 0)


def test_an_exit_on_a_server_that_was_flushed_completes_nothing(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read()
    lanes.client.delete(*lanes.client.scan_iter(f"{lanes.keys.base}*"))
    assert lanes.leave(finish(entry_id, "r1"), withdraw(entry_id, "r1")) == [0, 0]
    assert list(lanes.client.scan_iter(f"{lanes.keys.base}*")) == []


# ---------------------------------------------------------------- replies


def test_a_reply_is_kept_for_its_seconds(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read()
    lanes.leave(finish(entry_id, "r1", reply_ttl_s=600))
    assert 0 < int(lanes.client.ttl(lanes.keys.reply("r1"))) <= 600


def test_a_reply_that_nobody_will_read_is_not_kept(lanes: ModelLanes) -> None:
    state = b"\x0a\x20" + BODY + b"\x10\x00"
    (entry_id,) = lanes.enter((entry("r1"), 1, state, "r1"))
    lanes.read()
    assert lanes.state("r1") is not None
    lanes.leave(finish(entry_id, "r1", reply_ttl_s=b"", state=b""))
    assert lanes.state("r1") is None
    assert lanes.events() == ["r1"]


def test_a_reply_key_of_any_type_is_replaced(lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2")
    lanes.read()
    lanes.client.rpush(lanes.keys.reply("r1"), "a list")
    lanes.client.rpush(lanes.keys.reply("r2"), "a list")
    assert lanes.leave(finish(ids[0], "r1"), finish(ids[1], "r2", reply_ttl_s=b"")) == [1, 1]
    assert lanes.state("r1") is not None
    assert lanes.client.exists(lanes.keys.reply("r2")) == 0


# ---------------------------------------------------------------- events and counters


def test_a_call_writes_one_entry_of_events_behind_its_header(lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2", "r3")
    lanes.read()
    lanes.leave(finish(ids[0], "r1"))
    head = wire.Header(model_id="churn", worker="w1", batch_rows=2)
    lanes.leave(finish(ids[0], "r1"), finish(ids[1], "r2"), finish(ids[2], "r3"), head=head)
    (first, _), (second, batch) = lanes.batches()
    assert batch.header == head
    assert [event.entry.request_id for event in batch.events] == ["r2", "r3"]
    assert [event.entry_id for event in batch.events] == [ids[1].decode(), ids[2].decode()]
    assert (first, second) == (1, 3)


def test_a_call_that_completes_nothing_writes_no_events(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read()
    lanes.leave(finish(entry_id, "r1"))
    lanes.leave(finish(entry_id, "r1"))
    assert len(lanes.batches()) == 1


def test_rows_go_down_by_what_was_completed_and_never_below_zero(lanes: ModelLanes) -> None:
    one, other = lanes.enter((entry("r1"), 5, b"", "r1"), (entry("r2"), 7, b"", "r2"))
    lanes.read()
    lanes.leave(finish(one, "r1", rows=5))
    assert lanes.rows() == 7
    lanes.client.set(lanes.keys.rows_requests, 3)  # as after a restored server
    lanes.leave(finish(other, "r2", rows=7))
    assert lanes.rows() == 0


def test_more_than_512_items_leave_in_several_calls(lanes: ModelLanes) -> None:
    count = 2 * MOST_ITEMS + 6
    names = [f"r{number}" for number in range(count)]
    ids = lanes.append(*names)
    lanes.read(count=count)
    assert lanes.leave(*[finish(each, name) for each, name in zip(ids, names, strict=True)]) == [1] * count
    assert [number for number, _ in lanes.batches()] == [MOST_ITEMS, 2 * MOST_ITEMS, count]
    assert lanes.events() == names
    assert lanes.rows() == 0
    assert lanes.counts() == {"accepted": count, "completed": count}


# ---------------------------------------------------------------- withdrawals


def test_what_nobody_holds_is_withdrawn_with_its_reply_key(lanes: ModelLanes) -> None:
    state = b"\x0a\x20" + BODY + b"\x10\x00"
    (entry_id,) = lanes.enter((entry("r1"), 3, state, "r1"))
    assert lanes.leave(withdraw(entry_id, "r1", rows=3)) == [1]
    assert lanes.client.xlen(lanes.keys.requests) == 0
    assert lanes.state("r1") is None
    assert lanes.rows() == 0
    ((_, batch),) = lanes.batches()
    assert [event.status for event in batch.events] == [wire.CANCELLED]
    assert lanes.counts() == {"accepted": 1, "completed": 1}
    assert lanes.read() == []


def test_what_a_worker_holds_is_not_withdrawn(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read()
    before = lanes.snapshot()
    assert lanes.leave(withdraw(entry_id, "r1")) == [0]
    assert lanes.snapshot() == before
    assert lanes.leave(finish(entry_id, "r1")) == [1]


def test_what_waits_to_be_claimed_is_not_withdrawn(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read("w1")
    lanes.hand_over("w1")
    assert lanes.leave(withdraw(entry_id, "r1")) == [0]


def test_what_is_gone_is_not_withdrawn_again(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    assert lanes.leave(withdraw(entry_id, "r1"), withdraw(entry_id, "r1")) == [1, 0]
    assert lanes.leave(withdraw(entry_id, "r1"), finish(entry_id, "r1")) == [0, 0]
    assert lanes.events() == ["r1"]


def test_before_any_worker_came_there_is_no_group_and_a_withdrawal_works(
    redis_client: redis.Redis, prefix: str
) -> None:
    lanes = ModelLanes(redis_client, prefix)
    lanes.client.xgroup_destroy(lanes.keys.requests, GROUP)
    (entry_id,) = lanes.append("r1")
    assert lanes.leave(withdraw(entry_id, "r1")) == [1]


# ---------------------------------------------------------------- wakes


@pytest.fixture
def listener(valkey: RedisServer, lanes: ModelLanes) -> Iterator[Any]:
    """What two gateways hear, and one without a name."""
    with valkey.client() as client, client.pubsub() as heard:
        names = [lanes.keys.replies("g1"), lanes.keys.replies("g2"), lanes.keys.replies("")]
        heard.ssubscribe(*names)
        confirmed = 0
        while confirmed < len(names):
            confirmed += heard.get_message(timeout=5)["type"] == "ssubscribe"
        yield heard


def test_every_gateway_gets_one_message_with_its_replies(listener: Any, lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2", "r3", "r4")
    lanes.read()
    lanes.leave(
        finish(ids[0], "r1"),
        finish(ids[1], "r2", gateway="g2"),
        finish(ids[2], "r3"),
        finish(ids[3], "r4", gateway=""),
        finish(ids[0], "r1"),
    )
    heard: dict[str, list[str]] = {}
    for _ in range(2):
        message = eventually(lambda: listener.get_message(timeout=0.1))
        replies = wire.Replies.FromString(message["data"]).replies
        heard[message["channel"].decode()] = [reply.request_id for reply in replies]
    assert heard == {lanes.keys.replies("g1"): ["r1", "r3"], lanes.keys.replies("g2"): ["r2"]}
    lanes.client.spublish(lanes.keys.replies("g1"), b"the end")
    assert eventually(lambda: listener.get_message(timeout=0.1))["data"] == b"the end"


@pytest.mark.parametrize("size", [1, 300, 20_000])
def test_of_a_batch_that_others_completed_a_part_of_the_rest_leaves_whole(
    size: int, listener: Any, lanes: ModelLanes
) -> None:
    """Their events and wakes are taken out of what was joined, whatever their lengths."""
    names = ["r1", "r" * size, "r3", "4" * size, "r5"]
    ids = lanes.append(*names)
    lanes.read()
    items = [finish(entry_id, name) for entry_id, name in zip(ids, names, strict=True)]
    assert lanes.leave(items[1], items[4]) == [1, 1]
    assert lanes.leave(*items) == [1, 0, 1, 1, 0]
    assert lanes.events() == [names[1], names[4], names[0], names[2], names[3]]
    woken = [eventually(lambda: listener.get_message(timeout=0.1))["data"] for _ in range(2)]
    heard = [[reply.request_id for reply in wire.Replies.FromString(each).replies] for each in woken]
    assert heard == [[names[1], names[4]], [names[0], names[2], names[3]]]
    assert [lanes.state(name) for name in names] == [wire.ReplyState.FromString(item.state) for item in items]
    assert (lanes.client.xlen(lanes.keys.requests), lanes.held(), lanes.rows()) == (0, {}, 0)


def test_a_second_completion_wakes_nobody(listener: Any, lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read()
    lanes.leave(finish(entry_id, "r1"))
    lanes.leave(finish(entry_id, "r1"))
    lanes.client.spublish(lanes.keys.replies("g1"), b"the end")
    heard = [eventually(lambda: listener.get_message(timeout=0.1))["data"] for _ in range(2)]
    assert [reply.request_id for reply in wire.Replies.FromString(heard[0]).replies] == ["r1"]
    assert heard[1] == b"the end"


# ---------------------------------------------------------------- dead letters and lone attempts


def test_a_dead_letter_holds_the_entry_the_reason_and_the_crashes(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read("w1")
    lanes.abandon(entry_id)
    lanes.retry("w2")
    lanes.leave(finish(entry_id, "r1", dead=b"MODEL_CRASHED"))
    assert lanes.dead() == [
        {
            b"reason": b"MODEL_CRASHED",
            b"entry_id": entry_id,
            b"lane": b"requests",
            b"crashes": b"1",
            b"field": b"pb",
            b"body": entry("r1"),
        }
    ]
    assert lanes.client.xlen(lanes.keys.requests) == 0


def test_a_dead_letter_of_the_bulk_lane_says_so_and_keeps_what_came(lanes: ModelLanes) -> None:
    raw: Any = lanes.client.xadd(lanes.keys.bulk, {"json": b"\xff not json"})
    lanes.read(lane=BULK)
    lanes.leave(finish(raw, "r1", lane=BULK, dead=b"MALFORMED"))
    (letter,) = lanes.dead()
    assert (letter[b"lane"], letter[b"field"], letter[b"body"]) == (b"bulk", b"json", b"\xff not json")
    assert letter[b"crashes"] == b"0"


def test_a_dead_letter_of_an_entry_that_was_deleted_is_still_one(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read()
    lanes.client.xdel(lanes.keys.requests, entry_id)
    assert lanes.leave(finish(entry_id, "r1", dead=b"MALFORMED")) == [1]
    (letter,) = lanes.dead()
    assert (letter[b"entry_id"], letter[b"body"]) == (entry_id, b"")


def test_a_second_completion_is_no_second_dead_letter(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read()
    lanes.leave(finish(entry_id, "r1", dead=b"MALFORMED"))
    lanes.leave(finish(entry_id, "r1", dead=b"MALFORMED"))
    assert len(lanes.dead()) == 1


def test_a_completion_takes_the_crash_count_and_the_lone_attempt_away(lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2")
    lanes.read("w1")
    lanes.abandon(*ids)
    lanes.retry("w2")
    assert lanes.client.hgetall(lanes.keys.crashes) == {ids[0]: b"w2"}
    lanes.leave(finish(ids[1], "r2"))
    assert lanes.client.get(lanes.keys.lone) == ids[0]
    lanes.leave(finish(ids[0], "r1"))
    assert lanes.client.exists(lanes.keys.lone, lanes.keys.crashes) == 0


# ---------------------------------------------------------------- wrong types, full servers, wrong calls

FIXED = ["requests", "bulk", "events", "count", "rows_requests", "rows_bulk", "crashes", "dead", "lone"]


@pytest.mark.parametrize("name", FIXED)
def test_a_key_of_the_wrong_type_stops_the_exit_before_anything_is_written(name: str, lanes: ModelLanes) -> None:
    ids = lanes.append("r1", "r2")
    lanes.read()
    key = getattr(lanes.keys, name)
    lanes.client.delete(key)
    lanes.client.zadd(key, {"wrong": 1})
    before = lanes.snapshot()
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        lanes.leave(finish(ids[0], "r1"), finish(ids[1], "r2", dead=b"MALFORMED"))
    assert lanes.snapshot() == before


def test_a_call_whose_keys_and_arguments_do_not_fit_is_refused_before_anything_is_written(lanes: ModelLanes) -> None:
    (entry_id,) = lanes.append("r1")
    lanes.read()
    one = finish(entry_id, "r1")
    names = [getattr(lanes.keys, name) for name in FIXED]
    run_of_one = [GROUP, "p", b"", *one.way, 1, one.event, one.wake, one.entry_id, one.state]
    before = lanes.snapshot()
    for keys, arguments in (
        (names, run_of_one),
        ([*names, "a", "b"], run_of_one),
        ([*names, "a"], run_of_one[:-1]),
        ([*names, "a"], [*run_of_one, b"finish"]),
        ([*names, "a"], [GROUP, "p", b"", *one.way, 0]),
        ([*names, "a", "b"], [GROUP, "p", b"", *one.way, 2, one.event, one.wake, one.entry_id, one.state]),
    ):
        with pytest.raises(ResponseError, match="do not fit together"):
            run(lanes.client, EXIT, keys, arguments)
    assert lanes.snapshot() == before


def fill(lanes: ModelLanes) -> tuple[list[str], list[bytes]]:
    """Appends until Redis itself refuses; request ids and entry ids of what went in."""
    names: list[str] = []
    ids: list[bytes] = []
    while True:
        name = f"r{len(names)}"
        try:
            ids += lanes.enter((entry(name, caller="x" * 10_000), 1, b"", name), bound=10**9)
        except OutOfMemoryError:
            return names, ids
        names.append(name)


def test_a_full_server_still_lets_entries_out_and_none_in(tmp_path: Path, prefix: str) -> None:
    with RedisServer(tmp_path, config={"maxmemory": "6mb", "appendonly": "no"}) as server, server.client() as client:
        lanes = ModelLanes(client, prefix)
        names, ids = fill(lanes)
        assert lanes.counts() == {"accepted": len(names)}
        assert lanes.rows() == len(names)
        lanes.read(count=len(names))
        everything = [finish(each, name) for each, name in zip(ids, names, strict=True)]
        assert lanes.leave(*everything) == [1] * len(names)
        assert lanes.events() == names
        assert lanes.rows() == 0
        assert lanes.append("afterwards")


def test_a_server_that_lost_its_scripts_learns_them_again(tmp_path: Path, prefix: str) -> None:
    with RedisServer(tmp_path, config={"appendonly": "no"}) as server, server.client() as client:
        lanes = ModelLanes(client, prefix)
        for _ in range(2):
            client.script_flush()
            assert client.script_exists(*[script.sha for script in ALL]) == [False] * len(ALL)
            (entry_id,) = lanes.append("r1")
            lanes.read()
            assert lanes.leave(finish(entry_id, "r1")) == [1]


def test_interactive_and_bulk_are_numbered_as_the_script_expects() -> None:
    assert (INTERACTIVE, BULK) == (0, 1)


# ---------------------------------------------------------------- copies


def test_a_copy_is_an_event_and_touches_nothing_else(lanes: ModelLanes) -> None:
    """Neither the reply of the request it is of, nor an entry that waits or is held, even under the same id."""
    gone, held = lanes.append("r1", "r2")
    lanes.read()
    lanes.leave(finish(gone, "r1"))
    (waiting,) = lanes.append("r3")
    before = lanes.snapshot()
    assert lanes.leave(copy(gone, "r1"), copy(held, "r2"), copy(waiting, "r3")) == [1, 1, 1]
    after = lanes.snapshot()
    changed = {name.decode() for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed == {lanes.keys.events, lanes.keys.count}
    assert lanes.events() == ["r1", "r1", "r2", "r3"]
    assert [number for number, _ in lanes.batches()] == [1, 4]
    assert lanes.counts() == {"accepted": 3, "completed": 4, "copies": 3}
    # What was completed before and after counts as ever.
    assert lanes.leave(finish(held, "r2")) == [1]
    assert lanes.counts() == {"accepted": 3, "completed": 5, "copies": 3}
    assert lanes.rows() == 1
