"""A sink as a process of its own, for tests that kill it: URL PREFIX DATABASE [before|after COMMIT].

It prints a line when it is ready, stops in order on SIGTERM, and where it is told so kills itself right before or right
after its nth commit, when the rows are inserted and nobody has been told.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from consumers.event_database import EventDatabase, EventDatabaseError
from consumers.sink import run_sink
from contract.log import set_up_log
from contract.settings import Settings


class _Deadly:
    """A connection whose nth commit is the last thing its process does, or nearly does."""

    def __init__(self, connection: Any, when: str, commits: int) -> None:
        self._connection = connection
        self._when = when
        self._commits = commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def commit(self) -> None:
        self._commits -= 1
        if self._commits == 0 and self._when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        self._connection.commit()
        if self._commits == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> int:
    url, prefix, database, *deadly = sys.argv[1:]
    if deadly:
        when, commits = deadly
        opened = EventDatabase._open

        def open_deadly(database: EventDatabase) -> Any:
            return _Deadly(opened(database), when, int(commits))

        EventDatabase._open = open_deadly  # type: ignore[assignment,method-assign]
    settings = Settings.read(prefix=prefix)
    set_up_log(settings, "sink")
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        run_sink(
            settings,
            redis_url=url,
            database=Path(database),
            listen="",
            on_ready=lambda: print("ready", flush=True),
            stop=stop,
        )
    except EventDatabaseError as error:
        print(error, flush=True)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
