"""What signed heads say of a log: that its chain once had a value, and how many rows stood up to there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import accumulate

from consumers.audit.heads import Head
from consumers.audit.standing import Anchor, Erasure

LATE_US = 600_000_000
"""An erasure has its time when it begins, and may be in no head for so long."""


@dataclass(slots=True)
class Vouching:
    """The heads of one model, held against its chain while that is recomputed."""

    heads: Sequence[Head]
    agreed: list[Head] = field(default_factory=list)
    unchecked: list[Head] = field(default_factory=list)
    """Of what retention removed, or of what can't be read."""
    _wanted: dict[bytes, list[Head]] = field(init=False)
    _passed: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Value of the chain -> rows up to there, and the last number that retention had removed."""
    _dark: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._wanted = {}
        for head in sorted(self.heads, key=lambda head: head.at_us):
            self._wanted.setdefault(bytes.fromhex(head.chain), []).append(head)

    def passed(self, chain: bytes, rows: int, removed: int) -> None:
        """The chain has that value behind so many rows."""
        if chain in self._wanted:
            self._passed[chain] = (rows, removed)

    def unreadable(self, first: int, last: int) -> None:
        """What the chain was within these running numbers is not known."""
        self._dark.append((first, last))

    @property
    def newest(self) -> Head | None:
        """The last head that the log agrees with."""
        return max(self.agreed, key=lambda head: head.at_us, default=None)

    def faults(self, end: int, anchor: Anchor | None, erasures: Sequence[Erasure]) -> Iterator[str]:
        """What the heads say that the log does not, once all of it was passed; `end` is its last running number."""
        cut: list[Head] = []
        other: list[Head] = []
        for chain, heads in self._wanted.items():
            for head in heads:
                if chain in self._passed:
                    self.agreed.append(head)
                elif self._out_of_reach(head, anchor):
                    self.unchecked.append(head)
                else:
                    (cut if head.number > end else other).append(head)
        yield from self._rewritten(other)
        yield from self._cut(cut, end)
        for head in self.agreed:
            rows, removed = self._passed[bytes.fromhex(head.chain)]
            if removed == head.removed_up_to and rows != head.rows:
                yield f"{_named(head)} counts {head.rows} events up to there, and there are {rows}"
        yield from self._erased(erasures)
        if anchor is not None and any(head.number <= anchor.number for head in self.heads):
            at = anchor.chain.hex()
            if all(head.chain != at for head in self.heads):
                yield (
                    f"what retention removed is said to end at event {anchor.number}, in a value of the chain that no "
                    "head has, and there are heads of before"
                )

    def _out_of_reach(self, head: Head, anchor: Anchor | None) -> bool:
        removed = anchor is not None and head.number <= anchor.number
        return removed or any(first <= head.number <= last for first, last in self._dark)

    def _rewritten(self, heads: Sequence[Head]) -> Iterator[str]:
        if not heads:
            return
        first = min(heads, key=lambda head: head.at_us)
        before = [head for head in self.agreed if head.at_us < first.at_us]
        since = (
            f"after event {max(before, key=lambda head: head.at_us).number}, which a head agrees with, and"
            if before
            else "somewhere"
        )
        yield (
            f"{len(heads)} heads were signed for another chain than this log has, the first of them at "
            f"{moment(first.at_us)}, at event {first.number}: {since} up to there events were altered, added or "
            "removed, and the chain computed anew"
        )

    def _cut(self, heads: Sequence[Head], end: int) -> Iterator[str]:
        if heads:
            last = max(heads, key=lambda head: head.number)
            yield (
                f"the log ends at event {end}, and {_named(last)} says that event {last.number} was recorded: its last "
                "events were cut off"
            )

    def _erased(self, erasures: Sequence[Erasure]) -> Iterator[str]:
        own = sorted(erasures, key=lambda erasure: erasure.erased_us)
        sums = {0, *accumulate(erasure.events for erasure in own)}
        for head in self.agreed:
            old = sum(erasure.events for erasure in own if erasure.erased_us < head.at_us - LATE_US)
            if head.erased not in sums or head.erased < old:
                yield (
                    f"{_named(head)} counts {head.erased} erased events, and the record of erasures says {old}: it was "
                    "changed since"
                )
                return


def moment(at_us: int) -> str:
    """A time for people, in UTC."""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=at_us)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _named(head: Head) -> str:
    return f"the head of {moment(head.at_us)}"
