"""The registry, run in the test's own process, with a worker that claims to have loaded whatever it is offered."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import anyio
import grpc
import redis

from contract import trust
from contract.connection import show
from contract.keys import Keys
from contract.presence import Presence
from contract.record import ModelRecord
from contract.settings import Settings
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as rpc
from registry.app import run_registry
from registry.trial import Replay, Trial
from tests.conditions import eventually_async


class RegistryRun:
    """One store and one key prefix; the registry may run, stop and run again."""

    def __init__(self, folder: Path, redis_url: str, prefix: str, client: redis.Redis, **settings: Any) -> None:
        self.folder = folder
        self.redis_url = redis_url
        self.keys = Keys(prefix)
        self.client = client
        self.settings: dict[str, Any] = {"prefix": prefix, "chunk_bytes": 1000, **settings}
        self.calls: Any = None
        self.address = f"unix:{folder.name[:20]}.sock"
        self._known: dict[bytes, ModelRecord] = {}

    @asynccontextmanager
    async def running(self, trial: Trial | None = None, replay: Replay | None = None) -> AsyncIterator[None]:
        """Ready inside, with a worker; stopped and gone behind."""
        ready, stop, done = anyio.Event(), anyio.Event(), anyio.Event()

        async def run() -> None:
            await run_registry(
                Settings(**self.settings),
                redis_url=self.redis_url,
                database=self.folder / "registry.duckdb",
                private_key=self.folder / "registry.key",
                listen=self.address,
                on_ready=ready.set,
                stop=stop,
                trial=trial,
                replay=replay,
            )
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            tasks.start_soon(self._worker)
            with anyio.fail_after(60):
                await ready.wait()
            async with grpc.aio.insecure_channel(self.address) as channel:
                self.calls = rpc.RegistryStub(channel)
                try:
                    yield
                finally:
                    stop.set()
                    with anyio.fail_after(10, shield=True):
                        await done.wait()
                    tasks.cancel_scope.cancel()

    async def _worker(self) -> None:
        presence = Presence("worker", "a")
        try:
            while True:
                digests = {v.digest.hex() for record in self.records().values() for v in record.versions.values()}
                show(self.client, Presence("worker", "a", loaded=frozenset(digests)).beat(self.keys))
                await anyio.sleep(0.1)
        finally:
            show(self.client, presence.leave(self.keys))

    def records(self) -> dict[str, ModelRecord]:
        """The good records in Redis, by model."""
        with suppress(trust.KeyUnusable):
            public = trust.public_key(self.folder / "registry.pub")
            found = cast("dict[bytes, bytes]", self.client.hgetall(self.keys.catalog))
            for name, raw in found.items():
                if raw not in self._known:
                    self._known[raw] = trust.unseal(raw, name.decode(), public)
            return {name.decode(): self._known[raw] for name, raw in found.items()}
        return {}

    def live(self) -> dict[str, str]:
        """Model -> the version that answers."""
        return {name: record.routing.production for name, record in self.records().items() if record.live}

    async def until_live(self, expected: dict[str, str]) -> None:
        async def stands_so() -> bool:
            return self.live() == expected

        await eventually_async(stands_so, within=60)

    async def sync(self) -> v1.SyncResponse:
        answer: v1.SyncResponse = await self.calls.Sync(v1.SyncRequest())
        return answer

    async def listed(self) -> v1.ListVersionsResponse:
        answer: v1.ListVersionsResponse = await self.calls.ListVersions(v1.ListVersionsRequest())
        return answer

    async def shown(self) -> dict[str, tuple[str, str]]:
        """`churn 1.0.0` -> its state and why."""
        return {f"{row.model_id} {row.version}": (row.state, row.problem) for row in (await self.listed()).versions}

    def erase(self) -> None:
        for key in self.client.scan_iter(f"{self.keys.prefix}:*"):
            self.client.delete(key)
