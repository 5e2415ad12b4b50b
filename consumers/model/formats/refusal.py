"""Why a file can't serve, in one sentence for people."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

MAX_MESSAGE = 300
"""Characters kept of what a library says about a failure."""

EXTRAS: Mapping[str, str] = {
    "lightgbm": "millstream[lightgbm]",
    "onnxruntime": "millstream[onnx]",
    "skops": "millstream[skops]",
    "torch": "millstream[torch]",
    "xgboost": "millstream[xgboost]",
}
"""What to install for a library, by its import name."""


class UnloadableModel(Exception):
    """A version that can't serve; the message is one sentence for people."""


def said(error: BaseException) -> str:
    """An exception as one line: its type and the beginning of what it says."""
    text = " ".join(str(error).split())
    text = text if len(text) <= MAX_MESSAGE else text[: MAX_MESSAGE - 1] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def missing_library(name: str, error: ModuleNotFoundError) -> str:
    """What to install so that the file of this name loads."""
    module = error.name or "?"
    package = module.split(".")[0]
    if package != module and find_spec(package) is not None:
        return f"{name} needs {module}, which the installed version of {package} does not have; install the other one"
    return (
        f"{name} needs {package}, which is not installed where workers run: pip install {EXTRAS.get(package, package)}"
    )


def hint(name: str, content: bytes | memoryview, error: Exception) -> str:
    """A likely cause to add to a failure, beginning with `; `; empty where there is none."""
    if isinstance(error, AttributeError) and "__main__" in str(error):
        return "; its class was defined in a script or notebook: move it to a package that workers can import"
    kind, suffixes = _looks_like(bytes(content[:8]))
    return f"; it looks like {kind}" if kind and not name.endswith(suffixes) else ""


def _looks_like(start: bytes) -> tuple[str, tuple[str, ...]]:
    """What a file's first bytes say it is, and the suffixes under which that is no surprise."""
    if start.startswith(b"PK"):
        return "a zip archive, as .skops and .pt are", (".skops", ".pt", ".pt2")
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle", (".joblib", ".pkl")
    if start.startswith(b"{L"):
        return "an XGBoost model, which ends in .ubj", (".ubj", ".json")
    if start.lstrip().startswith(b"{"):
        return "JSON", (".json", ".ubj")
    return "", ()
