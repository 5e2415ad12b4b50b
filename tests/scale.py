"""The event log at size: how fast it is written and sealed, how large it is, how long questions take, and the proof.

    python -m tests.scale --events 10000000 --json scale.json

A log that was made before, with --folder, is asked again and not made anew. It prints a table.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.timestamp_pb2 import Timestamp

from consumers.audit.inspection import Finding, inspect
from consumers.audit.reading import fetch, open_stopped
from consumers.audit.sql import Limits, Question
from consumers.audit.verify import rows_of, verify
from consumers.sink.database import EventDatabase
from consumers.sink.sealing import Sealing
from consumers.sink.service import EventLogServer
from contract.log import set_up_log
from contract.settings import Settings
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from tests.event_entries import EventStream, RunningSink
from tests.scale_events import CALLS, HOUR_US, KINDS, START_US, entries
from tests.scale_log import HOURS, Filling, committed, fill
from tests.servers import RedisServer

TIMES = 20
Asked = Mapping[str, Any]


def at(hours: float) -> Timestamp:
    """So long after the first event."""
    time = Timestamp()
    time.FromMicroseconds(START_US + int(hours * HOUR_US))
    return time


class Opened:
    """A log without a sink that writes to it, and a stub to ask it."""

    def __init__(self, folder: Path) -> None:
        self.database = EventDatabase(folder / "events.duckdb")
        self._server = EventLogServer(self.database)
        self._channel = grpc.insecure_channel(self._server.listen("127.0.0.1:0"))
        self.stub: Any = v1_grpc.EventLogStub(self._channel)

    def query(self, **asked: Any) -> list[v1.ModelEvent]:
        return list(self.stub.Query(v1.EventQuery(**asked), timeout=120))

    def count(self, **asked: Any) -> v1.EventCount:
        counted: v1.EventCount = self.stub.Count(v1.EventQuery(**asked), timeout=120)
        return counted

    def close(self) -> None:
        self._channel.close()
        self._server.stop()
        self.database.close()


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Opened]:
    log = Opened(folder)
    try:
        yield log
    finally:
        log.close()


def usual(log: Opened) -> dict[str, Asked]:
    """What people ask, each with an answer but for the id that nobody has."""
    some = log.query(model_id="churn", since=at(HOURS / 3), until=at(HOURS / 2), limit=1)[0]
    day = {"since": at(0), "until": at(24)}
    own = next(kind for kind in KINDS if kind.own_ids)
    return {
        "a request by its own id": {"request_id": own.own_id(1000)},
        "the same, with its model": {"request_id": own.own_id(1000), "model_id": own.model_id},
        "a request by an id that was made": {"request_id": some.request_id},
        "an id that nobody has": {"request_id": "AAAA-not-there-A"},
        "a model's hour, newest 100": {"model_id": "churn", "since": at(HOURS / 2), "until": at(HOURS / 2 + 1)},
        "an entity's newest 100": {"entity_id": some.entity_id},
        "the newest 100": {},
        "the oldest 100": {"oldest_first": True},
        "failed ones of a day, 1,000": {"status": "FAILED", "limit": 1000, **day},
    }


@dataclass(frozen=True, slots=True)
class Took:
    """How long a question took, in seconds: the first time, and then."""

    rows: int
    cold: float
    median: float
    worst: float
    cpu: float
    """Of this process, one time on average."""

    def __str__(self) -> str:
        warm = f"{self.median:7.3f} {self.worst:7.3f} {self.cpu:7.3f}"
        return f"{self.rows:>9,} {self.cold:7.3f} {warm}"


def timed(ask: Callable[[], int], times: int = TIMES) -> Took:
    began = time.monotonic()
    rows = ask()
    cold = time.monotonic() - began
    took, cpu = [], time.process_time()
    for _ in range(times):
        began = time.monotonic()
        assert ask() == rows
        took.append(time.monotonic() - began)
    spent = (time.process_time() - cpu) / times
    return Took(rows, cold, statistics.median(took), max(took), spent)


def forget(folder: Path) -> None:
    """Takes the log's files out of the system's memory, so that they are read from disk."""
    for path in (*folder.glob("*.duckdb"), *folder.glob("events/*/*.parquet")):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def questions(folder: Path) -> dict[str, Took]:
    """Each on a log that was just opened."""
    found = {}
    with opened(folder) as log:
        asked = usual(log)
    for name, query in asked.items():
        forget(folder)
        with opened(folder) as log:
            found[name] = timed(lambda log=log, query=query: len(log.query(**query)))  # type: ignore[misc]
    forget(folder)
    with opened(folder) as log:
        day = {"since": at(0), "until": at(24)}
        found["count of a day"] = timed(lambda: int(log.count(**day).events), 3)
        found["count of a model's hour"] = timed(
            lambda: int(log.count(model_id="churn", since=at(HOURS / 2), until=at(HOURS / 2 + 1)).events), 5
        )
        with tempfile.TemporaryDirectory() as copies:

            def tail() -> int:
                return rows_of(fetch(log.stub, Path(copies)), "")

            found["all files, and ReadLive of the tail"] = timed(tail, 3)
            files = fetch(log.stub, Path(copies))
            grouped = "SELECT model_id, status, count(*) AS events FROM events GROUP BY ALL ORDER BY ALL"

            def sql() -> int:
                with Question(files, grouped, Limits(seconds=300)) as question:
                    return len(list(question.rows()))

            found["events sql, GROUP BY"] = timed(sql, 3)
    return found


def proof(folder: Path, model_id: str) -> tuple[int, float]:
    """Rows of a model that `events verify` proved in a second, and how many they were."""
    with tempfile.TemporaryDirectory() as copies:
        files = open_stopped(folder / "events.duckdb", Path(copies))
        rows, began = rows_of(files, model_id), time.process_time()
        [verified] = verify(files, model_id=model_id)
        assert not verified.findings, verified.findings
        return rows, rows / (time.process_time() - began)


class InProcess(Sealing):
    """Thousands of segments, and no process started for each."""

    def _inspect(self, path: Path, before: bytes) -> Finding:
        return inspect(path, before)


def many_small(folder: Path, segments: int) -> dict[str, Took]:
    """A log of at least so many segments, of one entry each."""
    database = EventDatabase(folder / "events.duckdb")
    try:
        for turn, _ in enumerate(committed(database, segments * 100, Filling())):
            if (turn + 1) * CALLS * KINDS[0].parts >= segments:
                break
        InProcess(database).seal(KINDS[0].model_id, most_rows=1)
    finally:
        database.close()
    found = {}
    with opened(folder) as log:
        found["listing them"] = timed(lambda: len(log.stub.ListSegments(v1.ListSegmentsRequest()).manifests), 3)
        asked = usual(log)
        for name in ("an id that nobody has", "a model's hour, newest 100", "the newest 100"):
            found[name] = timed(lambda name=name: len(log.query(**asked[name])), 3)  # type: ignore[misc]
        found["count of all"] = timed(lambda: int(log.count().events), 3)
    return found


def streamed(folder: Path, events: int) -> tuple[int, float, float]:
    """Events, how many of them a sink recorded in a second from a Redis full of them, and its CPU for one in µs."""
    server = RedisServer(folder / "redis")
    server.start()
    try:
        with contextlib.ExitStack() as stack:
            streams = {k.model_id: stack.enter_context(EventStream(server.url, "scale", k.model_id)) for k in KINDS}
            for stream in streams.values():
                stream.announce()
            appended = 0
            for some in entries(events, HOURS):
                for each in some:
                    stream = streams[each.model_id]
                    stream.append_fields(dict(each.fields), each.entry_id)
                    stream.number = each.number
                    appended += each.events
            for stream in streams.values():
                stream.client.hset(stream.counts, "completed", str(stream.number))
            began, cpu = time.monotonic(), time.process_time()
            with RunningSink(server.url, "scale", folder) as sink:
                while sum(stream.length for stream in streams.values()):
                    time.sleep(0.02)
                took, spent = time.monotonic() - began, time.process_time() - cpu
                assert sink.count() == appended
        return appended, appended / took, spent / appended * 1e6
    finally:
        server.stop()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path, help="where the log is kept, or stands already")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    parser.add_argument("--small", type=int, default=2000, help="segments of the log of small ones; 0: none")
    parser.add_argument("--streamed", type=int, default=300_000, help="events through Redis; 0: none")
    asked = parser.parse_args()
    set_up_log(Settings.read(log_level="error"), "scale")
    report: dict[str, Any] = {}
    with contextlib.ExitStack() as stack:
        temporary = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder = asked.folder or temporary / "log"
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "filling.json"
        if not kept.exists():
            kept.write_text(json.dumps(fill(folder, asked.events).told(), indent=1))
        report["filling"] = json.loads(kept.read_text())
        print(kept.read_text())
        print(f"{'question':<40} {'rows':>9} {'cold':>7} {'median':>7} {'worst':>7} {'CPU':>7}  seconds")
        report["questions"] = told(questions(folder))
        report["peak_rss"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        rows, rate = proof(folder, "basket")
        report["verify"] = {"rows": rows, "per_cpu_second": rate}
        print(f"events verify: {rows:,} rows, {rate:,.0f} for a second of CPU")
        if asked.small:
            small = temporary / "small"
            small.mkdir()
            print(f"{asked.small:,} segments of one entry each")
            report["small"] = told(many_small(small, asked.small))
        if asked.streamed:
            through = temporary / "streamed"
            through.mkdir()
            events, rate, cpu = streamed(through, asked.streamed)
            report["streamed"] = {"events": events, "per_second": rate, "cpu_us": cpu}
            print(f"from Redis: {events:,} events, {rate:,.0f} in a second, {cpu:.1f} µs of CPU for each")
        print(f"peak memory while it was asked: {report['peak_rss'] / 1e6:,.0f} MB")
        if asked.json:
            asked.json.write_text(json.dumps(report, indent=1))
    return 0


def told(found: Mapping[str, Took]) -> dict[str, Any]:
    """Prints them, and as JSON."""
    for name, took in found.items():
        print(f"{name:<40} {took}", flush=True)
    return {
        name: {"rows": t.rows, "cold": t.cold, "median": t.median, "worst": t.worst, "cpu": t.cpu}
        for name, t in found.items()
    }


if __name__ == "__main__":
    sys.exit(main())
