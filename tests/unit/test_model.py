"""A model in memory: what is refused at load, what it answers, and what makes a prediction fail."""

from __future__ import annotations

import json
import pickle
import re
import sys
from io import BytesIO
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.exceptions import InconsistentVersionWarning
from sklearn.linear_model import LinearRegression, LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from consumers.model.formats import load_artifact, pin_threads
from consumers.model.model import LoadedModel, PredictFailed, Rows, UnloadableModel, load_model, rows_of
from contract.signature import Signature, parse_signature

RNG = np.random.default_rng(5)
X = RNG.normal(size=(300, 2))
Y = (X[:, 0] + 0.3 * RNG.normal(size=300) > 0).astype(np.int64)
NUMBERS = [{"name": "a", "type": "float", "example": 0.5}, {"name": "b", "type": "float", "example": -1.0}]
PROBABILITY = [{"name": "p", "call": "predict_proba", "class": 1}]


def dumped(estimator: object) -> bytes:
    buffer = BytesIO()
    joblib.dump(estimator, buffer)
    return buffer.getvalue()


def signature(features: list[dict[str, Any]] | None = None, **changes: Any) -> Signature:
    content = {
        "model_id": "m",
        "version": "1",
        "trained_date": "2024-01-01",
        "status": "staging",
        "azure_location": "ai-models",
        "expected_features": [{"index": i} | each for i, each in enumerate(NUMBERS if features is None else features)],
    }
    return parse_signature(json.dumps(content | changes).encode())[0]


def loaded(estimator: object, features: list[dict[str, Any]] | None = None, **changes: Any) -> LoadedModel:
    return load_model(signature(features, **changes), {"model.joblib": dumped(estimator)})


def refusal(estimator: object, features: list[dict[str, Any]] | None = None, **changes: Any) -> str:
    with pytest.raises(UnloadableModel) as caught:
        loaded(estimator, features, **changes).warm()
    return str(caught.value)


class Calls:
    """Counts its calls, and answers with what it was given to answer."""

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.made = 0

    def predict(self, rows: Any) -> Any:
        self.made += 1
        return self.answer(rows) if callable(self.answer) else self.answer

    predict_proba = predict


class RaisesOnNegative:
    def predict(self, rows: Any) -> Any:
        if (np.asarray(rows) < 0).any():
            raise ArithmeticError("below zero\nand more")
        return np.zeros(len(rows))


class OneRowTooFew:
    def predict(self, rows: Any) -> Any:
        return np.zeros(max(len(rows) - 1, 1))


class SaysWhatItGot:
    """Answers with a description of its input, column by column."""

    def predict(self, rows: Any) -> Any:
        described = [f"{name}={rows[name].dtype}:{rows[name].iloc[0]!r}" for name in rows.columns]
        return np.array([" ".join(described)] * len(rows))


def predict_inputs(rows: Any) -> Any:
    return np.asarray(rows)[:, 0]


class Shapes:
    """Answers with the kind of value its name asks for."""

    def __init__(self, values: list[object], dtype: Any = None) -> None:
        self.values = values
        self.dtype = dtype

    def predict(self, rows: Any) -> Any:
        return np.array(self.values * len(rows), dtype=self.dtype)


# ---------------------------------------------------------------- answers


def test_an_array_model_answers_what_scikit_learn_answers() -> None:
    estimator = LogisticRegression().fit(X, Y)
    outputs = [
        {"name": "label", "call": "predict"},
        {"name": "p", "call": "predict_proba", "class": 1},
        {"name": "margin", "call": "decision_function"},
    ]
    columns = loaded(estimator, outputs=outputs).predict(X)
    assert [(column.name, column.kind) for column in columns] == [("label", "int"), ("p", "float"), ("margin", "float")]
    for column, expected in zip(
        columns, (estimator.predict(X), estimator.predict_proba(X)[:, 1], estimator.decision_function(X)), strict=True
    ):
        np.testing.assert_array_equal(expected, column.values)


