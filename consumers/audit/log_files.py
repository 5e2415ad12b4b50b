"""The event log as files: what is read by those who are not the sink.

sealed segments (Parquet, of one model each)  +  the rows in none of them (one Parquet file)  ->  a view `events`

`consumers.audit.reading` gets them: `fetch` from a running sink, `open_stopped` from the database while none runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import file_digest
from pathlib import Path

import duckdb

from consumers.audit.segment import Segment
from consumers.audit.standing import Recorded, Standing
from consumers.sink.schema import COLUMNS


class LogUnusable(Exception):
    """A log that can't be read; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A segment, and where its file can be read."""

    segment: Segment
    path: Path


@dataclass(frozen=True, slots=True)
class Skipped:
    """A segment of which nothing can be read, and why."""

    segment: Segment
    why: str

    def __str__(self) -> str:
        numbers = f"{self.segment.first_number} to {self.segment.last_number}"
        return f"the segment {self.segment.model_id}/{self.segment.file} (events {numbers}) is left out: {self.why}"


@dataclass(frozen=True, slots=True)
class LogFiles:
    """Every row of a log, or of the models that were asked for, as it was at one moment."""

    segments: tuple[SegmentFile, ...]
    """By model, oldest first."""
    live: Path | None
    """The rows that were in no segment; it may hold some that are in one by now, which `connect` leaves out."""
    skipped: tuple[Skipped, ...] = ()
    """Segments that can't be read."""
    outside: tuple[Segment, ...] = ()
    """Segments that hold nothing of the time that was asked for."""
    positions: tuple[Recorded, ...] = ()
    """How far each model was recorded when `live` was read: in one transaction with it."""
    standing: Standing = field(default_factory=Standing)
    """What stands beside the events, read with the list of segments."""

    @property
    def sealed_up_to(self) -> Mapping[str, int]:
        """model_id -> the last running number that is in a segment."""
        known = (*(each.segment for each in self.segments), *(each.segment for each in self.skipped), *self.outside)
        return {segment.model_id: segment.last_number for segment in in_order(known)}

    def sound(self) -> LogFiles:
        """The same without the segments whose files are not what their manifests say, found by reading all of them."""
        skipped = [Skipped(each.segment, why) for each in self.segments if (why := altered(each))]
        bad = {(each.segment.model_id, each.segment.file) for each in skipped}
        kept = tuple(each for each in self.segments if (each.segment.model_id, each.segment.file) not in bad)
        return replace(self, segments=kept, skipped=(*self.skipped, *skipped))

    def connect(self, *, threads: int = 1, memory_limit: str = "1GB") -> duckdb.DuckDBPyConnection:
        """An in-memory database with all of it as the view `events`, times in UTC. Raises duckdb.Error."""
        connection = duckdb.connect(config={"threads": threads, "memory_limit": memory_limit})
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"CREATE VIEW events AS {self.select()}")
        return connection

    def select(self) -> str:
        """All rows, every column that this version knows: a SELECT over the files."""
        # First, so that a column that a file of an earlier version has not is there, and each has its type.
        typed = ", ".join(f"CAST(NULL AS {column.kind}) AS {column.name}" for column in COLUMNS)
        parts = [f"SELECT {typed} WHERE false"]
        if self.segments:
            parts.append(f"SELECT * FROM {parquet(each.path for each in self.segments)}")  # noqa: S608 - quoted
        if self.live is not None:
            parts.append(f"SELECT * FROM {parquet([self.live])}{self._not_sealed()}")  # noqa: S608 - quoted
        return " UNION ALL BY NAME ".join(parts)

    def _not_sealed(self) -> str:
        """What leaves out the live rows that a segment has."""
        known = (*(each.segment for each in self.segments), *(each.segment for each in self.skipped), *self.outside)
        conditions = []
        for segment in {each.model_id: each for each in in_order(known)}.values():
            beyond = f"number > {segment.last_number}"
            if segment.last_sequence:
                # Running numbers begin again where Redis was emptied; the order of commit does not.
                beyond = f"sequence > {segment.last_sequence}"
            conditions.append(f"(model_id <> {quoted(segment.model_id)} OR {beyond})")
        return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def in_order(segments: Iterable[Segment]) -> list[Segment]:
    """By model, in the order of their commit."""
    return sorted(segments, key=lambda each: (each.model_id, each.last_sequence, each.last_number))


def altered(file: SegmentFile) -> str:
    """How a segment's file differs from its manifest, by its size and SHA-256; empty where it does not."""
    if why := unlike(file):
        return why
    with file.path.open("rb") as content:
        found = file_digest(content, "sha256").hexdigest()
    return "" if found == file.segment.sha256 else f"expected SHA-256 {file.segment.sha256}, got {found}"


def unlike(file: SegmentFile) -> str:
    """The same by what is seen without reading it: that it is there, and its size."""
    try:
        size = file.path.stat().st_size
    except FileNotFoundError:
        return "its file is missing"
    except OSError as error:
        return f"its file can't be read: {error.strerror}"
    return "" if size == file.segment.size else f"expected a file of {file.segment.size} bytes, got {size}"


def parquet(paths: Iterable[Path]) -> str:
    """Parquet files as a table, for SQL; their columns by name."""
    return f"read_parquet([{', '.join(quoted(str(path)) for path in paths)}], union_by_name = true)"


def quoted(text: str) -> str:
    """A text for SQL."""
    return "'" + text.replace("'", "''") + "'"
