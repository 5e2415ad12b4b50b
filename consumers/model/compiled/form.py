"""What a compiled form is made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]
Call = Callable[[Matrix], npt.NDArray[Any]]

WITHIN = " within "
"""What stands in the name of an engine before the tolerance that it was let in with."""


class NotTaken(Exception):
    """Rows that only the original may judge, such as NaN; it answers or raises as its library does."""


class Form(NamedTuple):
    """A model's calls in another form."""

    calls: dict[str, Call]
    """`predict`, `predict_proba` or `decision_function` -> what it answers for a matrix of one row for each input.

    Raises NotTaken.
    """
    engine: str
    """What computes it, for the event log: `numpy 2.4.0 (LogisticRegression)`."""
    most_rows: int
    """Above so many rows in one call the original is the faster one."""
    is_exact: bool = True
    """Whether it is used only where no bit differs; else only where a tolerance is allowed."""
    tolerance: float = 0.0
    """What it was let in with: by how much a number may differ, and by which part of itself; 0: in no bit."""

    def within(self, tolerance: float) -> Form:
        """The same, let in with this tolerance, which its engine then names."""
        return self._replace(tolerance=tolerance, engine=f"{self.engine}{WITHIN}{tolerance:g}") if tolerance else self


def class_of(step: object) -> str:
    """Its class's name where that is one of scikit-learn's own: a subclass may do anything else."""
    kind = type(step)
    return kind.__name__ if kind.__module__.startswith("sklearn.") else ""
