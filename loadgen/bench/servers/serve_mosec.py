"""Mosec: one stage, batched by the server.

https://mosecorg.github.io/mosec/reference/interface.html says that batching starts with `max_batch_size` above 1, and
that `num` processes share a stage; a wait of 1 ms is the shortest that it takes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import joblib
import numpy as np
from mosec import Server, Worker  # type: ignore[import-not-found]


class Predictor(Worker):  # type: ignore[misc]
    """JSON in and out, which is Mosec's default."""

    def __init__(self) -> None:
        super().__init__()
        model: Any = joblib.load(os.environ["BENCH_MODEL"])
        self.probabilities: Callable[[Any], Any] = model.predict_proba
        if os.environ.get("BENCH_COMPILED"):
            self.probabilities = compiled(model)

    def forward(self, data: list[dict[str, list[float]]]) -> list[dict[str, float]]:
        """A batch of requests, as max_batch_size is above 1."""
        rows = self.probabilities([item["inputs"] for item in data])
        return [{"probability": row[1]} for row in rows.tolist()]


def compiled(forest: Any) -> Callable[[Any], Any]:
    """The forest in Treelite, on one thread: https://treelite.readthedocs.io/en/latest/gtil.html"""
    import treelite

    trees = treelite.sklearn.import_model(forest)

    def probabilities(rows: Any) -> Any:
        # scikit-learn compares float32 values with float64 thresholds; so its answers are equal to the last bit.
        table = np.asarray(rows, dtype=np.float32).astype(np.float64)
        return treelite.gtil.predict(trees, table, nthread=1).reshape(len(table), -1)

    return probabilities


if __name__ == "__main__":
    server = Server()
    server.append_worker(Predictor, num=int(os.environ["BENCH_WORKERS"]), max_batch_size=256, max_wait_time=1)
    server.run()