def test_columns_are_taken_as_well_as_a_matrix() -> None:
    model = loaded(LinearRegression().fit(X, X[:, 0]))
    (by_matrix,), (by_columns,) = model.predict(X), model.predict([X[:, 0], X[:, 1]])
    np.testing.assert_array_equal(by_matrix.values, by_columns.values)


def test_outputs_of_one_call_share_it() -> None:
    calls = Calls(lambda rows: np.tile([0.25, 0.75], (len(rows), 1)))
    outputs = [{"name": name, "call": "predict_proba", "column": place} for place, name in enumerate("ab")]
    model = LoadedModel(signature(outputs=outputs), (), calls, ())
    calls.made = 0
    assert [column.values.tolist() for column in model.predict(X[:1]) if not isinstance(column.values, list)] == [
        [0.25],
        [0.75],
    ]
    assert calls.made == 1


def test_a_probability_without_a_class_is_one_output_per_label() -> None:
    estimator = LogisticRegression().fit(X, np.where(Y == 1, "yes", "no"))
    model = loaded(estimator, outputs=[{"name": "p", "call": "predict_proba"}, {"name": "label"}])
    assert model.outputs == (("p.no", "float"), ("p.yes", "float"), ("label", "string"))
    assert model.predict(X[:5])[2].values == estimator.predict(X[:5]).tolist()


def test_transforms_are_applied_in_their_order() -> None:
    first, second = StandardScaler().fit(X * 3), StandardScaler().fit(X + 1)
    estimator = LinearRegression().fit(X, X[:, 0] - X[:, 1])
    files = {"b.joblib": dumped(first), "a.joblib": dumped(second), "model.pkl": pickle.dumps(estimator)}
    (column,) = load_model(signature(transforms=["b.joblib", "a.joblib"]), files).predict(X)
    np.testing.assert_array_equal(estimator.predict(second.transform(first.transform(X))), column.values)


def test_a_dataframe_has_the_names_and_types_of_the_signature() -> None:
    features: list[dict[str, Any]] = [
        {"name": "f", "type": "float", "nullable": True, "example": 1.5},
        {"name": "i", "type": "int"},
        {"name": "b", "type": "bool"},
        {"name": "s", "type": "string", "nullable": True},
    ]
    model = LoadedModel(signature(features), (), SaysWhatItGot(), ())
    rows: Rows = [np.array([np.nan]), np.array([2**53]), np.array([True]), [None]]
    got = f"f=float64:{np.float64('nan')!r} i=int64:{np.int64(2**53)!r} b=bool:{np.True_!r} s=object:None"
    assert model.predict(rows)[0].values == [got]
    assert model.predict(rows_of(model.signature, [[None, 2**53, True, None]]))[0].values == [got]


def test_a_dataframe_is_built_from_a_matrix_too() -> None:
    features = [{"name": "i", "type": "int"}, {"name": "b", "type": "bool"}]
    model = LoadedModel(signature(features, input="dataframe"), (), SaysWhatItGot(), ())
    assert model.predict(np.array([[7.0, 1.0]]))[0].values == [f"i=int64:{np.int64(7)!r} b=bool:{np.True_!r}"]


def test_null_is_nan_on_its_way_in_and_nan_on_its_way_out() -> None:
    model = LoadedModel(signature([{"name": "a", "type": "float", "nullable": True}]), (), Calls(predict_inputs), ())
    values = model.predict(rows_of(model.signature, [[None], [1.5]]))[0].values
    np.testing.assert_array_equal(values, [np.nan, 1.5])


@pytest.mark.parametrize(
    ("values", "dtype", "kind", "out"),
    [
        ([1], np.int32, "int", [1]),
        ([1], np.uint8, "int", [1]),
        ([0.5], np.float32, "float", [0.5]),
        ([True], bool, "bool", [True]),
        (["é"], None, "string", ["é"]),
        (["x"], object, "string", ["x"]),
        ([3], object, "int", [3]),
    ],
)
def test_the_type_of_an_output_is_what_the_model_answers(values: list[object], dtype: Any, kind: str, out: Any) -> None:
    (column,) = LoadedModel(signature(), (), Shapes(values, dtype), ()).predict(X[:1])
    assert (column.kind, list(column.values)) == (kind, out)


