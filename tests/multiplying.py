"""Versions whose answer says which of them gave it: each multiplies its one feature by its own major number.

Plain scikit-learn, so that whatever checks a version before it is served finds nothing odd.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer


def factor(version: str) -> float:
    return float(version.partition(".")[0])


def write(
    store: Path, model_id: str, version: str, status: str = "staging", *, raises_below_zero: bool = False, **more: Any
) -> Path:
    """A version folder; `more` are further fields of its signature. It may raise for what is below zero."""
    model = LinearRegression()
    model.coef_, model.intercept_, model.n_features_in_ = np.array([factor(version)]), 0.0, 1
    model.name_ = model_id  # so that two models have no file in common
    folder = store / model_id / version
    folder.mkdir(parents=True)
    # The root of its square is itself, and of a negative number no number, which the regression refuses.
    roots = FunctionTransformer(np.sqrt), FunctionTransformer(np.square)
    joblib.dump(make_pipeline(*roots, model) if raises_below_zero else model, folder / "model.joblib")
    signature = {
        "model_id": model_id,
        "version": version,
        "trained_date": "2026-01-31",
        "status": status,
        "azure_location": "tests",
        "expected_features": [{"index": 0, "name": "x", "type": "float", "example": 1.0}],
        "outputs": [{"name": "out", "call": "predict"}],
        **more,
    }
    (folder / "signature.json").write_text(json.dumps(signature))
    return folder
