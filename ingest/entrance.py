"""The entrance: what was admitted during one turn of the event loop goes to Redis in one script call.

redis-py pays per command, not per argument, so a turn's requests cost little more than one. While calls are under way
new requests gather, which makes batches larger exactly when there is more to do, and delays nobody when there is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import hiredis
import structlog
from google.protobuf.message import DecodeError

from contract.completion import BULK
from contract.connection import Argument
from contract.errors import Reason, Refused
from contract.keys import Keys
from contract.line import AsyncLine
from contract.overload import Bound
from contract.scripts import ENTRANCE
from contract.settings import Settings
from protos import millstream_wire_v1_pb2 as wire

log = structlog.get_logger()

MOST_IN_FLIGHT = 2
MOST_ITEMS = 512


@dataclass(frozen=True, slots=True)
class Seen:
    """The same request came before under this id: the state of the first one."""

    state: wire.ReplyState


Answer = bytes | Seen | Refused
"""The appended entry's id in its lane, or why there is none."""


class Item(Protocol):
    """One admitted request on its way in."""

    payload: bytes
    rows: int
    state: bytes
    """Empty where the gateway made the id."""
    request_id: str
    bound: Bound | None
    """It is refused where more rows wait; None: where more than `max_waiting_rows` do."""

    def answered(self, answer: Answer) -> None:
        """Called once, later, with what became of it."""


class Entrance:
    """Appends to both lanes of every model; one per process and event loop."""

    def __init__(self, line: AsyncLine, keys: Keys, settings: Settings) -> None:
        self._line = line
        self._keys = keys
        self._settings = settings
        self._waiting: dict[tuple[str, wire.Lane], list[Item]] = {}
        self._in_flight = 0
        self._scheduled = False
        self._idle = asyncio.Event()
        self._widest = Bound(settings.max_waiting_rows)
        self.store_full = False
        """Set by who watches the server's memory: from then on nothing is appended."""
        self.log_behind = False
        """Set by who watches the streams of events: the same."""

    def append(self, model_id: str, lane: wire.Lane, item: Item) -> None:
        """Takes one request into this turn."""
        key = (model_id, lane)
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = []
        waiting.append(item)
        if not self._scheduled and self._in_flight < MOST_IN_FLIGHT:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)

    async def drain(self) -> None:
        """Waits until everything taken in is answered."""
        while self._waiting or self._in_flight:
            self._idle.clear()
            await self._idle.wait()

    def _start(self) -> None:
        self._scheduled = False
        while self._waiting and self._in_flight < MOST_IN_FLIGHT:
            key = next(iter(self._waiting))
            waiting = self._waiting.pop(key)
            if len(waiting) > MOST_ITEMS:
                self._waiting[key] = waiting[MOST_ITEMS:]
                waiting = waiting[:MOST_ITEMS]
            self._in_flight += 1
            self._call(*key, waiting)

    def _call(self, model_id: str, lane: wire.Lane, items: list[Item]) -> None:
        keys = self._keys.model(model_id)
        bulk = lane == BULK
        names = [keys.bulk if bulk else keys.requests, keys.rows_bulk if bulk else keys.rows_requests, keys.count]
        arguments: list[Argument] = [self._settings.pending_ttl_s]
        kinds = {(item.rows, item.bound, item.state) for item in items}
        rows, bound, state = next(iter(kinds))
        if len(kinds) == 1 and not state:
            arguments += (rows, (bound or self._widest).rows)
            arguments += [item.payload for item in items]
        else:
            arguments += ("", "")
            for item in items:
                arguments += (item.payload, item.rows, item.state, (item.bound or self._widest).rows)
                if item.state:
                    names.append(keys.reply(item.request_id))
        if self.store_full or self.log_behind:
            self._ended(items, [_full() if self.store_full else _behind() for _ in items])
        else:
            self._line.run(ENTRANCE, names, arguments, lambda raw: self._ended(items, self._answers(raw, items)))

    def _ended(self, items: list[Item], answers: Sequence[Answer]) -> None:
        self._in_flight -= 1
        for item, answer in zip(items, answers, strict=True):
            item.answered(answer)
        if self._waiting and not self._scheduled:
            # Not at once: the callers just answered may have more to send in this turn.
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._start)
        elif not self._waiting and not self._in_flight:
            self._idle.set()

    def _answers(self, raw: Any, items: list[Item]) -> Sequence[Answer]:
        if isinstance(raw, bytes):
            ids: list[bytes] = raw.split()
            return ids
        if isinstance(raw, list):
            return [self._answer(each, item) for each, item in zip(raw, items, strict=True)]
        if isinstance(raw, hiredis.ReplyError):
            text = str(raw)
            if not text.startswith(_EXPECTED):
                log.error("Redis refused an append", error=text)
            return [_refused(text) for _ in items]
        return [_gone() for _ in items]

    def _answer(self, raw: Any, item: Item) -> Answer:
        if isinstance(raw, bytes):
            return raw
        kind = raw[0]
        if kind == b"seen":
            try:
                return Seen(wire.ReplyState.FromString(raw[1]))
            except DecodeError:
                return Refused(Reason.INTERNAL, "what is stored under this request_id is no reply")
        if kind == b"reused":
            return Refused(Reason.REQUEST_ID_REUSED, "this request_id was used for another request")
        return (item.bound or self._widest).refusal(raw[1], item.rows)


# A refusal is made for each caller: one that is raised again and again holds on to the frames of all who raised it.


def _full() -> Refused:
    return Refused(Reason.STORE_FULL, "Redis is nearly out of memory; new requests wait", retry_after_s=1.0)


def _behind() -> Refused:
    text = "the event log is far behind: too many events wait to be recorded; new requests wait until it catches up"
    return Refused(Reason.EVENTS_BACKLOG, text, retry_after_s=5.0)


def _gone() -> Refused:
    text = "Redis did not answer; the request may have been appended: ask again with a request_id of your own"
    return Refused(Reason.STORE_UNAVAILABLE, text, retry_after_s=1.0)


_FULL, _AWAY = "OOM", ("LOADING", "READONLY", "MASTERDOWN", "NOREPLICAS", "MISCONF", "BUSY")
_EXPECTED = (_FULL, *_AWAY)


def _refused(text: str) -> Refused:
    """A server that refuses the write: full, loading, read-only, wrong type of key."""
    if text.startswith(_FULL):
        return _full()
    if text.startswith(_AWAY):
        return Refused(Reason.STORE_UNAVAILABLE, f"Redis takes no writes now: {text}", retry_after_s=1.0)
    return Refused(Reason.INTERNAL, "the request could not be appended")
