"""Predict calls as they were made: read from a log in the order of commit, its rows put together again.

rows that were asked for  +  who shared a predict call with them  ->  one Call for each batch_id, rows in their order

Whoever shared a call stands near by in the log, and so no more of it is held than what lies between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import duckdb

from consumers.model.rows import Rows
from consumers.replay.recorded import RecordedEvent, Unreadable, joined, repeated

NEAR = 20_000
"""Rows of the log, of all models, within which those of one predict call stand. They are written by one worker in one
go, with what others write between."""
PIECE_ROWS = 20_000
"""Rows of requests that are read in one go, and held."""
MOST_MISSING = 1_000_000
"""Rows that are filled in for others; more is no predict call but a broken record."""

_TEXTS = ("model_id", "request_id", "status", "version", "digest", "engine", "runtime_id", "batch_id", "entity_id")
_ALL = "*"


@dataclass(frozen=True, slots=True)
class Selection:
    """Which events are asked for; what is empty or None asks for any."""

    model_id: str = ""
    version: str = ""
    status: str = ""
    entity_id: str = ""
    request_id: str = ""
    since_us: int | None = None
    """In microseconds since the Unix epoch; included."""
    until_us: int | None = None
    """Not included."""
    replay: str = ""
    """Empty: real requests alone; `*`: those of replays too; else those of one replay."""

    def where(self) -> tuple[str, list[Any]]:
        """SQL over `events`, and its parameters."""
        conditions = ["true"]
        parameters: list[Any] = []
        for name in ("model_id", "version", "status", "entity_id", "request_id"):
            if value := getattr(self, name):
                conditions.append(f"{name} = ?")
                parameters.append(value)
        for operator, micros in ((">=", self.since_us), ("<", self.until_us)):
            if micros is not None:
                conditions.append(f"user_request_timestamp {operator} make_timestamptz(CAST(? AS BIGINT))")
                parameters.append(micros)
        if not self.replay:
            conditions.append("coalesce(replay, '') = ''")
        elif self.replay != _ALL:
            conditions.append("replay = ?")
            parameters.append(self.replay)
        return " AND ".join(conditions), parameters


@dataclass(frozen=True, slots=True)
class Call:
    """One predict call, as far as the log has it; or one event that is part of none."""

    events: tuple[RecordedEvent, ...]
    """In the order of their rows."""
    rows: int
    """How many it was made with."""

    @property
    def model_id(self) -> str:
        return self.events[0].model_id

    @property
    def version(self) -> str:
        return self.events[0].version

    @property
    def digest(self) -> str:
        """Hex digest of the version."""
        return self.events[0].digest

    @property
    def engine(self) -> str:
        return self.events[0].engine

    @property
    def runtime_id(self) -> str:
        return self.events[0].runtime_id

    @property
    def wanted(self) -> tuple[RecordedEvent, ...]:
        """Those that were asked for themselves."""
        return tuple(event for event in self.events if event.wanted)

    @property
    def is_whole(self) -> bool:
        """Whether every row of it is in the log, with its inputs."""
        return sum(event.rows for event in self.events) == self.rows and not any(e.is_erased for e in self.events)

    def inputs(self) -> Rows:
        """All rows in their order, as a worker had them; where some are missing, others stand in their places.

        Raises Unreadable where what is recorded fits together in no way.
        """
        if len({(event.digest, event.engine, event.runtime_id, event.batch_rows) for event in self.events}) > 1:
            raise Unreadable("the events of this call say different versions, engines, runtimes or numbers of rows")
        parts: list[Rows] = []
        missing: list[tuple[int, int]] = []
        end = 0
        for event in self.events:
            if event.position < end or event.position + event.rows > self.rows:
                raise Unreadable(f"event {event.number} says rows of its call that are another's, or that it had not")
            if event.is_erased:
                continue
            if event.position > end:
                missing.append((len(parts) + len(missing), event.position - end))
            parts.append(event.inputs())
            end = event.position + event.rows
        if end < self.rows:
            missing.append((len(parts) + len(missing), self.rows - end))
        if not parts:
            raise Unreadable("none of the rows of this call is recorded")
        if sum(rows for _, rows in missing) > MOST_MISSING:
            raise Unreadable(f"{self.rows:,} rows of this call are on record, and few of them are in the log")
        for place, rows in missing:
            parts.insert(place, repeated(parts[0], rows))
        return joined(parts)


def wanted_events(connection: duckdb.DuckDBPyConnection, selection: Selection) -> dict[str, int]:
    """model_id -> how many events are asked for. Raises duckdb.Error."""
    where, parameters = selection.where()
    sql = f"SELECT model_id, count(*) FROM events WHERE {where} GROUP BY model_id ORDER BY model_id"  # noqa: S608
    return dict(connection.execute(sql, parameters).fetchall())


def read_calls(connection: duckdb.DuckDBPyConnection, selection: Selection, limit: int = 0) -> Iterator[Call]:
    """The calls of everything that was asked for, model by model, in the order of commit as good as.

    `limit` ends it after so many events that were asked for; 0 is no limit. Raises duckdb.Error.
    """
    left = limit
    for model_id in wanted_events(connection, selection):
        for call in calls(_read(connection, selection, model_id, left)):
            yield call
            left -= len(call.wanted)
        if limit and left <= 0:
            return


def calls(events: Iterable[RecordedEvent]) -> Iterator[Call]:
    """Puts events of one model, in the order of commit, together to calls; those without a wanted one are left out."""
    open_calls: dict[str, _Open] = {}
    for event in events:
        for batch_id in [batch_id for batch_id, call in open_calls.items() if event.sequence - call.last > NEAR]:
            yield from open_calls.pop(batch_id).closed()
        if not event.was_predicted or not event.batch_id or not event.batch_rows:
            if event.wanted:
                yield Call((event,), event.batch_rows)
            continue
        call = open_calls.setdefault(event.batch_id, _Open(event.batch_rows))
        call.add(event)
        if call.is_full:
            yield from open_calls.pop(event.batch_id).closed()
    for call in open_calls.values():
        yield from call.closed()


@dataclass(slots=True)
class _Open:
    """A call of which more events may come."""

    rows: int
    events: list[RecordedEvent] = field(default_factory=list)
    came: int = 0
    last: int = 0

    def add(self, event: RecordedEvent) -> None:
        self.events.append(event)
        self.came += event.rows
        self.last = event.sequence

    @property
    def is_full(self) -> bool:
        return self.came >= self.rows

    def closed(self) -> Iterator[Call]:
        if any(event.wanted for event in self.events):
            yield Call(tuple(sorted(self.events, key=lambda event: event.position)), self.rows)


def _read(
    connection: duckdb.DuckDBPyConnection, selection: Selection, model_id: str, limit: int
) -> Iterator[RecordedEvent]:
    """Wanted events of a model and whoever shares a batch with one, in the order of commit."""
    where, parameters = selection.where()
    texts = ", ".join(f"coalesce({name}, '')" for name in _TEXTS if name != "model_id")
    batches = f"SELECT batch_id FROM events WHERE {where} AND model_id = ? AND sequence BETWEEN ? AND ?"  # noqa: S608
    sql = (
        f"SELECT sequence, number, {texts}, coalesce(batch_rows, 0), coalesce(batch_position, 0), coalesce(rows, 0), "  # noqa: S608
        "coalesce(epoch_us(user_request_timestamp), 0), erased_at IS NOT NULL, coalesce(error_reason, ''), "
        f"coalesce({where}, false) AND sequence <= ? AS wanted, "
        "CAST(inputs AS VARCHAR), inputs_form, CAST(outputs AS VARCHAR), exact "
        "FROM events WHERE model_id = ? AND sequence BETWEEN ? AND ? "
        f"AND (({where}) OR batch_id IN ({batches})) ORDER BY sequence"
    )
    for first, last, asked_up_to in _pieces(connection, selection, model_id, limit):
        near = [model_id, first - NEAR, last + NEAR]
        values = [*parameters, asked_up_to, model_id, first, last, *parameters, *parameters, *near]
        rows = connection.cursor().execute(sql, values)
        while found := rows.fetchmany(1024):
            for sequence, number, request, status, version, digest, engine, runtime, batch, entity, *rest in found:
                batch_rows, position, count, asked, erased, error, wanted, *texts_and_exact = rest
                yield RecordedEvent(
                    sequence, model_id, number, request, status, version, digest, engine, runtime, batch, batch_rows,
                    position, count, asked, entity, erased, error, wanted, *texts_and_exact,
                )  # fmt: skip


def _pieces(
    connection: duckdb.DuckDBPyConnection, selection: Selection, model_id: str, limit: int
) -> Iterator[tuple[int, int, int]]:
    """Ranges of `sequence`, one behind the other, that hold about PIECE_ROWS rows of wanted requests each.

    The first and the last reach as far as those who share a call with a wanted event may stand. The third number of
    each is the last event that is wanted, as far as a limit says.
    """
    where, parameters = selection.where()
    few = f" ORDER BY sequence LIMIT {limit:d}" if limit > 0 else ""
    sql = (
        "SELECT min(sequence), max(sequence) FROM ("  # noqa: S608 - names from here alone
        "SELECT sequence, sum(greatest(coalesce(rows, 1), 1)) OVER (ORDER BY sequence) // ? AS piece FROM ("
        f"SELECT sequence, rows FROM events WHERE {where} AND model_id = ?{few})) GROUP BY piece ORDER BY 1"
    )
    pieces = connection.execute(sql, [PIECE_ROWS, *parameters, model_id]).fetchall()
    for place, (first, _) in enumerate(pieces):
        begin = first if place else first - NEAR
        end = pieces[place + 1][0] - 1 if place + 1 < len(pieces) else pieces[-1][1] + NEAR
        yield begin, end, pieces[-1][1]
