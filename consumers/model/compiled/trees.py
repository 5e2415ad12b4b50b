"""Forests of scikit-learn in another form: walked by ONNX Runtime or by Treelite, to the same leaves.

https://treelite.readthedocs.io/en/latest/treelite-sklearn.html ; a form is there where its library is installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.model.compiled import graph
from consumers.model.compiled.form import Call, Form, Matrix, NotTaken, class_of

FORESTS = ("RandomForestClassifier", "ExtraTreesClassifier", "RandomForestRegressor", "ExtraTreesRegressor")
MOST_ROWS = 4096
"""At the latest above so many, scikit-learn's own walk, with all rows through one tree after another, is as fast."""
LABEL_GAP = 1e-6
"""Probabilities in float32 are off by 1e-7 at most: classes that are further apart keep their order."""


def forms(last: Any, threads: int, *, tolerated: bool) -> Iterator[Form]:
    """A fitted forest's calls, the fastest form first; none for any other model.

    Those that answer otherwise in their last bits only where that is `tolerated`.
    """
    if class_of(last) in FORESTS and getattr(last, "n_outputs_", 1) == 1:
        yield from _by_onnxruntime(last, threads, tolerated=tolerated)
        yield from _by_treelite(last, threads, tolerated=tolerated)


def _by_onnxruntime(forest: Any, threads: int, *, tolerated: bool) -> Iterator[Form]:
    """Sums of doubles in the order of the trees, as in scikit-learn; but of several classes' shares, in float32.

    Those are exact as well where every leaf has one class, as in a forest that was grown to the end: votes are counted.
    On several threads ONNX Runtime sums in another order, so there is none then.
    """
    if threads > 1 or graph.nodes_of(forest) > graph.MOST_NODES:
        return
    is_exact = _is_whole(forest)
    if not (is_exact or tolerated):
        return
    try:
        import onnxruntime

        total = graph.totals(forest)
    except ImportError:
        return
    count = len(forest.estimators_)

    def mean(rows: Matrix) -> Matrix:
        answer: Matrix = total(_rounded(rows)).astype(np.float64)
        answer /= count
        return answer

    yield _form(forest, mean, f"onnxruntime {onnxruntime.__version__}")._replace(is_exact=is_exact)


def _by_treelite(forest: Any, threads: int, *, tolerated: bool) -> Iterator[Form]:
    """Sums of doubles, though not always of several classes' shares.

    With more than one thread it takes those that OpenMP has for the caller; it refuses any other number.

    Each takes rows of its own, so no answer depends on how many there are.
    """
    try:
        import treelite
        import treelite.gtil
        import treelite.sklearn
    except ImportError:
        return
    try:
        trees = treelite.sklearn.import_model(forest)
    except (treelite.TreeliteError, NotImplementedError, ValueError):  # a kind of tree that it does not know
        return

    def mean(rows: Matrix) -> Matrix:
        answer: Matrix = treelite.gtil.predict(trees, _rounded(rows), nthread=1 if threads == 1 else 0)
        return answer.reshape(len(rows), -1)

    form = _form(forest, mean, f"treelite {treelite.__version__}")
    yield form
    if tolerated and not _is_whole(forest):
        yield form._replace(is_exact=False)


def _is_whole(forest: Any) -> bool:
    """Whether no sum over its trees depends on how it is rounded, or it has one number for each row alone."""
    return class_of(forest).endswith("Regressor") or graph.counts_votes(forest)


def _form(forest: Any, mean: Call, library: str) -> Form:
    """The calls of a forest whose mean over its trees is `mean`, shape (rows, classes), or (rows, 1) of numbers."""
    name = class_of(forest)
    calls: dict[str, Call]
    if name.endswith("Regressor"):
        calls = {"predict": lambda rows: mean(rows).reshape(-1)}
    else:
        classes, is_whole = np.asarray(forest.classes_), _is_whole(forest)

        def label(rows: Matrix) -> npt.NDArray[Any]:
            shares = mean(rows)
            if not is_whole and len(classes) > 1:
                second, first = np.partition(shares, -2, axis=1)[:, -2:].T
                if (first - second).min() < LABEL_GAP:
                    raise NotTaken
            labels: npt.NDArray[Any] = classes.take(shares.argmax(axis=1), axis=0)
            return labels

        calls = {"predict_proba": mean, "predict": label}
    return Form(calls, f"{library} ({name})", MOST_ROWS)


def _rounded(rows: Matrix) -> Matrix:
    """As scikit-learn has them, which compares float32 values with float64 thresholds.

    Raises NotTaken for what float32 can't hold, which it refuses.
    """
    with np.errstate(over="ignore"):
        rounded: Matrix = rows.astype(np.float32).astype(np.float64)
    if not isfinite(rounded.sum()):
        raise NotTaken
    return rounded
