"""Who a worker waits for before it calls a slow model again."""

from __future__ import annotations

from itertools import pairwise

import pytest

from consumers.worker.crowds import CALL_S, CALLS, EACH_S, MOST_RESTS, MOST_S, RESTS, SILENCE_S, STEP_S, Crowds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


SLOW_S = 0.006
STEP = STEP_S * 1.01


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def crowds(clock: Clock) -> Crowds:
    """Of `slow` fifty stood there, and those who were read have their answers."""
    call_s = {"slow": SLOW_S, "rather slow": 0.003, "very slow": 1.0, "light": CALL_S / 2}
    crowds = Crowds(call_s.__getitem__, clock)
    for model_id in call_s:
        crowds.read(model_id, 50)
        crowds.answered(model_id)
    return crowds


def test_as_many_are_waited_for_as_there_were(crowds: Crowds, clock: Clock) -> None:
    assert [crowds.awaits("slow", entries) for entries in (0, 1, 49)] == [True, True, True]
    clock.now += STEP
    assert crowds.awaits("slow", 49)
    clock.now += STEP
    assert not crowds.awaits("slow", 50)


@pytest.mark.parametrize("callers", [2, 50])
def test_when_nobody_comes_the_wait_is_as_short_as_the_way_back_of_so_many(callers: int, clock: Clock) -> None:
    crowds = Crowds(lambda _model: SLOW_S, clock)
    crowds.read("slow", callers)
    crowds.answered("slow")
    assert crowds.awaits("slow", 1)
    clock.now += 0.99 * (SILENCE_S + EACH_S * callers)
    assert crowds.awaits("slow", 1)
    clock.now += 0.02 * (SILENCE_S + EACH_S * callers)
    assert not crowds.awaits("slow", 1)


@pytest.mark.parametrize(
    ("model_id", "wait_s"), [("rather slow", CALLS * 0.003 + SILENCE_S + 50 * EACH_S), ("very slow", MOST_S)]
)
def test_however_they_come_the_wait_ends(crowds: Crowds, clock: Clock, model_id: str, wait_s: float) -> None:
    began, entries = clock.now, 0
    while crowds.awaits(model_id, entries):
        clock.now += 0.001
        entries += 1
    assert wait_s <= clock.now - began < wait_s + 0.0011


def test_more_are_waited_for_while_they_come_faster_than_they_would_be_answered(crowds: Crowds, clock: Clock) -> None:
    """After two steps of 5 ms in all a call of 6 ms has taken 11: 110 entries are ten in a millisecond."""
    clock.now += STEP
    assert crowds.awaits("slow", 60)
    clock.now += STEP
    assert crowds.awaits("slow", 110)
    clock.now += STEP
    assert not crowds.awaits("slow", 112)


def test_nobody_waits_any_more_once_all_waits_are_over(crowds: Crowds, clock: Clock) -> None:
    assert crowds.expected
    clock.now += MOST_S + 0.001
    assert not crowds.expected


def test_calls_that_are_quick_wait_for_nobody(crowds: Crowds) -> None:
    assert not crowds.awaits("light", 1)


def test_one_caller_alone_is_never_held_up(clock: Clock) -> None:
    crowds = Crowds(lambda _model: SLOW_S, clock)
    crowds.read("slow", 1)
    crowds.answered("slow")
    assert (crowds.expected, crowds.awaits("slow", 1)) == (False, False)


def test_after_a_wait_for_more_that_brought_nobody_all_are_called_as_soon_as_they_are_back(
    crowds: Crowds, clock: Clock
) -> None:
    assert waits_for_more(crowds, 9 * RESTS) == [RESTS, 3 * RESTS + 1, 7 * RESTS + 2]


def test_once_a_wait_brought_more_the_next_one_is_as_soon_as_at_first(crowds: Crowds) -> None:
    assert waits_for_more(crowds, 3 * RESTS + 2) == [RESTS, 3 * RESTS + 1]
    crowds.read("slow", 60)
    crowds.answered("slow")
    assert waits_for_more(crowds, 2 * RESTS, 60) == [RESTS]


def test_more_are_waited_for_again_after_the_longest_rest_at_the_latest(crowds: Crowds) -> None:
    found = waits_for_more(crowds, 20 * MOST_RESTS)
    assert {later - sooner for sooner, later in pairwise(found[4:])} == {MOST_RESTS + 1}


def waits_for_more(crowds: Crowds, batches: int, callers: int = 50) -> list[int]:
    """Before which batches more than all are waited for."""
    found = []
    for batch in range(batches):
        crowds.read("slow", callers)
        crowds.answered("slow")
        if crowds.awaits("slow", callers):
            found.append(batch)
    return found


def test_a_crowd_that_went_away_is_forgotten_with_the_next_batch(crowds: Crowds) -> None:
    crowds.read("slow", 2)
    assert not crowds.awaits("slow", 1)
    crowds.answered("slow")
    assert [crowds.awaits("slow", entries) for entries in (1, 2)] == [True, False]
