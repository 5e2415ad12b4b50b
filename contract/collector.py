"""Python's cyclic collector in a process that serves: it should not look at what is there for good again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG, MIDDLE, OLD = 10_000, 10, 10


@contextmanager
def settled() -> Iterator[None]:
    """Leaves all that was made before alone, for good, and collects less often."""
    gc.collect()
    gc.freeze()
    try:
        with seldom():
            yield
    finally:
        gc.unfreeze()


@contextmanager
def seldom() -> Iterator[None]:
    """Collects less often: a request leaves no cycles behind, and what a dropped model leaves can wait."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
    try:
        yield
    finally:
        gc.set_threshold(*before)
