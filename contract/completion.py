"""Completions: what the exit is told about each entry, and the bytes of replies and events it joins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from contract.connection import Argument
from contract.keys import GROUP, ModelKeys
from contract.wire import length_delimited, tag_bytes, varint
from protos import millstream_wire_v1_pb2 as wire

MOST_ITEMS = 512
MOST_BYTES = 4 * 2**20
"""Bounds of one call of the exit: a long script holds up everybody."""
WAKE_BYTES = 16 * 1024
"""A larger reply is not pushed to its gateway, which reads the key instead."""
NO_SHA256 = bytes(32)
REFUSED_BODY_BYTES = 64 * 1024

INTERACTIVE, BULK = wire.INTERACTIVE, wire.BULK

_ENTRY, _RESPONSE, _ENTRY_ID, _REFUSED = tag_bytes(1), tag_bytes(2), tag_bytes(5), tag_bytes(9)
_HEADER, _EVENT = tag_bytes(1), tag_bytes(2)
_STATE_RESPONSE, _STATE_DIGEST, _STATE_VERSION = tag_bytes(4), tag_bytes(5), tag_bytes(6)


def pending_state(body_sha256: bytes, lane: wire.Lane) -> bytes:
    """A ReplyState without its entry id, which the script joins to it; always 36 bytes."""
    return b"\x0a\x20%b\x10%c" % (body_sha256 or NO_SHA256, lane)


def routed(digest: bytes, version: str) -> bytes:
    """The fields of a ReplyState that say which version answers; a script joins them to a pending one."""
    return length_delimited(_STATE_DIGEST, digest) + length_delimited(_STATE_VERSION, version.encode())


def done_state(body_sha256: bytes, lane: wire.Lane, entry_id: bytes, response: bytes) -> bytes:
    """A ReplyState that holds its response."""
    head = b"%b\x1a%c%b" % (pending_state(body_sha256, lane), len(entry_id), entry_id)
    return head + length_delimited(_STATE_RESPONSE, response)


def wake(request_id: bytes, response: bytes, *, failed: bool) -> bytes:
    """One `replies` field of a Replies message."""
    body = length_delimited(b"\x0a", request_id)
    if len(response) <= WAKE_BYTES:
        body += length_delimited(b"\x12", response)
    if failed:
        body += b"\x18\x01"
    return length_delimited(b"\x0a", body)


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
    body = b"%b%b\x18%c%b%b" % (
        length_delimited(_ENTRY, entry),
        length_delimited(_RESPONSE, response),
        status,
        b"\x20%c" % lane if lane else b"",
        length_delimited(_ENTRY_ID, entry_id),
    )
    if delivered_us:
        body += b"\x30" + varint(delivered_us)
    if deliveries:
        body += b"\x38" + varint(deliveries)
    if batch_position:
        body += b"\x40" + varint(batch_position)
    if refused_body:
        body += length_delimited(_REFUSED, refused_body[:REFUSED_BODY_BYTES])
    return length_delimited(_EVENT, body)


def header(message: wire.Header) -> bytes:
    """The `header` field of an EventBatch."""
    return length_delimited(_HEADER, message.SerializeToString())


class Item(NamedTuple):
    """One entry on its way out. (A tuple in the order the script takes it: one is made per request.)"""

    gate: bytes
    """finish: by who computed it; withdraw: its caller went away; copy: a shadow's, of what has left before."""
    lane: int
    """1 for requests, 2 for bulk: the place of the stream among the script's keys."""
    entry_id: bytes
    rows: int
    event: bytes
    reply_ttl_s: int | bytes
    """Empty: the reply key is deleted, since nobody will read it."""
    state: bytes
    gateway: str
    """Empty: nobody waits."""
    wake: bytes
    dead: bytes
    """Reason of the dead letter; empty for none."""
    request_id: str
    """Not sent as it is: it names the reply key."""


def exit_calls(keys: ModelKeys, head: bytes, items: Sequence[Item]) -> Iterator[tuple[list[str], list[Argument]]]:
    """Keys and arguments of as many calls of the exit as the items need."""
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
        for item in items[start:stop]:
            names.append(prefix + item.request_id)
            arguments += item[:10]
        yield names, arguments
        start = stop
