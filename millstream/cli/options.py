"""Options that many commands share, described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_WHERE, _OUTPUT = "Where", "Output"

StateDirOption = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        envvar="MILLSTREAM_STATE_DIR",
        help="State directory of the `millstream up` to talk to (default: ./millstream-state).",
        rich_help_panel=_WHERE,
    ),
]
AddressOption = Annotated[
    str,
    typer.Option("--address", metavar="HOST:PORT", help="Talk to this gateway instead.", rich_help_panel=_WHERE),
]
RedisOption = Annotated[
    str,
    typer.Option("--redis-url", metavar="URL", help="Talk to this Redis instead.", rich_help_panel=_WHERE),
]
PrefixOption = Annotated[
    str,
    typer.Option("--prefix", envvar="MILLSTREAM_PREFIX", help="First part of every key.", rich_help_panel=_WHERE),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object a line.", rich_help_panel=_OUTPUT)]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="Nothing but results and errors.", rich_help_panel=_OUTPUT)
]
