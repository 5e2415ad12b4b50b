"""The tally: what a worker has completed, and how fast. One thread counts, others ask."""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Mapping

WINDOW_S = 5.0
"""How far back a rate looks."""


class Tally:
    """One worker's; `began` is when its clock started, in seconds."""

    def __init__(self, began: float) -> None:
        self._rows: Counter[str] = Counter()
        self._asked = threading.Lock()
        self._past: deque[tuple[float, Mapping[str, int]]] = deque([(began, {})])
        self._outcomes: dict[bytes, tuple[int, int]] = {}

    def add_rows(self, model_id: str, rows: int) -> None:
        """So many rows of a model were answered."""
        self._rows[model_id] += rows

    def add_outcome(self, digest: bytes, requests: int, failed: int = 0) -> None:
        """So many requests were completed with a version, and the model failed so many of them."""
        finished, past = self._outcomes.get(digest, (0, 0))
        self._outcomes[digest] = finished + requests, past + failed

    def rows_per_s(self, now: float) -> dict[str, float]:
        """By model, over the last seconds before `now`; models that nothing was answered of are left out."""
        rows = dict(self._rows)
        with self._asked:
            self._past.append((now, rows))
            while len(self._past) > 2 and self._past[1][0] <= now - WINDOW_S:
                self._past.popleft()
            since, before = self._past[0]
        if now <= since:
            return {}
        return {m: (n - before.get(m, 0)) / (now - since) for m, n in rows.items() if n > before.get(m, 0)}

    def outcomes(self) -> dict[str, tuple[int, int]]:
        """Hex version digest -> requests completed with it, and how many of them the model failed."""
        return {digest.hex(): counts for digest, counts in self._outcomes.copy().items()}
