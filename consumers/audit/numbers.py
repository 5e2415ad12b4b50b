"""Which running numbers the log has of a model, and what is said of those it has not.

Each file is read by itself, in the order of commit: rows that follow one another have numbers that do, or a row of
`gaps` between them says why not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from consumers.audit.log_files import LogFiles, parquet, quoted
from consumers.audit.standing import Missing
from consumers.sink.position import START, entry_order

MOST_HOLES = 1000
"""Of each file, that are looked at; more are counted."""
_LINK_EVENTS = 512
"""Most events of one entry of the events stream, which the database may have refused as a whole."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Running numbers that are not in the log, or stand there more than once."""

    first: int
    last: int
    why: str = ""
    """What the log says of it; empty where it says nothing."""

    @property
    def events(self) -> int:
        return self.last - self.first + 1

    def __str__(self) -> str:
        if self.events == 0:
            return f"before event {self.first}: {self.why}"
        numbers = f"event {self.first}" if self.events == 1 else f"events {self.first} to {self.last}"
        return f"{numbers}: {self.why or 'missing, and nothing says why'}"


@dataclass(frozen=True, slots=True)
class InLog:
    """What the log has of a model."""

    model_id: str
    number: int = 0
    """The running number that it has reached."""
    ahead: int = 0
    """How much higher that is than Redis's own."""
    epoch: str = ""
    live: int = 0
    sealed: int = 0
    removed: int = 0
    """The last running number that retention removed."""
    by_status: dict[str, int] = field(default_factory=dict)
    explained: tuple[Hole, ...] = ()
    holes: tuple[Hole, ...] = ()
    """Those that nothing explains."""
    unreadable: tuple[str, ...] = ()
    """Segments whose files can't be read, each with its events: those are neither there nor missing."""
    versions: dict[str, str] = field(default_factory=dict)
    """digest -> version, of every event that names one."""

    @property
    def counted(self) -> int:
        """What Redis's own running number is where the log has all of it."""
        return self.number - self.ahead

    @property
    def whole(self) -> bool:
        """Whether it has one row for each event since number 1, so that counts can be compared."""
        return not (self.removed or self.explained or self.holes or self.unreadable)


def in_log(files: LogFiles, model_id: str, *, on_part: Callable[[str], None] = lambda _name: None) -> InLog:
    """Reads the numbers, statuses and versions of all its rows. Raises duckdb.Error."""
    reader = _Reader(files, model_id)
    for name, rows in reader.parts():
        on_part(name)
        reader.read(name, rows)
    return reader.ended()


@dataclass(frozen=True, slots=True)
class _Break:
    """Two rows that follow one another in the order of commit, and whose numbers do not."""

    before: int
    number: int
    before_entry: str
    entry: str


