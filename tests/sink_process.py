"""Sinks as processes, for tests that end them: python -m tests.sink_process URL PREFIX DATABASE.

Each line on stdin is a life: a JSON object with the fields of `Life`. It is forked from here, where everything is
imported already, and this prints the pid, `ready` once the sink is, and `ended` with its exit status, negative for a
signal. A sink stops in order on SIGTERM.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import consumers.sink.recovery
import consumers.sink.sink
from consumers.sink.database import Batch, EventDatabase, EventDatabaseError
from consumers.sink.sink import run_sink
from consumers.sink.streams import EventStreams
from contract.log import set_up_log
from contract.settings import Settings

BEFORE = ("read", "begun", "rows", "positions", "before commit")
"""Points of a pass at which nothing of it is committed."""
AFTER = ("after commit", "before trim", "after trim")
"""Points at which all of it is."""


@dataclass(frozen=True, slots=True)
class Life:
    """How one sink lives, and where it ends."""

    dies_at: str = ""
    """One of the points; empty: nowhere."""
    time: int = 1
    """Which time it passes there."""
    naive: str = ""
    """`position first` or `rows first`: both in a transaction of their own, as no sink should."""
    file_bytes: int = 0
    """No file may grow above that, as on a full disk; 0: no limit."""
    accept_gap: bool = False

    def to_line(self) -> str:
        return json.dumps(asdict(self)) + "\n"


class Death:
    """Kills this process where it passes its point for the nth time."""

    def __init__(self, life: Life) -> None:
        self._point = life.dies_at
        self._left = life.time

    def passes(self, point: str) -> None:
        if point == self._point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


POINTS = {
    "rows": ("INSERT INTO events",),
    "positions": ("INSERT INTO positions", "UPDATE positions"),
}
"""What a statement that was executed begins with."""


class WatchedConnection:
    """A connection to the event database whose steps are points."""

    def __init__(self, connection: Any, death: Death) -> None:
        self._connection = connection
        self._death = death

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def begin(self) -> None:
        self._connection.begin()
        self._death.passes("begun")

    def execute(self, sql: str, parameters: Any = None) -> Any:
        answer = self._connection.execute(sql, parameters)
        for point, starts in POINTS.items():
            if sql.startswith(starts):
                self._death.passes(point)
        return answer

    def commit(self) -> None:
        self._death.passes("before commit")
        self._connection.commit()
        self._death.passes("after commit")


def watch(death: Death) -> None:
    """Makes the steps of every sink of this process points."""
    opened, read, trim = EventDatabase._open, EventStreams.read, EventStreams.trim

    def open_watched(database: EventDatabase) -> Any:
        return WatchedConnection(opened(database), death)

    def read_watched(streams: EventStreams, starts: Any, block: int | None) -> Any:
        found = read(streams, starts, block)
        if found:
            death.passes("read")
        return found

    def trim_watched(streams: EventStreams, positions: Any) -> Any:
        death.passes("before trim")
        left = trim(streams, positions)
        death.passes("after trim")
        return left

    EventDatabase._open = open_watched  # type: ignore[assignment,method-assign]
    EventStreams.read = read_watched  # type: ignore[assignment,method-assign]
    EventStreams.trim = trim_watched  # type: ignore[assignment,method-assign]


def make_naive(order: str) -> None:
    """Two transactions where there should be one."""
    commit: Callable[[EventDatabase, Batch], None] = EventDatabase.commit

    def commit_apart(database: EventDatabase, batch: Batch) -> None:
        halves = [replace(batch, links=(), gaps=()), replace(batch, positions={})]
        for half in halves if order == "position first" else reversed(halves):
            commit(database, half)

    EventDatabase.commit = commit_apart  # type: ignore[assignment,method-assign]


def live(life: Life, url: str, prefix: str, database: Path) -> int:
    """One sink from its start to its end; the exit status."""
    if life.file_bytes:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (life.file_bytes, most))
    # Commits follow one another at once: it is their order that these tests are about. Each pass looks whether a
    # recovery is over.
    consumers.sink.sink.GROUP_S = 0.02
    consumers.sink.recovery.LOOK_S = 0.0
    if life.naive:
        make_naive(life.naive)
    watch(Death(life))
    settings = Settings.read(prefix=prefix)
    set_up_log(settings, "sink")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        run_sink(
            settings,
            redis_url=url,
            database=database,
            listen="",
            on_ready=lambda: say("ready"),
            stop=stop,
            accept_gap=life.accept_gap,
        )
    except EventDatabaseError as error:
        say(str(error))
        return 3
    return 0


def say(line: str) -> None:
    os.write(1, line.encode() + b"\n")


def end_with_parent() -> None:
    """Nothing is left behind where a test run is killed (Linux; elsewhere the ends of the tests take care)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, int(signal.SIGKILL))


def main() -> int:
    url, prefix, database = sys.argv[1:]
    end_with_parent()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            end_with_parent()
            try:
                os._exit(live(Life(**json.loads(line)), url, prefix, Path(database)))
            finally:
                os._exit(1)
        say(str(child))
        _, status = os.waitpid(child, 0)
        say(f"ended {os.waitstatus_to_exitcode(status)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
