"""`millstream demo`: starts everything, plays its steps, stops everything.

publish -> questions: one, refused, a thousand callers, a producer, a killed worker
        -> the record: one event, the books, a segment, its proof, a replay to the last bit

What it says it also verifies: the exit code is 0 only if every check held.
"""

from __future__ import annotations

import signal
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import anyio
import anyio.to_thread
from rich.console import Console

from contract.connection import connect
from contract.settings import Settings
from millstream.async_client import AsyncClient
from millstream.demo import questions, record
from millstream.demo.run import Run
from millstream.stock import write_stock
from millstream.up import running


def demo(settings: Settings, *, keep: bool = False, as_json: bool = False, quiet: bool = False) -> int:
    """Runs the demo on embedded defaults; 0 where every check held, else 1. `keep` leaves it running until Ctrl-C."""
    console = Console(stderr=as_json, quiet=quiet)
    run = Run(console, as_json)
    with ExitStack() as stack:
        if settings.state_dir == Settings.model_fields["state_dir"].default:
            # Nothing of a demo is worth keeping, unless the person names a place for it.
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="millstream-demo-")))
        else:
            folder = settings.state_dir
        store = folder / "models"
        settings = settings.model_copy(
            update={
                "state_dir": folder,
                "store_url": str(store),
                "listen": "127.0.0.1:0",
                "workers": max(2, settings.workers),
                "reply_ttl_bulk_s": 600,
            }
        )
        # As Ctrl-C, which takes everything down in order, the temporary folder too.
        before = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        stack.callback(signal.signal, signal.SIGTERM, before)
        try:
            anyio.run(_run, run, settings, store, keep)
        except KeyboardInterrupt:
            console.print("stopped")
            return 130
    if run.failed:
        console.print(f"\n[red bold]{len(run.failed)} of the checks did not hold:[/red bold]")
        for claim in run.failed:
            console.print(f"   {claim}", highlight=False)
        return 1
    return 0


async def _run(run: Run, settings: Settings, store: Path, keep: bool) -> None:
    began = time.monotonic()
    run.step("Publish the stock models into a local store, and start everything")
    folders = await anyio.to_thread.run_sync(write_stock, store, run.say)
    run.show(f"{len(folders)} versions in {store}")
    async with running(settings, run.say) as house:
        serving = await house.serving(within_s=settings.load_limit_s)
        run.check(serving, "health is SERVING: every production model is loaded in every worker")
        if not serving:
            _show_logs(run, settings)
            return
        async with AsyncClient(house.gateway, timeout=30.0) as client:
            models = await questions.list_models(run, client)
            with connect(house.addresses["redis"]) as redis:
                redis.set(f"user:{questions.USER}:age", questions.USER_AGE)
                redis.set(f"user:{questions.USER}:clicks", questions.USER_CLICKS)
            request_id = await questions.predict_some(run, client)
            await questions.refuse_one(run, client)
            await questions.ask_at_once(run, house, models)
            await anyio.to_thread.run_sync(questions.drain, run, house)
            await questions.kill_a_worker(run, house, models)
        events = await record.count_events(run, house)
        await record.find_event(run, house, request_id)
        await record.reconcile(run, house)
        await record.seal(run, house, events)
        await record.verify(run, house)
        await anyio.to_thread.run_sync(record.alter_a_copy, run, house, request_id)
        await record.replay(run, house)
        run.step("How to go on")
        run.show("[cyan]millstream up[/cyan]                          everything, on this machine, until Ctrl-C")
        run.show("[cyan]millstream predict[/cyan]                     pick a model and be asked for its features")
        run.show("[cyan]millstream serve MODEL.joblib --csv FILE[/cyan]   a model of your own")
        run.show("[cyan]millstream --help[/cyan]                      the rest; README.md and docs/ tell why")
        run.show(f"All of this took {time.monotonic() - began:.0f} s.")
        if keep:
            run.show(f"It goes on until Ctrl-C: --state-dir {settings.state_dir}, gateway {house.gateway}")
            with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
                async for _ in signals:
                    break


def _show_logs(run: Run, settings: Settings) -> None:
    for path in sorted((settings.state_dir / "logs").glob("*.log")):
        run.say(f"--- {path.name}")
        for line in path.read_text(errors="replace").splitlines()[-8:]:
            run.say(line)
