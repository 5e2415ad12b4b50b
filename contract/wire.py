"""Protobuf joined by hand, for the few messages that are made once per request on the hot path.

A serialized message is its fields one after the other in any order, so parts that a whole batch shares are serialized
once and joined with those of each request. Encoding rules: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from functools import lru_cache


def _varint(number: int) -> bytes:
    number &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


_SMALL = tuple(_varint(number) for number in range(2048))
"""Lengths, above all."""
_recent = lru_cache(maxsize=64)(_varint)
"""Times that a whole batch shares."""


class _Sizes(dict[int, bytes]):
    """Lengths as varints; those of small parts are kept."""

    def __missing__(self, size: int) -> bytes:
        return _varint(size)


SIZE = _Sizes(enumerate(_SMALL))
"""What stands in front of a part of so many bytes. Looked up where a call would take longer than the joining."""


def varint(number: int) -> bytes:
    """An unsigned integer, or a negative int64 as its two's complement, in base 128."""
    if 0 <= number < 2048:
        return _SMALL[number]
    if 0 < number < 1 << 28:
        return _varint(number)
    if 0 < number < 1 << 30:
        # The nanoseconds of most times.
        return bytes(
            (
                number & 127 | 128,
                number >> 7 & 127 | 128,
                number >> 14 & 127 | 128,
                number >> 21 & 127 | 128,
                number >> 28,
            )
        )
    return _recent(number)


def tag_bytes(field: int) -> bytes:
    """The tag of a length-delimited field: bytes, string or message."""
    return varint(field << 3 | 2)


def length_delimited(tag: bytes, payload: bytes) -> bytes:
    """One bytes, string or message field, from its tag and its serialized payload."""
    return b"".join((tag, SIZE[len(payload)], payload))


def varint_field(field: int, number: int) -> bytes:
    """One integer, enum or bool field."""
    return varint(field << 3) + varint(number)


def moment_field(tag: bytes, micros: int) -> bytes:
    """One integer field, not negative, that holds a time: its upper bits are those of all times within two seconds."""
    if micros < 1 << 21:
        return tag + varint(micros) if micros else b""
    low = micros & 0x1FFFFF
    return b"%b%c%c%c%b" % (tag, low & 127 | 128, low >> 7 & 127 | 128, low >> 14 | 128, _upper(micros >> 21))


_upper = lru_cache(maxsize=64)(_varint)


def timestamp(micros: int) -> bytes:
    """A serialized google.protobuf.Timestamp from microseconds since the Unix epoch, not negative."""
    seconds, rest = divmod(micros, 1_000_000)
    return _seconds(seconds) + b"\x10" + varint(rest * 1000) if rest else _seconds(seconds)


@lru_cache(maxsize=16)
def _seconds(seconds: int) -> bytes:
    return b"\x08" + varint(seconds) if seconds else b""


def map_order(key: str) -> bytes:
    """What the entries of a map are sorted by where it is serialized deterministically.

    Bytes, and behind all that begin with it what is the beginning of others: so protobuf's own library (upb) does it.
    """
    return key.encode() + b"\xff"
