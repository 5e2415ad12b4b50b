"""LitServe: batched by the server, with its queue for high rates.

https://lightning.ai/docs/litserve/features/batching explains batches and their timeout,
https://lightning.ai/docs/litserve/api-reference/litserver workers_per_device, num_api_servers and fast_queue, which
replaces the queue between the processes by ZeroMQ.
"""

from __future__ import annotations

import os
from typing import Any

import joblib
import litserve  # type: ignore[import-not-found]
import numpy as np


class Predictor(litserve.LitAPI):  # type: ignore[misc]
    """JSON in and out, which is LitServe's default."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - the signature that LitServe calls
        self.model: Any = joblib.load(os.environ["BENCH_MODEL"])

    def decode_request(self, request: dict[str, list[float]]) -> list[float]:
        return request["inputs"]

    def batch(self, inputs: list[list[float]]) -> Any:
        return np.asarray(inputs)

    def predict(self, rows: Any) -> Any:
        return self.model.predict_proba(rows)[:, 1]

    def unbatch(self, output: Any) -> list[float]:
        answers: list[float] = output.tolist()
        return answers

    def encode_response(self, output: float) -> dict[str, float]:
        return {"probability": output}


if __name__ == "__main__":
    workers = int(os.environ["BENCH_WORKERS"])
    server = litserve.LitServer(
        Predictor(max_batch_size=256, batch_timeout=0.001),
        accelerator="cpu",
        workers_per_device=workers,
        fast_queue=True,
    )
    server.run(
        host="127.0.0.1",
        port=int(os.environ["BENCH_PORT"]),
        num_api_servers=workers,
        log_level="warning",
        generate_client_file=False,
    )
