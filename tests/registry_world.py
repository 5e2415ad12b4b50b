"""The registry in the test's own process, with one store, one state directory and one key prefix.

Workers are stood in for by what they are to the registry: presences that say which digests are loaded. They load for
real as far as the registry can tell: a digest is shown once every chunk was read from Redis and hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
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
from tests.conditions import eventually_async


def signature(model_id: str = "churn", version: str = "1.0.0", **other: Any) -> dict[str, Any]:
    return {
        "model_id": model_id,
        "version": version,
        "trained_date": "2023-10-25",
        "status": "production",
        "azure_location": "ai-models",
        "expected_features": [{"index": 0, "name": "age", "type": "int"}],
        **other,
    }


class World:
    """One store, one state directory, one key prefix; the registry may run, stop and run again in it."""

    def __init__(self, folder: Path, redis_url: str, prefix: str, client: redis.Redis) -> None:
        self.store = folder / "store"
        self.state = folder / "state"
        self.store.mkdir()
        self.redis_url = redis_url
        self.keys = Keys(prefix)
        self.client = client
        self.key_file = self.state / "registry.key"
        self.address = f"unix:{Path(folder.name).name[:20]}.sock"
        self.calls: Any = None
        self.outcomes: dict[str, tuple[int, int]] = {}
        """What the workers show of requests: digest -> completed, and failed."""
        self.mended: set[str] = set()
        """Versions that fail no worker any more."""
        self.settings: dict[str, Any] = {"prefix": prefix, "store_url": str(self.store), "chunk_bytes": 1000}

    def publish(self, model_id: str = "churn", version: str = "1.0.0", content: bytes = b"", **other: Any) -> Path:
        """A version folder; its model's bytes say which version it is, unless given."""
        folder = self.store / model_id / version
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.joblib").write_bytes(content or f"{model_id} {version}".encode() * 200)
        (folder / "signature.json").write_text(json.dumps(signature(model_id, version, **other)))
        return folder

    def record(self, model_id: str = "churn") -> ModelRecord | None:
        raw = self.client.hget(self.keys.catalog, model_id)
        if raw is None:
            return None
        assert isinstance(raw, bytes)
        return trust.unseal(raw, model_id, trust.public_key(self.key_file.with_suffix(".pub")))

    def states(self, model_id: str = "churn") -> dict[str, int]:
        record = self.record(model_id)
        return {name: version.state for name, version in record.versions.items()} if record else {}

    async def until(self, model_id: str = "churn", **states: int) -> ModelRecord:
        """The record once its versions stand so: `v1_0_0=LIVE`."""
        expected = {name[1:].replace("_", "."): state for name, state in states.items()}

        async def stands_so() -> bool:
            return self.states(model_id) == expected

        await eventually_async(stands_so, within=10)
        record = self.record(model_id)
        assert record is not None
        return record

    @asynccontextmanager
    async def registry(self) -> AsyncIterator[None]:
        """Runs it; ready inside, stopped and gone behind."""
        ready, stop, done = anyio.Event(), anyio.Event(), anyio.Event()

        async def run() -> None:
            await run_registry(
                Settings(**self.settings),
                redis_url=self.redis_url,
                database=self.state / "registry.duckdb",
                private_key=self.key_file,
                listen=self.address,
                on_ready=ready.set,
                stop=stop,
            )
            done.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            with anyio.fail_after(20):
                await ready.wait()
            async with grpc.aio.insecure_channel(self.address) as channel:
                self.calls = rpc.RegistryStub(channel)
                try:
                    yield
                finally:
                    stop.set()
                    with anyio.fail_after(10):
                        await done.wait()

    async def sync(self) -> v1.SyncResponse:
        answer: v1.SyncResponse = await self.calls.Sync(v1.SyncRequest())
        return answer

    async def listed(self, model_id: str = "") -> list[v1.VersionInfo]:
        answer = await self.calls.ListVersions(v1.ListVersionsRequest(model_id=model_id))
        return list(answer.versions)

    async def shown(self) -> dict[str, tuple[str, str]]:
        return {f"{row.model_id} {row.version}": (row.state, row.problem) for row in await self.listed()}

    async def acts(self, model_id: str = "churn") -> list[tuple[str, str]]:
        answer = await self.calls.History(v1.HistoryRequest(model_id=model_id))
        return [(entry.version, entry.act) for entry in answer.entries]

    async def last_act(self) -> tuple[str, str]:
        return (await self.acts())[-1]

    @asynccontextmanager
    async def workers(self, *names: str, failing: str = "") -> AsyncIterator[None]:
        """Workers that load what the records hold, all but the version named in `failing`."""
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(self._worker, name, failing)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def _worker(self, name: str, failing: str) -> None:
        presence = Presence("worker", name)
        try:
            while True:
                revision = int(cast("bytes | None", self.client.get(self.keys.catalog_revision)) or 0)
                loaded, failed = set(), {}
                for model_id in cast("list[bytes]", self.client.hkeys(self.keys.catalog)):
                    record = self.record(model_id.decode())
                    for version in record.versions.values() if record else ():
                        if version.version == failing and failing not in self.mended:
                            failed[version.digest.hex()] = "it is no model"
                        elif self.holds(version.artifacts):
                            loaded.add(version.digest.hex())
                presence = Presence(
                    "worker",
                    name,
                    revision=revision,
                    loaded=frozenset(loaded),
                    failed=failed,
                    outcomes=self.outcomes,
                )
                show(self.client, presence.beat(self.keys))
                await anyio.sleep(0.02)
        finally:
            show(self.client, presence.leave(self.keys))

    def holds(self, artifacts: Any) -> bool:
        for artifact in artifacts:
            chunks = [self.client.get(self.keys.chunk(artifact.sha256, i)) for i in range(artifact.chunks)]
            content = b"".join(cast("bytes", chunk) for chunk in chunks if chunk)
            if hashlib.sha256(content).hexdigest() != artifact.sha256 or len(content) != artifact.size:
                return False
        return True

    def forget(self) -> None:
        """Redis loses all of it."""
        erase(self.client, self.keys.prefix)


def erase(client: redis.Redis, prefix: str) -> None:
    for key in client.scan_iter(f"{prefix}:*"):
        client.delete(key)


async def says(question: Callable[[], Awaitable[Any]], answer: Any) -> None:
    async def is_answered() -> bool:
        return bool(await question() == answer)

    await eventually_async(is_answered, within=10)
