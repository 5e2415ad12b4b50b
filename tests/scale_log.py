"""A log of great size, made as the sink makes it: decoded, committed, and sealed meanwhile; and what that took."""

from __future__ import annotations

import contextlib
import resource
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import numpy as np

from consumers.audit.inspection import Finding
from consumers.audit.segment import Segment
from consumers.sink.database import Batch, EventDatabase
from consumers.sink.position import Position
from consumers.sink.rows import Link
from consumers.sink.sealing import Cut, Sealing
from tests.rebuild import Progress
from tests.scale_events import KINDS, TURN, entries

HOURS = 8
LARGE = "roi_prediction"
"""The model whose segments are as large as they get; those of the others have an hour."""
LARGEST = 2_000_000


class TimedSealing(Sealing):
    """Sealing that knows at which step it is, and how long each took."""

    def __init__(self, database: EventDatabase) -> None:
        super().__init__(database)
        self.step = ""
        self.seconds = {"write": 0.0, "read back": 0.0, "list": 0.0}
        self.longest = dict(self.seconds)

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        self.step, began = step, time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - began
            self.seconds[step] += took
            self.longest[step] = max(self.longest[step], took)
            self.step = ""

    def _write(self, cursor: duckdb.DuckDBPyConnection, cut: Cut, path: Path, order: str = "") -> None:
        with self._timed("write"):
            super()._write(cursor, cut, path, order)

    def _inspect(self, path: Path, before: bytes) -> Finding:
        with self._timed("read back"):
            return super()._inspect(path, before)

    def _list(self, cursor: duckdb.DuckDBPyConnection, cut: Cut, segment: Segment) -> None:
        with self._timed("list"):
            super()._list(cursor, cut, segment)


@dataclass(slots=True)
class Filling:
    """What it took to make a log."""

    events: int = 0
    decode_us: float = 0.0
    commit_us: float = 0.0
    """CPU of the writing thread for one event, in microseconds."""
    seconds: float = 0.0
    """Wall, of decoding and committing."""
    commits: dict[str, list[float]] = field(default_factory=dict)
    """What was sealed meanwhile -> seconds that each commit took."""
    segments: int = 0
    sealed: int = 0
    largest: int = 0
    seal_seconds: dict[str, float] = field(default_factory=dict)
    seal_longest: dict[str, float] = field(default_factory=dict)
    sealed_bytes: int = 0
    live: int = 0
    live_bytes: int = 0
    file_bytes: int = 0
    peak_rss: int = 0
    child_rss: int = 0

    def told(self) -> dict[str, Any]:
        """All of it, with the commits in short."""
        return {
            **asdict(self),
            "commits": {
                step or "nothing": {
                    "commits": len(took),
                    "median_ms": round(float(np.median(took)) * 1e3, 1),
                    "p99_ms": round(float(np.percentile(took, 99)) * 1e3, 1),
                    "worst_ms": round(max(took) * 1e3, 1),
                }
                for step, took in self.commits.items()
            },
        }


def segment_rows(model_id: str, events: int) -> int:
    """Rows of a segment, in a log of so many events."""
    if model_id == LARGE:
        return min(LARGEST, events // 5)
    return next(events * kind.parts // TURN // HOURS for kind in KINDS if kind.model_id == model_id)


def committed(database: EventDatabase, events: int, filling: Filling) -> Iterator[int]:
    """How many there are, after each commit."""
    for some in entries(events, HOURS):
        began, cpu = time.monotonic(), time.thread_time()
        links = tuple(Link.decode(each.model_id, each.entry_id, each.fields) for each in some)
        decoded = time.thread_time()
        batch = Batch(links, (), {each.model_id: Position(each.entry_id, each.number, "epoch") for each in some})
        filling.decode_us += (decoded - cpu) * 1e6
        database.commit(batch)
        filling.commit_us += (time.thread_time() - decoded) * 1e6
        filling.seconds += time.monotonic() - began
        filling.events += batch.events
        yield filling.events


def fill(folder: Path, events: int) -> Filling:
    """Writes the log; each model but for what is left of its last hour is sealed when this returns."""
    filling = Filling()
    database = EventDatabase(folder / "events.duckdb")
    try:
        sealing = TimedSealing(database)
        filled = threading.Event()
        failed: list[BaseException] = []

        def seal() -> None:
            try:
                last = False
                while not last:
                    last = filled.wait(0.5)
                    for kind in KINDS:
                        rows = segment_rows(kind.model_id, events)
                        for segment in sealing.seal(kind.model_id, most_rows=rows, least_rows=rows):
                            filling.segments += 1
                            filling.sealed += segment.rows
                            filling.sealed_bytes += segment.size
                            filling.largest = max(filling.largest, segment.rows)
            except BaseException as error:  # noqa: BLE001 - the thread that waits for it raises it
                failed.append(error)

        thread = threading.Thread(target=seal, name="sealing")
        thread.start()
        try:
            progress = Progress("recorded", events)
            timed = _timed_commits(database, sealing, filling)
            with timed:
                for done in committed(database, events, filling):
                    progress.at(done)
                    if failed:
                        break
        finally:
            filled.set()
            thread.join()
        if failed:
            raise failed[0]
        filling.decode_us /= filling.events
        filling.commit_us /= filling.events
        filling.seal_seconds, filling.seal_longest = sealing.seconds, sealing.longest
        filling.peak_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        filling.child_rss = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
        filling.file_bytes = (folder / "events.duckdb").stat().st_size
        with contextlib.closing(database.cursor()) as cursor:
            cursor.execute("CHECKPOINT")
            [(filling.live,)] = cursor.execute("SELECT count(*) FROM events").fetchall()
            cursor.execute("SELECT used_blocks * block_size FROM pragma_database_size()")
            [(filling.live_bytes,)] = cursor.fetchall()
    finally:
        database.close()
    return filling


@contextlib.contextmanager
def _timed_commits(database: EventDatabase, sealing: TimedSealing, filling: Filling) -> Iterator[None]:
    commit = database.commit

    def timed(batch: Batch) -> None:
        before, began = sealing.step, time.monotonic()
        commit(batch)
        took = time.monotonic() - began
        # A step that began meanwhile may have held it up as well.
        step = max((before, sealing.step), key=("", "read back", "write", "list").index)
        filling.commits.setdefault(step, []).append(took)

    database.commit = timed  # type: ignore[method-assign]
    try:
        yield
    finally:
        del database.commit
