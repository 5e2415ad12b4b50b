"""A model that takes what its process needs to live, importable where a worker unpickles it."""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

HOLDS = -88.0
"""Takes Python's lock and never gives it back, as an extension that hangs."""
HOARDS = -89.0
"""Takes all the memory there is, little by little, and keeps it."""
GASPS = -90.0
"""Asks for more memory than there is, once."""
SPARE_BYTES = 192 * 2**20
_hoard: list[Any] = []


class GreedyModel:
    """Doubles its first feature."""

    def predict(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        first = rows[:, 0]
        if HOLDS in first:
            ctypes.PyDLL(None).sleep(3600)
        if HOARDS in first:
            _limit_memory()
            for size in (2**20, 2**10, 2**5):
                _hoard_pieces(size)
            raise MemoryError
        if GASPS in first:
            _limit_memory()
            np.zeros(2**40)
        return first * 2


def _limit_memory() -> None:
    """To a little more than what this process has now, as `ulimit -v` would."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _hoard_pieces(size: int) -> None:
    try:
        while True:
            _hoard.append(bytearray(size))
    except MemoryError:
        return
