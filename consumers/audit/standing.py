"""How a log stands beside its events: how far each model is, what is missing and why, what was removed or emptied."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import duckdb

from protos import millstream_v1_pb2 as v1

_POSITION = "entry_id, number + coalesce(ahead, 0), coalesce(epoch, ''), coalesce(chain, ''::BLOB), coalesce(ahead, 0)"
_TABLES = {
    "positions": (f"model_id, {_POSITION}", "model_id"),
    "gaps": ("model_id, from_entry, to_entry, expected, found, epoch_us(noted_at), why", "noted_at, to_entry"),
    "anchors": ("model_id, number, chain, epoch_us(removed_at)", "model_id"),
    "erasures": ("epoch_us(erased_at), model_id, entity_sha256, events, reason", "erased_at"),
    "runtimes": ("runtime_id, record", "runtime_id"),
}


@dataclass(frozen=True, slots=True)
class Recorded:
    """How far a model's events stream is in the log."""

    model_id: str
    entry_id: str
    number: int
    """The log's running number of the last event."""
    epoch: str = ""
    chain: bytes = b""
    """The chain's value after it; empty where nothing of the chain is there yet."""
    ahead: int = 0
    """How much higher that number is than the one in Redis, which goes back where Redis lost something."""

    def to_message(self) -> v1.LogPosition:
        return v1.LogPosition(
            model_id=self.model_id,
            entry_id=self.entry_id,
            number=self.number,
            epoch=self.epoch,
            chain=self.chain,
            ahead=self.ahead,
        )

    @classmethod
    def of_message(cls, message: v1.LogPosition) -> Self:
        return cls(message.model_id, message.entry_id, message.number, message.epoch, message.chain, message.ahead)


@dataclass(frozen=True, slots=True)
class Missing:
    """A row of `gaps`: where events are missing or came back."""

    model_id: str
    from_entry: str
    to_entry: str
    expected: int
    found: int
    noted_us: int
    why: str


@dataclass(frozen=True, slots=True)
class Anchor:
    """What retention removed of a model: everything up to this running number."""

    model_id: str
    number: int
    chain: bytes
    removed_us: int


@dataclass(frozen=True, slots=True)
class Erasure:
    """Events that were emptied on purpose; no model: of all."""

    erased_us: int
    model_id: str
    entity_sha256: bytes
    events: int
    reason: str


@dataclass(frozen=True, slots=True)
class Standing:
    """All of it, as it was at one moment."""

    positions: tuple[Recorded, ...] = ()
    gaps: tuple[Missing, ...] = ()
    """In the order they were noted."""
    anchors: tuple[Anchor, ...] = ()
    erasures: tuple[Erasure, ...] = ()
    runtimes: Mapping[str, str] = field(default_factory=dict)
    """runtime_id -> its record, JSON."""

    @classmethod
    def read(cls, connection: duckdb.DuckDBPyConnection, model_id: str = "") -> Self:
        """From the event database; a table that an earlier version had not is empty. Raises duckdb.Error."""
        rows = {table: _rows(connection, table, model_id) for table in _TABLES}
        return cls(
            positions=tuple(Recorded(*row) for row in rows["positions"]),
            gaps=tuple(Missing(*row) for row in rows["gaps"]),
            anchors=tuple(Anchor(*row) for row in rows["anchors"]),
            erasures=tuple(
                Erasure(us or 0, model or "", entity or b"", events or 0, reason or "")
                for us, model, entity, events, reason in rows["erasures"]
            ),
            runtimes=dict(rows["runtimes"]),
        )

    def put(self, response: v1.ListSegmentsResponse) -> None:
        """Into a message."""
        response.positions.extend(each.to_message() for each in self.positions)
        for gap in self.gaps:
            told = response.gaps.add(
                model_id=gap.model_id,
                from_entry=gap.from_entry,
                to_entry=gap.to_entry,
                expected=gap.expected,
                found=gap.found,
                why=gap.why,
            )
            told.noted_at.FromMicroseconds(gap.noted_us)
        for anchor in self.anchors:
            removed = response.anchors.add(model_id=anchor.model_id, number=anchor.number, chain=anchor.chain)
            removed.removed_at.FromMicroseconds(anchor.removed_us)
        for erasure in self.erasures:
            erased = response.erasures.add(
                model_id=erasure.model_id,
                entity_sha256=erasure.entity_sha256,
                events=erasure.events,
                reason=erasure.reason,
            )
            erased.erased_at.FromMicroseconds(erasure.erased_us)
        response.runtimes.update(self.runtimes)

    @classmethod
    def of_message(cls, response: v1.ListSegmentsResponse) -> Self:
        return cls(
            positions=positions_of(response.positions),
            gaps=tuple(
                Missing(
                    gap.model_id,
                    gap.from_entry,
                    gap.to_entry,
                    gap.expected,
                    gap.found,
                    gap.noted_at.ToMicroseconds(),
                    gap.why,
                )
                for gap in response.gaps
            ),
            anchors=tuple(
                Anchor(each.model_id, each.number, each.chain, each.removed_at.ToMicroseconds())
                for each in response.anchors
            ),
            erasures=tuple(
                Erasure(each.erased_at.ToMicroseconds(), each.model_id, each.entity_sha256, each.events, each.reason)
                for each in response.erasures
            ),
            runtimes=dict(response.runtimes),
        )


def positions_of(messages: Iterable[v1.LogPosition]) -> tuple[Recorded, ...]:
    return tuple(Recorded.of_message(each) for each in messages)


def read_positions(connection: duckdb.DuckDBPyConnection, model_id: str = "") -> tuple[Recorded, ...]:
    """From the event database. Raises duckdb.Error."""
    return tuple(Recorded(*row) for row in _rows(connection, "positions", model_id))


def columns_of(connection: duckdb.DuckDBPyConnection, table: str) -> frozenset[str]:
    """The names of a table's columns; none where there is no such table. Raises duckdb.Error."""
    found = connection.execute(
        "SELECT column_name FROM duckdb_columns() WHERE table_name = ? AND NOT internal", [table]
    ).fetchall()
    return frozenset(name for (name,) in found)


def _rows(connection: duckdb.DuckDBPyConnection, table: str, model_id: str) -> Sequence[tuple[Any, ...]]:
    columns = columns_of(connection, table)
    if not columns:
        return []
    select, order = _TABLES[table]
    for absent in {"epoch", "chain", "ahead"} - columns:  # of an earlier version
        select = select.replace(f"coalesce({absent},", "coalesce(NULL,")
    where = " WHERE model_id = ? OR coalesce(model_id, '') = ''" if model_id and "model_id" in columns else ""
    sql = f"SELECT {select} FROM {table}{where} ORDER BY {order}"  # noqa: S608 - names from here alone
    return connection.execute(sql, [model_id] if where else []).fetchall()
