"""Lines over the number of requests in flight, both axes logarithmic, as an SVG without any library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 320
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 34, 40
LEGEND_LINE = 20
# Told apart by people who see no red or green, and in grey: each has a dash of its own too.
COLOURS = ("#0b4fa8", "#d55e00", "#009e73", "#cc79a7", "#7a5c00", "#56b4e9", "#444444", "#9a1f60", "#888888")
DASHES = ("", "6 3", "2 3", "9 3 2 3", "", "6 3", "2 3", "9 3 2 3", "1 4")

Line = Mapping[int, float]
"""Value by requests in flight."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: lines by name."""

    title: str
    unit: str
    lines: Mapping[str, Line]


def chart(title: str, panels: Sequence[Panel], order: Sequence[str] = ()) -> str:
    """The panels side by side above one legend.

    A name looks alike in all panels, and in all charts that are given the same `order` of names.
    """
    there = dict.fromkeys(name for panel in panels for name in panel.lines)
    order = list(dict.fromkeys([*order, *there]))
    names = [name for name in order if name in there]
    width = WIDTH * len(panels)
    height = 30 + HEIGHT + 16 + LEGEND_LINE * math.ceil(len(names) / 2)
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">',
        f'<title>{escape(title)}</title><rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{width / 2:g}" y="20" text-anchor="middle" font-size="15">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        parts += [f'<g transform="translate({number * WIDTH} 30)">', *_panel(panel, order), "</g>"]
    for number, name in enumerate(names):
        x, y = LEFT + (number % 2) * width / 2, 30 + HEIGHT + 16 + LEGEND_LINE * (number // 2)
        parts.append(f'<line x1="{x:g}" y1="{y}" x2="{x + 34:g}" y2="{y}" {_stroke(order.index(name))}/>')
        parts.append(f'<text x="{x + 42:g}" y="{y + 4}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _panel(panel: Panel, order: Sequence[str]) -> list[str]:
    points = [point for line in panel.lines.values() for point in line.items() if point[1] > 0]
    heading = f"{panel.title}, {panel.unit}"
    parts = [f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="18" text-anchor="middle">{escape(heading)}</text>']
    if not points:
        return parts
    loads = sorted({load for load, _ in points})
    across = _scale(loads[0], loads[-1], LEFT, WIDTH - RIGHT)
    low, high = (10.0**power for power in _decades([value for _, value in points]))
    up = _scale(low, high, HEIGHT - BOTTOM, TOP)
    for power in range(round(math.log10(low)), round(math.log10(high)) + 1):
        y = up(10.0**power)
        parts.append(f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{10.0**power:,g}</text>')
    for load in loads:
        x = across(load)
        parts.append(f'<line x1="{x:.1f}" y1="{TOP}" x2="{x:.1f}" y2="{HEIGHT - BOTTOM}" stroke="#eeeeee"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{load:,}</text>')
    below = HEIGHT - BOTTOM + 33
    parts.append(f'<text x="{(LEFT + WIDTH - RIGHT) / 2:g}" y="{below}" text-anchor="middle">in flight</text>')
    for name, line in panel.lines.items():
        at = [(across(load), up(value)) for load, value in sorted(line.items()) if value > 0]
        number = order.index(name)
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts.append(f'<polyline points="{path}" fill="none" {_stroke(number)}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{_colour(number)}"/>' for x, y in at]
    return parts


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    per_decade: float
    start: float

    def __call__(self, value: float) -> float:
        return self.start + (math.log10(value) - self.low) * self.per_decade


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    decades = math.log10(high) - math.log10(low)
    # One load alone stands in the middle.
    return _Scale(math.log10(low), (end - start) / decades, start) if decades else _Scale(0, 0, (start + end) / 2)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    """The whole decades around them."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return low, max(high, low + 1)


def _colour(number: int) -> str:
    return COLOURS[number % len(COLOURS)]


def _stroke(number: int) -> str:
    dash = DASHES[number % len(DASHES)]
    width = 2.6 if number == 0 else 1.6
    return f'stroke="{_colour(number)}" stroke-width="{width}"' + (f' stroke-dasharray="{dash}"' if dash else "")
