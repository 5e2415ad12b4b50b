"""python -m loadgen.growth: how Millstream grows, into docs/growth."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from loadgen.bench.generators import GeneratorFailed, missing
from loadgen.bench.models import fit
from loadgen.bench.questions import WrongAnswer
from loadgen.bench.results import machine
from loadgen.bench.server import NotStarted
from loadgen.growth.axes import AXES, Run
from loadgen.growth.page import charts, page
from loadgen.growth.points import Axis

UNAVAILABLE = 5


def main() -> int:
    """Exit code: 0 measured, 2 usage, 5 nothing could be measured here, 130 stopped."""
    parser = argparse.ArgumentParser(
        prog="python -m loadgen.growth",
        description="Measures what throughput and latency become with more of each: "
        f"{', '.join(AXES)}. Needs Debian's package nghttp2-client (h2load), and a machine that does nothing else; "
        "about 5 minutes.",
    )
    parser.add_argument("--only", metavar="NAME,…", default=",".join(AXES), help="what grows (default: all)")
    parser.add_argument("--seconds", type=float, default=4.0, help="how long each point is measured (default: 4)")
    parser.add_argument("--output", type=Path, default=Path("docs/growth"), help="folder (default: docs/growth)")
    chosen = parser.parse_args()
    names = [name.strip() for name in chosen.only.split(",") if name.strip()]
    if unknown := [name for name in names if name not in AXES]:
        parser.error(f"there is no {unknown[0]!r}; there are {', '.join(AXES)}")
    if lacking := missing(["h2load"]):
        print("\n".join(lacking), file=sys.stderr)
        return UNAVAILABLE
    about = {"machine": machine(), "millstream": version("millstream"), "seconds": chosen.seconds}
    axes: list[Axis] = []
    try:
        with tempfile.TemporaryDirectory(prefix="growth-models-") as folder:
            run = Run(fit(Path(folder), "light"), fit(Path(folder), "heavy"), chosen.seconds, _say)
            for name in names:
                _say(name)
                try:
                    axes.append(AXES[name](run))
                except (NotStarted, GeneratorFailed, WrongAnswer) as error:
                    _say(f"  left out: {error}")
    except KeyboardInterrupt:
        _say("stopped; what was measured until then is written")
    if not axes:
        return UNAVAILABLE
    chosen.output.mkdir(parents=True, exist_ok=True)
    found = {"about": about, "axes": [axis.to_json() for axis in axes]}
    (chosen.output / "results.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    (chosen.output / "README.md").write_text(page(axes, about), encoding="utf-8")
    for file, drawn in charts(axes).items():
        (chosen.output / file).write_text(drawn, encoding="utf-8")
    _say(f"written: {chosen.output / 'README.md'}, results.json and a chart for each")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
