"""`millstream up`: everything on one machine, started in order and stopped in order.

redis (embedded) -> registry, sink -> workers -> gateway
stop: gateway, workers, sink and registry, redis
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.settings import Settings
from millstream import pool
from millstream.local.child import Child
from millstream.local.embedded_redis import EmbeddedServer, Lifeline
from millstream.local.state_dir import StateDir
from millstream.local.state_lock import StateLock
from millstream.local.supervisor import Supervisor
from millstream.roles import ADDRESS

log = structlog.get_logger()

HEALTH_EVERY_S = 0.1
LOAD_REDIS_S = 60.0
"""Longest silence of the embedded server while it loads its append-only file."""

Say = Callable[[str], None]


@dataclass(slots=True)
class House:
    """A running Millstream on this machine."""

    settings: Settings
    supervisor: Supervisor
    addresses: dict[str, str] = field(default_factory=dict)
    """gateway, redis, event_log, registry."""

    @property
    def gateway(self) -> str:
        return self.addresses["gateway"]

    def pids(self, role: str) -> list[int]:
        """Living processes whose name is the role, or starts with it and a number."""
        return [
            standing.pid
            for standing in self.supervisor.standings()
            if standing.pid is not None and (standing.name == role or standing.name.startswith(f"{role}-"))
        ]

    async def serving(self, within_s: float) -> bool:
        """Whether the gateway's health came to SERVING in time."""
        with anyio.move_on_after(within_s):
            async with grpc.aio.insecure_channel(self.gateway) as channel:
                stub = health_pb2_grpc.HealthStub(channel)
                while True:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=2.0)
                        if answer.status == health_pb2.HealthCheckResponse.SERVING:
                            return True
                    await anyio.sleep(HEALTH_EVERY_S)
        return False


@contextlib.asynccontextmanager
async def running(settings: Settings, say: Say) -> AsyncIterator[House]:
    """Everything up, until the block is left; `say` gets a line for each step.

    Raises StateDirError, ServerMissing, ChildFailed.
    """
    state = StateDir(settings.state_dir).create()
    async with contextlib.AsyncExitStack() as stack:
        lock = stack.enter_context(StateLock.take(state, on_wait=say))
        lifeline = stack.enter_context(Lifeline())
        sockets = lock.sockets
        house: House

        async def died(name: str, pid: int, returncode: int) -> None:
            await pool.reap(settings, house.addresses["redis"], name, pid, returncode)

        def progress(name: str, text: str) -> None:
            if text.startswith(ADDRESS):
                house.addresses["gateway"] = text.removeprefix(ADDRESS)
            else:
                say(f"{name}: {text}")

        supervisor = Supervisor(state.logs, fds=(lifeline.write_fd, lock.fd), on_death=died, on_progress=progress)
        house = House(settings, supervisor)
        await stack.enter_async_context(supervisor)
        stack.push_async_callback(_stop, house, say)

        if settings.redis_url:
            house.addresses["redis"] = settings.redis_url
        else:
            server = EmbeddedServer.prepare(
                state, sockets.redis, fsync=settings.embedded_fsync, maxmemory=settings.embedded_maxmemory
            )
            say(f"redis     {server.binary.name}, AOF {server.fsync}, maxmemory {server.maxmemory // 2**20} MB")
            await supervisor.start(server.child(lifeline, lock.fd), ready_within=LOAD_REDIS_S)
            house.addresses["redis"] = server.url
        house.addresses["registry"] = f"unix:{sockets.registry}"
        house.addresses["event_log"] = f"unix:{sockets.sink}"

        told = settings.model_copy(
            update={
                "state_dir": state.path,
                "redis_url": house.addresses["redis"],
                "registry_listen": house.addresses["registry"],
                "sink_listen": house.addresses["event_log"],
                "log_format": "json",
            }
        )
        say(f"registry  {settings.store_url}, looked into every {settings.poll_s:g} s")
        say("sink      " + str(state.events))
        await _start_together(supervisor, [_role("registry", told, "run"), _role("sink", told)])
        say(f"workers   {settings.workers}")
        await _start_together(supervisor, pool.workers(told, settings.workers))
        await supervisor.start(_role("gateway", told), ready_within=60.0)
        lock.announce(house.addresses)
        say(f"gateway   {house.gateway}")
        yield house


def up(
    settings: Settings, *, store: str = "", quiet: bool = False, on_serving: Callable[[House], None] | None = None
) -> int:
    """Runs until SIGTERM or SIGINT, then drains; the exit code. Without a store the stock models are served.

    `on_serving` is called once every production model answers.

    Raises StateDirError, ServerMissing, ChildFailed.
    """
    say = _quiet if quiet else _tell
    settings = settings.model_copy(update={"store_url": store or str(_stock(settings, say))})
    anyio.run(_until_stopped, settings, say, on_serving)
    return 0


async def _until_stopped(settings: Settings, say: Say, on_serving: Callable[[House], None] | None) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:

            async def until_told() -> None:
                async for _ in signals:
                    say("stopping: what was accepted is finished first")
                    tasks.cancel_scope.cancel()
                    return

            tasks.start_soon(until_told)
            async with running(settings, say) as house:
                if await house.serving(within_s=settings.load_limit_s):
                    say(f"serving   ask it: millstream predict --state-dir {settings.state_dir}")
                    if on_serving:
                        on_serving(house)
                else:
                    state = f"--state-dir {settings.state_dir}"
                    say(f"waiting   no model is live, or not every one; `millstream registry list {state}` says why")
                await anyio.sleep_forever()


def _stock(settings: Settings, say: Say) -> Path:
    """The stock models in the state directory."""
    from millstream.stock import write_stock

    models = StateDir(settings.state_dir).create().path / "models"
    write_stock(models, progress=lambda line: say(f"models    {line}"))
    return models


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _quiet(_text: str) -> None:
    pass


async def _stop(house: House, say: Say) -> None:
    """In order, so that the last of the work finds everything it needs."""
    with anyio.CancelScope(shield=True):
        names = [standing.name for standing in house.supervisor.standings()]
        order = [
            ["gateway"],
            [name for name in names if name.startswith("worker-")],
            ["sink", "registry"],
            ["redis"],
        ]
        await house.supervisor.stop(order, grace=house.settings.drain_s + 2)
        say("stopped")


async def _start_together(supervisor: Supervisor, children: list[Child]) -> None:
    async with anyio.create_task_group() as starts:
        for child in children:
            starts.start_soon(_start, supervisor, child)


async def _start(supervisor: Supervisor, child: Child) -> None:
    await supervisor.start(child, ready_within=pool.LOAD_S)


def _role(name: str, settings: Settings, *words: str) -> Child:
    """A role as a child; recognisable by its command line."""
    return Child(
        name=name,
        argv=(sys.executable, "-m", "millstream", name, *words, "--state-dir", str(settings.state_dir)),
        env=settings.environment(),
        orphan_signal=signal.SIGTERM,
    )
