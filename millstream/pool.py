"""The pool: worker processes, restarted when they die, their entries handed over the moment they do."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import structlog
from redis.exceptions import RedisError

from consumers.worker.leases import hand_over
from contract.connection import connect
from contract.keys import Keys
from contract.presence import consumer_prefix
from contract.settings import Settings
from millstream.local.allocator import preloading
from millstream.local.child import Child
from millstream.local.ready import notify_ready
from millstream.local.state_dir import StateDir
from millstream.local.supervisor import Supervisor

log = structlog.get_logger()


def workers(settings: Settings, count: int) -> list[Child]:
    """The children of a pool, `worker-1` and on."""
    environment = {**settings.environment(), **preloading(settings), "MILLSTREAM_WORKERS": "1"}
    # A child's variables are the same in each of its lives: who takes a dead worker's place has its slot.
    return [
        Child(
            name=f"worker-{number}",
            argv=(sys.executable, "-m", "millstream", "worker", "--state-dir", str(settings.state_dir)),
            env={**environment, "MILLSTREAM_SLOT": str(number)},
            orphan_signal=signal.SIGTERM,
        )
        for number in range(1, count + 1)
    ]


async def reap(settings: Settings, url: str, name: str, pid: int, returncode: int) -> None:
    """Hands over what a dead worker held; the lease is only for machines that are lost."""
    if not name.startswith("worker-"):
        return
    try:
        moved = await anyio.to_thread.run_sync(_hand_over, settings, url, pid)
    except (RedisError, OSError) as error:
        log.warning("a dead worker's entries wait for their lease", worker=name, pid=pid, error=str(error))
        return
    if moved or returncode:
        log.warning("a worker died; its entries were handed over", worker=name, pid=pid, code=returncode, entries=moved)


def _hand_over(settings: Settings, url: str, pid: int) -> int:
    keys = Keys(settings.prefix)
    prefix = consumer_prefix(pid)
    with connect(url) as client:
        members: Any = client.zrange(keys.roll("worker"), 0, -1)
        models: Any = client.hkeys(keys.catalog)
        moved = 0
        for consumer in (member.decode() for member in members):
            if consumer.startswith(prefix):
                # Who retries what it held must not take it for alive.
                client.delete(keys.presence("worker", consumer))
                moved += hand_over(client, keys, [model.decode() for model in models], consumer)
                client.zrem(keys.roll("worker"), consumer)
        return moved


async def run_pool(settings: Settings, url: str) -> None:
    """`millstream worker` with several processes, until SIGTERM or SIGINT."""
    logs = StateDir(settings.state_dir).create().logs

    async def died(name: str, pid: int, returncode: int) -> None:
        await reap(settings, url, name, pid, returncode)

    children = workers(settings.model_copy(update={"redis_url": url}), settings.workers)
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with Supervisor(Path(logs), on_death=died) as supervisor:
            async with anyio.create_task_group() as starts:
                for child in children:
                    starts.start_soon(_start, supervisor, child, settings.load_silence_s)
            notify_ready()
            async for _ in signals:
                break
            await supervisor.stop([[child.name for child in children]], grace=settings.drain_s + 2)


async def _start(supervisor: Supervisor, child: Child, silence_s: float) -> None:
    await supervisor.start(child, ready_within=silence_s)
