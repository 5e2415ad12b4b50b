"""Recorded requests as load: asked again at the pace they once came in, faster, or as fast as they are answered.

recorded requests, in the order they were asked  ->  gateway, or bulk lane  ->  what callers felt, and how many answers
are the same as then

At a pace it is an open loop: the schedule does not wait for answers, and a request's time runs from when it was due.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import grpc.aio

from contract.request import Native
from ingest.answer import Answer
from loadgen.asking import Progress, callers, shown, stopped_first
from loadgen.open_loop import NOT_ASKED
from loadgen.report import Report, Tally
from protos import millstream_v1_pb2 as v1

MAX_SPEED = math.inf
"""No pace at all: the next as soon as there is room."""
CLOSE = 1e-6
"""Relative difference of floats up to which they differ in their last digits: float32 has seven."""
_CHUNK = 500
"""Requests that are read in one go."""


class Recorded(NamedTuple):
    """One recorded request."""

    at_s: float
    """When it was asked, in seconds after the first."""
    request: v1.PredictRequest
    """How it is asked again, without an id: under its old one it would get its old answer."""
    answer: Sequence[Mapping[str, Native]]
    """What was answered then, one mapping of outputs for each row; empty where nothing was."""


@dataclass(slots=True)
class Likeness:
    """How many answers are what they were."""

    equal: int = 0
    """To the last bit."""
    close: int = 0
    """But for last digits of floats, which the size of a predict call alone can change."""
    changed: int = 0
    unknown: int = 0
    """Answered now, and not then."""

    def note(self, then: Sequence[Mapping[str, Native]], response: v1.PredictResponse) -> None:
        """Counts one answer."""
        predictions = Answer.from_message(response).predictions
        if not then:
            self.unknown += 1
        elif same_answer(then, predictions):
            self.equal += 1
        elif same_answer(then, predictions, _close):
            self.close += 1
        else:
            self.changed += 1


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """One replay: what callers felt, and what became of the answers."""

    name: str
    """What its requests are marked with in the event log."""
    report: Report
    equal: int
    """Answers that are what they were, to the last bit."""
    close: int
    """But for last digits of floats."""
    changed: int
    unknown: int
    """Answered now, and not then."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        answers = {
            "equal": self.equal,
            "close": self.close,
            "changed": self.changed,
            "not_answered_then": self.unknown,
        }
        return {"replay": self.name, "answers": answers, **self.report.to_json()}


class Schedule:
    """When each request is due: `speed` times as fast as then, or at once."""

    def __init__(self, recorded: Iterable[Recorded], speed: float, tally: Tally) -> None:
        if not speed > 0:
            raise ValueError(f"expected a speed above 0, got {speed:g}")
        self._recorded = recorded
        self._speed = speed
        self._tally = tally
        self.started = time.perf_counter()
        """When the first was due."""
        self.asked = 0

    @property
    def is_paced(self) -> bool:
        return self._speed != MAX_SPEED

    async def due(self) -> AsyncGenerator[tuple[Recorded, float], None]:
        """Each request once it is due, and when that was. Raises what reading raises."""
        async with aclosing(_read_ahead(self._recorded)) as chunks:
            async for chunk in chunks:
                if not self.asked:  # reading the first ones may take long, which is nobody's latency
                    self.started = time.perf_counter()
                for item in chunk:
                    at = self.started + item.at_s / self._speed if self.is_paced else time.perf_counter()
                    wait = at - time.perf_counter()
                    if wait > 0 or self.asked % 64 == 0:  # where it is late it still lets the answers in
                        await asyncio.sleep(max(0.0, wait))
                    self.asked += 1
                    if self.is_paced:
                        self._tally.lag(time.perf_counter() - at)
                    yield item, at

    def report(self, name: str, likeness: Likeness, *, stopped: bool) -> ReplayReport:
        """How it went until now."""
        spent = time.perf_counter() - self.started
        offered = self.asked / spent if self.is_paced else 0.0
        report = self._tally.report(spent, offered_per_s=offered, stopped=stopped)
        return ReplayReport(name, report, likeness.equal, likeness.close, likeness.changed, likeness.unknown)


