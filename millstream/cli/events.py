"""events: the record of every prediction that was asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli import events_books, events_proof, events_sql
from millstream.cli.errors import USAGE, CommandFailed
from millstream.cli.log_place import EventLogOption
from millstream.cli.moments import put, told
from millstream.cli.options import JsonOption, QuietOption, StateDirOption
from millstream.cli.place import EVENT_LOG, Place, called
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from protos import millstream_v1_pb2 as v1

app = typer.Typer(no_args_is_help=True, help="The record of every accepted request: ask it, prove it, seal it.")

_FILTER = "Filter"
STATUSES = ("OK", "FAILED", "INVALID", "EXPIRED", "POISON", "CANCELLED", "SHADOW")

ModelOption = Annotated[str, typer.Option("--model", metavar="MODEL", help="Of this model.", rich_help_panel=_FILTER)]
VersionOption = Annotated[str, typer.Option("--version", metavar="V", help="Answered by it.", rich_help_panel=_FILTER)]
StatusOption = Annotated[
    str, typer.Option("--status", metavar="STATUS", help=f"One of {', '.join(STATUSES)}.", rich_help_panel=_FILTER)
]
EntityOption = Annotated[str, typer.Option("--entity", metavar="ID", help="About this one.", rich_help_panel=_FILTER)]
RequestOption = Annotated[
    str, typer.Option("--request-id", metavar="ID", help="Of this request.", rich_help_panel=_FILTER)
]
LaneOption = Annotated[str, typer.Option("--lane", metavar="LANE", help="requests or bulk.", rich_help_panel=_FILTER)]
ReplayOption = Annotated[
    str,
    typer.Option(
        "--replay",
        metavar="NAME",
        help="Of this replay, or all: those of replays too. Without it real requests alone.",
        rich_help_panel=_FILTER,
    ),
]
SinceOption = Annotated[
    str,
    typer.Option(
        "--since", metavar="TIME", help="2026-01-31T09:30:00Z, or ago: 30s, 10m, 2h, 7d.", rich_help_panel=_FILTER
    ),
]
UntilOption = Annotated[str, typer.Option("--until", metavar="TIME", help="The same.", rich_help_panel=_FILTER)]
LimitOption = Annotated[int, typer.Option("--limit", metavar="N", min=1, max=100_000, help="Most rows.")]


@app.command("query")
def query(
    model: ModelOption = "",
    version: VersionOption = "",
    status: StatusOption = "",
    entity: EntityOption = "",
    request_id: RequestOption = "",
    lane: LaneOption = "",
    replay: ReplayOption = "",
    since: SinceOption = "",
    until: UntilOption = "",
    limit: LimitOption = 100,
    oldest_first: Annotated[bool, typer.Option("--oldest-first", help="Instead of newest first.")] = False,
    state_dir: StateDirOption = None,
    event_log: EventLogOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show events, newest first.

    [bold]Examples[/bold]

      millstream events query --model churn --since 10m
      millstream events query --request-id ID --json
    """
    screen = Screen(as_json=as_json, quiet=quiet)
    asked = _query(model, version, status, entity, request_id, lane, replay, since, until)
    asked.limit, asked.oldest_first = limit, oldest_first
    found = 0
    rows = []
    for event in _stream("Query", asked, state_dir, event_log):
        found += 1
        if as_json:
            screen.line(event_json(event))
        else:
            rows.append(_row(event))
    if not as_json and rows:
        screen.table(_COLUMNS, rows)
    screen.note(f"{found} events" + (f", the limit (--limit {limit})" if found == limit else ""))


