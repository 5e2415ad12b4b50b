"""Sealing: a model's rows leave the database for a Parquet file that nothing changes any more.

    cut -> written under a temporary name, synced -> read back by another process -> renamed, its manifest after it
        -> one transaction: the segment is listed, its rows are deleted

Until that transaction the rows are live, and after it they are sealed, whatever ends the sink in between. What it left
behind on disk is found at the next start.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import orjson
import structlog

from consumers.audit.chain import BEGINNING
from consumers.audit.inspection import Finding, Unsound
from consumers.audit.log_files import quoted
from consumers.audit.segment import Segment
from consumers.sink.database import EventDatabase
from consumers.sink.schema import NAMES

__all__ = ["Cut", "Sealing", "Unsound", "inspected", "write_rows", "write_synced"]

log = structlog.get_logger()

# Bloom filters are written for dictionaries alone, so the one of the request ids, all different, must fit: finding one
# id then reads a few kilobytes of each segment. A row is read with its whole group, so groups are small.
ROW_GROUP = 16_384
PARQUET = (
    f"FORMAT parquet, PARQUET_VERSION V2, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP}, ROW_GROUP_SIZE_BYTES '64MB', "
    f"DICTIONARY_SIZE_LIMIT {ROW_GROUP}, STRING_DICTIONARY_PAGE_SIZE_LIMIT {8 * 2**20}"
)
PREFIX = ".seal-"
"""What names begin with that are not in place yet."""
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
"""Model ids, as signatures allow them: each is the name of a folder."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows of one model that become a segment: whole links, from its first live row on."""

    model_id: str
    first_sequence: int
    last_sequence: int
    rows: int
    chain_before: bytes


