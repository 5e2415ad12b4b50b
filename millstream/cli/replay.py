"""replay: what was asked once, asked again of the code that answers now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli import replay_compare, replay_load
from millstream.cli import replay_log as log
from millstream.cli.errors import FALSE
from millstream.cli.log_place import EventLogOption
from millstream.cli.options import JsonOption, QuietOption, RedisOption, StateDirOption
from millstream.cli.place import Place
from millstream.cli.registry_call import RegistryOption
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from consumers.replay.verdict import Tally, Verdict

app = typer.Typer(no_args_is_help=True, help="Replay recorded requests: would they be answered so again?")
app.command("compare")(replay_compare.compare)
app.command("load")(replay_load.load)

INTERRUPTED = 130
FIRST = 10
"""Events that are listed with what differs, where nobody asks for all."""


@app.command("verify")
def verify(
    model: log.ModelArgument = None,
    version: log.VersionOption = "",
    status: log.StatusOption = "",
    entity: log.EntityOption = "",
    request_id: log.RequestOption = "",
    since: log.SinceOption = "",
    until: log.UntilOption = "",
    replay: log.ReplayOption = "",
    limit: log.LimitOption = 0,
    show_all: Annotated[
        bool, typer.Option("--all", help="List every event that was not reproduced; with --json every event.")
    ] = False,
    store: log.StoreOption = "",
    state_dir: StateDirOption = None,
    event_log: EventLogOption = "",
    redis_url: RedisOption = "",
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Ask the version that answered again, and compare to the last bit.

    Each predict call is made again as it was: the same version by its
    digest, the same rows in the same order, by the same engine with as many
    threads. Where what predicts here is not what predicted then, events are
    told apart as RUNTIME_DIFFERS, with what differs.

    Models are loaded in this process, which runs their code: only those that
    the registry recorded.

    Ends with 1 where an event is DIFFERENT, with 4 where nothing was asked for that there is.

    [bold]Examples[/bold]

      millstream replay verify churn --since 1h
      millstream replay verify --request-id order-1 --all
      millstream replay verify --state-dir copy-of-state --json
    """
    screen = Screen(as_json=as_json, quiet=quiet)
    selection = log.selected(
        model,
        version=version,
        status=status,
        entity=entity,
        request_id=request_id,
        since=since,
        until=until,
        replay=replay,
    )
    place = Place.of(state_dir, event_log=event_log, redis=redis_url, registry=registry)
    with log.open_replay(place, screen, selection, store=store) as opened:
        from consumers.replay.verdict import Outcome

        found = _Found(screen, show_all=show_all)
        ended = _run(opened, screen, limit, found.take)
    found.show(calls=ended.calls, is_whole=ended.is_whole)
    if not ended.is_whole:
        raise typer.Exit(INTERRUPTED)
    if found.tally.count(Outcome.DIFFERENT):
        raise typer.Exit(FALSE)


class _Ended:
    """How a run ended: whether with everything, and how many predict calls were made."""

    def __init__(self, calls: int, *, is_whole: bool) -> None:
        self.calls = calls
        self.is_whole = is_whole


def _run(opened: log.ReplayLog, screen: Screen, limit: int, take: Callable[[Verdict], None]) -> _Ended:
    """Until all is verified, or Ctrl-C."""
    import duckdb

    from consumers.replay.calls import read_calls
    from consumers.replay.verify import Verifier

    verifier = Verifier(opened.versions, opened.runtimes)
    total = min(opened.events, limit or opened.events)
    try:
        with bar(screen, "verifying", total) as advance:
            for call in read_calls(opened.connection, opened.selection, limit):
                done = 0
                for verdict in verifier.verify(call):
                    take(verdict)
                    done += 1
                advance(done)
    except (KeyboardInterrupt, duckdb.InterruptException):
        return _Ended(verifier.calls, is_whole=False)
    return _Ended(verifier.calls, is_whole=True)


