"""How a load run is shown: live while it goes on, and as tables once it is over; and how Ctrl-C ends it in order."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from millstream.cli.errors import FALSE, USAGE, CommandFailed
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from loadgen.report import Report, Tally

INTERRUPTED = 130
LATE_MS = 20.0
"""Lag of an open loop that its latencies would hide."""

Ran = TypeVar("Ran")
Show = Callable[[int, float], None]
"""Called with the number of requests that ended and the seconds since the start."""

PlotOption = Annotated[
    Path | None,
    typer.Option(
        "--plot",
        metavar="FILE",
        dir_okay=False,
        help="Draw latency by percentile and over time: .svg, .png or .html.",
        rich_help_panel="Output",
    ),
]


def check_plot(plot: Path | None) -> None:
    """Before the run, so that it is not lost for a picture. Raises CommandFailed."""
    if plot is None:
        return
    from loadgen.plot import NotDrawable
    from loadgen.plot import check_plot as check

    try:
        check(plot)
    except NotDrawable as error:
        raise CommandFailed(f"--plot: {error}", USAGE) from None


def until_interrupted(run: Callable[[asyncio.Event], Awaitable[Ran]]) -> Ran:
    """What the run comes to; Ctrl-C and SIGTERM set its event, once, and a second one ends it the hard way."""

    async def watched() -> Ran:
        stop, loop = asyncio.Event(), asyncio.get_running_loop()

        def end(number: int) -> None:
            stop.set()
            loop.remove_signal_handler(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            # Not in the main thread, or not on this system: then it ends the run as ever.
            with suppress(ValueError, RuntimeError, NotImplementedError):
                loop.add_signal_handler(number, end, number)
        return await run(stop)

    return asyncio.run(watched())


@contextmanager
def live(screen: Screen, tally: Tally, *, count: int = 0, seconds: float = 0.0) -> Iterator[Show | None]:
    """A bar on stderr, by requests or else by time, and how it goes now; nothing where nobody would see it."""
    if not screen.watched:
        yield None
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    columns: tuple[Any, ...] = (
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[ended]:,} requests"),
    )
    bar, line = Progress(*columns), Text()
    with Live(Group(bar, line), console=Console(stderr=True), transient=True, refresh_per_second=5):
        task = bar.add_task("", total=float(count) or seconds or None, ended=0)

        def show(ended: int, spent: float) -> None:
            bar.update(task, completed=ended if count else spent, ended=ended)
            line.plain = told_now(tally)

        yield show


def told_now(tally: Tally) -> str:
    """The last second in one line, and all errors so far."""
    now = tally.now
    parts = [f"{tally.under_way:,} under way"]
    if now.seconds:
        parts = [f"{now.rate:,.0f}/s", f"p50 {now.p50_ms:,.1f} ms", f"p99 {now.p99_ms:,.1f} ms", *parts]
    parts += [f"{code} {count:,}" for code, count in tally.errors.most_common()]
    return " · ".join(parts)


def show_report(screen: Screen, title: str, report: Report) -> None:
    """The report as tables for people."""
    screen.table(
        ("requests", "answered", "failed", "seconds", "answers/s", "mean ms", "p50 ms", "p95 ms", "p99 ms", "max ms"),
        [
            (
                report.requests,
                report.answered,
                sum(report.errors.values()),
                round(report.seconds, 2),
                round(report.rate, 1),
                *(round(ms, 2) for ms in (report.mean_ms, report.p50_ms, report.p95_ms, report.p99_ms, report.max_ms)),
            )
        ],
        title=title,
    )
    if report.percentiles:
        names = tuple(f"{percent:g} %" for percent, _ in report.percentiles)
        screen.table(names, [tuple(round(ms, 2) for _, ms in report.percentiles)], title="so many took at most, in ms")
    if len(report.models) > 1:
        rows = [
            (name, each.answered, *(round(ms, 2) for ms in (each.p50_ms, each.p99_ms, each.max_ms)))
            for name, each in report.models.items()
        ]
        screen.table(("model", "answered", "p50 ms", "p99 ms", "max ms"), rows)
    if report.errors:
        screen.table(("failed with", "requests"), sorted(report.errors.items()))


def conclude(screen: Screen, title: str, report: Report, plot: Path | None) -> None:
    """What is to be said beside the report, the picture, and the exit code. Raises typer.Exit."""
    if report.lag_ms > LATE_MS:
        screen.note(
            f"the load generator itself was up to {report.lag_ms:,.0f} ms late (p99): this machine can't ask so much"
        )
    if plot is not None:
        from loadgen.plot import write_plot

        try:
            write_plot(plot, title, report)
        except OSError as error:
            raise CommandFailed(f"--plot: {plot} can't be written: {error.strerror}", FALSE) from None
        screen.note(f"drawn: {plot}")
    if report.stopped:
        screen.note("ended early; what was under way is not counted")
        raise typer.Exit(INTERRUPTED)
    if report.errors:
        raise typer.Exit(FALSE)
