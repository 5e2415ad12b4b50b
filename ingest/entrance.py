"""The entrance: what was admitted during one turn of the event loop goes to Redis in one script call.

redis-py pays per command, not per argument, so a turn's requests cost little more than one. While calls are under way
new requests gather, which makes batches larger exactly when there is more to do, and delays nobody when there is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis.asyncio
from redis.exceptions import OutOfMemoryError, ResponseError

from contract.completion import BULK, INTERACTIVE
from contract.connection import LOST, Argument, run_async
from contract.errors import Reason, Refused
from contract.keys import Keys
from contract.scripts import ENTRANCE
from contract.settings import Settings
from protos import millstream_wire_v1_pb2 as wire

MOST_IN_FLIGHT = 2
MOST_ITEMS = 512


@dataclass(frozen=True, slots=True)
class Appended:
    """The entry's id in its lane."""

    entry_id: bytes


@dataclass(frozen=True, slots=True)
class Seen:
    """The same request came before under this id: the state of the first one."""

    state: wire.ReplyState


Answer = Appended | Seen | Refused


class Admission(NamedTuple):
    """One admitted request on its way in."""

    payload: bytes
    rows: int
    state: bytes
    """Empty where the gateway made the id."""
    request_id: str
    answered: Callable[[Answer], None]


class Entrance:
    """Appends to both lanes of every model; one per process and event loop."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, settings: Settings) -> None:
        self._client = client
        self._keys = keys
        self._settings = settings
        self._waiting: dict[tuple[str, wire.Lane], list[Admission]] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self.store_full = False
        """Set by who watches the server's memory: from then on nothing is appended."""

    def append(
        self,
        model_id: str,
        lane: wire.Lane,
        payload: bytes,
        rows: int,
        state: bytes,
        request_id: str,
        answered: Callable[[Answer], None],
    ) -> None:
        """Takes one request into this turn; `answered` is called once, later, with what became of it."""
        key = (model_id, lane)
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = []
        waiting.append(Admission(payload, rows, state, request_id, answered))
        if not self._scheduled and len(self._calls) < MOST_IN_FLIGHT:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    async def drain(self) -> None:
        """Waits until everything taken in is answered."""
        while self._waiting or self._calls:
            if self._calls:
                await asyncio.wait(self._calls)
            else:
                await asyncio.sleep(0)

    def _start(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._calls) < MOST_IN_FLIGHT:
            key = next(iter(self._waiting))
            waiting = self._waiting.pop(key)
            if len(waiting) > MOST_ITEMS:
                self._waiting[key] = waiting[MOST_ITEMS:]
                waiting = waiting[:MOST_ITEMS]
            call = asyncio.create_task(self._call(*key, waiting))
            self._calls.add(call)
            call.add_done_callback(self._ended)

    def _ended(self, call: asyncio.Task[None]) -> None:
        self._calls.discard(call)
        if self._waiting and not self._scheduled:
            self._start()

    async def _call(self, model_id: str, lane: wire.Lane, items: list[Admission]) -> None:
        keys = self._keys.model(model_id)
        bulk = lane == BULK
        names = [keys.bulk if bulk else keys.requests, keys.rows_bulk if bulk else keys.rows_requests, keys.count]
        arguments: list[Argument] = [self._settings.max_waiting_rows, self._settings.pending_ttl_s]
        for item in items:
            arguments += (item.payload, item.rows, item.state)
            if item.state:
                names.append(keys.reply(item.request_id))
        answers: list[Answer]
        if self.store_full:
            answers = [self._full()] * len(items)
        else:
            try:
                answers = [self._answer(raw) for raw in await run_async(self._client, ENTRANCE, names, arguments)]
            except OutOfMemoryError:
                answers = [self._full()] * len(items)
            except LOST:
                gone = Refused(
                    Reason.STORE_UNAVAILABLE,
                    "Redis did not answer; the request may have been appended: ask again with a request_id of your own",
                    retry_after_s=1.0,
                )
                answers = [gone] * len(items)
            except ResponseError as error:
                answers = [_response_error(error)] * len(items)
        for item, answer in zip(items, answers, strict=True):
            item.answered(answer)

    def _answer(self, raw: Any) -> Answer:
        if isinstance(raw, bytes):
            return Appended(raw)
        kind = raw[0]
        if kind == b"seen":
            return Seen(wire.ReplyState.FromString(raw[1]))
        if kind == b"reused":
            return Refused(Reason.REQUEST_ID_REUSED, "this request_id was used for another request")
        return Refused(
            Reason.QUEUE_FULL,
            f"{raw[1]} rows are waiting for this model, the bound is {self._settings.max_waiting_rows}",
            retry_after_s=0.5,
        )

    def _full(self) -> Refused:
        return Refused(Reason.STORE_FULL, "Redis is nearly out of memory; new requests wait", retry_after_s=1.0)


def _response_error(error: ResponseError) -> Refused:
    """A server that refuses the write: loading, read-only, wrong type of key."""
    text = str(error)
    if text.startswith("OOM"):
        return Refused(Reason.STORE_FULL, "Redis is out of memory; new requests wait", retry_after_s=1.0)
    if text.startswith(("LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "MISCONF", "BUSY")):
        return Refused(Reason.STORE_UNAVAILABLE, f"Redis takes no writes now: {text}", retry_after_s=1.0)
    return Refused(Reason.INTERNAL, "the request could not be appended")


__all__ = ["BULK", "INTERACTIVE", "Answer", "Appended", "Entrance", "Seen"]