class _Reader:
    """Goes over the files of a model in the order of commit."""

    def __init__(self, files: LogFiles, model_id: str) -> None:
        self._files = files
        self._model_id = model_id
        self._connection = files.connect()
        position = next((each for each in files.positions if each.model_id == model_id), None)
        anchor = next((each for each in files.standing.anchors if each.model_id == model_id), None)
        self._removed = anchor.number if anchor else 0
        gaps = [gap for gap in files.standing.gaps if gap.model_id == model_id]
        self._gaps = _Gaps([gap for gap in gaps if not gap.expected < gap.found <= self._removed])
        self._number = position.number if position else 0
        self._ahead = position.ahead if position else 0
        # Segments are listed after the live rows were read, and may hold what came in between.
        later = (each.number for each in files.standing.positions if each.model_id == model_id)
        self._newest = max(self._number, *later, 0)
        self._epoch = position.epoch if position else ""
        self._last, self._last_entry = self._removed, START
        self._anchored = anchor is not None
        self._sealed = self._live = 0
        self._statuses: Counter[str] = Counter()
        self._versions: dict[str, str] = {}
        self._explained: list[Hole] = []
        self._holes: list[Hole] = []
        self._unreadable: list[str] = []

    def parts(self) -> Iterator[tuple[str, str]]:
        """Name and SELECT of each file, in the order of commit."""
        readable = {each.segment.file: each for each in self._files.segments if each.segment.model_id == self._model_id}
        skipped = [each for each in self._files.skipped if each.segment.model_id == self._model_id]
        segments = [*(each.segment for each in readable.values()), *(each.segment for each in skipped)]
        reasons = {each.segment.file: str(each) for each in skipped}
        for segment in sorted(segments, key=lambda each: (each.last_sequence, each.last_number)):
            if segment.file in readable:
                yield segment.file, f"SELECT * FROM {parquet([readable[segment.file].path])}"  # noqa: S608 - quoted
            else:
                self._unreadable.append(reasons[segment.file])
                self._follow(segment.first_number, segment.first_entry)
                self._last, self._last_entry = segment.last_number, segment.last_entry
        if self._files.live is not None:
            live = LogFiles((), self._files.live, self._files.skipped, (*self._files.outside, *segments))
            yield "", f"SELECT * FROM ({live.select()}) WHERE model_id = {quoted(self._model_id)}"  # noqa: S608 - quoted

    def read(self, name: str, rows: str) -> None:
        """One file; an empty name is that of the live rows."""
        events = self._select(f"SELECT status, count(*) FROM ({rows}) GROUP BY ALL")  # noqa: S608 - quoted
        count = sum(number for _, number in events)
        if not count:
            return
        self._statuses.update(dict(events))
        if name:
            self._sealed += count
        else:
            self._live += count
        versions = f"SELECT DISTINCT digest, version FROM ({rows}) WHERE coalesce(digest, '') <> ''"  # noqa: S608
        self._versions |= dict(self._select(versions))
        [(first, first_entry, last, last_entry)] = self._select(
            "SELECT arg_min(number, sequence), arg_min(event_entry_id, sequence), "  # noqa: S608 - quoted
            f"arg_max(number, sequence), arg_max(event_entry_id, sequence) FROM ({rows})"
        )
        self._follow(first, first_entry)
        breaks = self._select(
            "SELECT before, number, before_entry, event_entry_id FROM (SELECT number, sequence, event_entry_id, "  # noqa: S608
            "lag(number) OVER in_order AS before, lag(event_entry_id) OVER in_order AS before_entry "
            f"FROM ({rows}) WINDOW in_order AS (ORDER BY sequence)) "
            f"WHERE before IS NOT NULL AND number <> before + 1 ORDER BY sequence LIMIT {MOST_HOLES}"
        )
        for found in breaks:
            self._judge(_Break(*found))
        self._last, self._last_entry = last, last_entry

    def ended(self) -> InLog:
        if self._last < self._number:
            self._judge(_Break(self._last, self._number + 1, self._last_entry, "+"))
        elif self._last > self._newest:
            why = f"the log says of itself that it has reached {self._newest}"
            self._holes.append(Hole(self._newest + 1, self._last, why))
        self._connection.close()
        return InLog(
            self._model_id,
            max(self._number, self._last),
            self._ahead,
            self._epoch,
            self._live,
            self._sealed,
            self._removed,
            dict(sorted(self._statuses.items())),
            tuple(self._explained),
            tuple(self._holes),
            tuple(self._unreadable),
            self._versions,
        )

    def _follow(self, number: int, entry: str) -> None:
        """The first row of a file behind the last of the one before."""
        removed_already = self._anchored and self._last_entry == START and number <= self._last
        if number != self._last + 1 and not removed_already:
            self._judge(_Break(self._last, number, self._last_entry, entry))

    def _judge(self, found: _Break) -> None:
        explained, holes = self._gaps.judge(found)
        self._explained += explained
        self._holes += holes

    def _select(self, sql: str) -> Sequence[Any]:
        return self._connection.execute(sql).fetchall()


class _Gaps:
    """What the rows of `gaps` explain; each counts once."""

    def __init__(self, gaps: list[Missing]) -> None:
        self._gaps = gaps

    def judge(self, found: _Break) -> tuple[list[Hole], list[Hole]]:
        """What of it is explained, and what is not."""
        explained: list[Hole] = []
        holes: list[Hole] = []
        at, refused, refused_why = found.before, 0, ""
        for gap in self._taken(found):
            if gap.found > gap.expected:
                missing = gap.found - gap.expected
                explained.append(Hole(at + 1, at + missing, gap.why))
                at += missing
            elif gap.found == gap.expected:
                refused, refused_why = refused + _LINK_EVENTS, gap.why
        left = found.number - at - 1
        if 0 < left <= refused:
            explained.append(Hole(at + 1, at + left, refused_why))
        elif left > 0:
            holes.append(Hole(at + 1, at + left))
        elif left < 0:
            why = f"after event {at}: it is there twice, or not in its place"
            holes.append(Hole(found.number, found.number, why))
        return explained, holes

    def _taken(self, found: _Break) -> list[Missing]:
        """Those between the two rows, in the order they were noted; they are gone from here then."""
        taken = [gap for gap in self._gaps if _is_between(gap, found)]
        self._gaps = [gap for gap in self._gaps if gap not in taken]
        return taken


def _is_between(gap: Missing, found: _Break) -> bool:
    behind = entry_order(gap.to_entry) > entry_order(found.before_entry)
    return behind and (found.entry == "+" or entry_order(gap.to_entry) <= entry_order(found.entry))
