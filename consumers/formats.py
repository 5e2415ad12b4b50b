"""Model files by format: bytes whose digest was checked -> an estimator in memory, on one thread.

A pickle runs code while it loads; where its bytes came from is settled before they come here.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from importlib.util import find_spec
from io import BytesIO
from types import FunctionType, ModuleType
from typing import Any, Protocol

MAX_MESSAGE = 300
"""Characters kept of what a library says about a failure."""

_EXTRAS = {"xgboost": "millstream[xgboost]"}


class UnloadableModel(Exception):
    """A version that can't serve; the message is one sentence for people."""


class ModelFormat(Protocol):
    """One way models are stored in files."""

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    def load(self, content: bytes | memoryview) -> Any:
        """The estimator; raises whatever its library raises."""


class Pickle:
    """Pickles, written by joblib (compressed or not) or by pickle itself."""

    suffixes = (".joblib", ".pkl")

    def load(self, content: bytes | memoryview) -> Any:
        import joblib  # takes a while, and a worker without such models never needs it

        return joblib.load(BytesIO(content))


FORMATS: Mapping[str, ModelFormat] = {suffix: form for form in (Pickle(),) for suffix in form.suffixes}
"""Formats by file suffix."""


def load_artifact(name: str, content: bytes | memoryview) -> tuple[Any, tuple[str, ...]]:
    """What a model or transform file holds, and warnings of a library version that differs; raises UnloadableModel."""
    suffix = next((suffix for suffix in FORMATS if name.endswith(suffix)), None)
    if suffix is None:
        raise UnloadableModel(f"{name} is of no format that can be loaded; expected {' or '.join(FORMATS)}")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            loaded = FORMATS[suffix].load(content)
    except ModuleNotFoundError as error:
        raise UnloadableModel(_missing_library(name, error)) from error
    except Exception as error:
        raise UnloadableModel(
            f"{name} ({len(content):,} bytes) can't be loaded: {said(error)}{_hint(error)}"
        ) from error
    told = {str(each.message).split("\n")[0] for each in caught if "Version" in each.category.__name__}
    pin_to_one_thread(loaded)
    return loaded, tuple(f"{name}: {text}" for text in sorted(told))


def said(error: BaseException) -> str:
    """An exception as one line: its type and the beginning of what it says."""
    text = " ".join(str(error).split())
    text = text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _missing_library(name: str, error: ModuleNotFoundError) -> str:
    module = error.name or "?"
    package = module.split(".")[0]
    if package != module and find_spec(package) is not None:
        return f"{name} needs {module}, which the installed version of {package} does not have; install the other one"
    return (
        f"{name} needs {package}, which is not installed where workers run: pip install {_EXTRAS.get(package, package)}"
    )


def _hint(error: Exception) -> str:
    if isinstance(error, AttributeError) and "__main__" in str(error):
        return "; its class was defined in a script or notebook: move it to a package that workers can import"
    return ""


def pin_to_one_thread(loaded: object) -> None:
    """Set `n_jobs` and `nthread` to one, wherever an estimator holds another: workers are the parallelism."""
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
