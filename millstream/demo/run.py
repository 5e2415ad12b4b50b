"""One run of the demo: what it shows, and what of it held."""

from __future__ import annotations

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import anyio
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@dataclass(slots=True)
class Run:
    """Steps for people, or a JSON line for each claim; which claims did not hold."""

    console: Console
    as_json: bool
    failed: list[str] = field(default_factory=list)
    number: int = 0

    def step(self, title: str) -> None:
        self.number += 1
        if not self.as_json:
            self.console.print(f"\n[bold]{self.number}. {title}[/bold]")

    def show(self, text: str) -> None:
        if not self.as_json:
            self.console.print("   " + text, highlight=False)

    def say(self, text: str) -> None:
        """The same for text from elsewhere, whose brackets are no markup."""
        if not self.as_json:
            self.console.print("   " + text, highlight=False, markup=False)

    def check(self, held: bool, claim: str, **numbers: Any) -> None:
        """One claim: shown as kept or broken, and counted."""
        if not held:
            self.failed.append(claim)
        if self.as_json:
            print(json.dumps({"step": self.number, "claim": claim, "held": held, **numbers}, default=str), flush=True)
        else:
            mark = "[green]ok[/green]  " if held else "[red]BROKEN[/red]"
            self.console.print(f"   {mark} {claim}", highlight=False)

    def bar(self) -> Progress:
        return Progress(
            TextColumn("   {task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
            disable=self.as_json,
        )


async def within(seconds: float, true: Callable[[], Awaitable[bool]]) -> bool:
    """Whether it came to be true in time; it is asked again and again."""
    until = time.monotonic() + seconds
    held = await true()
    while not held and time.monotonic() < until:
        await anyio.sleep(0.05)
        held = await true()
    return held
