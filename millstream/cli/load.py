"""load: many callers at once, and what they saw."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli.errors import FALSE, USAGE, CommandFailed
from millstream.cli.options import AddressOption, JsonOption, QuietOption, RedisOption, StateDirOption
from millstream.cli.place import GATEWAY, REDIS, Place
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from loadgen.push import Pushed
    from protos import millstream_v1_pb2 as v1

SAMPLES = 1000


def load(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", help="The model to ask; default: all, in turn.")
    ] = None,
    users: Annotated[
        int, typer.Option("--users", min=1, max=100_000, help="Callers at once, each waiting for its answer.")
    ] = 100,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long.")] = 10.0,
    requests: Annotated[int, typer.Option("--requests", min=0, help="Stop after so many; 0: by time alone.")] = 0,
    bulk: Annotated[
        int, typer.Option("--bulk", metavar="N", min=0, help="Push N requests onto the bulk lane instead.")
    ] = 0,
    channels: Annotated[int, typer.Option("--channels", min=1, max=64, help="gRPC connections.")] = 4,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Deadline of a request.")
    ] = 30.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the made-up inputs.")] = 0,
    state_dir: StateDirOption = None,
    address: AddressOption = "",
    redis_url: RedisOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put a model under load with inputs made up from its signature, and report rate and latency.

    A closed loop: each caller asks again once it is answered. Ends with code 1 where a request failed.

    [bold]Examples[/bold]

      millstream load credit_risk --users 1000 --seconds 30
      millstream load churn --bulk 100000
    """
    from loadgen.samples import samples

    screen = Screen(as_json=as_json, quiet=quiet)
    place = Place.of(state_dir, gateway=address, redis=redis_url)
    with place.client(timeout) as client:
        models = [client.model(model)] if model else client.models()
    if not models:
        raise CommandFailed("no model is live yet: see `millstream registry list`", USAGE)
    if bulk:
        _bulk(screen, place, models, bulk, seed)
        return

    import asyncio

    from loadgen.closed_loop import closed_loop

    made = [request for each in zip(*(samples(m, SAMPLES, seed) for m in models), strict=True) for request in each]
    with _progress(screen, requests or None, seconds if not requests else None) as show:
        report = asyncio.run(
            closed_loop(
                place.address(GATEWAY),
                users,
                made,
                seconds=seconds,
                count=requests or None,
                channels=channels,
                timeout_s=timeout,
                on_progress=show,
            )
        )
    names = ", ".join(each.model_id for each in models)
    if as_json:
        screen.line({"models": [each.model_id for each in models], **report.to_json()})
    else:
        screen.table(
            ("requests", "answered", "failed", "seconds", "answers/s", "p50 ms", "p95 ms", "p99 ms", "max ms"),
            [
                (
                    report.requests,
                    report.answered,
                    sum(report.errors.values()),
                    round(report.seconds, 2),
                    round(report.rate, 1),
                    *(round(ms, 2) for ms in (report.p50_ms, report.p95_ms, report.p99_ms, report.max_ms)),
                )
            ],
            title=f"{names}: {users} users, each asking again once answered",
        )
        if report.errors:
            screen.table(("failed with", "requests"), sorted(report.errors.items()))
    if report.errors:
        raise typer.Exit(FALSE)


def _bulk(screen: Screen, place: Place, models: list[v1.Model], n: int, seed: int) -> None:
    from contract.request import native
    from ingest.producer import Producer
    from loadgen.push import push
    from loadgen.samples import samples

    with Producer(place.address(REDIS)) as producer:
        for model in models:
            rows = [[native(value) for value in request.inputs] for request in samples(model, SAMPLES, seed)]
            with _progress(screen, n, None) as show:
                pushed = push(producer, model.model_id, rows, n, on_progress=_sent(show))
            _show_pushed(screen, model.model_id, pushed)


def _sent(show: Callable[[int, float], None] | None) -> Callable[[int], None] | None:
    return None if show is None else lambda sent: show(sent, 0.0)


def _show_pushed(screen: Screen, model_id: str, pushed: Pushed) -> None:
    if screen.as_json:
        screen.line({"model_id": model_id, **pushed.to_json()})
    else:
        rate = f"{pushed.rate:,.0f} a second"
        screen.text(f"{model_id}: {pushed.requests:,} requests appended in {pushed.seconds:.2f} s, {rate}")
    screen.note("they are answered as workers get to them: `millstream status` shows the backlog")


@contextmanager
def _progress(
    screen: Screen, count: int | None, seconds: float | None
) -> Iterator[Callable[[int, float], None] | None]:
    """A bar on stderr, by requests or by time; none where nobody would see it."""
    if screen.quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns: tuple[Any, ...] = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[ended]:,} requests"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=float(count or 0) or seconds, ended=0)

        def show(ended: int, spent: float) -> None:
            bar.update(task, completed=ended if count else spent, ended=ended)

        yield show
