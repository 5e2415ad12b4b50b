"""Bulk load: requests straight onto a model's bulk lane, as fast as Redis takes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from ingest.producer import Producer


@dataclass(frozen=True, slots=True)
class Pushed:
    """How many requests were appended, and how long that took."""

    requests: int
    seconds: float

    @property
    def rate(self) -> float:
        """Appended requests per second."""
        return self.requests / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"requests": self.requests, "seconds": round(self.seconds, 3), "appended_per_s": round(self.rate, 1)}


def push(
    producer: Producer,
    model_id: str,
    rows: Sequence[Sequence[Any]],
    n: int,
    *,
    batch: int = 500,
    on_progress: Callable[[int], None] | None = None,
) -> Pushed:
    """Appends `n` requests that keep no reply, with the rows in turn, over and over.

    Raises what Producer.send_many raises.
    """
    start = time.perf_counter()
    sent = producer.send_many(
        model_id, islice(cycle(rows), n), batch=batch, discard_reply=True, on_progress=on_progress
    )
    return Pushed(len(sent), time.perf_counter() - start)
