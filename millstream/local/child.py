"""What a child process is: what to run, how it ends, and how long to wait before it runs again."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a child that ended waits before it starts again, in seconds."""

    first: float = 0.05
    most: float = 5.0
    reset_after: float = 10.0

    def streak(self, before: int, lived: float) -> int:
        """Ends in a row, this one included: a long life pays for what went before."""
        return 1 if lived >= self.reset_after else before + 1

    def delay(self, streak: int) -> float:
        return min(self.most, self.first * 2.0 ** min(streak - 1, 30))


@dataclass(frozen=True, slots=True)
class Child:
    """What to run and how it is treated; `env` adds to the parent's environment.

    `orphan_signal` is what it gets the moment its parent dies; None lets it outlive the parent, so it must know
    its own end. `fds` are the descriptors it inherits; None means the supervisor's.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    restart: bool = True
    stop_signal: signal.Signals = signal.SIGTERM
    orphan_signal: signal.Signals | None = signal.SIGKILL
    fds: tuple[int, ...] | None = None
    backoff: Backoff = Backoff()

    def __post_init__(self) -> None:
        # The name becomes the name of a log file.
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", self.name):
            raise ValueError(f"a child's name has letters, digits, '.', '_' and '-', not {self.name!r}")


class ChildFailed(Exception):
    """A child that never served; the message holds the reason and the last lines of its log."""

    def __init__(self, name: str, reason: str, log: Path, lines: tuple[str, ...]) -> None:
        tail = "".join(f"\n    {line}" for line in lines)
        super().__init__(f"{name} did not start: {reason} (log: {log}){tail}")
        self.name = name
        self.reason = reason
        self.log = log
        self.lines = lines
