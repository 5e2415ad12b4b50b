"""How far the log is with each model's events stream, and what a stream says that does not go on from there.

    position in the log  +  what stands in Redis  ->  Finding: on, behind, missing, another

Whoever reads the streams acts on it; here nothing is read and nothing is written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from consumers.audit.chain import BEGINNING

START = "0-0"
"""Before every entry of a stream."""

ACCEPT = "start the sink (`millstream sink` or `millstream up`) once with --accept-gap: it writes the gap and goes on"


def entry_order(entry_id: str) -> tuple[int, int]:
    """What stream entry ids are ordered by."""
    millis, _, sequence = entry_id.partition("-")
    return int(millis), int(sequence or 0)


@dataclass(frozen=True, slots=True)
class Position:
    """How far a model's events stream is in the database."""

    entry_id: str = START
    number: int = 0
    """The stream's running number of the last event."""
    epoch: str = ""
    """The mark in Redis beside that running number; another one is another stream. Empty: none was seen yet."""
    recover_until_ms: int = 0
    """Above 0: requests appended up to that millisecond may be completed, and so recorded, once more."""
    copies_until_ms: int = 0
    """The same for what a shadow makes of them, which waits in a worker and may come long after that is over."""
    chain: bytes = field(default=BEGINNING, compare=False)
    """The chain's value there, in one that was read from the database; a commit finds it anew."""
    ahead: int = 0
    """How much higher the log's own running number is, which never goes back.

    A stream that came back with less, or another one, counts again what it counted before; and what comes again and is
    in the log already takes no number there.
    """

    @property
    def after(self) -> str:
        """The least entry id that is not in the database."""
        millis, sequence = entry_order(self.entry_id)
        return f"{millis}-{sequence + 1}"

    @property
    def empty(self) -> bool:
        """Nothing was recorded yet, so nothing can be missing before it."""
        return self.number == 0 and self.entry_id == START


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at a model's events stream in Redis."""

    epoch: str
    completed: int
    """Events that were ever appended: the running number of the last."""
    last_entry: str
    """The highest id that the stream ever had."""
    length: int
    """Entries that stand in it."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that the running number says were there, or an entry that can't be read."""

    model_id: str
    from_entry: str
    to_entry: str
    expected: int
    found: int
    why: str


class Finding(Enum):
    """What a stream or its next entry is, seen from the position in the log."""

    ON = "goes on from the position"
    BEHIND = "the same stream, which lost its last writes: what it lost is in the log, and may come again"
    MISSING = "events are gone that the log never had"
    ANOTHER = "not the stream that the position is in"


def judge_stream(at: Position, seen: Seen) -> Finding:
    """What the stream as a whole tells, before any of it is read."""
    if at.epoch and seen.epoch != at.epoch and not at.empty:
        return Finding.ANOTHER
    if seen.length == 0 and seen.completed > at.number:
        return Finding.MISSING
    if entry_order(seen.last_entry) < entry_order(at.entry_id):
        return Finding.BEHIND
    return Finding.ON


def judge_entry(at: Position, number: int, events: int) -> Finding:
    """What the next entry tells: its running number, and how many events it holds."""
    before = number - events
    if before == at.number:
        return Finding.ON
    return Finding.BEHIND if before < at.number else Finding.MISSING


BEHIND_WHY = "the stream came back with less than is here: the server lost its last writes"
ANOTHER_WHY = "the stream is another one than before: Redis was emptied, or it is another server"


def missing_why(at: Position, before: int) -> str:
    """Which events are gone, by running number, where those up to `before` should be there."""
    return f"events {at.number + 1} to {before} are gone from the stream or from this database"


def missing_alarm(at: Position, before: int) -> str:
    """What a person is told, and what to do."""
    return (
        f"{missing_why(at, before)}; recording of this model is stopped. "
        "Was the event database deleted or restored? Then stop the sink and put back the newest copy there is. "
        f"If there is none, {ACCEPT}"
    )


def another_alarm() -> str:
    """What a person is told, and what to do."""
    return (
        f"{ANOTHER_WHY}; recording of this model is stopped. If that was meant, {ACCEPT}. "
        "If not, bring back the Redis that this event log belongs to"
    )
