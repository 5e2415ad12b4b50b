"""Waiters: who waits for which reply, and how they are woken.

    exit -> one sharded message per gateway and batch -> waiters resolved
    the reply key is the truth: a sweep reads it after every reconnect, and from time to time as a net

No caller holds a connection or a task of its own here, only a future.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

import redis.asyncio
import structlog
from redis.exceptions import RedisError

from contract.connection import LOST
from contract.errors import Reason, Refused
from contract.keys import Keys
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

    __slots__ = ("entry", "entry_id", "future", "gone", "model_id", "net_at", "over_at", "request_id", "woken")

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

    def __init__(self, client: redis.asyncio.Redis, listener: redis.asyncio.Redis, keys: Keys, gateway: str) -> None:
        self._client = client
        self._listener = listener
        self._keys = keys
        self._gateway = gateway
        self._by_id: dict[tuple[str, str], list[Waiter]] = {}
        self._wanted: set[str] = set()
        self._pubsub: Any = None
        self._change = asyncio.Event()
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

    async def offer(self, models: Iterable[str]) -> None:
        """Says which models' channels are to be listened to."""
        wanted = set(models)
        if wanted != self._wanted:
            added = wanted - self._wanted
            self._wanted = wanted
            if self._pubsub is not None and added:
                # Where it fails, the listening task reconnects with all of them.
                with contextlib.suppress(*LOST):
                    await self._pubsub.ssubscribe(*(self._channel(model_id) for model_id in sorted(added)))
            self._change.set()

    def _channel(self, model_id: str) -> str:
        return self._keys.model(model_id).replies(self._gateway)

    async def listen(self) -> None:
        """Receives wake-ups until cancelled; reconnects, and sweeps after each reconnect."""
        pause = 0.05
        while True:
            while not self._wanted:
                self._change.clear()
                await self._change.wait()
            pubsub = self._listener.pubsub()
            try:
                await pubsub.ssubscribe(*(self._channel(model_id) for model_id in sorted(self._wanted)))
                self._pubsub = pubsub
                confirmed: set[str] = set()
                by_channel: dict[bytes, str] = {}
                while True:
                    message = await pubsub.get_message(timeout=None)
                    if message is None:
                        continue
                    if message["type"] == "smessage":
                        self._wake(by_channel[message["channel"]], message["data"])
                    elif message["type"] == "ssubscribe":
                        by_channel |= {self._channel(m).encode(): m for m in self._wanted}
                        if message["channel"] in by_channel:
                            confirmed.add(by_channel[message["channel"]])
                            self.subscribed = frozenset(confirmed)
                        if confirmed >= self._wanted:
                            pause = 0.05
                            await self.sweep(everybody=True)
            except (RedisError, OSError) as error:
                self.subscribed = frozenset()
                log.warning("listening for replies failed; trying again", error=str(error), wait_s=pause)
                await asyncio.sleep(pause)
                pause = min(pause * 2, 2.0)
            finally:
                self._pubsub = None
                await pubsub.aclose()  # type: ignore[no-untyped-call]

    def _wake(self, model_id: str, raw: bytes) -> None:
        for reply in wire.Replies.FromString(raw).replies:
            waiters = self._by_id.get((model_id, reply.request_id))
            if waiters:
                for waiter in waiters:
                    if reply.response:
                        waiter.resolve(reply.response, failed=reply.failed)
                    else:
                        waiter.woken = False  # too large to push: the quick sweep reads its key

    def _resolve(self, waiter: Waiter, response: bytes) -> None:
        waiter.resolve(response, failed=v1.PredictResponse.FromString(response).HasField("error"))

    async def sweep_forever(self) -> None:
        """The net under the wake-ups, until cancelled."""
        while True:
            await asyncio.sleep(QUICK_S)
            try:
                await self.sweep()
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
                    state = wire.ReplyState.FromString(raw)  # type: ignore[arg-type]
                    if state.response:
                        self._resolve(waiter, state.response)


def now_us() -> int:
    """Microseconds since the Unix epoch."""
    return time.time_ns() // 1000
