"""What a growth run saw, for people: a page of tables and a chart for each thing that grew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from loadgen.bench.chart import Panel, chart
from loadgen.bench.page import table
from loadgen.growth.points import Axis


def page(axes: Sequence[Axis], about: dict[str, Any]) -> str:
    """Markdown; the charts beside it are named after the axes."""
    machine = about["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}"
    intro = (
        f"{machine['when']}, {where}, Python {machine['python']}; Millstream {about['millstream']}. Each point was "
        f"measured for {about['seconds']:g} s, once. Servers and load generator share the machine's cores, so compare "
        "within one table. `python -m loadgen.growth` measures it again; [performance.md](../performance.md) says what "
        "the numbers mean."
    )
    parts = ["# Growth", intro]
    for axis in axes:
        parts += [f"## {axis.title}", axis.how, f"![{axis.title}]({axis.name}.svg)"]
        measures = _measures(axis)
        lines = [
            [point.series, f"{point.at:,}", *(_number(point.values.get(m)) for m in measures)] for point in axis.points
        ]
        parts += [table(["", axis.across, *measures], lines)]
        parts += [f"Not measured: {problem}" for problem in axis.problems]
    return "\n\n".join(parts) + "\n"


def charts(axes: Iterable[Axis]) -> dict[str, str]:
    """File name -> SVG."""
    return {f"{axis.name}.svg": _chart(axis) for axis in axes if axis.points}


def _chart(axis: Axis) -> str:
    panels = []
    for measure in _measures(axis)[:3]:
        lines: dict[str, dict[int, float]] = {}
        for point in axis.points:
            if measure in point.values:
                lines.setdefault(point.series, {})[point.at] = point.values[measure]
        what, _, unit = measure.partition(" ")
        panels.append(Panel(what, unit, lines))
    return chart(axis.title, panels, across=axis.across)


def _measures(axis: Axis) -> list[str]:
    return list(dict.fromkeys(name for point in axis.points for name in point.values))


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.3g}"
