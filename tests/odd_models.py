"""Models that misbehave on request, importable where a worker unpickles them."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

RAISES = -13.0
INTERRUPTS = -14.0
CRASHES = -66.0
EXITS = -67.0
HANGS = -77.0
SEGFAULTS = -139.0
POLL_S = 0.002


class OddModel:
    """Doubles its first feature; certain values of it raise, end the process, or never come back.

    `folder` is where tests steer it and look: while `closed` exists there, every call waits; `calls` gets a line per
    call, the values of its first column, before anything else happens. A `tame` one answers every value.
    """

    def __init__(self, folder: Path, *, tame: bool = False) -> None:
        self.folder = folder
        self.tame = tame

    def predict(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        first = rows[:, 0]
        with (self.folder / "calls").open("a") as calls:
            calls.write(" ".join(map(repr, first.tolist())) + "\n")
        while (self.folder / "closed").exists():
            time.sleep(POLL_S)
        if self.tame:
            return first * 2
        if RAISES in first:
            raise ValueError("minus thirteen is not a number this model likes")
        if INTERRUPTS in first:
            raise KeyboardInterrupt
        if CRASHES in first:
            os.kill(os.getpid(), signal.SIGKILL)
        if EXITS in first:
            os._exit(3)
        if SEGFAULTS in first:
            ctypes.string_at(0)
        if HANGS in first:
            while True:
                time.sleep(POLL_S)
        return first * 2


class TextModel:
    """Answers every row with a text of `length` characters, so that a reply can be made as large as wanted."""

    def __init__(self, length: int) -> None:
        self.length = length

    def predict(self, rows: npt.NDArray[np.float64]) -> Any:
        return np.array(["x" * self.length] * len(rows))
