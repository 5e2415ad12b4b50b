"""Signed heads of the log, made beside the writer and given away for keeping.

every minute: models that moved  +  segments that were sealed  ->  Head  ->  keep

A store that is away holds nobody up: the newest head of each model waits for it, and those of the seals.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import duckdb
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consumers.audit.chain import BEGINNING
from consumers.audit.heads import Head, Keep, KeepFailed
from consumers.audit.segment import MalformedManifest, Segment
from consumers.audit.standing import Anchor, Erasure, Standing
from consumers.sink.database import EventDatabase

log = structlog.get_logger()

LAST_SEALS = 24
"""Segments of a model whose heads are given away once more after a start: those of before may not have arrived."""
MOST_WAITING = 10_000
STOP_S = 5.0


_POSITIONS = (
    "SELECT model_id, entry_id, number + coalesce(ahead, 0), "  # noqa: S608 - a constant
    f"coalesce(chain, unhex('{BEGINNING.hex()}')) FROM positions ORDER BY model_id"
)


class Reached(NamedTuple):
    """Where a model's log is, or was at the end of a segment; the running number is the log's own."""

    model_id: str
    entry_id: str
    number: int
    chain: bytes


@dataclass(frozen=True, slots=True)
class Moment:
    """What heads are made of, as it was in one transaction."""

    positions: tuple[Reached, ...]
    standing: Standing
    live: Mapping[str, int]
    """model_id -> rows that are in no segment."""
    segments: tuple[Segment, ...]
    at_us: int

    @classmethod
    def read(cls, connection: duckdb.DuckDBPyConnection) -> Moment:
        """Raises duckdb.Error."""
        connection.begin()
        try:
            positions = connection.execute(_POSITIONS).fetchall()
            standing = Standing.read(connection)
            live = connection.execute("SELECT model_id, count(*) FROM events GROUP BY model_id").fetchall()
            sealed = connection.execute("SELECT manifest FROM segments").fetchall()
        finally:
            connection.rollback()
        reached = tuple(Reached(*row) for row in positions)
        segments = tuple(_read(manifest for (manifest,) in sealed))
        return cls(reached, standing, dict(live), segments, time.time_ns() // 1000)

    def newest(self) -> Iterator[Head]:
        """One for each model: how far it is."""
        for at in self.positions:
            if at.number:
                rows = self.live.get(at.model_id, 0) + sum(each.rows for each in self._of(at.model_id))
                yield self._head(at, rows, self.at_us)

    def seals(self) -> Iterator[Head]:
        """One for each segment, oldest first: what stands before it may be removed, and is then told by this one."""
        for model_id in sorted({segment.model_id for segment in self.segments}):
            rows = 0
            for segment in self._of(model_id):
                rows += segment.rows
                at = Reached(model_id, segment.last_entry, segment.last_number, bytes.fromhex(segment.chain_after))
                yield self._head(at, rows, segment.sealed_us)

    def _of(self, model_id: str) -> list[Segment]:
        found = [segment for segment in self.segments if segment.model_id == model_id]
        return sorted(found, key=lambda segment: (segment.first_sequence, segment.sealed_us))

    def _head(self, at: Reached, rows: int, at_us: int) -> Head:
        anchor = next((each for each in self.standing.anchors if each.model_id == at.model_id), None)
        removed = anchor or Anchor(at.model_id, 0, b"", 0)
        erased = sum(each.events for each in _until(self.standing.erasures, at.model_id, at_us))
        return Head(
            model_id=at.model_id,
            entry_id=at.entry_id,
            number=at.number,
            rows=rows,
            chain=at.chain.hex(),
            erased=erased,
            removed_up_to=removed.number,
            removed_chain=removed.chain.hex(),
            at_us=at_us,
        )


class Heading:
    """A thread of its own: the writer never waits for it, nor for a store."""

    def __init__(self, database: EventDatabase, keep: Keep, key: Ed25519PrivateKey, *, every_s: float) -> None:
        self._database = database
        self._keep = keep
        self._key = key
        self._every_s = every_s
        self._known: dict[str, Head] = {}
        """The last head of each model, with no time."""
        self._sealed: set[str] = set()
        self._waiting: dict[str, Head] = {}
        """By model, or by name for a seal; the oldest first."""
        self._away = False
        self._first = True
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="heads", daemon=True)

    def start(self) -> None:
        """Makes the first heads at once."""
        self._thread.start()

    def wake(self) -> None:
        """Something happened that is to be signed soon."""
        self._wake.set()

    def stop(self) -> None:
        """Once more what the log is now; a store that does not answer soon does without."""
        self._stopping = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)

    def _run(self) -> None:
        while True:
            last = self._stopping
            self.look()
            if not (last and self._away):
                self.send()
            if last:
                return
            self._wake.wait(self._every_s)
            self._wake.clear()

    def look(self) -> None:
        """Makes heads of what moved since the last look."""
        try:
            with self._database.cursor() as cursor:
                moment = Moment.read(cursor)
        except duckdb.Error as error:
            log.warning("no heads of the event log now", error=str(error).splitlines()[0])
            return
        for head in self._new_seals(moment):
            self._waiting[head.name] = head
        for head in moment.newest():
            still = replace(head, at_us=0)
            if self._known.get(head.model_id) != still:
                self._known[head.model_id] = still
                self._waiting.pop(head.model_id, None)
                self._waiting[head.model_id] = head
        for name in list(self._waiting)[:-MOST_WAITING]:
            del self._waiting[name]

    def _new_seals(self, moment: Moment) -> list[Head]:
        by_model: dict[str, list[Head]] = {}
        for head in moment.seals():
            if head.name not in self._sealed:
                by_model.setdefault(head.model_id, []).append(head)
        self._sealed.update(head.name for heads in by_model.values() for head in heads)
        first, self._first = self._first, False
        return [head for heads in by_model.values() for head in (heads[-LAST_SEALS:] if first else heads)]

    def send(self) -> None:
        """Gives away what waits, oldest first, until the store does not take one."""
        for waiting, head in list(self._waiting.items()):
            try:
                self._keep(head.name, head.encode(self._key))
            except KeepFailed as error:
                if not self._away:
                    log.warning("heads of the event log can't be kept; trying again", error=str(error))
                self._away = True
                return
            if self._away:
                log.info("heads of the event log are kept again")
            self._away = False
            del self._waiting[waiting]


def _read(manifests: Iterable[str]) -> Iterator[Segment]:
    for manifest in manifests:
        try:
            yield Segment.decode(manifest)
        except MalformedManifest as error:
            log.error("a segment's manifest can't be read", error=str(error))


def _until(erasures: Iterable[Erasure], model_id: str, at_us: int) -> Iterator[Erasure]:
    return (each for each in erasures if each.model_id == model_id and each.erased_us <= at_us)
