"""The stock models: small, trained in seconds on data made up with a fixed seed, one folder a version.

credit_risk/1.0.0      a scaler before a logistic regression
credit_risk/1.1.0      the same on more data; staging, a canary to be
roi_prediction/1.0.0   gradient-boosted trees of scikit-learn, a regressor
churn/1.0.0            gradient-boosted trees of xgboost, features stored per user
loan_approval/1.0.0    a pipeline on a DataFrame, with strings in and strings out
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from consumers.model.model import load_model, rows_of
from contract.signature import Value, parse_signature

LOCATION = "ai-models"
XGBOOST_EXTRA = "millstream[xgboost]"

Content = dict[str, Any]
"""A signature as JSON, before it is written."""


@dataclass(frozen=True, slots=True)
class StockVersion:
    """One trained version: its signature without golden outputs, its files, and the rows golden outputs are of."""

    signature: Content
    estimators: Mapping[str, Any]
    """By file name."""
    golden_inputs: Sequence[Sequence[Value]]
    tolerance: float


def write_stock(directory: Path, progress: Callable[[str], None] | None = None) -> list[Path]:
    """Train the stock models into `directory/<model>/<version>/`; returns the folders, in order.

    A version that is there already stays as it is: other bytes under the same version would be refused. `progress`
    gets a line per version; without xgboost its model is left out, and the line names the extra that brings it.
    Raises OSError where the directory can't be written.
    """
    say = progress or (lambda _line: None)
    folders: list[Path] = []
    for name, train in _TRAININGS.items():
        folder = directory / name
        if (folder / "signature.json").exists():
            say(f"{name}: there already")
        elif name.startswith("churn") and find_spec("xgboost") is None:
            say(f"{name}: left out, it needs xgboost: pip install '{XGBOOST_EXTRA}'")
            continue
        else:
            say(f"{name}: training")
            _write(folder, train())
        folders.append(folder)
    return folders


def _write(folder: Path, version: StockVersion) -> None:
    """The signature last, by rename: a folder that has one is complete."""
    import joblib

    files: dict[str, bytes] = {}
    for name, estimator in version.estimators.items():
        buffer = BytesIO()
        joblib.dump(estimator, buffer, compress=3)
        files[name] = buffer.getvalue()
    content = version.signature | {"golden": list(_golden(version, files))}
    folder.mkdir(parents=True, exist_ok=True)
    for name, dumped in files.items():
        (folder / name).write_bytes(dumped)
    unfinished = folder / "signature.json.tmp"
    unfinished.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    unfinished.replace(folder / "signature.json")


def _golden(version: StockVersion, files: Mapping[str, bytes]) -> Iterator[Content]:
    """Golden examples, answered by the very code that will check them, each as a batch of one."""
    signature, _ = parse_signature(json.dumps(version.signature).encode())
    model = load_model(signature, files)
    for inputs in version.golden_inputs:
        outputs: dict[str, Value] = {}
        for column in model.predict(rows_of(signature, [inputs])):
            outputs[column.name] = column.values[0] if isinstance(column.values, list) else column.values[0].item()
        yield {"inputs": list(inputs), "outputs": outputs, "tolerance": version.tolerance}


def _signature(model_id: str, version: str, trained_date: str, status: str, features: list[Content]) -> Content:
    return {
        "model_id": model_id,
        "version": version,
        "trained_date": trained_date,
        "status": status,
        "azure_location": LOCATION,
        "expected_features": [{"index": index} | feature for index, feature in enumerate(features)],
    }


def _chance(logit: Any) -> Any:
    return 1.0 / (1.0 + np.exp(-logit))


def _credit_risk(version: str, trained_date: str, status: str, rows: int, model_file: str) -> StockVersion:
    """Debt weighs heavily, and more for the young."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(20231025)
    debt = rng.gamma(2.0, 0.2, rows)
    age = rng.integers(18, 90, rows).astype(np.float64)
    defaulted = rng.random(rows) < _chance(4.0 * debt - 0.04 * (age - 18) - 2.0)
    table = np.column_stack([debt, age])
    scaler = StandardScaler().fit(table)
    model = LogisticRegression().fit(scaler.transform(table), defaulted.astype(np.int64))
    signature = _signature(
        "credit_risk",
        version,
        trained_date,
        status,
        [
            {"name": "debt_to_income_ratio", "type": "float", "min": 0, "example": 0.6},
            {"name": "age_years", "type": "int", "min": 18, "max": 120, "example": 45},
        ],
    ) | {
        "transforms": ["scaler.joblib"],
        "outputs": [{"name": "default_probability", "call": "predict_proba", "class": 1}],
    }
    inputs = [(0.6, 45), (0.05, 70), (1.4, 22)]
    return StockVersion(signature, {model_file: model, "scaler.joblib": scaler}, inputs, 1e-9)


