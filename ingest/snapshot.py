"""The snapshot: Service A's features as a file, asked for what its Redis does not have, or while it is away.

A Parquet file, or a DuckDB file with one table, of the columns entity_id, feature, value and updated_at; of several
rows about the same, the newest counts. Service A publishes a new one by rename. What can't be used is said once in the
log and counts as having nothing: a fallback never fails a request.
"""

from __future__ import annotations

import asyncio
import contextvars
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

T = TypeVar("T")

CHECK_S = 1.0
"""How often at most the file is looked at for being another one."""

LOOK_UP_S = 2.0
"""Longest wait for an answer of the file; a request goes on without it then."""

COLUMNS = ("entity_id", "feature", "value", "updated_at")

_INTEGER = r"U?(TINY|SMALL|BIG|HUGE)?INT(EGER)?"
_NAMES = re.compile(rf"VARCHAR|ENUM\(.*\)|{_INTEGER}", re.DOTALL)
_VALUES = re.compile(rf"VARCHAR|ENUM\(.*\)|{_INTEGER}|BLOB|BOOLEAN|FLOAT|DOUBLE|DECIMAL\(.*\)", re.DOTALL)

Pair = tuple[str, str]
"""Entity id and name of the feature."""

Identity = tuple[int, int, int, bool]
"""Inode, time of change, size, and whether a write-ahead log stands beside it."""

log = structlog.get_logger()


class SnapshotUnusable(Exception):
    """A file that can't be asked; the message says why."""


