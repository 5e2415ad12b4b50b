"""Who a worker waits for before it calls a slow model again."""

from __future__ import annotations

import pytest

from consumers.worker.crowds import CALL_S, MOST_S, SHARE, Crowds


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


SLOW_S = 0.004


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def crowds(clock: Clock) -> Crowds:
    """Of `slow` fifty stood there, and those who were read have their answers."""
    crowds = Crowds({"slow": SLOW_S, "very slow": 1.0, "light": CALL_S / 2}.__getitem__, clock)
    for model_id in ("slow", "very slow", "light"):
        crowds.read(model_id, 50)
        crowds.answered(model_id)
    return crowds


def test_as_many_are_waited_for_as_there_were(crowds: Crowds) -> None:
    assert [crowds.awaits("slow", entries) for entries in (0, 1, 49, 50, 80)] == [True, True, True, False, False]


@pytest.mark.parametrize(("model_id", "wait_s"), [("slow", SHARE * SLOW_S), ("very slow", MOST_S)])
def test_the_wait_is_short(crowds: Crowds, clock: Clock, model_id: str, wait_s: float) -> None:
    clock.now += wait_s * 0.99
    assert crowds.awaits(model_id, 1)
    clock.now += wait_s * 0.02
    assert not crowds.awaits(model_id, 1)


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


def test_a_crowd_that_went_away_is_forgotten_with_the_next_batch(crowds: Crowds) -> None:
    crowds.read("slow", 2)
    crowds.answered("slow")
    assert [crowds.awaits("slow", entries) for entries in (1, 2)] == [True, False]