async def replay_calls(
    address: str,
    recorded: Iterable[Recorded],
    *,
    name: str,
    speed: float = 1.0,
    channels: int = 4,
    timeout_s: float = 30.0,
    in_flight: int = 256,
    most_under_way: int = 20_000,
    tally: Tally | None = None,
    stop: asyncio.Event | None = None,
    on_progress: Progress | None = None,
) -> ReplayReport:
    """Asks a gateway, marked as the replay `name`; `speed` times as fast as then, with MAX_SPEED `in_flight` at once.

    `recorded` is read in a thread, a little ahead. `tally`, `stop` and `on_progress` as in `closed_loop`. Raises what
    reading raises, and ValueError for a speed of 0.
    """
    tally, likeness = tally or Tally(), Likeness()
    schedule = Schedule(recorded, speed, tally)
    room = asyncio.Semaphore(most_under_way if schedule.is_paced else in_flight)

    async def one(ask: Any, item: Recorded, due_at: float) -> None:
        try:
            raw = await ask(marked(item, name).SerializeToString(), timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            tally.error(error.code().name)
        else:
            tally.answer(time.perf_counter() - due_at, item.request.model_id)
            likeness.note(item.answer, v1.PredictResponse.FromString(raw))
        finally:
            tally.under_way -= 1
            room.release()

    async def ask_all() -> None:
        async with asyncio.TaskGroup() as group, aclosing(schedule.due()) as due:
            async for item, due_at in due:
                if schedule.is_paced and room.locked():
                    tally.error(NOT_ASKED)
                    continue
                await room.acquire()
                tally.under_way += 1
                at = due_at if schedule.is_paced else time.perf_counter()
                group.create_task(one(opened[schedule.asked % channels], item, at))

    async with callers(address, channels) as opened, shown(tally, on_progress):
        stopped = await stopped_first(stop, ask_all())
    return schedule.report(name, likeness, stopped=stopped)


def same_value(then: Native, now: Native) -> bool:
    """Whether two values are the same to the last bit: -0.0 is not 0.0, and 1 is not 1.0."""
    if isinstance(then, float) and isinstance(now, float):
        return (then == now and math.copysign(1, then) == math.copysign(1, now)) or (then != then and now != now)
    return type(then) is type(now) and then == now


def _close(then: Native, now: Native) -> bool:
    if isinstance(then, float) and isinstance(now, float):
        return same_value(then, now) or math.isclose(then, now, rel_tol=CLOSE, abs_tol=CLOSE * CLOSE)
    return same_value(then, now)


def same_answer(
    then: Sequence[Mapping[str, Native]],
    now: Sequence[Mapping[str, Native]],
    same: Callable[[Native, Native], bool] = same_value,
) -> bool:
    """Whether two answers have the same outputs in the same rows, value by value."""
    return len(then) == len(now) and all(
        a.keys() == b.keys() and all(same(value, b[name]) for name, value in a.items())
        for a, b in zip(then, now, strict=True)
    )


def marked(item: Recorded, name: str) -> v1.PredictRequest:
    """The request, as part of that replay and under no id."""
    item.request.replay = name
    item.request.request_id = ""
    return item.request


async def _read_ahead(recorded: Iterable[Recorded]) -> AsyncGenerator[list[Recorded], None]:
    """The requests in chunks, the next of which is read in a thread meanwhile."""
    source = iter(recorded)
    reading = asyncio.create_task(asyncio.to_thread(_take, source))
    try:
        while chunk := await asyncio.shield(reading):
            reading = asyncio.create_task(asyncio.to_thread(_take, source))
            yield chunk
    finally:
        # A thread can't be stopped: whoever closes what it reads from must not do so before it is done.
        await asyncio.wait([reading])
        if not reading.cancelled():
            reading.exception()


def _take(source: Iterator[Recorded]) -> list[Recorded]:
    return list(islice(source, _CHUNK))
