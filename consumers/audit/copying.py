"""What is read from an open event database for those who read the log as files: its live rows, its list of segments.

The sink reads it for others from its own connection; while no sink runs, from the file.
"""

from __future__ import annotations

from pathlib import Path

import duckdb

from consumers.audit.log_files import in_order, quoted
from consumers.audit.segment import Segment
from consumers.audit.standing import Recorded, columns_of, read_positions


def copy_live(connection: duckdb.DuckDBPyConnection, path: Path, model_id: str = "") -> tuple[Recorded, ...]:
    """Writes the rows that are in no segment into a new Parquet file, in the order of their commit, one transaction;
    how far each model was recorded in it. Raises duckdb.Error.

    Streams: what it holds in memory does not grow with the rows.
    """
    where = f" WHERE model_id = {quoted(model_id)}" if model_id else ""
    connection.begin()
    try:
        positions = read_positions(connection, model_id)
        if columns_of(connection, "events"):
            select = f"SELECT * FROM events{where}"  # noqa: S608 - quoted
        else:
            select = "SELECT ''::VARCHAR AS model_id WHERE false"
        connection.execute(
            f"COPY ({select}) TO {quoted(str(path))} (FORMAT parquet, COMPRESSION zstd, USE_TMP_FILE false)"
        )
    finally:
        connection.rollback()  # nothing was written to the database
    return positions


def read_segments(connection: duckdb.DuckDBPyConnection, model_id: str = "") -> list[Segment]:
    """Manifests of what is sealed, by model, oldest first. Raises duckdb.Error, MalformedManifest."""
    if not columns_of(connection, "segments"):
        return []  # of an earlier version
    where = " WHERE model_id = ?" if model_id else ""
    sql = f"SELECT manifest FROM segments{where}"  # noqa: S608 - a parameter
    rows = connection.execute(sql, [model_id] if model_id else []).fetchall()
    return in_order(Segment.decode(manifest) for (manifest,) in rows)
