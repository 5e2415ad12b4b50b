"""Waiting for a condition with a deadline, instead of sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

T = TypeVar("T")

STEP_S = 0.01


def eventually(predicate: Callable[[], T], within: float = 5.0) -> T:
    """The first true answer of `predicate`, asked again until `within` seconds have passed.

    Raises AssertionError with the last answer when none came in time; what the predicate raises goes through.
    """
    deadline = time.monotonic() + within
    while not (answer := predicate()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {within:g} s: the last answer was {answer!r}")
        time.sleep(STEP_S)
    return answer


async def eventually_async(predicate: Callable[[], Awaitable[T]], within: float = 5.0) -> T:
    """The same for a predicate that must be awaited; the event loop runs on between the questions."""
    deadline = time.monotonic() + within
    while not (answer := await predicate()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {within:g} s: the last answer was {answer!r}")
        await anyio.sleep(STEP_S)
    return answer
