"""The feature store: what callers left out is fetched with one MGET per turn of the event loop, for all of them.

What Redis does not have, or everything while it is late or gone, is looked up in the snapshot, where there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import redis
import redis.asyncio
from redis.exceptions import RedisError

from contract.admission import Draft, Stored
from contract.errors import StoreFailed
from ingest.snapshot import AsyncSnapshot, Pair, Snapshot
from protos import millstream_wire_v1_pb2 as wire

MOST_KEYS = 4096


class FeatureStore:
    """Reads features on a client and under a timeout of its own, so that a slow store delays nobody else."""

    def __init__(self, client: redis.asyncio.Redis, timeout_s: float, snapshot: AsyncSnapshot | None = None) -> None:
        self._client = client
        self._snapshot = snapshot
        self._timeout_s = timeout_s
        self._waiting: list[tuple[Sequence[str], asyncio.Future[list[bytes | None]]]] = []
        self._calls: set[asyncio.Task[None]] = set()

    async def stored(self, draft: Draft) -> Stored:
        """What a draft wants, from Redis and then from the snapshot. Never raises for a store that failed."""
        values: Sequence[bytes | None]
        failed = ""
        try:
            values = await self.fetch([want.key for want in draft.wanted])
        except StoreFailed as error:
            values, failed = [None] * len(draft.wanted), str(error)
        found = _from_redis(draft, values)
        if self._snapshot is not None and (pairs := _asked_of_snapshot(draft, found, failed)):
            found |= _from_file(pairs, await self._snapshot.look_up([pair for _, pair in pairs]))
        return Stored(found, failed)

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


Found = dict[int, tuple[bytes, wire.Origin]]
"""Index of a feature -> its raw value and where it came from."""


def _from_redis(draft: Draft, values: Sequence[bytes | None]) -> Found:
    found = zip(draft.wanted, values, strict=True)
    return {want.place: (value, wire.REDIS) for want, value in found if value is not None}


def _asked_of_snapshot(draft: Draft, found: Found, failed: str) -> list[tuple[int, Pair]]:
    """What is still wanted, by place; nothing where the signature refuses while the store is gone."""
    if failed and draft.takes_no_fallback:
        return []
    features = draft.admission.features
    return [
        (want.place, (draft.entity_id, features[want.place].name)) for want in draft.wanted if want.place not in found
    ]


def _from_file(pairs: Sequence[tuple[int, Pair]], values: Sequence[bytes | None]) -> Found:
    return {place: (value, wire.FILE) for (place, _), value in zip(pairs, values, strict=True) if value is not None}


def stored_now(client: redis.Redis, snapshot: Snapshot | None, drafts: Sequence[Draft]) -> list[Stored]:
    """What drafts want, for a thread such as a worker's: one fetch and one look-up for all of them."""
    values: Sequence[bytes | None] = ()
    failed = ""
    if keys := [want.key for draft in drafts for want in draft.wanted]:
        try:
            values = fetch_now(client, keys)
        except StoreFailed as error:
            values, failed = [None] * len(keys), str(error)
    left = iter(values)
    found = [_from_redis(draft, [next(left) for _ in draft.wanted]) for draft in drafts]
    if snapshot is not None:
        asked = [_asked_of_snapshot(draft, had, failed) for draft, had in zip(drafts, found, strict=True)]
        if any(asked):
            answers = iter(snapshot.look_up([pair for pairs in asked for _, pair in pairs]))
            for had, pairs in zip(found, asked, strict=True):
                had |= _from_file(pairs, [next(answers) for _ in pairs])
    return [Stored(had, failed if draft.wanted else "") for draft, had in zip(drafts, found, strict=True)]


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
