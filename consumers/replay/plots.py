"""Plots of a comparison, as SVG to stand inside of a page. Needs matplotlib (extra `reports`).

No text of theirs comes from a log or a signature: names stand in the captions, where the page escapes them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from consumers.replay.outputs import NumberOutput
from consumers.replay.sketch import Floats
from consumers.replay.slices import Slice, number

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Told apart by people who see no red or green, and in grey.
SAME, CHANGED, FLIPPED, LINE = "#6f9fd8", "#d55e00", "#222222", "#777777"
_BINS = 41
_RASTER = 5000
"""More points than this are drawn as pixels: as shapes they would be megabytes."""
_STYLE = {"svg.fonttype": "none", "font.size": 9, "text.parse_math": False, "axes.spines.top": False,
          "axes.spines.right": False, "axes.axisbelow": True}  # fmt: skip


def differences(output: NumberOutput) -> str:
    """How many answers changed by how much; one scale for both signs."""

    def draw(axes: Any) -> None:
        tolerance = output.terms.tolerance
        edges = difference_edges(output)
        counts = output.difference.histogram(edges)
        middles = (edges[1:] + edges[:-1]) / 2
        colours = [CHANGED if abs(middle) > tolerance else SAME for middle in middles]
        axes.bar(
            edges[:-1], counts, width=np.diff(edges), align="edge", color=colours, edgecolor="white", linewidth=0.3
        )
        axes.set_yscale("symlog", linthresh=1)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        for at in (-tolerance, tolerance) if 0 < tolerance < edges[-1] else ():
            axes.axvline(at, color=LINE, linestyle="--", linewidth=0.9)
        axes.axvline(0, color=LINE, linewidth=0.6)
        axes.set_xlabel("now less then")
        axes.set_ylabel("answers")

    return _svg(draw, f"differences {output.name!r}")


def difference_edges(output: NumberOutput) -> Floats:
    """Edges of bars around 0: as far as all but one in 200 go, and twice the tolerance where they do not go as far."""
    low, high = output.difference.quantiles((0.0025, 0.9975))
    reach = max(abs(low), abs(high)) if output.difference.count else 0.0
    reach = max(reach, 2 * output.terms.tolerance if reach > output.terms.tolerance / 20 else 0.0) or 1.0
    return np.linspace(-reach, reach, _BINS + 1)


def scatter(output: NumberOutput) -> str:
    """Answers of the sample: then across, now upwards."""

    def draw(axes: Any) -> None:
        rows = output.sample.rows
        then, now = rows[:, 0], rows[:, 1]
        threshold = output.terms.threshold
        flips = ((then < threshold) != (now < threshold)) & output.decides
        beyond = (np.abs(now - then) > output.terms.tolerance) & ~flips
        raster = len(rows) > _RASTER
        for which, colour, marker, size in (
            (~beyond & ~flips, SAME, "o", 5), (beyond, CHANGED, "o", 7), (flips, FLIPPED, "x", 18)
        ):  # fmt: skip
            line = {"linewidths": 0.9} if marker == "x" else {"linewidths": 0}
            axes.scatter(
                then[which], now[which], s=size, c=colour, marker=marker, alpha=0.75, rasterized=raster, **line
            )
        both = [*then.tolist(), *now.tolist()]
        low, high = (min(both), max(both)) if both else (0.0, 1.0)
        room = (high - low) * 0.04 or 0.5
        low, high = low - room, high + room
        axes.plot([low, high], [low, high], color=LINE, linewidth=0.8)
        if output.decides and low < threshold < high:
            axes.axvline(threshold, color=LINE, linestyle=":", linewidth=0.9)
            axes.axhline(threshold, color=LINE, linestyle=":", linewidth=0.9)
        axes.set_xlim(low, high)
        axes.set_ylim(low, high)
        axes.set_xlabel("answered then")
        axes.set_ylabel("answered now")

    return _svg(draw, f"scatter {output.name!r}")


def spread(output: NumberOutput) -> str:
    """How answers are distributed, then and now."""

    def draw(axes: Any) -> None:
        ends = [*output.then.quantiles((0.002, 0.998)), *output.now.quantiles((0.002, 0.998))]
        low, high = np.nanmin(ends), np.nanmax(ends)
        edges = np.linspace(low, high if high > low else low + 1.0, _BINS)
        then, now = output.then.histogram(edges), output.now.histogram(edges)
        axes.stairs(then, edges, fill=True, color="#d8d8d8", label="then")
        axes.stairs(now, edges, color="#0b4fa8", linewidth=1.4, label="now")
        if output.decides and low < output.terms.threshold < high:
            axes.axvline(output.terms.threshold, color=LINE, linestyle=":", linewidth=0.9)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_xlabel("answer")
        axes.set_ylabel("answers")
        axes.legend(frameon=False)

    return _svg(draw, f"spread {output.name!r}")


def over_time(slices: Sequence[Slice]) -> str:
    """The share that changed, by when it was asked, with where it would lie 95 % of the time."""

    def draw(axes: Any) -> None:
        dates: Any = import_module("matplotlib.dates")
        starts = dates.date2num([_moment(each.low) for each in slices])
        ends = dates.date2num([_moment(each.high) for each in slices])
        shares = np.array([100 * each.share for each in slices])
        between = 100 * np.array([each.between for each in slices])
        axes.bar(starts, shares, width=(ends - starts) * 0.9, align="edge", color=CHANGED, alpha=0.8)
        errors = np.clip(np.array([shares - between[:, 0], between[:, 1] - shares]), 0, None)
        axes.errorbar((starts + ends) / 2, shares, yerr=errors, fmt="none", ecolor=FLIPPED, linewidth=0.7)
        axes.set_ylim(0, min(105.0, float(between[:, 1].max()) * 1.05 or 1.0))
        axes.set_ylabel("% changed")
        locator = dates.AutoDateLocator(maxticks=8)
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(dates.ConciseDateFormatter(locator))

    return _svg(draw, "over time", width=8.0, height=2.4)


def _moment(seconds: float | None) -> datetime:
    return datetime.fromtimestamp(seconds or 0.0, UTC).replace(tzinfo=None)


def _svg(draw: Callable[[Any], None], salt: str, *, width: float = 4.2, height: float = 3.0) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure  # and not pyplot, which asks for a display and keeps what was drawn

    # Ids that are the same each time, and in no two pictures of a page.
    style: Any = {**_STYLE, "svg.hashsalt": salt}
    with mpl.rc_context(style):
        figure: Figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=True, color="#ececec", linewidth=0.6)
        draw(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", dpi=150, transparent=True, metadata=dict.fromkeys(_METADATA))
    text = out.getvalue()
    return text[text.index("<svg") :]  # the XML prologue has no place inside of a page


_METADATA = ("Date", "Creator", "Format", "Type")


def reach(output: NumberOutput) -> str:
    """How far the bars of `differences` go."""
    return number(float(difference_edges(output)[-1]))
