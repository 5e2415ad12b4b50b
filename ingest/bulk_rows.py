"""Rows of bulk files as they are written: CSV, JSON lines or Parquet, none of it checked against a model yet.

A line that can't be read is a row that says so; the lines after it are read on.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

LONGEST_LINE = 16 * 2**20
BATCH_ROWS = 2048


class BulkFileUnusable(Exception):
    """A file that nothing can be taken from; the message has a line for each thing that is wrong."""


class Text(str):
    """A cell that is text still."""

    __slots__ = ()


Row = tuple[int, Mapping[str, object] | bytes | None, str]
"""Number; cells by column, or the text of a JSON line; what is wrong where there is neither."""


class Rows(Protocol):
    """One way a file is written."""

    columns: tuple[str, ...]
    """Empty where each line names its own."""

    def __call__(self, after: int) -> Iterator[Row]: ...

    @property
    def done(self) -> float: ...


def rows_of(file: BinaryIO, path: Path) -> Rows:
    """A way to read the file, by what it begins with; names say little. Raises BulkFileUnusable."""
    file.seek(0)
    head = file.read(1024)
    file.seek(0)
    if head[:4] == b"PAR1":
        return _Parquet(path)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise BulkFileUnusable(f"{path} is UTF-16: save it as CSV UTF-8")
    if not head.strip():
        raise BulkFileUnusable(f"{path} is empty")
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"{":
        return _JsonLines(file)
    return _Csv(file, path)


class _JsonLines:
    """One JSON object a line; empty lines are skipped."""

    columns: tuple[str, ...] = ()

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = _size(file)

    @property
    def done(self) -> float:
        return self._file.tell() / self._size

    def __call__(self, after: int) -> Iterator[Row]:
        self._file.seek(0)
        number = 0
        while raw := self._file.readline(LONGEST_LINE):
            number += 1
            cut = not raw.endswith(b"\n") and len(raw) == LONGEST_LINE
            while cut and (rest := self._file.readline(LONGEST_LINE)):
                cut = not rest.endswith(b"\n")
                raw = b"x"
            if number <= after:
                continue
            if raw == b"x" or len(raw) == LONGEST_LINE:
                yield number, None, f"the line is longer than {LONGEST_LINE >> 20} MB"
            elif text := (raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw).strip():
                yield number, text, ""


class _Csv:
    """Comma-separated values under a header, in UTF-8 with or without a byte order mark."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._size = _size(file)
        try:
            self.columns = tuple(name.strip() for name in next(self._reader()))
        except (csv.Error, StopIteration) as error:
            raise BulkFileUnusable(f"{path}, line 1: expected the names of the columns: {error}") from None

    @property
    def done(self) -> float:
        return self._file.tell() / self._size

    def _reader(self) -> Any:
        self._file.seek(0)
        # What is no UTF-8 is found in its own line below instead of ending everything.
        text = _Unclosed(self._file, encoding="utf-8-sig", errors="surrogateescape", newline="")
        return csv.reader(text, strict=True)

    def __call__(self, after: int) -> Iterator[Row]:
        reader = self._reader()
        next(reader)
        width = len(self.columns)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if number > after:
                    yield number, None, f"it is no CSV: {error}"
                continue
            if number <= after or not cells:
                continue
            if len(cells) != width:
                yield number, None, f"expected {width} cells as in the header, got {len(cells)}"
            elif not _is_text(cells):
                yield number, None, "it is not UTF-8"
            else:
                yield number, dict(zip(self.columns, map(Text, cells), strict=True)), ""


class _Unclosed(io.TextIOWrapper):
    """Leaves the file open for the next reading when it goes away itself."""

    def __del__(self) -> None:
        self.detach()


def _is_text(cells: list[str]) -> bool:
    text = "".join(cells)
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


class _Parquet:
    """A Parquet file, through DuckDB, a few thousand rows at a time."""

    def __init__(self, path: Path) -> None:
        import duckdb  # loads where there is such a file, and nowhere else

        self._connection = duckdb.connect(config={"threads": 1, "autoinstall_known_extensions": False})
        self._path = str(path)
        self._read = 0
        try:
            columns = self._connection.execute("DESCRIBE SELECT * FROM read_parquet(?)", [self._path]).fetchall()
            counted = self._connection.execute("SELECT num_rows FROM parquet_file_metadata(?)", [self._path]).fetchone()
        except duckdb.Error as error:
            first = str(error).partition("\n")[0]
            raise BulkFileUnusable(f"{path} is no Parquet file that can be read: {first}") from None
        self.columns = tuple(column[0] for column in columns)
        self._total = counted[0] if counted else 0

    @property
    def done(self) -> float:
        return self._read / self._total if self._total else 1.0

    def __call__(self, after: int) -> Iterator[Row]:
        # A cursor of its own: several readings may be under way.
        rows = self._connection.cursor().execute(
            "SELECT * EXCLUDE (file_row_number) FROM read_parquet(?, file_row_number = true) "
            "WHERE file_row_number >= ?",
            [self._path, after],
        )
        number = after
        while batch := rows.fetchmany(BATCH_ROWS):
            for cells in batch:
                number += 1
                self._read = number
                yield number, dict(zip(self.columns, cells, strict=True)), ""


def _size(file: BinaryIO) -> int:
    at = file.tell()
    size = file.seek(0, io.SEEK_END)
    file.seek(at)
    return max(size, 1)
