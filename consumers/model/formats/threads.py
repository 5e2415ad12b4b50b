"""Threads of an estimator and its libraries: one, since workers are the parallelism, or a few for a big model."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

from threadpoolctl import ThreadpoolController

PER_ROW = ("xgboost", "lightgbm")
"""Libraries whose threads take rows each, so that no answer depends on their number. A forest of scikit-learn adds its
trees up in the order in which threads are done, and answers otherwise in its last bits each time: it has one always."""


def pin_threads(loaded: object, threads: int = 1) -> None:
    """Set `n_jobs` and `nthread`, wherever an estimator holds another: to `threads`, or one where answers need that."""
    seen: set[int] = set()
    waiting: list[object] = [loaded]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, str | bytes | int | float | type | FunctionType | ModuleType | None):
            continue
        seen.add(id(item))
        if isinstance(item, list | tuple | set):
            waiting.extend(item)
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif not type(item).__module__.startswith(("numpy", "scipy", "pandas", "builtins")):
            fields = getattr(item, "__dict__", {})
            count = threads if type(item).__module__.startswith(PER_ROW) else 1
            for name in ("n_jobs", "nthread"):
                if name in fields:
                    setattr(item, name, count)
            if hasattr(item, "set_param") and hasattr(item, "num_boosted_rounds"):
                item.set_param({"nthread": count})  # xgboost keeps the number inside its booster
            waiting.extend(fields.values())


class Lent:
    """Threads that BLAS, OpenMP and PyTorch have while one model predicts. What else computes then has them too."""

    def __init__(self, threads: int) -> None:
        """Made after the model's libraries were loaded: later ones are not seen."""
        self._threads = threads
        self._controller = ThreadpoolController()

    @contextmanager
    def lent(self) -> Iterator[None]:
        """So many in this block, and as many as before after it."""
        torch: Any = sys.modules.get("torch")
        before = torch.get_num_threads() if torch is not None else 1
        with self._controller.limit(limits=self._threads):
            if torch is None:
                yield
                return
            torch.set_num_threads(self._threads)
            try:
                yield
            finally:
                torch.set_num_threads(before)
