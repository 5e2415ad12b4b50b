"""When a version can be dropped, and when a canary fails too much."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from contract.presence import Presence
from registry.catalogue.known import KnownVersion
from registry.promotion.canary import LEAST_REQUESTS, CanaryCounts, Tally
from registry.promotion.retirement import Lane, Retirement, seen_by_all
from registry.promotion.timeline import Claim, Statement

EMPTY = Lane()


def test_everybody_has_to_have_seen_it() -> None:
    early, late = Presence("gateway", "a", revision=7), Presence("worker", "b", revision=6)
    assert seen_by_all([early, late], 6)
    assert not seen_by_all([early, late], 7)
    assert seen_by_all([], 7)


def test_the_marks_are_taken_a_while_after_everybody_has_seen_it() -> None:
    lanes = (Lane((9, 0), (4, 0)), EMPTY)
    unseen = Retirement(7).after(False, lanes, 100, 60)
    assert unseen == Retirement(7)
    seen = unseen.after(True, lanes, 101, 60)
    assert seen == Retirement(7, 101)
    assert seen.after(True, lanes, 160, 60) == seen
    assert seen.after(True, lanes, 161, 60) == Retirement(7, 101, ((9, 0), (0, 0)))


def test_a_process_that_has_not_seen_it_starts_it_over() -> None:
    marked = Retirement(7, 101, ((9, 0), (0, 0)))
    assert marked.after(False, (EMPTY, EMPTY), 200, 60) == Retirement(7)


@pytest.mark.parametrize(
    ("lane", "expected"),
    [
        (EMPTY, True),
        (Lane((12, 3), (9, 0)), False),
        (Lane((12, 3), (9, 1)), True),
        (Lane((12, 3), (10, 0)), True),
        (Lane((12, 3), (4, 0)), False),
    ],
)
def test_it_is_over_once_the_oldest_entry_left_is_younger_than_the_mark(lane: Lane, expected: bool) -> None:
    marked = Retirement(7, 101, ((9, 0), (9, 0)))
    assert marked.is_over((lane, EMPTY)) is expected
    assert marked.is_over((EMPTY, lane)) is expected


def test_without_marks_it_is_never_over() -> None:
    assert not Retirement(7, 101).is_over((EMPTY, EMPTY))


# ---------------------------------------------------------------- canary

START = datetime(2026, 1, 1, tzinfo=UTC)
CANARY = Claim(
    KnownVersion("churn", "2.0.0", "d2", b"{}", "2023-10-25", "here", "canary", "place", "", START, ()),
    Statement(START, "churn", "2.0.0", "d2", "act", "canary", "alice", 500, "salt", 0.1),
)


def worker(name: str, finished: int, failed: int) -> Presence:
    return Presence("worker", name, outcomes={"d2": (finished, failed), "d1": (9999, 9999)})


def test_failures_count_from_when_the_share_was_set() -> None:
    counts = CanaryCounts()
    assert counts.look(CANARY, [worker("a", 100, 90)]) == Tally()
    assert counts.look(CANARY, [worker("a", 110, 91), worker("b", 5, 2)]) == Tally(15, 3)
    assert counts.look(CANARY, [worker("b", 6, 2)]) == Tally(16, 3)
    assert counts.look(CANARY, [worker("a", 110, 91), worker("b", 6, 2)]) == Tally(16, 3)


def test_a_new_share_starts_the_count_over() -> None:
    counts = CanaryCounts()
    counts.look(CANARY, [])
    assert counts.look(CANARY, [worker("a", 10, 10)]) == Tally(10, 10)
    again = Claim(CANARY.version, replace(CANARY.statement, at=START + timedelta(hours=1)))
    assert counts.look(again, [worker("a", 10, 10)]) == Tally()


@pytest.mark.parametrize(
    ("tally", "limit", "expected"),
    [
        (Tally(LEAST_REQUESTS, LEAST_REQUESTS), 0.0, False),
        (Tally(LEAST_REQUESTS - 1, LEAST_REQUESTS - 1), 0.1, False),
        (Tally(100, 10), 0.1, False),
        (Tally(100, 11), 0.1, True),
        (Tally(LEAST_REQUESTS, LEAST_REQUESTS), 1.0, False),
    ],
)
def test_a_canary_is_over_its_limit_by_share_and_not_of_a_handful(tally: Tally, limit: float, expected: bool) -> None:
    assert tally.is_over(limit) is expected
