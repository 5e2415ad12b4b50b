"""A model of a known pace, importable where a worker unpickles it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt


class SlowModel:
    """Takes `row_s` seconds for each row, however many there are, and doubles its first feature."""

    def __init__(self, row_s: float) -> None:
        self.row_s = row_s

    def predict(self, rows: npt.NDArray[np.float64]) -> Any:
        time.sleep(self.row_s * len(rows))
        return rows[:, 0] * 2
