"""registry: which versions there are, what is in production, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from millstream.cli.errors import FALSE
from millstream.cli.moments import told
from millstream.cli.options import JsonOption, QuietOption, StateDirOption
from millstream.cli.place import REGISTRY, Place, called
from millstream.cli.screen import Screen

app = typer.Typer(no_args_is_help=True, help="Versions of models: which there are, which answers, and why.")

RegistryOption = Annotated[
    str, typer.Option("--registry", metavar="HOST:PORT", help="Talk to this registry instead.", rich_help_panel="Where")
]
ModelArgument = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Only this model.")]


@app.command("list")
def list_versions(
    model: ModelArgument = None,
    state_dir: StateDirOption = None,
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List every version that was found, served or not, and why not.

    [bold]Example[/bold]

      millstream registry list
    """
    from protos import millstream_v1_pb2 as v1

    screen = Screen(as_json=as_json, quiet=quiet)
    request = v1.ListVersionsRequest(model_id=model or "")
    found = _call(state_dir, registry, lambda stub: stub.ListVersions(request, timeout=30))
    if as_json:
        for each in found.versions:
            screen.line(
                {
                    "model_id": each.model_id,
                    "version": each.version,
                    "state": each.state,
                    "tag": each.tag,
                    "digest": each.digest,
                    "trained_date": each.trained_date,
                    "location": each.location,
                    "problem": each.problem,
                    "first_seen": told(each.first_seen),
                    "warnings": list(each.warnings),
                }
            )
    else:
        rows = [
            (each.model_id, each.version, each.state, each.tag, each.trained_date, each.location, each.problem)
            for each in found.versions
        ]
        screen.table(("model", "version", "state", "tag", "trained", "location", "problem"), rows, title=found.store)
        for each in found.versions:
            for warning in each.warnings:
                screen.note(f"{each.model_id} {each.version}: {warning}")
    screen.note(f"last look into the store: {told(found.last_poll) or 'none yet'}")
    if found.store_problem:
        screen.note(f"the store has a problem: {found.store_problem}")


@app.command("sync")
def sync(
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=1.0, help="Longest time to wait.")
    ] = 600.0,
    state_dir: StateDirOption = None,
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Look into the blob store now instead of at the next poll; ends with code 1 where something is wrong there.

    [bold]Example[/bold]

      millstream registry sync
    """
    from protos import millstream_v1_pb2 as v1

    screen = Screen(as_json=as_json, quiet=quiet)
    screen.note("looking into the store …")
    seen = _call(state_dir, registry, lambda stub: stub.Sync(v1.SyncRequest(), timeout=timeout))
    if as_json:
        screen.line(
            {
                "listed": seen.listed,
                "downloaded": seen.downloaded,
                "changes": list(seen.changes),
                "problems": list(seen.problems),
            }
        )
    else:
        screen.text(f"{seen.listed} blobs listed, {seen.downloaded} downloaded, {len(seen.changes)} changes")
        for change in seen.changes:
            screen.text(f"  {change}")
        for problem in seen.problems:
            screen.note(f"  problem: {problem}")
    if seen.problems:
        raise typer.Exit(FALSE)


@app.command("history")
def history(
    model: ModelArgument = None,
    state_dir: StateDirOption = None,
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what happened to the versions, oldest first.

    [bold]Example[/bold]

      millstream registry history churn
    """
    from protos import millstream_v1_pb2 as v1

    screen = Screen(as_json=as_json, quiet=quiet)
    request = v1.HistoryRequest(model_id=model or "")
    found = _call(state_dir, registry, lambda stub: stub.History(request, timeout=30))
    if as_json:
        for each in found.entries:
            screen.line(
                {
                    "at": told(each.at),
                    "model_id": each.model_id,
                    "version": each.version,
                    "digest": each.digest,
                    "act": each.act,
                    "detail": each.detail,
                }
            )
        return
    rows = [(told(each.at), each.model_id, each.version, each.act, each.detail) for each in found.entries]
    screen.table(("at", "model", "version", "act", "detail"), rows)


def _call(state_dir: Path | None, registry: str, ask: Callable[[Any], Any]) -> Any:
    from protos import millstream_v1_pb2_grpc as v1_grpc

    place = Place.of(state_dir, registry=registry)
    with place.channel(REGISTRY) as channel:
        stub = v1_grpc.RegistryStub(channel)
        return called(REGISTRY, place.address(REGISTRY), lambda: ask(stub))