@contextmanager
def bar(screen: Screen, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on stderr with events and how many a second; none where nobody would see it."""
    if not screen.watched:
        yield lambda _events: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed or 0:,.0f} events/s")

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), Rate(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task(what, total=total)
        yield lambda events: bars.update(task, advance=events)


class _Found:
    """Verdicts as they come, and what is shown of them."""

    def __init__(self, screen: Screen, *, show_all: bool) -> None:
        from consumers.replay.verdict import Tally

        self.tally: Tally = Tally()
        self._screen = screen
        self._all = show_all
        self._listed: list[Verdict] = []

    def take(self, verdict: Verdict) -> None:
        from consumers.replay.verdict import Outcome

        self.tally.add(verdict)
        passed = verdict.outcome in (Outcome.REPRODUCED, Outcome.NOT_PREDICTED)
        if self._screen.as_json:
            if self._all or not passed:
                self._screen.line(verdict_json(verdict))
        elif self._all and not passed:
            self._screen.text(_told(verdict))
        elif verdict.compared.count and len(self._listed) < FIRST:
            self._listed.append(verdict)

    def show(self, *, calls: int, is_whole: bool) -> None:
        """The summary."""
        tally, screen = self.tally, self._screen
        if screen.as_json:
            screen.line({"summary": summary_json(tally, calls=calls, is_whole=is_whole)})
            return
        for verdict in self._listed:
            screen.text(_told(verdict))
        screen.table(_COLUMNS, list(_rows(tally)))
        for (outcome, why), count in sorted(tally.reasons.items()):
            example = tally.examples.get((outcome, why), "")
            screen.text(f"{_words(outcome)}: {why} ({count:,})" + (f", such as: {example}" if example else ""))
        for each, count in tally.runtimes.most_common():
            screen.text(f"{each} ({count:,})")
        if tally.runtimes:
            screen.text(f"equal bits all the same: {tally.equal_elsewhere:,}")
        if tally.largest:
            screen.text(f"largest difference: {tally.largest!r}")
        said = f"{tally.events:,} events, {calls:,} predict calls made again"
        screen.note(said if is_whole else f"{said}; ended by Ctrl-C before the rest")


_COLUMNS = (
    "model", "version", "events", "reproduced", "different", "runtime differs", "not reproducible", "not predicted",
)  # fmt: skip


def _rows(tally: Tally) -> Iterator[tuple[object, ...]]:
    from consumers.replay.verdict import Outcome

    for model_id, version in dict.fromkeys((model_id, version) for model_id, version, _ in sorted(tally.outcomes)):
        counts = [tally.outcomes[model_id, version, outcome] for outcome in Outcome]
        yield model_id, version, sum(counts), *counts


def _words(outcome: str) -> str:
    return outcome.lower().replace("_", " ")


def _told(verdict: Verdict) -> str:
    """An event that was not reproduced, in a few lines."""
    event, compared = verdict.event, verdict.compared
    asked = datetime.fromtimestamp(event.asked_us / 1e6, UTC).isoformat(timespec="milliseconds")
    why = verdict.detail or verdict.why or "; ".join(verdict.runtime)
    lines = [
        f"{verdict.outcome} {event.model_id} {event.version}, event {event.number}, request {event.request_id}, "
        f"asked {asked}" + (f": {why}" if why else "")
    ]
    for each in compared.differences:
        row = f"row {each.row}, " if event.rows > 1 else ""
        lines.append(f"  {row}{each.output}: {each.recorded!r} then, {each.computed!r} now")
    if compared.count > len(compared.differences) > 0:
        lines.append(f"  and {compared.count - len(compared.differences):,} more")
    return "\n".join(lines)


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    """One event's verdict as plain values."""
    event, compared = verdict.event, verdict.compared
    return {
        "model_id": event.model_id,
        "number": event.number,
        "request_id": event.request_id,
        "version": event.version,
        "digest": event.digest,
        "status": event.status,
        "outcome": str(verdict.outcome),
        "why": str(verdict.why),
        "detail": verdict.detail,
        "runtime": list(verdict.runtime),
        "values_that_differ": compared.count,
        "largest_difference": _plain(compared.largest),
        "differences": [
            {
                "row": each.row,
                "output": each.output,
                "recorded": _plain(each.recorded),
                "computed": _plain(each.computed),
            }
            for each in compared.differences
        ],
    }


def _plain(value: object) -> object:
    """As JSON can hold it: NaN and the infinities as texts."""
    return str(value) if isinstance(value, float) and not isfinite(value) else value


def summary_json(tally: Tally, *, calls: int, is_whole: bool) -> dict[str, Any]:
    """What all of them came to."""
    from consumers.replay.verdict import Outcome

    return {
        "events": tally.events,
        "predict_calls": calls,
        **{str(outcome).lower(): tally.count(outcome) for outcome in Outcome},
        "by_version": [
            {name.replace(" ", "_"): cell for name, cell in zip(_COLUMNS, row, strict=True)} for row in _rows(tally)
        ],
        "reasons": {f"{_words(outcome)}: {why}": count for (outcome, why), count in sorted(tally.reasons.items())},
        "runtime": dict(tally.runtimes),
        "equal_in_another_runtime": tally.equal_elsewhere,
        "largest_difference": _plain(tally.largest),
        "complete": is_whole,
    }