@pytest.mark.parametrize(
    ("values", "kind", "out"),
    [([2.0], "int", [2]), ([3], "float", [3.0]), ([1], "bool", [True]), ([0.0], "bool", [False])],
)
def test_a_declared_type_is_taken_where_no_value_changes(values: list[object], kind: str, out: list[object]) -> None:
    outputs = [{"name": "p", "type": kind}]
    (column,) = LoadedModel(signature(outputs=outputs), (), Shapes(values), ()).predict(X[:1])
    assert (column.kind, list(column.values)) == (kind, out)


@pytest.mark.parametrize(
    ("values", "dtype", "kind"),
    [
        ([2.5], None, "int"),
        ([np.nan], None, "int"),
        ([2**64 - 1], np.uint64, "int"),
        (["1"], None, "float"),
        ([2], None, "bool"),
        ([1], None, "string"),
        (["1"], object, "float"),
        ([None], object, "string"),
    ],
)
def test_a_declared_type_that_would_change_a_value_is_refused(values: list[object], dtype: Any, kind: str) -> None:
    outputs = [{"name": "p", "type": kind}]
    with pytest.raises(UnloadableModel, match=f"the output p is of type {kind}; the model answered values such as"):
        LoadedModel(signature(outputs=outputs), (), Shapes(values, dtype), ())


def test_names_from_a_dataframe_do_not_warn_when_a_matrix_comes() -> None:
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(pd.DataFrame(X, columns=["a", "b"]), Y)
    model = loaded(estimator)
    assert list(model.predict(X)[0].values) == estimator.predict(pd.DataFrame(X, columns=["a", "b"])).tolist()


def test_read_only_rows_are_enough() -> None:
    rows = np.frombuffer(X.tobytes(), dtype=np.float64).reshape(X.shape)
    assert len(loaded(RandomForestClassifier(5, random_state=1).fit(X, Y)).predict(rows)[0].values) == 300


# ---------------------------------------------------------------- failures


def test_a_model_that_raises_is_a_failed_prediction_in_one_line() -> None:
    model = LoadedModel(signature([{"name": "a", "type": "float"}]), (), RaisesOnNegative(), ())
    with pytest.raises(PredictFailed, match=r"^the model raised ArithmeticError: below zero and more$"):
        model.predict(np.array([[-1.0]]))
    assert model.predict(np.array([[1.0]]))[0].values.tolist() == [0.0]  # type: ignore[union-attr]


def test_another_number_of_answers_than_rows_is_a_failed_prediction() -> None:
    """Answers are matched to requests by position: one row too few would answer all the others wrongly."""
    model = LoadedModel(signature(), (), OneRowTooFew(), ())
    with pytest.raises(PredictFailed, match=r"predict answered the shape \(2,\); expected \(3,\)"):
        model.predict(X[:3])


def test_rows_of_another_width_are_a_failed_prediction() -> None:
    with pytest.raises(PredictFailed, match="the model raised ValueError"):
        loaded(LinearRegression().fit(X, Y)).predict(np.zeros((2, 3)))


# ---------------------------------------------------------------- refusals at load


def test_the_first_differing_feature_name_is_told() -> None:
    estimator = LogisticRegression().fit(pd.DataFrame(X, columns=["a", "years"]), Y)
    assert refusal(estimator) == "feature 1 is 'b' in the signature and 'years' in the LogisticRegression"


def test_names_in_another_order_are_refused() -> None:
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(pd.DataFrame(X, columns=["b", "a"]), Y)
    assert refusal(estimator) == "feature 0 is 'a' in the signature and 'b' in the Pipeline"


def test_the_first_transform_is_what_names_are_compared_with() -> None:
    scaler = StandardScaler().fit(pd.DataFrame(X, columns=["a", "c"]))
    files = {"scaler.joblib": dumped(scaler), "model.joblib": dumped(LogisticRegression().fit(X, Y))}
    with pytest.raises(UnloadableModel, match="feature 1 is 'b' in the signature and 'c' in the StandardScaler"):
        load_model(signature(transforms=["scaler.joblib"]), files)


