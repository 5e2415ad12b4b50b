"""The gateway process: opens what the Predictor needs, keeps it fresh, and drains when it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import redis.asyncio
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from redis.exceptions import RedisError

from contract.catalog import Catalog
from contract.collector import settled
from contract.connection import connect_async, living_async, show_async
from contract.keys import Keys
from contract.line import AsyncLine
from contract.overload import pools
from contract.presence import BEAT_S, Presence, process_name
from contract.settings import Settings
from contract.trust import public_key
from gateway import engines
from gateway.health import serving
from gateway.models import engines_of
from gateway.predictor import SERVICE, Predictor
from gateway.preflight import Finding, preflight
from gateway.waiters import Waiters
from gateway.withdrawals import Withdrawals
from ingest.entrance import Entrance
from ingest.features import FeatureStore
from ingest.snapshot import AsyncSnapshot, Snapshot

CATALOG_S = 0.1
MEMORY_S = 0.5
BEHIND_S = 60.0
"""How often it is said that the event log is far behind."""
CONNECT_S = 30.0
FLUSH_S = 0.1

log = structlog.get_logger()


class PreflightFailed(Exception):
    """The gateway can't serve as it is configured; the message says why."""


def redacted(url: str) -> str:
    """A URL without its password."""
    return re.sub(r"(://[^:@/]*:)[^@/]+@", r"\1***@", url)


