"""Completions: hand-joined states, wakes and events read back, and calls of the exit stay within their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.completion import (
    BULK,
    INTERACTIVE,
    MOST_BYTES,
    MOST_ITEMS,
    NO_SHA256,
    REFUSED_BODY_BYTES,
    WAKE_BYTES,
    Item,
    Way,
    done_state,
    event,
    exit_calls,
    header,
    pending_state,
    wake,
)
from contract.keys import GROUP, Keys
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

KEYS = Keys("t").model("churn")
SHA256 = st.binary(min_size=32, max_size=32)
LANES = st.sampled_from([INTERACTIVE, BULK])
ENTRY_IDS = st.from_regex(r"[0-9]{1,20}-[0-9]{1,20}", fullmatch=True).map(str.encode)
RESPONSES = st.builds(
    v1.PredictResponse, request_id=st.text(max_size=150), model_id=st.text(max_size=20), degraded=st.booleans()
)


def item(number: int, *, size: int = 10) -> Item:
    return Item(
        way=Way(b"finish", 1, 1, 60, "g1"),
        entry_id=b"%d-0" % number,
        event=bytes(size),
        state=b"state",
        wake=b"wake",
        request_id=f"r{number}",
    )


@given(SHA256, LANES)
def test_a_pending_state_is_36_bytes_with_the_digest_where_scripts_look(digest: bytes, lane: wire.Lane) -> None:
    state = pending_state(digest, lane)
    assert len(state) == 36
    assert state[2:34] == digest
    assert wire.ReplyState.FromString(state) == wire.ReplyState(body_sha256=digest, lane=lane)


def test_without_a_digest_there_are_zeros() -> None:
    assert wire.ReplyState.FromString(pending_state(b"", BULK)).body_sha256 == NO_SHA256


@given(SHA256, LANES, ENTRY_IDS, st.binary(max_size=1000))
def test_a_done_state_reads_back(digest: bytes, lane: wire.Lane, entry_id: bytes, response: bytes) -> None:
    assert wire.ReplyState.FromString(done_state(digest, lane, entry_id, response)) == wire.ReplyState(
        body_sha256=digest, lane=lane, entry_id=entry_id.decode(), response=response
    )


@given(st.lists(st.tuples(st.text(min_size=1, max_size=200), st.binary(max_size=300), st.booleans()), max_size=5))
def test_wakes_of_a_gateway_are_one_message_when_joined(replies: list[tuple[str, bytes, bool]]) -> None:
    joined = b"".join(wake(each.encode(), response, failed=failed) for each, response, failed in replies)
    assert wire.Replies.FromString(joined) == wire.Replies(
        replies=[wire.Reply(request_id=each, response=response, failed=failed) for each, response, failed in replies]
    )


@pytest.mark.parametrize(("size", "carried"), [(WAKE_BYTES, WAKE_BYTES), (WAKE_BYTES + 1, 0)])
def test_a_wake_carries_replies_up_to_a_bound_and_above_that_the_id_alone(size: int, carried: int) -> None:
    (reply,) = wire.Replies.FromString(wake(b"r1", bytes(size), failed=False)).replies
    assert (reply.request_id, len(reply.response)) == ("r1", carried)


@given(
    st.builds(wire.Entry, request_id=st.text(max_size=150), deadline_us=st.integers(0, 2**62)),
    RESPONSES,
    st.sampled_from([wire.OK, wire.FAILED, wire.INVALID, wire.EXPIRED, wire.POISON, wire.CANCELLED, wire.SHADOW]),
    LANES,
    ENTRY_IDS,
    st.integers(min_value=1, max_value=2**62),
    st.integers(min_value=0, max_value=2**32 - 1),
    st.integers(min_value=0, max_value=2**32 - 1),
    st.binary(max_size=100),
)
def test_an_event_batch_joined_from_parts_reads_back(
    entry: wire.Entry,
    response: v1.PredictResponse,
    status: wire.Status,
    lane: wire.Lane,
    entry_id: bytes,
    delivered_us: int,
    deliveries: int,
    position: int,
    refused_body: bytes,
) -> None:
    head = wire.Header(model_id="churn", worker="w1", batch_rows=3, predicted_us=delivered_us)
    raw = event(
        entry.SerializeToString(),
        response.SerializeToString(),
        status,
        lane,
        entry_id,
        delivered_us,
        deliveries,
        position,
        refused_body,
    )
    one = wire.Event(
        entry=entry,
        response=response,
        status=status,
        lane=lane,
        entry_id=entry_id.decode(),
        delivered_us=delivered_us,
        deliveries=deliveries,
        batch_position=position,
        refused_body=refused_body,
    )
    assert wire.EventBatch.FromString(header(head) + raw + raw) == wire.EventBatch(header=head, events=[one, one])


def test_an_event_of_what_was_never_delivered_has_no_delivery() -> None:
    raw = event(b"", b"", wire.CANCELLED, INTERACTIVE, b"1-0")
    assert wire.EventBatch.FromString(raw).events[0] == wire.Event(
        entry=wire.Entry(), response=v1.PredictResponse(), status=wire.CANCELLED, entry_id="1-0"
    )


def test_a_refused_body_is_cut_at_64_kb() -> None:
    raw = event(b"", b"", wire.INVALID, BULK, b"1-0", 1, 1, 0, bytes(REFUSED_BODY_BYTES + 1))
    assert len(wire.EventBatch.FromString(raw).events[0].refused_body) == REFUSED_BODY_BYTES


def test_a_call_of_the_exit_names_every_key_and_says_once_how_a_run_of_items_leaves() -> None:
    other = item(3)._replace(way=Way(b"finish", 1, 2, b"", dead=b"MODEL_CRASHED"))
    ((names, arguments, _),) = exit_calls(KEYS, b"head", [item(1), item(2), other])
    assert names == [
        KEYS.requests, KEYS.bulk, KEYS.events, KEYS.count, KEYS.rows_requests, KEYS.rows_bulk, KEYS.crashes, KEYS.dead,
        KEYS.lone, KEYS.reply("r1"), KEYS.reply("r2"), KEYS.reply("r3"),
    ]  # fmt: skip
    assert arguments == [
        GROUP, KEYS.replies_prefix, b"head",
        b"finish", 1, 1, 60, "g1", b"", 2, bytes(20), b"wakewake", b"1-0", b"2-0", b"state", b"state",
        b"finish", 1, 2, b"", "", b"MODEL_CRASHED", 1, bytes(10), b"wake", b"3-0", b"state",
    ]  # fmt: skip


def test_no_items_need_no_call() -> None:
    assert list(exit_calls(KEYS, b"head", [])) == []


@given(st.lists(st.integers(min_value=0, max_value=MOST_BYTES * 2), max_size=8), st.integers(0, 3 * MOST_ITEMS))
def test_calls_of_the_exit_hold_every_item_once_in_order_and_within_bounds(sizes: list[int], small: int) -> None:
    items = [item(number, size=size) for number, size in enumerate([*sizes, *[10] * small])]
    calls = list(exit_calls(KEYS, b"head", items))
    sent = [call.arguments[12 : 12 + call.items] for call in calls]
    assert [entry_id for ids in sent for entry_id in ids] == [each.entry_id for each in items]
    for ids, (names, arguments, _) in zip(sent, calls, strict=True):
        assert 0 < len(ids) <= MOST_ITEMS
        assert len(names) == 9 + len(ids)
        size = sum(len(part) for part in arguments[3:] if isinstance(part, bytes))
        assert len(ids) == 1 or size <= MOST_BYTES + 40 * len(ids)
