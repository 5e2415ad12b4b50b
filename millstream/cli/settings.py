"""settings: everything a process can be told."""

from __future__ import annotations

import json
from typing import Any

from millstream.cli.options import JsonOption
from millstream.cli.screen import Screen


def settings(as_json: JsonOption = False) -> None:
    """List every setting with its variable, default and meaning.

    A flag wins over a MILLSTREAM_* variable, a variable over the TOML file that MILLSTREAM_CONFIG names.

    [bold]Example[/bold]

      MILLSTREAM_BATCH_ROWS=64 millstream up
    """
    from contract.settings import Settings

    screen = Screen(as_json=as_json)
    rows: list[tuple[str, str, str]] = []
    for name, field in Settings.model_fields.items():
        default = _plain(field.default)
        variable = f"MILLSTREAM_{name.upper()}"
        if as_json:
            screen.line(
                {"name": name, "variable": variable, "default": default, "description": field.description or ""}
            )
        rows.append((variable, default if isinstance(default, str) else json.dumps(default), field.description or ""))
    if not as_json:
        screen.table(("variable", "default", "meaning"), rows)


def _plain(value: Any) -> Any:
    if hasattr(value, "get_secret_value"):
        return value.get_secret_value()  # a default is no secret
    if isinstance(value, tuple):
        return list(value)
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)
