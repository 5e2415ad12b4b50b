"""The sink dies at moments that nobody chose, and no two of them write one log."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import duckdb
import pytest

from consumers.sink.database import Batch, EventDatabase
from tests.conditions import eventually
from tests.event_entries import EventStream, RunningSink, ok
from tests.sink_lives import Sinks, Writer, closed, emptied, gaps
from tests.sink_process import Life

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.slow]


@pytest.fixture
def stream(redis_url: str, prefix: str) -> Iterator[EventStream]:
    with EventStream(redis_url, prefix) as stream:
        stream.announce()
        yield stream


@pytest.mark.timeout(300)
def test_killed_at_random_moments_each_event_is_in_the_log_once(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    random_ = random.Random(11)
    with Sinks(redis_url, prefix, tmp_path) as sinks:
        with Writer(stream) as writer:
            for _ in range(10):
                oldest = stream.oldest
                sinks.begin_ready()
                # At work once it trims; then it lives a little longer, over a few commits.
                eventually(partial(stream.trimmed_since, oldest), within=20)
                threading.Event().wait(random_.uniform(0.0, 0.1))
                sinks.kill()
        with sinks.running():
            emptied(stream)
        assert len(writer.accepted) > 500
        closed(sinks.database, writer.accepted)
        assert gaps(sinks.database) == []


def test_a_commit_that_raised_and_was_written_all_the_same_is_gone_on_from(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, failures = EventDatabase.commit, iter([True])

    def lost(database: EventDatabase, batch: Batch) -> None:
        commit(database, batch)
        if batch.events and next(failures, False):
            database._sequence -= batch.events  # as where it raises within
            raise duckdb.IOException("the disk said nothing of it")

    monkeypatch.setattr(EventDatabase, "commit", lost)
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        stream.append(ok("a"), ok("b"))
        eventually(lambda: sink.count() == 2)
        stream.append(ok("c"))
        eventually(lambda: sink.count() == 3)
    with duckdb.connect(str(sink.database), read_only=True) as log:
        rows = log.execute("SELECT request_id, sequence FROM events ORDER BY sequence").fetchall()
    assert rows == [("a", 1), ("b", 2), ("c", 3)]


def test_a_second_sink_on_the_same_database_is_refused(redis_url: str, prefix: str, tmp_path: Path) -> None:
    with (
        Sinks(redis_url, prefix, tmp_path) as first,
        Sinks(redis_url, prefix, tmp_path) as second,
        first.running(),
        pytest.raises(AssertionError) as refused,
    ):
        second.begin_ready(Life())
    assert str(refused.value).splitlines()[0] == (
        f"the event database {tmp_path}/events.duckdb can't be opened: "
        "another process has it open; one sink at a time writes the event log"
    )
