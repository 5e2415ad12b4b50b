"""Retirement: when a version that is RETIRING can be dropped from memory and from Redis.

RETIRING written -> every living gateway and worker has seen that -> a while for a way back, and for what was being
admitted -> a mark at the end of both lanes -> the first entry left is behind the mark: nothing older waits

Entries leave a lane by deletion, whatever happened to them, so the first one left is the oldest that anybody may still
be busy with: where that came after the mark, no entry is left that a gateway pinned to the version. After a restart of
the registry all of it starts over, which is late and never early.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import redis.asyncio
from redis.exceptions import ResponseError

from contract.keys import Keys
from contract.presence import Presence
from contract.record import RETIRING, ModelRecord, Version

StreamId = tuple[int, int]
_START: StreamId = (0, 0)


@dataclass(frozen=True, slots=True)
class Lane:
    """The ends of a lane."""

    last: StreamId = _START
    """The last id it ever gave out."""
    first: StreamId | None = None
    """Of the oldest entry that is left."""


@dataclass(frozen=True, slots=True)
class Retirement:
    """How far one version has come."""

    revision: int
    """Of the catalogue, that everybody has to have seen."""
    since: float | None = None
    """When everybody had, by the monotonic clock."""
    marks: tuple[StreamId, ...] = ()
    """The ends of the lanes after that."""

    def after(self, is_seen: bool, lanes: Sequence[Lane], now: float, after_s: float) -> Retirement:
        """One look further; a gateway that came up and has not seen it yet starts it over."""
        if not is_seen:
            return replace(self, since=None, marks=())
        if self.since is None:
            return replace(self, since=now)
        if not self.marks and now - self.since >= after_s:
            return replace(self, marks=tuple(lane.last for lane in lanes))
        return self

    def is_over(self, lanes: Sequence[Lane]) -> bool:
        """Whether nothing is left that may be pinned to the version."""
        return bool(self.marks) and all(
            lane.first is None or lane.first > mark for lane, mark in zip(lanes, self.marks, strict=True)
        )


def seen_by_all(processes: Iterable[Presence], revision: int) -> bool:
    """Whether every process has seen this revision of the catalogue."""
    return all(process.revision >= revision for process in processes)


class Retirements:
    """All versions that are on their way out."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, after_s: float) -> None:
        self._client = client
        self._keys = keys
        self._after_s = after_s
        self._under_way: dict[tuple[str, bytes], Retirement] = {}

    async def due(self, record: ModelRecord, processes: Sequence[Presence]) -> list[Version]:
        """The versions of a record that can be dropped now; `processes` are the living gateways and workers."""
        retiring = [version for version in record.versions.values() if version.state == RETIRING]
        keys = {(record.model_id, version.digest) for version in retiring}
        for gone in [key for key in self._under_way if key[0] == record.model_id and key not in keys]:
            del self._under_way[gone]
        if not retiring:
            return []
        lanes = await self._lanes(record.model_id)
        due = []
        for version in retiring:
            key = record.model_id, version.digest
            if key not in self._under_way:
                # Read after the record, so it is that write's or a later one.
                revision: Any = await self._client.get(self._keys.catalog_revision)
                self._under_way[key] = Retirement(int(revision or 0))
            past = self._under_way[key]
            is_seen = seen_by_all(processes, past.revision)
            self._under_way[key] = past.after(is_seen, lanes, time.monotonic(), self._after_s)
            if past.is_over(lanes) and is_seen:
                due.append(version)
        return due

    async def _lanes(self, model_id: str) -> list[Lane]:
        names = self._keys.model(model_id)
        return [await self._lane(stream) for stream in (names.requests, names.bulk)]

    async def _lane(self, stream: str) -> Lane:
        try:
            told: Any = await self._client.xinfo_stream(stream)
        except ResponseError as error:
            if "no such key" in str(error):
                return Lane()
            raise
        first = told["first-entry"]
        return Lane(_stream_id(told["last-generated-id"]), _stream_id(first[0]) if first else None)


def _stream_id(raw: bytes) -> StreamId:
    milliseconds, _, number = raw.partition(b"-")
    return int(milliseconds), int(number)
