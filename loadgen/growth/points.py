"""What a growth run measured, as values that know their JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement of one series, at one value of what grows."""

    series: str
    """Whose numbers they are, such as `light model, 256 in flight`."""
    at: int
    """Workers, gateways, rows, models or entries."""
    values: dict[str, float]
    """Measure -> value; the measure's name says its unit."""


@dataclass(slots=True)
class Axis:
    """One thing that grows, and what was measured along it."""

    name: str
    title: str
    across: str
    """What grows, for an axis of a chart."""
    how: str
    """What was done, in a sentence or two."""
    points: list[Point] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)
