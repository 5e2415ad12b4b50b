"""What a run measured, as values that know their JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Cell:
    """One server with one model at one load, measured once."""

    peer: str
    model: str
    in_flight: int
    round: int
    seconds: float
    answered: int
    errors: int
    rate: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    cpu_us: dict[str, float]
    """Microseconds of CPU per answer, by the server's processes."""
    generator_cpu_us: float
    rss_bytes: int
    pss_bytes: int
    redis_bytes: int | None
    calibration_ms: float
    """How long a loop of fixed length took just before: what the machine gave then."""
    elsewhere_cores: float
    """Cores that neither server nor generator had, and that were busy all the same."""
    rested: bool = True
    """Whether the server came to rest soon after."""
    redis_series: tuple[tuple[float, int], ...] = ()
    """Seconds since the start and used_memory, in the long run."""


@dataclass(frozen=True, slots=True)
class Start:
    """One start of one server: how long it took, what it holds before any load, what its event log holds at the end."""

    peer: str
    model: str
    round: int
    seconds: float
    rest_rss_bytes: int
    rest_pss_bytes: int
    answered: int = 0
    recorded: int | None = None
    """Events with status OK; None where there is no event log."""
    problem: str = ""
    """Why it was given up; empty where it was not."""


@dataclass(slots=True)
class Results:
    """A whole run."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    versions: dict[str, list[str]]
    """By peer: what is installed where it runs."""
    skipped: dict[str, str] = field(default_factory=dict)
    """By peer: why it was not measured."""
    starts: list[Start] = field(default_factory=list)
    cells: list[Cell] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Results:
        """The reverse. Raises KeyError, TypeError on something else."""
        cells = [
            Cell(**{**cell, "redis_series": tuple((t, used) for t, used in cell["redis_series"])})
            for cell in content["cells"]
        ]
        starts = [Start(**start) for start in content["starts"]]
        rest = {name: content[name] for name in ("machine", "settings", "versions", "skipped")}
        return cls(**rest, starts=starts, cells=cells)

    def of(self, peer: str, model: str, in_flight: int) -> list[Cell]:
        """The same cell over the rounds."""
        wanted = (peer, model, in_flight)
        return [cell for cell in self.cells if (cell.peer, cell.model, cell.in_flight) == wanted]


@dataclass(frozen=True, slots=True)
class Over:
    """One number over the rounds."""

    middle: float
    least: float
    most: float

    @classmethod
    def rounds(cls, values: Iterable[float]) -> Over | None:
        """None where there are none."""
        seen = list(values)
        return cls(median(seen), min(seen), max(seen)) if seen else None

    @property
    def spread(self) -> float:
        """From the least to the most, as a share of the middle."""
        return (self.most - self.least) / self.middle if self.middle else 0.0


def middle(cells: Sequence[Cell], name: str) -> float:
    """The median of a field over the rounds. Raises statistics.StatisticsError where there are none."""
    return float(median(getattr(cell, name) for cell in cells))


def machine() -> dict[str, Any]:
    """This machine, as far as it matters."""
    return {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": _first("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _first(path: str, name: str) -> str:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")
