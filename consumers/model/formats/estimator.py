"""Estimators: models with scikit-learn's API, asked by the names of its calls."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.model.formats.refusal import UnloadableModel
from contract.signature import Output


class Estimator:
    """A fitted estimator of whatever library."""

    def __init__(self, fitted: Any) -> None:
        self._fitted = fitted
        self.library = type(fitted).__module__.split(".")[0]
        """Its import name."""

    @property
    def classes_(self) -> Any:
        """Labels of its probabilities; None where it is no classifier."""
        return getattr(self._fitted, "classes_", None)

    def source_of(self, output: Output) -> str:
        """The call that an output asks for; raises UnloadableModel where the estimator does not have it."""
        if not callable(getattr(self._fitted, output.call, None)):
            raise UnloadableModel(
                f"an output asks for {output.call}, which {type(self._fitted).__name__} does not have"
            )
        return output.call

    def run(self, rows: Any, sources: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """What each call answers; raises whatever the estimator does."""
        return {call: np.asarray(getattr(self._fitted, call)(rows)) for call in sources}


def fitted_names(step: Any) -> tuple[str, ...] | None:
    """The feature names a step was fitted with; None where it was fitted without."""
    names = getattr(step, "feature_names_in_", None)
    return None if names is None else tuple(str(name) for name in names)
