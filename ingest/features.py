"""The feature store: what callers left out is fetched with one MGET per turn of the event loop, for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import RedisError

from contract.errors import StoreFailed

MOST_KEYS = 4096


class FeatureStore:
    """Reads features on a client and under a timeout of its own, so that a slow store delays nobody else."""

    def __init__(self, client: redis.asyncio.Redis, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._waiting: list[tuple[Sequence[str], asyncio.Future[list[bytes | None]]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def fetch(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values of the keys, None where there is none (or one of another type). Raises StoreFailed."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[list[bytes | None]] = loop.create_future()
        self._waiting.append((keys, answer))
        if len(self._waiting) == 1:
            loop.call_soon(self._start)
        return await answer

    def _start(self) -> None:
        waiting, self._waiting = self._waiting, []
        while waiting:
            size, stop = 0, 0
            while stop < len(waiting) and (stop == 0 or size + len(waiting[stop][0]) <= MOST_KEYS):
                size += len(waiting[stop][0])
                stop += 1
            call = asyncio.create_task(self._call(waiting[:stop]))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
            waiting = waiting[stop:]

    async def _call(self, waiting: list[tuple[Sequence[str], asyncio.Future[list[bytes | None]]]]) -> None:
        names = [key for keys, _ in waiting for key in keys]
        try:
            async with asyncio.timeout(self._timeout_s):
                values: Any = await self._client.mget(names)
        except TimeoutError:
            self._fail(waiting, f"no answer within {self._timeout_s * 1000:g} ms")
            return
        except (RedisError, OSError) as error:
            self._fail(waiting, f"{type(error).__name__}: {error}")
            return
        start = 0
        for keys, answer in waiting:
            if not answer.done():
                answer.set_result(values[start : start + len(keys)])
            start += len(keys)

    def _fail(self, waiting: list[tuple[Sequence[str], asyncio.Future[list[bytes | None]]]], why: str) -> None:
        for _, answer in waiting:
            if not answer.done():
                answer.set_exception(StoreFailed(why))


def fetch_now(client: redis.Redis, keys: Sequence[str]) -> list[bytes | None]:
    """The same for a thread, such as a worker's: one MGET. Raises StoreFailed."""
    out: list[bytes | None] = []
    try:
        for start in range(0, len(keys), MOST_KEYS):
            values: Any = client.mget(keys[start : start + MOST_KEYS])
            out += values
    except (RedisError, OSError) as error:
        raise StoreFailed(f"{type(error).__name__}: {error}") from None
    return out
