"""A Parquet file of one model's events, read to its end: what its rows are, and whether their chain holds.

    python -m consumers.audit.inspection FILE CHAIN_BEFORE   ->   one line of JSON: a Finding, or {"unsound": why}

It is a process of its own because it computes for as long as many events take, which the sink shall not.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import file_digest
from pathlib import Path

import duckdb
import orjson

from consumers.audit.log_files import parquet
from consumers.audit.rebuild import SELECT_ROWS, Row, links

NICE = 10
_ROWS = 500


class Unsound(Exception):
    """Rows that can't be sealed; the message names the first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the rows of a sound file are; the fields are those of a manifest."""

    rows: int
    first_number: int
    last_number: int
    first_sequence: int
    last_sequence: int
    first_entry: str
    last_entry: str
    first_request_us: int
    last_request_us: int
    last_appended_us: int
    erased: int
    chain_after: str
    size: int
    sha256: str
    runtime_ids: tuple[str, ...] = ()


def inspect(path: Path, chain_before: bytes) -> Finding:
    """Reads all of it. Raises Unsound, duckdb.Error, OSError."""
    with path.open("rb") as file:
        sha256 = file_digest(file, "sha256").hexdigest()
    with duckdb.connect(config={"threads": 1, "memory_limit": "512MB"}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(f"CREATE VIEW events AS SELECT * FROM {parquet([path])}")  # noqa: S608 - quoted
        times = "epoch_us(min(user_request_timestamp)), epoch_us(max(user_request_timestamp))"
        [(models, first_us, last_us, appended_us, erased)] = connection.execute(
            f"SELECT count(DISTINCT model_id), {times}, epoch_us(max(appended_timestamp)), count(erased_at) FROM events"  # noqa: S608
        ).fetchall()
        runtimes = connection.execute(
            "SELECT DISTINCT runtime_id FROM events WHERE runtime_id IS NOT NULL ORDER BY ALL"
        ).fetchall()
        if models != 1:
            raise Unsound(f"expected the rows of one model, got those of {models}")
        chain = chain_before
        count, first, last = 0, None, None
        for link in links(_rows(connection)):
            if link.problem:
                raise Unsound(f"entry {link.entry_id} is not what a sink writes: {link.problem}")
            for event in link.events:
                if event.problem:
                    raise Unsound(f"event {event.number} is not what a sink writes: {event.problem}")
                if last is not None and event.row.sequence <= last.sequence:
                    raise Unsound(f"event {event.number} is not in the order of commit")
                first, last = first or event.row, event.row
                count += 1
            if link.chain is None and chain == chain_before == bytes(32):
                continue  # recorded before there was a chain
            chain = link.after(chain)
            if link.chain != chain:
                raise Unsound(f"the chain does not hold at entry {link.entry_id}, event {link.events[-1].number}")
    if first is None or last is None:
        raise Unsound("expected rows, got none")
    return Finding(
        rows=count,
        first_number=first.number,
        last_number=last.number,
        first_sequence=first.sequence,
        last_sequence=last.sequence,
        first_entry=first.event_entry_id or "",
        last_entry=last.event_entry_id or "",
        first_request_us=first_us or 0,
        last_request_us=last_us or 0,
        last_appended_us=appended_us or 0,
        erased=erased,
        chain_after=chain.hex(),
        size=path.stat().st_size,
        sha256=sha256,
        runtime_ids=tuple(runtime_id for (runtime_id,) in runtimes),
    )


def _rows(connection: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    """As they stand in the file, which is the order of their commit."""
    cursor = connection.cursor()
    cursor.execute("SET TimeZone = 'UTC'")
    cursor.execute(SELECT_ROWS)
    while rows := cursor.fetchmany(_ROWS):
        yield from map(Row._make, rows)


def main(arguments: list[str]) -> int:
    """Prints what it found, and ends when the one that started it does, which holds its standard input."""
    path, chain_before = arguments
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(OSError):
        os.nice(NICE)
    try:
        found: dict[str, object] = asdict(inspect(Path(path), bytes.fromhex(chain_before)))
    except (Unsound, duckdb.Error, OSError) as error:
        found = {"unsound": str(error).splitlines()[0]}
    sys.stdout.write(orjson.dumps(found).decode() + "\n")
    return 0


def _end_with_parent() -> None:
    with suppress(OSError):
        os.read(0, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
