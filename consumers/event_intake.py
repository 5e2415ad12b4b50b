"""From stream entries to a batch: what is a row, what is a gap, and how far each stream then is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import structlog

from consumers.event_database import Batch, EventDatabase, Gap, Position, entry_order
from consumers.event_rows import Link, MalformedLink, Names, read_number

log = structlog.get_logger()

_OVERLAP_ROWS = 200_000
"""Most rows that are held against a stream that came back with less than the database has."""

_EXIT_EVENTS = 512
"""Most events in one entry."""


class EventIntake:
    """Takes entries in stream order and knows what each model's running number should be.

    A server that lost its last moments comes back with a lower number, and with requests that were already completed:
    they are answered again. What the database has of them since that number is left out, by lane and entry id.
    """

    def __init__(self, database: EventDatabase) -> None:
        self._database = database
        self.positions = database.positions()
        self._overlap = {
            model_id: database.entries_after(model_id, number - _EXIT_EVENTS, _OVERLAP_ROWS)
            for model_id, number in database.fell_back().items()
        }
        self._clear()

    def _clear(self) -> None:
        self._links: list[Link] = []
        self._gaps: list[Gap] = []
        self._reached: dict[str, Position] = {}
        self.events = 0
        self.bytes = 0

    def take(self, model_id: str, entry_id: str, fields: Mapping[bytes, bytes], names: Names) -> None:
        """One entry; one that is already behind the position is skipped."""
        at = self.positions.get(model_id, Position())
        if entry_order(entry_id) <= entry_order(at.entry_id):
            return
        try:
            link = Link.decode(model_id, entry_id, fields, names)
        except MalformedLink as error:
            number = read_number(fields)
            if number is not None and number <= at.number:
                number = None
            found = at.number if number is None else number
            self._gap(Gap(model_id, at.entry_id, entry_id, at.number, found, f"the entry can't be read: {error}"))
            self._reach(model_id, Position(entry_id, found))
            return
        expected = at.number + link.events
        if link.number != expected:
            self._mismatch(at, link, expected)
        self._reach(model_id, Position(entry_id, link.number))
        self.bytes += link.size
        overlap = self._overlap.get(model_id)
        if overlap:
            link = self._without(link, overlap)
        if link.events:
            self._links.append(link)
            self.events += link.events

    def _mismatch(self, at: Position, link: Link, expected: int) -> None:
        if link.number > expected:
            why = f"{link.number - expected} events are gone from the stream or from this database"
        else:
            why = "the stream came back with less than is here: the server lost its last writes or was emptied"
        self._gap(Gap(link.model_id, at.entry_id, link.entry_id, expected, link.number, why))
        if link.number < expected:
            before = link.number - link.events
            known = self._database.entries_after(link.model_id, before, _OVERLAP_ROWS)
            for earlier in self._links:
                if earlier.model_id == link.model_id:
                    known.update(_entries(earlier))
            self._overlap.setdefault(link.model_id, set()).update(known)

    def _without(self, link: Link, overlap: set[tuple[str, str]]) -> Link:
        known = frozenset(row for row, entry in enumerate(_entries(link)) if entry in overlap)
        if not known:
            return link
        log.warning(
            "events that are already in the log were left out",
            model_id=link.model_id,
            event_entry=link.entry_id,
            events=len(known),
        )
        return link.without(known)

    def _gap(self, gap: Gap) -> None:
        log.error(
            "a gap in the event log",
            model_id=gap.model_id,
            from_entry=gap.from_entry,
            to_entry=gap.to_entry,
            expected=gap.expected,
            found=gap.found,
            why=gap.why,
        )
        self._gaps.append(gap)

    def _reach(self, model_id: str, position: Position) -> None:
        self.positions[model_id] = position
        self._reached[model_id] = position

    def batch(self) -> Batch:
        """What was taken since the last call."""
        batch = Batch(tuple(self._links), tuple(self._gaps), self._reached)
        self._clear()
        return batch


def _entries(link: Link) -> list[tuple[Any, Any]]:
    """(lane, entry id) of each event."""
    return list(zip(link.columns["lane"], link.columns["entry_id"], strict=True))
