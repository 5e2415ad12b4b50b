"""replay load: recorded requests, asked again as load."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli import replay_log as log
from millstream.cli.errors import NOT_FOUND, USAGE, CommandFailed
from millstream.cli.load_screen import PlotOption, check_plot, conclude, live, show_report, until_interrupted
from millstream.cli.log_place import EventLogOption, open_log
from millstream.cli.options import JsonOption, QuietOption, StateDirOption
from millstream.cli.place import GATEWAY, REDIS, Place
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from consumers.replay.calls import Selection
    from loadgen.replay import ReplayReport
    from millstream.client import Client
    from millstream.recorded_requests import FeaturesOf, RecordedRequests

_HOW = "How it is asked again"
GRPC, STREAM = "grpc", "stream"
EVERY = "all"
"""What `--replay` says for all replays, so none is called that."""


def load(
    model: log.ModelArgument = None,
    version: log.VersionOption = "",
    status: log.StatusOption = "",
    entity: log.EntityOption = "",
    since: log.SinceOption = "",
    until: log.UntilOption = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=0, help="Most requests, the oldest; 0: all.")] = 0,
    speed: Annotated[
        str,
        typer.Option(
            "--speed",
            metavar="N|max",
            help="So many times as fast as then, whether answers come or not; max: as fast as they come.",
            rich_help_panel=_HOW,
        ),
    ] = "1",
    over: Annotated[
        str,
        typer.Option(
            "--over",
            metavar="WAY",
            help="grpc: ask a gateway. stream: append to the bulk lanes, past the gateway.",
            rich_help_panel=_HOW,
        ),
    ] = GRPC,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="WHERE",
            help="Another Millstream: its state directory, HOST:PORT of its gateway, or with stream redis://…,HOST:PORT.",
            rich_help_panel=_HOW,
        ),
    ] = "",
    name: Annotated[
        str,
        typer.Option(
            "--name",
            metavar="NAME",
            help="What the event log marks them with (default: load- and the time).",
            rich_help_panel=_HOW,
        ),
    ] = "",
    pin: Annotated[
        bool,
        typer.Option("--pin", help="Ask the versions that answered then, not what is live.", rich_help_panel=_HOW),
    ] = False,
    timeout: Annotated[
        float,
        typer.Option("--timeout", metavar="SECONDS", min=0.001, help="Deadline of a request.", rich_help_panel=_HOW),
    ] = 30.0,
    in_flight: Annotated[
        int,
        typer.Option(
            "--in-flight",
            metavar="N",
            min=1,
            max=20_000,
            help="With --speed max over gRPC: so many at once.",
            rich_help_panel=_HOW,
        ),
    ] = 256,
    prefix: Annotated[
        str,
        typer.Option(
            "--prefix", envvar="MILLSTREAM_PREFIX", help="With stream: first part of every key.", rich_help_panel=_HOW
        ),
    ] = "ms",
    plot: PlotOption = None,
    state_dir: StateDirOption = None,
    event_log: EventLogOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Ask recorded requests again, at the pace they came in or faster, and report rate, latency and answers.

    The inputs are those that a model saw then: stored features are sent as
    they were. The requests have ids of their own and are marked, so that
    [bold]events query[/bold] and [bold]count[/bold] do not show them among real ones; ask for them
    with [bold]--replay NAME[/bold].

    The live version answers them, and how many answers are what they were is
    counted. Last digits can change by how many rows share a predict call:
    [bold]replay verify[/bold] keeps to that, [bold]replay compare[/bold] says what changed.

    Ctrl-C ends it with the report so far. Ends with code 1 where a request
    failed, with 4 where nothing was asked for that there is.

    [bold]Examples[/bold]

      millstream replay load --since 1h
      millstream replay load churn --since 7d --speed 10 --plot busy.html
      millstream replay load churn --limit 100000 --speed max --over stream
      millstream replay load churn --since 1d --to staging:50051 --name rc1
    """
    screen = Screen(as_json=as_json, quiet=quiet)
    times = _speed(speed)
    if over not in (GRPC, STREAM):
        raise CommandFailed(f"--over: expected {GRPC} or {STREAM}, got {over!r}", USAGE)
    if not math.isfinite(timeout):
        raise CommandFailed(f"--timeout: expected a number of seconds, got {timeout}", USAGE)
    name = _name(name)
    target = _target(to, over, state_dir)
    check_plot(plot)
    selection = log.selected(model, version=version, status=status, entity=entity, since=since, until=until)
    where = target.address(REDIS if over == STREAM else GATEWAY)
    source = Place.of(state_dir, event_log=event_log)
    with (
        _features(target, over, timeout) as features_of,
        _requests(source, screen, selection, features_of, limit=limit, pin=pin) as requests,
    ):
        total = requests.count()
        if not total:
            raise CommandFailed("the event log has no requests of what was asked for", NOT_FOUND)
        screen.note(f"{total:,} requests, marked as the replay {name}")
        found = _run(screen, requests, total, where, over, name, times, timeout, in_flight, prefix)
        left_out = dict(sorted(requests.left_out.items()))
    _show(screen, found, left_out, times)
    conclude(screen, _title(found, times), found.report, plot)


