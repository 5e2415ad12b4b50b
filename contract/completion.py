"""Completions: what the exit is told about each entry, and the bytes of replies and events it joins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from typing import NamedTuple

from contract.connection import Argument
from contract.keys import GROUP, ModelKeys
from contract.wire import SIZE, length_delimited, tag_bytes, varint
from protos import millstream_wire_v1_pb2 as wire

MOST_ITEMS = 512
MOST_BYTES = 4 * 2**20
"""Bounds of one call of the exit: a long script holds up everybody."""
WAKE_BYTES = 128 * 1024
"""A larger reply is not pushed to its gateway, which reads the key instead."""
NO_SHA256 = bytes(32)
REFUSED_BODY_BYTES = 64 * 1024

INTERACTIVE, BULK = wire.INTERACTIVE, wire.BULK

_HEADER, _REFUSED = tag_bytes(1), tag_bytes(9)
_STATE_DIGEST, _STATE_VERSION = tag_bytes(5), tag_bytes(6)
_FAILED = b"\x18\x01"


def pending_state(body_sha256: bytes, lane: wire.Lane) -> bytes:
    """A ReplyState without its entry id, which the script joins to it; always 36 bytes."""
    return b"".join((b"\x0a\x20", body_sha256, b"\x10", SIZE[lane])) if body_sha256 else _NEW[lane]


_NEW = tuple(b"\x0a\x20%b\x10%c" % (NO_SHA256, lane) for lane in range(3))
"""Of those whose ids the gateway made."""


def routed(digest: bytes, version: str) -> bytes:
    """The fields of a ReplyState that say which version answers; a script joins them to a pending one."""
    return length_delimited(_STATE_DIGEST, digest) + length_delimited(_STATE_VERSION, version.encode())


def done_state(body_sha256: bytes, lane: wire.Lane, entry_id: bytes, response: bytes) -> bytes:
    """A ReplyState that holds its response."""
    head = pending_state(body_sha256, lane)
    return b"".join((head, b"\x1a", SIZE[len(entry_id)], entry_id, b"\x22", SIZE[len(response)], response))


def wake(request_id: bytes, response: bytes, *, failed: bool) -> bytes:
    """One `replies` field of a Replies message."""
    if len(response) > WAKE_BYTES:
        return length_delimited(b"\x0a", length_delimited(b"\x0a", request_id) + (_FAILED if failed else b""))
    start, between, end = _wake_frame(len(request_id), len(response), failed)
    return b"".join((start, request_id, between, response, end))


def event(
    entry: bytes,
    response: bytes,
    status: wire.Status,
    lane: wire.Lane,
    entry_id: bytes,
    delivered_us: int = 0,
    deliveries: int = 0,
    batch_position: int = 0,
    refused_body: bytes = b"",
) -> bytes:
    """One `events` field of an EventBatch, from the serialized entry and response.

    Canonical, as the log rebuilds it: in the order of the fields, and none that holds its default.
    """
    end = _delivery(delivered_us, deliveries)
    if batch_position:
        end += b"\x40" + varint(batch_position)
    if refused_body:
        end += length_delimited(_REFUSED, refused_body[:REFUSED_BODY_BYTES])
    start, between, outcome = _event_frame(len(entry), len(response), status, lane, len(entry_id) + len(end))
    return b"".join((start, entry, between, response, outcome, SIZE[len(entry_id)], entry_id, end))


# Frames: what stands around parts of these sizes. Those of a batch mostly have the same.


@lru_cache(maxsize=256)
def _wake_frame(request_id: int, response: int, failed: bool) -> tuple[bytes, bytes, bytes]:
    name, between, end = b"\x0a" + SIZE[request_id], b"\x12" + SIZE[response], _FAILED if failed else b""
    size = len(name) + request_id + len(between) + response + len(end)
    return b"\x0a" + SIZE[size] + name, between, end


@lru_cache(maxsize=256)
def _event_frame(
    entry: int, response: int, status: wire.Status, lane: wire.Lane, rest: int
) -> tuple[bytes, bytes, bytes]:
    name, between = b"\x0a" + SIZE[entry], b"\x12" + SIZE[response]
    outcome = b"\x18%c%b\x2a" % (status, b"\x20%c" % lane if lane else b"")
    # An entry's id takes one byte for its length.
    size = len(name) + entry + len(between) + response + len(outcome) + 1 + rest
    return b"\x12" + SIZE[size] + name, between, outcome


@lru_cache(maxsize=32)
def _delivery(delivered_us: int, deliveries: int) -> bytes:
    """What all entries share that were read together."""
    when = b"\x30" + varint(delivered_us) if delivered_us else b""
    return when + (b"\x38" + varint(deliveries) if deliveries else b"")


def header(message: wire.Header) -> bytes:
    """The `header` field of an EventBatch."""
    return length_delimited(_HEADER, message.SerializeToString())


class Way(NamedTuple):
    """How an entry leaves: the same for most of a batch. (A tuple in the order the script takes it.)"""

    gate: bytes
    """finish: by who computed it; withdraw: its caller went away; copy: a shadow's, of what has left before."""
    lane: int
    """1 for requests, 2 for bulk: the place of the stream among the script's keys."""
    rows: int = 1
    reply_ttl_s: int | bytes = b""
    """Empty: the reply key is deleted, since nobody will read it."""
    gateway: str = ""
    """Empty: nobody waits."""
    dead: bytes = b""
    """Reason of the dead letter; empty for none."""


class Item(NamedTuple):
    """One entry on its way out. (A tuple: one is made per request.)"""

    way: Way
    entry_id: bytes
    event: bytes
    state: bytes
    wake: bytes
    request_id: str
    """Not sent as it is: it names the reply key."""


class ExitCall(NamedTuple):
    """One call of the exit."""

    keys: list[str]
    arguments: list[Argument]
    items: int

    def completed(self, answer: list[int] | None) -> list[int]:
        """For each item 1 where the call completed it, else 0."""
        return [1] * self.items if answer is None else answer


_WAY = attrgetter("way")


def exit_calls(keys: ModelKeys, head: bytes, items: Sequence[Item]) -> Iterator[ExitCall]:
    """As many calls of the exit as the items need."""
    start = 0
    while start < len(items):
        stop, size = start, 0
        while stop < len(items) and stop - start < MOST_ITEMS:
            item = items[stop]
            size += len(item.event) + len(item.state) + len(item.wake)
            if size > MOST_BYTES and stop > start:
                break
            stop += 1
        names = [
            keys.requests,
            keys.bulk,
            keys.events,
            keys.count,
            keys.rows_requests,
            keys.rows_bulk,
            keys.crashes,
            keys.dead,
            keys.lone,
        ]
        arguments: list[Argument] = [GROUP, keys.replies_prefix, head]
        prefix = keys.reply_prefix
        for way, run in groupby(items[start:stop], key=_WAY):
            _, ids, events, states, wakes, request_ids = zip(*run, strict=True)
            names += [prefix + request_id for request_id in request_ids]
            arguments += (*way, len(ids), b"".join(events), b"".join(wakes), *ids, *states)
        yield ExitCall(names, arguments, stop - start)
        start = stop
