"""Compiled forms answer as scikit-learn does, to the last bit or within what is allowed, or are not used."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import (
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import Lasso, LinearRegression, LogisticRegression, Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, PolynomialFeatures, RobustScaler, StandardScaler
from sklearn.svm import LinearSVC

from consumers.model.compiled import NotTaken, difference, forms, sample_rows, timed
from consumers.model.compiled.form import Form
from tests.servers import ROOT

Matrix = npt.NDArray[np.float64]

SOURCE = np.random.default_rng(0)
X: Matrix = SOURCE.normal(size=(400, 4)) * [1, 10, 100, 0.1]
TWO = (X[:, 0] + SOURCE.normal(size=400) > 0).astype(int)
THREE = SOURCE.integers(0, 3, 400)
NUMBER = X @ [1.0, 2.0, 3.0, 4.0] + SOURCE.normal(size=400)
YES_NO = np.array(["no", "yes"])[TWO]
SAMPLES = sample_rows(list(zip(X.min(axis=0), X.max(axis=0), strict=True)), X[:50], 2000)

BOTH, ALL = ["predict", "predict_proba"], ["predict", "predict_proba", "decision_function"]
CASES: list[tuple[list[Any], Any, Any, list[str]]] = [
    ([StandardScaler()], LogisticRegression(), TWO, ALL),
    ([StandardScaler(with_mean=False), RobustScaler(with_scaling=False)], LogisticRegression(), YES_NO, ALL),
    ([MinMaxScaler(clip=True)], LogisticRegression(), THREE, ALL),
    ([], make_pipeline(StandardScaler(), "passthrough", LogisticRegression()), TWO, BOTH),
    ([], LinearRegression(), NUMBER, ["predict"]),
    ([], LinearRegression(), np.column_stack([NUMBER, -NUMBER]), ["predict"]),
    ([MaxAbsScaler()], Ridge(), NUMBER, ["predict"]),
    ([RobustScaler()], Lasso(), NUMBER, ["predict"]),
    ([], RidgeClassifier(), THREE, ["predict", "decision_function"]),
    ([], LinearSVC(), TWO, ["predict", "decision_function"]),
    ([], RandomForestClassifier(20, random_state=0), TWO, BOTH),
    ([StandardScaler()], RandomForestClassifier(20, random_state=0), YES_NO, BOTH),
    ([], RandomForestClassifier(20, random_state=0), THREE, BOTH),
    ([], RandomForestRegressor(20, random_state=0), NUMBER, ["predict"]),
    ([], ExtraTreesRegressor(20, random_state=0), NUMBER, ["predict"]),
    ([], ExtraTreesRegressor(5, random_state=0), np.ones(400), ["predict"]),  # trees that are one leaf
]


def fitted(transforms: Sequence[Any], model: Any, y: Any) -> tuple[Sequence[Any], Any]:
    rows = X
    for step in transforms:
        rows = step.fit_transform(rows)
    return transforms, model.fit(rows, y)


def original(transforms: Sequence[Any], model: Any) -> Any:
    def call(rows: Matrix, name: str) -> npt.NDArray[Any]:
        for step in transforms:
            rows = step.transform(rows)
        return np.asarray(getattr(model, name)(rows))

    return call


def form(transforms: Sequence[Any], model: Any, calls: Sequence[str]) -> Form:
    """The fastest that is exact."""
    return next(forms(transforms, model, calls))


@pytest.mark.parametrize(("transforms", "model", "y", "calls"), CASES, ids=lambda value: type(value).__name__)
def test_no_bit_differs_in_batches_of_any_size(transforms: list[Any], model: Any, y: Any, calls: list[str]) -> None:
    fitted(transforms, model, y)
    found = list(forms(transforms, model, calls))
    assert [difference(each, original(transforms, model), SAMPLES) for each in found] == [""] * len(found)
    assert found


FLOATS = st.floats(-1e6, 1e6)


@settings(max_examples=150)
@given(rows=st.lists(st.lists(FLOATS, min_size=4, max_size=4), min_size=1, max_size=9))
def test_no_bit_differs_for_any_rows(rows: list[list[float]]) -> None:
    scaler, model = _SCALED
    batch = np.array(rows)
    expected = model.predict_proba(scaler.transform(batch))
    assert expected.tobytes() == form([scaler], model, BOTH).calls["predict_proba"](batch).tobytes()


_SCALED = (StandardScaler().fit(X), LogisticRegression().fit(StandardScaler().fit_transform(X), TWO))


def test_rows_at_and_beside_every_threshold_take_the_same_leaf() -> None:
    """scikit-learn rounds values to float32 before it compares: just beside a threshold that decides."""
    model = RandomForestRegressor(10, random_state=1).fit(X, NUMBER)
    turns = [(tree.tree_.feature[node], tree.tree_.threshold[node]) for tree in model.estimators_ for node in range(40)]
    rows = []
    for place, threshold in turns:
        for value in (threshold, np.nextafter(threshold, 1e9), np.nextafter(threshold, -1e9), np.float32(threshold)):
            row = X[0].copy()
            row[place] = value
            rows.append(row)
    for found in forms([], model, ["predict"]):
        for batch in np.array_split(np.array(rows), 20):
            assert model.predict(batch).tobytes() == found.calls["predict"](batch).tobytes()


def test_a_form_that_is_not_the_models_own_is_found_out() -> None:
    transforms, model = fitted([StandardScaler()], LogisticRegression(), TWO)
    other = LogisticRegression(C=0.999).fit(StandardScaler().fit_transform(X), TWO)
    assert "predict_proba differs" in difference(
        form(transforms, other, ["predict_proba"]), original(transforms, model), SAMPLES
    )


def test_one_bit_in_one_row_of_one_batch_is_found_out() -> None:
    _, model = fitted([], LinearRegression(), NUMBER)
    honest = form([], model, ["predict"])

    def nearly(rows: Matrix) -> npt.NDArray[Any]:
        answer = honest.calls["predict"](rows)
        if len(rows) == 256:
            answer[100] = np.nextafter(answer[100], np.inf)
        return answer

    assert difference(honest._replace(calls={"predict": nearly}), original([], model), SAMPLES) != ""


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("model", [LinearRegression(), RandomForestRegressor(3)], ids=["linear", "trees"])
def test_rows_that_only_the_original_may_judge_are_not_taken(model: Any, odd: float) -> None:
    call = form([], model.fit(X, NUMBER), ["predict"]).calls["predict"]
    with pytest.raises(NotTaken):
        call(np.array([[0.0, 1.0, odd, 2.0]]))


def test_a_forest_does_not_take_what_float32_cannot_hold() -> None:
    call = form([], RandomForestRegressor(3).fit(X, NUMBER), ["predict"]).calls["predict"]
    with pytest.raises(NotTaken):
        call(np.array([[0.0, 1.0, 1e39, 2.0]]))


class Doubled(LinearRegression):  # type: ignore[misc]
    """A class of somebody's own."""

    def predict(self, X: Any) -> Any:  # noqa: N803 - scikit-learn's name
        return 2 * super().predict(X)


