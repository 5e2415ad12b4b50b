"""`millstream demo`: the main job from end to end, each step shown and checked.

What it says it also verifies: the exit code is 0 only if every check held.
"""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import grpc
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from contract.connection import connect
from contract.errors import Violation
from contract.keys import Keys
from contract.settings import Settings
from ingest.answer import Answer, InvalidInput
from ingest.producer import Producer
from loadgen.closed_loop import closed_loop
from loadgen.report import Report
from loadgen.samples import samples
from millstream.async_client import AsyncClient
from millstream.calls import channel_options
from millstream.stock import write_stock
from millstream.up import House, running
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc

CALLERS = 1000
CALLER_REQUESTS = 10_000
ASYNC_REQUESTS = 1000
KILL_CALLERS = 200
KILL_S = 4.0
DRAIN_S = 60.0
USER = "101"
USER_AGE, USER_CLICKS = 25, 120


@dataclass(slots=True)
class Demo:
    """One run: what was shown, and what of it held."""

    console: Console
    as_json: bool
    failed: list[str] = field(default_factory=list)
    number: int = 0

    def step(self, title: str) -> None:
        self.number += 1
        if not self.as_json:
            self.console.print(f"\n[bold]{self.number}. {title}[/bold]")

    def show(self, text: str) -> None:
        if not self.as_json:
            self.console.print("   " + text, highlight=False)

    def say(self, text: str) -> None:
        """The same for text from elsewhere, whose brackets are no markup."""
        if not self.as_json:
            self.console.print("   " + text, highlight=False, markup=False)

    def check(self, held: bool, claim: str, **numbers: Any) -> None:
        """One claim: shown as kept or broken, and counted."""
        if not held:
            self.failed.append(claim)
        if self.as_json:
            print(json.dumps({"step": self.number, "claim": claim, "held": held, **numbers}, default=str), flush=True)
        else:
            mark = "[green]ok[/green]  " if held else "[red]BROKEN[/red]"
            self.console.print(f"   {mark} {claim}", highlight=False)

    def bar(self) -> Progress:
        return Progress(
            TextColumn("   {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            disable=self.as_json,
        )


def demo(settings: Settings, *, keep: bool = False, as_json: bool = False, quiet: bool = False) -> int:
    """Runs the demo on embedded defaults; 0 where every check held, else 1. `keep` leaves it running until Ctrl-C."""
    console = Console(stderr=as_json, quiet=quiet)
    run = Demo(console, as_json)
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


async def _run(run: Demo, settings: Settings, store: Path, keep: bool) -> None:
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
            models = await _list(run, client)
            with connect(house.addresses["redis"]) as redis:
                redis.set(f"user:{USER}:age", USER_AGE)
                redis.set(f"user:{USER}:clicks", USER_CLICKS)
            hydrated = await _predict(run, client)
            await _refuse(run, client)
            await _many_callers(run, house, models)
            await anyio.to_thread.run_sync(_asynchronous, run, house)
            await _kill(run, house, models)
        await _event_log(run, house, hydrated, settings)
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


async def _list(run: Demo, client: AsyncClient) -> dict[str, v1.Model]:
    run.step("What models are there?")
    models = {model.model_id: model for model in await client.models()}
    table = Table("model", "version", "features", "answers", box=None, padding=(0, 2, 0, 3))
    for model in models.values():
        features = ", ".join(f"{feature.name} ({feature.type})" for feature in model.features)
        table.add_row(model.model_id, model.version, features, ", ".join(output.name for output in model.outputs))
    if not run.as_json:
        run.console.print(table)
    expected = {"churn", "credit_risk", "loan_approval", "roi_prediction"}
    run.check(
        set(models) == expected, f"the {len(expected)} stock models in production are listed", models=sorted(models)
    )
    return models


async def _predict(run: Demo, client: AsyncClient) -> str:
    """By position, by name, by entity id alone; the id of the last one's request."""
    run.step("One prediction by position, one by name, one by an id alone")
    first = await client.predict("credit_risk", [0.6, 45])
    _show_answer(run, 'predict("credit_risk", [0.6, 45])', first)
    named = await client.predict("credit_risk", features={"age_years": 45, "debt_to_income_ratio": 0.6})
    _show_answer(run, 'predict("credit_risk", features={"age_years": 45, "debt_to_income_ratio": 0.6})', named)
    run.check(first.outputs == named.outputs, "by position and by name the answer is the same", outputs=first.outputs)
    request_id = f"demo-{os.urandom(4).hex()}"
    hydrated = await client.predict("churn", entity_id=USER, request_id=request_id)
    _show_answer(run, f'predict("churn", entity_id="{USER}")', hydrated)
    sent = await client.predict("churn", [USER_AGE, USER_CLICKS])
    run.check(hydrated.outputs == sent.outputs, "the stored features give the answer of the same features sent")
    mixed = await client.predict(
        "loan_approval", features={"amount_eur": 12000, "employment": "salaried", "has_guarantor": True}
    )
    _show_answer(run, 'predict("loan_approval", features={"employment": "salaried", …})', mixed)
    run.check(mixed.outputs["decision"] in ("approve", "decline"), "strings go in and come out")
    return request_id


async def _refuse(run: Demo, client: AsyncClient) -> None:
    run.step("A bad request, and what is said to it")
    violations: tuple[Violation, ...] = ()
    try:
        await client.predict("credit_risk", features={"age_years": 17.5, "debt": 0.6})
    except InvalidInput as error:
        violations = tuple(error.violations)
    for violation in violations:
        run.show(f"INVALID_ARGUMENT  {violation.field}: {violation.description}")
    named = {violation.field for violation in violations}
    expected = {"age_years", "debt", "debt_to_income_ratio"}
    run.check(named == expected, "every violation is named, not the first alone", violations=sorted(named))


async def _many_callers(run: Demo, house: House, models: dict[str, v1.Model]) -> None:
    run.step(f"{CALLERS:,} callers at once, each waiting for an answer before the next question")
    asked = samples(models["credit_risk"], 500)
    with run.bar() as bar:
        task = bar.add_task("answered", total=CALLER_REQUESTS)
        report = await closed_loop(
            house.gateway,
            CALLERS,
            asked,
            count=CALLER_REQUESTS,
            on_progress=lambda ended, _seconds: bar.update(task, completed=ended),
        )
        bar.update(task, completed=report.requests)
    _show_report(run, report)
    run.check(
        report.answered == CALLER_REQUESTS, f"all {CALLER_REQUESTS:,} were answered, none refused", **report.to_json()
    )


def _asynchronous(run: Demo, house: House) -> None:
    run.step(f"{ASYNC_REQUESTS:,} asynchronous requests, pushed onto the bulk lane and drained")
    with Producer(house.addresses["redis"], house.settings.prefix) as producer, run.bar() as bar:
        began = time.perf_counter()
        ids = producer.send_many("churn", ([20 + n % 50, n % 200] for n in range(ASYNC_REQUESTS)))
        pushed = time.perf_counter() - began
        task = bar.add_task("drained ", total=ASYNC_REQUESTS)
        answers, until = 0, time.monotonic() + DRAIN_S
        for request_id in ids:
            answer = producer.result("churn", request_id, wait=max(0.0, until - time.monotonic()))
            answers += isinstance(answer, Answer)
            bar.update(task, completed=answers)
    run.show(f"pushed in {pushed * 1000:.0f} ms, all answered after {time.perf_counter() - began:.2f} s")
    run.check(answers == ASYNC_REQUESTS, f"all {ASYNC_REQUESTS:,} results are there, by their ids", answers=answers)


async def _kill(run: Demo, house: House, models: dict[str, v1.Model]) -> None:
    run.step(f"A worker is killed with SIGKILL while {KILL_CALLERS} callers wait")
    before = house.pids("worker")
    killed: list[int] = []

    async def kill() -> None:
        await anyio.sleep(KILL_S / 3)
        os.kill(before[0], signal.SIGKILL)
        killed.append(before[0])
        run.show(f"kill -9 {before[0]}, one of {len(before)} workers")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(kill)
        report = await closed_loop(house.gateway, KILL_CALLERS, samples(models["roi_prediction"], 500), seconds=KILL_S)
    _show_report(run, report)
    run.check(
        bool(killed) and report.answered == report.requests > 0,
        "every request was answered, those that the dead worker held too",
        **report.to_json(),
    )
    back = await _within(
        30.0, lambda: len(house.pids("worker")) == len(before) and before[0] not in house.pids("worker")
    )
    run.check(back, "the pool is whole again", workers=house.pids("worker"))


async def _event_log(run: Demo, house: House, request_id: str, settings: Settings) -> None:
    run.step("The event log: as many events as requests were accepted")
    keys = Keys(settings.prefix)
    address = house.addresses["event_log"]
    async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
        stub: Any = v1_grpc.EventLogStub(channel)
        accepted = _accepted(house.addresses["redis"], keys)

        async def all_there() -> bool:
            return int((await stub.Count(v1.EventQuery())).events) >= accepted

        await _within_async(20.0, all_there)
        count = await stub.Count(v1.EventQuery())
        for model, events in sorted(count.by_model.items()):
            run.show(f"{model:<16}{events:>8,} events")
        run.check(
            count.events == accepted == count.distinct_requests,
            f"{accepted:,} accepted, {count.events:,} events, {count.distinct_requests:,} distinct requests",
            by_status=dict(count.by_status),
        )
        run.step(f"One request, found by its id: {request_id}")
        found = [event async for event in stub.Query(v1.EventQuery(request_id=request_id))]
    run.check(len(found) == 1, "it is there once")
    if not found:
        return
    event = found[0]
    for name, text in (
        ("model", f"{event.model_id} {event.version}, digest {event.digest[:16]}…"),
        ("inputs", f"{event.inputs_json} for entity {event.entity_id}"),
        ("came from", event.origins_json),
        ("outputs", event.outputs_json),
        ("worker", f"{event.worker}, batch of {event.batch_rows}, {event.engine}"),
    ):
        run.show(f"{name:<10} {text}")
    start = event.user_request_timestamp.ToMicroseconds()
    for stage in ("admitted", "appended", "delivered", "predicted_at"):
        moment = getattr(event, f"{stage}_timestamp").ToMicroseconds()
        run.show(f"{stage:<14}+{(moment - start) / 1000:.2f} ms")
    run.show("(appended is Redis's own clock, in whole milliseconds)")
    inputs, origins = json.loads(event.inputs_json), json.loads(event.origins_json)
    run.check(inputs == [[USER_AGE, USER_CLICKS]], "its inputs are the stored features", inputs=inputs)
    run.check(set(origins.values()) == {"redis"}, "and where each came from is recorded", origins=origins)


def _accepted(url: str, keys: Keys) -> int:
    with connect(url) as client:
        models: Any = client.hkeys(keys.catalog)
        return sum(int(client.hget(keys.model(name.decode()).count, "accepted") or 0) for name in models)


def _show_answer(run: Demo, call: str, answer: Answer) -> None:
    run.show(f"{call}  →  {json.dumps(answer.outputs)}  (version {answer.version})")


def _show_report(run: Demo, report: Report) -> None:
    errors = ", ".join(f"{count} {status}" for status, count in report.errors.items()) or "no errors"
    run.show(
        f"{report.rate:,.0f} answers/s; p50 {report.p50_ms:.1f} ms, p95 {report.p95_ms:.1f} ms, "
        f"p99 {report.p99_ms:.1f} ms; {errors}"
    )


def _show_logs(run: Demo, settings: Settings) -> None:
    for path in sorted((settings.state_dir / "logs").glob("*.log")):
        run.say(f"--- {path.name}")
        for line in path.read_text(errors="replace").splitlines()[-8:]:
            run.say(line)


async def _within(seconds: float, true: Callable[[], bool]) -> bool:
    async def ask() -> bool:
        return true()

    return await _within_async(seconds, ask)


async def _within_async(seconds: float, true: Callable[[], Any]) -> bool:
    until = time.monotonic() + seconds
    held = await true()
    while not held and time.monotonic() < until:
        await anyio.sleep(0.05)
        held = await true()
    return bool(held)
