"""The event log's tables, and how each column of `events` comes from what the sink gathers.

One row for each event. Every field of the event's protobuf is in a column of its own, so that the bytes that stood in
the stream can be built again from the row; where columns can't hold a value exactly (a NaN in JSON, a reply for another
request id), `exact` keeps the serialized event beside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from consumers.audit.chain import BEGINNING
from protos import millstream_wire_v1_pb2 as wire

Form = Literal["text", "integer", "boolean", "bytes", "time", "computed", "later"]


@dataclass(frozen=True, slots=True)
class Column:
    """One column of `events`."""

    name: str
    kind: str
    """Its DuckDB type."""
    form: Form
    """What the gathered values are in Python, None allowed for text and bytes.

    computed: from other columns; later: written by nobody but who changes a row.
    """
    source: str
    """SQL over the gathered column of the same name."""


def _text(name: str) -> Column:
    return Column(name, "VARCHAR", "text", name)


def _json(name: str) -> Column:
    return Column(name, "JSON", "text", name)


def _count(name: str, kind: str = "UINTEGER") -> Column:
    return Column(name, kind, "integer", name)


def _flag(name: str) -> Column:
    return Column(name, "BOOLEAN", "boolean", name)


def _blob(name: str) -> Column:
    return Column(name, "BLOB", "bytes", name)


def _micros(name: str) -> str:
    return f"make_timestamptz(nullif({name}, 0))"


def _time(name: str, *otherwise: str) -> Column:
    """Gathered as microseconds since the Unix epoch, 0 for none."""
    source = f"coalesce({', '.join((_micros(name), *otherwise))})" if otherwise else _micros(name)
    return Column(name, "TIMESTAMPTZ", "time", source)


def _appended(entry_id: str) -> str:
    """When Redis appended an entry: the first half of its id is milliseconds. NULL where that is no time."""
    return f"TRY(make_timestamptz(TRY_CAST(split_part({entry_id}, '-', 1) AS BIGINT) * 1000))"


_STAMPED = (
    f"SELECT *, {_appended('entry_id')} AS appended, "  # noqa: S608 - names from here alone
    f"{_appended('event_entry_id')} AS recorded FROM gathered"
)
"""What is gathered, and the times that its ids hold; in one place, since planning them costs more than they do."""

COLUMNS: tuple[Column, ...] = (
    _count("sequence", "BIGINT"),  # order of commit over all models; what Follow reads on from
    _text("model_id"),
    _count("number", "BIGINT"),  # the model's running number of this event
    _time("user_request_timestamp", "appended", "recorded"),
    _json("inputs"),
    _time("predicted_at_timestamp"),
    _json("outputs"),
    _text("status"),
    _text("request_id"),
    _text("version"),
    _text("digest"),
    _text("entity_id"),
    _json("origins"),
    _blob("hydrated"),  # the same by the features' indexes, as the entry holds it
    _text("error_reason"),
    _text("error_message"),
    _json("error_violations"),
    _count("error_code", "INTEGER"),
    _text("lane"),
    _text("worker"),
    _text("gateway"),
    _text("caller"),
    _text("trace"),
    _text("replay"),
    _count("deliveries"),
    _time("admitted_timestamp"),
    Column("appended_timestamp", "TIMESTAMPTZ", "computed", "appended"),
    _time("delivered_timestamp"),
    _time("deadline_timestamp"),
    _text("entry_id"),
    _text("event_entry_id"),
    _text("batch_id"),
    _count("batch_rows"),
    _count("batch_position"),
    _count("rows"),
    _text("inputs_form"),  # matrix, or columns: and one letter each (d, i, b, s)
    _text("outputs_form"),  # rows, or columns: and one letter each
    _text("engine"),
    _text("runtime_id"),
    _flag("degraded"),
    _flag("packed"),
    _flag("discard_reply"),
    _count("reply_ttl_s"),
    _blob("body_sha256"),
    _blob("refused_body"),
    _blob("exact"),
    _blob("exact_header"),  # on a link's last row, where the columns do not give its header
    _blob("chain"),  # on a link's last row: the chain's value after it
    Column("erased_at", "TIMESTAMPTZ", "later", "erased_at"),  # its inputs and outputs were emptied then
    Column("erased_sha256", "BLOB", "later", "erased_sha256"),  # the digest of the event as it was
)

NAMES = tuple(column.name for column in COLUMNS)
TIMES = tuple(column.name for column in COLUMNS if column.form == "time")

_LATER = frozenset({"hydrated", "replay", "exact_header", "chain", "erased_at", "erased_sha256"})
"""Columns that a file of an earlier version has not."""

GATHERED = "gathered"
"""The view over one block of gathered columns, while it is inserted."""

CREATE_EVENTS = f"CREATE TABLE IF NOT EXISTS events ({', '.join(f'{c.name} {c.kind}' for c in COLUMNS)})"

CREATE = (
    CREATE_EVENTS,
    """CREATE TABLE IF NOT EXISTS positions (
        model_id VARCHAR PRIMARY KEY, entry_id VARCHAR NOT NULL, number BIGINT NOT NULL,
        updated_at TIMESTAMPTZ NOT NULL)""",
    # A file of an earlier version has none of these.
    "ALTER TABLE positions ADD COLUMN IF NOT EXISTS epoch VARCHAR DEFAULT ''",
    "ALTER TABLE positions ADD COLUMN IF NOT EXISTS recover_until_ms BIGINT DEFAULT 0",
    "ALTER TABLE positions ADD COLUMN IF NOT EXISTS copies_until_ms BIGINT DEFAULT 0",
    "ALTER TABLE positions ADD COLUMN IF NOT EXISTS chain BLOB",
    "ALTER TABLE positions ADD COLUMN IF NOT EXISTS ahead BIGINT",
    *(
        f"ALTER TABLE events ADD COLUMN IF NOT EXISTS {column.name} {column.kind}"
        for column in COLUMNS
        if column.name in _LATER
    ),
    """CREATE TABLE IF NOT EXISTS segments (
        model_id VARCHAR NOT NULL, first_number BIGINT NOT NULL, last_number BIGINT NOT NULL, manifest VARCHAR NOT NULL,
        first_sequence BIGINT, last_sequence BIGINT, kept BOOLEAN DEFAULT false,
        PRIMARY KEY (model_id, first_sequence))""",
    # What retention removed: the chain's value after it is where what is left begins.
    """CREATE TABLE IF NOT EXISTS anchors (
        model_id VARCHAR PRIMARY KEY, number BIGINT NOT NULL, chain BLOB NOT NULL, removed_at TIMESTAMPTZ NOT NULL,
        sequence BIGINT)""",
    """CREATE TABLE IF NOT EXISTS erasures (
        erased_at TIMESTAMPTZ, model_id VARCHAR, entity_sha256 BLOB, events BIGINT, reason VARCHAR)""",
    "CREATE TABLE IF NOT EXISTS runtimes (runtime_id VARCHAR PRIMARY KEY, record VARCHAR NOT NULL)",
    """CREATE TABLE IF NOT EXISTS gaps (
        model_id VARCHAR, from_entry VARCHAR, to_entry VARCHAR, expected BIGINT, found BIGINT, noted_at TIMESTAMPTZ,
        why VARCHAR)""",
    # Of a file of an earlier version, whose numbers were those of the stream and may have come again.
    """UPDATE positions SET ahead = greatest(0, coalesce(
        (SELECT max(events.number) FROM events WHERE events.model_id = positions.model_id), 0) - number)
        WHERE ahead IS NULL""",
)


@lru_cache(maxsize=256)
def insert_events(gathered: frozenset[str]) -> str:
    """The statement for a view that has these columns; one that no event of it has is left out, and stays NULL."""
    columns = [column for column in COLUMNS if column.name in gathered or column.form == "computed"]
    names, sources = (", ".join(c.name for c in columns), ", ".join(c.source for c in columns))
    return f"INSERT INTO events ({names}) SELECT {sources} FROM ({_STAMPED})"  # noqa: S608 - names from here alone


INSERT_POSITION = (
    "INSERT INTO positions "
    "(model_id, entry_id, number, epoch, recover_until_ms, copies_until_ms, chain, ahead, updated_at) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, now())"
)
# It is there nearly always, and then this is less than half the work.
UPDATE_POSITION = (
    "UPDATE positions SET entry_id = ?, number = ?, epoch = ?, recover_until_ms = ?, copies_until_ms = ?, chain = ?, "
    "ahead = ?, updated_at = now() WHERE model_id = ?"
)
# A file of an earlier version has no chain: it begins where this one goes on.
SELECT_POSITIONS = (
    "SELECT model_id, entry_id, number, epoch, recover_until_ms, copies_until_ms, "  # noqa: S608 - a constant
    f"coalesce(chain, unhex('{BEGINNING.hex()}')), coalesce(ahead, 0) FROM positions"
)
SELECT_RECORDED = (
    "SELECT lane, entry_id, request_id, status = 'SHADOW', event_entry_id FROM events "
    "WHERE model_id = ? AND entry_id BETWEEN ? AND ? AND entry_id IN (SELECT unnest(CAST(? AS VARCHAR[])))"
)
SELECT_NEWEST = "SELECT coalesce(epoch_ms(max(appended_timestamp)), 0) FROM events WHERE model_id = ?"
INSERT_RUNTIME = "INSERT OR REPLACE INTO runtimes VALUES (?, ?)"
INSERT_GAP = "INSERT INTO gaps VALUES (?, ?, ?, ?, ?, now(), ?)"

STATUSES = tuple(wire.Status.Name(number) for number in wire.Status.values())
"""Names by number, STATUS_UNSPECIFIED first."""

COPY = wire.Status.Name(wire.SHADOW)
"""What a shadow made of a request that has an event already."""

LANES = ("requests", "bulk")
"""Names by number, as the streams are called."""


def status_name(number: int) -> str:
    """The status as it stands in the log; a number from a later version of the protocol stays a number."""
    return STATUSES[number] if 0 <= number < len(STATUSES) else str(number)


def lane_name(number: int) -> str:
    """The lane as it stands in the log."""
    return LANES[number] if 0 <= number < len(LANES) else str(number)
