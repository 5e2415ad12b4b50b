"""What a command shows: results on stdout, as tables for people or JSON lines for programs; messages on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

_UNWRAPPED = 240
"""Columns where stdout is no terminal: a file or a pipe has no width to fold at."""


class Screen:
    """stdout and stderr, by the flags of one command."""

    def __init__(self, *, as_json: bool = False, quiet: bool = False) -> None:
        self.as_json = as_json
        self.quiet = quiet

    def line(self, content: Mapping[str, Any]) -> None:
        """One result as a JSON line."""
        print(json.dumps(content, ensure_ascii=False, default=str, allow_nan=True), flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
        """Results for people; columns whose cells are all numbers stand to the right."""
        from rich.table import Table
        from rich.text import Text

        cells = [list(row) for row in rows]
        table = Table(title=Text(title) if title else None, title_justify="left", title_style="bold")
        for place, name in enumerate(columns):
            numbers = all(isinstance(row[place], int | float) for row in cells) if cells else False
            table.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
        for row in cells:
            table.add_row(*(Text(shown(cell)) for cell in row))
        self.console().print(table)

    def text(self, text: str) -> None:
        """A result that is one line for people."""
        print(text, flush=True)

    def note(self, text: str) -> None:
        """A message beside the results."""
        if not self.quiet:
            print(text, file=sys.stderr, flush=True)

    @property
    def watched(self) -> bool:
        """Whether anybody sees progress on stderr."""
        return not self.quiet and sys.stderr.isatty()

    def console(self) -> Console:
        """stdout by way of rich."""
        from rich.console import Console

        return Console(width=None if sys.stdout.isatty() else _UNWRAPPED, highlight=False)


def some(number: int, what: str) -> str:
    """So many of them, in words: 1 event, 2,000 events."""
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def shown(cell: object) -> str:
    """A value as people read it: floats in as many digits as they have, nothing for None."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float):
        return repr(cell)
    if isinstance(cell, list | tuple | dict):
        return json.dumps(cell, ensure_ascii=False, default=str)
    return str(cell)
