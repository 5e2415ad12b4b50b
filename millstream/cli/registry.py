"""registry: which versions there are, what is in production, and why."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from millstream.cli import acts, keygen, publish
from millstream.cli.errors import FALSE
from millstream.cli.moments import told
from millstream.cli.options import JsonOption, QuietOption, StateDirOption
from millstream.cli.registry_call import ModelArgument, RegistryOption, ask_registry
from millstream.cli.screen import Screen

app = typer.Typer(no_args_is_help=True, help="Versions of models: which there are, which answers, and why.")


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
    found = ask_registry(state_dir, registry, lambda stub: stub.ListVersions(request, timeout=30))
    if as_json:
        for each in found.versions:
            screen.line(_version_json(each))
    else:
        rows = [
            (each.model_id, each.version, each.state, each.tag, each.trained_date, each.location, _why(each))
            for each in found.versions
        ]
        screen.table(("model", "version", "state", "tag", "trained", "location", "why"), rows, title=found.store)
        for each in found.versions:
            for warning in each.warnings:
                screen.note(f"{each.model_id} {each.version}: {warning}")
        for each in found.models:
            if each.pinned:
                screen.note(f"{each.model_id} is pinned: {each.pinned}")
    screen.note(f"last look into the store: {told(found.last_poll) or 'none yet'}")
    if found.store_problem:
        screen.note(f"the store has a problem: {found.store_problem}")


@app.command("show")
def show(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model.")],
    state_dir: StateDirOption = None,
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show one model: which version is what, by which statement, and what is kept back.

    [bold]Example[/bold]

      millstream registry show churn
    """
    from protos import millstream_v1_pb2 as v1

    screen = Screen(as_json=as_json, quiet=quiet)
    request = v1.ListVersionsRequest(model_id=model)
    found = ask_registry(state_dir, registry, lambda stub: stub.ListVersions(request, timeout=30))
    routing = next((each for each in found.models if each.model_id == model), v1.ModelRouting(model_id=model))
    if as_json:
        screen.line(_routing_json(routing) | {"versions": [_version_json(each) for each in found.versions]})
        return
    screen.table(("", "version", "since"), _roles(routing), title=model)
    screen.table(
        ("version", "state", "traffic %", "tag", "digest", "trained", "why"),
        [
            (
                each.version,
                each.state,
                each.traffic_percent,
                each.tag,
                each.digest[:12],
                each.trained_date,
                _why(each),
            )
            for each in found.versions
        ],
    )
    for each in found.versions:
        for warning in each.warnings:
            screen.note(f"{each.version}: {warning}")
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
    seen = ask_registry(state_dir, registry, lambda stub: stub.Sync(v1.SyncRequest(), timeout=timeout))
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
    found = ask_registry(state_dir, registry, lambda stub: stub.History(request, timeout=30))
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
                    "by": each.by,
                }
            )
        return
    rows = [(told(each.at), each.model_id, each.version, each.act, each.detail, each.by) for each in found.entries]
    screen.table(("at", "model", "version", "act", "detail", "by"), rows)


for _act in (acts.promote, acts.canary, acts.shadow, acts.rollback, acts.retire, acts.pin, acts.unpin, acts.gate):
    app.command(_act.__name__)(_act)
app.command("publish")(publish.publish)
app.command("keygen")(keygen.keygen)


def _why(version: Any) -> str:
    """Why a version stands where it stands."""
    if version.held_back and version.state != "refused":
        return f"held back: {version.held_back}"
    return str(version.problem or version.statement)


def _roles(routing: Any) -> list[tuple[str, str, str]]:
    rows = [("production", routing.production or "none", routing.statement)]
    if routing.coming:
        rows.append(("coming", routing.coming, ""))
    if routing.pinned:
        rows.append(("pinned", "", routing.pinned))
    if routing.canary:
        share = f"{routing.canary_percent:g} % of the requests"
        if routing.abort_over:
            share += (
                f"; aborted over {routing.abort_over * 100:g} % failures, "
                f"{routing.canary_failed} of {routing.canary_finished} so far"
            )
        rows.append(("canary", routing.canary, share))
    if routing.shadow:
        rows.append(("shadow", routing.shadow, ""))
    if routing.gate:
        rows.append(("gate", "", routing.gate))
    return rows


def _routing_json(routing: Any) -> dict[str, Any]:
    return {
        "model_id": routing.model_id,
        "production": routing.production,
        "statement": routing.statement,
        "coming": routing.coming,
        "pinned": routing.pinned,
        "canary": routing.canary,
        "canary_percent": routing.canary_percent,
        "abort_over": routing.abort_over,
        "canary_finished": routing.canary_finished,
        "canary_failed": routing.canary_failed,
        "shadow": routing.shadow,
        "gate": routing.gate,
    }


def _version_json(version: Any) -> dict[str, Any]:
    return {
        "model_id": version.model_id,
        "version": version.version,
        "state": version.state,
        "tag": version.tag,
        "digest": version.digest,
        "trained_date": version.trained_date,
        "location": version.location,
        "problem": version.problem,
        "held_back": version.held_back,
        "statement": version.statement,
        "traffic_percent": version.traffic_percent,
        "first_seen": told(version.first_seen),
        "warnings": list(version.warnings),
    }
