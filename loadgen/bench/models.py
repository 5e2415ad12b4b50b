"""The two models that every server serves: each fitted once a run, into one joblib file that all of them load."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

OUTPUT = "probability"
ROWS = 4000


@dataclass(frozen=True, slots=True)
class BenchModel:
    """A fitted classifier, the row that it is asked about, and what it answers: the probability of class 1."""

    name: str
    title: str
    artifact: Path
    row: tuple[float, ...]
    expected: float
    workers: int
    """Processes that predict, for every server: a light model leaves the cores to those who bring it requests."""

    def write_version(self, store: Path) -> None:
        """As a version in production in a local model store of Millstream's."""
        folder = store / self.name / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "model.joblib").write_bytes(self.artifact.read_bytes())
        signature = {
            "model_id": self.name,
            "version": "1.0.0",
            "trained_date": "2024-01-01",
            "status": "production",
            "azure_location": "ai-models",
            "expected_features": [
                {"index": index, "name": f"feature_{index}", "type": "float"} for index in range(len(self.row))
            ],
            "outputs": [{"name": OUTPUT, "call": "predict_proba", "class": 1}],
        }
        (folder / "signature.json").write_text(json.dumps(signature, indent=1) + "\n", encoding="utf-8")


def fit(folder: Path, name: str) -> BenchModel:
    """Fits `light` or `heavy` into `folder`, on made-up rows with a fixed seed. Raises ValueError on another name."""
    import joblib
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.linear_model import LogisticRegression

    estimator: Any
    match name:
        case "light":
            title, features, workers = "logistic regression, 4 features", 4, 1
            estimator = LogisticRegression()
        case "heavy":
            title, features, workers = "random forest, 100 trees, 20 features", 20, 2
            estimator = RandomForestClassifier(n_estimators=100, max_depth=10, n_jobs=1, random_state=0)
        case _:
            raise ValueError(f"expected the model light or heavy, got {name!r}")
    rng = np.random.default_rng(20240101)
    table = rng.normal(size=(ROWS, features))
    truth = table @ rng.normal(size=features) + rng.normal(size=ROWS) > 0
    estimator.fit(table, truth.astype(np.int64))
    artifact = folder / f"{name}.joblib"
    joblib.dump(estimator, artifact, compress=3)
    # Few digits: the row is the same number in JSON and in protobuf.
    row = tuple(round(float(value), 3) for value in rng.normal(size=features))
    expected = float(estimator.predict_proba([row])[0, 1])
    return BenchModel(name, title, artifact, row, expected, workers)
