"""One question to the whole log: the rows that are in no segment, and the segments that can hold an answer.

    live rows  -+
    segment    -+-> merged in the order that was asked for, each opened only when its turn can have come
    segments   -+

Each call has cursors of its own, and nothing that it reads holds up the writer. A segment that can't be read is left
out, with its name in the log, and the call goes on.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, TypeVar

import duckdb
import structlog

from consumers.audit.segment import Segment
from consumers.sink.query import DEFAULT_LIMIT, Filter, Statement, order_of
from consumers.sink.segments import NO_DAMAGE, Segments, told

log = structlog.get_logger()

ROWS = 500
"""Rows read at once: what a call holds in memory."""
PAGE = 2000
"""Most rows of a follower that are read at once."""
MOST_TOGETHER = 64
"""Segments in one statement; the first is read alone, and then ever more of them, since most answers are in the first.
"""

Row = tuple[Any, ...]
_Answer = TypeVar("_Answer")


@dataclass(frozen=True, slots=True)
class Counted:
    """How many rows match."""

    by_model_and_status: list[tuple[str, str, int]]
    distinct_requests: int
    left_out: dict[str, str]
    """model_id -> which of its segments could not be read, and why."""


@dataclass(order=True, slots=True)
class _Source:
    """Rows in order, and the next of them."""

    key: tuple[int, int, int]
    turn: int
    row: Row = field(compare=False)
    rest: Iterator[Row] = field(compare=False)


class Reading:
    """One call; `open_cursor` gives it connections, for a statement at a time each, and closes them after the call."""

    def __init__(self, segments: Segments, open_cursor: Callable[[], duckdb.DuckDBPyConnection]) -> None:
        self._segments = segments
        self._open_cursor = open_cursor
        self._cursor = open_cursor()

    def rows(self, asked: Filter) -> Iterator[Row]:
        """The rows of a query, in its order, as many as it says at most. Raises duckdb.Error."""
        # One snapshot: what is being sealed is in the list of segments, or live, and never both or neither.
        self._cursor.begin()
        listed = self._segments.listed(self._cursor, asked.model_id)
        live = _paged(self._cursor, asked.rows("events"))
        groups = _grouped([each for each in listed if asked.may_be_in(each)], asked)
        yield from islice(self._merged(asked, live, groups), asked.limit or DEFAULT_LIMIT)

    def _merged(self, asked: Filter, live: Iterator[Row], groups: list[list[Segment]]) -> Iterator[Row]:
        heap: list[_Source] = []

        def open_next(rest: Iterator[Row]) -> None:
            for row in rest:
                heapq.heappush(heap, _Source(order_of(row, asked), len(groups), row, rest))
                return

        open_next(live)
        while heap or groups:
            while groups and (not heap or asked.bound(groups[-1][0]) <= heap[0].key):
                open_next(self._sealed(asked, groups.pop()))
            if not heap:
                return
            first = heap[0]
            yield first.row
            following = next(first.rest, None)
            if following is None:
                heapq.heappop(heap)
            else:
                heapq.heapreplace(heap, _Source(order_of(following, asked), first.turn, following, first.rest))

    def _sealed(self, asked: Filter, segments: list[Segment]) -> Iterator[Row]:
        """Its own rows alone, with the first of them read: what can't be read shows before the first is answered."""
        cursor = self._open_cursor()

        def first(sound: Sequence[Segment]) -> list[Row]:
            source = self._segments.source(sound, live=False)
            places = asked.places(source)
            sequences = [sequence for (sequence,) in cursor.execute(places.sql, places.parameters).fetchall()]
            if not sequences:
                return []
            statement = asked.at(source, sequences)
            cursor.execute(statement.sql, statement.parameters)
            return cursor.fetchmany(ROWS)

        rows = self._without_damaged(segments, first) or []
        while rows:
            yield from rows
            rows = cursor.fetchmany(ROWS)

    def counted(self, asked: Filter) -> Counted:
        """All that match, whatever the limit. Raises duckdb.Error."""
        cursor = self._cursor

        def count(sound: Sequence[Segment], live: bool) -> tuple[list[tuple[str, str, int]], int]:
            source = self._segments.source(sound, live=live)
            by_model = list(_paged(cursor, asked.counts(source)))
            [(distinct,)] = _paged(cursor, asked.distinct(source))
            return by_model, distinct

        while True:
            # One snapshot for both questions, so that the numbers belong together.
            cursor.begin()
            segments = [e for e in self._segments.listed(cursor, asked.model_id) if asked.may_be_in(e)]
            sound = self._segments.sound(segments)
            try:
                by_model, distinct = count(sound, True)
            except NO_DAMAGE:
                raise
            except duckdb.Error as error:
                with contextlib.suppress(duckdb.Error):
                    cursor.rollback()
                self._find_damaged(sound, lambda segment: count([segment], False), error)
                continue
            cursor.commit()
            left_out: dict[str, list[str]] = {}
            for segment in segments:
                if segment not in sound:
                    left_out.setdefault(segment.model_id, []).append(told(segment, self._segments.problem(segment)))
            return Counted(by_model, distinct, {model_id: "; ".join(texts) for model_id, texts in left_out.items()})

    def committed(self, asked: Filter, after: int, up_to: int) -> list[Row]:
        """The first rows, at most PAGE, with a sequence in (after, up_to], in that order. Raises duckdb.Error."""
        cursor = self._cursor
        while True:
            cursor.begin()
            segments = [
                each
                for each in self._segments.listed(cursor, asked.model_id)
                if asked.may_be_in(each) and each.last_sequence > after and each.first_sequence <= up_to
            ]
            sound = self._segments.sound(segments)

            def page(some: Sequence[Segment], live: bool) -> list[Row]:
                source = self._segments.source(some, live=live)
                return list(_paged(cursor, asked.committed(source, after, up_to, PAGE)))

            try:
                rows = page(sound, True)
            except NO_DAMAGE:
                raise
            except duckdb.Error as error:
                with contextlib.suppress(duckdb.Error):
                    cursor.rollback()
                self._find_damaged(sound, lambda segment: page([segment], False), error)
                continue
            cursor.commit()
            return rows

    def sealed_after(self, asked: Filter, after: int) -> bool:
        """Whether segments hold rows with a sequence above that. Raises duckdb.Error."""
        listed = self._segments.listed(self._cursor, asked.model_id)
        return any(asked.may_be_in(each) and each.last_sequence > after for each in listed)

    def _without_damaged(
        self, segments: Sequence[Segment], ask: Callable[[Sequence[Segment]], _Answer]
    ) -> _Answer | None:
        while sound := self._segments.sound(segments):
            try:
                return ask(sound)
            except NO_DAMAGE:
                raise
            except duckdb.Error as error:
                self._find_damaged(sound, lambda segment: ask([segment]), error)
        return None

    def _find_damaged(
        self, segments: Sequence[Segment], ask: Callable[[Segment], object], otherwise: duckdb.Error
    ) -> None:
        """Which of them a statement fails on alone; raises what it failed with on all where it is none."""
        found = False
        for segment in segments:
            try:
                ask(segment)
            except NO_DAMAGE:
                raise
            except duckdb.Error as error:
                self._segments.damaged(segment, str(error).splitlines()[0])
                found = True
        if not found:
            raise otherwise


def _grouped(segments: list[Segment], asked: Filter) -> list[list[Segment]]:
    """In the reverse of the order in which they can hold the next row; each group begins with its best."""
    ordered = sorted(segments, key=asked.bound)
    groups, size = [], 1
    while ordered:
        groups.append(ordered[:size])
        del ordered[:size]
        size = min(2 * size, MOST_TOGETHER)
    return groups[::-1]


def _paged(cursor: duckdb.DuckDBPyConnection, statement: Statement) -> Iterator[Row]:
    cursor.execute(statement.sql, statement.parameters)
    while rows := cursor.fetchmany(ROWS):
        yield from rows
