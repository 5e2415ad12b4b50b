"""Entries: an admitted request as it stands in its lane, joined from parts that all requests to one version share.

Canonical, as the event log rebuilds it: in the order of the fields, and none that holds its default.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from contract.wire import length_delimited, moment_field, tag_bytes, varint_field
from protos import millstream_wire_v1_pb2 as wire

_REQUEST_ID, _MODEL_ID, _VERSION, _DIGEST = tag_bytes(1), tag_bytes(2), tag_bytes(3), tag_bytes(4)
_ENTITY_ID, _GATEWAY, _HYDRATED, _BODY_SHA256, _REPLAY = (tag_bytes(field) for field in (7, 11, 12, 16, 20))
_DEADLINE_US, _USER_REQUEST_US, _ADMITTED_US = b"\x40", b"\x48", b"\x50"
_of_a_turn = lru_cache(maxsize=64)(moment_field)
"""Times that all requests share which came together."""
_DEGRADED, _PACKED = varint_field(13, 1), varint_field(14, 1)


def _text(tag: bytes, text: bytes) -> bytes:
    return length_delimited(tag, text) if text else b""


@lru_cache(maxsize=1024)
def pinned(model_id: str, version: str, digest: bytes) -> bytes:
    """The fields that say what answers."""
    return _text(_MODEL_ID, model_id.encode()) + _text(_VERSION, version.encode()) + _text(_DIGEST, digest)


@lru_cache(maxsize=16)
def woken(gateway: str) -> bytes:
    """The field that says whom the reply wakes."""
    return _text(_GATEWAY, gateway.encode())


def extras(
    *,
    hydrated: Sequence[tuple[int, wire.Origin]] = (),
    degraded: bool = False,
    packed: bool = False,
    reply_ttl_s: int = 0,
    body_sha256: bytes = b"",
    replay: str = "",
) -> bytes:
    """The fields behind the gateway; most requests have none of them."""
    parts = [
        length_delimited(_HYDRATED, wire.Hydrated(index=index, origin=origin).SerializeToString())
        for index, origin in hydrated
    ]
    if degraded:
        parts.append(_DEGRADED)
    if packed:
        parts.append(_PACKED)
    if reply_ttl_s:
        parts.append(varint_field(15, reply_ttl_s))
    return b"".join(parts) + _text(_BODY_SHA256, body_sha256) + _text(_REPLAY, replay.encode())


def joined(
    request_id: str,
    pinned: bytes,
    rows_field: bytes,
    entity_id: str,
    deadline_us: int,
    user_request_us: int,
    admitted_us: int,
    woken: bytes,
    extras: bytes,
) -> bytes:
    """A serialized Entry."""
    return b"".join(
        (
            _text(_REQUEST_ID, request_id.encode()),
            pinned,
            rows_field,
            _text(_ENTITY_ID, entity_id.encode()) if entity_id else b"",
            _of_a_turn(_DEADLINE_US, deadline_us),
            _of_a_turn(_USER_REQUEST_US, user_request_us),
            moment_field(_ADMITTED_US, admitted_us),
            woken,
            extras,
        )
    )
