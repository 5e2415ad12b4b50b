"""The registry process: look, promote, answer, until it is told to stop."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path

import anyio
import grpc
import redis.asyncio
import structlog
from anyio import to_thread
from redis.exceptions import RedisError

from contract import trust
from contract.connection import connect_async, show_async
from contract.keys import Keys
from contract.presence import ALL, BEAT_S, Presence, process_name
from contract.settings import Settings
from protos import millstream_v1_pb2_grpc as rpc
from registry.blobs.configured import configured_store
from registry.catalogue.catalogue import Catalogue
from registry.listing import refused_versions
from registry.promotion.gate import Gate
from registry.promotion.promotion import Promotion
from registry.promotion.ruling import OFF, Terms
from registry.service import RegistryService
from registry.trial import Replay, Trial
from registry.watch.artifacts import ArtifactKeys, Progress
from registry.watch.poll import Look, StoreWatch
from registry.watch.publishers import Publishers

_TICK_S = 1.0
_QUICK_TICK_S = 0.1
"""While a version is on its way."""
_FIRST_RETRY_S = 1.0

_log = structlog.get_logger()


class CannotListen(Exception):
    """The address can't be had; the message says which."""


async def run_registry(
    settings: Settings,
    *,
    redis_url: str,
    database: Path,
    private_key: Path,
    listen: str,
    on_ready: Callable[[], None],
    stop: anyio.Event,
    progress: Progress | None = None,
    trial: Trial | None = None,
    replay: Replay | None = None,
    on_problem: Callable[[str], None] | None = None,
) -> None:
    """Runs the registry until `stop` is set; `listen` is `unix:/path` or `host:port`.

    `trial` loads a new version apart from the workers before they are asked to; without one they are the first.
    `replay` has a version answer recorded requests there, for the gate.

    `on_ready` is called once the first look has been taken and its versions are offered to the workers, or models
    are in Redis already where the store can't be reached. Raises StoreUrlError, CatalogueUnusable, KeyUnusable and
    CannotListen before that; later faults are logged, told in ListVersions, and tried again. `on_problem` hears of
    each look that found the store out of reach.
    """
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(configured_store(settings))
        catalogue = await to_thread.run_sync(Catalogue, database)
        stack.callback(catalogue.close)
        key = await to_thread.run_sync(trust.private_key, private_key)
        client = connect_async(redis_url)
        stack.push_async_callback(client.aclose)
        keys = Keys(settings.prefix)
        artifacts = ArtifactKeys(client, keys, settings.chunk_bytes)
        publishers = Publishers(await to_thread.run_sync(trust.publisher_keys, settings.trusted_publishers))
        watch = StoreWatch(store, catalogue, artifacts, database.parent, progress, trial, publishers)
        terms = Terms(settings.gate_policy, settings.gate_rows, settings.gate_changed, settings.gate_tolerance)
        gate = Gate(catalogue, artifacts, terms, settings.event_log, replay)
        if gate.hindrance and (settings.gate_policy != OFF or catalogue.gates):
            _log.info("no recorded requests are replayed before a version takes over", reason=gate.hindrance)
        promotion = Promotion(
            client,
            keys,
            key,
            catalogue,
            watch,
            artifacts,
            load_limit_s=settings.load_limit_s,
            retire_after_s=settings.retire_after_s,
            gate=gate,
        )
        rounds = _Rounds(settings.poll_s, watch, promotion, on_ready, on_problem)
        server = await _serve(listen, RegistryService(catalogue, watch, promotion, rounds.sync, rounds.stir))
        stack.push_async_callback(server.stop, 1.0)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(rounds.run)
            tasks.start_soon(gate.run, rounds.stir)
            tasks.start_soon(_beat, client, keys, catalogue, watch)
            await stop.wait()
            tasks.cancel_scope.cancel()


async def _serve(listen: str, service: RegistryService) -> grpc.aio.Server:
    server = grpc.aio.server()
    rpc.add_RegistryServicer_to_server(service, server)
    try:
        server.add_insecure_port(listen)
    except RuntimeError:
        raise CannotListen(
            f"cannot listen on {listen}: expected a free host:port, or unix:/path of at most 100 characters in "
            f"a folder that exists"
        ) from None
    await server.start()
    return server


