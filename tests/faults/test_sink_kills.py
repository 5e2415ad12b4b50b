"""The sink is killed at every step of its work, and the log is what it would have been.

The same kills find the mistake in two sinks that move their position and write their rows in two steps: otherwise the
test of the real one could not fail.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.event_entries import EventStream
from tests.faults import REPEATS
from tests.sink_lives import Sinks, Writer, closed, emptied, gaps
from tests.sink_process import AFTER, BEFORE, Life

pytestmark = [pytest.mark.integration, pytest.mark.faults]

KILLS = 25 * REPEATS
NAIVE_KILLS = 4


@pytest.fixture
def stream(redis_url: str, prefix: str) -> Iterator[EventStream]:
    with EventStream(redis_url, prefix) as stream:
        stream.announce()
        yield stream


@pytest.fixture
def sinks(redis_url: str, prefix: str, tmp_path: Path) -> Iterator[Sinks]:
    with Sinks(redis_url, prefix, tmp_path) as sinks:
        yield sinks


def deaths(points: tuple[str, ...], kills: int, naive: str = "") -> list[Life]:
    """Each point in turn, at the first time it is passed and at the second."""
    schedule = itertools.islice(itertools.cycle(itertools.product((1, 2), points)), kills)
    return [Life(point, time, naive) for time, point in schedule]


def run(sinks: Sinks, stream: EventStream, lives: list[Life], last: Life) -> set[str]:
    """All these lives under writes, and a last one that drains the stream; the ids that were accepted."""
    with Writer(stream) as writer:
        for life in lives:
            sinks.killed(life)
    with sinks.running(last):
        emptied(stream)
    assert len(writer.accepted) > len(lives)
    return writer.accepted


@pytest.mark.parametrize("points", [BEFORE, AFTER], ids=["before the commit", "after the commit"])
@pytest.mark.timeout(300)
def test_killed_around_its_commits_each_event_is_in_the_log_once(
    points: tuple[str, ...], sinks: Sinks, stream: EventStream
) -> None:
    accepted = run(sinks, stream, deaths(points, KILLS), Life())
    closed(sinks.database, accepted)
    assert gaps(sinks.database) == []


@pytest.mark.parametrize(
    ("naive", "found"),
    [("position first", "accepted requests are not in the log"), ("rows first", "are in the log more than once")],
)
def test_a_sink_that_does_in_two_steps_what_must_be_one_is_found_out(
    naive: str, found: str, sinks: Sinks, stream: EventStream
) -> None:
    accepted = run(sinks, stream, deaths(AFTER, NAIVE_KILLS, naive), Life(naive=naive))
    with pytest.raises(AssertionError, match=found):
        closed(sinks.database, accepted)
