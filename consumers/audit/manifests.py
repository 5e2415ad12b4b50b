"""A segment's manifest against the rows of its file, and against the one that stands beside it."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb

from consumers.audit.log_files import SegmentFile
from consumers.audit.segment import Segment

_SAID = {
    "rows": "count(*)",
    "first_number": "arg_min(number, sequence)",
    "last_number": "arg_max(number, sequence)",
    "first_sequence": "min(sequence)",
    "last_sequence": "max(sequence)",
    "first_entry": "coalesce(arg_min(event_entry_id, sequence), '')",
    "last_entry": "coalesce(arg_max(event_entry_id, sequence), '')",
    "first_request_us": "coalesce(epoch_us(min(user_request_timestamp)), 0)",
    "last_request_us": "coalesce(epoch_us(max(user_request_timestamp)), 0)",
    "last_appended_us": "coalesce(epoch_us(max(appended_timestamp)), 0)",
    "erased": "count(erased_at)",
}
"""What a manifest says, as it is asked of its rows."""


def manifest_faults(segment: Segment, rows: duckdb.DuckDBPyConnection, chain_after: str) -> Iterator[str]:
    """A sentence for each field that is not what the rows, the view `events`, and the chain after them are.

    Raises duckdb.Error.
    """
    columns = ", ".join(f"{sql} AS {name}" for name, sql in _SAID.items())
    [there] = rows.execute(f"SELECT {columns} FROM events").fetchall()  # noqa: S608 - constants
    for name, value in (*zip(_SAID, there, strict=True), ("chain_after", chain_after)):
        said = getattr(segment, name)
        if said != value:
            yield f"the manifest of the segment {segment.file} says {name} {short(said)}, and it is {short(value)}"


def beside(file: SegmentFile) -> str:
    """How the manifest beside the file, which others read, differs from the one that is listed; empty: it does not."""
    path = file.path.with_name(file.segment.manifest)
    try:
        same = not path.exists() or path.read_text(encoding="utf-8") == file.segment.encode()
    except (OSError, UnicodeDecodeError):
        same = False
    return "" if same else f"the manifest {path.name} beside the segment is not the one that the log lists"


def short(value: object) -> str:
    """A value for people: the beginning of a digest, and anything else whole."""
    text = value.hex() if isinstance(value, bytes) else str(value)
    return f"{text[:12]}…" if len(text) > 20 else text
