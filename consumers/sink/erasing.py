"""Erasing: empties what an entity's events held, in the live rows and in sealed segments, for good.

    segments that hold some of it: written anew beside the old ones, read back by another process
        -> one transaction: live rows emptied, new segments listed, the erasure on record
        -> the old files removed

Until that transaction nothing is erased, and after it everything is. What an end in between leaves behind is removed at
the next start.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import duckdb
import numpy as np
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consumers.audit.erasure import EMPTIED, Emptied, NotRebuilt, emptied, entity_mark
from consumers.audit.log_files import SegmentFile, altered, parquet, quoted
from consumers.audit.rebuild import SELECT_ROWS, Row, links
from consumers.audit.segment import Segment
from consumers.sink.database import EventDatabase
from consumers.sink.schema import NAMES
from consumers.sink.sealing import Sealing, Unsound, inspected, write_rows, write_synced

__all__ = ["Erase", "Erased", "Erasing", "NotRebuilt", "Unsound"]

log = structlog.get_logger()

ROWS = 2000
CHECKPOINT_S = 5.0
"""How long the writer and readers are waited for before the file is written anew; it is done later otherwise."""

_WHOLE_LINKS = (
    "event_entry_id IN (SELECT event_entry_id FROM events WHERE entity_id = ? AND model_id = ?) AND model_id = ? "
    "ORDER BY sequence"
)
_ERASED_NAME = re.compile(r"(?:\.erased-(\d+))?\.parquet$")


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure did."""

    events: int
    segments: int
    """Segments that were written anew."""


Erase = Callable[[str, str, str], Erased]
"""Erases an entity (its id, of which model or empty for all, and why), as `Erasing.erase` does."""


@dataclass(frozen=True, slots=True)
class _Rewritten:
    old: Segment
    new: Segment
    events: int


class Erasing:
    """Erases one entity at a time, while the writer goes on; nothing is sealed or removed meanwhile."""

    def __init__(
        self,
        database: EventDatabase,
        sealing: Sealing,
        key: Callable[[], Ed25519PrivateKey],
        on_erased: Callable[[], None] = lambda: None,
    ) -> None:
        """`key` is asked for when something is erased: without one that need not be there."""
        self._database = database
        self._sealing = sealing
        self._key = key
        self._on_erased = on_erased

    def erase(self, entity_id: str, model_id: str, reason: str) -> Erased:
        """Empties the events of an entity, of a model or of all of them; `reason` goes on record.

        Raises Unsound, NotRebuilt, duckdb.Error, OSError; then nothing is erased.
        """
        mark = entity_mark(entity_id, self._key())
        with self._sealing.lock, contextlib.closing(self._database.cursor()) as cursor:
            at_us = time.time_ns() // 1000
            rewritten: list[_Rewritten] = []
            try:
                for segment in self._database.segments.listed(cursor, model_id):
                    if (one := self._rewrite(segment, entity_id, at_us)) is not None:
                        rewritten.append(one)
                by_model = self._commit(cursor, entity_id, model_id, reason, mark, at_us, rewritten)
            except BaseException:
                for one in rewritten:
                    self._remove(one.new)
                raise
            for one in rewritten:
                self._remove(one.old)
            events = sum(by_model.values())
            if events:
                _checkpoint(cursor)
        log.info("events were erased", events=events, segments=len(rewritten), models=len(by_model))
        self._on_erased()
        return Erased(events, len(rewritten))

    # ------------------------------------------------------------------ segments

    def _rewrite(self, segment: Segment, entity_id: str, at_us: int) -> _Rewritten | None:
        """A new file and manifest beside the old ones; None where it holds nothing of the entity."""
        path = self._database.segments.path(segment)
        if not path.exists():
            raise Unsound(f"the segment {segment.model_id}/{segment.file} is missing, and may hold events to be erased")
        with _over(path, segment) as files:
            [(found,)] = files.execute("SELECT count(*) FROM events WHERE entity_id = ?", [entity_id]).fetchall()
            if not found:
                return None
            if why := altered(SegmentFile(segment, path)):
                raise Unsound(f"the segment {segment.model_id}/{segment.file} is not the one that was sealed: {why}")
            changes = _changes(files, segment.model_id, entity_id, at_us)
            file = _next_name(segment.file)
            written = path.with_name(f".seal-{file}")
            try:
                _register(files, changes)
                # In the order of commit, which a join may lose.
                write_rows(files, f"{_emptying(at_us)} ORDER BY sequence", written)
                seen = inspected(written, bytes.fromhex(segment.chain_before))
                new = replace(
                    segment,
                    file=file,
                    size=seen.size,
                    sha256=seen.sha256,
                    erased=seen.erased,
                )
                there = (seen.rows, seen.first_sequence, seen.last_sequence, seen.chain_after, seen.erased)
                expected = (segment.rows, segment.first_sequence, segment.last_sequence, segment.chain_after)
                if there != (*expected, segment.erased + found):
                    raise Unsound(f"the segment {segment.model_id}/{segment.file} could not be written anew")
                written.rename(path.with_name(file))
                write_synced(path.with_name(new.manifest), new.encode().encode())
            finally:
                written.unlink(missing_ok=True)
        return _Rewritten(segment, new, found)

    def _remove(self, segment: Segment) -> None:
        path = self._database.segments.path(segment)
        for each in (path.with_name(segment.manifest), path):
            with contextlib.suppress(OSError):
                each.unlink(missing_ok=True)

    # ------------------------------------------------------------------ the transaction

    def _commit(
        self,
        cursor: duckdb.DuckDBPyConnection,
        entity_id: str,
        model_id: str,
        reason: str,
        mark: bytes,
        at_us: int,
        rewritten: Sequence[_Rewritten],
    ) -> dict[str, int]:
        """Events that were erased, by model."""
        by_model: dict[str, int] = {}
        cursor.execute("SET TimeZone = 'UTC'")
        cursor.begin()
        try:
            for each in _models_with(cursor, entity_id, model_id):
                changes = _changes(cursor, each, entity_id, at_us)
                _register(cursor, changes)
                cursor.execute(
                    f"UPDATE events SET {', '.join(f'{name} = NULL' for name in EMPTIED)}, "  # noqa: S608 - names
                    "erased_at = make_timestamptz(CAST(? AS BIGINT)), erased_sha256 = changes.sha256 FROM changes "
                    "WHERE events.sequence = changes.sequence AND changes.sha256 IS NOT NULL",
                    [at_us],
                )
                cursor.execute(
                    "UPDATE events SET exact_header = changes.header FROM changes "
                    "WHERE events.sequence = changes.sequence AND changes.header IS NOT NULL"
                )
                cursor.unregister("changes")
                by_model[each] = sum(change.sha256 is not None for change in changes)
            for one in rewritten:
                cursor.execute(
                    "UPDATE segments SET manifest = ?, kept = false WHERE model_id = ? AND first_sequence = ?",
                    [one.new.encode(), one.new.model_id, one.new.first_sequence],
                )
                by_model[one.new.model_id] = by_model.get(one.new.model_id, 0) + one.events
            for each, events in sorted(by_model.items()):
                cursor.execute(
                    "INSERT INTO erasures (erased_at, model_id, entity_sha256, events, reason) "
                    "VALUES (make_timestamptz(CAST(? AS BIGINT)), ?, ?, ?, ?)",
                    [at_us, each, mark, events, reason],
                )
            cursor.commit()
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                cursor.rollback()
            raise
        return by_model


