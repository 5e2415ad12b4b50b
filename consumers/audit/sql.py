"""SQL over a log, for people: one SELECT, in a child process that reads the log's files and reaches nothing else."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from consumers.audit import enclosure
from consumers.audit.log_files import LogFiles, Skipped, quoted

Kind = Literal["text", "number", "boolean", "json"]

EXAMPLES = (
    "SELECT model_id, status, count(*) AS events FROM events GROUP BY ALL ORDER BY ALL",
    "SELECT request_id, inputs, outputs FROM events WHERE model_id = 'churn' ORDER BY number DESC LIMIT 20",
    "SELECT worker, avg(epoch_ms(predicted_at_timestamp) - epoch_ms(admitted_timestamp)) AS ms FROM events GROUP BY 1",
)
LEAST_MEMORY = 64 * 2**20
_PASSED_ON = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG")


class SqlRefused(Exception):
    """A question that is not answered: it is no SELECT, reaches beyond the log, or needs too much memory."""


class SqlTooLong(Exception):
    """A question whose answer did not come in time."""


class SqlFailed(Exception):
    """A question that went wrong on the way: by its own doing, or by a file that is not what it was.

    `LogFiles.sound` finds such files.
    """


@dataclass(frozen=True, slots=True)
class Limits:
    """What a question may take."""

    seconds: float = 30.0
    """Longest wait for its answer; what the asker does in between does not count."""
    memory: int = 10**9
    """Bytes."""
    max_rows: int = 10_000


class Question:
    """One SELECT that is being answered; leaving it ends its process.

    Raises SqlRefused, SqlTooLong, SqlFailed; `columns` and `rows` do too.
    """

    def __init__(
        self, files: LogFiles, sql: str, limits: Limits, *, since_us: int | None = None, until_us: int | None = None
    ) -> None:
        """The times leave out rows of requests outside of [since, until), in microseconds."""
        self._limits = limits
        self._left_s = limits.seconds
        self._unread = b""
        self.cut = False
        """Whether there were more than the most rows; known at the end."""
        paths = [str(each.path) for each in files.segments] + ([str(files.live)] if files.live else [])
        asked = {
            "before": ["SET TimeZone = 'UTC'", _view(files, since_us, until_us), *_gaps(files)],
            "paths": paths,
            "sql": sql,
            "memory": limits.memory,
            "seconds": limits.seconds,
            "max_rows": limits.max_rows,
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(Path(enclosure.__file__))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={name: os.environ[name] for name in _PASSED_ON if name in os.environ},
            cwd="/",
            start_new_session=True,  # Ctrl-C is for the asker, who ends it
        )
        try:
            assert self._process.stdin is not None
            with self._process.stdin as stdin:
                stdin.write(json.dumps(asked).encode())
            self.columns: tuple[tuple[str, Kind], ...] = tuple((name, kind) for name, kind in self._next()["columns"])
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.end()

    def end(self) -> None:
        """Kills its process, where it has not ended."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def rows(self) -> Iterator[list[Any]]:
        """Its rows, in order."""
        while isinstance(answer := self._next(), list):
            yield from answer
        self.cut = answer["end"]

    def _next(self) -> Any:
        line = self._line()
        if not line:
            # It could not tell why: most likely it was ended by what it was allowed.
            status = self._process.wait()
            if status in (-signal.SIGXCPU, -signal.SIGKILL):
                raise self._late()
            raise SqlFailed(f"its process ended with status {status}, most likely since {self._too_large()}")
        answer = json.loads(line)
        if not isinstance(answer, dict) or "error" not in answer:
            return answer
        if answer["error"] == "memory":
            raise SqlRefused(self._too_large())
        if answer["error"] == "refused":
            raise SqlRefused(_plain(answer["message"]))
        raise SqlFailed(_plain(answer["message"]))

    def _line(self) -> bytes:
        """The next line; empty at the end."""
        assert self._process.stdout is not None
        pipe = self._process.stdout.fileno()
        while b"\n" not in self._unread:
            asked_at = time.monotonic()
            readable, _, _ = select.select([pipe], [], [], max(0.0, self._left_s))
            self._left_s -= time.monotonic() - asked_at
            if not readable:
                raise self._late()
            piece = os.read(pipe, 2**20)
            if not piece:
                return b""
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _late(self) -> SqlTooLong:
        return SqlTooLong(
            f"no answer within {self._limits.seconds:g} s; ask for less, such as a WHERE on "
            "user_request_timestamp, or allow more with --limit-seconds"
        )

    def _too_large(self) -> str:
        return (
            f"the answer needs more than {self._limits.memory / 1e6:.0f} MB of memory; ask for fewer rows or columns, "
            "sort less, or allow more with --memory"
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """All rows of a question."""

    columns: tuple[tuple[str, Kind], ...]
    """Name and kind of each; blobs are hex, times RFC 3339, `json` is text to be parsed."""
    rows: tuple[list[Any], ...]
    cut: bool
    """Whether there were more than the most rows."""
    skipped: tuple[Skipped, ...] = ()
    """Segments that were found not to be what they were, and were left out."""


def ask(
    files: LogFiles, sql: str, limits: Limits, *, since_us: int | None = None, until_us: int | None = None
) -> Answer:
    """The answer to one SELECT over `events` and `gaps`; asked once more without the segments that were altered, where
    it fails and there are some. The times leave out rows of requests outside of [since, until), in microseconds.

    Raises SqlRefused, SqlTooLong, SqlFailed.
    """
    try:
        return _answer(files, sql, limits, since_us, until_us)
    except SqlFailed:
        sound = files.sound()
        skipped = sound.skipped[len(files.skipped) :]
        if not skipped:
            raise
    return replace(_answer(sound, sql, limits, since_us, until_us), skipped=skipped)


def _answer(files: LogFiles, sql: str, limits: Limits, since_us: int | None, until_us: int | None) -> Answer:
    with Question(files, sql, limits, since_us=since_us, until_us=until_us) as asked:
        rows = tuple(asked.rows())
        return Answer(asked.columns, rows, asked.cut)


def _view(files: LogFiles, since_us: int | None, until_us: int | None) -> str:
    """`events`."""
    within = [
        f"user_request_timestamp {operator} make_timestamptz({micros}::BIGINT)"
        for operator, micros in ((">=", since_us), ("<", until_us))
        if micros is not None
    ]
    where = f" WHERE {' AND '.join(within)}" if within else ""
    return f"CREATE VIEW events AS SELECT * FROM ({files.select()}){where}"  # noqa: S608 - quoted


def _gaps(files: LogFiles) -> Iterator[str]:
    """`gaps`."""
    rows = ", ".join(
        f"({quoted(gap.model_id)}, {quoted(gap.from_entry)}, {quoted(gap.to_entry)}, {gap.expected}, {gap.found}, "
        f"make_timestamptz({gap.noted_us}::BIGINT), {quoted(gap.why)})"
        for gap in files.standing.gaps
    )
    yield (
        "CREATE TABLE gaps (model_id VARCHAR, from_entry VARCHAR, to_entry VARCHAR, expected BIGINT, found BIGINT, "
        "noted_at TIMESTAMPTZ, why VARCHAR)"
    )
    if rows:
        yield f"INSERT INTO gaps VALUES {rows}"  # noqa: S608 - quoted


def _plain(message: str) -> str:
    """What DuckDB says, without what speaks of its own settings."""
    if "disabled by configuration" in message or "disabled through configuration" in message:
        return "only the log's tables can be read here, `events` and `gaps`: no files, extensions or other databases"
    if "configuration has been locked" in message:
        return "settings can't be changed here"
    if found := re.match(r"Catalog Error: Table with name (.+?) does not exist!", message):
        return f"{found[1]} does not exist: the log's tables are `events` and `gaps`"
    return message.strip()