class Sealing:
    """Seals one cut at a time; each call has a cursor of its own, and none holds up the writer.

    `lock` is held by whoever changes segments: it seals, removes, or writes anew.
    """

    def __init__(self, database: EventDatabase) -> None:
        self._database = database
        self.lock = threading.RLock()
        self._cancelled = threading.Event()
        self._ends: list[Callable[[], None]] = []
        """What ends that which runs now: a statement, a process."""

    def seal(self, model_id: str = "", *, most_rows: int, least_rows: int = 1) -> list[Segment]:
        """Seals what a model, or each, has in no segment, in segments of that many rows and less than a link more.

        A rest of fewer than `least_rows` stays. Raises Unsound, duckdb.Error, OSError; what was sealed before stays so.
        """
        sealed, unsound = [], []
        with self.lock, contextlib.closing(self._database.cursor()) as cursor, self._ended_by(cursor.interrupt):
            for each in [model_id] if model_id else live_models(cursor):
                try:
                    sealed += list(self._seal_model(cursor, each, most_rows, least_rows))
                except Unsound as error:
                    unsound.append(f"{each}: {error}")
        if unsound:
            raise Unsound("; ".join(unsound))
        return sealed

    def cancel(self) -> None:
        """Ends what is being sealed, for good; its rows stay live."""
        self._cancelled.set()
        for end in list(self._ends):
            with contextlib.suppress(duckdb.Error, OSError):
                end()

    @contextlib.contextmanager
    def _ended_by(self, end: Callable[[], None]) -> Iterator[None]:
        self._ends.append(end)
        try:
            yield
        finally:
            self._ends.remove(end)

    def _seal_model(
        self, cursor: duckdb.DuckDBPyConnection, model_id: str, most_rows: int, least_rows: int
    ) -> Iterator[Segment]:
        if not _FOLDER.fullmatch(model_id):
            return  # no model that a registry lets in; its rows stay where they are
        # Counted once: what is committed from now on is the next one's, so that this comes to an end.
        [(rows, up_to)] = cursor.execute(
            "SELECT count(*), coalesce(max(sequence), 0) FROM events WHERE model_id = ?", [model_id]
        ).fetchall()
        while rows >= max(1, least_rows) and not self._cancelled.is_set():
            cut = self._cut(cursor, model_id, most_rows, up_to)
            yield self._seal_cut(cursor, cut)
            rows -= cut.rows

    def _cut(self, cursor: duckdb.DuckDBPyConnection, model_id: str, most_rows: int, up_to: int) -> Cut:
        of_model = "FROM events WHERE model_id = ? AND sequence <= ?"
        [(last,)] = cursor.execute(
            f"SELECT max(sequence) FROM (SELECT sequence {of_model} ORDER BY sequence LIMIT ?)",  # noqa: S608
            [model_id, up_to, most_rows],
        ).fetchall()
        # To the end of the link that it would cut through: the rows of one follow one another.
        [(entry_id,)] = cursor.execute("SELECT event_entry_id FROM events WHERE sequence = ?", [last]).fetchall()
        [(following,)] = cursor.execute(
            f"SELECT coalesce(min(sequence), ?) {of_model} AND sequence > ? AND event_entry_id <> ?",
            [up_to + 1, model_id, up_to, last, entry_id],
        ).fetchall()
        [(rows, first, last)] = cursor.execute(
            f"SELECT count(*), min(sequence), max(sequence) {of_model}",
            [model_id, following - 1],
        ).fetchall()
        return Cut(model_id, first, last, rows, chain_before(cursor, model_id))

    def _seal_cut(self, cursor: duckdb.DuckDBPyConnection, cut: Cut) -> Segment:
        if self._cancelled.is_set():
            raise Unsound("the sink is stopping")
        folder = self._database.folder / cut.model_id
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        written = folder / f"{PREFIX}{cut.first_sequence}.parquet"
        began = time.monotonic()
        try:
            found = self._written(cursor, cut, written)
            segment = self._place(cursor, cut, found, written)
        finally:
            written.unlink(missing_ok=True)
        try:
            self._list(cursor, cut, segment)
        except (Unsound, duckdb.Error):
            if not self._is_listed(segment):
                for name in (segment.manifest, segment.file):
                    (folder / name).unlink(missing_ok=True)
            raise
        log.info(
            "a segment was sealed",
            model_id=cut.model_id,
            file=segment.file,
            events=segment.rows,
            bytes=segment.size,
            seconds=round(time.monotonic() - began, 1),
        )
        return segment

    def _written(self, cursor: duckdb.DuckDBPyConnection, cut: Cut, path: Path) -> Finding:
        self._write(cursor, cut, path)
        try:
            return self._check(cut, path)
        except Unsound as error:
            if "order of commit" not in str(error):
                raise
        # Rows stand in the order of their commit unless something rewrote them, and sorting them all costs much.
        self._write(cursor, cut, path, " ORDER BY sequence")
        return self._check(cut, path)

    def _write(self, cursor: duckdb.DuckDBPyConnection, cut: Cut, path: Path, order: str = "") -> None:
        write_rows(
            cursor,
            f"SELECT {', '.join(NAMES)} FROM events WHERE model_id = {quoted(cut.model_id)} "  # noqa: S608 - quoted
            f"AND sequence BETWEEN {cut.first_sequence} AND {cut.last_sequence}{order}",
            path,
        )

    def _check(self, cut: Cut, path: Path) -> Finding:
        found = self._inspect(path, cut.chain_before)
        expected = (cut.rows, cut.first_sequence, cut.last_sequence)
        if (found.rows, found.first_sequence, found.last_sequence) != expected:
            raise Unsound(
                f"expected {cut.rows} rows of commits {cut.first_sequence} to {cut.last_sequence}, "
                f"got {found.rows} of {found.first_sequence} to {found.last_sequence}"
            )
        return found

    def _inspect(self, path: Path, before: bytes) -> Finding:
        with start_inspection(path, before) as child, self._ended_by(child.kill):
            if self._cancelled.is_set():
                child.kill()
            return finding_of(child)

    def _place(self, cursor: duckdb.DuckDBPyConnection, cut: Cut, found: Finding, written: Path) -> Segment:
        """The file under its own name, and then its manifest: where that is, the file is whole."""
        fields = asdict(found)
        runtime_ids = list(fields.pop("runtime_ids"))
        runtimes = cursor.execute(
            "SELECT runtime_id, record FROM runtimes WHERE runtime_id IN (SELECT unnest(CAST(? AS VARCHAR[])))",
            [runtime_ids],
        ).fetchall()
        folder = written.parent
        name = f"{found.first_number}-{found.last_number}"
        if (folder / f"{name}.parquet").exists():  # running numbers begin again where Redis was emptied
            name = f"{name}-{found.first_sequence}"
        segment = Segment(
            model_id=cut.model_id,
            file=f"{name}.parquet",
            chain_before=cut.chain_before.hex(),
            sealed_us=time.time_ns() // 1000,
            runtimes=dict(sorted(runtimes)),
            **fields,
        )
        if (folder / segment.file).exists():
            raise Unsound(f"{folder / segment.file} is there already; move it away")
        written.rename(folder / segment.file)
        write_synced(folder / segment.manifest, segment.encode().encode())
        return segment

    def _list(self, cursor: duckdb.DuckDBPyConnection, cut: Cut, segment: Segment) -> None:
        """The one moment at which the rows are in the segment and no longer live."""
        cursor.begin()
        try:
            cursor.execute(
                "INSERT INTO segments (model_id, first_number, last_number, manifest, first_sequence, last_sequence) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [
                    segment.model_id,
                    segment.first_number,
                    segment.last_number,
                    segment.encode(),
                    segment.first_sequence,
                    segment.last_sequence,
                ],
            )
            [(deleted,)] = cursor.execute(
                "DELETE FROM events WHERE model_id = ? AND sequence BETWEEN ? AND ?",
                [cut.model_id, cut.first_sequence, cut.last_sequence],
            ).fetchall()
            if deleted != segment.rows:
                raise Unsound(f"expected to delete {segment.rows} sealed rows, found {deleted}")
            cursor.commit()
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                cursor.rollback()
            raise

    def _is_listed(self, segment: Segment) -> bool:
        """Whether a transaction that looked failed has listed it after all. Raises duckdb.Error."""
        with contextlib.closing(self._database.cursor()) as cursor:
            return segment in self._database.segments.listed(cursor, segment.model_id)


