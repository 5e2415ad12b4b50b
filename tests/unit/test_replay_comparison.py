"""Comparisons of recorded answers with a candidate's: counted right, in bounded memory, and told as they are."""

from __future__ import annotations

import io
import json
import math
import signal
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import joblib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.model.model import load_model
from consumers.model.outputs import OutputColumn
from consumers.model.rows import rows_of
from consumers.replay.calls import Call
from consumers.replay.candidate import Candidate
from consumers.replay.comparison import Comparison, Pair
from consumers.replay.fit import Fit
from consumers.replay.outputs import LabelOutput, NumberOutput, Terms
from consumers.replay.page import page
from consumers.replay.report import Made, headline, percent, to_json
from consumers.replay.sketch import ACCURACY, Reservoir, Sketch
from consumers.replay.slices import MOST_BINS, FeatureBins, NumberBins, TimeBins, sums_of, wilson
from consumers.replay.versions import Loaded, Versions
from contract.admission import Admission, Admitted, Draft
from contract.errors import Refused
from contract.request import Request
from contract.signature import Feature, Signature, Value, parse_signature
from millstream.cli.replay_compare import Interrupts, _without_secrets
from tests.odd_models import RAISES, OddModel
from tests.unit.test_replay_recorded import recorded

SCRIPT = "<script>alert('x')</script>\u202e$\\frac{"


def signed(features: Sequence[Mapping[str, Any]], **more: Any) -> Signature:
    content = {
        "model_id": "m",
        "version": "2.0.0",
        "trained_date": "2026-01-31",
        "status": "staging",
        "azure_location": "tests",
        "expected_features": [{"index": index, **feature} for index, feature in enumerate(features)],
        **more,
    }
    return parse_signature(json.dumps(content).encode())[0]


def compared(
    then: Sequence[Mapping[str, Any]], now: Mapping[str, Any], inputs: Sequence[float] = (), **terms: Any
) -> Comparison:
    """A comparison of these answers; each of `now` is one output of all rows."""
    kinds: dict[type, Any] = {float: "float", str: "string", bool: "bool", int: "int"}
    outputs = [(name, kinds[type(values[0])]) for name, values in now.items()]
    found = Comparison(signed([{"name": "x", "type": "float"}]), outputs, Terms(**terms))
    columns = [
        OutputColumn(name, kind, now[name] if kind == "string" else np.array(now[name])) for name, kind in outputs
    ]
    pairs = [Pair(recorded(number=place, request_id=f"r{place}"), 0, each) for place, each in enumerate(then)]
    found.add(pairs, [np.array(inputs or [0.0] * len(then))], columns)
    return found


def made(**changes: Any) -> Made:
    facts: dict[str, Any] = {
        "model_id": "m", "version": "2.0.0", "digest": "d2", "place": "a folder", "command": "millstream replay",
        "at": datetime(2026, 1, 31, tzinfo=UTC), "wanted": 1,
    }  # fmt: skip
    return Made(**{**facts, **changes})


# ---------------------------------------------------------------- what changed


def test_a_change_is_more_than_the_tolerance_and_a_decision_is_on_which_side_of_the_threshold_it_lies() -> None:
    then = [{"p": 0.25}, {"p": 0.25}, {"p": 0.498}, {"p": 0.5}, {"p": 0.9}]
    found = compared(then, {"p": [0.25, 0.26, 0.5, 0.4, float("nan")]}, tolerance=0.01)
    [output] = found.outputs
    assert isinstance(output, NumberOutput)
    assert (found.rows, found.bits, found.changed, found.flips) == (5, 4, 3, 2)
    assert (output.raised, output.lowered, output.broken) == (1, 1, 1)


def test_a_number_beyond_0_and_1_is_no_probability_and_crosses_nothing() -> None:
    found = compared([{"p": 0.4}, {"p": 7.0}], {"p": [0.6, 7.0]})
    assert (found.changed, found.flips) == (1, 0)
    assert not any("cross" in sentence for sentence in headline(found, made()))


def test_equal_bits_alone_are_the_same_and_a_nan_that_stays_one_is_no_change() -> None:
    nan = float("nan")
    found = compared([{"p": 0.0}, {"p": nan}, {"p": math.inf}], {"p": [-0.0, nan, math.inf]}, tolerance=0)
    assert (found.bits, found.changed) == (1, 0)


def test_labels_change_whatever_the_tolerance_and_are_counted_pair_by_pair() -> None:
    then = [{"label": "a"}, {"label": "a"}, {"label": "b"}]
    found = compared(then, {"label": ["a", "b", "b"]}, tolerance=9)
    [output] = found.outputs
    assert isinstance(output, LabelOutput)
    assert output.transitions == {("a", "a"): 1, ("a", "b"): 1, ("b", "b"): 1}
    assert headline(found, made())[0] == "1 of 3 answers (33.3 %) change."


def test_the_largest_changes_are_kept_and_no_more_than_a_few() -> None:
    number = 500
    sizes = np.random.default_rng(2).permutation(number) / number / 2
    found = compared([{"p": 0.1}] * number, {"p": (0.1 + sizes).tolist()})
    assert [each.event.request_id for each in found.examples()] == [f"r{at}" for at in np.argsort(-sizes)[:20]]


