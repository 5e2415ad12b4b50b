"""Pandas when a model needs it, and not because scikit-learn is imported.

scikit-learn 1.9 imports pandas in `sklearn.utils.fixes` where it is installed, and does nothing with it there. It would
take over 20 MB of a worker whose models all take a matrix. Whatever else imports pandas gets it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from types import ModuleType
from typing import Any

_IMPORTER = "sklearn.utils.fixes"
_NAME = "pd"
"""What that module calls it."""


@contextmanager
def late_pandas() -> Iterator[None]:
    """Within the block scikit-learn is imported without pandas, unless that is there already."""
    finder = _Finder()
    # A new list each time: another thread that goes through the old one just now must not miss the finder it needs.
    sys.meta_path = [finder, *sys.meta_path]
    try:
        yield
    finally:
        sys.meta_path = [each for each in sys.meta_path if each is not finder]


class _Finder(MetaPathFinder):
    """Finds that one module as it would be found anyway, with a loader of its own."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _IMPORTER or "pandas" in sys.modules or find_spec("pandas") is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    """Runs a module while pandas can't be imported."""

    def __init__(self, real: Loader) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        modules: dict[str, Any] = sys.modules
        modules["pandas"] = None
        try:
            self._real.exec_module(module)
        finally:
            del modules["pandas"]
        if getattr(module, _NAME, module) is None:
            setattr(module, _NAME, _Later())


class _Later:
    """Pandas to a version of scikit-learn that does ask it something: imported then."""

    def __getattr__(self, name: str) -> Any:
        return getattr(import_module("pandas"), name)
