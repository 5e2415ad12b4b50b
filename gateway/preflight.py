"""What is checked, and printed line by line, before the gateway opens its port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import redis.asyncio
from redis.exceptions import RedisError

from contract.catalog import Catalog
from contract.settings import Settings
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc

REGISTRY_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was looked at, whether it is well, and what was found."""

    subject: str
    verdict: str
    """ok, warn, or fail: the port stays closed."""
    detail: str

    def __str__(self) -> str:
        return f"{self.verdict:<5}{self.subject:<16}{self.detail}"


async def preflight(
    settings: Settings, client: redis.asyncio.Redis, catalog: Catalog, registry: str, redacted_url: str
) -> AsyncIterator[Finding]:
    """Redis, state directory, blob store, and each model's record in DuckDB against the one in Redis."""
    yield await _redis(client, redacted_url)
    yield _state_dir(settings.state_dir)
    for model_id, why in catalog.untrusted.items():
        yield Finding(model_id, "fail", why)
    versions: v1.ListVersionsResponse | None = None
    if registry:
        try:
            async with grpc.aio.insecure_channel(registry) as channel:
                stub: Any = v1_grpc.RegistryStub(channel)
                versions = await stub.ListVersions(v1.ListVersionsRequest(), timeout=REGISTRY_TIMEOUT_S)
        except grpc.aio.AioRpcError as error:
            yield Finding("blob store", "warn", f"the registry at {registry} does not answer: {error.details()}")
    else:
        yield Finding("blob store", "warn", "no registry is configured to ask")
    if versions is not None:
        if versions.store_problem:
            yield Finding("blob store", "warn", f"{versions.store}: {versions.store_problem}; what is in Redis serves")
        else:
            yield Finding("blob store", "ok", versions.store)
    if not catalog.records:
        yield Finding("models", "warn", "none in the catalogue yet")
    for finding in _models(catalog, versions):
        yield finding


async def _redis(client: redis.asyncio.Redis, url: str) -> Finding:
    try:
        info: Any = await client.info()
        config: Any = await client.config_get("maxmemory-policy", "appendonly", "appendfsync", "maxmemory")
    except (RedisError, OSError) as error:
        return Finding("Redis", "fail", f"{url}: {error}")
    name = "Valkey " + info["valkey_version"] if "valkey_version" in info else "Redis " + info["redis_version"]
    persistence = f"AOF {config.get('appendfsync')}" if config.get("appendonly") == "yes" else "no AOF"
    limit = int(config.get("maxmemory", 0))
    detail = f"{url}: {name}, {persistence}, maxmemory {limit // 2**20 or 'unlimited'}{' MB' if limit else ''}"
    if info.get("role") not in (None, "master"):
        return Finding("Redis", "fail", f"{detail}: a read-only replica; Millstream writes")
    if config.get("maxmemory-policy") not in (None, "noeviction"):
        policy = config["maxmemory-policy"]
        return Finding("Redis", "fail", f"{detail}: maxmemory-policy {policy} evicts accepted work; set noeviction")
    if config.get("appendonly") == "no":
        return Finding("Redis", "warn", f"{detail}: a restart loses everything that waits; set appendonly yes")
    return Finding("Redis", "ok", detail)


def _state_dir(path: Path) -> Finding:
    if not path.is_dir():
        return Finding("state directory", "fail", f"{path} is not a directory")
    return Finding("state directory", "ok", str(path.resolve()))


def _models(catalog: Catalog, versions: v1.ListVersionsResponse | None) -> list[Finding]:
    recorded = {(v.model_id, v.version): v for v in versions.versions} if versions is not None else {}
    out = []
    for model_id, record in catalog.records.items():
        live = record.live
        if live is None:
            out.append(Finding(model_id, "warn", f"loading {', '.join(record.versions) or 'nothing'}; not live yet"))
            continue
        detail = f"{live.version} {live.digest.hex()[:12]}"
        known = recorded.get((model_id, live.version))
        if versions is None:
            out.append(Finding(model_id, "ok", f"{detail} in Redis; not compared"))
        elif known is None or known.digest != live.digest.hex():
            there = known.digest[:12] if known else "nothing"
            out.append(Finding(model_id, "warn", f"{detail} in Redis, {there} in DuckDB"))
        else:
            out.append(Finding(model_id, "ok", f"{detail} in DuckDB and Redis"))
    for (model_id, version), known in recorded.items():
        if known.problem:
            out.append(Finding(model_id or known.location, "warn", f"{version} is not served: {known.problem}"))
    return out
