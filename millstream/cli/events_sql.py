"""events sql: one SELECT over the whole log."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from millstream.cli.errors import DEADLINE, REFUSED, USAGE, CommandFailed
from millstream.cli.log_place import EventLogOption, micros, open_log
from millstream.cli.moments import moment
from millstream.cli.options import JsonOption, QuietOption, StateDirOption
from millstream.cli.place import Place
from millstream.cli.screen import Screen, shown, some

if TYPE_CHECKING:
    from consumers.audit.log_files import LogFiles
    from consumers.audit.sql import Answer, Limits

_LIMITS, _FILTER, _OUTPUT = "Limits", "Filter", "Output"


def sql(
    query: Annotated[str, typer.Argument(metavar="[SELECT]", help="One SELECT; without it, what it can ask for.")] = "",
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="Read this model alone.", rich_help_panel=_FILTER)
    ] = "",
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Read requests from then on.", rich_help_panel=_FILTER)
    ] = "",
    until: Annotated[
        str, typer.Option("--until", metavar="TIME", help="Read requests before it.", rich_help_panel=_FILTER)
    ] = "",
    limit_seconds: Annotated[
        float, typer.Option("--limit-seconds", min=0.1, help="Longest wait for the answer.", rich_help_panel=_LIMITS)
    ] = 30.0,
    memory: Annotated[
        str, typer.Option("--memory", metavar="SIZE", help="Most memory it may take.", rich_help_panel=_LIMITS)
    ] = "1GB",
    max_rows: Annotated[
        int, typer.Option("--max-rows", metavar="N", min=1, help="Most rows that are shown.", rich_help_panel=_LIMITS)
    ] = 10_000,
    as_csv: Annotated[
        bool, typer.Option("--csv", help="Comma-separated, with a header.", rich_help_panel=_OUTPUT)
    ] = False,
    state_dir: StateDirOption = None,
    event_log: EventLogOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Ask the whole log with one SELECT, sealed or not, while the sink runs or not.

    It runs in a process of its own, which can read the log and nothing else.
    Its tables are `events` and `gaps`; without a SELECT, their columns are shown.

    [bold]Examples[/bold]

      millstream events sql
      millstream events sql "SELECT status, count(*) FROM events GROUP BY 1"
      millstream events sql "FROM gaps" --json
    """
    from consumers.audit.sql import LEAST_MEMORY, Limits

    screen = Screen(as_json=as_json, quiet=quiet)
    if as_json and as_csv:
        raise CommandFailed("expected one of --json and --csv, got both", USAGE)
    if not query.strip():
        _explain(screen)
        return
    limits = Limits(limit_seconds, _bytes(memory), max_rows)
    if limits.memory < LEAST_MEMORY:
        raise CommandFailed(f"--memory: expected at least {LEAST_MEMORY // 2**20}MiB, got {memory!r}", USAGE)
    begin = moment(since, "--since") if since else None
    end = moment(until, "--until") if until else None
    if begin is not None and end is not None and end < begin:
        raise CommandFailed(f"--until: expected a time that is not before --since, got {until!r}", USAGE)
    place = Place.of(state_dir, event_log=event_log)
    with open_log(place, screen, model, since=begin, until=end) as files:
        answer = _answer(files, query, limits, begin, end)
    for skipped in answer.skipped:
        print(skipped, file=sys.stderr)
    _show(screen, answer, as_csv=as_csv)
    screen.note(some(len(answer.rows), "row") + (", and there are more (--max-rows)" if answer.cut else ""))


def _answer(files: LogFiles, query: str, limits: Limits, since: datetime | None, until: datetime | None) -> Answer:
    from consumers.audit.sql import SqlFailed, SqlRefused, SqlTooLong, ask

    try:
        return ask(files, query, limits, since_us=micros(since), until_us=micros(until))
    except (SqlRefused, SqlFailed) as error:
        raise CommandFailed(str(error), REFUSED) from None
    except SqlTooLong as error:
        raise CommandFailed(str(error), DEADLINE) from None


def _show(screen: Screen, answer: Answer, *, as_csv: bool) -> None:
    if as_csv:
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow([name for name, _ in answer.columns])
        writer.writerows([None if cell is None else shown(cell) for cell in row] for row in answer.rows)
    elif screen.as_json:
        names = _different([name for name, _ in answer.columns])
        for row in answer.rows:
            cells = [
                json.loads(cell) if kind == "json" and cell is not None else cell
                for (_, kind), cell in zip(answer.columns, row, strict=True)
            ]
            screen.line(dict(zip(names, cells, strict=True)))
    elif answer.rows:
        screen.table([name for name, _ in answer.columns], answer.rows)


def _different(names: Sequence[str]) -> list[str]:
    """The same, with a number behind those that stood before."""
    found: list[str] = []
    for name in names:
        free, number = name, 2
        while free in found:
            free, number = f"{name}_{number}", number + 1
        found.append(free)
    return found


def _bytes(text: str) -> int:
    from pydantic import ByteSize, TypeAdapter, ValidationError

    try:
        return int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        raise CommandFailed(f"--memory: expected a size such as 500MB or 2GB, got {text!r}", USAGE) from None


def _explain(screen: Screen) -> None:
    """What there is to ask for."""
    from consumers.audit.sql import EXAMPLES
    from consumers.sink.schema import COLUMNS

    if screen.as_json:
        for column in COLUMNS:
            screen.line({"column": column.name, "type": column.kind})
        return
    screen.table(("column of events", "type"), [(column.name, column.kind) for column in COLUMNS])
    screen.note("gaps has one row for each place where events are missing or came back. Examples:")
    for example in EXAMPLES:
        screen.note(f'  millstream events sql "{example}"')
