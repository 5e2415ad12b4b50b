"""Questions to the event log: a filter as a prepared statement, and a row as a message."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from consumers.audit.segment import Segment
from consumers.sink.schema import LANES, STATUSES
from protos import millstream_v1_pb2 as v1

DEFAULT_LIMIT = 100
MAX_LIMIT = 100_000

_EQUAL = ("model_id", "version", "status", "entity_id", "request_id", "lane")
_TIMES = (
    "user_request_timestamp",
    "admitted_timestamp",
    "appended_timestamp",
    "delivered_timestamp",
    "predicted_at_timestamp",
    "erased_at",
)
_JSON = ("inputs", "outputs", "origins")
_PLAIN = (
    *("model_id", "request_id", "version", "digest", "status", "lane", "entity_id", "error_reason", "error_message"),
    *("worker", "gateway", "caller", "deliveries", "entry_id", "event_entry_id", "batch_id", "batch_rows"),
    *("batch_position", "rows", "engine", "runtime_id", "degraded", "replay"),
)
_FIELDS = (*_PLAIN, *(f"{name}_json" for name in _JSON))
_SELECT = ", ".join(
    (*_PLAIN, *(f"CAST({name} AS VARCHAR)" for name in _JSON), *(f"epoch_us({name})" for name in _TIMES), "sequence")
)
_ASKED_AT = len(_FIELDS) + _TIMES.index("user_request_timestamp")
"""Where a selected row has the time that rows are ordered by."""
EVERY_REPLAY = "*"
_LATEST_S = 253_402_300_799
"""The last second of the year 9999, the last that a Timestamp may hold."""


class InvalidQuery(ValueError):
    """A question that can't be asked; the message says what was expected and what came."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL and its parameters."""

    sql: str
    parameters: list[Any]


