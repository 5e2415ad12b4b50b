"""What a process on trial may take: limits it sets on itself before it unpickles anything, and can't lift again.

They hold a broken version. A hostile one is held by the user, the network and the files that its process has.
"""

from __future__ import annotations

import ctypes
import math
import os
import resource
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from contract.trial import in_words

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_LINUX = sys.platform.startswith("linux")

OPEN_FILES = 256
MORE_TASKS = 128
"""Threads and processes that a trial may add to those its user has."""


@dataclass(frozen=True, slots=True)
class Confinement:
    """The limits of one trial."""

    seconds: float
    memory: int

    @property
    def memory_in_words(self) -> str:
        return in_words(self.memory)

    def enter(self) -> None:
        """Confines this process for good."""
        _lower(resource.RLIMIT_CORE, 0)
        _lower(resource.RLIMIT_FSIZE, 0)
        _lower(resource.RLIMIT_NOFILE, OPEN_FILES)
        # A backstop alone: the time on the clock runs out first, unless many threads are at work.
        _lower(resource.RLIMIT_CPU, math.ceil(self.seconds) + 1)
        if _LINUX:  # macOS takes neither number to mean this
            _lower(resource.RLIMIT_AS, self.memory)
            if os.geteuid() != 0:  # it does not hold root
                _lower(resource.RLIMIT_NPROC, _tasks() + MORE_TASKS)
            _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def die_with_parent() -> None:
    """SIGKILL once the thread that started this process ends; Linux alone can do this."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def hide() -> None:
    """Nobody but root may look into this process's memory or trace it, its own user's other processes included."""
    _prctl(_PR_SET_DUMPABLE, 0)


def adopt_orphans() -> None:
    """What a child leaves behind becomes a child of this process, which can then end it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def children() -> list[int]:
    """Processes that this one is the parent of, the ended ones that nobody has waited for included."""
    if not _LINUX:
        return []
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has gone meanwhile
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found


def _lower(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (limit, limit))


def _prctl(option: int, value: int) -> None:
    if _LINUX and ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value}) was refused")


def _tasks() -> int:
    """Threads of all processes of this user."""
    count = 0
    for task in Path("/proc").glob("[0-9]*/task"):
        with suppress(OSError):
            if task.stat().st_uid == os.getuid():
                count += len(list(task.iterdir()))
    return count
