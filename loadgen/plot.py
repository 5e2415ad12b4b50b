"""A run as a picture: latency by percentile, and rate and latency over time. Needs matplotlib (extra `reports`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from loadgen.report import Moment, Report

KINDS = (".svg", ".png", ".html")
_NINES = (0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999)
_BLUE, _ORANGE, _GREY = "#0b4fa8", "#d55e00", "#7a7a7a"


class NotDrawable(ValueError):
    """A file that no picture can be written to; the message says why and what to do."""


def check_plot(path: Path) -> None:
    """Raises NotDrawable for what would fail after the run: the kind of file, its folder, matplotlib."""
    if path.suffix.lower() not in KINDS:
        raise NotDrawable(f"expected a file that ends with {', '.join(KINDS)}, got {path.name!r}")
    if not path.resolve().parent.is_dir():
        raise NotDrawable(f"there is no folder {path.resolve().parent}")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise NotDrawable("a plot needs matplotlib: pip install 'millstream[reports]'") from None


def write_plot(path: Path, title: str, report: Report) -> None:
    """Writes the picture in the kind that the file's name says. Raises NotDrawable, OSError."""
    check_plot(path)
    kind = path.suffix.lower()
    if kind == ".html":
        path.write_text(_page(title, report, _drawn(title, report, "svg").decode()), encoding="utf-8")
    else:
        path.write_bytes(_drawn(title, report, kind[1:]))


def _drawn(title: str, report: Report, kind: str) -> bytes:
    from matplotlib.figure import Figure  # and not pyplot, which asks for a display and keeps what was drawn

    figure = Figure(figsize=(10, 8), layout="constrained")
    figure.suptitle(title)
    above, below = figure.subplots(2, 1)
    _by_percentile(above, report.curve)
    _over_time(below, report.moments)
    out = io.BytesIO()
    # Without a date: the same run gives the same file.
    figure.savefig(out, format=kind, dpi=120, metadata={"Date": None} if kind == "svg" else None)
    return out.getvalue()


def _by_percentile(axes: Any, curve: Sequence[tuple[float, float]]) -> None:
    axes.set_title("latency by percentile")
    axes.set_ylabel("milliseconds")
    axes.set_xscale("log")
    points = [(100 / (100 - percent), ms) for percent, ms in curve if percent < 100]
    if points:
        axes.plot([at for at, _ in points], [ms for _, ms in points], color=_BLUE)
    last = points[-1][0] if points else 100.0
    shown = [percent for percent in _NINES if 100 / (100 - percent) <= last * 10]
    axes.set_xticks([100 / (100 - percent) for percent in shown], [f"{percent:g} %" for percent in shown])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)


def _over_time(axes: Any, moments: Sequence[Moment]) -> None:
    axes.set_title("over time")
    axes.set_xlabel("seconds since the start")
    axes.set_ylabel("milliseconds")
    answered = [each for each in moments if each.answered]
    times = [each.at for each in answered]
    axes.plot(times, [each.p50_ms for each in answered], color=_BLUE, marker=".", label="p50")
    axes.plot(times, [each.p99_ms for each in answered], color=_ORANGE, marker=".", linestyle="--", label="p99")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    rates = axes.twinx()
    rates.set_ylabel("a second")
    rates.plot([m.at for m in moments], [m.rate for m in moments], color=_GREY, linestyle=":", label="answers")
    if any(each.failed for each in moments):
        failed = [each.failed / each.seconds if each.seconds else 0.0 for each in moments]
        rates.plot([m.at for m in moments], failed, color="#000000", linestyle="-.", label="failures")
    rates.set_ylim(bottom=0)
    lines = [*axes.get_lines(), *rates.get_lines()]
    axes.legend(lines, [line.get_label() for line in lines], loc="upper right")


def _page(title: str, report: Report, svg: str) -> str:
    facts = [
        ("requests", f"{report.requests:,}"),
        ("answered", f"{report.answered:,}"),
        *((f"failed with {escape(code)}", f"{count:,}") for code, count in sorted(report.errors.items())),
        ("seconds", f"{report.seconds:.2f}"),
        ("answers a second", f"{report.rate:,.1f}"),
        *((f"{percent:g} %", f"{ms:,.2f} ms") for percent, ms in report.percentiles),
    ]
    rows = "\n".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in facts)
    # Without the XML prologue, which has no place inside of a page.
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>
<style>body {{ font-family: sans-serif; margin: 2em }} td {{ padding: 0.1em 1em 0.1em 0 }}
td + td {{ text-align: right }} svg {{ max-width: 100%; height: auto }}</style></head>
<body><h1>{escape(title)}</h1>
<table>
{rows}
</table>
{svg[svg.index("<svg") :]}
</body></html>
"""