@dataclass(frozen=True, slots=True)
class Filter:
    """Which rows are asked for, how many and in which order."""

    conditions: tuple[str, ...]
    parameters: tuple[Any, ...]
    limit: int
    """0: the caller named none."""
    oldest_first: bool
    model_id: str
    """Empty: all models."""
    since_us: int | None
    until_us: int | None
    """In [since, until), in microseconds since the Unix epoch."""

    @classmethod
    def of(cls, query: v1.EventQuery) -> Filter:
        """Raises InvalidQuery."""
        if query.status and query.status not in STATUSES[1:]:
            raise InvalidQuery("status", f"expected one of {', '.join(STATUSES[1:])}, got {query.status[:40]!r}")
        if query.lane and query.lane not in LANES:
            raise InvalidQuery("lane", f"expected {' or '.join(LANES)}, got {query.lane[:40]!r}")
        if query.limit > MAX_LIMIT:
            raise InvalidQuery("limit", f"expected at most {MAX_LIMIT} rows in one call, got {query.limit}")
        conditions: list[str] = []
        parameters: list[Any] = []
        for name in _EQUAL:
            if value := getattr(query, name):
                conditions.append(f"{name} = ?")
                parameters.append(value)
        since = _micros("since", query.since) if query.HasField("since") else None
        until = _micros("until", query.until) if query.HasField("until") else None
        if since is not None and until is not None and until < since:
            raise InvalidQuery("until", "expected a time that is not before since")
        for operator, micros in ((">=", since), ("<", until)):
            if micros is not None:
                conditions.append(f"user_request_timestamp {operator} make_timestamptz(CAST(? AS BIGINT))")
                parameters.append(micros)
        if not query.replay:
            conditions.append("replay IS NULL")
        elif query.replay != EVERY_REPLAY:
            conditions.append("replay = ?")
            parameters.append(query.replay)
        return cls(tuple(conditions), tuple(parameters), query.limit, query.oldest_first, query.model_id, since, until)

    def about(self, model_id: str) -> bool:
        """Whether rows of this model can be among them."""
        return self.model_id in ("", model_id)

    def may_be_in(self, segment: Segment) -> bool:
        """Whether a segment can hold rows that are asked for, as far as its manifest says."""
        return (
            self.about(segment.model_id)
            and (self.since_us is None or segment.last_request_us >= self.since_us)
            and (self.until_us is None or segment.first_request_us < self.until_us)
        )

    def bound(self, segment: Segment) -> tuple[int, int, int]:
        """No row of the segment is before it, in what `order_of` gives."""
        if self.oldest_first:
            return 0, segment.first_request_us, 0
        return 0, -segment.last_request_us, -segment.last_sequence

    @property
    def _order(self) -> str:
        way = "ASC" if self.oldest_first else "DESC"
        return f"user_request_timestamp {way} NULLS LAST, sequence {way}"

    def rows(self, source: str) -> Statement:
        """The rows in the order of their requests, the newest first unless asked otherwise; `source` is a table."""
        sql = f"SELECT {_SELECT} FROM {source}{_where(self.conditions)} ORDER BY {self._order} LIMIT ?"  # noqa: S608
        return Statement(sql, [*self.parameters, self.limit or DEFAULT_LIMIT])

    def places(self, source: str) -> Statement:
        """The sequences of the same rows alone: found without reading the wide columns of all that match."""
        rows = self.rows(source)
        return Statement(rows.sql.replace(_SELECT, "sequence", 1), rows.parameters)

    def at(self, source: str, sequences: Sequence[int]) -> Statement:
        """The rows with these sequences, at least one, in the order of a query."""
        sql = (
            f"SELECT {_SELECT} FROM {source} WHERE sequence BETWEEN ? AND ? "  # noqa: S608
            f"AND sequence IN (SELECT unnest(CAST(? AS BIGINT[]))) ORDER BY {self._order}"
        )
        return Statement(sql, [min(sequences), max(sequences), list(sequences)])

    def committed(self, source: str, after: int, up_to: int, limit: int) -> Statement:
        """The rows whose sequence is above `after` and not above `up_to`, in order of commit."""
        conditions = ("sequence > ?", "sequence <= ?", *self.conditions)
        sql = f"SELECT {_SELECT} FROM {source}{_where(conditions)} ORDER BY sequence LIMIT ?"  # noqa: S608
        return Statement(sql, [after, up_to, *self.parameters, limit])

    def counts(self, source: str) -> Statement:
        """(model, status, rows) of all that match, whatever the limit."""
        sql = f"SELECT model_id, status, count(*) FROM {source}{_where(self.conditions)} GROUP BY ALL"  # noqa: S608
        return Statement(sql, list(self.parameters))

    def distinct(self, source: str) -> Statement:
        """How many different requests match, told apart by 64 bits.

        Comparing the ids themselves takes three times as long. That two of 10,000,000 fall together, and one is counted
        too few, has a chance of 1 in 300,000.
        """
        groups = f"SELECT 1 FROM {source}{_where(self.conditions)} GROUP BY hash(model_id, request_id)"  # noqa: S608
        return Statement(f"SELECT count(*) FROM ({groups})", list(self.parameters))  # noqa: S608


def _where(conditions: Sequence[str]) -> str:
    return f" WHERE {' AND '.join(conditions)}" if conditions else ""


def _micros(field: str, time: Timestamp) -> int:
    if not (-62_135_596_800 <= time.seconds <= _LATEST_S and 0 <= time.nanos < 1_000_000_000):
        raise InvalidQuery(field, "expected a time between the years 1 and 9999")
    return time.ToMicroseconds()


def sequence_of(row: Sequence[Any]) -> int:
    """Where a selected row stands in the order of commit."""
    return int(row[-1])


def order_of(row: Sequence[Any], asked: Filter) -> tuple[int, int, int]:
    """What the rows of a query are ordered by, the least first; a row without a time comes last."""
    sign, micros = (1 if asked.oldest_first else -1), row[_ASKED_AT]
    return (1, 0, sign * sequence_of(row)) if micros is None else (0, sign * micros, sign * sequence_of(row))


def to_event(row: Sequence[Any]) -> v1.ModelEvent:
    """A selected row as a message; NULL is an absent field."""
    values = {name: value for name, value in zip(_FIELDS, row, strict=False) if value is not None}
    event = v1.ModelEvent(**values)
    for name, micros in zip(_TIMES, row[len(_FIELDS) : -1], strict=True):
        if micros is not None:
            seconds, rest = divmod(micros, 1_000_000)
            time: Timestamp = getattr(event, name)
            time.seconds = seconds
            time.nanos = rest * 1000
            time.SetInParent()
    return event