def _models_with(cursor: duckdb.DuckDBPyConnection, entity_id: str, model_id: str) -> list[str]:
    rows = cursor.execute(
        "SELECT DISTINCT model_id FROM events WHERE entity_id = ? AND ? IN ('', model_id) ORDER BY ALL",
        [entity_id, model_id],
    ).fetchall()
    return [name for (name,) in rows]


def _changes(events: duckdb.DuckDBPyConnection, model_id: str, entity_id: str, at_us: int) -> list[Emptied]:
    """What erasing changes in the rows of `events`; the links that hold some of it are read whole."""
    events.execute(f"{SELECT_ROWS} WHERE {_WHOLE_LINKS}", [entity_id, model_id, model_id])
    return list(emptied(links(_fetched(events)), entity_id, at_us))


def _fetched(selected: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    while rows := selected.fetchmany(ROWS):
        yield from map(Row._make, rows)


def _register(events: duckdb.DuckDBPyConnection, changes: Sequence[Emptied]) -> None:
    """As the table `changes`."""
    sequences = np.array([change.sequence for change in changes], dtype=np.int64)
    digests, headers = (np.full(len(changes), None, dtype=object) for _ in range(2))
    digests[:] = [change.sha256 for change in changes]
    headers[:] = [change.header for change in changes]
    events.register("changes", {"sequence": sequences, "sha256": digests, "header": headers})


def _emptying(at_us: int) -> str:
    """The rows of `events`, all columns in their order, with `changes` made."""
    made = {name: f"CASE WHEN changes.sha256 IS NULL THEN events.{name} END" for name in EMPTIED}
    made["erased_at"] = (
        f"CASE WHEN changes.sha256 IS NULL THEN events.erased_at ELSE make_timestamptz(CAST({at_us} AS BIGINT)) END"
    )
    made["erased_sha256"] = "coalesce(CAST(changes.sha256 AS BLOB), events.erased_sha256)"
    made["exact_header"] = "coalesce(CAST(changes.header AS BLOB), events.exact_header)"
    columns = ", ".join(f"{made.get(name, f'events.{name}')} AS {name}" for name in NAMES)
    return f"SELECT {columns} FROM events LEFT JOIN changes ON events.sequence = changes.sequence"  # noqa: S608 - names


@contextlib.contextmanager
def _over(path: Path, segment: Segment) -> Iterator[duckdb.DuckDBPyConnection]:
    """A segment's file as the view `events`, apart from the database."""
    with duckdb.connect(config={"threads": 1, "memory_limit": "512MB"}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"SET temp_directory = {quoted(str(path.parent.absolute()))}")
        try:
            connection.execute(f"CREATE VIEW events AS SELECT * FROM {parquet([path])}")  # noqa: S608 - a path, quoted
            yield connection
        except duckdb.Error as error:
            why = str(error).splitlines()[0]
            raise Unsound(f"the segment {segment.model_id}/{segment.file} can't be written anew: {why}") from None


def _next_name(file: str) -> str:
    """Of the same segment, written once more."""
    found = _ERASED_NAME.search(file)
    before = int(found[1] or 0) if found else 0
    return f"{_ERASED_NAME.sub('', file)}.erased-{before + 1}.parquet"


def _checkpoint(cursor: duckdb.DuckDBPyConnection) -> None:
    """Writes the emptied rows into the file, so that what they held is in neither it nor the log beside it."""
    give_up = time.monotonic() + CHECKPOINT_S
    while True:
        try:
            cursor.execute("CHECKPOINT")
        except duckdb.Error as error:
            if time.monotonic() > give_up:
                log.warning(
                    "what was erased leaves the file with the next checkpoint", error=str(error).splitlines()[0]
                )
                return
            time.sleep(0.1)
        else:
            return
