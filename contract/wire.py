"""Protobuf joined by hand, for the few messages that are made once per request on the hot path.

A serialized message is its fields one after the other in any order, so parts that a whole batch shares are serialized
once and joined with those of each request. Encoding rules: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations


def varint(number: int) -> bytes:
    """An unsigned integer, or a negative int64 as its two's complement, in base 128."""
    if 0 <= number < 128:
        return bytes((number,))
    number &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def tag_bytes(field: int) -> bytes:
    """The tag of a length-delimited field: bytes, string or message."""
    return varint(field << 3 | 2)


def length_delimited(tag: bytes, payload: bytes) -> bytes:
    """One bytes, string or message field, from its tag and its serialized payload."""
    size = len(payload)
    return b"%b%b%b" % (tag, bytes((size,)) if size < 128 else varint(size), payload)


def varint_field(field: int, number: int) -> bytes:
    """One integer, enum or bool field."""
    return varint(field << 3) + varint(number)


def timestamp(micros: int) -> bytes:
    """A serialized google.protobuf.Timestamp from microseconds since the Unix epoch, not negative."""
    seconds, rest = divmod(micros, 1_000_000)
    return b"\x08" + varint(seconds) + (b"\x10" + varint(rest * 1000) if rest else b"")
