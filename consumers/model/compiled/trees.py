"""Forests and boosted trees of scikit-learn, walked by Treelite: the same leaves, added in the same order.

https://treelite.readthedocs.io/en/latest/treelite-sklearn.html ; without the library there is no such form.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.model.compiled.form import Call, Form, Matrix, NotTaken, class_of

FORESTS = ("RandomForestClassifier", "ExtraTreesClassifier", "RandomForestRegressor", "ExtraTreesRegressor")
MOST_ROWS = 128
"""Above about this, scikit-learn's own vectorised walk is faster on one thread."""


def model(last: Any, threads: int = 1) -> Form | None:
    """A fitted forest's calls; None for any other model, and where Treelite is not installed.

    With more than one thread it takes those that OpenMP has for the caller; it refuses any other number. Each takes
    rows of its own, so no answer depends on how many there are.
    """
    name = class_of(last)
    if name not in FORESTS or getattr(last, "n_outputs_", 1) != 1:
        return None
    try:
        import treelite
        import treelite.gtil
        import treelite.sklearn
    except ImportError:
        return None
    try:
        forest = treelite.sklearn.import_model(last)
    except (treelite.TreeliteError, NotImplementedError, ValueError):  # a kind of tree that it does not know
        return None

    def leaves(rows: Matrix) -> npt.NDArray[np.float64]:
        # scikit-learn compares float32 values with float64 thresholds, and refuses what float32 can't hold.
        with np.errstate(over="ignore"):
            rounded = rows.astype(np.float32).astype(np.float64)
        if not isfinite(rounded.sum()):
            raise NotTaken
        answer: npt.NDArray[np.float64] = treelite.gtil.predict(forest, rounded, nthread=1 if threads == 1 else 0)
        return answer.reshape(len(rows), -1)

    engine = f"treelite {treelite.__version__} ({name})"
    calls: dict[str, Call]
    if name.endswith("Regressor"):
        calls = {"predict": lambda rows: leaves(rows).reshape(-1)}
    else:
        classes = np.asarray(last.classes_)
        calls = {
            "predict_proba": leaves,
            "predict": lambda rows: classes.take(leaves(rows).argmax(axis=1), axis=0),
        }
    return Form(calls, engine, MOST_ROWS)
