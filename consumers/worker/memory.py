"""Memory: whether a process that ran out of it once can go on, and giving back what it does not need."""

from __future__ import annotations

import ctypes
from contextlib import suppress

ROOM_BYTES = 64 * 2**20
_M_MMAP_THRESHOLD = -3
"""Of malloc.h. https://man7.org/linux/man-pages/man3/mallopt.3.html"""


def has_room() -> bool:
    """Whether there is memory for another batch; who asked for far too much once has left it as it was."""
    try:
        bytearray(ROOM_BYTES)
    except MemoryError:
        return False
    return True


def give_back() -> None:
    """Returns freed memory to the system, which malloc keeps for later: loading frees a lot at once, and then no more.

    By mimalloc where the process has that one, else by glibc; nothing where the C library has no such call.
    https://man7.org/linux/man-pages/man3/malloc_trim.3.html
    """
    with suppress(AttributeError, OSError, TypeError):
        here = ctypes.CDLL(None)
        try:
            here.mi_collect(True)
        except AttributeError:
            here.malloc_trim(0)


def give_back_each(least: int) -> None:
    """From now on whatever has at least so many bytes goes back to the system the moment that it is freed.

    glibc raises that limit by itself up to 32 MiB, so that chunks of an artifact leave holes which nobody fills. For a
    process that computes with large arrays it would be a loss: each would be fetched from the system anew.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, least)
