"""Copies of live work that were kept for a shadow: a bounded queue, whose oldest go first, taken or dropped."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import NamedTuple

from consumers.worker.work import Work
from contract.signature import Signature
from protos import millstream_wire_v1_pb2 as wire

MOST_BYTES = 64 * 2**20
"""Of entries, however few rows they have."""

Form = tuple[tuple[str, str, bool], ...]
"""Name, type and nullability of each feature, in index order: what the rows of an entry are."""


def form_of(signature: Signature) -> Form:
    """What the rows of an entry are that was admitted by this signature."""
    return tuple((feature.name, feature.type, feature.nullable) for feature in signature.features)


class Copy(NamedTuple):
    """One entry that was answered, as it was admitted."""

    model_id: str
    form: Form
    lane: wire.Lane
    entry_id: bytes
    raw: bytes
    """The serialized entry; shared with the event that was made of it."""
    rows: int
    delivered_us: int
    deliveries: int

    @classmethod
    def of(cls, work: Work, form: Form) -> Copy:
        return cls(
            work.entry.model_id,
            form,
            work.lane,
            work.entry_id,
            work.raw,
            work.rows,
            work.delivered_us,
            work.deliveries,
        )

    def work(self, version: str, digest: bytes) -> Work:
        """The same entry, pinned to another version."""
        entry = wire.Entry.FromString(self.raw)
        entry.version, entry.digest = version, digest
        raw = entry.SerializeToString()
        return Work(self.lane, self.entry_id, entry, raw, self.rows, self.delivered_us, self.deliveries)


class Copies:
    """A queue of at most so many rows, for one thread; `dropped` may be read by others."""

    def __init__(self, most_rows: int) -> None:
        self._most_rows = most_rows
        self._queue: deque[Copy] = deque()
        self._rows = 0
        self._bytes = 0
        self.dropped: Counter[str] = Counter()
        """Copies that came to nothing, by model."""

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def first(self) -> Copy | None:
        """The oldest."""
        return self._queue[0] if self._queue else None

    @property
    def models(self) -> set[str]:
        return {copy.model_id for copy in self._queue}

    def add(self, copies: Iterable[Copy]) -> None:
        """Keeps these; where there is no room for all, the oldest are dropped."""
        for copy in copies:
            if copy.rows > self._most_rows:
                # It alone would drive out everything else.
                self.dropped[copy.model_id] += 1
                continue
            self._queue.append(copy)
            self._rows += copy.rows
            self._bytes += len(copy.raw)
        while self._rows > self._most_rows or self._bytes > MOST_BYTES:
            self.dropped[self._pop().model_id] += 1

    def take(self, rows: int) -> list[Copy]:
        """The oldest and those behind it that may share a predict call with it: so many rows, one copy at least."""
        taken: list[Copy] = []
        while self._queue:
            copy = self._queue[0]
            if taken and (copy.model_id != taken[0].model_id or copy.form != taken[0].form or copy.rows > rows):
                break
            rows -= copy.rows
            taken.append(self._pop())
        return taken

    def drop(self, model_id: str) -> None:
        """Nobody computes copies of this model."""
        left = [copy for copy in self._queue if copy.model_id != model_id]
        self.dropped[model_id] += len(self._queue) - len(left)
        self._queue = deque(left)
        self._rows = sum(copy.rows for copy in left)
        self._bytes = sum(len(copy.raw) for copy in left)

    def _pop(self) -> Copy:
        copy = self._queue.popleft()
        self._rows -= copy.rows
        self._bytes -= len(copy.raw)
        return copy
