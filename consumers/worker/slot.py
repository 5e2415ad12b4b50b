"""The slot: a worker's place in its pool, and which of the big models are its own.

A model's memory is taken once in every process that loads it. So a big one is loaded by the first few processes of a
pool alone, and those compute it with several threads; everything else is computed by all of them, with one.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from contract.record import Version
from contract.settings import Settings


@dataclass(frozen=True, slots=True)
class Slot:
    """What follows from a worker's place; the default is a worker alone, to which no model is big."""

    number: int = 0
    """From 1 on, the same for whoever takes a dead worker's place; 0: no pool, and then nothing is left to others."""
    big_bytes: float = float("inf")
    """A version whose artifacts have more bytes together is big."""
    big_workers: int = 1
    """How many of a pool serve big versions."""
    big_threads: int = 1
    """How many threads compute one."""

    @classmethod
    def of(cls, settings: Settings) -> Slot:
        # Of workers that know of no pool there may be as many as cores.
        threads = settings.big_model_threads or (cores() if settings.slot else 1)
        return cls(settings.slot, settings.big_model_bytes, settings.big_model_workers, threads)

    def leaves(self, version: Version) -> bool:
        """Whether a version is left to other workers of the pool."""
        return self.number > self.big_workers and self._is_big(version)

    def threads(self, version: Version) -> int:
        """How many threads compute a version here."""
        return self.big_threads if self._is_big(version) else 1

    def _is_big(self, version: Version) -> bool:
        return sum(artifact.size for artifact in version.artifacts) > self.big_bytes


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
