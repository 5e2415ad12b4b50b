"""What a worker has completed, and how fast it was over the last seconds."""

from __future__ import annotations

import pytest

from consumers.worker.tally import WINDOW_S, Tally


def test_a_rate_is_of_the_last_seconds_only() -> None:
    tally = Tally(100.0)
    tally.add_rows("churn", 50)
    assert tally.rows_per_s(101.0) == {"churn": 50.0}
    tally.add_rows("churn", 30)
    assert tally.rows_per_s(102.0) == {"churn": 40.0}
    for second in range(103, 103 + int(WINDOW_S) + 2):
        rate = tally.rows_per_s(float(second))
    assert rate == {}, "what was answered before that does not count any more"


def test_models_are_counted_apart_and_one_that_stands_still_is_left_out() -> None:
    tally = Tally(0.0)
    assert tally.rows_per_s(1.0) == {}
    tally.add_rows("a", 4)
    tally.add_rows("b", 2)
    assert tally.rows_per_s(2.0) == {"a": 2.0, "b": 1.0}


def test_a_clock_that_has_not_moved_gives_no_rate() -> None:
    tally = Tally(5.0)
    tally.add_rows("a", 1)
    assert tally.rows_per_s(5.0) == {}


def test_a_steady_pace_is_measured_as_it_is() -> None:
    tally = Tally(0.0)
    for beat in range(1, 40):
        tally.add_rows("a", 10)
        assert tally.rows_per_s(beat / 2) == {"a": pytest.approx(20.0)}


def test_outcomes_are_told_by_version() -> None:
    tally = Tally(0.0)
    tally.add_outcome(b"\xab", 3)
    tally.add_outcome(b"\xab", 1, failed=1)
    tally.add_outcome(b"\xcd", 1)
    assert tally.outcomes() == {"ab": (4, 1), "cd": (1, 0)}
