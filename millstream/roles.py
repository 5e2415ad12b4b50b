"""The roles a process can have: what each opens, and how it hears that it should stop.

A role takes everything from its settings. `millstream up` starts one process per role (and several workers) with them
in the environment; by hand or in a container the same commands are run with MILLSTREAM_* variables.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import anyio
import structlog

from contract.log import set_up_log
from contract.settings import Settings
from millstream.local.ready import notify_beat, notify_failed, notify_progress, notify_ready, notify_ready_to_beat
from millstream.local.state_dir import StateDir

if TYPE_CHECKING:
    from consumers.audit.heads import Keep
    from gateway.preflight import Finding

log = structlog.get_logger()

ADDRESS = "address "
"""What the gateway's progress line starts with when it says where it listens."""

THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")
"""One thread per worker: the pool is what uses the cores, and more threads change a linear model's last bits."""

_LARGE = 2**20
"""The registry hands artifacts on in chunks, and has nothing to compute with them."""


class RoleFailed(Exception):
    """A process that can't do its part; the message says why and what to do."""


def redis_url(settings: Settings) -> str:
    """Where Redis is: as set, or the embedded server of a running state directory. Raises RoleFailed, NotRunning."""
    if settings.redis_url:
        return settings.redis_url
    running = StateDir(settings.state_dir).require_running()
    return running.addresses["redis"]


def private_key_file(settings: Settings) -> Path:
    """Where the registry keeps its key."""
    return StateDir(settings.state_dir).keys / "registry.key"


def public_key_file(settings: Settings) -> Path:
    """Where gateways and workers take the registry's public key from; never from Redis."""
    return settings.registry_public_key or private_key_file(settings).with_suffix(".pub")


def gateway(settings: Settings) -> None:
    """Serves callers until SIGTERM or SIGINT."""
    from contract.trust import KeyUnusable
    from gateway.app import Gateway, PreflightFailed

    set_up_log(settings, "gateway")

    def ready(address: str) -> None:
        notify_progress(ADDRESS + address)
        notify_ready()

    async def serve() -> None:
        app = Gateway(settings, redis_url(settings), public_key_file(settings), settings.registry_listen)
        async with anyio.create_task_group() as tasks:
            stop = anyio.Event()
            tasks.start_soon(_stop_on_signal, stop)
            await app.run(stop, on_ready=ready, on_finding=_print_finding)
            tasks.cancel_scope.cancel()

    with _in_plain_words(PreflightFailed, KeyUnusable):
        anyio.run(serve, backend_options={"use_uvloop": sys.platform != "win32"})


def worker(settings: Settings) -> None:
    """Predicts until SIGTERM or SIGINT; a pool of processes where the settings ask for several."""
    if settings.workers > 1:
        from millstream.pool import run_pool

        set_up_log(settings, "pool")
        anyio.run(run_pool, settings, redis_url(settings))
        return
    for limit in THREAD_LIMITS:
        os.environ.setdefault(limit, "1")
    # A predict that never lets go of the GIL must not hold up the heartbeat for longer than needed.
    sys.setswitchinterval(0.001)
    from consumers.worker.worker import Worker
    from contract.connection import connect
    from contract.trust import KeyUnusable
    from ingest.features import stored_now
    from ingest.snapshot import Snapshot

    set_up_log(settings, "worker")
    url = redis_url(settings)
    store = connect(settings.features_url or url, timeout_s=max(0.001, settings.features_timeout_ms / 1000))
    snapshot = Snapshot(settings.features_file) if settings.features_file is not None else None
    if snapshot is not None:
        snapshot.open()
    with _in_plain_words(KeyUnusable):
        process = Worker(settings, url, public_key_file(settings), lambda drafts: stored_now(store, snapshot, drafts))
    process.run(_stop_event(), on_ready=notify_ready_to_beat, on_beat=notify_beat)


def sink(settings: Settings, *, accept_gap: bool = False) -> None:
    """Records events until SIGTERM or SIGINT; `accept_gap` lets what is missing at its start be a row of the log."""
    from consumers.sink.database import EventDatabaseError
    from consumers.sink.service import ListenError
    from consumers.sink.sink import run_sink
    from contract.trust import KeyUnusable
    from registry.blobs import StoreUrlError

    set_up_log(settings, "sink")
    state = StateDir(settings.state_dir).create()
    with _in_plain_words(EventDatabaseError, ListenError, KeyUnusable, StoreUrlError):
        run_sink(
            settings,
            redis_url=redis_url(settings),
            database=state.events,
            listen=settings.sink_listen or "127.0.0.1:50053",
            on_ready=notify_ready,
            stop=_stop_event(),
            accept_gap=accept_gap,
            on_alarm=notify_progress,
            keep_segments=_keeper(settings, "events_url", settings.events_url),
            keep_heads=_keeper(settings, "heads_url", settings.heads_url),
        )


