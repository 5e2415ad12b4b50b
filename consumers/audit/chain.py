"""The chain: one value for each model that every recorded event went into, in order.

    link    SHA-256 (the value before, the id of the events entry, the header, each event's number and digest)
    digest  SHA-256 (the serialized event)

A link is one entry of an events stream. It takes digests and not the events themselves, so that an event can be erased
and everything around it still be proven.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import sha256

BEGINNING = bytes(32)
"""The value before the first link."""

_NUMBER = struct.Struct(">Q")


def digest(event: bytes) -> bytes:
    """Of a serialized `wire.Event`: 32 bytes."""
    return sha256(event).digest()


def link(before: bytes, entry_id: str, header: bytes, events: Iterable[tuple[int, bytes]]) -> bytes:
    """The chain's value after a link.

    `header` is the serialized `wire.Header`; each event is its running number and its digest, in order.
    """
    whole = sha256(before)
    # Lengths stand in front of what may be of any, so that no two links are the same bytes.
    for part in (entry_id.encode(), header):
        whole.update(_NUMBER.pack(len(part)))
        whole.update(part)
    whole.update(b"".join([_NUMBER.pack(number) + event for number, event in events]))
    return whole.digest()
