"""Crowds: who asked a slow model at once will mostly ask again at once, and one call for all costs little more.

A forest takes as long for one row as for fifty. A worker that had answered fifty callers, and took what was there a
moment later, worked for three of them while the others came, and took the time from those who bring them.

So it waits until as many are back as there were, while they come. Now and then it waits for more, as long as they come
faster than they would be answered: up to there the call gets cheaper by more than the wait costs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

CALL_S = 0.002
"""Shorter calls are not worth a wait."""
SILENCE_S, EACH_S = 0.002, 0.00015
"""Longest time in which nobody comes, and for each of the crowd: so long it may take to answer them all, and to bring
what they ask next."""
CALLS = 2.0
"""Longest wait, in calls, and as long as one without anybody may be; …"""
MOST_S = 0.02
"""… in seconds."""
STEP_S = 0.0025
"""Over so long it is seen how fast they come: a gateway appends many at once, a few milliseconds apart."""
RESTS, MOST_RESTS = 8, 64
"""After a wait for more that brought nobody, so many batches are called as soon as all are back; twice as many after
each further one in turn, up to the most."""


@dataclass(slots=True)
class _Crowd:
    """One that was answered, and is waited for."""

    since: float
    came_at: float
    """When the last of them came."""
    entries: int
    looked_at: float
    looked: int
    """How many were there one step ago."""


class Crowds:
    """What one worker knows of each model's. `call_s` says how long a call of a model takes, however few its rows."""

    def __init__(self, call_s: Callable[[str], float], clock: Callable[[], float] = time.perf_counter) -> None:
        self._call_s = call_s
        self._clock = clock
        self._seen: dict[str, int] = {}
        self._crowds: dict[str, _Crowd] = {}
        self._rests: dict[str, int] = {}
        """Batches until more are waited for again."""
        self._next_rests: dict[str, int] = {}
        """How many those will be after the next wait for more, if that brings nobody."""

    def slow(self, model_id: str) -> bool:
        """Whether its calls are worth a wait."""
        return self._call_s(model_id) >= CALL_S

    def read(self, model_id: str, entries: int) -> None:
        """A batch was read where so many entries stood, with those that other workers have."""
        self._crowds.pop(model_id, None)
        if rests := self._rests.get(model_id, 0):
            self._rests[model_id] = rests - 1
        elif entries <= self._seen.get(model_id, 0):
            self._rests[model_id] = self._next_rests.get(model_id, RESTS)
            self._next_rests[model_id] = min(2 * self._rests[model_id], MOST_RESTS)
        else:
            self._next_rests.pop(model_id, None)
        if self.slow(model_id):
            self._seen[model_id] = entries
        else:
            self._seen.pop(model_id, None)

    def answered(self, model_id: str) -> None:
        """That batch is completed: from now on they may come again."""
        if self._seen.get(model_id, 0) > 1:
            now = self._clock()
            self._crowds[model_id] = _Crowd(now, now, 0, now, 0)

    def awaits(self, model_id: str, entries: int) -> bool:
        """Whether more than these are waited for."""
        crowd = self._crowds.get(model_id)
        if crowd is None:
            return False
        now = self._clock()
        if entries > crowd.entries:
            crowd.entries, crowd.came_at = entries, now
        if not self._is_coming(model_id, crowd, now):
            return False
        came, during = entries - crowd.looked, now - crowd.looked_at
        if during >= STEP_S:
            crowd.looked_at, crowd.looked = now, entries
        if entries < self._seen[model_id]:
            return True
        if self._rests.get(model_id, 0):
            return False
        if during < STEP_S:
            return True
        return came / during > entries / (self._call_s(model_id) + now - crowd.since)

    @property
    def expected(self) -> bool:
        """Whether anybody is waited for."""
        now = self._clock()
        self._crowds = {name: crowd for name, crowd in self._crowds.items() if self._is_coming(name, crowd, now)}
        return bool(self._crowds)

    def _is_coming(self, model_id: str, crowd: _Crowd, now: float) -> bool:
        silence_s = SILENCE_S + EACH_S * self._seen[model_id]
        longest_s = min(MOST_S, CALLS * self._call_s(model_id) + silence_s)
        return now < min(crowd.came_at + silence_s, crowd.since + longest_s)