# ---------------------------------------------------------------- how they are distributed, and where


@given(st.lists(st.floats(-1e300, 1e300).filter(lambda x: x == 0 or abs(x) > 1e-300), min_size=1, max_size=60))
def test_a_sketch_knows_quantiles_to_half_a_percent(values: list[float]) -> None:
    sketch = Sketch()
    for value in values:
        sketch.add(np.array([value, math.nan, math.inf]))
    parts = [0.0, 0.1, 0.5, 0.9, 1.0]
    for found, exact in zip(sketch.quantiles(parts), np.quantile(values, parts, method="inverted_cdf"), strict=True):
        assert found == pytest.approx(exact, rel=ACCURACY * 1.01)


def test_a_reservoir_takes_from_everywhere_alike() -> None:
    reservoir = Reservoir(100)
    for start in range(0, 10_000, 70):
        reservoir.add(np.column_stack([np.arange(start, min(start + 70, 10_000))] * 2).astype(float))
    assert len(reservoir.rows) == 100
    assert 4000 < reservoir.rows[:, 0].mean() < 6000


def test_bins_of_a_number_stay_few_lose_no_row_and_cut_it_into_parts_of_one_size() -> None:
    bins, rng = NumberBins(), np.random.default_rng(3)
    values = rng.normal(size=60_000)
    changed = values > 1
    for at in range(0, len(values), 5000):
        piece = slice(at, at + 5000)
        bins.add(values[piece], sums_of(changed[piece], changed[piece], np.ones(5000)))
        assert len(bins._low) <= MOST_BINS
    found, null = bins.slices(Feature(0, "x", "float"), 10)
    assert null is None
    assert sum(each.rows for each in found) == len(values)
    assert sum(each.changed for each in found) == int(changed.sum())
    assert all(5500 < each.rows < 6500 for each in found)
    ends = [(each.low or 0.0, each.high or 0.0) for each in found]
    assert all(before[1] < after[0] for before, after in pairwise(ends))


def _concentration(values: np.ndarray[Any, Any], changed: np.ndarray[Any, Any]) -> Any:
    bins = FeatureBins(Feature(0, "age", "int"), 3)
    bins.add(values, sums_of(changed, changed, np.ones(len(values))))
    return bins.slices(3).changes


def test_where_changes_were_planted_they_are_found_and_in_noise_nothing_is() -> None:
    rng = np.random.default_rng(4)
    ages = rng.integers(18, 91, 2000)
    planted = rng.random(2000) < np.where(ages >= 60, 0.3, 0.02)
    found = _concentration(ages, planted)
    assert found.condition in {"≥ 59", "≥ 60", "≥ 61", "≥ 62"}
    assert found.share == pytest.approx(0.3, abs=0.05)
    assert found.elsewhere < 0.05
    assert [_concentration(ages, rng.random(2000) < 0.1) for _ in range(30)] == [None] * 30
    few = np.isin(np.arange(2000), [0, 1, 2, 3])
    assert _concentration(np.where(few, 1, ages), few) is None


def test_null_and_texts_are_slices_of_their_own() -> None:
    bins = FeatureBins(Feature(0, "job", "string", nullable=True), 1)
    changed = np.array([True] * 50 + [False] * 150)
    bins.add([None] * 50 + ["b"] * 100 + ["c"] * 50, sums_of(changed, changed, np.zeros(200)))
    found = bins.slices(1)
    assert [(each.label, each.rows, each.changed) for each in found.slices] == [
        ('"b"', 100, 0), ('"c"', 50, 0), ("null", 50, 50)
    ]  # fmt: skip
    assert found.changes is not None
    assert found.changes.condition == "is null"


def test_time_is_cut_into_steps_that_grow_with_it() -> None:
    times = TimeBins()
    for day in range(40):
        changed = np.array([day == 3])
        times.add(np.array([day * 86_400_000_000]), sums_of(changed, changed, np.zeros(1)))
    assert times.step_s == 86_400
    assert [each.changed for each in times.slices()] == [int(day == 3) for day in range(40)]


def test_a_share_of_few_says_little() -> None:
    assert wilson(1, 10) == pytest.approx((0.01788, 0.40415), abs=1e-4)
    assert [percent(share) for share in (0, 1e-6, 0.0234, 0.31, 0.99999, 1)] == [
        "0 %", "under 0.01 %", "2.3 %", "31 %", "over 99.9 %", "100 %"
    ]  # fmt: skip


# ---------------------------------------------------------------- rows of one version as another takes them

