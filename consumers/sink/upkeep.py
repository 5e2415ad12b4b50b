"""What is done with the log beside writing it: leftovers tidied, segments sealed, copied elsewhere, removed.

start:   what a sink that died left on disk
thread:  every few seconds what is due is sealed, and what is kept too long is removed
thread:  every few seconds what is sealed and not copied elsewhere yet is
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path

import duckdb
import structlog

from consumers.audit.heads import Keep, KeepFailed
from consumers.audit.log_files import parquet
from consumers.audit.segment import Segment
from consumers.sink.database import EventDatabase
from consumers.sink.position import entry_order
from consumers.sink.retention import Retention, remove
from consumers.sink.sealing import PREFIX, Sealing, Unsound
from contract.settings import Settings

log = structlog.get_logger()

LOOK_S = 5.0
AGAIN_S = 300.0
"""How long a model is left alone whose rows could not be sealed."""
FOLDER = "events"
"""First part of the names that segments are kept elsewhere under."""


class Upkeep:
    """Its threads share the database with the writer, and never hold it up."""

    def __init__(
        self,
        settings: Settings,
        database: EventDatabase,
        keep: Keep | None = None,
        *,
        on_sealed: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._keep = keep
        self._on_sealed = on_sealed
        self._segment_rows = settings.segment_rows
        self._segment_us = int(settings.segment_seconds * 1e6)
        self._retention = Retention(settings.event_retention_days, int(settings.event_retention_bytes))
        self.sealing = Sealing(database)
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._again_at: dict[str, float] = {}
        self._told: dict[str, str] = {}
        self.notes: Mapping[str, str] = {}
        """model_id -> why its rows can't be sealed. Replaced, never changed: other threads read it."""

    def start(self) -> None:
        """Tidies, and then begins."""
        self._tried("tidying", self.tidy)
        self._threads = [threading.Thread(target=self._run, args=("sealing", self.look), name="sealing", daemon=True)]
        if self._keep is not None:
            copying = threading.Thread(target=self._run, args=("copying", self.copy), name="copying", daemon=True)
            self._threads.append(copying)
        for thread in self._threads:
            thread.start()

    def stop(self, within_s: float = 5.0) -> None:
        """Ends them; a segment that is being written then is begun anew at the next start."""
        self._stop.set()
        self.sealing.cancel()
        for thread in self._threads:
            thread.join(within_s)

    def seal(self, model_id: str) -> list[Segment]:
        """Seals what is in no segment, of a model or of all. Raises Unsound, duckdb.Error, OSError."""
        segments = self.sealing.seal(model_id, most_rows=self._segment_rows)
        if segments:
            self._on_sealed()
        return segments

    def _run(self, what: str, look: Callable[[], None]) -> None:
        while not self._stop.is_set():
            self._tried(what, look)
            self._stop.wait(LOOK_S)

    def _tried(self, what: str, act: Callable[[], None]) -> None:
        """What goes wrong is said once, and tried again at the next look."""
        try:
            act()
        except Exception as error:
            text = str(error).splitlines()[0] if str(error) else type(error).__name__
            if self._told.get(what) != text and not self._stop.is_set():
                expected = isinstance(error, duckdb.Error | OSError | KeepFailed)
                log.error(f"{what} of segments failed; trying again", error=text, exc_info=not expected)
            self._told[what] = text
        else:
            self._told.pop(what, None)

    # ------------------------------------------------------------------ sealing, retention

    def look(self) -> None:
        """Seals what is due, and removes what is kept too long. Raises duckdb.Error, OSError."""
        with contextlib.closing(self._database.cursor()) as cursor:
            for model_id, least_rows in self._due(cursor).items():
                self._seal(model_id, least_rows)
        with self.sealing.lock, contextlib.closing(self._database.cursor()) as cursor:
            sealed = self._database.segments.listed(cursor)
            if self._keep is not None:
                sealed = _removable(sealed, _kept(cursor))
            remove(cursor, self._database.segments, list(self._retention.expired(sealed, time.time_ns() // 1_000_000)))

    def _due(self, cursor: duckdb.DuckDBPyConnection) -> dict[str, int]:
        """Models with rows to seal, and how many a segment has at least."""
        live = cursor.execute("SELECT model_id, count(*), min(sequence) FROM events GROUP BY model_id").fetchall()
        sealed_us = {segment.model_id: segment.sealed_us for segment in self._database.segments.listed(cursor)}
        due = {}
        for model_id, rows, first in live:
            if self._again_at.get(model_id, 0.0) > time.monotonic():
                continue
            if rows >= self._segment_rows:
                due[model_id] = self._segment_rows
                continue
            [(entry_id,)] = cursor.execute("SELECT event_entry_id FROM events WHERE sequence = ?", [first]).fetchall()
            # An old backlog that is caught up with counts from the last segment, or there would be a thousand of them.
            since_us = max(entry_order(entry_id)[0] * 1000, sealed_us.get(model_id, 0))
            if time.time_ns() // 1000 - since_us >= self._segment_us:
                due[model_id] = 1
        return due

    def _seal(self, model_id: str, least_rows: int) -> None:
        try:
            self.sealing.seal(model_id, most_rows=self._segment_rows, least_rows=least_rows)
        except (Unsound, duckdb.Error, OSError) as error:
            if self._stop.is_set():
                return
            text = f"its events can't be sealed and stay in the database: {str(error).splitlines()[0]}"
            log.error("a model's events can't be sealed", model_id=model_id, error=text)
            self._again_at[model_id] = time.monotonic() + AGAIN_S
            self.notes = {**self.notes, model_id: text}
        else:
            self._on_sealed()
            if model_id in self.notes:
                self.notes = {other: text for other, text in self.notes.items() if other != model_id}

    # ------------------------------------------------------------------ copies elsewhere

    def copy(self) -> None:
        """Gives each segment that is not copied yet to `keep`, and its manifest after it. Raises what that raises."""
        assert self._keep is not None
        with contextlib.closing(self._database.cursor()) as cursor:
            kept = _kept(cursor)
            for segment in self._database.segments.listed(cursor):
                if (segment.model_id, segment.first_sequence) in kept or self._database.segments.problem(segment):
                    continue
                if self._stop.is_set():
                    return
                path = self._database.segments.path(segment)
                for file in (path, path.with_name(segment.manifest)):
                    self._keep(f"{FOLDER}/{segment.model_id}/{file.name}", file)
                with self.sealing.lock:
                    # Not where it was written anew meanwhile.
                    cursor.execute(
                        "UPDATE segments SET kept = true WHERE model_id = ? AND first_sequence = ? AND manifest = ?",
                        [segment.model_id, segment.first_sequence, segment.encode()],
                    )

    # ------------------------------------------------------------------ after a crash

    def tidy(self) -> None:
        """Removes what a sink that died left behind, where the database has every row of it. Raises duckdb.Error.

        A file whose rows it has not is left alone and told: the database may have been deleted, or restored.
        """
        with self.sealing.lock, contextlib.closing(self._database.cursor()) as cursor:
            listed = self._database.segments.listed(cursor)
            known = {self._database.segments.path(segment) for segment in listed}
            known |= {path.with_suffix(".json") for path in known}
            for folder in sorted(self._database.folder.glob("*/")):
                for path in sorted(folder.glob(f"{PREFIX}*")):
                    path.unlink(missing_ok=True)
                for path in sorted(set(folder.glob("*.parquet")) - known):
                    if _is_elsewhere(cursor, folder.name, path, listed):
                        path.with_suffix(".json").unlink(missing_ok=True)
                        path.unlink()
                        log.info("a segment that was not finished, or was removed, is cleared away", file=str(path))
                    else:
                        log.error(
                            "a segment is not in this event database and is left alone; was the database deleted or "
                            "restored? Then stop the sink and put back the newest copy of it that there is",
                            file=str(path),
                        )
                for path in sorted(set(folder.glob("*.json")) - known):
                    if not path.with_suffix(".parquet").exists():
                        path.unlink(missing_ok=True)


def _kept(cursor: duckdb.DuckDBPyConnection) -> set[tuple[str, int]]:
    """Model and first sequence of the segments that stand elsewhere too. Raises duckdb.Error."""
    return set(cursor.execute("SELECT model_id, first_sequence FROM segments WHERE kept").fetchall())


def _removable(segments: Sequence[Segment], kept: Set[tuple[str, int]]) -> list[Segment]:
    """Of each model those before the first that stands here alone."""
    removable, held = [], set()
    for segment in segments:
        if (segment.model_id, segment.first_sequence) not in kept:
            held.add(segment.model_id)
        elif segment.model_id not in held:
            removable.append(segment)
    return removable


def _is_elsewhere(cursor: duckdb.DuckDBPyConnection, model_id: str, path: Path, listed: Sequence[Segment]) -> bool:
    """Whether each of its rows is live, in a segment that took its place, or was removed by retention."""
    try:
        [(rows, first, last)] = cursor.execute(
            f"SELECT count(*), coalesce(min(sequence), 0), coalesce(max(sequence), 0) FROM {parquet([path])}"  # noqa: S608
        ).fetchall()
    except duckdb.Error:
        return False
    if any((each.model_id, each.first_sequence, each.last_sequence) == (model_id, first, last) for each in listed):
        return True
    [(removed,)] = cursor.execute(
        "SELECT coalesce(max(sequence), 0) FROM anchors WHERE model_id = ?", [model_id]
    ).fetchall()
    if last <= removed:
        return True
    # By what the stream calls each, too: after a restore the same commit may be another event.
    [(live,)] = cursor.execute(
        "SELECT count(*) FROM events JOIN (SELECT sequence, number, request_id, event_entry_id "  # noqa: S608
        f"FROM {parquet([path])}) AS sealed USING (sequence, number, event_entry_id) WHERE events.model_id = ? "
        "AND events.request_id IS NOT DISTINCT FROM sealed.request_id",
        [model_id],
    ).fetchall()
    return bool(live == rows)
