"""A stream that does not go on from the log stops its own model, with an alarm, until somebody accepts the gap."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
import redis

from contract.connection import living
from contract.keys import Keys
from tests.conditions import eventually
from tests.event_entries import EventStream, RunningSink, ok
from tests.servers import ROOT
from tests.sink_lives import closed, gaps, select

pytestmark = pytest.mark.integration

ANOTHER = "the stream is another one than before: Redis was emptied, or it is another server"


@pytest.fixture
def roi(redis_url: str, prefix: str) -> Iterator[EventStream]:
    with EventStream(redis_url, prefix) as stream:
        stream.announce()
        yield stream


@pytest.fixture
def churn(redis_url: str, prefix: str) -> Iterator[EventStream]:
    with EventStream(redis_url, prefix, "churn") as stream:
        stream.announce()
        yield stream


def empty(stream: EventStream) -> None:
    """As FLUSHALL would, of this model alone."""
    stream.client.delete(stream.key, stream.counts)
    stream.number = 0


def shown(client: redis.Redis, prefix: str) -> dict[str, str]:
    """The alarms in the sink's presence."""
    return {model_id: text for each in living(client, Keys(prefix), "sink") for model_id, text in each.alarm.items()}


def test_a_stream_that_was_emptied_stops_its_model_alone(
    roi: EventStream, churn: EventStream, redis_url: str, prefix: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    roi.append(ok("r1"))
    churn.append(ok("c1"))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 2)
        empty(roi)
        eventually(lambda: list(sink.counted().alarms) == ["roi_prediction"])
        roi.append(ok("r2"))
        churn.append(ok("c2"))
        eventually(lambda: sink.count(model_id="churn") == 2)
        assert sink.counted().alarms["roi_prediction"].startswith(f"{ANOTHER}; recording of this model is stopped")
        assert dict(sink.counted(model_id="churn").alarms) == {}
        assert [event.request_id for event in sink.events(model_id="roi_prediction")] == ["r1"]
        eventually(lambda: list(shown(redis_client, prefix)) == ["roi_prediction"])
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        [told] = sink.alarms
        assert told.startswith(f"roi_prediction: {ANOTHER}")
        assert roi.length == 1
    with RunningSink(redis_url, prefix, tmp_path, accept_gap=True) as sink:
        eventually(lambda: sink.count(model_id="roi_prediction") == 2)
        assert sink.alarms == []
        eventually(lambda: roi.length == 0)
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        roi.append(ok("r3"))
        eventually(lambda: sink.count() == 5)
        assert dict(sink.counted().alarms) == {}
    closed(sink.database, ["r1", "r2", "r3", "c1", "c2"])
    assert gaps(sink.database) == [(1, 0, f"{ANOTHER}; accepted")]


def test_a_gap_that_is_accepted_once_is_no_leave_for_the_next(
    roi: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    roi.append(ok("r1"))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 1)
    empty(roi)
    roi.append(ok("r2"))
    with RunningSink(redis_url, prefix, tmp_path, accept_gap=True) as sink:
        eventually(lambda: sink.count() == 2)
        empty(roi)
        roi.append(ok("r3"))
        eventually(lambda: list(sink.counted().alarms) == ["roi_prediction"])
        assert sink.count() == 2


def test_a_database_that_was_deleted_is_noticed_before_the_next_event(
    roi: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    roi.append(ok("r1"), ok("r2"))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: roi.length == 0)
    sink.database.unlink()
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        [told] = sink.alarms
        assert told.startswith("roi_prediction: events 1 to 2 are gone from the stream or from this database")
    with RunningSink(redis_url, prefix, tmp_path, accept_gap=True) as sink:
        roi.append(ok("r3"))
        eventually(lambda: sink.count() == 1)
    assert gaps(sink.database) == [(0, 2, "events 1 to 2 are gone from the stream or from this database; accepted")]


def test_a_log_of_an_earlier_version_takes_the_epoch_it_finds(
    roi: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    first = roi.append(ok("r1"))
    with duckdb.connect(str(tmp_path / "events.duckdb")) as connection:
        connection.execute(
            "CREATE TABLE positions (model_id VARCHAR PRIMARY KEY, entry_id VARCHAR NOT NULL, number BIGINT NOT NULL, "
            "updated_at TIMESTAMPTZ NOT NULL)"
        )
        connection.execute("INSERT INTO positions VALUES (?, ?, 1, now())", [roi.model_id, first])
    roi.append(ok("r2"))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 1)
    found: Any = roi.client.hget(roi.counts, "epoch")
    epoch = found.decode()
    assert select(sink.database, "SELECT number, epoch FROM positions") == [(2, epoch)]
    assert epoch
    assert gaps(sink.database) == []


def test_nothing_is_trimmed_of_a_stream_that_is_not_recorded(
    roi: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    """Not even entries whose ids the log has long passed, as those of another server's stream can be."""
    roi.append(ok("r1"), entry_id="4000000000000-0")
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 1)
    empty(roi)
    roi.append(ok("r2"))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        assert len(sink.alarms) == 1
    assert roi.length == 1
    with RunningSink(redis_url, prefix, tmp_path, accept_gap=True) as sink:
        eventually(lambda: sink.count() == 2)


def run_command(redis_url: str, prefix: str, folder: Path, *flags: str, until: Callable[[], bool]) -> str:
    """`millstream sink` until something is so, stopped in order; what it said."""
    where = ("--redis-url", redis_url, "--prefix", prefix, "--state-dir", str(folder), "--listen", "127.0.0.1:0")
    command = [sys.executable, "-m", "millstream", "sink", *where, *flags]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as child:
        try:
            eventually(until, within=20)
        finally:
            child.terminate()
            _, said = child.communicate(timeout=20)
    assert child.returncode == 0
    return said


def test_the_command_accepts_a_gap_where_it_is_told_to(
    roi: EventStream, redis_url: str, prefix: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    roi.append(ok("r1"))
    roi.client.xtrim(roi.key, maxlen=0, approximate=False)
    roi.append(ok("r2"))
    said = run_command(redis_url, prefix, tmp_path, until=lambda: bool(shown(redis_client, prefix)))
    assert "recording of this model is stopped" in said
    assert roi.length == 1
    run_command(redis_url, prefix, tmp_path, "--accept-gap", until=lambda: roi.length == 0)
    closed(tmp_path / "events.duckdb", ["r2"])
    assert len(gaps(tmp_path / "events.duckdb")) == 1
