"""models: what can be asked, and what one model expects."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli.options import AddressOption, JsonOption, QuietOption, StateDirOption
from millstream.cli.place import Place
from millstream.cli.screen import Screen, shown

if TYPE_CHECKING:
    from contract.request import Native
    from protos import millstream_v1_pb2 as v1


def models(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Show this one in full.")] = None,
    version: Annotated[str, typer.Option("--version", metavar="V", help="The signature of this version.")] = "",
    state_dir: StateDirOption = None,
    address: AddressOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """List the models that can be asked, or show one: features, outputs, versions.

    [bold]Examples[/bold]

      millstream models
      millstream models credit_risk
    """
    screen = Screen(as_json=as_json, quiet=quiet)
    with Place.of(state_dir, gateway=address).client() as client:
        if model is not None:
            _show_model(screen, client.model(model, version))
            return
        found = sorted(client.models(), key=lambda each: each.model_id)
    if as_json:
        for each in found:
            screen.line(model_json(each))
        return
    if not found:
        screen.note("no model is live yet: see `millstream registry list`")
        return
    list_models(screen, found)


def list_models(screen: Screen, found: Sequence[v1.Model], *, numbered: bool = False, on_stderr: bool = False) -> None:
    """A table of models; for a person who is about to choose one, numbered and on stderr."""
    columns = ["model", "version", "features", "outputs", "fetched by", "trained"]
    rows: list[list[object]] = [
        [
            each.model_id,
            each.version,
            ", ".join(spec.name for spec in each.features[:6]) + (", …" if len(each.features) > 6 else ""),
            ", ".join(output.name for output in each.outputs),
            each.entity,
            each.trained_date,
        ]
        for each in found
    ]
    if numbered:
        columns = ["", *columns]
        rows = [[number, *row] for number, row in enumerate(rows, start=1)]
    if on_stderr:
        screen = _OnStderr(quiet=screen.quiet)
    screen.table(columns, rows)


class _OnStderr(Screen):
    def console(self) -> Any:
        from rich.console import Console

        return Console(file=sys.stderr, width=None if sys.stderr.isatty() else 120, highlight=False)


def _show_model(screen: Screen, model: v1.Model) -> None:
    if screen.as_json:
        screen.line(model_json(model))
        return
    from millstream.cli.values import features_of

    screen.table(
        ("#", "feature", "expected", "unit", "default", "example", "description"),
        [
            (
                feature.index,
                feature.name,
                feature.expected + (" or null" if feature.nullable else ""),
                feature.unit,
                (shown(feature.default) or "null") if feature.has_default else "",
                feature.example,
                feature.description,
            )
            for feature in features_of(model)
        ],
        title=f"{model.model_id} {model.version} takes",
    )
    screen.table(
        ("output", "type", "from"),
        [(output.name, output.type, output.call) for output in model.outputs],
        title="and answers",
    )
    screen.table(
        ("version", "state", "traffic %", "computed by", "digest", "trained", "location"),
        [
            (
                *(each.version, each.state, each.traffic_percent, each.engine),
                *(each.digest[:12], each.trained_date, each.location),
            )
            for each in model.versions
        ],
        title="versions",
    )
    if model.entity:
        screen.note(f"with --entity ID ({model.entity}) what you leave out is fetched")


def model_json(model: v1.Model) -> dict[str, Any]:
    """A model as plain values."""
    return {
        "model_id": model.model_id,
        "version": model.version,
        "digest": model.digest,
        "location": model.location,
        "trained_date": model.trained_date,
        "entity": model.entity or None,
        "features": [_feature_json(spec) for spec in model.features],
        "outputs": [{"name": output.name, "type": output.type, "call": output.call} for output in model.outputs],
        "versions": [
            {
                "version": each.version,
                "state": each.state,
                "digest": each.digest,
                "engine": each.engine or None,
                "trained_date": each.trained_date,
                "location": each.location,
                "traffic_percent": each.traffic_percent,
                "artifacts": [{"name": a.name, "sha256": a.sha256, "size": a.size} for a in each.artifacts],
            }
            for each in model.versions
        ],
    }


def _feature_json(spec: v1.FeatureSpec) -> dict[str, Any]:
    from contract.request import native

    optional: dict[str, Native | list[Native]] = {
        "default": native(spec.default) if spec.HasField("default") else None,
        "example": native(spec.example) if spec.HasField("example") else None,
        "min": spec.min if spec.HasField("min") else None,
        "max": spec.max if spec.HasField("max") else None,
        "categories": [native(category) for category in spec.categories] or None,
        "unit": spec.unit or None,
        "description": spec.description or None,
    }
    content = {
        "index": spec.index,
        "name": spec.name,
        "type": spec.type,
        "required": spec.required,
        "nullable": spec.nullable,
        "hydrated": spec.hydrated,
    }
    return content | {name: value for name, value in optional.items() if value is not None}
