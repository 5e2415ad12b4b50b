"""Threads of a big model: its libraries have them while it predicts, and no other model at any time."""

from __future__ import annotations

import json
from io import BytesIO
from typing import Any

import joblib
import numpy as np
import numpy.typing as npt
import pytest
from sklearn.ensemble import RandomForestClassifier
from threadpoolctl import threadpool_info

from consumers.model.formats import load_artifact, pin_threads
from consumers.model.model import load_model, rows_of
from consumers.model.runtime import runtime
from consumers.worker.slot import cores
from contract.signature import parse_signature

MANY = cores() + 1
"""A number that no library has by itself."""
X = np.random.default_rng(3).normal(size=(200, 2))
Y = (X[:, 0] > 0).astype(np.int64)


def blas_threads() -> int:
    return max(int(pool["num_threads"]) for pool in threadpool_info() if pool["user_api"] == "blas")


class Counts:
    """Answers with the number of threads that BLAS has meanwhile."""

    def predict(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.full(len(rows), float(blas_threads()))


def dumped(model: object) -> bytes:
    file = BytesIO()
    joblib.dump(model, file)
    return file.getvalue()


def signature(**changes: object) -> Any:
    content = {
        "model_id": "m",
        "version": "1.0.0",
        "trained_date": "2026-01-31",
        "status": "production",
        "azure_location": "tests",
        "expected_features": [{"index": n, "name": f"f{n}", "type": "float"} for n in range(2)],
        "outputs": [{"name": "out", "call": "predict"}],
        **changes,
    }
    return parse_signature(json.dumps(content).encode())[0]


def answers(model: Any, rows: npt.NDArray[np.float64]) -> list[Any]:
    (column,) = model.predict(rows_of(model.signature, [tuple(row) for row in rows.tolist()]))
    found: list[Any] = np.asarray(column.values).tolist()
    return found


def test_a_model_has_its_threads_while_it_predicts_and_none_of_them_before_and_after() -> None:
    usual = blas_threads()
    golden = [{"inputs": [0.0, 0.0], "outputs": {"out": float(usual)}}]
    model = load_model(signature(golden=golden), {"m.joblib": dumped(Counts())}, MANY)
    model.warm()  # others predict meanwhile, with as many as ever
    assert answers(model, X[:2]) == [MANY, MANY]
    assert blas_threads() == usual
    assert answers(load_model(signature(), {"m.joblib": dumped(Counts())}), X[:1]) == [usual]


def test_a_compiled_forest_with_threads_answers_the_same() -> None:
    pytest.importorskip("treelite")
    outputs = [{"name": "p", "call": "predict_proba", "class": 1}]
    files = {"m.joblib": dumped(RandomForestClassifier(5, random_state=0).fit(X, Y))}
    one, many = (load_model(signature(outputs=outputs), files, threads) for threads in (1, MANY))
    assert (one.compile(), many.compile()) == ("", "")
    assert answers(many, X) == answers(one, X)
    assert answers(many, X[:64]) == answers(one, X[:64])
    assert many.engine.startswith("treelite")


def test_what_adds_up_in_the_order_of_its_threads_keeps_one() -> None:
    forest = RandomForestClassifier(4, n_jobs=4)
    pin_threads(forest, MANY)
    assert forest.n_jobs == 1


def test_xgboost_has_the_threads_in_both_of_its_forms() -> None:
    xgboost = pytest.importorskip("xgboost")
    fitted = xgboost.XGBRegressor(n_estimators=2, n_jobs=1).fit(X, Y)
    for name, content in (("m.joblib", dumped(fitted)), ("m.ubj", bytes(fitted.get_booster().save_raw("ubj")))):
        estimator, _ = load_artifact(name, content, threads=MANY)
        settings = json.loads(estimator.get_booster().save_config())
        assert (estimator.n_jobs, settings["learner"]["generic_param"]["nthread"]) == (MANY, str(MANY))


def test_where_a_big_model_was_computed_is_another_runtime() -> None:
    """Since its last bits may differ: who replays it needs the same threads."""
    one, many = runtime(), runtime(MANY)
    assert one.runtime_id != many.runtime_id
    assert (json.loads(one.body)["threads"], json.loads(many.body)["threads"]) == (1, MANY)