def test_another_number_of_features_is_refused() -> None:
    estimator = LinearRegression().fit(np.zeros((3, 4)), np.zeros(3))
    assert refusal(estimator) == "the signature has 2 features; LinearRegression was fitted on 4"


def test_a_call_the_model_does_not_have_is_refused() -> None:
    told = refusal(SGDClassifier().fit(X, Y), outputs=[{"name": "p", "call": "predict_proba", "class": 1}])
    assert told == "an output asks for predict_proba, which SGDClassifier does not have"


@pytest.mark.parametrize("label", ["1", True, 2, "yes"])
def test_a_class_the_model_does_not_know_is_refused(label: object) -> None:
    told = refusal(LogisticRegression().fit(X, Y), outputs=[{"name": "p", "call": "predict_proba", "class": label}])
    assert told == f"the output p is for the class {label!r}; the model has 0, 1"


def test_a_column_the_call_does_not_answer_is_refused() -> None:
    told = refusal(LogisticRegression().fit(X, Y), outputs=[{"name": "p", "call": "predict_proba", "column": 2}])
    assert told == "the output p is column 2; predict_proba answers 2, from 0"


def test_two_outputs_of_one_name_are_refused() -> None:
    outputs = [{"name": "p", "call": "predict_proba"}, {"name": "p.1", "call": "predict_proba", "class": 1}]
    assert refusal(LogisticRegression().fit(X, Y), outputs=outputs) == "two outputs are called p.1"


def test_a_model_that_fails_on_its_example_row_is_refused() -> None:
    features = [{"name": "a", "type": "float", "example": -1.0}]
    with pytest.raises(UnloadableModel, match=r"on the example row \[-1.0\], the model raised ArithmeticError"):
        LoadedModel(signature(features), (), RaisesOnNegative(), ())


def test_an_output_that_is_no_value_is_refused() -> None:
    with pytest.raises(UnloadableModel, match="expected a number, a boolean or a string"):
        LoadedModel(signature(), (), Shapes([{"a": 1}]), ())
    with pytest.raises(UnloadableModel, match=r"predict answered the shape \(1, 2, 2\) for one row"):
        LoadedModel(signature(), (), Calls(lambda rows: np.zeros((len(rows), 2, 2))), ())


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.h5", b"x", "model.h5 is of no format that can be loaded; expected .joblib, .pkl, .skops, .onnx, .pt, "),
        ("model.pkl", b"", "model.pkl (0 bytes) can't be loaded: EOFError"),
        ("model.joblib", b"not a pickle", "model.joblib (12 bytes) can't be loaded: "),
        (
            "model.pkl",
            b"cno_such_library.forest\nForest\n.",
            "needs no_such_library, which is not installed where workers run",
        ),
        ("model.pkl", b"csklearn.no_such_module\nForest\n.", "which the installed version of sklearn does not have"),
        ("model.pkl", b"c__main__\nMyOwnModel\n.", "its class was defined in a script or notebook"),
        ("model.pkl", pickle.dumps({"a": 1}), "an output asks for predict, which dict does not have"),
    ],
)
def test_a_file_that_can_not_serve_is_refused_in_a_sentence(name: str, content: bytes, says: str) -> None:
    with pytest.raises(UnloadableModel) as caught:
        load_model(signature(), {name: content})
    assert says in str(caught.value)