class Snapshot:
    """The file as a thread sees it; safe to share among threads, which then take turns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        self._identity: Identity | None = None
        self._next_check = 0.0
        self._said = ""

    def look_up(self, wanted: Sequence[Pair]) -> list[bytes | None]:
        """The values in the form they have in Redis, None where there is none. Never raises."""
        with self._lock:
            found: dict[Pair, bytes | None] = {}
            for attempt in (1, 2):
                self._refresh()
                if self._opened is None:
                    break
                try:
                    found = self._opened.find(wanted)
                    break
                except Exception as error:  # noqa: BLE001 - whatever DuckDB raises of a file, the request goes on
                    # It may have been replaced between the look and the query: once more, with the new one.
                    self._shut()
                    self._next_check = 0.0
                    if attempt == 2:
                        self._say(f"it can't be read: {_first_line(error)}")
            return [found.get(pair) for pair in wanted]

    def open(self) -> None:
        """Opens the file now, so that no request waits for it. Never raises."""
        with self._lock:
            self._refresh()

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._shut()
            self._identity, self._next_check = None, 0.0

    def _refresh(self) -> None:
        if time.monotonic() < self._next_check:
            return
        self._next_check = time.monotonic() + CHECK_S
        identity = _identity(self.path)
        if identity == self._identity and self._opened is not None:
            return
        # Closed first: DuckDB does not open two files of one name at a time.
        self._shut()
        self._identity = identity
        try:
            self._opened = _Opened(self.path, identity)
        except SnapshotUnusable as error:
            self._say(str(error))
        except Exception as error:  # noqa: BLE001 - as above
            self._say(f"it can't be opened: {_first_line(error)}")
        else:
            log.info("the snapshot of features is in use", path=str(self.path))
            self._said = ""

    def _shut(self) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _say(self, why: str) -> None:
        if why != self._said:
            log.warning("the snapshot of features is not used", path=str(self.path), why=why)
        self._said = why


class _Opened:
    """One published file."""

    def __init__(self, path: Path, identity: Identity | None) -> None:
        """Raises SnapshotUnusable, duckdb.Error."""
        if identity is None:
            raise SnapshotUnusable("there is no such file")
        kind = _kind(path)
        if kind == "DuckDB" and identity[3]:
            raise SnapshotUnusable(
                f"somebody writes to it, {path.name}.wal stands beside it; publish a closed file by rename"
            )
        import duckdb  # loads in a process that has such a file, and in no other

        # One thread: the cores are for callers.
        self._connection: DuckDBPyConnection = duckdb.connect(
            ":memory:", config={"threads": 1, "memory_limit": "512MB", "autoinstall_known_extensions": False}
        )
        try:
            quoted = str(path).replace("'", "''")
            source = f"read_parquet('{quoted}')"
            if kind == "DuckDB":
                self._connection.execute(f"ATTACH '{quoted}' AS snapshot (READ_ONLY)")
                self._connection.execute("SET enable_external_access = false")
                source = self._table()
            self._check(source)
        except BaseException:
            self._connection.close()
            raise
        # A cast of text to text is none, and then row groups without these entities are not even read.
        self._query = f"""
            SELECT CAST(entity_id AS VARCHAR), CAST(feature AS VARCHAR), last(value ORDER BY updated_at NULLS FIRST)
            FROM {source}
            WHERE CAST(entity_id AS VARCHAR) IN (SELECT unnest($1::VARCHAR[]))
              AND CAST(feature AS VARCHAR) IN (SELECT unnest($2::VARCHAR[]))
            GROUP BY 1, 2"""  # noqa: S608 - the path and the name of the table are quoted

    def find(self, wanted: Sequence[Pair]) -> dict[Pair, bytes | None]:
        """What the file has of these entities and features. Raises duckdb.Error."""
        entities, features = {pair[0] for pair in wanted}, {pair[1] for pair in wanted}
        rows = self._connection.execute(self._query, [sorted(entities), sorted(features)]).fetchall()
        return {(entity, feature): _as_stored(value) for entity, feature, value in rows}

    def close(self) -> None:
        self._connection.close()

    def _table(self) -> str:
        """The one table with these columns; the one called features, where there are several."""
        rows = self._connection.execute(
            "SELECT schema_name, table_name, list(column_name) FROM duckdb_columns() "
            "WHERE database_name = 'snapshot' AND NOT internal AND (schema_name, table_name) IN "
            "(SELECT (schema_name, table_name) FROM duckdb_tables() WHERE database_name = 'snapshot') GROUP BY 1, 2"
        ).fetchall()
        fit = [(schema, table) for schema, table, columns in rows if set(COLUMNS) <= set(columns)]
        if len(fit) > 1:
            fit = [each for each in fit if each[1] == "features"]
        if len(fit) != 1:
            there = ", ".join(sorted(table for _, table, _ in rows)) or "none"
            raise SnapshotUnusable(f"expected one table with the columns {', '.join(COLUMNS)}; tables: {there}")
        schema, table = (name.replace('"', '""') for name in fit[0])
        return f'snapshot."{schema}"."{table}"'

    def _check(self, source: str) -> None:
        columns = self._connection.execute(f"DESCRIBE SELECT * FROM {source}").fetchall()  # noqa: S608
        types = {name: kind for name, kind, *_ in columns}
        missing = [name for name in COLUMNS if name not in types]
        if missing:
            raise SnapshotUnusable(f"expected the columns {', '.join(COLUMNS)}; {', '.join(missing)} is missing")
        for name, known, expected in (
            ("entity_id", _NAMES, "text or integers"),
            ("feature", _NAMES, "text"),
            ("value", _VALUES, "text, numbers or booleans"),
        ):
            if not known.fullmatch(types[name]):
                raise SnapshotUnusable(f"column {name}: expected {expected}, got {types[name]}")


class AsyncSnapshot:
    """The same for an event loop: one query at a time in a thread, for everything that waits."""

    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="snapshot")
        self._waiting: list[tuple[Sequence[Pair], asyncio.Future[list[bytes | None]]]] = []
        self._turn: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Opens the file now, so that no request waits for it. Never raises."""
        await self._in_thread(self._snapshot.open)

    async def look_up(self, wanted: Sequence[Pair]) -> list[bytes | None]:
        """The values in the form they have in Redis, None where there is none. Never raises."""
        answer: asyncio.Future[list[bytes | None]] = asyncio.get_running_loop().create_future()
        self._waiting.append((wanted, answer))
        if self._turn is None:
            # It begins when this turn of the loop is over, with everything that was asked in it.
            self._turn = asyncio.create_task(self._answer())
        try:
            async with asyncio.timeout(LOOK_UP_S):
                return await answer
        except TimeoutError:
            log.warning("the snapshot of features is slow; a request went on without it", waited_s=LOOK_UP_S)
            return [None] * len(wanted)

    async def _answer(self) -> None:
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, []
                wanted = [pair for pairs, _ in waiting for pair in pairs]
                values = await self._in_thread(self._snapshot.look_up, wanted)
                start = 0
                for pairs, answer in waiting:
                    if not answer.done():
                        answer.set_result(values[start : start + len(pairs)])
                    start += len(pairs)
        finally:
            self._turn = None

    async def _in_thread(self, call: Callable[..., T], *arguments: object) -> T:
        # With the context, so that what it logs says whose it is.
        run = contextvars.copy_context().run
        return await asyncio.get_running_loop().run_in_executor(self._thread, run, call, *arguments)

    def close(self) -> None:
        """Lets go of the file and of the thread."""
        self._thread.submit(self._snapshot.close)
        self._thread.shutdown(wait=False)


def _identity(path: Path) -> Identity | None:
    try:
        stat = path.stat()
        return stat.st_ino, stat.st_mtime_ns, stat.st_size, path.with_name(f"{path.name}.wal").exists()
    except OSError:
        return None


def _kind(path: Path) -> str:
    """By its first bytes; names say little. Raises SnapshotUnusable."""
    try:
        with path.open("rb") as file:
            head = file.read(12)
    except OSError as error:
        raise SnapshotUnusable(f"it can't be read: {error.strerror}") from None
    if head[:4] == b"PAR1":
        return "Parquet"
    if head[8:] == b"DUCK":
        return "DuckDB"
    raise SnapshotUnusable("expected a Parquet or DuckDB file, and it is neither")


def _as_stored(value: Any) -> bytes | None:
    """A value as it would stand in Redis; floats in as many digits as they have."""
    if value is None or isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, Decimal):
        return format(value, "f").encode()
    return str(value).encode()


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
