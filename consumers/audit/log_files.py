"""The event log as files: what is read by those who are not the sink.

sealed segments (Parquet, of one model each)  +  the rows in none of them (one Parquet file)  ->  a view `events`
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import duckdb

from consumers.audit.segment import Segment


@dataclass(frozen=True, slots=True)
class SegmentFile:
    """A segment, and where its file can be read."""

    segment: Segment
    path: Path


@dataclass(frozen=True, slots=True)
class LogFiles:
    """Every row of a log, or of the models that were asked for, as it was at one moment."""

    segments: tuple[SegmentFile, ...]
    """By model, oldest first."""
    live: Path | None
    """The rows that were in no segment; it may hold some that are in one by now, which `connect` leaves out."""

    @property
    def sealed_up_to(self) -> Mapping[str, int]:
        """model_id -> the last running number that is in a segment."""
        return {each.segment.model_id: each.segment.last_number for each in self.segments}

    def connect(self, *, threads: int = 1, memory_limit: str = "1GB") -> duckdb.DuckDBPyConnection:
        """An in-memory database with all of it as the view `events`, times in UTC. Raises duckdb.Error."""
        connection = duckdb.connect(config={"threads": threads, "memory_limit": memory_limit})
        connection.execute("SET TimeZone = 'UTC'")
        parts = []
        if self.segments:
            paths = [str(each.path) for each in self.segments]
            parts.append(f"SELECT * FROM read_parquet([{', '.join(map(_quoted, paths))}], union_by_name = true)")  # noqa: S608 - quoted
        if self.live is not None:
            live = f"SELECT * FROM read_parquet({_quoted(str(self.live))}) AS live"  # noqa: S608 - quoted
            if self.segments:
                sealed = ", ".join(f"({_quoted(model)}, {number})" for model, number in self.sealed_up_to.items())
                live += f" LEFT JOIN (VALUES {sealed}) AS sealed(model_id, number) USING (model_id)"
                live = live.replace("SELECT *", "SELECT live.*", 1)
                live += " WHERE sealed.number IS NULL OR live.number > sealed.number"
            parts.append(live)
        if parts:
            connection.execute(f"CREATE VIEW events AS {' UNION ALL BY NAME '.join(parts)}")
        return connection


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
