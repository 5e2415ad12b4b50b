"""Recorded requests as load on the bulk lanes: appended as they become due, replies read from where they stand."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple

from contract.errors import Code
from contract.request import Native, RequestIds
from ingest.answer import PredictionError
from ingest.producer import Producer
from loadgen.asking import Progress, shown, stopped_first
from loadgen.open_loop import NOT_ASKED
from loadgen.replay import Likeness, Recorded, ReplayReport, Schedule, marked
from loadgen.report import Tally
from protos import millstream_v1_pb2 as v1

NO_ANSWER = "NO_ANSWER"
"""Counted beside the gRPC statuses: there was no reply within the time that a request had."""
_CHUNK = 500
"""Entries that are appended or looked for in one go."""
_POLL_S = 0.02


async def replay_entries(
    producer: Producer,
    recorded: Iterable[Recorded],
    *,
    name: str,
    speed: float = 1.0,
    timeout_s: float = 30.0,
    most_under_way: int = 20_000,
    tally: Tally | None = None,
    stop: asyncio.Event | None = None,
    on_progress: Progress | None = None,
) -> ReplayReport:
    """Like `replay_calls`, onto the bulk lanes: appended as they become due, and replies looked for 50 times a second.

    So latencies are exact to about 20 ms. A reply that is not there after `timeout_s` is counted as NO_ANSWER.
    """
    tally, likeness = tally or Tally(), Likeness()
    schedule = Schedule(recorded, speed, tally)
    room = asyncio.Semaphore(most_under_way)
    lane = _BulkLane(producer, timeout_s, tally, likeness, room)

    async def push_all() -> None:
        async with asyncio.TaskGroup() as group, aclosing(schedule.due()) as due:
            group.create_task(lane.append())
            group.create_task(lane.look())
            async for item, due_at in due:
                if schedule.is_paced and room.locked():
                    tally.error(NOT_ASKED)
                    continue
                await room.acquire()
                tally.under_way += 1
                at = due_at if schedule.is_paced else time.perf_counter()
                lane.due.put_nowait(_Sent(marked(item, name), item.answer, at))
            lane.due.put_nowait(None)

    async with shown(tally, on_progress):
        stopped = await stopped_first(stop, push_all())
    return schedule.report(name, likeness, stopped=stopped)


class _Sent(NamedTuple):
    """A request on its way, what it was answered then, and when it was due."""

    request: v1.PredictRequest
    answer: Sequence[Mapping[str, Native]]
    due_at: float


class _BulkLane:
    """Appends what is due, and looks for the replies."""

    def __init__(
        self, producer: Producer, timeout_s: float, tally: Tally, likeness: Likeness, room: asyncio.Semaphore
    ) -> None:
        self._producer = producer
        self._timeout_s = timeout_s
        self._tally = tally
        self._likeness = likeness
        self._room = room
        self._ids = RequestIds()
        self._waiting: dict[str, dict[str, _Sent]] = defaultdict(dict)
        self._all_appended = False
        self.due: asyncio.Queue[_Sent | None] = asyncio.Queue()
        """None is the end."""

    async def append(self) -> None:
        """Appends what is due by then in one go, until the end."""
        while not self._all_appended:
            batch = [await self.due.get()]
            while len(batch) < _CHUNK and not self.due.empty():
                batch.append(self.due.get_nowait())
            by_model: dict[str, dict[str, _Sent]] = defaultdict(dict)
            for sent in batch:
                if sent is not None:
                    sent.request.request_id = self._ids.next()
                    by_model[sent.request.model_id][sent.request.request_id] = sent
            for model_id, group in by_model.items():
                requests = [sent.request for sent in group.values()]
                try:
                    await asyncio.to_thread(self._producer.send_messages, model_id, requests)
                except PredictionError as error:
                    for _ in group:
                        self._failed(error.code.name)
                else:
                    self._waiting[model_id].update(group)
            self._all_appended = batch[-1] is None

    async def look(self) -> None:
        """Looks for replies until there is nothing left to wait for."""
        while not self._all_appended or any(self._waiting.values()):
            for model_id, waiting in list(self._waiting.items()):
                names = list(waiting)
                for start in range(0, len(names), _CHUNK):
                    await self._look_for(model_id, waiting, names[start : start + _CHUNK])
            await asyncio.sleep(_POLL_S)

    async def _look_for(self, model_id: str, waiting: dict[str, _Sent], names: Sequence[str]) -> None:
        try:
            states = await asyncio.to_thread(self._producer.states, model_id, names)
        except PredictionError:  # Redis is away: until it is back nobody has a reply
            states = [None] * len(names)
        now = time.perf_counter()
        for request_id, state in zip(names, states, strict=True):
            sent = waiting[request_id]
            if state is not None and state.response:
                response = v1.PredictResponse.FromString(state.response)
                if response.HasField("error"):
                    self._failed(_code(response.error.code))
                else:
                    self._ended()
                    self._tally.answer(now - sent.due_at, model_id)
                    self._likeness.note(sent.answer, response)
            elif now - sent.due_at > self._timeout_s:
                self._failed(NO_ANSWER)
            else:
                continue
            del waiting[request_id]

    def _failed(self, status: str) -> None:
        self._ended()
        self._tally.error(status)

    def _ended(self) -> None:
        self._tally.under_way -= 1
        self._room.release()


def _code(number: int) -> str:
    try:
        return Code(number).name
    except ValueError:
        return str(number)
