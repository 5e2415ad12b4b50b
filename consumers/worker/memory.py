"""Memory: whether a process that ran out of it once can go on, and giving back what it does not need."""

from __future__ import annotations

import ctypes
from contextlib import suppress

ROOM_BYTES = 64 * 2**20


def has_room() -> bool:
    """Whether there is memory for another batch; who asked for far too much once has left it as it was."""
    try:
        bytearray(ROOM_BYTES)
    except MemoryError:
        return False
    return True


def give_back() -> None:
    """Returns freed memory to the system, which glibc keeps for later: loading frees a lot at once, and then no more.

    Nothing where the C library has no such call. https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