def live_models(cursor: duckdb.DuckDBPyConnection) -> list[str]:
    """The models that have rows in no segment. Raises duckdb.Error."""
    return [model_id for (model_id,) in cursor.execute("SELECT DISTINCT model_id FROM events ORDER BY ALL").fetchall()]


def chain_before(cursor: duckdb.DuckDBPyConnection, model_id: str) -> bytes:
    """The chain's value where a model's live rows begin. Raises duckdb.Error."""
    last = cursor.execute(
        "SELECT manifest FROM segments WHERE model_id = ? ORDER BY first_sequence DESC LIMIT 1", [model_id]
    ).fetchone()
    if last is not None:
        return bytes.fromhex(Segment.decode(last[0]).chain_after)
    removed = cursor.execute("SELECT chain FROM anchors WHERE model_id = ?", [model_id]).fetchone()
    return BEGINNING if removed is None else bytes(removed[0])


def write_rows(cursor: duckdb.DuckDBPyConnection, select: str, path: Path) -> None:
    """Rows as the Parquet file of a segment, on disk when this returns. Streams. Raises duckdb.Error, OSError."""
    # DuckDB bounds a group's bytes, which large requests need, only where it need not keep the order; with the one
    # thread that it has here it keeps it all the same, and the file is read back to see.
    cursor.execute("SET preserve_insertion_order = false")
    try:
        cursor.execute(f"COPY ({select}) TO {quoted(str(path.absolute()))} ({PARQUET})")
    finally:
        with contextlib.suppress(duckdb.Error):
            cursor.execute("RESET preserve_insertion_order")
    path.chmod(0o600)
    _sync(path)


def inspected(path: Path, before: bytes) -> Finding:
    """What another process finds in a file: its rows, and that the chain goes on from `before`. Raises Unsound."""
    with start_inspection(path, before) as child:
        return finding_of(child)


def start_inspection(path: Path, before: bytes) -> subprocess.Popen[bytes]:
    """That process. Its standard input ends with this one, and then it does. Raises OSError."""
    words = [sys.executable, "-m", "consumers.audit.inspection", str(path), before.hex()]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finding_of(child: subprocess.Popen[bytes]) -> Finding:
    """Its answer, as soon as it comes. Raises Unsound."""
    assert child.stdout is not None
    assert child.stderr is not None
    answer, said, status = child.stdout.read(), child.stderr.read(), child.wait()
    if status != 0 or not answer:
        why = said.decode(errors="replace").strip()[-300:] or f"its process ended with status {status}"
        raise Unsound(f"the file could not be read back: {why}")
    found = orjson.loads(answer)
    if "unsound" in found:
        raise Unsound(found["unsound"])
    return Finding(**found)


def write_synced(path: Path, content: bytes) -> None:
    """A file that is there whole or not at all, and stays over a power cut. Raises OSError."""
    written = path.with_name(f"{PREFIX}{path.name}")
    try:
        written.write_bytes(content)
        written.chmod(0o600)
        _sync(written)
        written.rename(path)
    finally:
        written.unlink(missing_ok=True)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