def _roi_prediction() -> StockVersion:
    """Volatile markets pay early in the session and cost late."""
    from sklearn.ensemble import GradientBoostingRegressor

    rng = np.random.default_rng(20240112)
    volatility = rng.gamma(2.0, 0.4, 4000)
    minutes = rng.integers(0, 391, 4000).astype(np.float64)
    roi = volatility * np.cos(minutes / 390 * np.pi) + 0.2 * np.sin(minutes / 20) + rng.normal(0, 0.1, 4000)
    model = GradientBoostingRegressor(n_estimators=80, max_depth=4, learning_rate=0.1, random_state=7)
    model.fit(np.column_stack([volatility, minutes]), roi)
    signature = _signature(
        "roi_prediction",
        "1.0.0",
        "2024-01-12",
        "production",
        [
            {"name": "volatility_pct", "type": "float", "unit": "percent", "example": 0.6},
            {"name": "minutes_since_open", "type": "int", "min": 0, "max": 390, "example": 45},
        ],
    ) | {"outputs": [{"name": "roi_pct", "call": "predict"}]}
    return StockVersion(signature, {"model.production.joblib": model}, [(0.6, 45), (2.5, 5), (0.1, 390)], 1e-9)


def _churn() -> StockVersion:
    """Who clicks stays; the young leave sooner."""
    from xgboost import XGBClassifier

    rng = np.random.default_rng(20240305)
    age = rng.integers(16, 90, 3000).astype(np.float64)
    clicks = rng.poisson(rng.gamma(1.5, 40.0, 3000)).astype(np.float64)
    left = rng.random(3000) < _chance(1.5 - 0.03 * clicks - 0.02 * (age - 40))
    model = XGBClassifier(n_estimators=60, max_depth=3, learning_rate=0.1, n_jobs=1, random_state=7)
    model.fit(np.column_stack([age, clicks]), left.astype(np.int64))
    signature = _signature(
        "churn",
        "1.0.0",
        "2024-03-05",
        "production",
        [
            {"name": "age", "type": "int", "min": 0, "max": 130, "example": 25},
            {"name": "clicks", "type": "int", "min": 0, "default": 0, "example": 120},
        ],
    ) | {
        "entity": {"name": "user_id", "key": "user:{id}:{feature}"},
        "outputs": [{"name": "churn_probability", "call": "predict_proba", "class": 1}],
    }
    # xgboost computes in float32, of which an addition in another order changes the last bits.
    return StockVersion(signature, {"model.production.joblib": model}, [(25, 120), (25, 0), (64, 8)], 1e-5)


def _loan_approval() -> StockVersion:
    """Small sums, a steady income or a guarantor get a loan."""
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import Pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rng = np.random.default_rng(20240418)
    employments = ["salaried", "self_employed", "student", "unemployed"]
    amount = np.round(rng.gamma(2.0, 9000.0, 3000), 2)
    employment = rng.choice(4, 3000, p=[0.6, 0.2, 0.12, 0.08])
    guarantor = rng.random(3000) < 0.3
    steadiness = np.array([1.5, 0.5, -0.8, -2.0])[employment]
    approved = rng.random(3000) < _chance(1.0 + steadiness + 1.8 * guarantor - amount / 12000)
    frame = pd.DataFrame(
        {"amount_eur": amount, "employment": np.array(employments)[employment], "has_guarantor": guarantor}
    )
    columns = ColumnTransformer(
        [
            ("amount", StandardScaler(), ["amount_eur"]),
            ("employment", OneHotEncoder(categories=[employments]), ["employment"]),
            ("guarantor", "passthrough", ["has_guarantor"]),
        ]
    )
    model = Pipeline([("columns", columns), ("decide", LogisticRegression())])
    model.fit(frame, np.where(approved, "approve", "decline"))
    signature = _signature(
        "loan_approval",
        "1.0.0",
        "2024-04-18",
        "production",
        [
            {"name": "amount_eur", "type": "float", "min": 0, "example": 12000},
            {"name": "employment", "type": "string", "categories": employments},
            {"name": "has_guarantor", "type": "bool", "default": False},
        ],
    ) | {
        "input": "dataframe",
        "outputs": [
            {"name": "decision", "call": "predict"},
            {"name": "approve_probability", "call": "predict_proba", "class": "approve"},
        ],
    }
    inputs = [(12000.0, "salaried", False), (30000.0, "student", False), (30000.0, "self_employed", True)]
    return StockVersion(signature, {"model.production.joblib": model}, inputs, 1e-9)


_TRAININGS: Mapping[str, Callable[[], StockVersion]] = {
    "credit_risk/1.0.0": lambda: _credit_risk("1.0.0", "2023-10-25", "production", 2000, "model.production.joblib"),
    "credit_risk/1.1.0": lambda: _credit_risk("1.1.0", "2024-02-01", "staging", 4000, "model.joblib"),
    "roi_prediction/1.0.0": _roi_prediction,
    "churn/1.0.0": _churn,
    "loan_approval/1.0.0": _loan_approval,
}