@pytest.mark.parametrize(
    ("transforms", "model", "y", "calls"),
    [
        ([], Doubled(), NUMBER, ["predict"]),
        ([PolynomialFeatures()], LinearRegression(), NUMBER, ["predict"]),
        ([], GradientBoostingClassifier(n_estimators=3), TWO, ["predict"]),
        ([], RidgeClassifier(), TWO, ["predict_proba"]),
        ([], RandomForestRegressor(3), np.column_stack([NUMBER, NUMBER]), ["predict"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_known_exactly_has_no_form(transforms: list[Any], model: Any, y: Any, calls: list[str]) -> None:
    fitted(transforms, model, y)
    assert list(forms(transforms, model, calls, tolerated=True)) == []


@pytest.mark.parametrize("absent", ["onnx", "onnxruntime", "treelite"])
def test_forests_have_the_forms_whose_libraries_are_installed(absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    found = forms([], RandomForestRegressor(2).fit(X, NUMBER), ["predict"])
    assert [each.engine.split()[0] for each in found] == ["onnxruntime" if absent == "treelite" else "treelite"]


def test_linear_models_do_not_load_what_walks_forests() -> None:
    code = """
import sys
from sklearn.linear_model import LinearRegression
from consumers.model.compiled import forms
assert list(forms([], LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]), ["predict"], tolerated=True))
print({"treelite", "onnx", "onnxruntime"} & sys.modules.keys())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# ---------------------------------------------------------------- within a tolerance


@pytest.fixture(scope="module")
def shares() -> RandomForestClassifier:
    """Trees whose leaves have several classes: what they add up to depends on how it is rounded."""
    return RandomForestClassifier(30, min_samples_leaf=5, random_state=0).fit(X, THREE)


@pytest.fixture
def loose(shares: RandomForestClassifier) -> Form:
    """The form of it that sums in another precision."""
    return next(each for each in forms([], shares, BOTH, tolerated=True) if not each.is_exact)


def test_a_form_that_is_not_exact_is_offered_only_where_a_tolerance_is(shares: RandomForestClassifier) -> None:
    assert [each.is_exact for each in forms([], shares, BOTH)] == [True]
    assert [each.is_exact for each in forms([], shares, BOTH, tolerated=True)] == [False, True, False]


@pytest.mark.parametrize(("tolerance", "is_alike"), [(0.0, False), (1e-12, False), (1e-7, True)])
def test_numbers_may_differ_by_the_tolerance_and_no_more(
    shares: RandomForestClassifier, loose: Form, tolerance: float, is_alike: bool
) -> None:
    why = difference(loose, original([], shares), SAMPLES, tolerance, ["predict"])
    assert (why == "") is is_alike


def test_a_label_that_flips_is_found_out_whatever_the_tolerance(shares: RandomForestClassifier, loose: Form) -> None:
    def flipped(rows: Matrix) -> npt.NDArray[Any]:
        labels: npt.NDArray[Any] = shares.predict(rows)
        if len(rows) == 256:
            labels[100] = (labels[100] + 1) % 3
        return labels

    other = loose._replace(calls={"predict_proba": loose.calls["predict_proba"], "predict": flipped})
    assert "predict differs" in difference(other, original([], shares), SAMPLES, 0.5, ["predict"])
    # Labels may be of a type that numbers have too.
    floats = RandomForestClassifier(3, random_state=0).fit(X, TWO.astype(float))
    swapped = form([], floats, ["predict"])._replace(calls={"predict": lambda rows: 1 - floats.predict(rows)})
    assert "predict differs" in difference(swapped, original([], floats), SAMPLES, 0.6, ["predict"])


def test_classes_that_come_too_close_for_its_precision_are_left_to_the_original() -> None:
    even = RandomForestClassifier(3, bootstrap=False, min_samples_leaf=200).fit(np.zeros((400, 4)), np.arange(400) % 2)
    for found in forms([], even, BOTH, tolerated=True):
        with pytest.raises(NotTaken):
            found.calls["predict"](X[:1])
        assert found.calls["predict_proba"](X[:1]).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    ("then", "now", "is_alike"),
    [
        (np.nan, np.nan, True),
        (np.inf, np.inf, True),
        (np.inf, -np.inf, False),
        (np.nan, 1.0, False),
        (1e300, np.inf, False),
        (1000.0, 1000.5, True),
        (0.0, 1e-3, True),
        (0.0, 1e-2, False),
    ],
)
def test_a_tolerance_is_so_much_and_this_part_of_what_it_was(then: float, now: float, is_alike: bool) -> None:
    candidate = Form({"predict": lambda rows: np.full(len(rows), now)}, "other 1", 256)
    why = difference(candidate, lambda rows, _: np.full(len(rows), then), SAMPLES, 1e-3)
    assert (why == "") is is_alike


def test_every_row_of_the_sample_is_tried() -> None:
    tried = set()

    def noted(rows: Matrix) -> npt.NDArray[Any]:
        tried.update(rows[:, 0].tolist())
        return rows[:, 0]

    samples = np.arange(5000.0).reshape(-1, 1)
    assert difference(Form({"predict": noted}, "other 1", 100), lambda rows, _: rows[:, 0], samples) == ""
    assert tried == set(samples[:, 0].tolist())


# ---------------------------------------------------------------- for how many rows


class Clock:
    """Time that passes while a call is made: so much for each call and for each row."""

    def __init__(self) -> None:
        self.now = 0.0

    def call(self, each: float, row: float) -> Any:
        def called(rows: Matrix, _name: str = "") -> npt.NDArray[Any]:
            self.now += each + row * len(rows)
            return rows[:, 0]

        return called


@pytest.mark.parametrize(("row", "most"), [(1.0, 4096), (1.5, 1024), (3.0, 256), (9.0, 64)])
def test_a_form_is_for_as_many_rows_as_it_is_faster_for(row: float, most: int) -> None:
    clock = Clock()
    candidate = Form({"predict": clock.call(0.0, row)}, "other 1", 4096)
    found = timed(candidate, clock.call(1000.0, 1.0), SAMPLES, lambda: clock.now)
    assert found.most_rows == most


def test_what_a_form_leaves_to_the_original_counts_as_its_time() -> None:
    clock = Clock()

    def refused(rows: Matrix) -> npt.NDArray[Any]:
        clock.now += 1.0
        raise NotTaken

    candidate = Form({"predict": refused}, "other 1", 4096)
    assert timed(candidate, clock.call(1000.0, 1.0), SAMPLES, lambda: clock.now).most_rows == 64


def test_the_same_arithmetic_without_checks_is_not_timed() -> None:
    transforms, model = fitted([], LinearRegression(), NUMBER)
    found = form(transforms, model, ["predict"])
    assert timed(found, original(transforms, model), SAMPLES, lambda: 0.0) is found
