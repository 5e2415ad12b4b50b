"""Compiled models: the same answers to the last bit, without what a library does around the arithmetic.

    the steps as loaded -> a compiled form, where there is one -> as many rows through both -> kept if no bit differs

A library checks its input anew at each call, which takes a light model twenty times as long as its arithmetic, and a
forest of a hundred trees is a hundred such calls. What comes here was checked at admission. A form that differs in any
bit on the rows it is tried on is not used at all, so nothing here changes what was published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.model.compiled import linear, trees
from consumers.model.compiled.form import Call, Form, Matrix, NotTaken

__all__ = ["Form", "NotTaken", "compiled", "difference", "sample_rows"]

SIZES = (1, 2, 3, 7, 16, 33, 64, 100, 256)
"""Rows of the batches that both forms are tried on: a linear model answers a row differently, in its last bits, in
another batch, since its library sums in another order there."""
ROUNDS = 4


def compiled(transforms: Sequence[Any], model: Any, calls: Sequence[str], threads: int = 1) -> Form | None:
    """The compiled form of these steps for these calls; None where there is none for all of them. Not yet tried."""
    *first, last = linear.flat(transforms, model)
    before = [step for step in map(linear.transform, first) if step is not None]
    if len(before) < len(first):
        return None
    found = linear.model(last) or trees.model(last, threads)
    if found is None or not set(calls) <= found.calls.keys():
        return None
    return Form({name: _joined(before, found.calls[name]) for name in calls}, found.engine, found.most_rows)


def _joined(steps: Sequence[Callable[[Matrix], Matrix]], last: Call) -> Call:
    if not steps:
        return last

    def call(rows: Matrix) -> npt.NDArray[Any]:
        for step in steps:
            rows = step(rows)
        return last(rows)

    return call


def difference(candidate: Form, original: Callable[[Matrix, str], npt.NDArray[Any]], samples: Matrix) -> str:
    """Where the compiled form answers otherwise than the original on these rows; empty where no bit differs.

    `original` is called with rows and the name of a call.
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
            same = np.array_equal(expected, got) if expected.dtype == object else expected.tobytes() == got.tobytes()
            if not same:
                return f"{name} differs for some of {len(rows)} rows"
    return ""


def _batches(samples: Matrix, most: int) -> Iterator[Matrix]:
    """The samples in batches of every size, several of each, from one row to the most."""
    start = 0
    for size in [size for size in SIZES if size <= most] * ROUNDS:
        places = np.arange(start, start + size) % len(samples)
        yield np.ascontiguousarray(samples[places])
        start += size


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
