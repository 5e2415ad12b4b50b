"""The event database: one process opens it, one thread writes, and cursors of other threads read what is committed."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import duckdb

from consumers.audit.chain import BEGINNING
from consumers.audit.log_files import quoted
from consumers.sink.position import Gap, Position, entry_order
from consumers.sink.rows import Link, chained, joined
from consumers.sink.schema import (
    CREATE,
    GATHERED,
    INSERT_GAP,
    INSERT_POSITION,
    INSERT_RUNTIME,
    SELECT_NEWEST,
    SELECT_POSITIONS,
    SELECT_RECORDED,
    UPDATE_POSITION,
    insert_events,
)
from consumers.sink.segments import NO_DAMAGE, Segments

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    # Inserting is one thread's work, and queries of the log shall not take the machine from the models.
    "threads": 1,
    "memory_limit": "1GB",
    # Compressing at each 16 MB of log, the default, costs as much as inserting does.
    "checkpoint_threshold": "64MB",
    # The kind of a gathered column is that of its first value: each has but one.
    "pandas_analyze_sample": 1,
}
_SELECT_LAST = """
SELECT greatest((SELECT coalesce(max(sequence), 0) FROM events),
    (SELECT coalesce(max(last_sequence), 0) FROM segments), (SELECT coalesce(max(sequence), 0) FROM anchors))
"""
"""The order of commit goes on from what was sealed, and from what was removed, too."""

Identity = tuple[str, str, str, bool]
"""Lane, entry id and request id of an event, and whether it is a copy, which has all three of another event."""


class EventDatabaseError(Exception):
    """The database can't be opened; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What one transaction writes: rows, gaps, and the positions they reach."""

    links: tuple[Link, ...]
    gaps: tuple[Gap, ...]
    positions: Mapping[str, Position]
    steps: tuple[tuple[str, Position], ...] = ()
    """Model and position after each entry, on the way to `positions`."""

    @property
    def events(self) -> int:
        return sum(link.events for link in self.links)

    def is_in(self, positions: Mapping[str, Position]) -> bool:
        """Whether it was committed, after a commit of which nobody knows: it is all there or nothing of it is."""
        return all(positions.get(model_id) == reached for model_id, reached in self.positions.items())

    def apart(self) -> Iterator[Batch]:
        """One batch for each stream entry, in stream order, and for each model one that reaches its position."""
        for model_id, reached in self.positions.items():
            links = {link.entry_id: link for link in self.links if link.model_id == model_id}
            gaps = [gap for gap in self.gaps if gap.model_id == model_id]
            steps = {position.entry_id: position for stepped, position in self.steps if stepped == model_id}
            for entry_id in sorted(links.keys() | {gap.to_entry for gap in gaps}, key=entry_order):
                own = tuple(gap for gap in gaps if gap.to_entry == entry_id)
                link = links.get(entry_id)
                yield Batch((link,) if link else (), own, {model_id: steps[entry_id]})
            yield Batch((), (), {model_id: reached})

    def refused(self, why: str) -> Batch:
        """A gap in place of each link, where the database does not take its values."""
        why = f"the database refused it: {why}"
        numbered = [(link, int(link.column("number")[-1])) for link in self.links]
        gaps = tuple(Gap(link.model_id, link.entry_id, link.entry_id, number, number, why) for link, number in numbered)
        return Batch((), self.gaps + gaps, self.positions)


