"""The command line: `millstream COMMAND`.

Commands are registered here and nowhere else; what they need is imported when they run, so that `--help` is there at
once.
"""

from __future__ import annotations

from typing import Annotated

import typer

from millstream.cli import (
    dead,
    doctor,
    events,
    load,
    models,
    predict,
    produce,
    registry,
    replay,
    roles,
    settings,
    status,
)
from millstream.cli.errors import PlainErrors

__all__ = ["app", "main"]

_ASK, _RUN, _LOOK = "Ask", "Run", "Look after it"

app = typer.Typer(
    name="millstream",
    cls=PlainErrors,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Serve machine-learning models over Redis Streams.

    [bold]To begin[/bold]

      millstream up                          everything, with the stock models
      millstream predict                     pick a model, enter values
      millstream events query --since 10m    what was asked and answered
    """,
    epilog="Ends with 0 ok, 1 found false or failed, 2 usage, 3 refused input, 4 not found, 5 unavailable, "
    "6 deadline, 130 Ctrl-C.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from millstream import __version__

        print(f"millstream {__version__}")
        raise typer.Exit


@app.callback()
def root(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Serve machine-learning models over Redis Streams."""
    del debug, version


# Values may be negative numbers, which look like options.
_VALUES = {"ignore_unknown_options": True}
app.command("predict", rich_help_panel=_ASK, context_settings=_VALUES)(predict.predict)
app.command("submit", rich_help_panel=_ASK, context_settings=_VALUES)(predict.submit)
app.command("result", rich_help_panel=_ASK)(predict.result)
app.command("produce", rich_help_panel=_ASK)(produce.produce)
app.command("models", rich_help_panel=_ASK)(models.models)

app.command("up", rich_help_panel=_RUN)(roles.up)
app.command("demo", rich_help_panel=_RUN)(roles.demo)
app.command("serve", rich_help_panel=_RUN)(roles.serve)
app.command("stock", rich_help_panel=_RUN)(roles.stock)
app.command("gateway", rich_help_panel=_RUN)(roles.gateway)
app.command("worker", rich_help_panel=_RUN)(roles.worker)
app.command("sink", rich_help_panel=_RUN)(roles.sink)
app.command("trial", rich_help_panel=_RUN)(roles.trial)

app.command("status", rich_help_panel=_LOOK)(status.status)
app.command("doctor", rich_help_panel=_LOOK)(doctor.doctor)
app.command("load", rich_help_panel=_LOOK)(load.load)
app.command("settings", rich_help_panel=_LOOK)(settings.settings)
app.add_typer(events.app, name="events", rich_help_panel=_LOOK)
app.add_typer(replay.app, name="replay", rich_help_panel=_LOOK)
app.add_typer(dead.app, name="dead", rich_help_panel=_LOOK)
registry.app.command("run")(roles.registry)
app.add_typer(registry.app, name="registry", rich_help_panel=_LOOK)


def main() -> None:
    """The entry point `millstream`; never returns."""
    app()
