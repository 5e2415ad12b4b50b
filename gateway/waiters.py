"""Waiters: who waits for which reply, and how they are woken.

    exit -> one sharded message per gateway and batch -> waiters resolved
    the reply key is the truth: a sweep reads it after every reconnect, and from time to time as a net

No caller holds a connection, a task or a timer of its own here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import redis.asyncio
import structlog
from google.protobuf.message import DecodeError
from redis.exceptions import RedisError

from contract.errors import Reason, Refused
from contract.keys import Keys
from contract.line import AsyncLine
from contract.overload import Bound
from gateway.calls import Call
from ingest.entrance import Answer, Seen
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

QUICK_S = 0.1
"""Sweep of those nobody will wake: duplicates, GetResult."""
NET_S = 1.0
"""Sweep of everybody who has waited longer than this."""
GRACE_S = 0.5
"""Past its deadline a waiter is given this long for the EXPIRED reply."""
MOST_KEYS = 1000

log = structlog.get_logger()


class Waiter:
    """One caller waiting for one reply, which its `call` gets. Made for each request, so slotted."""

    __slots__ = (
        "_waiters", "bound", "call", "entry_id", "gone", "model_id", "net_at", "over", "over_at", "payload",
        "request_id", "rows", "state", "woken",
    )  # fmt: skip

    def __init__(
        self,
        waiters: Waiters,
        call: Call,
        model_id: str,
        request_id: str,
        now: float,
        wait_s: float,
        payload: bytes,
        rows: int,
        state: bytes,
        bound: Bound | None,
    ) -> None:
        self._waiters = waiters
        self.call = call
        self.model_id = model_id
        self.request_id = request_id
        self.over_at = now + wait_s
        """When nobody waits any more, on the event loop's clock."""
        self.net_at = now + NET_S
        self.payload = payload
        """What is appended, serialized; empty for GetResult."""
        self.rows = rows
        self.state = state
        self.bound = bound
        self.entry_id = b""
        self.woken = bool(payload)
        """Whether the exit will wake it; if not, the quick sweep does."""
        self.over = False
        """Whether it waits no longer."""
        self.gone = False

    def answered(self, answer: Answer) -> None:
        """What became of its append."""
        if isinstance(answer, bytes):
            self.entry_id = answer
            if self.gone:
                self._waiters.on_gone(self)
        elif isinstance(answer, Seen):
            self.woken = False
            if answer.state.response:
                self._waiters.resolve(self, answer.state.response)
        else:
            self.refuse(answer)

    def refuse(self, refused: Refused) -> None:
        """Ends the wait without a reply."""
        self._waiters.refuse(self, refused)

    def cancel(self) -> None:
        """Its caller went away: nobody needs the answer any more, unless another asked the same under the same id."""
        self._waiters.leave(self)