def _keeper(settings: Settings, name: str, url: str) -> Keep | None:
    """None where nothing is to be kept elsewhere; `name` is the setting's. Raises StoreUrlError."""
    from millstream.keeping import keeper
    from registry.blobs import StoreUrlError

    try:
        return keeper(settings, url) if url else None
    except StoreUrlError as error:
        raise StoreUrlError(f"{name}: {error}") from None


def registry(settings: Settings) -> None:
    """Watches the blob store until SIGTERM or SIGINT."""
    from consumers.worker.memory import give_back_each
    from contract.trust import KeyUnusable
    from millstream.trial import NoPlaceToListen, replays, trials
    from registry.app import CannotListen, run_registry
    from registry.blobs import StoreError
    from registry.catalogue.catalogue import CatalogueUnusable

    set_up_log(settings, "registry")
    give_back_each(_LARGE)
    state = StateDir(settings.state_dir).create()
    if not settings.store_url:
        _fail("no store is set: --store DIR or azure://container, or MILLSTREAM_STORE_URL")

    async def serve() -> None:
        async with (
            trials(settings, THREAD_LIMITS) as trial,
            replays(settings, THREAD_LIMITS, trial) as other,
            anyio.create_task_group() as tasks,
        ):
            stop = anyio.Event()
            tasks.start_soon(_stop_on_signal, stop)
            await run_registry(
                settings,
                redis_url=redis_url(settings),
                database=state.registry,
                private_key=private_key_file(settings),
                listen=settings.registry_listen or "127.0.0.1:50052",
                on_ready=notify_ready,
                stop=stop,
                trial=trial,
                replay=other.replay,
                on_problem=_out_of_reach,
            )
            tasks.cancel_scope.cancel()

    with _in_plain_words(CatalogueUnusable, KeyUnusable, StoreError, CannotListen, NoPlaceToListen):
        anyio.run(serve)


def trial(settings: Settings) -> NoReturn:
    """Becomes the process that tries versions for a registry; SIGTERM and SIGINT end it at once."""
    from millstream.trial import NoPlaceToListen, serve

    if not settings.trial_address:
        _fail("no place to listen is set: --listen unix:/path, or MILLSTREAM_TRIAL_ADDRESS")
    with _in_plain_words(NoPlaceToListen):
        serve(settings, THREAD_LIMITS, on_ready=notify_ready)


def _out_of_reach(problem: str) -> None:
    # It goes on trying, and the others do their part meanwhile: `up` is not to wait for the store.
    notify_progress(problem)
    notify_ready()


async def _stop_on_signal(stop: anyio.Event) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for _ in signals:
            stop.set()


def _stop_event() -> threading.Event:
    """Set by SIGTERM or SIGINT; from a thread, since a handler interrupts whoever holds the event's lock just now."""
    stop = threading.Event()
    told, tell = os.pipe()

    def wait() -> None:
        os.read(told, 1)
        stop.set()

    def on_signal(_number: int, _frame: object) -> None:
        os.write(tell, b"x")

    threading.Thread(target=wait, name="stop", daemon=True).start()
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    return stop


def _print_finding(finding: Finding) -> None:
    sys.stderr.write(f"preflight {finding}\n")
    sys.stderr.flush()


@contextmanager
def _in_plain_words(*known: type[Exception]) -> Iterator[None]:
    """Turns what is known to keep a role from its part into RoleFailed, where it comes from a task group too."""
    try:
        yield
    except known as error:
        _fail(str(error))
    except ExceptionGroup as group:
        found, rest = group.split(known)
        if found is None or rest is not None:
            raise
        _fail(str(_first(found)))


def _first(error: Exception) -> Exception:
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error


def _fail(reason: str) -> NoReturn:
    notify_failed(reason)
    raise RoleFailed(reason) from None


ROLES: dict[str, Callable[[Settings], None]] = {
    "gateway": gateway,
    "worker": worker,
    "sink": sink,
    "registry": registry,
    "trial": trial,
}
