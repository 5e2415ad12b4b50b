"""Rows of the event log back to the bytes that stood in the stream, and what of a row does not follow from those.

rows, in order  ->  RebuiltLink: the header's bytes, each event's bytes and digest  ->  the chain
RebuiltLink     ->  its columns, made once more as the sink makes them              ->  those that differ
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import duckdb
import orjson
from google.protobuf.message import DecodeError, Message

from consumers.audit import chain
from consumers.audit.canonical import PREDICTED, join_event, join_header
from consumers.sink.rows import Link, joined
from consumers.sink.schema import COLUMNS, CREATE_EVENTS, GATHERED, insert_events
from contract.wire import length_delimited
from protos import millstream_wire_v1_pb2 as wire


class Row(NamedTuple):
    """One row of `events`; every column, by its name. Times are microseconds since the Unix epoch."""

    sequence: int
    model_id: str
    number: int
    user_request_timestamp: int | None
    inputs: str | None
    predicted_at_timestamp: int | None
    outputs: str | None
    status: str | None
    request_id: str | None
    version: str | None
    digest: str | None
    entity_id: str | None
    origins: str | None
    hydrated: bytes | None
    error_reason: str | None
    error_message: str | None
    error_violations: str | None
    error_code: int | None
    lane: str | None
    worker: str | None
    gateway: str | None
    caller: str | None
    trace: str | None
    replay: str | None
    deliveries: int | None
    admitted_timestamp: int | None
    appended_timestamp: int | None
    delivered_timestamp: int | None
    deadline_timestamp: int | None
    entry_id: str | None
    event_entry_id: str | None
    batch_id: str | None
    batch_rows: int | None
    batch_position: int | None
    rows: int | None
    inputs_form: str | None
    outputs_form: str | None
    engine: str | None
    runtime_id: str | None
    degraded: bool | None
    packed: bool | None
    discard_reply: bool | None
    reply_ttl_s: int | None
    body_sha256: bytes | None
    refused_body: bytes | None
    exact: bytes | None
    exact_header: bytes | None
    chain: bytes | None
    erased_at: int | None
    erased_sha256: bytes | None


def _selected(name: str, kind: str) -> str:
    """Nothing of a time is lost in an integer, and Python has no dates for some."""
    if kind == "TIMESTAMPTZ":
        return f"epoch_us({name}) AS {name}"
    return f"CAST({name} AS VARCHAR) AS {name}" if kind == "JSON" else name


SELECT_ROWS = f"SELECT {', '.join(_selected(column.name, column.kind) for column in COLUMNS)} FROM events"  # noqa: S608
"""A Row each; where and in which order is added behind it."""

IN_ORDER = " ORDER BY model_id, sequence"
"""The order that `links` wants them in: that of their commit, model by model."""

_OF_THE_HEADER = ("model_id", "worker", "event_entry_id", "batch_id", "batch_rows", "engine", "runtime_id")
"""Columns that the header of a link says, of each of its rows."""
HEADER_COLUMNS = frozenset(
    (*_OF_THE_HEADER, "version", "digest", "predicted_at_timestamp", "status", "exact_header", "chain")
)
"""What the header of a link is rebuilt from; an erased row keeps them."""

_WRONG = (ValueError, TypeError, LookupError, AttributeError, OverflowError, struct.error)
"""What values that no sink writes end in."""


@dataclass(frozen=True, slots=True)
class RebuiltEvent:
    """One event, from its row."""

    number: int
    sha256: bytes
    """The digest of its bytes; of an erased one what its row says."""
    raw: bytes | None
    """The serialized `wire.Event`; None of one that is erased or can't be rebuilt."""
    row: Row
    problem: str = ""
    """Why it can't be rebuilt: no sink wrote this row. Its digest is zeros then."""


@dataclass(frozen=True, slots=True)
class RebuiltLink:
    """The rows of one entry of an events stream."""

    model_id: str
    entry_id: str
    header: bytes
    """The serialized `wire.Header`."""
    events: tuple[RebuiltEvent, ...]
    chain: bytes | None
    """What its last row says that the chain is after it; None where it was recorded before there was a chain."""

    problem: str = ""
    """Why its header can't be rebuilt; it is empty then."""

    def after(self, before: bytes) -> bytes:
        """What the chain is after it, where it was `before`."""
        return chain.link(before, self.entry_id, self.header, ((event.number, event.sha256) for event in self.events))


def read_rows(connection: duckdb.DuckDBPyConnection, where: str = "", parameters: Sequence[Any] = ()) -> Iterator[Row]:
    """The rows of the view or table `events`, in order, a stretch at a time, so that no log is too large to be sorted.

    `where`: what stands behind WHERE; whole links have to match. Raises duckdb.Error.
    """
    narrowed = f" WHERE ({where})" if where else ""
    bounds = f"SELECT model_id, min(sequence), max(sequence) FROM events{narrowed} GROUP BY model_id ORDER BY model_id"  # noqa: S608
    stretch = (
        f"{SELECT_ROWS}{narrowed or ' WHERE true'} AND model_id = ? AND sequence BETWEEN ? AND ? ORDER BY sequence"
    )
    for model_id, first, last in connection.execute(bounds, list(parameters)).fetchall():
        for start in range(first, last + 1, _STRETCH):
            found = connection.execute(stretch, [*parameters, model_id, start, min(last, start + _STRETCH - 1)])
            yield from map(Row._make, found.fetchall())


_STRETCH = 20_000