class Gateway:
    """One gateway process; `run` serves until `stop` is set."""

    def __init__(self, settings: Settings, redis_url: str, key_file: Path, registry: str) -> None:
        self.settings = settings
        self.name = process_name()
        self.keys = Keys(settings.prefix)
        self._url = redis_url
        self._registry = registry
        self._key_file = key_file
        self._served: set[str] = set()
        self._all_served = False
        self._behind_told_at = -math.inf

    async def run(
        self, stop: anyio.Event, *, on_ready: Callable[[str], None], on_finding: Callable[[Finding], None]
    ) -> None:
        """Serves; `on_ready` gets the address. Raises PreflightFailed, KeyUnusable."""
        settings = self.settings
        try:
            engine = engines.chosen(settings.engine)
        except engines.EngineMissing as error:
            raise PreflightFailed(str(error)) from None
        async with contextlib.AsyncExitStack() as stack:
            client = connect_async(self._url)
            stack.push_async_callback(client.aclose)
            line = AsyncLine(self._url)
            store_url = settings.features_url or self._url
            store = connect_async(store_url, timeout_s=max(1.0, settings.features_timeout_ms / 1000))
            stack.push_async_callback(store.aclose)
            snapshot = None
            if settings.features_file is not None:
                snapshot = AsyncSnapshot(Snapshot(settings.features_file))
                stack.callback(snapshot.close)
                await snapshot.open()

            await self._reach(client)
            self.catalog = Catalog(public_key(self._key_file), max_rows=settings.max_rows)
            self.waiters = Waiters(client, self._url, self.keys, self.name)
            self.entrance = Entrance(line, self.keys, settings)
            withdrawals = Withdrawals(client, self.keys, self.name)
            predictor = self.predictor = Predictor(
                settings=settings,
                name=self.name,
                client=client,
                catalog=self.catalog,
                entrance=self.entrance,
                waiters=self.waiters,
                withdrawals=withdrawals,
                features=FeatureStore(store, settings.features_timeout_ms / 1000, snapshot),
            )
            await self._refresh(client)
            async for finding in preflight(settings, client, self.catalog, self._registry, redacted(self._url)):
                on_finding(finding)
                if finding.verdict == "fail":
                    raise PreflightFailed(f"{finding.subject}: {finding.detail}")

            server = engines.server(engine, settings.max_message_bytes)
            predictor.register(server)
            self._health: Any = health.aio.HealthServicer()
            health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
            names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, server)
            await self._set_health("", serves=False)
            try:
                port = server.add_insecure_port(settings.listen)
            except RuntimeError:
                raise PreflightFailed(
                    f"{settings.listen} can't be listened on: in use, or not of this machine"
                ) from None

            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._forever, "catalogue", CATALOG_S, self._refresh, client)
                tasks.start_soon(self._forever, "presence", BEAT_S, self._beat, client)
                tasks.start_soon(self._forever, "health", 0.25, self._look_at_workers, client)
                tasks.start_soon(self._forever, "memory", MEMORY_S, self._look_at_memory, client)
                tasks.start_soon(line.keep)
                tasks.start_soon(self.waiters.line.keep)
                tasks.start_soon(self.waiters.sweep_forever)
                stack.enter_context(settled())
                await server.start()
                address = f"{settings.listen.rpartition(':')[0]}:{port}"
                log.info("gateway listens", address=address, engine=engine)
                on_ready(address)
                await stop.wait()
                log.info("gateway drains", waiting=len(self.waiters))
                predictor.draining = True
                await self._health.enter_graceful_shutdown()
                await server.stop(await self._finish(settings.drain_s))
                await self.entrance.drain()
                await withdrawals.drain()
                tasks.cancel_scope.cancel()
            with contextlib.suppress(RedisError, OSError):
                await show_async(client, self._presence().leave(self.keys))

    async def _finish(self, most_s: float) -> float:
        """Waits until nobody waits any more, `most_s` at most; what is left of that for the engine, in seconds."""
        began = time.monotonic()
        with anyio.move_on_after(most_s):
            await self.waiters.drain()
            # An engine may close its connections with the last answers still unsent.
            await asyncio.sleep(FLUSH_S)
        return max(FLUSH_S, most_s - (time.monotonic() - began))

    async def _reach(self, client: redis.asyncio.Redis) -> None:
        """Waits for a server that is still starting, loading its AOF, say."""
        with anyio.move_on_after(CONNECT_S):
            told = False
            while True:
                try:
                    await client.ping()
                    return
                except (RedisError, OSError) as error:
                    if not told:
                        log.warning("waiting for Redis", url=redacted(self._url), error=str(error))
                        told = True
                    await anyio.sleep(0.2)
        raise PreflightFailed(f"Redis at {redacted(self._url)} could not be reached within {CONNECT_S:g} s")

    async def _forever(self, what: str, every_s: float, act: Callable[[redis.asyncio.Redis], Any], client: Any) -> None:
        """Repeats an act; one failure is said once and never ends it."""
        failing = False
        while True:
            try:
                await act(client)
                if failing:
                    log.info(f"{what} is fresh again")
                failing = False
            except (RedisError, OSError) as error:
                if not failing:
                    log.warning(f"{what} can't be refreshed; trying on", error=str(error))
                failing = True
            except Exception:
                # Whatever somebody put into Redis must not end the gateway.
                if not failing:
                    log.exception(f"{what} can't be understood; trying on")
                failing = True
            await asyncio.sleep(every_s)

    async def _refresh(self, client: redis.asyncio.Redis) -> None:
        revision = int(await client.get(self.keys.catalog_revision) or 0)
        if revision == self.catalog.revision:
            return
        sealed: Any = await client.hgetall(self.keys.catalog)
        for model_id, why in self.catalog.update(revision, sealed).items():
            log.error("a record is not used", model_id=model_id, why=why)
        self.waiters.offer(self.catalog.records)

    def _presence(self) -> Presence:
        return Presence(role="gateway", name=self.name, revision=self.catalog.revision, pid=os.getpid())

    async def _beat(self, client: redis.asyncio.Redis) -> None:
        await show_async(client, self._presence().beat(self.keys))

    async def _look_at_workers(self, client: redis.asyncio.Redis) -> None:
        try:
            workers = await living_async(client, self.keys, "worker")
        except (RedisError, OSError):
            # Without Redis nobody is answered.
            for service in ("", SERVICE, *(f"{SERVICE}/{model_id}" for model_id in self.catalog.records)):
                await self._set_health(service, serves=False)
            raise
        models = list(self.catalog.records)
        names = [self.keys.model(model_id).rows_requests for model_id in models]
        counts: Any = await client.mget(names) if names else []
        rows = {model_id: int(count or 0) for model_id, count in zip(models, counts, strict=True)}
        self.predictor.pools = pools(workers, rows)
        self.predictor.engines = engines_of(workers)
        states = serving(self.catalog.records, workers, self._served)
        for model_id, serves in states.items():
            if serves:
                self._served.add(model_id)
            await self._set_health(f"{SERVICE}/{model_id}", serves=serves)
        if not self._all_served:
            # At first everything found must serve, unless all its versions were refused; later what is still loading
            # does not count.
            found = [serves for model_id, serves in states.items() if self.catalog.records[model_id].versions]
            self._all_served = bool(found) and all(found)
            whole = self._all_served
        else:
            live = [model_id for model_id, record in self.catalog.records.items() if record.live is not None]
            whole = bool(live) and all(states[model_id] for model_id in live)
        await self._set_health("", serves=whole)
        await self._set_health(SERVICE, serves=whole)

    async def _set_health(self, service: str, *, serves: bool) -> None:
        state = health_pb2.HealthCheckResponse
        await self._health.set(service, state.SERVING if serves else state.NOT_SERVING)

    async def _look_at_memory(self, client: redis.asyncio.Redis) -> None:
        memory: Any = await client.info("memory")
        limit = int(memory.get("maxmemory", 0))
        full = limit > 0 and int(memory["used_memory"]) > limit * self.settings.memory_limit_share
        if full != self.entrance.store_full:
            log.warning("Redis is nearly full; new requests are refused" if full else "Redis has room again")
        self.entrance.store_full = full
        await self._look_at_events(client)

    async def _look_at_events(self, client: redis.asyncio.Redis) -> None:
        """What the sink has not committed stays in the streams, which must not grow for ever."""
        pipe = client.pipeline(transaction=False)
        for model_id in self.catalog.records:
            pipe.xlen(self.keys.model(model_id).events)
        lengths = await pipe.execute(raise_on_error=False)
        backlog = sum(length for length in lengths if isinstance(length, int))
        most = self.settings.max_event_backlog
        behind, now = backlog > most, time.monotonic()
        if behind and now >= self._behind_told_at + BEHIND_S:
            self._behind_told_at = now
            log.error(
                "the event log is far behind: is the sink running?",
                entries=backlog,
                max_event_backlog=most,
                new_requests="refused" if self.settings.event_backlog_policy == "refuse" else "served",
            )
        elif not behind and self._behind_told_at > -math.inf:
            self._behind_told_at = -math.inf
            log.info("the event log has caught up", entries=backlog)
        self.entrance.log_behind = behind and self.settings.event_backlog_policy == "refuse"
