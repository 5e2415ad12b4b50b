"""The gate's decisions: what counts as a change, what is ruled on it, and what is wanted while it is held back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.admission import Admission
from contract.signature import Signature, parse_signature
from contract.signature_parts import Value
from contract.trial import MAX_ANSWERS_BYTES, Answers
from protos import millstream_v1_pb2 as v1
from registry.promotion.gate import through
from registry.promotion.recorded import Fitting, Recorded, fitting
from registry.promotion.ruling import Difference, Finding, GoOn, Hold, Ruling, Terms, Unsettled, compared, rule
from registry.promotion.ruling import difference as between
from registry.promotion.timeline import Claim, wanted
from tests.unit.test_registry_timeline import ALL, roles, timeline

BLOCK = Terms("block", 1000, 0.05, 1e-6)
WARN = replace(BLOCK, policy="warn")
CLEAN = Finding("1.0.0", 1000)

RULED: dict[str, tuple[Finding | Unsettled, Terms, Ruling]] = {
    "nothing changes": (
        CLEAN,
        BLOCK,
        GoOn("of 1,000 recorded answers of 1.0.0, 0 (0 %) would not be given again"),
    ),
    "as much as may": (
        replace(CLEAN, changed=50),
        BLOCK,
        GoOn("of 1,000 recorded answers of 1.0.0, 50 (5 %) would not be given again; 50 changed"),
    ),
    "more than may": (
        replace(CLEAN, changed=230, outputs={"p": Difference(230, 0.31), "label": Difference(4)}),
        BLOCK,
        Hold(
            "of 1,000 recorded answers of 1.0.0, 230 (23 %) would not be given again; 230 changed; p differs by up to "
            "0.31 (230 changed); label differs (4 changed); at most 5 % may",
            "23 % of 1,000 recorded answers change, at most 5 %",
            again=False,
        ),
    ),
    "more than may, to be warned of": (
        replace(CLEAN, changed=230),
        WARN,
        GoOn(
            "of 1,000 recorded answers of 1.0.0, 230 (23 %) would not be given again; 230 changed; at most 5 % may; "
            "it goes on, the policy is to warn",
            is_warning=True,
        ),
    ),
    "inputs that no longer fit are changes": (
        replace(CLEAN, unfit=51, why="age: expected an int from 18, got 7"),
        BLOCK,
        Hold(
            "of 1,000 recorded answers of 1.0.0, 51 (5.1 %) would not be given again; 51 not admitted any more; "
            "age: expected an int from 18, got 7; at most 5 % may",
            "5.1 % of 1,000 recorded answers change, at most 5 %",
            again=False,
        ),
    ),
    "one request fails": (
        replace(CLEAN, failed=1, why="the model raised ValueError: no"),
        BLOCK,
        Hold(
            "of 1,000 recorded answers of 1.0.0, 1 (0.1 %) would not be given again; 1 failed; the model raised "
            "ValueError: no; tried again at the next look into the store",
            "it fails 1 of 1,000 recorded requests: the model raised ValueError: no",
            again=True,
        ),
    ),
    "one request fails, to be warned of": (
        replace(CLEAN, failed=1, why="no"),
        WARN,
        GoOn(
            "of 1,000 recorded answers of 1.0.0, 1 (0.1 %) would not be given again; 1 failed; no; it goes on, "
            "the policy is to warn",
            is_warning=True,
        ),
    ),
    "too few to judge by": (
        Finding("1.0.0", 19),
        BLOCK,
        GoOn("19 recorded answers of 1.0.0 are too few to judge by (20 are enough); it goes on"),
    ),
    "none": (
        Finding("1.0.0", 0),
        BLOCK,
        GoOn("0 recorded answers of 1.0.0 are too few to judge by (20 are enough); it goes on"),
    ),
    "no finding": (
        Unsettled("the event log did not answer"),
        BLOCK,
        Hold(
            "the event log did not answer; tried again at the next look into the store",
            "the event log did not answer",
            again=True,
        ),
    ),
    "no finding, to be warned of": (
        Unsettled("the event log did not answer"),
        WARN,
        GoOn("nothing was compared: the event log did not answer; it goes on, the policy is to warn", is_warning=True),
    ),
}


@pytest.mark.parametrize("case", RULED)
def test_a_ruling_follows_from_the_finding_and_the_terms_alone(case: str) -> None:
    seen, terms, expected = RULED[case]
    assert rule(seen, terms) == expected


@pytest.mark.parametrize(
    ("before", "after", "tolerance", "expected"),
    [
        (0.5, 0.5, 0.0, (False, 0.0)),
        (0.5, 0.75, 0.0, (True, 0.25)),
        (0.5, math.nextafter(0.5, 1), 0.0, (True, 2**-53)),
        # So much, and this part of what it was: 0.5 + 0.5 x 1.
        (1.0, 2.0, 0.5, (False, 1.0)),
        (1.0, 2.5, 0.5, (True, 1.5)),
        (1000.0, 1000.5, 1e-3, (False, 0.5)),
        # Integers, labels and booleans are the same only where they are equal.
        (1, 2, 10.0, (True, 1.0)),
        (1, 2.0, 0.0, (True, 1.0)),
        (1, 1.0, 0.0, (False, 0.0)),
        ("yes", "no", 10.0, (True, 0.0)),
        ("yes", "yes", 0.0, (False, 0.0)),
        (True, False, 10.0, (True, 0.0)),
        (True, 1, 10.0, (True, 0.0)),
        ("1", 1, 10.0, (True, 0.0)),
        # JSON knows neither NaN nor infinities.
        (None, math.nan, 0.0, (False, 0.0)),
        (None, 1.0, 10.0, (True, 0.0)),
        (1.0, math.inf, 10.0, (True, 0.0)),
    ],
)
def test_numbers_have_a_tolerance_and_labels_none(
    before: Value, after: Value, tolerance: float, expected: tuple[bool, float]
) -> None:
    assert between(before, after, tolerance) == expected


def test_answers_are_compared_row_by_row_and_output_by_output() -> None:
    then: list[Mapping[str, Value]] = [{"p": 0.5, "label": "a", "old": 1}, {"p": 0.5, "label": "a"}, {"p": 0.25}]
    answers = Answers({"p": [0.5, 0.75, 0.25], "label": ["b", "b", "b"], "new": [1, 2, 3]}, frozenset({2}), "no")
    seen = compared("1.0.0", then, answers, 0.1, 4, "age: not sent")
    outputs = {"p": Difference(1, 0.25), "label": Difference(2), "old": Difference(1)}
    assert seen == Finding("1.0.0", 7, changed=2, failed=1, unfit=4, outputs=outputs, why="no")
    assert compared("1.0.0", [], None, 0.1, 4, "age: not sent") == Finding("1.0.0", 4, unfit=4, why="age: not sent")


# ---------------------------------------------------------------- recorded requests under another signature


def read(*features: dict[str, Any]) -> Signature:
    content = {
        "model_id": "churn",
        "version": "2.0.0",
        "trained_date": "2024-01-01",
        "status": "production",
        "azure_location": "ai-models",
        "expected_features": [{"index": index, **feature} for index, feature in enumerate(features)],
    }
    return parse_signature(orjson.dumps(content))[0]


def fit(new: Sequence[dict[str, Any]], old: Sequence[dict[str, Any]], *inputs: Sequence[Any]) -> Fitting:
    """Rows that a version with the features `old` answered, the first one with 0, under those of another."""
    recorded = [Recorded(each, {"row": number}) for number, each in enumerate(inputs)]
    return fitting(Admission(read(*new)), read(*old).features, recorded)


AGE = {"name": "age", "type": "int", "min": 18}
SCORE = {"name": "score", "type": "float"}
GUARANTOR = {"name": "has_guarantor", "type": "bool"}
PLAN = {"name": "plan", "type": "string", "nullable": True}


def test_recorded_inputs_go_by_the_names_of_their_features() -> None:
    new = {"name": "clicks", "type": "int", "default": 7}
    fits = fit([SCORE, new, AGE], [AGE, SCORE], [20.0, 0.5], [30.0, 0.25])
    assert np.frombuffer(fits.rows.matrix.float64).tolist() == [0.5, 7.0, 20.0, 0.25, 7.0, 30.0]
    assert (fits.rows.matrix.rows, fits.then, fits.unfit) == (2, [{"row": 0}, {"row": 1}], 0)


def test_booleans_that_stood_in_a_row_of_numbers_are_booleans_again() -> None:
    fits = fit([GUARANTOR, SCORE], [SCORE, GUARANTOR], [0.5, 1.0], [0.25, 0.0])
    assert np.frombuffer(fits.rows.matrix.float64).tolist() == [1.0, 0.5, 0.0, 0.25]
    assert fit([PLAN, GUARANTOR], [PLAN, GUARANTOR], ["a", True]).unfit == 0


def test_inputs_that_no_longer_fit_are_counted_and_the_others_stay_beside_their_answers() -> None:
    fits = fit([AGE], [AGE], [7.0], [20.0], [8.0], [30.0])
    assert (fits.then, fits.unfit, fits.why) == (
        [{"row": 1}, {"row": 3}],
        2,
        "age: expected an int of at least 18, got 7",
    )


@pytest.mark.parametrize(
    ("features", "why"),
    [
        ((AGE, {"name": "city", "type": "float"}), "city: not sent and has no default"),
        ((SCORE,), "age: unknown feature; churn has score"),
        (({"name": "age", "type": "string"},), "age: expected a string of at most 1024 bytes, got 20"),
    ],
)
def test_a_signature_that_takes_none_of_them_says_why(features: tuple[dict[str, Any], ...], why: str) -> None:
    fits = fit(features, [AGE], [20.0])
    assert (fits.then, fits.unfit, fits.why) == ([], 1, why)


def test_rows_of_mixed_types_come_through_with_their_nulls() -> None:
    fits = fit([PLAN, SCORE], [SCORE, PLAN], [0.5, "a"], [1.5, None], [2.5, ""])
    plans, scores = fits.rows.columns.columns
    assert (list(plans.strings.values), list(plans.nulls)) == (["a", "", ""], [1])
    assert list(scores.doubles.values) == [0.5, 1.5, 2.5]


# ---------------------------------------------------------------- answers, which the version itself may have written


def test_answers_come_through_whole() -> None:
    columns: dict[str, Sequence[Value]] = {"p": [0.5, -0.0], "n": [2**53, -1], "b": [True, False], "t": ["a", "ü"]}
    answers = Answers(columns, frozenset({1}), "the model raised ValueError: no")
    assert Answers.decode(answers.encode(), 2) == answers


def test_answers_that_are_too_long_are_not_sent() -> None:
    with pytest.raises(ValueError, match="8 MiB are the most"):
        Answers({"t": ["x" * MAX_ANSWERS_BYTES]}).encode()


NO_ANSWERS = [
    v1.PredictResponse(),
    v1.PredictResponse(columns=[v1.OutputColumn(name="p")]),
    v1.PredictResponse(columns=[v1.OutputColumn(name="p", column=v1.Column(doubles=v1.Doubles(values=[1.0])))]),
    v1.PredictResponse(columns=[v1.OutputColumn(name="p", column=v1.Column(doubles=v1.Doubles(values=[1, 2])))] * 2),
    v1.PredictResponse(
        columns=[v1.OutputColumn(name="p", column=v1.Column(doubles=v1.Doubles(values=[1, 2]), nulls=[2]))]
    ),
]


@given(st.binary(max_size=200) | st.sampled_from(NO_ANSWERS).map(v1.PredictResponse.SerializeToString))
def test_what_is_no_answer_to_two_rows_is_a_value_error(raw: bytes) -> None:
    with pytest.raises(ValueError, match="not answers"):
        Answers.decode(raw, 2)


# ---------------------------------------------------------------- what is wanted behind the gate

HELD = Hold("it changes too much", "it changes too much", again=False)


def goal(rulings: Mapping[str, Ruling | None], *lines: str) -> Any:
    """What is wanted where the gate ruled so on statements, by their word and version; on the others nothing."""

    def standing(claim: Claim) -> Ruling | None:
        return rulings.get(f"{claim.statement.word} {claim.version.version}", GoOn())

    return through(lambda without: wanted(ALL, timeline(*lines), without=without), standing)


def test_what_is_held_back_is_as_if_it_had_not_been_said() -> None:
    lines = ("tag production 1.0.0", "act canary 1.1.0 500", "act promote 1.1.0", "tag production 1.2.0")
    held = goal({"promote 1.1.0": HELD, "production 1.2.0": HELD}, *lines)
    assert (roles(held), held.gated, held.is_examined) == (
        "1.0.0 canary 1.1.0 5%",
        {"1.1.0": HELD, "1.2.0": HELD},
        False,
    )
    assert held.decided_us == wanted(ALL, timeline(*lines)).decided_us


def test_while_a_version_is_examined_the_canary_stays_what_it_is() -> None:
    lines = ("tag production 1.0.0", "act canary 1.1.0 500", "act promote 1.1.0")
    examined = goal({"promote 1.1.0": None}, *lines)
    assert (roles(examined), examined.is_examined) == ("1.1.0 canary 1.1.0 5%", True)


def test_a_version_below_one_that_is_examined_does_not_take_over_meanwhile() -> None:
    lines = ("tag production 1.0.0", "& tag production 1.1.0", "& tag production 1.2.0")
    examined = goal({"production 1.2.0": None, "production 1.1.0": None}, *lines)
    assert (roles(examined), examined.is_examined) == ("1.2.0", True)


def test_a_pin_that_is_held_back_still_makes_later_tags_count_for_nothing() -> None:
    held = goal({"pin 1.1.0": HELD}, "tag production 1.0.0", "act pin 1.1.0", "tag production 1.2.0")
    assert (roles(held), held.gated) == ("1.0.0", {"1.1.0": HELD})


def test_what_is_said_anew_despite_the_gate_stands() -> None:
    lines = ("tag production 1.0.0", "tag production 1.1.0", "act promote despite the gate 1.1.0")
    held = goal({"production 1.1.0": HELD}, *lines)
    assert (roles(held), held.gated) == ("1.1.0", {})
