"""One thread for an estimator: workers are the parallelism."""

from __future__ import annotations

from types import FunctionType, ModuleType


def pin_to_one_thread(loaded: object) -> None:
    """Set `n_jobs` and `nthread` to one, wherever an estimator holds another."""
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
            for name in ("n_jobs", "nthread"):
                if name in fields:
                    setattr(item, name, 1)
            if hasattr(item, "set_param") and hasattr(item, "num_boosted_rounds"):
                item.set_param({"nthread": 1})  # xgboost keeps the number inside its booster
            waiting.extend(fields.values())
