"""The report of a comparison as one page that needs nothing else. Needs jinja2 and matplotlib (extra `reports`)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from consumers.replay import plots
from consumers.replay.comparison import LADDER, Comparison
from consumers.replay.outputs import LabelOutput, NumberOutput
from consumers.replay.report import Made, headline, moment, most_changed, percent, quantiles_of
from consumers.replay.slices import number, told, wilson

MISSING = "a report needs jinja2 and matplotlib: pip install 'millstream[reports]'"
OUTPUTS, FEATURES, OPEN, VALUES, TRANSITIONS, SHOWN = 6, 40, 4, 30, 40, 10
"""Outputs that are drawn, features whose slices are listed, those of them unfolded, values of an example, pairs of
labels, and concentrations: a page is read by people, and the JSON has everything."""


class NotMade(Exception):
    """A report that can't be made here; the message says why and what to do."""


def check_page() -> None:
    """Before the work, so that it is not lost for a page. Raises NotMade."""
    try:
        import jinja2  # noqa: F401
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise NotMade(MISSING) from None


def page(found: Comparison, made: Made) -> str:
    """HTML with everything in it: no script, and nothing that is fetched from elsewhere. Raises NotMade."""
    check_page()
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("consumers.replay"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda many: f"{many:,}", "percent": percent, "number": _figure, "value": _value, "moment": moment
    }  # fmt: skip
    return environment.get_template("comparison.html.jinja").render(**_content(found, made))


def _content(found: Comparison, made: Made) -> dict[str, Any]:
    ranked = most_changed(found.outputs)
    slices = found.slices()
    times = found.times.slices()
    first, *rest = headline(found, made)
    return {
        "found": found,
        "made": made,
        "first": first,
        "rest": rest,
        "share_between": wilson(found.changed, found.rows),
        "ladder": _ladder(found),
        "numbers": [_number(each) for each in ranked[:OUTPUTS] if isinstance(each, NumberOutput) and each.rows],
        "labels": [_label(each) for each in ranked[:OUTPUTS] if isinstance(each, LabelOutput) and each.rows],
        "outputs": ranked,
        "drawn": OUTPUTS,
        "concentrations": [
            (what, where[:SHOWN])
            for what, where in (
                ("decide otherwise", found.flips_concentrate()),
                ("change", found.changes_concentrate()),
            )
            if where
        ],
        "decides": any(output.decides for output in found.outputs),
        "features": slices[:FEATURES],
        "unfolded": OPEN,
        "features_left": len(slices) - len(slices[:FEATURES]),
        "largest_share": max((one.share for each in slices[:FEATURES] for one in each.slices), default=0.0),
        "times": times,
        "over_time": plots.over_time(times) if len(times) > 1 and found.changed else "",
        "examples": found.examples(),
        "values": VALUES,
        "outputs_of_one": OUTPUTS,
        "runtime": [(name, _text(value)) for name, value in made.runtime.items()],
    }


def _number(output: NumberOutput) -> dict[str, Any]:
    return {
        "output": output,
        "differences": plots.differences(output),
        "reach": plots.reach(output),
        "scatter": plots.scatter(output),
        "spread": plots.spread(output),
        "quantiles": quantiles_of(output),
        "sampled": len(output.sample.rows),
    }


def _label(output: LabelOutput) -> dict[str, Any]:
    pairs = output.transitions.most_common()
    changed = [(then, now, count) for (then, now), count in pairs if then != now]
    return {"output": output, "changed": changed[:TRANSITIONS], "more": len(changed) - len(changed[:TRANSITIONS])}


def _ladder(found: Comparison) -> list[tuple[float, int]]:
    """Answers that changed by more than each step: from the last that as many did as at all, to the first that none."""
    steps = list(zip(LADDER, found.beyond, strict=True))
    if not steps[0][1]:
        return []
    first = max(place for place, (_, count) in enumerate(steps) if count == steps[0][1])
    last = next((place for place, (_, count) in enumerate(steps) if not count), len(steps) - 1)
    return steps[first : last + 1]


def _figure(value: float) -> str:
    return number(value) if value == value and abs(value) != float("inf") else str(value)


def _value(value: object) -> str:
    """An input or an output; floats in six digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return told(value) if isinstance(value, str) else json.dumps(value)


def _text(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {each}" for name, each in sorted(value.items()))
    if isinstance(value, list):
        return "; ".join(" ".join(str(part) for part in each.values()) if isinstance(each, dict) else str(each)
                         for each in value)  # fmt: skip
    return str(value)