@app.command("count")
def count(
    model: ModelOption = "",
    version: VersionOption = "",
    status: StatusOption = "",
    entity: EntityOption = "",
    request_id: RequestOption = "",
    lane: LaneOption = "",
    replay: ReplayOption = "",
    since: SinceOption = "",
    until: UntilOption = "",
    state_dir: StateDirOption = None,
    event_log: EventLogOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Count events, by model and by status.

    [bold]Example[/bold]

      millstream events count --since 24h
    """
    from protos import millstream_v1_pb2_grpc as v1_grpc

    screen = Screen(as_json=as_json, quiet=quiet)
    asked = _query(model, version, status, entity, request_id, lane, replay, since, until)
    place = Place.of(state_dir, event_log=event_log)
    with place.channel(EVENT_LOG) as channel:
        stub: Any = v1_grpc.EventLogStub(channel)
        counted = called(EVENT_LOG, place.address(EVENT_LOG), lambda: stub.Count(asked, timeout=60))
    content = {
        "events": counted.events,
        "distinct_requests": counted.distinct_requests,
        "by_model": dict(sorted(counted.by_model.items())),
        "by_status": dict(sorted(counted.by_status.items())),
        "alarms": dict(sorted(counted.alarms.items())),
    }
    if as_json:
        screen.line(content)
        return
    rows: list[tuple[str, str, int]] = [
        ("all", "", counted.events),
        ("different requests", "", counted.distinct_requests),
    ]
    rows += [("model", name, n) for name, n in content["by_model"].items()]
    rows += [("status", name, n) for name, n in content["by_status"].items()]
    screen.table(("", "", "events"), rows)
    for model_id, alarm in content["alarms"].items():
        screen.note(f"{model_id} is not recorded: {alarm}")


@app.command("follow")
def follow(
    model: ModelOption = "",
    version: VersionOption = "",
    status: StatusOption = "",
    entity: EntityOption = "",
    request_id: RequestOption = "",
    lane: LaneOption = "",
    replay: ReplayOption = "",
    since: SinceOption = "",
    state_dir: StateDirOption = None,
    event_log: EventLogOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show events as they are recorded, until Ctrl-C.

    [bold]Example[/bold]

      millstream events follow --model churn --status FAILED
    """
    screen = Screen(as_json=as_json, quiet=quiet)
    asked = _query(model, version, status, entity, request_id, lane, replay, since, "")
    screen.note("following; Ctrl-C ends it")
    for event in _stream("Follow", asked, state_dir, event_log):
        if as_json:
            screen.line(event_json(event))
        else:
            screen.text("  ".join(str(cell) for cell in _row(event)))


app.command("sql")(events_sql.sql)
app.command("reconcile")(events_books.reconcile)
app.command("verify")(events_proof.verify)
app.command("heads")(events_proof.heads)
app.command("seal")(events_books.seal)
app.command("erase")(events_proof.erase)


def _query(
    model: str,
    version: str,
    status: str,
    entity: str,
    request_id: str,
    lane: str,
    replay: str,
    since: str,
    until: str,
) -> v1.EventQuery:
    from protos import millstream_v1_pb2 as v1

    if status and status.upper() not in STATUSES:
        raise CommandFailed(f"--status: expected one of {', '.join(STATUSES)}; got {status!r}", USAGE)
    if lane and lane not in ("requests", "bulk"):
        raise CommandFailed(f"--lane: expected requests or bulk, got {lane!r}", USAGE)
    asked = v1.EventQuery(
        model_id=model,
        version=version,
        status=status.upper(),
        entity_id=entity,
        request_id=request_id,
        lane=lane,
        replay="*" if replay == "all" else replay,
    )
    put(asked.since, since, "--since")
    put(asked.until, until, "--until")
    return asked


def _stream(method: str, asked: v1.EventQuery, state_dir: Path | None, event_log: str) -> Any:
    from protos import millstream_v1_pb2_grpc as v1_grpc

    place = Place.of(state_dir, event_log=event_log)
    address = place.address(EVENT_LOG)
    with place.channel(EVENT_LOG) as channel:
        call = getattr(v1_grpc.EventLogStub(channel), method)(asked)
        try:
            while (event := called(EVENT_LOG, address, lambda: next(call, None))) is not None:
                yield event
        finally:
            call.cancel()


_COLUMNS = ("asked at", "model", "version", "status", "request", "entity", "inputs", "outputs")


def _row(event: v1.ModelEvent) -> tuple[str, ...]:
    answered = event.status in ("OK", "SHADOW")
    outcome = event.outputs_json if answered else f"{event.error_reason}: {event.error_message}"
    if event.HasField("erased_at"):
        outcome = f"erased at {told(event.erased_at)}"
    return (
        told(event.user_request_timestamp),
        event.model_id,
        event.version,
        f"{event.status} (replay {event.replay})" if event.replay else event.status,
        event.request_id,
        event.entity_id,
        _short(event.inputs_json),
        _short(outcome),
    )


def _short(text: str, most: int = 120) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def event_json(event: v1.ModelEvent) -> dict[str, Any]:
    """An event as plain values: every field of the log's row, JSON columns read, times in RFC 3339."""
    content: dict[str, Any] = {}
    for field in event.DESCRIPTOR.fields:
        value = getattr(event, field.name)
        if field.name.endswith("_json"):
            content[field.name.removesuffix("_json")] = json.loads(value) if value else None
        elif field.message_type is not None:
            content[field.name] = told(value) or None
        else:
            content[field.name] = value
    return content
