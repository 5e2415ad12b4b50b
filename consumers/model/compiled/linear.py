"""Scalers and linear models as the numpy expressions that scikit-learn comes to, in the same order.

https://scikit-learn.org/stable/modules/linear_model.html
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.model.compiled.form import Call, Form, Matrix, NotTaken, class_of

MOST_ROWS = 1 << 30
"""There is no size at which the same arithmetic is slower without checks."""

REGRESSORS = ("LinearRegression", "Ridge", "Lasso", "ElasticNet")
CLASSIFIERS = ("LogisticRegression", "RidgeClassifier", "LinearSVC")


def flat(transforms: Sequence[Any], model: Any) -> list[Any]:
    """All steps in order, pipelines opened; the model is the last."""
    steps: list[Any] = []
    for step in (*transforms, model):
        if class_of(step) == "Pipeline":
            inner = [each for _, each in step.steps if each is not None and not isinstance(each, str)]
            steps += flat(inner[:-1], inner[-1]) if inner else []
        else:
            steps.append(step)
    return steps


def transform(step: Any) -> Callable[[Matrix], Matrix] | None:
    """What a scaler does to rows; None for any other step."""
    match class_of(step):
        case "StandardScaler":
            return _scaled(step.mean_ if step.with_mean else None, step.scale_ if step.with_std else None)
        case "RobustScaler":
            return _scaled(step.center_ if step.with_centering else None, step.scale_ if step.with_scaling else None)
        case "MaxAbsScaler" if not getattr(step, "clip", False):
            return _scaled(None, step.scale_)
        case "MinMaxScaler":
            scale, least = step.scale_, step.min_
            clip = step.feature_range if step.clip else None

            def moved(rows: Matrix) -> Matrix:
                rows = rows * scale
                rows += least
                return rows if clip is None else np.clip(rows, *clip, out=rows)

            return moved
    return None


def _scaled(center: Any, scale: Any) -> Callable[[Matrix], Matrix]:
    def scaled(rows: Matrix) -> Matrix:
        if center is not None:
            rows = rows - center
        return rows if scale is None else rows / scale

    return scaled


def model(last: Any) -> Form | None:
    """A fitted linear model's calls; None for any other."""
    name = class_of(last)
    engine = f"numpy {np.__version__} ({name})"
    if name in REGRESSORS:
        coef = last.coef_ if last.coef_.ndim == 1 else last.coef_.T
        intercept = last.intercept_
        return Form({"predict": lambda rows: _finite(rows) @ coef + intercept}, engine, MOST_ROWS)
    if name in CLASSIFIERS and np.asarray(last.classes_).ndim == 1:
        calls = _classifier(last)
        if name != "LogisticRegression":
            del calls["predict_proba"]
        return Form(calls, engine, MOST_ROWS)
    return None


def _classifier(last: Any) -> dict[str, Call]:
    from scipy.special import expit  # what scikit-learn has loaded already, wherever there is such a model

    coef, intercept, classes = last.coef_.T, last.intercept_, np.asarray(last.classes_)

    def decision(rows: Matrix) -> Matrix:
        scores: Matrix = _finite(rows) @ coef + intercept
        return scores.reshape(-1) if scores.shape[1] == 1 else scores

    def predict(rows: Matrix) -> npt.NDArray[Any]:
        scores = decision(rows)
        places = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        return classes.take(places, axis=0)

    def proba(rows: Matrix) -> npt.NDArray[Any]:
        scores = decision(rows)
        if scores.ndim == 1:
            # Both columns in less than half the time that numpy.stack takes for them.
            both = np.empty((len(scores), 2), dtype=scores.dtype)
            expit(scores, out=both[:, 1])
            np.subtract(1, both[:, 1], out=both[:, 0])
            return both
        scores -= scores.max(axis=1).reshape(-1, 1)
        np.exp(scores, out=scores)
        scores /= scores.sum(axis=1).reshape(-1, 1)
        return scores

    return {"predict": predict, "predict_proba": proba, "decision_function": decision}


def _finite(rows: Matrix) -> Matrix:
    """The rows; raises NotTaken where scikit-learn would look closer. One sum tells, as there."""
    if not isfinite(np.add.reduce(rows, axis=None)):
        raise NotTaken
    return rows
