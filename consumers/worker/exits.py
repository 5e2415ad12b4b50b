"""Exits: how a worker completes entries, and goes on trying while Redis is away."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from redis.exceptions import NoScriptError, ResponseError

from consumers.worker.lanes import After
from consumers.worker.leases import Leases
from contract.completion import ExitCall, Item, exit_calls, header
from contract.connection import LOST
from contract.keys import Keys
from contract.line import Line
from contract.scripts import EXIT
from protos import millstream_wire_v1_pb2 as wire

FIRST_PAUSE_S = 0.05
LONGEST_PAUSE_S = 2.0
LAST_PAUSE_S = 1.0

log = structlog.get_logger()


class Exits:
    """One worker's. Once it is `stopping`, a Redis that stays away is not waited for any longer."""

    def __init__(self, line: Line, keys: Keys, leases: Leases, worker: str, stopping: Callable[[], bool]) -> None:
        self._line = line
        self._keys = keys
        self._leases = leases
        self._worker = worker
        self._batches = 0
        self._stopping = stopping
        self.breaks = 0
        """How often Redis was lost meanwhile: it may have come back with less than it had."""
        self.runtimes: Mapping[int, str] = {}
        """Threads that a model predicts with -> id of the runtime record; a header that names none means one thread."""

    def complete(
        self, model_id: str, lane: wire.Lane, head: wire.Header, items: Sequence[Item], after: After | None = None
    ) -> list[int]:
        """Completes items that share a header; tries until Redis has answered, since a second call is harmless.

        What is to be asked `after` them goes along with the last call. For each item 1 where this very call completed
        it, else 0. Raises ResponseError where Redis refuses, what LOST names where it stays away while the worker is
        to stop.
        """
        self._stamp(head)
        completed: list[int] = []
        calls = list(exit_calls(self._keys.model(model_id), header(head), items))
        for call in calls:
            pause = FIRST_PAUSE_S
            while True:
                try:
                    completed += call.completed(self._run(call, after if call is calls[-1] else None))
                    break
                except LOST as error:
                    self.breaks += 1
                    log.warning("completing failed; trying again", model_id=model_id, error=str(error), wait_s=pause)
                    # What waits for Redis does not hang: its batch has no part in that.
                    self._leases.touch()
                    time.sleep(pause)
                    if self._stopping() and pause >= LAST_PAUSE_S:
                        raise
                    pause = min(pause * 2, LONGEST_PAUSE_S)
        self._leases.drop(model_id, lane, [item.entry_id for item in items])
        return completed

    def _run(self, call: ExitCall, after: After | None) -> list[int] | None:
        answer: Any = None
        if after is not None:
            command = ("EVALSHA", EXIT.sha, len(call.keys), *call.keys, *call.arguments)
            answer, *others = self._line.ask_each([command, *after.commands])
            # Before anything is raised: what was read is this worker's now.
            after.answered(others)
            if isinstance(answer, ResponseError) and not isinstance(answer, NoScriptError):
                raise answer
        if after is None or isinstance(answer, NoScriptError):
            answer = self._line.run(EXIT, call.keys, call.arguments)
        completed: list[int] | None = answer
        return completed

    def copy(self, model_id: str, head: wire.Header, items: Sequence[Item]) -> None:
        """Lets copies leave that share a header, in one try: nobody waits for them, and no gate keeps a second out.

        Raises ResponseError where Redis refuses, what LOST names where it does not answer.
        """
        self._stamp(head)
        for call in exit_calls(self._keys.model(model_id), header(head), items):
            self._line.run(EXIT, call.keys, call.arguments)

    def _stamp(self, head: wire.Header) -> None:
        self._batches += 1
        head.worker = self._worker
        head.batch_id = f"{self._worker}-{self._batches}"
        head.runtime_id = head.runtime_id or self.runtimes.get(1, "")
