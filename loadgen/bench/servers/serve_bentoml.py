"""BentoML: an endpoint with adaptive batching.

https://docs.bentoml.com/en/latest/get-started/adaptive-batching.html explains `batchable`, and
https://docs.bentoml.com/en/latest/build-with-bentoml/parallelize-requests.html the number of workers.
"""

from __future__ import annotations

import os
from typing import Any

import bentoml  # type: ignore[import-not-found]
import joblib
import numpy as np


@bentoml.service(
    workers=int(os.environ["BENCH_WORKERS"]),
    traffic={"timeout": 60},
    logging={"access": {"enabled": False}},
)
class Predictor:
    """JSON in and out."""

    def __init__(self) -> None:
        self.model: Any = joblib.load(os.environ["BENCH_MODEL"])

    @bentoml.api(batchable=True, max_batch_size=256, max_latency_ms=1000)  # type: ignore[untyped-decorator]
    def predict(self, inputs: np.ndarray) -> np.ndarray:
        """One row per request; the batch is joined along the first axis."""
        answers: np.ndarray = self.model.predict_proba(inputs)[:, 1]
        return answers
