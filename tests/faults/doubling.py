"""A model that doubles its one feature, as versions in a store: plain scikit-learn, so that whatever checks a model
before it is served finds nothing odd."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

import joblib
import numpy as np
from sklearn.linear_model import LinearRegression

MODEL = "double"


def draft(store: Path, version: str, size: int = 1000) -> str:
    """A version folder of some more bytes than `size`, still without its signature; the SHA-256 of its model."""
    model = LinearRegression()
    model.coef_, model.intercept_, model.n_features_in_ = np.array([2.0]), 0.0, 1
    model.padding_ = random.Random(version).randbytes(size)
    folder = store / MODEL / version
    folder.mkdir(parents=True)
    joblib.dump(model, folder / "model.joblib")
    return hashlib.sha256((folder / "model.joblib").read_bytes()).hexdigest()


def release(store: Path, version: str) -> None:
    """From here on it is a version."""
    signature = {
        "model_id": MODEL,
        "version": version,
        "trained_date": "2026-01-31",
        "status": "production",
        "azure_location": "tests",
        "expected_features": [{"index": 0, "name": "x", "type": "float", "example": 1.0}],
        "outputs": [{"name": "out", "call": "predict"}],
    }
    (store / MODEL / version / "signature.json").write_text(json.dumps(signature))
