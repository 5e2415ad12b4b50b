"""What a growth run makes of its points."""

from __future__ import annotations

from xml.etree import ElementTree

from loadgen.bench.results import machine
from loadgen.growth.page import charts, page
from loadgen.growth.points import Axis, Point

ABOUT = {"machine": machine(), "millstream": "0.1.0", "seconds": 4.0}


def rows_axis() -> Axis:
    axis = Axis("rows", "Rows per request", "rows per request", "One request after the other.")
    axis.points += [Point("light model", count, {"p50 ms": float(count), "ratio": 1.25}) for count in (1, 10, 10_000)]
    axis.points.append(Point("heavy model", 1, {"p50 ms": 7.5}))
    axis.problems.append("light model, 100: 3 requests failed")
    return axis


def test_a_page_has_every_point_and_what_could_not_be_measured() -> None:
    lines = page([rows_axis()], ABOUT).splitlines()
    assert "|  | rows per request | p50 ms | ratio |" in lines
    assert "| light model | 10,000 | 10,000 | 1.25 |" in lines
    assert "| heavy model | 1 | 7.5 |  |" in lines
    assert "Not measured: light model, 100: 3 requests failed" in lines
    assert "![Rows per request](rows.svg)" in lines


def test_each_axis_has_a_chart_with_its_series() -> None:
    drawn = charts([rows_axis(), Axis("models", "Models", "models", "Nothing was measured.")])
    assert list(drawn) == ["rows.svg"]
    texts = [text.text for text in ElementTree.fromstring(drawn["rows.svg"]).iter("{http://www.w3.org/2000/svg}text")]
    assert {"rows per request", "light model", "heavy model", "p50, ms", "ratio"} <= {str(text) for text in texts}
