"""`millstream up`: everything on one machine, started in order and stopped in order.

redis (embedded) -> registry, sink -> workers -> gateway
stop: gateway, workers, sink and registry, redis

The console gets a line for each thing that its person may want to know; what the supervisor does in detail is in
logs/up.log, and what each child says in a log of its own beside it.
"""

from __future__ import annotations

import contextlib
import errno
import math
import shlex
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

import anyio
import anyio.to_thread
import grpc
from anyio.streams.text import TextReceiveStream
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.exceptions import BusyLoadingError, RedisError

from contract.connection import connect
from contract.settings import Settings
from millstream import pool
from millstream.calls import channel_options
from millstream.local import allocator
from millstream.local.child import Child
from millstream.local.embedded_redis import EmbeddedServer, Lifeline
from millstream.local.life import ending
from millstream.local.log_file import logged_to
from millstream.local.state_dir import StateDir
from millstream.local.state_lock import StateLock
from millstream.local.supervisor import Supervisor
from millstream.roles import ADDRESS, RoleFailed
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc

HEALTH_EVERY_S = 0.1
NOTHING_S = 1.0
"""How long health is waited for where the registry has nothing that could be served."""
REGISTRY_S = 5.0
ON_THE_WAY = ("live", "loading", "waiting")
"""States of versions that answer or are going to."""
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
    began: float = field(default_factory=time.monotonic)
    stopping: bool = False

    @property
    def gateway(self) -> str:
        return self.addresses["gateway"]

    def pids(self, role: str) -> list[int]:
        """Processes that serve, and whose name is the role, or starts with it and a number."""
        return [
            standing.pid
            for standing in self.supervisor.standings()
            if standing.pid is not None
            and standing.state == "serving"
            and (standing.name == role or standing.name.startswith(f"{role}-"))
        ]

    async def versions(self) -> list[v1.VersionInfo] | None:
        """Every version that the registry knows; None where it does not answer."""
        address = self.addresses["registry"]
        async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
            stub: Any = v1_grpc.RegistryStub(channel)
            with contextlib.suppress(grpc.aio.AioRpcError):
                return list((await stub.ListVersions(v1.ListVersionsRequest(), timeout=REGISTRY_S)).versions)
        return None

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
async def running(settings: Settings, say: Say, *, accept_gap: bool = False) -> AsyncIterator[House]:
    """Everything up, until the block is left; `say` gets a line for each step, and one for each child that dies.

    `accept_gap` is the sink's, at its first start.

    Without a store in the settings the stock models are served.
    Raises StateDirError, ServerMissing, ChildFailed, RoleFailed.
    """
    began = time.monotonic()
    state = StateDir(settings.state_dir).create()
    async with contextlib.AsyncExitStack() as stack:
        lock = stack.enter_context(StateLock.take(state, on_wait=say))
        _check_listen(settings.listen)
        stack.enter_context(logged_to(state.logs / "up.log", settings.log_level))
        if not settings.store_url:
            stock = await _stock(state, say)
            settings = settings.model_copy(update={"store_url": str(stock)})
        lifeline = stack.enter_context(Lifeline())
        sockets = lock.sockets
        house: House
        dead_since: dict[str, float] = {}

        async def died(name: str, pid: int, returncode: int) -> None:
            # A child that never served has no standing any more: `start` raises why.
            if not house.stopping and any(standing.name == name for standing in supervisor.standings()):
                dead_since.setdefault(name, time.monotonic())
                say(f"{name:<10}pid {pid} {ending(returncode)}; starting it again (log: {state.logs / name}.log)")
            await pool.reap(settings, house.addresses["redis"], name, pid, returncode)

        def serves(name: str, pid: int) -> None:
            if since := dead_since.pop(name, None):
                say(f"{name:<10}pid {pid} is in its place after {time.monotonic() - since:.1f} s")

        def progress(name: str, text: str) -> None:
            if text.startswith(ADDRESS):
                house.addresses["gateway"] = text.removeprefix(ADDRESS)
            else:
                say(f"{name:<10}{text}")

        supervisor = Supervisor(
            state.logs,
            fds=(lifeline.write_fd, lock.fd),
            on_death=died,
            on_progress=progress,
            on_serving=serves,
        )
        house = House(settings, supervisor, began=began)
        await stack.enter_async_context(supervisor)
        stack.push_async_callback(_stop, house, say)

        if settings.redis_url:
            await anyio.to_thread.run_sync(_reach, settings.redis_url)
            house.addresses["redis"] = settings.redis_url
        else:
            server = EmbeddedServer.prepare(
                state, sockets.redis, fsync=settings.embedded_fsync, maxmemory=settings.embedded_maxmemory
            )
            say(f"redis     {server.binary.name}, AOF {server.fsync}, maxmemory {server.maxmemory // 2**20} MB")
            keeper = server.child(lifeline, lock.fd, env=allocator.preloading(settings))
            await supervisor.start(keeper, ready_within=LOAD_REDIS_S)
            house.addresses["redis"] = server.url
        if allocator.preloading(settings):
            say(f"allocator {allocator.in_words(settings)}")
        house.addresses["registry"] = f"unix:{sockets.registry}"
        house.addresses["event_log"] = f"unix:{sockets.sink}"

        told = settings.model_copy(
            update={
                "state_dir": state.path,
                "redis_url": house.addresses["redis"],
                "registry_listen": house.addresses["registry"],
                "sink_listen": house.addresses["event_log"],
                "event_log": house.addresses["event_log"],
                # Worth little beside what it is about, and better than nothing until another place is named.
                "heads_url": settings.heads_url or str(state.path),
                "log_format": "json",
            }
        )
        say(f"registry  {settings.store_url}, looked into every {settings.poll_s:g} s")
        say("sink      " + str(state.events))
        sink = _role("sink", told)
        first = replace(sink, argv=(*sink.argv, "--accept-gap")) if accept_gap else sink
        await _start_together(supervisor, [_role("registry", told, "run"), first], told.load_silence_s)
        supervisor.revise(sink)  # Another one in its place has no gap to accept.
        say(f"workers   {settings.workers}")
        await _start_together(supervisor, pool.workers(told, settings.workers), told.load_silence_s)
        gateway = _role("gateway", told)
        await supervisor.start(gateway, ready_within=60.0)
        # The port it took is what callers know by now: another gateway in its place listens there again.
        supervisor.revise(replace(gateway, env={**gateway.env, "MILLSTREAM_LISTEN": house.gateway}))
        lock.announce(house.addresses)
        say(f"gateway   {house.gateway}")
        yield house


