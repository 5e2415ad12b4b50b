"""Waiters: who waits for which reply, and how they are woken.

    exit -> one sharded message per gateway and batch -> waiters resolved
    the reply key is the truth: a sweep reads it after every reconnect, and from time to time as a net

No caller holds a connection or a task of its own here, only a future.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable
from typing import Any

import redis.asyncio
import structlog
from google.protobuf.message import DecodeError
from redis.exceptions import RedisError

from contract.errors import Reason, Refused
from contract.keys import Keys
from contract.line import AsyncLine
from ingest.entrance import Answer, Appended, Seen
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
    """One caller waiting for one reply; `future` ends with the serialized PredictResponse or Refused."""

    __slots__ = ("again", "entry", "entry_id", "future", "gone", "model_id", "net_at", "over_at", "request_id", "woken")

    def __init__(self, model_id: str, request_id: str, over_at: float, entry: wire.Entry | None) -> None:
        self.model_id = model_id
        self.request_id = request_id
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.over_at = over_at
        """When nobody waits any more, on the event loop's clock."""
        self.net_at = 0.0
        self.entry = entry
        """What was appended, for who withdraws it; None for GetResult."""
        self.entry_id = b""
        self.woken = entry is not None
        """Whether the exit will wake it; if not, the quick sweep does."""
        self.gone = False
        self.again: Callable[[], None] | None = None
        """Appends its request once more, where the one it waited for was taken back by its own caller."""

    def resolve(self, response: bytes, *, failed: bool) -> None:
        """Ends the wait with a reply."""
        if not self.future.done():
            if failed:
                self.future.set_exception(Refused.from_error(v1.PredictResponse.FromString(response).error))
            else:
                self.future.set_result(response)

    def refuse(self, refused: Refused) -> None:
        """Ends the wait without one."""
        if not self.future.done():
            self.future.set_exception(refused)


class Waiters:
    """All waiters of one gateway, and the connection that wakes them."""

    def __init__(self, client: redis.asyncio.Redis, redis_url: str, keys: Keys, gateway: str) -> None:
        self._client = client
        self._keys = keys
        self._gateway = gateway
        self._by_id: dict[tuple[str, str], list[Waiter]] = {}
        self._channels: dict[str, str] = {}
        self._by_channel: dict[bytes, str] = {}
        self._sweep_all = asyncio.Event()
        self._idle = asyncio.Event()
        self.line = AsyncLine(redis_url, on_push=self._pushed, on_open=self._opened, on_lost=self._lost)
        """The connection that wakes them; who runs the gateway keeps it open."""
        self.subscribed: frozenset[str] = frozenset()
        """Models whose channel is confirmed: only these are offered."""
        self.on_gone: Callable[[Waiter], None] = lambda _waiter: None
        """Called for a waiter whose entry was appended after its caller had gone."""

    def __len__(self) -> int:
        return len(self._by_id)

    def add(self, model_id: str, request_id: str, over_at: float, entry: wire.Entry | None) -> Waiter:
        """Registers a waiter; before the append, so that no reply can come too early."""
        waiter = Waiter(model_id, request_id, over_at, entry)
        self._by_id.setdefault((model_id, request_id), []).append(waiter)
        return waiter

    def remove(self, waiter: Waiter) -> None:
        """Forgets a waiter, whatever became of it."""
        key = (waiter.model_id, waiter.request_id)
        others = self._by_id.get(key)
        if others is None:
            return
        if waiter in others:
            others.remove(waiter)
        if not others:
            del self._by_id[key]
            if not self._by_id:
                self._idle.set()

    async def drain(self) -> None:
        """Returns once nobody waits."""
        while self._by_id:
            self._idle.clear()
            await self._idle.wait()

    def alone(self, waiter: Waiter) -> bool:
        """Whether nobody else waits for the same reply here."""
        return self._by_id.get((waiter.model_id, waiter.request_id)) == [waiter]

    def appended(self, waiter: Waiter, answer: Answer) -> None:
        """What became of a waiter's append."""
        if isinstance(answer, Appended):
            waiter.entry_id = answer.entry_id
            waiter.net_at = asyncio.get_running_loop().time() + NET_S
            if waiter.gone:
                self.on_gone(waiter)
        elif isinstance(answer, Seen):
            waiter.woken = False
            if answer.state.response:
                self._resolve(waiter, answer.state.response)
        else:
            waiter.refuse(answer)

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
                self._sweep_all.set()

    def _wake(self, model_id: str, raw: bytes) -> None:
        for reply in wire.Replies.FromString(raw).replies:
            waiters = self._by_id.get((model_id, reply.request_id))
            if waiters:
                for waiter in waiters:
                    if reply.failed and not waiter.entry_id:
                        waiter.woken = False  # another's deadline or withdrawal is not this one's: its key says which
                    elif reply.response:
                        waiter.resolve(reply.response, failed=reply.failed)
                    else:
                        waiter.woken = False  # too large to push: the quick sweep reads its key

    def _resolve(self, waiter: Waiter, response: bytes) -> None:
        waiter.resolve(response, failed=v1.PredictResponse.FromString(response).HasField("error"))

    async def sweep_forever(self) -> None:
        """The net under the wake-ups, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(QUICK_S):
                    await self._sweep_all.wait()
            everybody = self._sweep_all.is_set()
            self._sweep_all.clear()
            try:
                await self.sweep(everybody=everybody)
            except (RedisError, OSError) as error:
                log.debug("a sweep of reply keys failed", error=str(error))
            now = asyncio.get_running_loop().time()
            for waiters in list(self._by_id.values()):
                for waiter in list(waiters):
                    if now > waiter.over_at + GRACE_S:
                        waiter.refuse(Refused(Reason.DEADLINE_PASSED, "no reply came before the deadline"))

    async def sweep(self, *, everybody: bool = False) -> None:
        """Reads the keys of those who may have missed their wake-up."""
        now = asyncio.get_running_loop().time()
        due = [
            waiter
            for waiters in self._by_id.values()
            for waiter in waiters
            if not waiter.future.done() and (everybody or not waiter.woken or (waiter.entry_id and now > waiter.net_at))
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
            waiter.refuse(Refused(Reason.INTERNAL, "what is stored under this request_id is no reply"))
            return
        if state.response:
            self._resolve(waiter, state.response)

    def _lost_first(self, waiter: Waiter) -> None:
        """The request that a duplicate or GetResult waited for was withdrawn, or its deadline passed."""
        if waiter.future.done():
            return
        if waiter.again is None:
            waiter.resolve(b"", failed=False)
        else:
            waiter.woken = True
            waiter.again()