class _Rounds:
    """The two loops: looks into the store, and steps of promotion; a failed round never ends them."""

    def __init__(
        self,
        poll_s: float,
        watch: StoreWatch,
        promotion: Promotion,
        on_ready: Callable[[], None],
        on_problem: Callable[[str], None] | None,
    ) -> None:
        self._poll_s = poll_s
        self._watch = watch
        self._promotion = promotion
        self._on_ready = on_ready
        self._on_problem = on_problem
        self._wake = anyio.Event()
        """Set to look into the store now."""
        self._stir = anyio.Event()
        """Set to take the next step of promotion now."""
        self._asked: set[tuple[str, str]] = set()
        self._is_ready = False
        self._failing = ""

    async def run(self) -> None:
        await self._until_adopted()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._poll)
            tasks.start_soon(self._promote)

    async def sync(self) -> Look:
        """A look now; what it found is offered to the workers at the next step."""
        look = await self._watch.look()
        self._promotion.gate.look_again()
        await self._promote_once()
        self._stir.set()
        return look

    def stir(self) -> None:
        """Has the next step of promotion taken now."""
        self._stir.set()

    async def _until_adopted(self) -> None:
        """What stands in Redis counts before the first look: an old or new catalogue must not contradict it."""
        while True:
            try:
                await self._promotion.adopt()
                return
            except (RedisError, OSError) as error:
                self._say_failing(error)
            await anyio.sleep(_FIRST_RETRY_S)

    async def _poll(self) -> None:
        delay = _FIRST_RETRY_S
        while True:
            self._wake = anyio.Event()
            try:
                await self._watch.look()
            except (RedisError, OSError) as error:
                self._say_failing(error)
            except Exception:  # noqa: BLE001 - whatever it was, the next poll comes
                _log.exception("a look into the store failed; the next one follows")
            else:
                self._say_failing(None)
                if self._watch.problem and self._on_problem is not None:
                    self._on_problem(self._watch.problem)
                if not self._watch.problem and not self._watch.supply.wanted:
                    delay = _FIRST_RETRY_S
                self._promotion.gate.look_again()
                await self._promote_once()
                self._stir.set()
                self._say_ready()
            pause = self._poll_s
            if self._watch.problem or self._watch.supply.wanted or self._failing:
                pause = min(delay, self._poll_s)
                delay = min(delay * 2, 30.0)
            if self._watch.problem:
                pause = max(pause, min(self._watch.retry_after, self._poll_s))
            with anyio.move_on_after(pause):
                await self._wake.wait()

    def _say_ready(self) -> None:
        if not self._is_ready and (self._watch.looks or self._promotion.records):
            self._is_ready = True
            self._on_ready()

    async def _promote(self) -> None:
        while True:
            self._stir = anyio.Event()
            moved = await self._promote_once()
            new = self._watch.supply.wanted - self._asked
            self._asked = set(self._watch.supply.wanted)
            if new:
                self._wake.set()
            with anyio.move_on_after(_QUICK_TICK_S if moved or self._promotion.waiting else _TICK_S):
                await self._stir.wait()

    async def _promote_once(self) -> bool:
        try:
            return await self._promotion.tick()
        except (RedisError, OSError) as error:
            self._say_failing(error)
        except Exception:  # noqa: BLE001 - whatever it was, the next step comes
            _log.exception("a step of promotion failed; it is tried again")
        return False

    def _say_failing(self, error: Exception | None) -> None:
        """Says once that Redis does not answer, and once that it does again."""
        said = f"{type(error).__name__}: {error}" if error else ""
        if said and not self._failing:
            _log.error("Redis does not answer as it should; trying on", problem=said)
        elif self._failing and not said:
            _log.info("Redis answers again")
        self._failing = said


async def _beat(client: redis.asyncio.Redis, keys: Keys, catalogue: Catalogue, watch: StoreWatch) -> None:
    """Shows this process as living, and what it refused though it should be in service; takes that back at its end."""
    presence = Presence("registry", process_name(), pid=os.getpid())
    try:
        while True:
            with suppress(RedisError, OSError):  # the loops say so
                revision = int(await client.get(keys.catalog_revision) or 0)
                failed = refused_versions(catalogue)
                alarm = {ALL: f"the store: {watch.problem}"} if watch.problem else {}
                shown = replace(presence, revision=revision, failed=failed, alarm=alarm)
                await show_async(client, shown.beat(keys))
            await anyio.sleep(BEAT_S)
    finally:
        with anyio.move_on_after(1.0, shield=True):
            with suppress(RedisError, OSError):
                await show_async(client, presence.leave(keys))
