"""One SELECT over the files of a log, in a process of its own: python -P enclosure.py, the question on stdin.

limits of the process  ->  in-memory database that reads these files alone  ->  shut, locked  ->  the SELECT  ->  rows

It answers JSON lines: {"columns": [[name, kind], …]}, then lists of rows, then {"end": whether there were more} or
{"error": kind, "message": text}. Nothing of Millstream is imported here, so that it starts at once.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import sys
from contextlib import suppress
from typing import Any

import duckdb

OVERHEAD = 2 * 2**30
"""Address space for Python, DuckDB's code and its threads' stacks, beside what the query may take."""
THREADS = 2
_CHUNK = 500
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_ALLOWED = (duckdb.StatementType.SELECT,)

_PLAIN = {
    "BOOLEAN",
    "VARCHAR",
    "DOUBLE",
    "FLOAT",
    *(f"{sign}{size}" for sign in ("", "U") for size in ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT")),
}


class Refused(Exception):
    """A question that is not answered."""


def main() -> None:
    asked = json.load(sys.stdin)
    _confine(asked["memory"], asked["seconds"])
    try:
        _answer(asked)
    except Refused as error:
        _say({"error": "refused", "message": str(error)})
    except (duckdb.OutOfMemoryException, MemoryError):
        _say({"error": "memory", "message": ""})
    except (duckdb.ParserException, duckdb.BinderException, duckdb.CatalogException, duckdb.PermissionException) as e:
        _say({"error": "refused", "message": str(e)})
    except duckdb.Error as error:
        _say({"error": "failed", "message": str(error)})


def _confine(memory: int, seconds: float) -> None:
    """What can't be lifted again; a second wall behind DuckDB's own."""
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 0,  # no file can be written, whatever the query says
        resource.RLIMIT_CPU: int(seconds * THREADS) + 2,
    }
    if sys.platform.startswith("linux"):
        limits[resource.RLIMIT_AS] = memory + OVERHEAD
        prctl = ctypes.CDLL(None).prctl
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    with suppress(OSError):
        os.nice(10)  # the models come first


def _answer(asked: dict[str, Any]) -> None:
    connection = duckdb.connect(config={"threads": THREADS, "memory_limit": f"{asked['memory']}B"})
    for statement in asked["before"]:
        connection.execute(statement)
    _shut(connection, asked["paths"])
    query = _one_select(connection, asked["sql"])
    described = connection.sql(query)
    columns = list(zip(described.columns, map(str, described.types), strict=True))
    names = [f"c{place}" for place in range(len(columns))]
    shown = [_shown(name, kind) for name, (_, kind) in zip(names, columns, strict=True)]
    whole = f"SELECT {', '.join(text for text, _ in shown)} FROM (\n{query}\n) AS asked({', '.join(names)})"  # noqa: S608 - it is one SELECT
    cursor = connection.execute(_one_select(connection, whole))
    _say({"columns": [[name, kind] for (name, _), (_, kind) in zip(columns, shown, strict=True)]})
    left = asked["max_rows"]
    while rows := cursor.fetchmany(min(_CHUNK, left + 1)):
        _say(rows[:left])
        if len(rows) > left:
            _say({"end": True})
            return
        left -= len(rows)
    _say({"end": False})


def _shut(connection: duckdb.DuckDBPyConnection, paths: list[str]) -> None:
    """From here on nothing but these files can be read, and no setting be changed."""
    names = ", ".join("'" + path.replace("'", "''") + "'" for path in paths)
    for setting in (
        "python_enable_replacements = false",
        "temp_directory = ''",  # what does not fit in memory fails, instead of filling a disk
        f"allowed_paths = [{names}]",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")


def _one_select(connection: duckdb.DuckDBPyConnection, sql: str) -> str:
    """The text of the one statement, by DuckDB's own parser. Raises Refused, duckdb.ParserException."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise Refused(f"expected one SELECT, got {len(statements) or 'no'} statements")
    [statement] = statements
    if statement.type not in _ALLOWED:
        raise Refused(f"expected a SELECT, got {statement.type.name}: the log is read here, and nothing else")
    return str(statement.query).strip().rstrip(";")


def _shown(name: str, kind: str) -> tuple[str, str]:
    """How a column is selected, so that it can be told as JSON; and what it is then."""
    if kind in _PLAIN:
        return name, "boolean" if kind == "BOOLEAN" else "text" if kind == "VARCHAR" else "number"
    if kind.startswith("DECIMAL") and not kind.endswith("]"):
        return f"CAST({name} AS DOUBLE)", "number"
    if kind == "JSON":
        return f"CAST({name} AS VARCHAR)", "json"
    if kind == "BLOB":
        return f"lower(hex({name}))", "text"
    if kind == "TIMESTAMP WITH TIME ZONE":
        return f"strftime({name}, '%Y-%m-%dT%H:%M:%S.%f+00:00')", "text"
    if kind.endswith("]") or kind.startswith(("STRUCT", "MAP", "UNION")):
        return f"CAST(to_json({name}) AS VARCHAR)", "json"
    return f"CAST({name} AS VARCHAR)", "text"


def _say(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
