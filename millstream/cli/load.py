"""load: many callers at once, and what they saw."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from millstream.cli.errors import NOT_FOUND, USAGE, CommandFailed
from millstream.cli.load_screen import PlotOption, check_plot, conclude, live, show_report, until_interrupted
from millstream.cli.options import AddressOption, JsonOption, QuietOption, RedisOption, StateDirOption
from millstream.cli.place import GATEWAY, REDIS, Place
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from loadgen.push import Pushed
    from loadgen.report import Report
    from millstream.client import Client
    from protos import millstream_v1_pb2 as v1

SAMPLES, SAMPLE_ROWS = 1000, 100_000
"""Different requests of each model, and most rows of all of them."""
USERS = 100
MOST_RATE = 1_000_000.0

_HOW, _WHAT, _STOP = "How: a closed or an open loop", "What is asked", "When it ends"


def load(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL[=SHARE]",
            help="The models to ask, and how much of each: 3 and 1, or 75% and 25%; default: all alike.",
        ),
    ] = None,
    users: Annotated[
        int | None,
        typer.Option(
            "--users",
            min=1,
            max=100_000,
            help=f"Callers at once, each waiting for its answer; default {USERS}.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    ramp: Annotated[
        float,
        typer.Option(
            "--ramp", metavar="SECONDS", min=0.0, help="The users begin one after another.", rich_help_panel=_HOW
        ),
    ] = 0.0,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            metavar="R",
            help="Instead of users: R requests a second, answered or not.",
            rich_help_panel=_HOW,
        ),
    ] = None,
    ramp_to: Annotated[
        float | None,
        typer.Option(
            "--ramp-to", metavar="R", help="The rate rises or falls evenly to R until the end.", rich_help_panel=_HOW
        ),
    ] = None,
    rows: Annotated[
        int, typer.Option("--rows", min=1, max=100_000, help="Rows in each request.", rich_help_panel=_WHAT)
    ] = 1,
    lane: Annotated[
        str,
        typer.Option(
            "--lane",
            metavar="LANE",
            help="requests: wait for the answer. bulk: only until it is accepted (Submit).",
            rich_help_panel=_WHAT,
        ),
    ] = "requests",
    bulk: Annotated[
        int,
        typer.Option(
            "--bulk",
            metavar="N",
            min=0,
            help="Instead: push N requests for each model onto its stream, past the gateway.",
            rich_help_panel=_WHAT,
        ),
    ] = 0,
    seconds: Annotated[float, typer.Option("--seconds", min=0.1, help="How long.", rich_help_panel=_STOP)] = 10.0,
    requests: Annotated[
        int,
        typer.Option("--requests", min=0, help="With users: stop after so many; 0: by time.", rich_help_panel=_STOP),
    ] = 0,
    channels: Annotated[int, typer.Option("--channels", min=1, max=64, help="gRPC connections.")] = 4,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Deadline of a request.")
    ] = 30.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the made-up inputs and of the arrivals.")] = 0,
    plot: PlotOption = None,
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

    Ctrl-C ends it with the report so far. Ends with code 1 where a request
    failed.

    [bold]Examples[/bold]

      millstream load credit_risk --users 1000 --seconds 60
      millstream load credit_risk=90% churn=10% --rate 500 --plot load.html
      millstream load churn --rate 100 --ramp-to 5000 --seconds 30 --timeout 1
      millstream load churn --users 4 --rows 1000
      millstream load churn --lane bulk --rate 2000
      millstream load churn --bulk 100000
    """
    from loadgen.samples import mixed, samples

    screen = Screen(as_json=as_json, quiet=quiet)
    place = Place.of(state_dir, gateway=address, redis=redis_url)
    _check(users, ramp, rate, ramp_to, lane, bulk, seconds, requests, timeout)
    check_plot(plot)
    shares = _shares(models or [])
    with place.client(timeout) as client:
        known = _known(client, list(shares))
    if bulk:
        _bulk(screen, place, known, bulk, seed)
        return

    from loadgen.asking import PREDICT, SUBMIT
    from loadgen.closed_loop import closed_loop
    from loadgen.open_loop import open_loop
    from loadgen.report import Tally

    each = max(1, min(SAMPLES, SAMPLE_ROWS // rows))
    made = mixed([(samples(m, each, seed, rows), shares.get(m.model_id, 1.0)) for m in known], each * len(known), seed)
    where, tally, opened = place.address(GATEWAY), Tally(), rate is not None or ramp_to is not None
    with live(screen, tally, count=requests, seconds=seconds) as show:

        async def run(stop: asyncio.Event) -> Report:
            method = SUBMIT if lane == "bulk" else PREDICT
            if opened:
                return await open_loop(
                    where, rate or 0.0, made, seconds=seconds, rate_end=ramp_to, channels=channels, timeout_s=timeout,
                    seed=seed, method=method, tally=tally, stop=stop, on_progress=show,
                )  # fmt: skip
            return await closed_loop(
                where, users or USERS, made, seconds=seconds, count=requests or None, channels=channels,
                timeout_s=timeout, ramp_s=ramp, method=method, tally=tally, stop=stop, on_progress=show,
            )  # fmt: skip

        report = until_interrupted(run)
    names = [m.model_id for m in known]
    how = f"{report.users} users, each asking again once answered"
    if opened:
        how = f"{report.offered_per_s:,.0f} requests a second, answered or not"
    title = f"{', '.join(names)}: {how}"
    if as_json:
        screen.line({"models": names, "lane": lane, "rows_per_request": rows, **report.to_json()})
    else:
        show_report(screen, title, report)
    if lane == "bulk":
        screen.note("latency is until a request was accepted: `millstream status` shows how many wait")
    conclude(screen, title, report, plot)


def _check(
    users: int | None,
    ramp: float,
    rate: float | None,
    ramp_to: float | None,
    lane: str,
    bulk: int,
    seconds: float,
    requests: int,
    timeout: float,
) -> None:
    """What the options say together. Raises CommandFailed."""
    opened = rate is not None or ramp_to is not None
    wrong = ""
    for name, number in (("--ramp", ramp), ("--seconds", seconds), ("--timeout", timeout)):
        if not math.isfinite(number):
            wrong = f"{name}: expected a number of seconds, got {number}"
    for name, number in (("--rate", rate or 0.0), ("--ramp-to", ramp_to or 0.0)):
        if not 0 <= number <= MOST_RATE:
            wrong = f"{name}: expected requests a second, above 0 and up to {MOST_RATE:,.0f}; got {number:g}"
    if opened and not wrong and not (rate or ramp_to):
        wrong = "--rate: expected requests a second, above 0; got 0, at which none would ever come"
    elif opened and users is not None:
        wrong = "--users and --rate are two kinds of load: expected one of them, got both"
    elif opened and (requests or ramp):
        wrong = f"{'--requests' if requests else '--ramp'} goes with --users; with --rate say --seconds and --ramp-to"
    elif ramp > seconds:
        wrong = f"--ramp: expected at most the {seconds:g} seconds of the run, got {ramp:g}"
    elif lane not in ("requests", "bulk"):
        wrong = f"--lane: expected requests or bulk, got {lane!r}"
    elif bulk and (opened or users is not None or lane == "bulk"):
        wrong = "--bulk N pushes as fast as it can: expected it without --users, --rate and --lane"
    if wrong:
        raise CommandFailed(wrong, USAGE)


def _known(client: Client, names: list[str]) -> list[v1.Model]:
    """The models of these names, of none: all. Raises CommandFailed naming all that are not there."""
    from millstream.client import NotFound

    if not names:
        if not (live_now := client.models()):
            raise CommandFailed("no model is live yet: see `millstream registry list`", USAGE)
        return live_now
    known, unknown = [], []
    for name in names:
        try:
            known.append(client.model(name))
        except NotFound:
            unknown.append(repr(name))
    if unknown:
        there = ", ".join(model.model_id for model in client.models()) or "none"
        raise CommandFailed(f"no model {', '.join(unknown)} is live; there is: {there}", NOT_FOUND)
    return known


def _shares(texts: list[str]) -> dict[str, float]:
    """How much each model is asked. Raises CommandFailed."""
    shares: dict[str, float] = {}
    percents = [text for text in texts if text.endswith("%")]
    for text in texts:
        model_id, share = _share(text)
        if model_id in shares:
            raise CommandFailed(f"expected each model once, got {model_id} twice", USAGE)
        shares[model_id] = share
    if percents and len(percents) < len(texts):
        raise CommandFailed("expected all shares as percent or none, got both", USAGE)
    if percents and abs(sum(shares.values()) - 100) > 0.01:
        raise CommandFailed(f"expected percents that add up to 100, got {sum(shares.values()):g}", USAGE)
    return shares


def _share(text: str) -> tuple[str, float]:
    """A model and how much of it is asked: `churn`, `churn=3` or `churn=30%`."""
    model_id, given, share = text.partition("=")
    try:
        number = float(share.removesuffix("%")) if given else 1.0
    except ValueError:
        number = 0.0
    if not model_id or not 0 < number < float("inf"):
        raise CommandFailed(f"expected MODEL or MODEL=SHARE with a share above 0, got {text!r}", USAGE)
    return model_id, number


def _bulk(screen: Screen, place: Place, models: list[v1.Model], n: int, seed: int) -> None:
    from contract.request import native
    from ingest.producer import Producer
    from loadgen.push import push
    from loadgen.report import Tally
    from loadgen.samples import samples

    with Producer(place.address(REDIS)) as producer:
        for model in models:
            rows = [[native(value) for value in request.inputs] for request in samples(model, SAMPLES, seed)]
            with live(screen, Tally(), count=n) as show:
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
