"""Redis connections, made one way everywhere: no hidden retries, which would append twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from contract.keys import GROUP, Keys
from contract.presence import Presence
from contract.scripts import EVEN_FULL, Script

Argument = str | bytes | int | float
LOST = (RedisConnectionError, RedisTimeoutError, OSError)
"""What a server that is gone or slow raises; the command may or may not have run."""


def connect(url: str, *, timeout_s: float = 5.0) -> redis.Redis:
    """A client for threads. A blocking read needs one of its own, with `timeout_s` above its BLOCK."""
    return redis.Redis.from_url(
        url, socket_timeout=timeout_s, socket_connect_timeout=5.0, retry=Retry(NoBackoff(), 0), health_check_interval=0
    )


def connect_async(url: str, *, timeout_s: float | None = 5.0, connections: int = 32) -> redis.asyncio.Redis:
    """A client for an event loop; more commands at once than `connections` wait for one."""
    pool: redis.asyncio.BlockingConnectionPool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        socket_timeout=timeout_s,
        socket_connect_timeout=5.0,
        retry=AsyncRetry(NoBackoff(), 0),
        health_check_interval=0,
        max_connections=connections,
        timeout=timeout_s,
    )
    return redis.asyncio.Redis.from_pool(pool)


def run(client: redis.Redis, script: Script, keys: Sequence[str], arguments: Sequence[Argument]) -> Any:
    """Runs a script, loading it where the server does not know it yet (it was restarted, or flushed)."""
    try:
        return client.evalsha(script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return client.eval(script.source, len(keys), *keys, *arguments)


async def run_async(
    client: redis.asyncio.Redis, script: Script, keys: Sequence[str], arguments: Sequence[Argument]
) -> Any:
    """The same on an event loop."""
    try:
        return await client.evalsha(script.sha, len(keys), *keys, *arguments)
    except NoScriptError:
        return await client.eval(script.source, len(keys), *keys, *arguments)


def ensure_groups(client: redis.Redis, keys: Keys, model_id: str) -> None:
    """Makes the consumer groups of both lanes; from 0, so that what was appended before is read too."""
    names = keys.model(model_id)
    for stream in (names.requests, names.bulk):
        try:
            # A full server would refuse the command by itself, even where the group is there.
            run(client, EVEN_FULL, [stream], ["XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM"])
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise


def living(client: redis.Redis, keys: Keys, role: str) -> list[Presence]:
    """The processes of a role that beat within the last seconds."""
    names = _names(client.zrange(keys.roll(role), 0, -1))
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.hget(keys.presence(role, name), "body")
    return _decoded(role, names, pipe.execute())


async def living_async(client: redis.asyncio.Redis, keys: Keys, role: str) -> list[Presence]:
    """The same on an event loop."""
    names = _names(await client.zrange(keys.roll(role), 0, -1))
    pipe = client.pipeline(transaction=False)
    for name in names:
        pipe.hget(keys.presence(role, name), "body")
    return _decoded(role, names, await pipe.execute())


def _names(members: Any) -> list[str]:
    return [name.decode() for name in members]


def _decoded(role: str, names: Iterable[str], bodies: Iterable[bytes | None]) -> list[Presence]:
    return [Presence.decode(role, name, body) for name, body in zip(names, bodies, strict=True) if body is not None]


def show(client: redis.Redis, commands: Iterable[tuple[Argument, ...]]) -> None:
    """Sends the commands of a presence in one round trip; a full server takes them too."""
    pipe = client.pipeline(transaction=False)
    for command in commands:
        pipe.eval(EVEN_FULL.source, 1, str(command[1]), *command)
    pipe.execute()


async def show_async(client: redis.asyncio.Redis, commands: Iterable[tuple[Argument, ...]]) -> None:
    """The same on an event loop."""
    pipe = client.pipeline(transaction=False)
    for command in commands:
        pipe.eval(EVEN_FULL.source, 1, str(command[1]), *command)
    await pipe.execute()
