"""What `millstream doctor` looks at: this machine, and what runs where the settings point."""

from __future__ import annotations

import os
import platform
import re
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.exceptions import RedisError

from contract.catalog import Catalog
from contract.connection import LOST, connect_async, living_async
from contract.keys import Keys
from contract.settings import Settings
from contract.trust import KeyUnusable, public_key
from gateway.preflight import Finding, preflight
from millstream.calls import channel_options
from millstream.local import allocator
from millstream.local.embedded_redis import ServerMissing, default_memory, find_server, memory_limit, ram
from millstream.local.state_dir import Running, StateDir
from millstream.roles import public_key_file

REPLY_BYTES = 330
"""Measured size of a reply key with its overhead."""
SKEW_S = 0.5
"""Deadlines are compared with Redis' clock and this machine's."""

_FIXED = {
    "redis": {(6, 2): 20, (7, 2): 11, (7, 4): 6, (8, 0): 4, (8, 2): 2},
    "valkey": {(7, 2): 11, (8, 0): 6, (8, 1): 4},
}
"""First patch of each series with the fix of CVE-2025-49844, a way out of the Lua sandbox; later series have it."""


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Everything that can be looked at without changing it, one finding at a time."""
    state = StateDir(settings.state_dir)
    running = state.running()
    for finding in _machine(settings, state, running):
        yield finding
    url = settings.redis_url or (running.addresses.get("redis", "") if running else "")
    if not url:
        yield Finding("Redis", "ok", f"nothing runs in {state.path}; `millstream up` starts a server")
        return
    async for finding in _redis(settings, url, running.addresses.get("registry", "") if running else ""):
        yield finding
    if running and (address := running.addresses.get("gateway")):
        yield await _health(address)


def _machine(settings: Settings, state: StateDir, running: Running | None) -> Iterator[Finding]:
    yield Finding("Python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")
    yield Finding("allocator", "ok", allocator.in_words(settings))
    if not settings.redis_url:
        try:
            yield Finding("server", "ok", str(find_server()))
        except ServerMissing as error:
            yield Finding("server", "fail", str(error))
        yield _memory(settings)
    at = state.path if state.path.exists() else state.path.parent
    if not at.is_dir():
        yield Finding("state directory", "fail", f"{at} is not a directory")
    elif not os.access(at, os.W_OK | os.X_OK):
        yield Finding("state directory", "fail", f"{at} can't be written to by this user")
    else:
        detail = f"in use by the `millstream up` of pid {running.pid}" if running else "free"
        yield Finding("state directory", "ok", f"{state.path}, {detail}")
    if not running:
        yield _port(settings.listen)


def _memory(settings: Settings) -> Finding:
    try:
        limit = memory_limit(settings.embedded_maxmemory) if settings.embedded_maxmemory else default_memory(ram())
    except ValueError as error:
        return Finding("memory", "fail", str(error))
    detail = f"{limit // 2**20} MB for the server of {ram() // 2**20} MB in all"
    return Finding("memory", "ok" if limit <= ram() // 2 else "warn", detail)


def _port(listen: str) -> Finding:
    host, _, port = listen.rpartition(":")
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]") or "127.0.0.1", int(port)))
        except (OSError, ValueError, OverflowError) as error:
            return Finding("gateway", "fail", f"{listen} can't be listened on ({error}); choose another with --listen")
    return Finding("gateway", "ok", f"{listen} is free")


async def _redis(settings: Settings, url: str, registry: str) -> AsyncIterator[Finding]:
    keys = Keys(settings.prefix)
    shown = re.sub(r"(//[^/@]*:)[^/@]+@", r"\1***@", url)
    client = connect_async(url)
    try:
        before = time.time()
        told: Any = await client.time()
        skew = told[0] + told[1] / 1e6 - (before + time.time()) / 2
        detail = f"{abs(skew) * 1000:.0f} ms {'ahead of' if skew > 0 else 'behind'} this machine's"
        yield Finding("Redis' clock", "ok" if abs(skew) < SKEW_S else "warn", detail)
        information: Any = await client.info()
        yield _lua(information)
        if finding := _replies(settings, int(information.get("maxmemory", 0))):
            yield finding
        workers = await living_async(client, keys, "worker")
        yield Finding("workers", "ok" if workers else "warn", f"{len(workers)} alive")
        try:
            catalog = Catalog(public_key(public_key_file(settings)))
        except KeyUnusable as error:
            yield Finding("public key", "warn", f"{error}; models can't be checked")
            return
        revision: Any = await client.get(keys.catalog_revision)
        sealed: Any = await client.hgetall(keys.catalog)
        catalog.update(int(revision or 0), sealed)
        async for finding in preflight(settings, client, catalog, registry, shown):
            if finding.subject != "state directory":
                yield finding
    except (*LOST, RedisError) as error:
        yield Finding("Redis", "fail", f"{shown}: {error}")
    finally:
        await client.aclose()


def _lua(information: dict[str, Any]) -> Finding:
    kind = "valkey" if "valkey_version" in information else "redis"
    text = str(information.get(f"{kind}_version", ""))
    numbers = tuple(int(part) for part in re.findall(r"\d+", text)[:3])
    if len(numbers) < 3:
        return Finding("Lua", "warn", f"the server's version is {text!r}: see that it has the fix of CVE-2025-49844")
    series, patch = numbers[:2], numbers[2]
    known = _FIXED[kind]
    if series > max(known) or patch >= known.get((series[0], series[1]), sys.maxsize):
        return Finding("Lua", "ok", f"{kind} {text} has the fix of CVE-2025-49844")
    # A distribution's own build may have it under an older number, as Debian's 7.0.15 does.
    return Finding("Lua", "warn", f"{kind} {text}: see that your build has the fix of CVE-2025-49844")


def _replies(settings: Settings, maxmemory: int) -> Finding | None:
    """How many answers a second the replies' memory holds, at a size the project measured."""
    if not maxmemory:
        return Finding("memory", "warn", "Redis has no maxmemory: a backlog may take the whole machine; set one")
    rate = maxmemory * settings.memory_limit_share / (REPLY_BYTES * settings.reply_ttl_s)
    text = f"replies kept {settings.reply_ttl_s} s fill {maxmemory // 2**20} MB at about {rate:,.0f} answers a second"
    return Finding("memory", "ok" if rate > 1000 else "warn", text)


async def _health(address: str) -> Finding:
    async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=3.0)
        except grpc.aio.AioRpcError as error:
            return Finding("gateway", "fail", f"{address} does not answer: {error.details()}")
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return Finding("gateway", "ok" if status == "SERVING" else "warn", f"{address} says {status}")