class Waiters:
    """All waiters of one gateway, and the connection that wakes them."""

    def __init__(self, client: redis.asyncio.Redis, redis_url: str, keys: Keys, gateway: str) -> None:
        self._client = client
        self._keys = keys
        self._gateway = gateway
        self._by_id: defaultdict[str, dict[str, tuple[Waiter, ...]]] = defaultdict(dict)
        """Model and request -> who waits for it."""
        self._channels: dict[str, str] = {}
        self._by_channel: dict[bytes, str] = {}
        self._time = asyncio.get_running_loop().time
        self._sweep_now = asyncio.Event()
        self._everybody = False
        self._idle = asyncio.Event()
        self.line = AsyncLine(redis_url, on_push=self._pushed, on_open=self._opened, on_lost=self._lost)
        """The connection that wakes them; who runs the gateway keeps it open."""
        self.subscribed: frozenset[str] = frozenset()
        """Models whose channel is confirmed: only these are offered."""
        self.on_gone: Callable[[Waiter], None] = lambda _waiter: None
        """Called for a waiter whose caller has gone, once its entry was appended."""
        self.append: Callable[[Waiter], None] = lambda _waiter: None
        """Appends a waiter's entry: once more, where the one it waited for was taken back by its own caller."""

    def __len__(self) -> int:
        return sum(map(len, self._by_id.values()))

    def add(
        self,
        call: Call,
        model_id: str,
        request_id: str,
        wait_s: float,
        payload: bytes = b"",
        rows: int = 0,
        state: bytes = b"",
        bound: Bound | None = None,
    ) -> Waiter:
        """Registers a waiter; before the append, so that no reply can come too early."""
        waiter = Waiter(self, call, model_id, request_id, self._time(), wait_s, payload, rows, state, bound)
        of_model = self._by_id[model_id]
        others = of_model.get(request_id)
        of_model[request_id] = (waiter,) if others is None else (*others, waiter)
        return waiter

    def remove(self, waiter: Waiter) -> None:
        """Forgets a waiter, whatever became of it."""
        waiter.over = True
        of_model = self._by_id[waiter.model_id]
        others = tuple(other for other in of_model.pop(waiter.request_id, ()) if other is not waiter)
        if others:
            of_model[waiter.request_id] = others
        else:
            self._ended(waiter.model_id)

    def _ended(self, model_id: str) -> None:
        if not self._by_id[model_id]:
            del self._by_id[model_id]
            if not self._by_id:
                self._idle.set()

    def _all(self) -> list[Waiter]:
        return [waiter for of_model in self._by_id.values() for waiters in of_model.values() for waiter in waiters]

    def leave(self, waiter: Waiter) -> None:
        """Forgets a waiter whose caller went away, and has its entry taken back where nobody else waits for it."""
        if waiter.over:
            return
        waiter.gone = self._by_id[waiter.model_id].get(waiter.request_id) == (waiter,)
        if waiter.gone and waiter.entry_id:
            self.on_gone(waiter)
        self.remove(waiter)

    def refuse(self, waiter: Waiter, refused: Refused) -> None:
        """Ends a wait without a reply."""
        if not waiter.over:
            self.remove(waiter)
            waiter.call.refuse(refused, waiter.request_id)

    def _reply(self, waiter: Waiter, response: bytes, *, failed: bool) -> None:
        if waiter.over:
            return
        self.remove(waiter)
        if failed:
            error = v1.PredictResponse.FromString(response).error
            waiter.call.refuse(Refused.from_error(error), waiter.request_id)
        else:
            waiter.call.reply(response)

    async def drain(self) -> None:
        """Returns once nobody waits."""
        while self._by_id:
            self._idle.clear()
            await self._idle.wait()

    def offer(self, models: Iterable[str]) -> None:
        """Says which models' channels are to be listened to."""
        added = set(models) - self._channels.keys()
        self._channels |= {model_id: self._keys.model(model_id).replies(self._gateway) for model_id in added}
        self._by_channel |= {self._channels[model_id].encode(): model_id for model_id in added}
        self._subscribe(added)

    def _subscribe(self, models: Iterable[str]) -> None:
        if models and self.line.open:
            # Answered by push, one confirmation for each channel.
            self.line.send(("SSUBSCRIBE", *(self._channels[model_id] for model_id in models)), None)

    def _opened(self) -> None:
        self._subscribe(list(self._channels))

    def _lost(self) -> None:
        self.subscribed = frozenset()

    def _pushed(self, message: Any) -> None:
        kind, channel, body = message
        if kind == b"smessage":
            self._wake(self._by_channel[channel], body)
        elif kind == b"ssubscribe":
            self.subscribed |= {self._by_channel[channel]}
            if len(self.subscribed) == len(self._channels):
                # What was published while nobody listened is read from the keys.
                self._everybody = True
                self._sweep_now.set()

    def _wake(self, model_id: str, raw: bytes) -> None:
        of_model = self._by_id.get(model_id)
        if of_model is None:
            return
        for reply in wire.Replies.FromString(raw).replies:
            request_id, response, failed = reply.request_id, reply.response, reply.failed
            if response and not failed:
                for waiter in of_model.pop(request_id, ()):
                    waiter.over = True
                    waiter.call.reply(response)
                continue
            for waiter in of_model.get(request_id, ()):
                if failed and not waiter.entry_id:
                    waiter.woken = False  # another's deadline or withdrawal is not this one's: its key says which
                elif response:
                    self._reply(waiter, response, failed=failed)
                else:
                    waiter.woken = False  # too large to push: a sweep reads its key, at once
                    self._sweep_now.set()
        self._ended(model_id)

    def resolve(self, waiter: Waiter, response: bytes) -> None:
        """Ends a wait with a stored response."""
        self._reply(waiter, response, failed=v1.PredictResponse.FromString(response).HasField("error"))

    async def sweep_forever(self) -> None:
        """The net under the wake-ups, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUICK_S):
                    await self._sweep_now.wait()
            everybody, self._everybody = self._everybody, False
            self._sweep_now.clear()
            try:
                await self.sweep(everybody=everybody)
            except (RedisError, OSError) as error:
                log.debug("a sweep of reply keys failed", error=str(error))
            now = asyncio.get_running_loop().time()
            for waiter in self._all():
                if now > waiter.over_at + GRACE_S:
                    self.refuse(waiter, Refused(Reason.DEADLINE_PASSED, "no reply came before the deadline"))

    async def sweep(self, *, everybody: bool = False) -> None:
        """Reads the keys of those who may have missed their wake-up."""
        now = asyncio.get_running_loop().time()
        due = [
            waiter
            for waiter in self._all()
            if everybody or not waiter.woken or (waiter.entry_id and now > waiter.net_at)
        ]
        for start in range(0, len(due), MOST_KEYS):
            some = due[start : start + MOST_KEYS]
            keys = [self._keys.model(waiter.model_id).reply(waiter.request_id) for waiter in some]
            for waiter, raw in zip(some, await self._client.mget(keys), strict=True):
                waiter.net_at = now + NET_S
                if raw is not None:
                    self._read(waiter, raw)  # type: ignore[arg-type]
                elif not waiter.woken and not waiter.entry_id:
                    self._lost_first(waiter)

    def _read(self, waiter: Waiter, raw: bytes) -> None:
        try:
            state = wire.ReplyState.FromString(raw)
        except DecodeError:
            self.refuse(waiter, Refused(Reason.INTERNAL, "what is stored under this request_id is no reply"))
            return
        if state.response:
            self.resolve(waiter, state.response)

    def _lost_first(self, waiter: Waiter) -> None:
        """The request that a duplicate or GetResult waited for was withdrawn, or its deadline passed."""
        if waiter.over:
            return
        if waiter.payload:
            waiter.woken = True
            self.append(waiter)
        else:
            self._reply(waiter, b"", failed=False)
