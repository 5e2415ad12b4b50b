"""Crowds: who asked a slow model at once will mostly ask again at once, and one call for all costs little more.

A forest takes as long for one row as for fifty. A worker that had answered fifty callers, and took what was there a
moment later, worked for three of them while the others came, and took the time from those who bring them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

CALL_S = 0.002
"""Shorter calls are not worth a wait."""
SHARE = 0.6
"""Longest wait, as a share of the call's time, and …"""
MOST_S = 0.008
"""… in seconds."""


class Crowds:
    """What one worker knows of each model's. `call_s` says how long a call of a model takes, however few its rows."""

    def __init__(self, call_s: Callable[[str], float], clock: Callable[[], float] = time.perf_counter) -> None:
        self._call_s = call_s
        self._clock = clock
        self._seen: dict[str, int] = {}
        self._until: dict[str, float] = {}

    def slow(self, model_id: str) -> bool:
        """Whether its calls are worth a wait."""
        return self._call_s(model_id) >= CALL_S

    def read(self, model_id: str, entries: int) -> None:
        """A batch was read where so many entries stood, with those that other workers have."""
        if self.slow(model_id):
            self._seen[model_id] = entries
        else:
            self._seen.pop(model_id, None)

    def answered(self, model_id: str) -> None:
        """That batch is completed: from now on they may come again."""
        if self._seen.get(model_id, 0) > 1:
            self._until[model_id] = self._clock() + min(MOST_S, SHARE * self._call_s(model_id))

    def awaits(self, model_id: str, entries: int) -> bool:
        """Whether more than these are waited for."""
        return entries < self._seen.get(model_id, 0) and self._clock() < self._until.get(model_id, 0.0)

    @property
    def expected(self) -> bool:
        """Whether anybody is waited for."""
        now = self._clock()
        self._until = {model_id: until for model_id, until in self._until.items() if now < until}
        return bool(self._until)
