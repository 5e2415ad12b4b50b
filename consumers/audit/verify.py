"""Verifying a log: its chain recomputed from columns, and held against manifests, positions, erasures and signed heads.

    anchor  ->  segment, segment, …, live rows  ->  position          each link from its rows, in order of commit
                                                     heads            each is a value that the chain once had

Streams: what it holds in memory does not grow with the rows.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise

import duckdb

from consumers.audit.chain import BEGINNING
from consumers.audit.erasure import EMPTIED
from consumers.audit.findings import MOST, Finding, Verified
from consumers.audit.heads import Head
from consumers.audit.log_files import LogFiles, SegmentFile, Skipped, altered, quoted
from consumers.audit.manifests import beside, manifest_faults, short
from consumers.audit.rebuild import SELECT_ROWS, RebuiltLink, Row, altered_columns, links
from consumers.audit.segment import Segment
from consumers.audit.vouching import LATE_US, Vouching, moment
from consumers.sink.position import BEHIND_WHY

FETCHED = 2000
ROWS = 20_000
"""Rows that are looked at together."""
Progress = Callable[[int], None]
"""Told how many more rows were verified."""


def verify(
    files: LogFiles,
    heads: Iterable[Head] | None = None,
    *,
    model_id: str = "",
    temporary: str = "",
    read_us: int | None = None,
    on_rows: Progress = lambda _rows: None,
) -> Iterator[Verified]:
    """One model after another; `model_id` empty: all of them. `heads` None: none are looked at.

    `temporary` is a folder for what does not fit into memory while it is sorted; `read_us` is when the files were read,
    where their sink was running. Raises duckdb.Error where it can't go on at all; a file that can't be read is a
    finding.
    """
    by_model: dict[str, list[Head]] = {}
    for head in heads or ():
        by_model.setdefault(head.model_id, []).append(head)
    live = _live_models(files)
    known = {
        *live,
        *by_model,
        *(each.model_id for each in files.positions),
        *(each.segment.model_id for each in files.segments),
        *(each.segment.model_id for each in files.skipped),
    }
    for each in sorted(known):
        if model_id in ("", each):
            vouching = None if heads is None else Vouching(by_model.get(each, []))
            yield _Verification(files, each, vouching, temporary, read_us, on_rows).run(has_live=each in live)


def rows_of(files: LogFiles, model_id: str = "") -> int:
    """How many rows there are to verify."""
    sealed = sum(each.segment.rows for each in files.segments if model_id in ("", each.segment.model_id))
    if files.live is None:
        return sealed
    with LogFiles((), files.live).connect() as connection:
        where = "WHERE model_id = ?" if model_id else ""
        sql = f"SELECT count(*) FROM events {where}"  # noqa: S608 - a parameter
        [(live,)] = connection.execute(sql, [model_id] if model_id else []).fetchall()
    return sealed + int(live)


_LIVE_MODELS = "SELECT DISTINCT coalesce(model_id, '') FROM events"


def _live_models(files: LogFiles) -> frozenset[str]:
    if files.live is None:
        return frozenset()
    with LogFiles((), files.live).connect() as connection:
        return frozenset(name for (name,) in connection.execute(_LIVE_MODELS).fetchall())


class _Verification:
    """One model, from the first row that is left to its position."""

    def __init__(
        self,
        files: LogFiles,
        model_id: str,
        vouching: Vouching | None,
        temporary: str,
        read_us: int | None,
        on_rows: Progress,
    ) -> None:
        self._files = files
        self._model_id = model_id
        self._vouching = vouching
        self._temporary = temporary
        self._settled_us = None if read_us is None else read_us - LATE_US
        self._on_rows = on_rows
        self._found = Verified(model_id)
        self._gaps = [gap for gap in files.standing.gaps if gap.model_id == model_id]
        self._anchor = next((each for each in files.standing.anchors if each.model_id == model_id), None)
        self._running = self._anchor.chain if self._anchor else BEGINNING
        self._at = next((each for each in files.positions if each.model_id == model_id), None)
        self._reached = False
        """The chain had the position's value."""
        self._number = self._anchor.number if self._anchor else 0
        self._sealed_chain = b""
        """Its value at the end of the last segment."""
        self._sequence = 0
        self._kept = 0
        """Rows that stand there, those of unreadable segments as their manifests count them."""
        self._covered = self._anchor is not None and self._running != BEGINNING
        self._loose = False
        """After what can't be read the numbers may go on anywhere."""
        self._erased: Counter[int | None] = Counter()
        self._file = ""
        """Of the segment that is read."""

    def run(self, *, has_live: bool) -> Verified:
        self._vouch()
        for each in self._segments():
            self._file = each.segment.file
            self._segment(each)
        self._file = ""
        if has_live:
            self._live()
        self._position()
        self._erasures()
        if self._vouching is not None:
            self._heads(self._vouching)
        self._found.number = self._number
        self._found.chain = self._running.hex()
        if self._found.uncovered:
            self._found.notes.append(
                f"{self._found.uncovered} events were recorded before there was a chain: they are not covered"
            )
        return self._found

    # ------------------------------------------------------------------ segments

    def _segments(self) -> list[SegmentFile | Skipped]:
        all_of_them: list[SegmentFile | Skipped] = [*self._files.segments, *self._files.skipped]
        own = [each for each in all_of_them if each.segment.model_id == self._model_id]
        return sorted(own, key=lambda each: (each.segment.first_sequence, each.segment.sealed_us))

    def _segment(self, each: SegmentFile | Skipped) -> None:
        segment = each.segment
        self._found.segments += 1
        before = _value(segment.chain_before)
        if before != self._running:
            missing = ""
            if segment.first_number > self._number + 1:
                missing = f": events {self._number + 1} to {segment.first_number - 1} are missing"
            self._tell(
                "segment",
                f"the segment {segment.file} does not go on from what stands before it{missing}; its manifest says "
                f"that the chain was {short(before)} there, and it is {short(self._running)}",
                number=segment.first_number,
            )
            self._running = before
            self._number = segment.first_number - 1
        why = each.why if isinstance(each, Skipped) else altered(each)
        if why:
            text = f"the segment {segment.file} is not the file that was sealed: {why}"
            self._tell("segment", text)
        if isinstance(each, Skipped):
            self._unreadable(segment)
            return
        try:
            with LogFiles((each,), None).connect() as connection:
                self._rows(connection.execute(SELECT_ROWS))
                for fault in manifest_faults(segment, connection, self._running.hex()):
                    self._tell("segment", fault)
        except duckdb.Error as error:
            if not why:
                text = f"the segment {segment.file} can't be read: {str(error).splitlines()[0]}"
                self._tell("segment", text)
            self._unreadable(segment)
            return
        if fault := beside(each):
            self._tell("segment", fault, file=segment.manifest)
        self._behind(segment)

    def _behind(self, segment: Segment) -> None:
        """From then on what its manifest says holds."""
        self._running = self._sealed_chain = _value(segment.chain_after)
        self._number = segment.last_number
        self._sequence = segment.last_sequence or self._sequence

    def _unreadable(self, segment: Segment) -> None:
        """Goes on behind it, from the value that its manifest says."""
        if self._vouching is not None:
            self._vouching.unreadable(segment.first_number, segment.last_number)
        self._behind(segment)
        self._covered = self._covered or self._running != BEGINNING
        self._kept += segment.rows
        self._loose = True
        self._vouch()
        self._found.notes.append(f"the {segment.rows} events of the segment {segment.file} could not be verified")

    # ------------------------------------------------------------------ rows

    def _live(self) -> None:
        assert self._files.live is not None
        with LogFiles((), self._files.live).connect() as connection:
            if self._temporary:
                connection.execute(f"SET temp_directory = {quoted(self._temporary)}")
            # What was sealed after these rows were read stands in a segment already.
            after = ""
            if self._sequence:
                self._before(connection)
                after = f" AND sequence > {self._sequence:d}"
            sql = f"{SELECT_ROWS} WHERE coalesce(model_id, '') = ?{after} ORDER BY sequence NULLS FIRST, number"
            self._rows(connection.execute(sql, [self._model_id]))

    def _before(self, connection: duckdb.DuckDBPyConnection) -> None:
        """No row is live that stands before what was sealed when the live rows were read."""
        segments = [each.segment for each in self._segments()]
        settled = [each for each in segments if self._settled_us is None or each.sealed_us < self._settled_us]
        last = max((each.last_sequence for each in settled), default=-1)
        rows = connection.execute(
            "SELECT number, request_id FROM events WHERE coalesce(model_id, '') = ? AND coalesce(sequence, -1) <= ? "
            "ORDER BY number LIMIT ?",
            [self._model_id, last, MOST],
        ).fetchall()
        for number, request_id in rows:
            text = f"event {number} stands among the live rows, before the last that was sealed: it was added"
            self._tell("order", text, number=number, request_id=request_id)

    def _rows(self, selected: duckdb.DuckDBPyConnection) -> None:
        waiting: list[RebuiltLink] = []
        rows = 0
        for link in links(_fetched(selected)):
            waiting.append(link)
            rows += len(link.events)
            if rows >= ROWS:
                self._links(waiting)
                waiting, rows = [], 0
        self._links(waiting)

    def _links(self, some: Sequence[RebuiltLink]) -> None:
        wrong = {id(each.row): each.columns for each in altered_columns(some)}
        for link in some:
            self._order(link)
            self._link(link, {row: wrong[row] for event in link.events if (row := id(event.row)) in wrong})
            self._emptied(link)
            self._number = link.events[-1].number or 0
            self._sequence = max(self._sequence, link.events[-1].row.sequence or 0)
            self._found.events += len(link.events)
            self._kept += len(link.events)
            self._vouch()
        self._on_rows(sum(len(link.events) for link in some))

    def _order(self, link: RebuiltLink) -> None:
        """Numbers go up by one, or a gap says why not; rows of one link stand side by side."""
        first = link.events[0].row
        number = first.number or 0
        if number != self._number + 1 and not self._loose and not self._explained(link, number):
            if number > self._number:
                missing = f"{self._number + 1} to {number - 1}"
                self._tell_row("hole", first, f"comes next after event {self._number}: events {missing} are missing")
            else:
                self._tell_row("order", first, f"comes after event {self._number}")
        self._loose = False
        if (first.sequence or 0) <= self._sequence:
            self._tell_row("order", first, "is out of the order of commit", columns=("sequence",))
        for one, next_one in pairwise(event.row for event in link.events):
            if next_one.sequence != (one.sequence or 0) + 1:
                self._tell_row("order", next_one, "is out of the order of commit", columns=("sequence",))
            if next_one.number != (one.number or 0) + 1 and link.chain is not None:
                self._tell_row("order", next_one, f"comes after event {one.number}", columns=("number",))

    def _link(self, link: RebuiltLink, wrong: dict[int, tuple[str, ...]]) -> None:
        """The chain over it, and the columns that are in no event."""
        broken = [event for event in link.events if event.problem]
        for event in broken:
            self._tell_row("row", event.row, f"is nothing that a sink writes: {event.problem}")
        if link.problem:
            self._tell_row("row", link.events[0].row, f"is nothing that a sink writes: {link.problem}")
        for event in link.events:
            if columns := wrong.get(id(event.row)):
                self._tell_row("row", event.row, f"is altered: {', '.join(columns)}", columns=columns)
        for event in link.events[:-1]:
            if event.row.chain is not None:
                self._tell_row("row", event.row, "has a value of the chain within a link", columns=("chain",))
        try:
            after = link.after(self._running)
        except (struct.error, TypeError):  # a number that is none
            after = b""
        if link.chain is None:
            if self._covered:
                self._tell_row("row", link.events[-1].row, "has no value of the chain", columns=("chain",))
                self._running = after
            else:
                self._found.uncovered += len(link.events)
            return
        self._covered = True
        if after != link.chain and not (broken or wrong or link.problem):
            row = link.events[0].row
            if len(link.events) == 1:
                self._tell_row("row", row, "is altered, or does not follow what stands before it")
            else:
                last = link.events[-1].number
                requests = ", ".join(str(event.row.request_id) for event in link.events[:5])
                self._tell(
                    "row",
                    f"one of the events {row.number} to {last} of the entry {link.entry_id} is altered, missing or one "
                    f"too many (requests {requests}{', …' if len(link.events) > 5 else ''})",
                    number=row.number,
                    request_id=row.request_id,
                )
        self._running = link.chain

    def _emptied(self, link: RebuiltLink) -> None:
        for event in link.events:
            row = event.row
            if row.erased_at is None and row.erased_sha256 is None:
                continue
            self._erased[row.erased_at] += 1
            if row.erased_at is None or row.erased_sha256 is None:
                self._tell_row("erasure", row, "is half erased", columns=("erased_at", "erased_sha256"))
            elif full := tuple(name for name in EMPTIED if getattr(row, name) is not None):
                self._tell_row("erasure", row, f"is erased, and yet holds {', '.join(full)}", columns=full)

    # ------------------------------------------------------------------ beside the rows

    def _explained(self, link: RebuiltLink, number: int) -> bool:
        """Whether a row of `gaps` says why the running number does not go on."""
        for gap in self._gaps:
            if link.entry_id == gap.to_entry or gap.found == number - 1 or gap.expected == self._number:
                return True
        # Before there was a chain the numbers were those of the stream, and went back with it.
        return not self._covered and any(gap.why == BEHIND_WHY for gap in self._gaps)

    def _position(self) -> None:
        at = self._at
        if at is None:
            if self._found.events:
                self._tell("position", "the log says of no position up to which this model is recorded")
            return
        # What was recorded and sealed after the live rows were read stands in a segment beyond the position.
        beyond = self._reached and self._sealed_chain == self._running
        if self._covered and at.chain != self._running and not beyond:
            self._tell(
                "position",
                f"the position says that the chain ends in {short(at.chain)}, and after event {self._number} it is "
                f"{short(self._running)}: the last events are missing or altered",
                number=self._number,
            )

    def _erasures(self) -> None:
        own = [each for each in self._files.standing.erasures if each.model_id == self._model_id]
        said = Counter({each.erased_us: 0 for each in own})
        for each in own:
            said[each.erased_us] += each.events
        for at_us, rows in self._erased.items():
            if at_us is not None and rows > said.get(at_us, 0):
                self._tell(
                    "erasure",
                    f"{rows} events say that they were erased at {moment(at_us)}, and the record of erasures knows of "
                    f"{said.get(at_us, 0)}: more were emptied than anybody asked for",
                )
        whole = self._anchor is None and not any(
            each.segment.model_id == self._model_id for each in self._files.skipped
        )
        for each in own:
            there = self._erased.get(each.erased_us, 0)
            # One that was made while the files were read is in one of them, and not in the other.
            settled = self._settled_us is None or each.erased_us < self._settled_us
            if whole and settled and there < said[each.erased_us]:
                self._tell(
                    "erasure",
                    f"{said[each.erased_us]} events were erased at {moment(each.erased_us)}, and {there} say so",
                )
            self._found.erased += each.events
            self._found.erasures.append(f"{each.events} events were erased at {moment(each.erased_us)}: {each.reason}")

    # ------------------------------------------------------------------ heads

    def _vouch(self) -> None:
        self._reached = self._reached or (self._at is not None and self._at.chain == self._running)
        if self._vouching is not None:
            self._vouching.passed(self._running, self._kept, self._anchor.number if self._anchor else 0)

    def _heads(self, vouching: Vouching) -> None:
        erasures = [each for each in self._files.standing.erasures if each.model_id == self._model_id]
        for text in vouching.faults(self._number, self._anchor, erasures):
            self._tell("head", text)
        self._found.heads = len(vouching.agreed)
        self._found.heads_unchecked = len(vouching.unchecked)
        if vouching.newest is not None:
            self._found.vouched_number = vouching.newest.number
            self._found.vouched_us = vouching.newest.at_us

    # ------------------------------------------------------------------ telling

    def _tell_row(self, what: str, row: Row, text: str, *, columns: tuple[str, ...] = ()) -> None:
        request = f" (request {row.request_id})" if row.request_id else ""
        self._tell(
            what, f"event {row.number}{request} {text}", number=row.number, request_id=row.request_id, columns=columns
        )

    def _tell(
        self,
        what: str,
        text: str,
        *,
        number: int | None = None,
        request_id: str | None = None,
        columns: tuple[str, ...] = (),
        file: str = "",
    ) -> None:
        self._found.found(Finding(self._model_id, what, text, number, request_id, columns, file or self._file))


def _value(text: str) -> bytes:
    """Of the chain, from a manifest; nothing where that is no hex."""
    try:
        return bytes.fromhex(text)
    except (ValueError, TypeError):
        return b""


def _fetched(selected: duckdb.DuckDBPyConnection) -> Iterator[Row]:
    while rows := selected.fetchmany(FETCHED):
        yield from map(Row._make, rows)
