"""The lives of a sink on one event log, what is written meanwhile, and the books that are closed afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import duckdb

from consumers.audit.chain import BEGINNING
from consumers.audit.rebuild import links, read_rows
from tests.conditions import eventually
from tests.event_entries import EventStream, ok
from tests.servers import ROOT
from tests.sink_process import Life


class Sinks:
    """Sink processes, one after another, on the same database; they end with the block."""

    def __init__(self, url: str, prefix: str, folder: Path) -> None:
        self.database = folder / "events.duckdb"
        self._command = [sys.executable, "-m", "tests.sink_process", url, prefix, str(self.database)]
        self._log = folder / "sink.log"
        self.pid = 0
        """Of the sink that lives."""

    def __enter__(self) -> Self:
        with self._log.open("a") as log:
            self._parent = subprocess.Popen(
                self._command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._parent.kill()
        self._parent.communicate()

    @property
    def log(self) -> str:
        """All that they said of themselves."""
        return self._log.read_text()

    def _line(self) -> str:
        assert self._parent.stdout is not None
        return self._parent.stdout.readline().strip()

    def begin(self, life: Life) -> None:
        """Starts one; the one before has ended."""
        assert self._parent.stdin is not None
        self._parent.stdin.write(life.to_line())
        self._parent.stdin.flush()
        self.pid = int(self._line())

    def begin_ready(self, life: Life | None = None) -> None:
        """Starts one and waits until it is ready; fails where it ends before."""
        self.begin(life or Life())
        said = self._line()
        assert said == "ready", said

    def end(self) -> int:
        """Waits for its end; the exit status."""
        while not (said := self._line()).startswith("ended "):
            assert said, "the process that starts sinks has ended"
        self.pid = 0
        return int(said.removeprefix("ended "))

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL, where one lives."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGKILL)
            self.end()

    def killed(self, life: Life) -> None:
        """One life to its own end."""
        self.begin(life)
        assert self.end() == -signal.SIGKILL

    @contextmanager
    def running(self, life: Life | None = None) -> Iterator[None]:
        """One that serves, and is stopped in order."""
        self.begin_ready(life)
        try:
            yield
        except BaseException:
            self.kill()
            raise
        if self.pid:
            self.send(signal.SIGTERM)
            assert self.end() == 0


class Writer:
    """Appends entries of one to four events until it is told to stop."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.accepted: set[str] = set()

    def _run(self) -> None:
        count = 0
        while not self._stop.wait(0.001):
            ids = [f"r{count + at}" for at in range(1 + count % 4)]
            self._stream.append(*map(ok, ids))
            count += len(ids)
            self.accepted.update(ids)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def emptied(stream: EventStream, within: float = 30.0) -> None:
    """Waits until everything in the stream is committed, and trimmed."""
    eventually(lambda: stream.length == 0, within)


def select(database: Path, sql: str) -> list[tuple[Any, ...]]:
    """What stands in the file, while no sink holds it."""
    with duckdb.connect(str(database), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def closed(database: Path, accepted: Collection[str]) -> None:
    """Raises AssertionError unless each accepted request is in the log once, and nothing else is."""
    recorded = Counter(request_id for (request_id,) in select(database, "SELECT request_id FROM events"))
    lost = set(accepted) - recorded.keys()
    twice = {request_id for request_id, rows in recorded.items() if rows > 1}
    assert not lost, f"{len(lost)} of {len(accepted)} accepted requests are not in the log: {sorted(lost)[:5]}"
    assert not twice, f"{len(twice)} requests are in the log more than once: {sorted(twice)[:5]}"
    assert recorded.keys() == set(accepted)
    [(sequences, last)] = select(database, "SELECT count(DISTINCT sequence), max(sequence) FROM events")
    assert (sequences, last) == (len(accepted), len(accepted))
    chained(database)


def chained(database: Path) -> None:
    """Raises AssertionError unless the rows give the chain, link by link, and the position stands at its end.

    Of a log of which nothing is sealed.
    """
    found: dict[str, bytes] = {}
    numbers: dict[str, int] = {}
    with duckdb.connect(str(database), read_only=True) as connection:
        for link in links(read_rows(connection)):
            found[link.model_id] = link.after(found.get(link.model_id, BEGINNING))
            assert found[link.model_id] == link.chain, f"the chain breaks at {link.model_id} {link.entry_id}"
            for event in link.events:
                assert event.number > numbers.get(link.model_id, 0), f"{event.number} is not above the one before"
                numbers[link.model_id] = event.number
        positions = connection.execute("SELECT model_id, chain, number + ahead FROM positions").fetchall()
    assert found == {model_id: value for model_id, value, _ in positions if value != BEGINNING}
    assert all(numbers.get(model_id, 0) <= last for model_id, _, last in positions)


def gaps(database: Path) -> list[tuple[Any, ...]]:
    """(expected, found, why) of each, in the order they were noted."""
    return select(database, "SELECT expected, found, why FROM gaps ORDER BY noted_at, expected")
