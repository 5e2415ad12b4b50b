"""Compiled models: the same answers to the last bit, without what a library does around the arithmetic.

    the steps as loaded -> their compiled forms, fastest first -> many rows through both -> the first that is alike
        -> for calls of as many rows as it was faster for

A library checks its input anew at each call, which takes a light model twenty times as long as its arithmetic, and a
forest of a hundred trees is a hundred such calls. What comes here was checked at admission. A form that differs in any
bit on the rows it is tried on is not used at all, so nothing here changes what was published; but where the operator
allows a model a tolerance, its numbers may differ within that, and its labels never.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.model.compiled import linear, trees
from consumers.model.compiled.form import WITHIN, Call, Form, Matrix, NotTaken

__all__ = ["Form", "NotTaken", "difference", "forms", "named", "sample_rows", "timed"]

Original = Callable[[Matrix, str], npt.NDArray[Any]]
"""The answer of the steps as loaded, to rows and the name of a call."""

SIZES = (1, 2, 3, 7, 16, 33, 64, 100, 256)
"""Rows of the batches that both forms are tried on: a linear model answers a row differently, in its last bits, in
another batch, since its library sums in another order there."""
ROUNDS = 4
FEW_ROWS = 64
"""For so many a form is faster on any machine: scikit-learn calls each tree from Python."""
TIMED = (256, 1024, trees.MOST_ROWS)
"""Rows of the calls that both are timed at, three times each."""


def forms(
    transforms: Sequence[Any], model: Any, calls: Sequence[str], threads: int = 1, *, tolerated: bool = False
) -> Iterator[Form]:
    """The compiled forms of these steps that have all of these calls, the fastest first. Not yet tried.

    Those that are not exact only where that is `tolerated`.
    """
    *first, last = linear.flat(transforms, model)
    before = [step for step in map(linear.transform, first) if step is not None]
    if len(before) < len(first):
        return
    line = linear.model(last)
    for found in trees.forms(last, threads, tolerated=tolerated) if line is None else (line,):
        if set(calls) <= found.calls.keys():
            yield found._replace(calls={name: _joined(before, found.calls[name]) for name in calls})


def named(engine: str, transforms: Sequence[Any], model: Any, calls: Sequence[str], threads: int = 1) -> Form | None:
    """The form that an engine in the log names, in the version that is installed here, for any number of rows.

    It is not tried: whether it answers alike is what replay asks.
    """
    kind, _, tolerance = engine.partition(WITHIN)
    for form in forms(transforms, model, calls, threads, tolerated=bool(tolerance)):
        if form.engine.partition(" ")[0] == kind.partition(" ")[0]:
            most = np.iinfo(np.int64).max
            return form._replace(engine=engine if form.engine == kind else form.engine, most_rows=int(most))
    return None


def _joined(steps: Sequence[Callable[[Matrix], Matrix]], last: Call) -> Call:
    if not steps:
        return last

    def call(rows: Matrix) -> npt.NDArray[Any]:
        for step in steps:
            rows = step(rows)
        return last(rows)

    return call


def difference(
    candidate: Form,
    original: Original,
    samples: Matrix,
    tolerance: float = 0.0,
    labels: Sequence[str] = (),
) -> str:
    """Where the compiled form answers otherwise than the original on these rows; empty where it is alike.

    Alike is: in every bit; with a tolerance, numbers that differ by no more than so much and this part of what they
    were. What a call in `labels` answers is no such number.
    """
    for rows in _batches(samples, candidate.most_rows):
        for name, call in candidate.calls.items():
            try:
                got = call(rows)
            except NotTaken:
                continue
            expected = original(rows, name)
            if expected.dtype != got.dtype or expected.shape != got.shape:
                return f"{name} answers {got.dtype} {got.shape} instead of {expected.dtype} {expected.shape}"
            if not _alike(expected, got, 0.0 if name in labels else tolerance):
                return f"{name} differs for some of {len(rows)} rows"
    return ""


def _alike(expected: npt.NDArray[Any], got: npt.NDArray[Any], tolerance: float) -> bool:
    if expected.dtype == object:
        return np.array_equal(expected, got)
    if tolerance and expected.dtype.kind == "f":
        return np.allclose(got, expected, rtol=tolerance, atol=tolerance, equal_nan=True)
    return expected.tobytes() == got.tobytes()


def timed(candidate: Form, original: Original, samples: Matrix, clock: Callable[[], float] = perf_counter) -> Form:
    """The same for calls of as many rows as it is the faster one for, here and now.

    A form for any number of rows stays so: of the same arithmetic it leaves out checks.
    """

    def compiled(rows: Matrix, name: str) -> npt.NDArray[Any]:
        try:
            return candidate.calls[name](rows)
        except NotTaken:
            return original(rows, name)

    def is_faster(size: int) -> bool:
        took: dict[Original, list[float]] = {compiled: [], original: []}
        for first in range(0, 3 * size, size):
            rows = samples[np.arange(first, first + size) % len(samples)]
            for answer, seconds in took.items():  # in turn, since a machine is not equally fast all the time
                began = clock()
                for name in candidate.calls:
                    answer(rows, name)
                seconds.append(clock() - began)
        return min(took[compiled]) < min(took[original])

    if candidate.most_rows > TIMED[-1]:
        return candidate
    return candidate._replace(most_rows=max(takewhile(is_faster, TIMED), default=FEW_ROWS))


def _batches(samples: Matrix, most: int) -> Iterator[Matrix]:
    """The samples in batches of every size, several of each, from one row to the most; then all of them."""
    start = 0
    for size in [size for size in SIZES if size <= most] * ROUNDS:
        places = np.arange(start, start + size) % len(samples)
        yield np.ascontiguousarray(samples[places])
        start += size
    most = min(most, len(samples))
    for first in range(0, len(samples), most):
        yield samples[first : first + most]


def sample_rows(ranges: Sequence[tuple[float, float]], special: Matrix, count: int, seed: int = 0) -> Matrix:
    """`count` rows to try a form on: drawn evenly and far beyond each feature's range, and values at which trees turn.

    `ranges` has the least and the largest usual value of each feature, `special` rows of its own, shape (n, features).
    """
    source = np.random.default_rng(seed)
    low, high = np.array([low for low, _ in ranges]), np.array([high for _, high in ranges])
    evenly = source.uniform(low, high, (count // 2, len(ranges)))
    center, width = (low + high) / 2, np.maximum(high - low, 1e-9)
    far = center + width * source.standard_cauchy((count // 4, len(ranges)))
    whole = np.rint(source.uniform(low, high, (count // 4, len(ranges))))
    rows = np.vstack([evenly, far, whole, special])
    return np.ascontiguousarray(source.permutation(rows))