def _run(
    screen: Screen,
    requests: RecordedRequests,
    total: int,
    where: str,
    over: str,
    name: str,
    speed: float,
    timeout: float,
    in_flight: int,
    prefix: str,
) -> ReplayReport:
    from ingest.producer import Producer
    from loadgen.replay import replay_calls
    from loadgen.replay_bulk import replay_entries
    from loadgen.report import Tally

    tally = Tally()
    with live(screen, tally, count=total) as show:
        more: dict[str, Any] = {"name": name, "speed": speed, "timeout_s": timeout, "tally": tally, "on_progress": show}
        if over == GRPC:
            return _until_interrupted(
                requests, lambda stop: replay_calls(where, requests, in_flight=in_flight, stop=stop, **more)
            )
        with Producer(where, prefix) as producer:
            return _until_interrupted(requests, lambda stop: replay_entries(producer, requests, stop=stop, **more))


def _until_interrupted(
    requests: RecordedRequests, replay: Callable[[asyncio.Event], Awaitable[ReplayReport]]
) -> ReplayReport:
    async def run(stop: asyncio.Event) -> ReplayReport:
        async def watch() -> None:
            await stop.wait()
            requests.interrupt()

        watching = asyncio.create_task(watch())
        try:
            return await replay(stop)
        finally:
            watching.cancel()

    return until_interrupted(run)


@contextmanager
def _requests(
    place: Place, screen: Screen, selection: Selection, features_of: FeaturesOf, *, limit: int, pin: bool
) -> Iterator[RecordedRequests]:
    from millstream.recorded_requests import RecordedRequests

    since, until = (
        datetime.fromtimestamp(micros / 1e6, UTC) if micros is not None else None
        for micros in (selection.since_us, selection.until_us)
    )
    with open_log(place, screen, selection.model_id, since=since, until=until) as files, files.connect() as connection:
        if files.live is not None:  # sorting more than fits into memory
            folder = str(files.live.parent).replace("'", "''")
            connection.execute(f"SET temp_directory = '{folder}'")
        yield RecordedRequests(connection, selection, features_of, limit=limit, pin=pin)


@contextmanager
def _features(target: Place, over: str, timeout: float) -> Iterator[FeaturesOf]:
    """What versions are served there take, as the gateway says; without one the log is taken at its word."""
    if over == STREAM and not target.knows(GATEWAY):
        raise CommandFailed(_NO_GATEWAY, USAGE)
    with target.client(timeout) as client:
        yield lambda model_id, version: _served(client, model_id, version)


def _served(client: Client, model_id: str, version: str) -> Any:
    from millstream.client import NotFound

    try:
        return client.model(model_id, version).features
    except NotFound:
        return None


_NO_GATEWAY = (
    "--to: with --over stream expected the state directory of a Millstream, or its two addresses as "
    "redis://HOST:PORT,HOST:PORT of the gateway, which says what its models take"
)


def _speed(text: str) -> float:
    if text == "max":
        return math.inf
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < math.inf:
        raise CommandFailed(f"--speed: expected a number above 0 or max, got {text!r}", USAGE)
    return speed


def _name(given: str) -> str:
    from contract.request import Request

    name = given or f"load-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    for violation in Request("", replay=name).check_ids():
        raise CommandFailed(f"--name: {violation.description}; got {name[:200]!r}", USAGE)
    if name == EVERY:
        raise CommandFailed(f"--name: expected a name that is not {EVERY!r}, which stands for every replay", USAGE)
    return name


def _target(to: str, over: str, state_dir: Path | None) -> Place:
    """Where the requests go."""
    if not to:
        return Place.of(state_dir)
    if Path(to).is_dir():
        return Place.of(Path(to))
    addresses = to.split(",")
    named = {REDIS if "://" in each else GATEWAY: each for each in addresses}
    if len(named) < len(addresses) or (over == GRPC and REDIS in named):
        raise CommandFailed(f"--to: expected a state directory or HOST:PORT of a gateway, got {to!r}", USAGE)
    if over == STREAM and named.keys() != {REDIS, GATEWAY}:
        raise CommandFailed(_NO_GATEWAY, USAGE)
    return Place.of(None, **named)


def _title(found: ReplayReport, speed: float) -> str:
    pace = f"{speed:g} times as fast as then"
    if speed in (1, math.inf):
        pace = "at its own pace" if speed == 1 else "as fast as answered"
    return f"replay {found.name}, {pace}"


def _show(screen: Screen, found: ReplayReport, left_out: dict[str, int], speed: float) -> None:
    if screen.as_json:
        pace = "max" if speed == math.inf else speed
        screen.line({**found.to_json(), "speed": pace, "left_out": left_out})
        return
    show_report(screen, _title(found, speed), found.report)
    screen.table(
        ("answered as then", "but for last digits", "changed", "not answered then", "left out"),
        [(found.equal, found.close, found.changed, found.unknown, sum(left_out.values()))],
    )
    for why, count in left_out.items():
        screen.text(f"left out: {why} ({count:,})")
    screen.note(f"`millstream events query --replay {found.name}` shows them")