def up(
    settings: Settings,
    *,
    store: str = "",
    quiet: bool = False,
    accept_gap: bool = False,
    on_serving: Callable[[House], None] | None = None,
) -> int:
    """Runs until SIGTERM or SIGINT, then drains; the exit code. Without a store the stock models are served.

    `on_serving` is called once every production model answers. A second signal ends everything at once.

    Raises StateDirError, ServerMissing, ChildFailed, RoleFailed.
    """
    say = _quiet if quiet else _tell
    settings = settings.model_copy(update={"store_url": store})
    anyio.run(_until_stopped, settings, say, on_serving, accept_gap)
    return 0


async def _until_stopped(
    settings: Settings, say: Say, on_serving: Callable[[House], None] | None, accept_gap: bool
) -> None:
    houses: list[House] = []
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with anyio.create_task_group() as tasks:
            work = anyio.CancelScope()

            async def until_told() -> None:
                async for _ in signals:
                    if not work.cancel_called:
                        say("stopping: what was accepted is finished first; a second Ctrl-C ends it now")
                        work.cancel()
                    else:
                        for house in houses:
                            house.supervisor.kill()

            tasks.start_soon(until_told)
            with work:
                async with running(settings, say, accept_gap=accept_gap) as house:
                    houses.append(house)
                    await _until_serving(house, say)
                    if on_serving:
                        on_serving(house)
                    await anyio.sleep_forever()
            tasks.cancel_scope.cancel()