def links(rows: Iterable[Row]) -> Iterator[RebuiltLink]:
    """The links of these rows, which are whole links, in the order of their commit, model by model.

    Raises nothing of its own: what no sink writes is a problem of its event.
    """
    for (model_id, entry_id), group in groupby(rows, key=attrgetter("model_id", "event_entry_id")):
        found = tuple(group)
        header, problem = _header(found)
        events = tuple(map(_event, found))
        yield RebuiltLink(model_id or "", entry_id or "", header, events, found[-1].chain, problem)


def _header(rows: Sequence[Row]) -> tuple[bytes, str]:
    last = rows[-1]
    if last.exact_header is not None:
        return last.exact_header, ""
    predicted = next((row.predicted_at_timestamp for row in reversed(rows) if row.status in PREDICTED), 0)
    try:
        header = join_header(
            last.model_id,
            last.version,
            last.digest,
            last.worker,
            last.batch_id,
            last.batch_rows,
            last.engine,
            last.runtime_id,
            predicted,
        )
    except _WRONG as error:
        return b"", f"its header: {error}"
    return header, ""


def _event(row: Row) -> RebuiltEvent:
    if row.erased_at is not None:
        return RebuiltEvent(row.number, row.erased_sha256 or _NO_SHA256, None, row)
    try:
        raw = join_event(row) if row.exact is None else row.exact
        return RebuiltEvent(row.number, chain.digest(raw), raw, row)
    except _WRONG as error:
        return RebuiltEvent(row.number, _NO_SHA256, None, row, f"{type(error).__name__}: {error}")


_NO_SHA256 = bytes(32)


class Altered(NamedTuple):
    """A row in which columns do not say what its event said."""

    row: Row
    columns: tuple[str, ...]


def altered_columns(links: Iterable[RebuiltLink]) -> Iterator[Altered]:
    """The rows that have columns which are not those that the sink makes of the rebuilt events, in order.

    With a chain that is right this is how a changed column is found that no event is rebuilt from. Of an erased event
    only those that give the header are compared. Names of features are not known here, so `origins` is compared
    without them.
    """
    with duckdb.connect(config={"threads": 1, "memory_limit": "256MB"}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("PRAGMA disable_optimizer")
        connection.execute(CREATE_EVENTS)
        some: list[RebuiltLink] = []
        count = 0
        for link in links:
            some.append(link)
            count += len(link.events)
            if count >= _AT_ONCE:
                yield from _altered(connection, some)
                some, count = [], 0
        yield from _altered(connection, some)


_AT_ONCE = 5_000
_OF_THE_STREAM = frozenset({"sequence", "number", "chain", "erased_at", "erased_sha256"})
"""Columns that no event says."""
_NOTHING = bytes.fromhex("0a001200")
"""Stands for an event that is not known: an entry and a response without a field."""


def _altered(connection: duckdb.DuckDBPyConnection, some: Sequence[RebuiltLink]) -> Iterator[Altered]:
    """Decodes and inserts the events as the sink does, in a database of its own, and compares what then is there."""
    if not some:
        return
    gathered = joined([_decoded(link) for link in some], 1, [_NO_SHA256] * len(some))
    connection.register(GATHERED, gathered)
    try:
        connection.execute("DELETE FROM events")
        connection.execute(insert_events(frozenset(gathered)))
    finally:
        connection.unregister(GATHERED)
    made = iter(connection.execute(f"{SELECT_ROWS} ORDER BY sequence").fetchall())
    for link in some:
        for event in link.events:
            should = Row._make(next(made))
            if event.row != should and (names := tuple(_differing(link, event, should))):
                yield Altered(event.row, names)


def _differing(link: RebuiltLink, event: RebuiltEvent, should: Row) -> Iterator[str]:
    """The columns of one row that are not what they should be."""
    row = event.row
    last = event is link.events[-1]
    if last and not _is_message(wire.Header, link.header):
        yield "exact_header"
    if row.chain is not None and not last:
        yield "chain"
    if event.raw is not None and not _is_message(wire.Event, event.raw):
        yield "exact"
        return
    for name in _OF_THE_HEADER if event.raw is None else Row._fields:
        if name in _OF_THE_STREAM or getattr(row, name) == getattr(should, name):
            continue
        if name == "origins" and _same_origins(row.origins, should.origins):
            continue
        # With an event that is not known, what the rows give of the header is not known either.
        if name == "exact_header" and any(each.raw is None for each in link.events):
            continue
        yield name


def _is_message(kind: type[Message], raw: bytes) -> bool:
    try:
        kind.FromString(raw)
    except DecodeError:
        return False
    return True


def _decoded(link: RebuiltLink) -> Link:
    header = link.header if _is_message(wire.Header, link.header) else b""
    known = [event.raw is not None and _is_message(wire.Event, event.raw) for event in link.events]
    pieces = [
        length_delimited(b"\x12", event.raw if whole and event.raw is not None else _NOTHING)
        for event, whole in zip(link.events, known, strict=True)
    ]
    fields: Mapping[bytes, bytes] = {
        b"n": str(len(pieces)).encode(),
        b"pb": length_delimited(b"\x0a", header) + b"".join(pieces),
    }
    return Link.decode(link.model_id, link.entry_id, fields)


def _same_origins(one: str | None, other: str | None) -> bool:
    """Where each value came from, whatever the features are called."""
    try:
        return one is not None and other is not None and _values(one) == _values(other)
    except (ValueError, AttributeError):
        return False


def _values(origins: str) -> list[Any]:
    return list(orjson.loads(origins).values())
