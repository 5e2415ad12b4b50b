"""Compiled forms answer as scikit-learn does, to the last bit, or are not used."""

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

from consumers.model.compiled import NotTaken, compiled, difference, sample_rows
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
    found = compiled(transforms, model, calls)
    assert found is not None
    return found


@pytest.mark.parametrize(("transforms", "model", "y", "calls"), CASES, ids=lambda value: type(value).__name__)
def test_no_bit_differs_in_batches_of_any_size(transforms: list[Any], model: Any, y: Any, calls: list[str]) -> None:
    fitted(transforms, model, y)
    assert difference(form(transforms, model, calls), original(transforms, model), SAMPLES) == ""


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
    call = form([], model, ["predict"]).calls["predict"]
    for batch in np.array_split(np.array(rows), 20):
        assert model.predict(batch).tobytes() == call(batch).tobytes()


def test_a_form_that_is_not_the_models_own_is_found_out() -> None:
    transforms, model = fitted([StandardScaler()], LogisticRegression(), TWO)
    other = LogisticRegression(C=0.999).fit(StandardScaler().fit_transform(X), TWO)
    assert "predict_proba differs" in difference(
        form(transforms, other, ["predict_proba"]), original(transforms, model), SAMPLES
    )


def test_one_bit_in_one_row_of_the_largest_batch_is_found_out() -> None:
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
    assert compiled(transforms, model, calls) is None


def test_forests_have_no_form_where_treelite_is_not_installed() -> None:
    code = """
import sys
sys.modules["treelite"] = None
from sklearn.ensemble import RandomForestRegressor
from consumers.model.compiled import compiled
print(compiled([], RandomForestRegressor(2).fit([[0.0], [1.0]], [0.0, 1.0]), ["predict"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "None"


def test_linear_models_do_not_load_treelite() -> None:
    code = """
import sys
from sklearn.linear_model import LinearRegression
from consumers.model.compiled import compiled
assert compiled([], LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0]), ["predict"])
print("treelite" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
