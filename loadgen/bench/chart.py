"""Lines over something that grows, both axes logarithmic, as an SVG (matplotlib, extra `reports`)."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN, HEIGHT_IN, LEGEND_LINE_IN = 4.8, 3.4, 0.22
# Told apart by people who see no red or green, and in grey: each has a dash of its own too.
COLOURS = ("#0b4fa8", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#56b4e9", "#444444", "#9a1f60", "#888888")
DASHES = ("-", "--", ":", "-.")

Line = Mapping[int, float]
"""Value by what grows, such as requests in flight."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: lines by name."""

    title: str
    unit: str
    lines: Mapping[str, Line]


def chart(title: str, panels: Sequence[Panel], order: Sequence[str] = (), across: str = "in flight") -> str:
    """The panels side by side above one legend, as SVG; see `figure`."""
    import matplotlib as mpl

    # The same numbers are the same file: no date, no random ids; letters stay letters, which can be searched for.
    with mpl.rc_context({"svg.hashsalt": "millstream", "svg.fonttype": "none", "font.size": 9}):
        out = io.StringIO()
        figure(title, panels, order, across).savefig(out, format="svg", metadata={"Date": None, "Title": title})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def figure(title: str, panels: Sequence[Panel], order: Sequence[str] = (), across: str = "in flight") -> Figure:
    """The panels side by side above one legend; `across` is what grows.

    A name looks alike in all panels, and in all charts that are given the same `order` of names.
    """
    from matplotlib.figure import Figure

    there = dict.fromkeys(name for panel in panels for name in panel.lines)
    order = list(dict.fromkeys([*order, *there]))
    legend = LEGEND_LINE_IN * math.ceil(len(there) / 2) + 0.1
    drawn = Figure(figsize=(WIDTH_IN * len(panels), HEIGHT_IN + legend), layout="constrained")
    drawn.suptitle(title)
    named = {}
    for axes, panel in zip(drawn.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        axes.set_title(f"{panel.title}, {panel.unit}" if panel.unit else panel.title, fontsize="medium")
        axes.set_xlabel(across)
        axes.set_xscale("symlog", linthresh=1)
        axes.set_yscale("log")
        points = sorted({point for line in panel.lines.values() for point in line})
        axes.set_xticks(points, [f"{point:,}" for point in points])
        axes.minorticks_off()
        axes.grid(visible=True, color="#e4e4e4")
        axes.yaxis.set_major_formatter("{x:,g}")
        for name, line in panel.lines.items():
            number = order.index(name)
            values = sorted((point, value) for point, value in line.items() if value > 0)
            (named[name],) = axes.plot(
                [point for point, _ in values],
                [value for _, value in values],
                label=name,
                color=COLOURS[number % len(COLOURS)],
                linestyle=DASHES[number % len(DASHES)],
                linewidth=2.2 if number == 0 else 1.3,
                marker="o",
                markersize=3,
            )
    names = [name for name in order if name in named]
    drawn.legend([named[name] for name in names], names, loc="outside lower center", ncols=2, frameon=False)
    return drawn
