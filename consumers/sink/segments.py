"""The sealed segments as the sink reads them: which there are, where their files stand, and which can't be read."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import duckdb
import structlog

from consumers.audit.log_files import parquet
from consumers.audit.segment import Segment

log = structlog.get_logger()

_LIST = "SELECT model_id, first_sequence, hash(manifest) FROM segments{where} ORDER BY model_id, first_sequence"
_MANIFEST = "SELECT manifest FROM segments WHERE model_id = ? AND first_sequence = ?"

NO_DAMAGE = (duckdb.InterruptException, duckdb.OutOfMemoryException, duckdb.FatalException, duckdb.TransactionException)
"""What a statement fails with that says nothing of a file."""

_Key = tuple[str, int, int]
_File = tuple[int, int, int]


class Segments:
    """What is sealed. The database's table is the truth of it; threads share this, each with a cursor of its own.

    A file that is missing or damaged costs its own rows alone: it is left out of every answer until it is another file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._known: dict[_Key, Segment] = {}
        """By model, first sequence and hash of the manifest, so that a list of thousands is parsed once."""
        self._damaged: dict[Path, tuple[_File, str]] = {}

    def path(self, segment: Segment) -> Path:
        """Of its Parquet file."""
        return self.folder / segment.model_id / segment.file

    def listed(self, cursor: duckdb.DuckDBPyConnection, model_id: str = "") -> list[Segment]:
        """In the order of their commit, by model. Raises duckdb.Error."""
        sql = _LIST.format(where=" WHERE model_id = ?" if model_id else "")
        keys: list[_Key] = cursor.execute(sql, [model_id] if model_id else []).fetchall()
        with self._lock:
            known = {key: self._known[key] for key in keys if key in self._known}
        for key in keys:
            if key not in known:
                [(manifest,)] = cursor.execute(_MANIFEST, key[:2]).fetchall()
                known[key] = Segment.decode(manifest)
        with self._lock:
            if model_id:
                self._known.update(known)
            else:
                self._known = known  # all there are: what was removed is forgotten
        return [known[key] for key in keys]

    def problem(self, segment: Segment) -> str:
        """Why its file can't be read, as far as is known without reading it; empty where nothing is."""
        path = self.path(segment)
        try:
            stat = path.stat()
        except OSError as error:
            return f"the file can't be opened: {error.strerror}"
        if stat.st_size != segment.size:
            return f"expected a file of {segment.size} bytes, got {stat.st_size}"
        with self._lock:
            seen, why = self._damaged.get(path, (None, ""))
        return why if seen == (stat.st_ino, stat.st_size, stat.st_mtime_ns) else ""

    def sound(self, segments: Iterable[Segment]) -> list[Segment]:
        """Those without a problem; the others are named in the log."""
        sound = []
        for segment in segments:
            if why := self.problem(segment):
                log.error("a sealed segment is left out", why=told(segment, why))
            else:
                sound.append(segment)
        return sound

    def damaged(self, segment: Segment, why: str) -> None:
        """Its file was found not to be readable."""
        path = self.path(segment)
        try:
            stat = path.stat()
        except OSError:
            return
        with self._lock:
            self._damaged[path] = ((stat.st_ino, stat.st_size, stat.st_mtime_ns), why)

    def source(self, segments: Sequence[Segment], *, live: bool) -> str:
        """A table for SQL: the rows of these segments, and those of no segment. At least one of both."""
        if not segments:
            return "events"
        files = parquet(self.path(segment) for segment in segments)
        # The table comes first: a column that a file of an earlier version has not is there, and each has its type.
        rest = "" if live else " WHERE false"
        return f"(SELECT * FROM events{rest} UNION ALL BY NAME SELECT * FROM {files})"  # noqa: S608 - paths, quoted


def told(segment: Segment, why: str) -> str:
    """What a person is told of a segment that can't be read."""
    return (
        f"the sealed segment {segment.model_id}/{segment.file} can't be read, and its {segment.rows} events are "
        f"missing from answers: {why}; put back a copy of it"
    )