def test_a_truncated_file_is_refused() -> None:
    content = dumped(RandomForestClassifier(5).fit(X, Y))
    for length in (1, 100, len(content) // 2, len(content) - 1):
        with pytest.raises(UnloadableModel, match="can't be loaded"):
            load_model(signature(), {"model.joblib": memoryview(content)[:length]})


def test_xgboost_is_named_by_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without the library: None in sys.modules makes the import fail as if it were not there."""
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(UnloadableModel, match=r"pip install millstream\[xgboost\]"):
        load_model(signature(), {"model.pkl": b"cxgboost\nXGBRegressor\n."})


def test_a_transform_without_transform_is_refused() -> None:
    files = {"scaler.pkl": pickle.dumps({}), "model.pkl": pickle.dumps(LinearRegression().fit(X, Y))}
    with pytest.raises(UnloadableModel, match=r"scaler.pkl is a dict; expected something with .transform"):
        load_model(signature(transforms=["scaler.pkl"]), files)


def test_a_missing_artifact_is_refused() -> None:
    with pytest.raises(UnloadableModel, match=r"scaler.pkl is named in the signature and missing"):
        load_model(signature(transforms=["scaler.pkl"]), {"model.pkl": b""})


def test_a_model_of_another_library_version_is_loaded_and_says_so() -> None:
    estimator = KMeans(2, n_init=1, random_state=0).fit(X)
    content = pickle.dumps(estimator)
    state = estimator.__getstate__()
    older = content.replace(state["_sklearn_version"].encode(), b"0.0.1".ljust(len(state["_sklearn_version"]), b"0"))
    with pytest.warns(InconsistentVersionWarning):
        pickle.loads(older)
    _, warned = load_artifact("model.pkl", older)
    assert len(warned) == 1
    assert warned[0].startswith("model.pkl: Trying to unpickle estimator KMeans from version 0.0.1")


# ---------------------------------------------------------------- golden examples


def golden(value: object, **more: object) -> list[dict[str, object]]:
    return [{"inputs": [0.5, -1.0], "outputs": {"prediction": value}} | more]


def test_golden_outputs_hold_to_the_last_bit() -> None:
    estimator = LinearRegression().fit(X, X @ [0.1, 0.7])
    exact = estimator.predict(np.array([[0.5, -1.0]]))[0].item()
    loaded(estimator, golden=golden(exact)).warm()
    told = refusal(estimator, golden=golden(np.nextafter(exact, 1).item()))
    assert told == (
        f"golden[0].outputs.prediction: expected {np.nextafter(exact, 1).item()!r} to the last bit, got {exact!r}"
    )


def test_a_tolerance_is_an_absolute_difference() -> None:
    estimator = LinearRegression().fit(X, X @ [0.1, 0.7])
    exact = estimator.predict(np.array([[0.5, -1.0]]))[0].item()
    loaded(estimator, golden=golden(exact + 0.009, tolerance=0.01)).warm()
    assert "within 0.01" in refusal(estimator, golden=golden(exact + 0.011, tolerance=0.01))


@pytest.mark.parametrize(
    ("answer", "expected", "agrees"),
    [
        ("yes", "yes", True),
        ("yes", "no", False),
        (3, 3, True),
        (3, 3.0, True),
        (3, 4, False),
        (3, "3", False),
        (True, True, True),
        (True, 1, False),
        (np.nan, None, True),
        (np.nan, 1.0, False),
        (1.0, None, False),
        (0.0, -0.0, False),
        (-0.0, -0.0, True),
    ],
)
def test_golden_outputs_are_compared_by_type_and_value(answer: object, expected: object, agrees: bool) -> None:
    model = LoadedModel(signature(golden=golden(expected)), (), Shapes([answer]), ())
    if agrees:
        model.warm()
    else:
        with pytest.raises(UnloadableModel, match=r"^golden\[0\].outputs.prediction: expected "):
            model.warm()


def test_a_golden_output_the_model_does_not_have_is_refused() -> None:
    told = refusal(LinearRegression().fit(X, Y), golden=[{"inputs": [1, 1], "outputs": {"prediction.2": 1}}])
    assert told == "golden[0] expects the output prediction.2; there are prediction"


# ---------------------------------------------------------------- threads


def test_every_estimator_inside_is_pinned_to_one_thread() -> None:
    forest = RandomForestClassifier(4, n_jobs=4)
    voting = VotingClassifier([("forest", forest), ("line", LogisticRegression())], n_jobs=2)
    pipeline = make_pipeline(StandardScaler(), voting).fit(X, Y)
    pin_threads(pipeline)
    fitted = pipeline[-1].estimators_[0]
    assert (pipeline[-1].n_jobs, fitted.n_jobs, forest.n_jobs) == (1, 1, 1)


def test_xgboost_is_pinned_inside_its_booster() -> None:
    xgboost = pytest.importorskip("xgboost")
    estimator, _ = load_artifact("m.joblib", dumped(xgboost.XGBRegressor(n_estimators=2, n_jobs=4).fit(X, Y)))
    settings = json.loads(estimator.get_booster().save_config())
    assert (estimator.n_jobs, settings["learner"]["generic_param"]["nthread"]) == (1, "1")


def test_the_engine_is_the_library_and_its_version() -> None:
    import sklearn

    assert loaded(LinearRegression().fit(X, Y)).engine == f"sklearn {sklearn.__version__}"


def test_a_model_with_a_compiled_form_answers_the_same_bits_and_says_what_computed_them() -> None:
    model = loaded(make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y), outputs=PROBABILITY)
    expected = [column.values for column in model.predict(X)]
    assert model.engine.startswith("sklearn ")
    assert model.compile() == ""
    model.warm()
    np.testing.assert_array_equal(expected, [column.values for column in model.predict(X)], strict=True)
    assert model.engine == f"numpy {np.__version__} (LogisticRegression)"


def test_rows_that_a_compiled_form_does_not_take_go_to_the_original() -> None:
    nullable = [{**each, "nullable": True} for each in NUMBERS]
    model = loaded(LinearRegression().fit(X, X[:, 0]), nullable)
    assert model.compile() == ""
    model.predict(rows_of(model.signature, [[1.0, 2.0]]))
    assert model.engine.startswith("numpy ")
    with pytest.raises(PredictFailed, match="Input X contains NaN"):
        model.predict(rows_of(model.signature, [[1.0, None]]))
    assert model.engine.startswith("sklearn ")


def test_more_rows_than_a_compiled_form_is_for_go_to_the_original() -> None:
    model = loaded(RandomForestClassifier(3, random_state=0).fit(X, Y))
    assert model.compile() == ""
    assert model.form is not None
    most = model.form.most_rows
    many = np.resize(X, (most + 1, X.shape[1]))
    model.predict(many[:most])
    assert model.engine.startswith("onnxruntime ")
    model.predict(many)
    assert model.engine.startswith("sklearn ")


FOREST = RandomForestClassifier(20, min_samples_leaf=20, random_state=0).fit(X, Y)


def test_a_tolerance_lets_another_precision_in_and_the_engine_says_so() -> None:
    model = loaded(FOREST, outputs=PROBABILITY)
    expected = np.asarray([column.values for column in model.predict(X)])
    assert model.compile(1e-6) == ""
    assert np.allclose(np.asarray([column.values for column in model.predict(X)]), expected, rtol=1e-6, atol=1e-6)
    assert re.fullmatch(r"onnxruntime [\d.]+ \(RandomForestClassifier\) within 1e-06", model.engine)


def test_without_a_tolerance_or_beyond_it_none_is_let_in_that_differs() -> None:
    for tolerance in (0.0, 1e-15):
        model = loaded(FOREST, outputs=PROBABILITY)
        expected = np.asarray([column.values for column in model.predict(X)])
        model.compile(tolerance)
        assert np.allclose(np.asarray([column.values for column in model.predict(X)]), expected, rtol=0, atol=1e-15)
        assert not model.engine.startswith("onnxruntime ")


def test_golden_examples_to_the_last_bit_are_not_given_up_for_a_tolerance() -> None:
    golden = [
        {"inputs": row.tolist(), "outputs": {"p": float(FOREST.predict_proba([row])[0, 1])}, "tolerance": 0}
        for row in X[:20]
    ]
    model = loaded(FOREST, outputs=PROBABILITY, golden=golden)
    model.compile(1e-6)
    model.warm()
    assert not model.engine.startswith("onnxruntime ")


def test_a_model_without_a_compiled_form_stays_as_it_is() -> None:
    model = loaded(SGDClassifier(loss="log_loss").fit(X, Y))
    assert model.compile() == "no compiled form is known for its steps"
    model.predict(X)
    assert model.engine.startswith("sklearn ")
