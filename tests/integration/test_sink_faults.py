"""The sink dies, again and again, and the log is what it would have been."""

from __future__ import annotations

import random
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.conditions import eventually
from tests.event_entries import EventStream, ok
from tests.servers import ROOT

pytestmark = [pytest.mark.integration, pytest.mark.faults, pytest.mark.slow]


class SinkProcess:
    """A real sink process; killed where a test leaves it running."""

    def __init__(self, url: str, prefix: str, folder: Path) -> None:
        self._command = [sys.executable, "-m", "tests.sink_process", url, prefix, str(folder / "events.duckdb")]
        self._log = folder / "sink.log"
        self.child: subprocess.Popen[str]

    @property
    def log(self) -> str:
        return self._log.read_text()

    @contextmanager
    def running(self, *deadly: str, set_up: Callable[[], None] | None = None) -> Iterator[str]:
        """Its first line, once it has said it."""
        with self._log.open("a") as log:
            self.child = subprocess.Popen(
                [*self._command, *deadly], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=set_up
            )
        assert self.child.stdout is not None
        with self.child, self.child.stdout as out:
            try:
                yield out.readline().strip()
            finally:
                self.child.kill()


class Writer:
    """Appends entries of one to four events until it is told to stop."""

    def __init__(self, stream: EventStream) -> None:
        self._stream = stream
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.appended = 0

    def _run(self) -> None:
        random_ = random.Random(7)
        while not self._stop.wait(0.0005):
            size = random_.randint(1, 4)
            self._stream.append(*(ok(f"r{self.appended + at}") for at in range(size)))
            self.appended += size

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@pytest.fixture
def stream(redis_url: str, prefix: str) -> Iterator[EventStream]:
    with EventStream(redis_url, prefix) as stream:
        stream.announce()
        yield stream


@pytest.fixture
def sink(redis_url: str, prefix: str, tmp_path: Path) -> SinkProcess:
    return SinkProcess(redis_url, prefix, tmp_path)


def drained(sink: SinkProcess, stream: EventStream) -> None:
    """A last sink reads everything there is, and stops in order."""
    with sink.running() as line:
        assert line == "ready"
        eventually(lambda: stream.length == 0, within=30)
        sink.child.terminate()
        assert sink.child.wait(15) == 0


def in_the_log(folder: Path) -> dict[str, Any]:
    with duckdb.connect(str(folder / "events.duckdb"), read_only=True) as connection:
        [(rows, requests, first, last, numbers, sequences)] = connection.execute(
            "SELECT count(*), count(DISTINCT request_id), min(number), max(number), count(DISTINCT number), "
            "count(DISTINCT sequence) FROM events"
        ).fetchall()
        gaps = connection.execute("SELECT model_id, expected, found, why FROM gaps").fetchall()
        [(position,)] = connection.execute("SELECT number FROM positions").fetchall()
    return {
        "rows": rows,
        "requests": requests,
        "numbers": (first, last, numbers),
        "sequences": sequences,
        "gaps": gaps,
        "position": position,
    }


def whole(appended: int) -> dict[str, Any]:
    """What the log holds when each of `appended` events is in it once."""
    return {
        "rows": appended,
        "requests": appended,
        "numbers": (1, appended, appended),
        "sequences": appended,
        "gaps": [],
        "position": appended,
    }


@pytest.mark.timeout(300)
def test_killed_at_random_moments_each_event_is_in_the_log_once(
    stream: EventStream, sink: SinkProcess, tmp_path: Path
) -> None:
    random_ = random.Random(11)
    with Writer(stream) as writer:
        for _ in range(20):
            with sink.running() as line:
                assert line == "ready"
                # At work once it trims; then it lives a little longer, over a few commits.
                oldest = stream.oldest
                eventually(partial(stream.trimmed_since, oldest), within=20)
                threading.Event().wait(random_.uniform(0.0, 0.25))
                sink.child.kill()
    drained(sink, stream)
    assert writer.appended > 1000
    assert whole(writer.appended) == in_the_log(tmp_path)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.timeout(300)
def test_killed_around_a_commit_each_event_is_in_the_log_once(
    when: str, stream: EventStream, sink: SinkProcess, tmp_path: Path
) -> None:
    with Writer(stream) as writer:
        for attempt in range(10):
            with sink.running(when, str(1 + attempt % 4)) as line:
                assert line == "ready"
                assert sink.child.wait(20) == -9
    drained(sink, stream)
    assert whole(writer.appended) == in_the_log(tmp_path)


def test_a_second_sink_on_the_same_database_is_refused(
    stream: EventStream, sink: SinkProcess, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    with sink.running() as first, SinkProcess(redis_url, prefix, tmp_path).running() as second:
        assert first == "ready"
        assert second == (
            f"the event database {tmp_path}/events.duckdb can't be opened: "
            "another process has it open; one sink at a time writes the event log"
        )


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are set on Linux alone")
def test_a_full_disk_stops_the_log_until_there_is_room_and_loses_nothing(
    stream: EventStream, sink: SinkProcess, tmp_path: Path
) -> None:
    def small_disk() -> None:
        _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, most))

    with sink.running(set_up=small_disk) as line:
        assert line == "ready"
        for entry in range(40):
            stream.append(*(ok(f"{entry}-{at}") for at in range(100)))
        eventually(lambda: "can't be written" in sink.log, within=20)
        assert stream.length > 0
        _, most = resource.prlimit(sink.child.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(sink.child.pid, resource.RLIMIT_FSIZE, (most, most))
        eventually(lambda: stream.length == 0, within=30)
        sink.child.terminate()
        assert sink.child.wait(15) == 0
    assert whole(4000) == in_the_log(tmp_path)