async def _until_serving(house: House, say: Say) -> None:
    """Says what is not served and why, and when everything else is, however long that takes."""
    state = f"--state-dir {shlex.quote(str(house.settings.state_dir))}"
    listed = await house.versions()
    for version in listed or ():
        if version.state == "refused":
            name = f"{version.model_id} {version.version}".strip() or version.location
            say(f"registry  {name} is not served: {version.problem}")
    comes = listed is None or any(version.state in ON_THE_WAY for version in listed)
    if not await house.serving(within_s=house.settings.load_limit_s if comes else NOTHING_S):
        what = "not every model is live yet" if comes else "there is no model to serve yet"
        say(f"waiting   {what}; `millstream registry list {state}` says more")
        await house.serving(within_s=math.inf)
    took = time.monotonic() - house.began
    say(f"serving   after {took:.1f} s; ask it: millstream predict {state}")


async def _stock(state: StateDir, say: Say) -> Path:
    """The stock models in the state directory, which is ours by now. Raises RoleFailed.

    Trained by a process of their own: what that takes would stay with this one for as long as it runs.
    """
    models = state.path / "models"
    command = (sys.executable, "-m", "millstream", "stock", str(models))
    # Ctrl-C is this process's to hear; it ends that one.
    async with await anyio.open_process(command, stdout=DEVNULL, start_new_session=True) as training:
        assert training.stderr is not None
        told = ""
        async for text in TextReceiveStream(training.stderr, errors="replace"):
            *lines, told = (told + text).split("\n")
            for line in lines:
                say(f"models    {line}")
        if await training.wait():
            raise RoleFailed("the stock models can't be written; bring models of your own with --store DIR")
    return models


def _tell(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def _quiet(_text: str) -> None:
    pass


async def _stop(house: House, say: Say) -> None:
    """In order, so that the last of the work finds everything it needs."""
    house.stopping = True
    with anyio.CancelScope(shield=True):
        names = [standing.name for standing in house.supervisor.standings()]
        if not names:
            return
        order = [
            ["gateway"],
            [name for name in names if name.startswith("worker-")],
            ["sink", "registry"],
            ["redis"],
        ]
        await house.supervisor.stop(order, grace=house.settings.drain_s + 2)
        say("stopped")


def _check_listen(listen: str) -> None:
    """Refuses an address that is taken before anything is started. Raises RoleFailed."""
    host, _, port = listen.rpartition(":")
    if listen.startswith("unix:"):
        return
    if not (host and port.isascii() and port.isdigit() and int(port) < 2**16):
        raise RoleFailed(f"expected HOST:PORT to listen on, got {listen!r}: choose another with --listen")
    try:
        places = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        for family, kind, proto, _name, place in places:
            with socket.socket(family, kind, proto) as trial:
                trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                trial.bind(place)
    except socket.gaierror as error:
        raise RoleFailed(f"{listen} can't be listened on ({error.strerror}): choose another with --listen") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            what = "another program listens there; end it"
        elif error.errno == errno.EACCES:
            what = "this user may not listen there; take a port above 1023"
        else:
            what = f"{error.strerror}; take an address of this machine"
        raise RoleFailed(f"{listen} can't be listened on: {what}, or choose another with --listen") from None


def _reach(url: str) -> None:
    """Refuses a Redis that does not answer. Raises RoleFailed."""
    try:
        with connect(url) as client:
            client.ping()
    except BusyLoadingError:
        pass  # It will be there soon, and everybody waits for it.
    except (RedisError, OSError, ValueError) as error:
        from gateway.app import redacted

        raise RoleFailed(
            f"Redis at {redacted(url)} can't be used: {str(error).rstrip('.')}; "
            "start it, or leave out --redis-url to have one started"
        ) from None


async def _start_together(supervisor: Supervisor, children: list[Child], silence_s: float) -> None:
    async with anyio.create_task_group() as starts:
        for child in children:
            starts.start_soon(_start, supervisor, child, silence_s)


async def _start(supervisor: Supervisor, child: Child, silence_s: float) -> None:
    await supervisor.start(child, ready_within=silence_s)


def _role(name: str, settings: Settings, *words: str) -> Child:
    """A role as a child; recognisable by its command line."""
    faster = {} if name == "registry" else allocator.preloading(settings)
    return Child(
        name=name,
        argv=(sys.executable, "-m", "millstream", name, *words, "--state-dir", str(settings.state_dir)),
        env={**settings.environment(), **faster},
        orphan_signal=signal.SIGTERM,
    )
