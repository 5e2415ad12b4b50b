"""replay compare: what another version would have answered to the requests that came, and what that changes."""

from __future__ import annotations

import json
import math
import os
import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit, urlunsplit

import typer

from millstream.cli import replay_log as log
from millstream.cli.errors import FALSE, NOT_FOUND, REFUSED, USAGE, CommandFailed
from millstream.cli.log_place import EventLogOption
from millstream.cli.options import JsonOption, QuietOption, RedisOption, StateDirOption
from millstream.cli.place import Place
from millstream.cli.registry_call import RegistryOption
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from consumers.replay.calls import Selection
    from consumers.replay.candidate import Candidate
    from consumers.replay.comparison import Comparison
    from consumers.replay.report import Made

INTERRUPTED = 130
STDOUT = "-"
_CHANGE, _OUTPUT = "What a change is", "Output"
LISTED = 5


def compare(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Whose recorded requests are asked again.")],
    candidate: Annotated[
        str,
        typer.Argument(metavar="CANDIDATE", help="The version that answers now, or a folder with its signature.json."),
    ],
    against: Annotated[
        str,
        typer.Option(
            "--against",
            metavar="VERSION",
            help="Only what this version had answered; else every one but the candidate.",
            rich_help_panel="Filter",
        ),
    ] = "",
    status: log.StatusOption = "OK",
    entity: log.EntityOption = "",
    since: log.SinceOption = "",
    until: log.UntilOption = "",
    limit: log.LimitOption = 0,
    tolerance: Annotated[
        float,
        typer.Option(
            "--tolerance", metavar="X", min=0, help="Numbers change if they differ by more.", rich_help_panel=_CHANGE
        ),
    ] = 0.01,
    threshold: Annotated[
        float,
        typer.Option(
            "--threshold",
            metavar="P",
            help="Where a number from 0 to 1 decides: crossing it is another decision.",
            rich_help_panel=_CHANGE,
        ),
    ] = 0.5,
    fail_over: Annotated[
        float | None,
        typer.Option(
            "--fail-over",
            metavar="PERCENT",
            min=0,
            max=100,
            help="End with 1 if more of the answers change, or fail.",
            rich_help_panel=_CHANGE,
        ),
    ] = None,
    report: Annotated[
        str,
        typer.Option(
            "--report",
            metavar="FILE",
            help="The report, HTML; - is stdout (default: compare-MODEL-CANDIDATE.html, none with --json).",
            rich_help_panel=_OUTPUT,
        ),
    ] = "",
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no report.", rich_help_panel=_OUTPUT)] = False,
    sample: Annotated[
        int,
        typer.Option(
            "--sample", metavar="N", min=10, max=100_000, help="Answers drawn one by one.", rich_help_panel=_OUTPUT
        ),
    ] = 2000,
    store: log.StoreOption = "",
    state_dir: StateDirOption = None,
    event_log: EventLogOption = "",
    redis_url: RedisOption = "",
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Ask another version what was asked, and report which answers change, by how much, and for whom.

    Real requests that were answered are asked again of the candidate, by the
    code that workers run, and compared with what was answered then. It need
    not be live, nor published: a folder with its signature.json is enough.

    Its model is loaded in this process, which runs its code.

    Ends with 1 where --fail-over is exceeded, with 3 where nothing could be
    compared, with 4 where there is no such model, version or request. Ctrl-C
    ends it with the report of what was seen.

    [bold]Examples[/bold]

      millstream replay compare credit_risk 1.1.0
      millstream replay compare credit_risk 1.1.0 --since 7d --tolerance 0.05 --report risk.html
      millstream replay compare churn ./churn-v2 --against 1.0.0 --limit 100000
      millstream replay compare churn 1.1.0 --fail-over 2 --json
    """
    screen = Screen(as_json=as_json, quiet=quiet or report == STDOUT)
    if not (math.isfinite(tolerance) and math.isfinite(threshold)):
        raise CommandFailed("--tolerance, --threshold: expected a number", USAGE)
    if status.upper() not in ("OK", "SHADOW"):
        raise CommandFailed(f"--status: expected OK or SHADOW, which alone have answers; got {status!r}", USAGE)
    if report and no_report:
        raise CommandFailed("--report and --no-report: expected one of the two", USAGE)
    if report == STDOUT and as_json:
        raise CommandFailed("--report -: expected a file beside --json, as both would be on stdout", USAGE)
    wants_page = not no_report and bool(report or not as_json)
    if wants_page:
        wants_page = _can_report(screen, report)
    selection = log.selected(model, version=against, status=status, entity=entity, since=since, until=until)
    place = Place.of(state_dir, event_log=event_log, redis=redis_url, registry=registry)
    with log.open_replay(place, screen, selection, store=store) as opened:
        from consumers.replay.candidate import Candidate
        from consumers.replay.outputs import Terms
        from consumers.replay.report import Made, to_json
        from millstream.cli.replay_candidate import find_candidate

        found = find_candidate(opened, place, screen, model, candidate, store)
        terms = Terms(tolerance, threshold, sample)
        asked = Candidate(
            found.loaded, found.digest, opened.versions, opened.runtimes, terms, own=against == found.version
        )
        is_whole = _run(opened, screen, limit, asked)
        made = Made(
            model_id=model,
            version=found.version,
            digest=found.digest,
            place=found.place,
            command=_command(
                asked.comparison, opened.selection, place, model, candidate, against=against, limit=limit, store=store
            ),
            at=datetime.now(UTC),
            wanted=min(opened.events, limit or opened.events),
            is_whole=is_whole,
        )
        made = _with_runtime(made, asked)
        comparison = asked.comparison
        if as_json:
            screen.line(to_json(comparison, made))
        elif report != STDOUT:
            _show(screen, comparison, made)
        if wants_page:
            _write(screen, comparison, made, report or f"compare-{model}-{found.version}.html")
    if not is_whole:
        raise typer.Exit(INTERRUPTED)
    if not comparison.rows and not comparison.failed.total:
        raise typer.Exit(REFUSED if comparison.unfit else NOT_FOUND)
    if fail_over is not None and comparison.percent > fail_over:
        screen.note(f"{comparison.percent:.4g} % of the answers change or fail, more than {fail_over:g} %")
        raise typer.Exit(FALSE)


def _run(opened: log.ReplayLog, screen: Screen, limit: int, candidate: Candidate) -> bool:
    """Asks everything again; whether it came to its end before Ctrl-C."""
    import duckdb

    from consumers.replay.calls import read_calls
    from millstream.cli.replay import bar

    total = min(opened.events, limit or opened.events)
    is_whole = True
    with Interrupts() as interrupts:
        try:
            with bar(screen, "comparing", total) as advance:
                for call in read_calls(opened.connection, opened.selection, limit):
                    with interrupts.held():
                        candidate.take(call)
                    advance(len(call.wanted))
        except (KeyboardInterrupt, duckdb.InterruptException):
            is_whole = False
        with suppress(KeyboardInterrupt), interrupts.held():  # by then there is nothing left to end
            candidate.settle()
    return is_whole


class Interrupts:
    """Ctrl-C that waits until what is being added up is whole; a second one does not wait."""

    def __init__(self) -> None:
        self._held = False
        self._came = False
        self._before: Any = None

    def __enter__(self) -> Interrupts:
        with suppress(ValueError):  # not in the main thread: then it ends the command as ever
            self._before = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Raises KeyboardInterrupt at the end of the block, where it came inside of it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._came:
            self._came = False
            raise KeyboardInterrupt

    def _take(self, _number: int, _frame: FrameType | None) -> None:
        if self._held and not self._came:
            self._came = True
            return
        raise KeyboardInterrupt


def _with_runtime(made: Made, candidate: Candidate) -> Made:
    from consumers.model.runtime import Runtime

    here: Runtime = candidate.loaded.runtime
    return replace(
        made,
        engines=candidate.engines,
        runtime=json.loads(here.body),
        runtime_id=here.runtime_id,
        runtime_differences=candidate.runtime_differences(),
        unknown=candidate.unknown,
    )


def _show(screen: Screen, found: Comparison, made: Made) -> None:
    """The headline, and the little that one wants to see without the report."""
    from consumers.replay.report import headline, percent

    for sentence in headline(found, made):
        screen.text(sentence)
    if found.rows:
        screen.table(
            ("output", "answers", "changed", "share", "decide otherwise", "same to the last bit"),
            [
                (each.name, each.rows, each.beyond, percent(each.beyond / max(each.rows, 1)), each.flips,
                 each.rows - each.bits)
                for each in found.outputs
            ],
        )  # fmt: skip
    for what, where in (
        ("other decisions concentrate where", found.flips_concentrate()),
        ("changes concentrate where", found.changes_concentrate()),
    ):
        if where:
            screen.table(
                (what, "answers", "of them", "share", "elsewhere"),
                [
                    (f"{each.feature} {each.condition}", each.rows, each.changed, percent(each.share),
                     percent(each.elsewhere))
                    for each in where[:LISTED]
                ],
            )  # fmt: skip
    for misfit, count in found.misfits.most_common(LISTED):
        came = found.misfit_values.get(misfit, "")
        screen.text(
            f"does not fit: {misfit.feature}: {misfit.expected}" + (f", got {came}" if came else "") + f" ({count:,})"
        )
    for why, count in found.failed.counts.most_common(LISTED):
        screen.text(f"fails: {why} ({count:,})")
    for why, count in found.left_out.counts.most_common():
        screen.text(f"left out: {why} ({count:,})")


def _can_report(screen: Screen, report: str) -> bool:
    """Before the work, so that it is not lost for a page. Raises CommandFailed where one was asked for."""
    from consumers.replay.page import NotMade, check_page

    try:
        check_page()
    except NotMade as error:
        if report:
            raise CommandFailed(f"--report: {error}", USAGE) from None
        screen.note(str(error))
        return False
    folder = Path(report).resolve().parent
    if report != STDOUT and not folder.is_dir():
        raise CommandFailed(f"--report: there is no folder {folder}", USAGE)
    if report and report != STDOUT and Path(report).is_dir():
        raise CommandFailed(f"--report: expected a file, got the folder {report}", USAGE)
    return True


def _write(screen: Screen, found: Comparison, made: Made, report: str) -> None:
    """The report, whole or not at all."""
    from consumers.replay.page import page

    content = page(found, made)
    if report == STDOUT:
        screen.text(content)
        return
    path = Path(report)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_text(content, encoding="utf-8")
        unfinished.replace(path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise CommandFailed(f"{path} can't be written: {error.strerror}", REFUSED) from None
    screen.note(f"report: {path}")


def _command(
    found: Comparison,
    selection: Selection,
    place: Place,
    model: str,
    candidate: str,
    *,
    against: str,
    limit: int,
    store: str,
) -> str:
    """What makes the same comparison once more, of the same requests, whatever came since; without passwords."""
    until = selection.until_us
    if until is None and found.last_us is not None:
        until = found.last_us + 1
    options = {
        "--against": against,
        "--status": "" if selection.status == "OK" else selection.status,
        "--entity": selection.entity_id,
        "--since": _time(selection.since_us),
        "--until": _time(until),
        "--limit": str(limit or ""),
        "--tolerance": f"{found.terms.tolerance:g}",
        "--threshold": f"{found.terms.threshold:g}",
        "--store": _without_secrets(store),
        "--state-dir": str(place.state_dir or ""),
    }
    options |= {f"--{_OPTIONS[part]}": _without_secrets(address) for part, address in place.named}
    words = [f"{name}={value}" if value.startswith("-") else f"{name} {shlex.quote(value)}"
             for name, value in options.items() if value]  # fmt: skip
    return " ".join(["millstream replay compare", shlex.quote(model), shlex.quote(candidate), *words])


_OPTIONS = {"event_log": "event-log", "redis": "redis-url", "registry": "registry"}


def _without_secrets(address: str) -> str:
    """An address without its password and what stands behind a question mark."""
    if "://" not in address:
        return address
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _time(micros: int | None) -> str:
    if micros is None:
        return ""
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)).isoformat().replace("+00:00", "Z")
