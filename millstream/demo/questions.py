"""What the demo asks: one by one, by a thousand callers, by a producer, and while a worker dies."""

from __future__ import annotations

import json
import os
import signal
import time

import anyio
import anyio.lowlevel
from rich.table import Table

from contract.errors import Violation
from ingest.answer import Answer, InvalidInput
from ingest.producer import Producer
from loadgen.closed_loop import closed_loop
from loadgen.report import Report
from loadgen.samples import samples
from millstream.async_client import AsyncClient
from millstream.demo.run import Run, within
from millstream.up import House
from protos import millstream_v1_pb2 as v1

CALLERS = 1000
CALLER_REQUESTS = 10_000
ASYNC_REQUESTS = 1000
KILL_CALLERS = 200
KILL_S = 4.0
DRAIN_S = 60.0
USER = "101"
USER_AGE, USER_CLICKS = 25, 120


async def list_models(run: Run, client: AsyncClient) -> dict[str, v1.Model]:
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


async def predict_some(run: Run, client: AsyncClient) -> str:
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


async def refuse_one(run: Run, client: AsyncClient) -> None:
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


async def ask_at_once(run: Run, house: House, models: dict[str, v1.Model]) -> None:
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


def drain(run: Run, house: House) -> None:
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


async def kill_a_worker(run: Run, house: House, models: dict[str, v1.Model]) -> None:
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

    async def whole_again() -> bool:
        await anyio.lowlevel.checkpoint()
        return len(house.pids("worker")) == len(before) and before[0] not in house.pids("worker")

    back = await within(30.0, whole_again)
    run.check(back, "the pool is whole again", workers=house.pids("worker"))


def _show_answer(run: Run, call: str, answer: Answer) -> None:
    run.show(f"{call}  →  {json.dumps(answer.outputs)}  (version {answer.version})")


def _show_report(run: Run, report: Report) -> None:
    errors = ", ".join(f"{count} {status}" for status, count in report.errors.items()) or "no errors"
    run.show(
        f"{report.rate:,.0f} answers/s; p50 {report.p50_ms:.1f} ms, p95 {report.p95_ms:.1f} ms, "
        f"p99 {report.p99_ms:.1f} ms; {errors}"
    )
