"""Sealings that are killed at a step of theirs: python -m tests.segment_lives DATABASE.

Each line on stdin is a step, empty for none. A process forked from here, where everything is imported already, seals
all that is live in the database, and is killed where that step begins; this prints its exit status.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import consumers.sink.sealing as sealing_module
from consumers.audit.inspection import inspect
from consumers.sink.database import EventDatabase
from consumers.sink.sealing import Sealing

STEPS = ("write", "check", "place", "sync manifest", "list", "delete", "commit", "committed")
"""In their order; all before the last leave the rows live."""


def killed_at(step: str) -> None:
    """Makes this process die where that step begins."""

    def before(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*arguments: Any, **named: Any) -> Any:
            if name == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return act(*arguments, **named)

        return watched

    for name in ("write", "check", "place", "list"):
        setattr(Sealing, f"_{name}", before(name, getattr(Sealing, f"_{name}")))
    sealing_module.write_synced = before("sync manifest", sealing_module.write_synced)
    cursor = EventDatabase.cursor

    class Watched:
        """A cursor whose statements are steps."""

        def __init__(self, database: EventDatabase) -> None:
            self._cursor = cursor(database)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._cursor, name)

        def execute(self, sql: str, *parameters: Any) -> Any:
            if sql.startswith("DELETE FROM events"):
                before("delete", lambda: None)()
            return self._cursor.execute(sql, *parameters)

        def commit(self) -> None:
            before("commit", lambda: None)()
            self._cursor.commit()
            before("committed", lambda: None)()

    EventDatabase.cursor = lambda database: Watched(database)  # type: ignore[assignment,method-assign,return-value]


def inspect_here() -> None:
    """Files are inspected in this process, which is quicker than to begin another."""
    Sealing._inspect = lambda _sealing, path, before: inspect(path, before)  # type: ignore[assignment,method-assign]


def live(database: Path, step: str) -> None:
    inspect_here()
    killed_at(step)
    opened = EventDatabase(database)
    Sealing(opened).seal(most_rows=1_000_000)
    opened.close()


def main() -> int:
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                live(Path(sys.argv[1]), line.strip())
                os._exit(0)
            finally:
                os._exit(1)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