OLD = signed(
    [
        {"name": "x", "type": "float", "nullable": True},
        {"name": "n", "type": "int"},
        {"name": "yes", "type": "bool"},
        {"name": "job", "type": "string", "nullable": True},
        {"name": "low", "type": "int", "min": -5, "max": 5},
        {"name": "high", "type": "int", "min": -5, "max": 5},
    ]
)
NEW = signed(
    [
        {"name": "job", "type": "string", "categories": ["a", "b"]},
        {"name": "extra", "type": "float", "default": 2.5},
        {"name": "n", "type": "float", "max": 3},
        {"name": "yes", "type": "bool"},
        {"name": "x", "type": "int"},
        {"name": "low", "type": "int", "min": -4, "max": 6},
        {"name": "high", "type": "int", "min": -6, "max": 4},
    ]
)
OLD_ROW = st.tuples(
    st.none() | st.sampled_from([0.0, 1.0, 1.5]),
    st.integers(-5, 5),
    st.booleans(),
    st.none() | st.sampled_from(["a", "b", "c"]),
    st.integers(-5, 5),
    st.integers(-5, 5),
)


@given(st.lists(OLD_ROW, min_size=1, max_size=8))
def test_a_row_fits_where_a_request_with_its_values_would_be_admitted(rows: list[tuple[Value, ...]]) -> None:
    fitted = Fit(OLD.features, NEW).of(rows_of(OLD, rows))
    admission = Admission(NEW)
    for place, row in enumerate(rows):
        named = {feature.name: value for feature, value in zip(OLD.features, row, strict=True)}
        try:
            admitted = admission.draft(Request("m", features=named))
            assert isinstance(admitted, Admitted | Draft)
            expected: set[str] = set()
        except Refused as refused:
            expected = {violation.field for violation in refused.violations}
        assert {misfit.feature for misfit in fitted.wrong.get(place, {})} == expected
    good = [place for place in range(len(rows)) if place not in fitted.wrong]
    if good:
        job, extra, n, yes, x, *_ = fitted.taken()
        assert [(job[at], extra[at], n[at], yes[at], x[at]) for at in good] == [
            (rows[at][3], 2.5, rows[at][1], rows[at][2], rows[at][0]) for at in good
        ]


def test_rows_of_the_same_features_are_passed_on_as_they_are() -> None:
    rows = rows_of(OLD, [(1.5, 2, True, None, 0, 0)])
    assert Fit(OLD.features, OLD).of(rows).taken() is rows


# ---------------------------------------------------------------- asking a candidate


def test_a_request_on_which_the_candidate_fails_is_counted_and_those_that_shared_its_call_are_answered(
    tmp_path: Any,
) -> None:
    file = io.BytesIO()
    joblib.dump(OddModel(tmp_path), file)
    signature = signed([{"name": "x", "type": "float", "example": 1.0}], outputs=[{"name": "out"}])
    loaded = Loaded(load_model(signature, {"model.joblib": file.getvalue()}), ["model.joblib"])
    candidate = Candidate(loaded, "d2", Versions(), {}, Terms())
    events = [
        recorded(
            number=at, position=at, rows=1, batch_rows=3, inputs_text=f"[[{x}]]", inputs_form="matrix", digest="d1",
            outputs_text='[{"out":2.0}]', request_id=f"r{at}", is_erased=False,
        )
        for at, x in enumerate((1.0, RAISES, 3.0))
    ]  # fmt: skip
    candidate.take(Call(tuple(events), 3))
    found = candidate.settle()
    assert (found.rows, found.changed, found.failed.total) == (2, 1, 1)
    assert list(found.failed.examples.values()) == ["r1"]
    assert found.percent == pytest.approx(200 / 3)
    assert "2.0.0 fails on 1 request." in headline(found, made())


def test_ctrl_c_waits_until_what_is_added_up_is_whole_and_a_second_one_does_not() -> None:
    done: list[int] = []

    def add_up(presses: int) -> None:
        with interrupts.held():
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
            done.append(presses)

    with Interrupts() as interrupts:
        for presses in (1, 2):
            with pytest.raises(KeyboardInterrupt):
                add_up(presses)
    assert done == [1]


# ---------------------------------------------------------------- the report


def test_nothing_that_comes_from_data_is_markup_in_the_report() -> None:
    then = [{SCRIPT: 0.1, "label": SCRIPT}] * 40
    found = compared(then, {SCRIPT: [0.9] * 40, "label": ["<b>"] * 40}, [1.0] * 40)
    found.left_out.add("why", SCRIPT)
    found.failed.add(SCRIPT, SCRIPT)
    text = page(found, made(command=SCRIPT, place=SCRIPT, unknown={SCRIPT: SCRIPT}, runtime={"cpu": SCRIPT}))
    assert "<script" not in text
    assert "<b>&lt;" not in text
    assert "&lt;script&gt;" in text
    assert text.count("<svg") == 3


def test_a_report_of_nothing_says_so_and_json_has_no_number_that_is_none() -> None:
    found = Comparison(OLD, [("out", "float")], Terms())
    found.left_out.add("erased")
    assert "Nothing could be compared: none of 1 request has an answer of both." in page(found, made())
    text = json.dumps(to_json(found, made()), allow_nan=False)
    assert json.loads(text)["left_out"]["reasons"] == {"erased": 1}


def test_the_command_in_a_report_holds_no_password() -> None:
    assert _without_secrets("redis://user:secret@host:6379/0") == "redis://host:6379/0"
    assert _without_secrets("https://a.blob.core.windows.net/models?sig=secret") == (
        "https://a.blob.core.windows.net/models"
    )