class EventDatabase:
    """The open database.

    Raises EventDatabaseError where another process holds the file or it is no database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._committed = threading.Condition()
        self._waiting = 0
        self._sequence = 0
        self._chains: Mapping[str, bytes] | None = None
        """The chain's value of each model that has a position; None where the database must be asked."""
        self.segments = Segments(self.folder)
        self._connection = self._open()

    def _open(self) -> duckdb.DuckDBPyConnection:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            connection = duckdb.connect(str(self._path), config=_CONFIG)
            # It reads and writes files in the folder of segments alone; nothing from outside is ever SQL here.
            connection.execute(f"SET allowed_directories = [{quoted(str(self.folder.absolute()))}]")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET TimeZone = 'UTC'")
            # Opening a segment again is most of what a search for one request costs.
            connection.execute("SET GLOBAL parquet_metadata_cache = true")
            # Of this connection alone: its few statements gain nothing, and planning is most of a small commit.
            connection.execute("PRAGMA disable_optimizer")
            for statement in CREATE:
                connection.execute(statement)
            [(last,)] = connection.execute(_SELECT_LAST).fetchall()
        except (duckdb.Error, OSError) as error:
            text = str(error)
            why = (
                "another process has it open; one sink at a time writes the event log"
                if "lock" in text.lower()
                else text.splitlines()[0]
            )
            raise EventDatabaseError(f"the event database {self._path} can't be opened: {why}") from None
        self._sequence = last
        self._chains = None
        return connection

    @property
    def folder(self) -> Path:
        """Where sealed segments stand, each in the folder of its model."""
        return self._path.parent / "events"

    def reopen(self) -> None:
        """After an error that DuckDB says only a restart of the database ends."""
        with contextlib.suppress(duckdb.Error):
            self._connection.close()
        self._connection = self._open()

    def recount(self) -> None:
        """After a commit that raised and was written all the same: the order of commit goes on behind its rows."""
        [(last,)] = self._connection.execute(_SELECT_LAST).fetchall()
        with self._committed:
            self._sequence = last
            self._committed.notify_all()

    def close(self) -> None:
        """Writes everything into the file, so that no log stands beside it, and lets go of it."""
        with self._committed:
            self._committed.notify_all()
        self._connection.close()

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection for one thread and one call."""
        return self._connection.cursor()

    @property
    def sequence(self) -> int:
        """Of the last committed row; 0 where there is none."""
        return self._sequence

    def wait_beyond(self, sequence: int, timeout_s: float) -> int:
        """The sequence of the last committed row, as soon as it is above this one or the time is over."""
        with self._committed:
            self._waiting += 1
            try:
                self._committed.wait_for(lambda: self._sequence > sequence, timeout_s)
            finally:
                self._waiting -= 1
            return self._sequence

    @property
    def followed(self) -> bool:
        """Whether somebody waits for the next commit."""
        return self._waiting > 0

    def positions(self) -> dict[str, Position]:
        """How far each model's stream is."""
        rows = self._connection.execute(SELECT_POSITIONS).fetchall()
        return {model_id: Position(*position) for model_id, *position in rows}

    def recorded(self, model_id: str, entry_ids: Sequence[str]) -> dict[Identity, set[str]]:
        """Which events there are about these requests, and the events entries that they came in."""
        if not entry_ids:
            return {}
        # The bounds let it skip what is older without a look at each row.
        bounds = [min(entry_ids), max(entry_ids)]
        oldest_us = min(entry_order(entry_id)[0] for entry_id in entry_ids) * 1000
        asked = [model_id, *bounds, list(entry_ids)]
        with self._connection.cursor() as cursor:
            rows = cursor.execute(SELECT_RECORDED, asked).fetchall()
            sealed = self.segments.listed(cursor, model_id)
            for segment in self.segments.sound(each for each in sealed if each.last_appended_us >= oldest_us):
                source = self.segments.source([segment], live=False)
                try:
                    rows += cursor.execute(SELECT_RECORDED.replace("events", source, 1), asked).fetchall()
                except NO_DAMAGE:
                    raise
                except duckdb.Error as error:
                    # What stands in it may be recorded once more; the other events shall not wait for a file.
                    self.segments.damaged(segment, str(error).splitlines()[0])
                    self.segments.sound([segment])
        found: dict[Identity, set[str]] = {}
        for lane, entry_id, request_id, is_copy, event_entry_id in rows:
            found.setdefault((lane, entry_id, request_id, is_copy), set()).add(event_entry_id)
        return found

    def newest_ms(self, model_id: str) -> int:
        """When the newest recorded request of a model was appended, in milliseconds; 0 where there is none."""
        with self._connection.cursor() as cursor:
            [(millis,)] = cursor.execute(SELECT_NEWEST, [model_id]).fetchall()
            sealed = self.segments.listed(cursor, model_id)
        return max([int(millis), *(segment.last_appended_us // 1000 for segment in sealed)])

    def keep_runtimes(self, records: Mapping[str, str]) -> None:
        """Records of what predicts, by id, so that who audits the log needs no Redis. Raises duckdb.Error."""
        self._connection.executemany(INSERT_RUNTIME, [list(record) for record in records.items()])

    def commit(self, batch: Batch) -> None:
        """One transaction. Raises duckdb.Error, and then nothing of the batch is in the database."""
        connection = self._connection
        sequence = self._sequence
        # The chain goes on from what is in the database, whatever became of an earlier commit or of a part of this one.
        before = self._chains
        if before is None:
            before = {model_id: position.chain for model_id, position in self.positions().items()}
        self._chains = None  # until it is known what became of this one
        chains, after = chained(batch.links, before)
        # Outside of the transaction, where it can be taken back whatever became of that.
        rows = joined(batch.links, sequence + 1, chains) if batch.events else {}
        if rows:
            connection.register(GATHERED, rows)
        try:
            connection.begin()
            if rows:
                connection.execute(insert_events(frozenset(rows)))
            for gap in batch.gaps:
                row = [gap.model_id, gap.from_entry, gap.to_entry, gap.expected, gap.found, gap.why]
                connection.execute(INSERT_GAP, row)
            after = {model_id: after.get(model_id) or before.get(model_id, BEGINNING) for model_id in batch.positions}
            for model_id, position in batch.positions.items():
                reached = astuple(replace(position, chain=after[model_id]))
                if model_id in before:
                    connection.execute(UPDATE_POSITION, [*reached, model_id])
                else:
                    connection.execute(INSERT_POSITION, [model_id, *reached])
            connection.commit()
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                connection.rollback()
            raise
        finally:
            with contextlib.suppress(duckdb.Error):
                connection.unregister(GATHERED)
        self._chains = {**before, **after}
        with self._committed:
            self._sequence = sequence + batch.events
            self._committed.notify_all()
