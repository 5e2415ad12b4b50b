"""The event database is deleted, restored from an older copy, or has no room to grow."""

from __future__ import annotations

import resource
import shutil
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.conditions import eventually
from tests.event_entries import EventStream, ok
from tests.faults import REPEATS
from tests.sink_lives import Sinks, closed, emptied, gaps
from tests.sink_process import Life

pytestmark = [pytest.mark.integration, pytest.mark.faults]


@pytest.fixture
def stream(redis_url: str, prefix: str) -> Iterator[EventStream]:
    with EventStream(redis_url, prefix) as stream:
        stream.announce()
        yield stream


@pytest.fixture
def other(redis_url: str, prefix: str) -> Iterator[EventStream]:
    """A model of which nothing was recorded yet."""
    with EventStream(redis_url, prefix, "churn") as stream:
        stream.announce()
        yield stream


@pytest.fixture
def sinks(redis_url: str, prefix: str, tmp_path: Path) -> Iterator[Sinks]:
    with Sinks(redis_url, prefix, tmp_path) as sinks:
        yield sinks


def append(stream: EventStream, name: str, entries: int) -> list[str]:
    """Entries of three events each; their request ids."""
    ids = [f"{name}{number}" for number in range(3 * entries)]
    for start in range(0, len(ids), 3):
        stream.append(*map(ok, ids[start : start + 3]))
    return ids


def stopped(sinks: Sinks, stream: EventStream, other: EventStream) -> list[str]:
    """A sink starts and records the other model alone; what it recorded."""
    left = stream.length
    with sinks.running():
        ids = append(other, "other", 2)
        emptied(other)
        eventually(lambda: "a model is not recorded any more" in sinks.log)
        assert stream.length == left
    return ids


def test_a_deleted_database_stops_the_model_until_the_gap_is_accepted(
    sinks: Sinks, stream: EventStream, other: EventStream
) -> None:
    with sinks.running():
        append(stream, "old", 10)
        emptied(stream)
    sinks.database.unlink()
    ids = append(stream, "new", 5) + stopped(sinks, stream, other)
    assert gaps(sinks.database) == []
    with sinks.running(Life(accept_gap=True)):
        emptied(stream)
    closed(sinks.database, ids)
    assert gaps(sinks.database) == [(3, 33, "events 1 to 30 are gone from the stream or from this database; accepted")]
    with sinks.running():
        ids += append(stream, "later", 5)
        emptied(stream)
    closed(sinks.database, ids)
    assert len(gaps(sinks.database)) == 1


def test_a_database_of_yesterday_stops_the_model_until_the_gap_is_accepted(
    sinks: Sinks, stream: EventStream, other: EventStream, tmp_path: Path
) -> None:
    with sinks.running():
        ids = append(stream, "yesterday", 10)
        emptied(stream)
    shutil.copy(sinks.database, tmp_path / "yesterday.duckdb")
    with sinks.running():
        append(stream, "today", 4)
        emptied(stream)
    shutil.copy(tmp_path / "yesterday.duckdb", sinks.database)
    ids += append(stream, "new", 5) + stopped(sinks, stream, other)
    with sinks.running(Life(accept_gap=True)):
        emptied(stream)
    closed(sinks.database, ids)
    assert gaps(sinks.database) == [
        (33, 45, "events 31 to 42 are gone from the stream or from this database; accepted")
    ]


def test_a_database_of_yesterday_takes_what_still_stands_in_redis(
    sinks: Sinks, stream: EventStream, tmp_path: Path
) -> None:
    with sinks.running():
        ids = append(stream, "yesterday", 10)
        emptied(stream)
    shutil.copy(sinks.database, tmp_path / "yesterday.duckdb")
    ids += append(stream, "today", 4)
    # Committed, and the sink dies before it trims: all of it is still there for the older database.
    sinks.killed(Life("before trim"))
    sinks.database.with_name("events.duckdb.wal").unlink(missing_ok=True)
    shutil.copy(tmp_path / "yesterday.duckdb", sinks.database)
    with sinks.running():
        emptied(stream)
    closed(sinks.database, ids)
    assert gaps(sinks.database) == []


def refused(sinks: Sinks, said: int) -> bool:
    """Whether a commit failed after the log was that long."""
    return "can't be written" in sinks.log[said:]


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are set on Linux alone")
def test_a_full_disk_stops_the_log_until_there_is_room_and_loses_nothing(sinks: Sinks, stream: EventStream) -> None:
    """A write that reaches the limit ends in the middle, as on a disk that is full; there is room again each time."""
    written = sinks.database.with_name("events.duckdb.wal")
    ids: list[str] = []
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    with sinks.running(Life(file_bytes=100_000)):
        for round_ in range(3 * REPEATS):
            said = len(sinks.log)
            ids += [f"{round_}-{number}" for number in range(3000)]
            for start in range(len(ids) - 3000, len(ids), 100):
                stream.append(*map(ok, ids[start : start + 100]))
            eventually(partial(refused, sinks, said), within=20)
            assert stream.length > 0
            resource.prlimit(sinks.pid, resource.RLIMIT_FSIZE, (most, most))
            emptied(stream)
            room = max(file.stat().st_size for file in (written, sinks.database) if file.exists())
            resource.prlimit(sinks.pid, resource.RLIMIT_FSIZE, (room + 20_000, most))
        resource.prlimit(sinks.pid, resource.RLIMIT_FSIZE, (most, most))
    closed(sinks.database, ids)
    assert gaps(sinks.database) == []
