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
    from loadgen.report import Report
    from protos import millstream_v1_pb2 as v1

SAMPLES, SAMPLE_ROWS = 1000, 100_000
"""Different requests of each model, and most rows of all of them."""
LATE_MS = 20.0
"""Lag of the open loop that its latencies would hide."""


def load(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL[=SHARE]", help="The models to ask, and how much of each; default: all alike."),
    ] = None,
    users: Annotated[
        int, typer.Option("--users", min=1, max=100_000, help="Callers at once, each waiting for its answer.")
    ] = 100,
    rate: Annotated[
        float,
        typer.Option("--rate", metavar="R", min=0.0, help="Instead of users: R requests a second, answered or not."),
    ] = 0.0,
    ramp_to: Annotated[
        float | None,
        typer.Option("--ramp-to", metavar="R", min=0.0, help="The rate rises or falls to R until the end."),
    ] = None,
    rows: Annotated[int, typer.Option("--rows", min=1, max=100_000, help="Rows in each request.")] = 1,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long.")] = 10.0,
    requests: Annotated[
        int, typer.Option("--requests", min=0, help="With users: stop after so many; 0: by time alone.")
    ] = 0,
    bulk: Annotated[
        int, typer.Option("--bulk", metavar="N", min=0, help="Push N requests onto the bulk lane instead.")
    ] = 0,
    channels: Annotated[int, typer.Option("--channels", min=1, max=64, help="gRPC connections.")] = 4,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Deadline of a request.")
    ] = 30.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the made-up inputs and of the arrivals.")] = 0,
    state_dir: StateDirOption = None,
    address: AddressOption = "",
    redis_url: RedisOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Put models under load with inputs made up from their signatures, and report rate and latency.

    With [bold]--users[/bold], a closed loop: each caller asks again once it is
    answered, so callers slow down with the server. It tells how fast so
    many callers are served.

    With [bold]--rate[/bold], an open loop: requests come at random (Poisson)
    moments at that rate, whether the ones before were answered or not, and
    each one's time runs from when it was due. It tells what callers feel
    who do not know of one another, and what happens above what the server
    can do.

    Ends with code 1 where a request failed.

    [bold]Examples[/bold]

      millstream load credit_risk --users 1000 --seconds 60
      millstream load credit_risk=9 churn=1 --rate 500
      millstream load churn --rate 100 --ramp-to 5000 --seconds 30 --timeout 1
      millstream load churn --users 4 --rows 1000
      millstream load churn --bulk 100000
    """
    from loadgen.samples import mixed, samples

    screen = Screen(as_json=as_json, quiet=quiet)
    place = Place.of(state_dir, gateway=address, redis=redis_url)
    shares = dict(_share(text) for text in models or ())
    with place.client(timeout) as client:
        known = [client.model(model_id) for model_id in shares] if shares else client.models()
    if not known:
        raise CommandFailed("no model is live yet: see `millstream registry list`", USAGE)
    if bulk:
        _bulk(screen, place, known, bulk, seed)
        return

    import asyncio

    from loadgen.closed_loop import closed_loop
    from loadgen.open_loop import open_loop

    each = max(1, min(SAMPLES, SAMPLE_ROWS // rows))
    made = mixed([(samples(m, each, seed, rows), shares.get(m.model_id, 1.0)) for m in known], each * len(known), seed)
    where = place.address(GATEWAY)
    with _progress(screen, requests if not rate else 0, seconds) as show:
        if rate or ramp_to:
            run = open_loop(
                where,
                rate,
                made,
                seconds=seconds,
                rate_end=ramp_to,
                channels=channels,
                timeout_s=timeout,
                seed=seed,
                on_progress=show,
            )
        else:
            run = closed_loop(
                where,
                users,
                made,
                seconds=seconds,
                count=requests or None,
                channels=channels,
                timeout_s=timeout,
                on_progress=show,
            )
        report = asyncio.run(run)
    _show(screen, [m.model_id for m in known], report, rows)
    if report.errors:
        raise typer.Exit(FALSE)


def _share(text: str) -> tuple[str, float]:
    """A model and how much of it is asked: `churn`, or `churn=3`."""
    model_id, given, share = text.partition("=")
    try:
        number = float(share) if given else 1.0
    except ValueError:
        number = 0.0
    if not model_id or not 0 < number < float("inf"):
        raise CommandFailed(f"expected MODEL or MODEL=SHARE with a share above 0, got {text!r}", USAGE)
    return model_id, number


def _show(screen: Screen, names: list[str], report: Report, rows: int) -> None:
    if screen.as_json:
        screen.line({"models": names, "rows_per_request": rows, **report.to_json()})
        return
    how = f"{report.users} users, each asking again once answered"
    if report.offered_per_s:
        how = f"{report.offered_per_s:,.0f} requests a second, answered or not"
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
        title=f"{', '.join(names)}: {how}",
    )
    if report.errors:
        screen.table(("failed with", "requests"), sorted(report.errors.items()))
    if report.lag_ms > LATE_MS:
        screen.note(
            f"the load generator itself was up to {report.lag_ms:,.0f} ms late (p99): this machine can't ask so much"
        )


def _bulk(screen: Screen, place: Place, models: list[v1.Model], n: int, seed: int) -> None:
    from contract.request import native
    from ingest.producer import Producer
    from loadgen.push import push
    from loadgen.samples import samples

    with Producer(place.address(REDIS)) as producer:
        for model in models:
            rows = [[native(value) for value in request.inputs] for request in samples(model, SAMPLES, seed)]
            with _progress(screen, n, 0.0) as show:
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
def _progress(screen: Screen, count: int, seconds: float) -> Iterator[Callable[[int, float], None] | None]:
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
        task = bar.add_task("", total=float(count) or seconds, ended=0)

        def show(ended: int, spent: float) -> None:
            bar.update(task, completed=ended if count else spent, ended=ended)

        yield show
