"""What a soak found, as the page it is written to."""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_HEAD = """# The soak

Everything that `millstream up` starts, under load, while its processes are killed with SIGKILL one after another, each
in its turn. Callers use ids of their own and ask again under the same id when they are told that nobody can answer now.
Afterwards every id that was answered or acknowledged is looked for in the event log: it has to be there once. A request
that expired or was withdrawn was never computed, so asked again it is a new one."""

_FSYNC = """The embedded server wrote with `appendfsync always`. Under `everysec`, the default, a server whose machine
stops may lose its last second, acknowledged requests among them; so may one that is killed while the disk is slow."""

_PRESSED = """## More than it can do

A model that takes 10 ms for each row, first asked by as many callers as it can answer, then five times as often as it
answered those, with a deadline of one second."""


@dataclass(frozen=True, slots=True)
class Overload:
    """Five times as many requests as can be answered."""

    peak: float
    """Answers per second of as many callers as there is work for."""
    ended: Mapping[str, int]
    """gRPC status -> requests."""
    seconds: float
    refusals: Sequence[float]
    """Seconds that each refusal took."""

    @property
    def goodput(self) -> float:
        return self.ended.get("OK", 0) / self.seconds

    def refusal_ms(self, share: float) -> float:
        """What that share of the refusals did not exceed, in milliseconds; 0 without refusals."""
        ordered = sorted(self.refusals)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1000 if ordered else 0.0


@dataclass(frozen=True, slots=True)
class Soak:
    """One run: what was broken, what was asked, and what is in the event log."""

    seconds: float
    killed: Mapping[str, int]
    asked: int
    answered: Mapping[str, int]
    """OK, or the gRPC status of the error that was the answer -> requests."""
    pushed: int
    again: Mapping[str, int]
    """Status -> attempts that were made again under the same id."""
    statuses: Mapping[str, int]
    """Of the events."""
    lost: Sequence[str]
    twice: Sequence[str]
    unanswered: int
    gaps: int
    overload: Overload

    @property
    def kept(self) -> bool:
        """Whether every promise was."""
        return not (self.lost or self.twice or self.unanswered)


def write(soak: Soak, command: str, page: Path) -> str:
    """Writes the page; its table."""
    rows = [
        *((f"killed: {role}", count) for role, count in sorted(soak.killed.items())),
        ("requests asked over gRPC", soak.asked),
        *((f"answered: {status}", count) for status, count in sorted(soak.answered.items())),
        ("never answered", soak.unanswered),
        *((f"attempts made again: {status}", count) for status, count in sorted(soak.again.items())),
        ("requests acknowledged on the bulk lanes", soak.pushed),
        *((f"events: {status}", count) for status, count in sorted(soak.statuses.items())),
        ("gaps in the event log", soak.gaps),
        ("**lost**", len(soak.lost)),
        ("**recorded twice**", len(soak.twice)),
    ]
    table = _table(("what", "count"), [(what, f"{count:,}") for what, count in rows])
    load = soak.overload
    pressed = _table(
        ("what", "measured"),
        [
            ("peak, as many callers as can be answered", f"{load.peak:.0f} answers/s"),
            ("offered", f"{sum(load.ended.values()) / load.seconds:.0f} requests/s"),
            ("goodput", f"{load.goodput:.0f} answers/s, {load.goodput / load.peak:.0%} of the peak"),
            *((f"ended {status}", f"{count:,}") for status, count in sorted(load.ended.items())),
            ("refusal, p50 and p99", f"{load.refusal_ms(0.5):.1f} ms and {load.refusal_ms(0.99):.1f} ms"),
        ],
    )
    examples = [f"- {name}: {', '.join(ids[:10])}" for name, ids in (("lost", soak.lost), ("twice", soak.twice)) if ids]
    when = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
    parts = [_HEAD, f"`{command}`, {when}, {soak.seconds:.0f} s of load; {_machine()}.", table]
    parts += ["\n".join(examples)] if examples else []
    text = "\n\n".join([*parts, _FSYNC, _PRESSED, pressed])
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(text + "\n", encoding="utf-8")
    return f"{table}\n\n{pressed}\n"


def _table(head: tuple[str, str], rows: Sequence[tuple[str, str]]) -> str:
    lines = [f"| {head[0]} | {head[1]} |", "|---|---:|", *(f"| {what} | {value} |" for what, value in rows)]
    return "\n".join(lines)


def _machine() -> str:
    return f"{os.cpu_count()} CPUs, {platform.system()} {platform.release()}, Python {platform.python_version()}"
