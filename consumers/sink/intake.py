"""From stream entries to a batch: what is a row, what is a gap, and how far each stream then is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import structlog

from consumers.sink.database import Batch, EventDatabase
from consumers.sink.parsed import Names
from consumers.sink.position import (
    ANOTHER_WHY,
    BEHIND_WHY,
    START,
    Finding,
    Gap,
    Position,
    Seen,
    another_alarm,
    entry_order,
    judge_entry,
    judge_stream,
    missing_alarm,
    missing_why,
)
from consumers.sink.rows import Link, MalformedLink, read_number
from consumers.sink.schema import COPY

log = structlog.get_logger()


class EventIntake:
    """Takes entries in stream order and knows what each model's running number should be.

    A server that lost its last moments comes back with a lower number, and with requests that were already completed:
    they are answered again. From then on (recovery) what the database has of a request is left out, by lane, entry id
    and request id, until nothing that old waits any more; copies of it, which are events of their own, even later.

    The log's own running number never goes back with the stream's, and has no holes but where events are missing.

    Where events are gone that the log never had, or the stream is another one, the model is in `alarms` and nothing of
    it is taken, unless `accept_gap` lets that be a row: for each model up to the first entry that is taken.
    """

    def __init__(self, database: EventDatabase, *, accept_gap: bool = False) -> None:
        self._database = database
        self._accept_gap = accept_gap
        self._going_on: set[str] = set()
        """Models of which an entry was taken: what is missing from now on was never accepted by anybody."""
        self._rewound: set[str] = set()
        self.positions = database.positions()
        self.alarms: Mapping[str, str] = {}
        """model_id -> why it is not recorded and what to do. Replaced, never changed: other threads read it."""
        self._clear()

    def _clear(self) -> None:
        self._links: list[Link] = []
        self._gaps: list[Gap] = []
        self._reached: dict[str, Position] = {}
        self._steps: list[tuple[str, Position]] = []
        self.events = 0
        self.bytes = 0

    def batch(self) -> Batch:
        """What was taken since the last call."""
        batch = Batch(tuple(self._links), tuple(self._gaps), self._reached, tuple(self._steps))
        self._clear()
        return batch

    @property
    def recovering(self) -> dict[str, int]:
        """model_id -> the millisecond up to which requests may be recorded already."""
        return {model_id: at.recover_until_ms for model_id, at in self.positions.items() if at.recover_until_ms}

    def recovered(self, model_id: str) -> None:
        """Nothing that old waits, and everything that came of it was taken."""
        at = self.positions[model_id]
        until_ms = max(at.copies_until_ms, at.recover_until_ms)
        self._reach(model_id, replace(at, recover_until_ms=0, copies_until_ms=until_ms))
        log.info("every event that came again was matched", model_id=model_id)

    # ------------------------------------------------------------------ a whole stream

    def marks(self, model_id: str) -> bool:
        """Whether a stream without an epoch shall be given one: where none was ever seen, or it is accepted as new."""
        at = self.positions.get(model_id, Position())
        return not at.epoch or at.empty or self._accepts(model_id)

    def look(self, model_id: str, seen: Seen) -> None:
        """A stream that was not seen before, or not since its server may have become another."""
        at = self.positions.get(model_id, Position())
        self._rewound.discard(model_id)
        self._silence(model_id)
        finding = judge_stream(at, seen)
        if finding is Finding.ON:
            self.positions[model_id] = replace(at, epoch=seen.epoch)
        elif finding is Finding.BEHIND:
            self._rewind(model_id, replace(at, epoch=seen.epoch))
        elif finding is Finding.ANOTHER:
            if not self._accepts(model_id):
                self._alarm(model_id, another_alarm())
                return
            recorded = at.number + at.ahead
            self._gap(Gap(model_id, at.entry_id, START, recorded, 0, f"{ANOTHER_WHY}; accepted"))
            self._rewind(model_id, replace(at, number=0, ahead=recorded, epoch=seen.epoch))
        else:
            if not self._accepts(model_id):
                self._alarm(model_id, missing_alarm(at, seen.completed))
                return
            why = f"{missing_why(at, seen.completed)}; accepted"
            expected, found = at.number + at.ahead, seen.completed + at.ahead
            self._gap(Gap(model_id, at.entry_id, seen.last_entry, expected, found, why))
            self._reach(model_id, replace(at, entry_id=seen.last_entry, number=seen.completed, epoch=seen.epoch))

    def _rewind(self, model_id: str, at: Position) -> None:
        """Reads all that stands in the stream once more: its ids may be lower than some that it had before."""
        until_ms = max(self._database.newest_ms(model_id), entry_order(at.entry_id)[0], at.recover_until_ms)
        log.warning("an events stream is read again from its beginning", model_id=model_id, position=at.entry_id)
        self._rewound.add(model_id)
        self._reach(model_id, replace(at, entry_id=START, recover_until_ms=until_ms))

    # ------------------------------------------------------------------ an entry

    def take(self, model_id: str, entry_id: str, fields: Mapping[bytes, bytes], names: Names) -> bool:
        """One entry; one that is already behind the position is skipped.

        False: not taken, nor may a later one of that model be before the batch is committed. It is offered again.
        """
        at = self.positions.get(model_id, Position())
        if model_id in self.alarms:
            return False
        if entry_order(entry_id) <= entry_order(at.entry_id):
            return True
        try:
            link = Link.decode(model_id, entry_id, fields, names)
        except MalformedLink as error:
            self._unreadable(at, model_id, entry_id, fields, error)
            return True
        known: frozenset[int] = frozenset()
        if at.recover_until_ms or _may_be_late(link, at.copies_until_ms):
            known, again = self._known(link)
            if again:
                self._reach(model_id, replace(at, entry_id=entry_id))
                return True
        if not self._goes_on(at, link):
            return False
        self._going_on.add(model_id)
        before = link.number - link.events
        ahead = at.ahead + max(0, at.number - before)
        self._reach(model_id, replace(at, entry_id=entry_id, number=link.number, ahead=ahead - len(known)))
        self.bytes += link.size
        if known:
            link = self._without(link, known)
        if known or ahead:
            link = link.numbered(before + ahead + 1)
        if link.events:
            self._links.append(link)
            self.events += link.events
        return True

    def _goes_on(self, at: Position, link: Link) -> bool:
        """Whether it may be taken; a gap before it is then noted."""
        model_id, before = link.model_id, link.number - link.events
        finding = judge_entry(at, link.number, link.events)
        if finding is Finding.ON:
            return True
        expected = at.number + link.events
        if finding is Finding.BEHIND:
            if model_id not in self._rewound:
                self._rewind(model_id, at)
                return False
            why = BEHIND_WHY
        elif self._accepts(model_id):
            why = f"{missing_why(at, before)}; accepted"
        else:
            self._alarm(model_id, missing_alarm(at, before))
            return False
        self._gap(Gap(model_id, at.entry_id, link.entry_id, expected + at.ahead, link.number + at.ahead, why))
        return True

    def _unreadable(
        self, at: Position, model_id: str, entry_id: str, fields: Mapping[bytes, bytes], error: MalformedLink
    ) -> None:
        number = read_number(fields)
        found = at.number if number is None or number <= at.number else number
        why = f"the entry can't be read: {error}"
        self._gap(Gap(model_id, at.entry_id, entry_id, at.number + at.ahead, found + at.ahead, why))
        self._reach(model_id, replace(at, entry_id=entry_id, number=found))

    def _known(self, link: Link) -> tuple[frozenset[int], bool]:
        """Which of its events the database has, and whether that is because it has this very entry."""
        columns = (link.column(name) for name in ("lane", "entry_id", "request_id"))
        events = list(zip(*columns, (link.column("status") == COPY).tolist(), strict=True))
        recorded = self._database.recorded(link.model_id, [entry_id for _, entry_id, *_ in events if entry_id])
        known = frozenset(row for row, event in enumerate(events) if event in recorded)
        same = any(link.entry_id in recorded[events[row]] for row in known)
        return known, same and len(known) == link.events

    def _without(self, link: Link, known: frozenset[int]) -> Link:
        log.warning(
            "events that are already in the log were left out",
            model_id=link.model_id,
            event_entry=link.entry_id,
            events=len(known),
        )
        return link.without(known)

    # ------------------------------------------------------------------ what is told

    def _accepts(self, model_id: str) -> bool:
        return self._accept_gap and model_id not in self._going_on

    def _alarm(self, model_id: str, text: str) -> None:
        log.error("a model is not recorded any more", model_id=model_id, alarm=text)
        self.alarms = {**self.alarms, model_id: text}

    def _silence(self, model_id: str) -> None:
        if model_id in self.alarms:
            self.alarms = {other: text for other, text in self.alarms.items() if other != model_id}

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
        self._steps.append((model_id, position))


def _may_be_late(link: Link, until_ms: int) -> bool:
    """Whether it holds copies of requests so old that they may be recorded already."""
    if not until_ms:
        return False
    events = zip(link.column("status"), link.column("entry_id"), strict=True)
    return any(status == COPY and entry_id and entry_order(entry_id)[0] <= until_ms for status, entry_id in events)
