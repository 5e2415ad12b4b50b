"""Snapshot files as Service A publishes them: written beside, then renamed."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb

Row = tuple[Any, str, Any, str]
"""entity_id, feature, value, updated_at"""

NOW = "2026-01-31 12:00:00"


def publish_snapshot(
    path: Path, rows: Iterable[Row], *, entity: str = "VARCHAR", value: str = "VARCHAR", form: str = "parquet"
) -> None:
    """Makes the file all at once; `form` is parquet or duckdb."""
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    table = f"features(entity_id {entity}, feature VARCHAR, value {value}, updated_at TIMESTAMP)"
    with duckdb.connect(str(beside) if form == "duckdb" else ":memory:") as connection:
        connection.execute(f"CREATE TABLE {table}")
        for row in rows:
            connection.execute("INSERT INTO features VALUES (?, ?, ?, ?)", row)
        if form == "parquet":
            connection.execute("COPY features TO ? (FORMAT parquet)", [str(beside)])
    beside.replace(path)
