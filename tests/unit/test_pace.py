"""How a worker learns how large a batch should be, and how fast it is."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from consumers.worker.pace import MOST_RISE, WEIGHT, Most, Pace

ROWS = 256
MOST = Most.always(ROWS)
OVERHEAD_S = 0.001


def served(seconds: Callable[[int], float], batches: int, backlog: int = 10**6, pace: Pace | None = None) -> Pace:
    """The pace after some batches of a model whose call takes `seconds` for so many rows."""
    pace = pace or Pace(0.005)
    for _ in range(batches):
        rows = min(pace.room(MOST), backlog)
        pace = pace.after(rows, seconds(rows), seconds(rows) + OVERHEAD_S)
    return pace


def forest(rows: int) -> float:
    return 0.0068 + rows * 14e-6


def heavy(rows: int) -> float:
    return 0.1 * rows


def light(rows: int) -> float:
    return 0.0001 + rows * 0.5e-6


def test_while_nothing_is_known_there_is_room_for_a_whole_batch() -> None:
    assert (Pace(0.005).room(MOST), Pace(0.005).room(Most.always(100)), Pace(0.005).rows_per_s(MOST)) == (256, 100, 0.0)
    assert Pace(0.005).rough(MOST)


def test_a_model_whose_calls_are_slow_whatever_their_size_is_asked_for_many_rows() -> None:
    """Seen first one row at a time, it would otherwise stay at one row, at a hundredth of what it can do."""
    alone = served(forest, 20, backlog=1)
    assert alone.rough(MOST)
    assert alone.rows_per_s(MOST) < 130
    busy = served(forest, 20, pace=alone)
    assert busy.room(MOST) == ROWS
    assert not busy.rough(MOST)
    assert busy.rows_per_s(MOST) == pytest.approx(ROWS / (forest(ROWS) + OVERHEAD_S), rel=0.01)


def test_beyond_the_usual_size_only_what_is_slow_and_gets_cheaper_is_asked_for_more() -> None:
    most = Most(ROWS, 1024)

    def room(seconds: Callable[[int], float]) -> int:
        pace = Pace(0.005)
        for _ in range(40):
            rows = pace.room(most)
            pace = pace.after(rows, seconds(rows), seconds(rows))
        return pace.room(most)

    assert [room(each) for each in (light, lambda rows: 0.02 + rows * 1e-6)] == [ROWS, 1024]
    assert room(heavy) <= 2
    assert room(forest) >= 512


def test_a_model_whose_rows_are_slow_each_is_spread_over_the_pool() -> None:
    pace = served(heavy, 20)
    assert pace.room(MOST) <= 2
    assert not pace.rough(MOST)
    assert pace.rows_per_s(MOST) == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("rows_first", [1, 7, 256])
def test_a_light_model_is_asked_for_whole_batches(rows_first: int) -> None:
    first = Pace(0.005).after(rows_first, light(rows_first), light(rows_first) + OVERHEAD_S)
    assert served(light, 20, pace=first).room(MOST) == ROWS


def test_batches_take_the_target_time_where_rows_and_calls_both_cost() -> None:
    pace = served(lambda rows: 0.0002 + rows * 0.0001, 30)
    assert 0.5 * 0.005 <= 0.0002 + pace.room(MOST) * 0.0001 <= 1.5 * 0.005


@pytest.mark.parametrize("rows", [65, 129])
def test_a_batch_of_few_more_rows_does_not_make_a_size_look_dear(rows: int) -> None:
    """Per row it costs as much as the next smaller size, and batches stayed at that."""
    pace = served(forest, 20, backlog=64)
    pace = served(forest, 20, backlog=rows, pace=pace)
    assert served(forest, 20, pace=pace).room(MOST) == ROWS


def test_a_size_that_stalled_when_it_was_tried_is_tried_again() -> None:
    pace = served(forest, 20, backlog=64)
    stalled = pace.after(128, 0.1, 0.1)
    assert stalled.room(MOST) == 64
    assert served(forest, 300, pace=stalled).room(MOST) == ROWS


def test_one_stalled_call_counts_for_little_and_lasting_slowness_is_seen() -> None:
    before = served(light, 20)
    stalled = before.after(256, 10.0, 10.0)
    assert stalled.rows_per_s(MOST) == pytest.approx(before.rows_per_s(MOST) / (1 + WEIGHT * (MOST_RISE - 1)))
    slow = before
    for _ in range(40):
        slow = slow.after(256, 10.0, 10.0)
    assert slow.rows_per_s(MOST) == pytest.approx(25.6, rel=0.05)


def test_a_pace_is_a_value() -> None:
    before = Pace(0.005)
    before.after(1, 0.001, 0.002)
    assert before == Pace(0.005)
