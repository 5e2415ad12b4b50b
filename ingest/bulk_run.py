"""One bulk file on its way through the bulk lane: appended in batches, and where it is waited for, collected in order.

    lines -> check the first ones -> append a batch -> (wait while the lane is long) -> collect what is answered

What was appended and not collected is bounded, so a file of any length takes the same memory.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import orjson

from ingest.answer import Answer, Overloaded, outcome
from ingest.bulk_file import BulkFile, Line
from ingest.bulk_progress import Progress
from ingest.producer import Producer
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

BATCH = 500
PAUSE_S = 0.02
SAVE_S = 1.0
STALL_S = 60.0
"""A full lane of which nothing was taken for so long is given up; a later run goes on."""


class BadLines(Exception):
    """Lines that no worker would take; nothing of them and after them was appended."""

    def __init__(self, lines: list[Line]) -> None:
        super().__init__(f"{len(lines)} lines can't be requests")
        self.lines = lines


class Stopped(Exception):
    """The run was told to stop, and did between two steps; what it did is written down."""


class _Sent(NamedTuple):
    """A line whose answer is waited for."""

    number: int
    request_id: str
    body_sha256: bytes
    entry_id: tuple[int, int]
    """No older entry than this is its own."""


class BulkRun:
    """Appends what is left of a file, and collects the answers where `collect` says so.

    `results` gets one JSON line for each request, in the file's order. `skip_bad` leaves out lines that are no
    requests; `on_bad` hears of each. `on_progress` is called after each step.
    """

    def __init__(
        self,
        producer: Producer,
        file: BulkFile,
        progress: Progress,
        *,
        collect: bool = False,
        results: IO[bytes] | None = None,
        replies: bool = True,
        skip_bad: bool = False,
        on_bad: Callable[[Line], None] = lambda _: None,
        on_progress: Callable[[], None] = lambda: None,
        most_waiting: int = 100_000,
        stall_s: float = STALL_S,
    ) -> None:
        self._producer = producer
        self._file = file
        self._model_id = file.model_id
        self.progress = progress
        self._collect = collect
        self._results = results
        self._replies = replies
        self._skip_bad = skip_bad
        self._on_bad = on_bad
        self._on_progress = on_progress
        self._most_waiting = most_waiting
        self._stall_s = stall_s
        self._sent: deque[_Sent] = deque()
        self._saved = time.monotonic()
        self.saves = True
        """Whether progress can be written beside the file."""
        self.stopping = False
        """Set from outside, by a signal's handler say: the next step ends the run."""

    def check(self, most: int) -> None:
        """Looks at the next `most` lines before anything is appended. Raises BadLines with all that are bad."""
        if self._skip_bad:
            return
        with closing(self._file.lines(self.progress.appended_to)) as lines:
            bad = [line for line in islice(lines, most) if line.problems]
        if bad:
            raise BadLines(bad)

    def run(self) -> None:
        """Everything that is left. Raises BadLines, Stopped, PredictionError, OSError."""
        after = self.progress.collected_to if self._collect else self.progress.appended_to
        with closing(self._file.lines(after)) as lines:
            self._appended_before(lines)
            while batch := list(islice(lines, BATCH)):
                self._append(batch)
                self._make_room()
                self._step()
        while self._sent:
            if not self._take():
                time.sleep(PAUSE_S)
            self._step()
        self.progress.remove(self._file.path)

    def save(self) -> None:
        """Writes down where the run stands, for the next one."""
        try:
            if self._results is not None:
                self._results.flush()
                self.progress.results_bytes = self._results.tell()
            self.progress.write(self._file.path)
        except OSError:
            self.saves = False
        self._saved = time.monotonic()

    def _step(self) -> None:
        if time.monotonic() - self._saved >= SAVE_S or self.stopping:
            self.save()
        self._on_progress()
        if self.stopping:
            raise Stopped

    def _appended_before(self, lines: Iterator[Line]) -> None:
        """What an earlier run appended and did not collect is waited for, not sent again."""
        left = self.progress.appended_to
        if not self._collect or left <= self.progress.collected_to:
            return
        newest = _order(self._producer.last_entry(self._model_id))
        for line in lines:
            if line.number > left:
                self._append([line])
                return
            if not line.problems:
                self._sent.append(_Sent(line.number, line.request_id, line.body_sha256, newest))
            if line.number == left:
                return

    def _append(self, batch: list[Line]) -> None:
        bad = next((place for place, line in enumerate(batch) if line.problems), len(batch))
        good = batch if bad == len(batch) else [line for line in batch if not line.problems]
        if not self._skip_bad:
            good = batch[:bad]
        if good:
            last = self._producer.send_entries(self._model_id, [(line.request_id, line.body) for line in good])
            self.progress.appended += len(good)
            if self._collect:
                order = _order(last)
                self._sent += [_Sent(line.number, line.request_id, line.body_sha256, order) for line in good]
            self.progress.appended_to = good[-1].number
        if bad < len(batch) and not self._skip_bad:
            raise BadLines([batch[bad]])
        for line in batch:
            if line.problems:
                self.progress.skipped += 1
                self._on_bad(line)
        self.progress.appended_to = batch[-1].number

    def _make_room(self) -> None:
        """Waits while the lane, or what is not collected, is longer than wanted. Raises Overloaded."""
        least, since = -1, time.monotonic()
        while True:
            if self._collect:
                while self._take():
                    pass
            waiting, _ = self._producer.backlog(self._model_id)
            length = max(waiting, len(self._sent))
            if length <= self._most_waiting:
                return
            if least < 0 or length < least:
                least, since = length, time.monotonic()
            if time.monotonic() - since > self._stall_s:
                raise Overloaded(
                    f"{length:,} requests wait in the bulk lane of {self._model_id}, and for {self._stall_s:g} s none "
                    "was taken: see `millstream status`",
                    reason="QUEUE_FULL",
                )
            time.sleep(PAUSE_S)
            self._step()

    def _take(self) -> bool:
        """Collects the oldest that are answered; whether a whole batch was."""
        if not self._sent:
            return False
        head = list(islice(self._sent, BATCH))
        # The lane first: an entry leaves it only after its reply is there.
        waiting, oldest = self._producer.backlog(self._model_id)
        gone_before = _order(oldest)
        states: list[wire.ReplyState | None] = [None] * len(head)
        if self._replies:
            states = self._producer.states(self._model_id, [sent.request_id for sent in head])
        taken = 0
        for sent, state in zip(head, states, strict=True):
            if state is None and waiting and gone_before <= sent.entry_id:
                break
            if state is not None and not state.response:
                break
            self._finish(sent, state)
            taken += 1
        for _ in range(taken):
            self._sent.popleft()
        if not self._sent:
            self.progress.collected_to = self.progress.appended_to
        elif taken:
            self.progress.collected_to = head[taken - 1].number
        return taken == BATCH

    def _finish(self, sent: _Sent, state: wire.ReplyState | None) -> None:
        progress = self.progress
        told: dict[str, Any] = {"line": sent.number, "request_id": sent.request_id}
        if state is None:
            if self._replies:
                progress.lost += 1
            else:
                progress.answered += 1
            told["error"] = {"reason": "RESULT_UNKNOWN", "message": "its reply was not kept, or has expired"}
        elif sent.body_sha256 and state.body_sha256 != sent.body_sha256:
            progress.failed["REQUEST_ID_REUSED"] += 1
            told["error"] = {"reason": "REQUEST_ID_REUSED", "message": "another request had this id before"}
        else:
            found = outcome(v1.PredictResponse.FromString(state.response))
            if isinstance(found, Answer):
                progress.answered += 1
                told |= found.to_json()
            else:
                error: Any = found
                progress.failed[error.reason] += 1
                told["error"] = {"reason": error.reason, "message": error.message}
        if self._results is not None:
            self._results.write(orjson.dumps(told, option=orjson.OPT_APPEND_NEWLINE))


def open_results(path: Path, progress: Progress) -> IO[bytes]:
    """The file of results, cut to what an interrupted run had written. Raises OSError."""
    known = progress.results_bytes if progress.results == str(path) and path.exists() else 0
    file = path.open("r+b" if known else "wb")
    file.truncate(known)
    file.seek(known)
    progress.results = str(path)
    return file


def _order(entry_id: str) -> tuple[int, int]:
    milliseconds, _, number = entry_id.partition("-")
    return int(milliseconds or 0), int(number or 0)
