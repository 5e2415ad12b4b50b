"""Memory: whether a process that ran out of it once can go on."""

from __future__ import annotations

ROOM_BYTES = 64 * 2**20


def has_room() -> bool:
    """Whether there is memory for another batch; who asked for far too much once has left it as it was."""
    try:
        bytearray(ROOM_BYTES)
    except MemoryError:
        return False
    return True
