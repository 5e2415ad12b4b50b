"""The bytes of a batch's header and of each event, cut out of the batch as it stood in the stream."""

from __future__ import annotations

from typing import NamedTuple

_HEADER, _EVENT = 1 << 3 | 2, 2 << 3 | 2
_VARINT, _FIXED64, _BYTES, _GROUP, _END, _FIXED32 = range(6)


class Pieces(NamedTuple):
    """What an `EventBatch` is made of."""

    header: bytes
    """Empty where it has none. Several of them, which no process of ours writes, are one when joined."""
    events: list[bytes]
    plain: bool = False
    """Whether it is one header and then events, and nothing else."""


def cut(raw: bytes) -> Pieces:
    """Raises ValueError for what is no message; one that protobuf has parsed is."""
    headers: list[bytes] = []
    events: list[bytes] = []
    at, end = 0, len(raw)
    plain = True
    try:
        while at < end:
            # An event of 128 to 16,383 bytes, which nearly all are.
            if raw[at] == _EVENT and raw[at + 1] > 127 and (high := raw[at + 2]) < 128:
                start = at + 3
                at = start + (raw[at + 1] & 127 | high << 7)
                events.append(raw[start:at])
                continue
            plain = at == 0 and raw[0] == _HEADER and (raw[1] < 128 or raw[2] < 128)
            tag, at = _varint(raw, at)
            if tag in (_HEADER, _EVENT):
                size, at = _varint(raw, at)
                (events if tag == _EVENT else headers).append(raw[at : at + size])
                at += size
            else:
                at = _behind(raw, tag, at)
    except IndexError:
        at = end + 1
    if at != end:
        raise ValueError("the batch ends within a field")
    return Pieces(b"".join(headers), events, plain)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """A number, and where what follows it begins. Raises IndexError."""
    number = shift = 0
    while True:
        part = raw[at]
        at += 1
        number |= (part & 127) << shift
        if part < 128:
            return number, at
        shift += 7


def _behind(raw: bytes, tag: int, at: int) -> int:
    """Where what follows a field that nobody here knows begins. Raises IndexError or ValueError."""
    depth = 0
    while True:
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(raw, at)
        elif kind == _FIXED64:
            at += 8
        elif kind == _BYTES:
            size, at = _varint(raw, at)
            at += size
        elif kind == _GROUP:
            depth += 1
        elif kind == _END:
            depth -= 1
        elif kind == _FIXED32:
            at += 4
        else:
            raise ValueError(f"expected a field, got tag {tag}")
        if depth <= 0:
            return at
        tag, at = _varint(raw, at)
