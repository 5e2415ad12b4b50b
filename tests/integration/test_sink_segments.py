"""Sealed segments: rows leave the database for files, are found there, and whatever happens each is there once."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import duckdb
import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from structlog.testing import capture_logs

import consumers.sink.upkeep
from consumers.audit.chain import BEGINNING
from consumers.audit.heads import KeepFailed
from consumers.audit.inspection import inspect
from consumers.audit.log_files import parquet
from consumers.audit.segment import Segment
from consumers.sink.database import Batch, EventDatabase
from consumers.sink.position import Position
from consumers.sink.rows import Link
from consumers.sink.sealing import Sealing, Unsound
from consumers.sink.service import EventLogServer
from consumers.sink.upkeep import Upkeep
from contract.settings import Settings
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.event_entries import T0, EventStream, RunningSink, failed, header, matrix, ok
from tests.segment_lives import STEPS
from tests.servers import ROOT

pytestmark = pytest.mark.integration

SECOND = 1_000_000
ALL = 1_000_000
"""More rows than any segment here has."""


class Log:
    """An event database without a stream: entries are committed as the sink commits them."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.path = folder / "events.duckdb"
        self.settings = Settings.read(**settings)
        self._entries = 0
        self._numbers: dict[str, int] = {}

    def __enter__(self) -> Self:
        self.database = EventDatabase(self.path)
        self.upkeep = Upkeep(self.settings, self.database)
        self.server = EventLogServer(self.database, dict, self.upkeep.seal)
        self._channel = grpc.insecure_channel(self.server.listen("127.0.0.1:0"))
        self.stub = v1_grpc.EventLogStub(self._channel)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self.server.stop()
        self.upkeep.stop()
        self.database.close()

    def link(self, *events: wire.Event, model_id: str = "roi_prediction", ms: int = 0) -> Link:
        """The next entry of a model."""
        self._entries += 1
        number = self._numbers[model_id] = self._numbers.get(model_id, 0) + len(events)
        batch = wire.EventBatch(header=header(model_id), events=events)
        fields = {b"n": str(number).encode(), b"pb": batch.SerializeToString(deterministic=True)}
        return Link.decode(model_id, f"{ms or T0 // 1000 + self._entries}-{self._entries}", fields)

    def commit(self, *links: Link) -> None:
        reached = {link.model_id: Position(link.entry_id, link.number, "e") for link in links}
        self.database.commit(Batch(links, (), reached))

    def record(self, *events: wire.Event, model_id: str = "roi_prediction", ms: int = 0) -> str:
        """One entry in a transaction of its own; its id."""
        link = self.link(*events, model_id=model_id, ms=ms)
        self.commit(link)
        return link.entry_id

    def fill(self, entries: int, model_id: str = "roi_prediction", events: int = 4) -> None:
        """So many entries, committed together."""
        first = self._numbers.get(model_id, 0)
        self.commit(
            *(
                self.link(
                    *(
                        ok(f"{model_id}-{first + entry * events + at}", at_us=at_us(first + entry * events + at))
                        for at in range(events)
                    ),
                    model_id=model_id,
                )
                for entry in range(entries)
            )
        )

    def seal(self, model_id: str = "", most_rows: int = ALL) -> list[Segment]:
        return self.upkeep.sealing.seal(model_id, most_rows=most_rows)

    def events(self, **query: Any) -> list[v1.ModelEvent]:
        return list(self.stub.Query(v1.EventQuery(**{"oldest_first": True, "limit": 100_000, **query}), timeout=30))

    def ids(self, **query: Any) -> list[str]:
        return [event.request_id for event in self.events(**query)]

    def count(self, **query: Any) -> v1.EventCount:
        counted: v1.EventCount = self.stub.Count(v1.EventQuery(**query), timeout=30)
        return counted

    def followed(self, limit: int, **query: Any) -> list[str]:
        asked = v1.EventQuery(since=Timestamp(seconds=1), limit=limit, **query)
        return [event.request_id for event in self.stub.Follow(asked, timeout=30)]

    def live(self) -> int:
        return int(self.one("SELECT count(*) FROM events"))

    def one(self, sql: str) -> Any:
        with self.database.cursor() as cursor:
            [(found,)] = cursor.execute(sql).fetchall()
        return found

    def path_of(self, segment: Segment) -> Path:
        return self.database.segments.path(segment)


def at_us(second: int) -> int:
    return T0 + second * SECOND


def at(second: int) -> Timestamp:
    time = Timestamp()
    time.FromMicroseconds(at_us(second))
    return time


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    with Log(tmp_path) as log:
        yield log


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are inspected in this process, which is quicker than to begin another."""
    monkeypatch.setattr(Sealing, "_inspect", lambda _sealing, path, before: inspect(path, before))


QUERIES: tuple[Mapping[str, Any], ...] = (
    {},
    {"oldest_first": False},
    {"limit": 3},
    {"limit": 3, "oldest_first": False},
    {"limit": 9, "oldest_first": False, "model_id": "churn"},
    {"model_id": "churn"},
    {"model_id": "none"},
    {"status": "FAILED"},
    {"entity_id": "101"},
    {"request_id": "roi_prediction-5"},
    {"since": at(3), "until": at(9)},
    {"since": at(3), "until": at(9), "oldest_first": False, "limit": 4},
    {"replay": "*"},
    {"replay": "r7"},
)


@pytest.mark.usefixtures("quick")
def test_answers_are_the_same_before_and_after_sealing(log: Log) -> None:
    log.fill(3)
    log.fill(2, "churn")
    log.record(failed("late", at_us=at_us(2)), ok("entity", at_us=at_us(4), entity_id="101"))
    log.record(ok("again", at_us=at_us(5), replay="r7"), ok("other", at_us=at_us(6), replay="r8"))
    log.record(ok("untimed", user_request_us=0), ok("entity", at_us=at_us(4), entity_id="101"), model_id="churn")
    requests = log.events(replay="*")
    asked = [event.entry_id for event in requests]

    def answers() -> list[Any]:
        return [
            [log.events(**query) for query in QUERIES],
            [log.count(**query) for query in QUERIES],
            log.followed(len(requests), replay="*"),
            log.followed(4, model_id="churn"),
            [log.database.recorded(model_id, asked) for model_id in ("churn", "roi_prediction")],
            [log.database.newest_ms(model_id) for model_id in ("churn", "roi_prediction", "none")],
        ]

    expected = answers()
    assert [event.replay for event in requests if event.replay] == ["r7", "r8"]
    assert len(requests) == len(log.events()) + 2
    for model_id, most_rows in (("roi_prediction", 8), ("churn", ALL), ("", ALL)):
        log.seal(model_id, most_rows)
        assert expected == answers()
    assert log.live() == 0
    log.fill(1)
    assert len(log.ids()) == len(log.followed(len(requests) + 2)) == len(expected[0][0]) + 4


def test_a_segment_ends_between_entries_and_its_manifest_says_what_it_holds(log: Log) -> None:
    log.fill(5)
    log.fill(1, "churn")
    first, second = log.seal("roi_prediction", 10)
    whole = (first.rows, first.first_number, first.last_number, second.rows, second.first_number, second.last_number)
    assert whole == (12, 1, 12, 8, 13, 20)
    assert (first.file, second.file) == ("1-12.parquet", "13-20.parquet")
    assert (first.first_request_us, second.last_request_us) == (at_us(0), at_us(19))
    assert first.chain_before == BEGINNING.hex()
    assert first.chain_after == second.chain_before
    assert bytes.fromhex(second.chain_after) == log.database.positions()["roi_prediction"].chain
    assert log.live() == 4
    for segment in (first, second):
        path = log.path_of(segment)
        assert path.with_suffix(".json").read_text() == segment.encode()
        assert path.stat().st_size == segment.size
    with duckdb.connect() as anybody:
        rows = anybody.execute(f"SELECT number FROM {parquet([log.path_of(first)])}").fetchall()
        bloom = anybody.execute(
            "SELECT count(*) FILTER (bloom_filter_offset IS NULL) FROM parquet_metadata(?) "
            "WHERE path_in_schema = 'request_id'",
            [str(log.path_of(first))],
        ).fetchone()
    assert [number for (number,) in rows] == list(range(1, 13))
    assert bloom == (0,)


@pytest.mark.usefixtures("quick")
def test_the_order_of_commit_goes_on_where_nothing_is_live(tmp_path: Path) -> None:
    with Log(tmp_path, event_retention_bytes=1) as log:
        log.fill(2)
        log.seal()
    with log:
        assert log.database.sequence == 8
        log.upkeep.look()
        assert log.ids() == []
    with log:
        assert log.database.sequence == 8
        log.fill(1)
        assert log.one("SELECT min(sequence) FROM events") == 9
        [segment] = log.seal()
        assert (segment.chain_before, segment.first_number) == (log.one("SELECT hex(chain) FROM anchors").lower(), 9)


def test_the_writer_commits_and_questions_are_answered_at_each_step_of_sealing(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.fill(50)
    log.fill(200, "churn")
    steps: list[str] = []

    def watched(name: str) -> Callable[..., Any]:
        act = getattr(Sealing, name)

        def step(*arguments: Any) -> Any:
            # As the writer does, in a thread that is not the one that seals.
            commit = threading.Thread(target=log.fill, args=(1, "beside"))
            commit.start()
            commit.join(20)
            assert not commit.is_alive()
            assert log.count(model_id="roi_prediction").events == 200
            steps.append(name)
            return act(*arguments)

        return step

    for name in ("_cut", "_write", "_check", "_place", "_list"):
        monkeypatch.setattr(Sealing, name, watched(name))
    reader = log.stub.Query(v1.EventQuery(limit=1000, model_id="churn"), timeout=60)
    next(reader)  # and this one is in the middle of its answer all the time
    log.seal("roi_prediction")
    assert steps == ["_cut", "_write", "_check", "_place", "_list"]
    assert log.count(model_id="beside").events == 20
    assert sum(1 for _ in reader) == 799


@pytest.mark.usefixtures("quick")
def test_the_file_does_not_grow_with_what_was_sealed(log: Log) -> None:
    chance = random.Random(3)
    sizes = []
    for turn in range(6):
        wide = [matrix([chance.random() for _ in range(100)]) for _ in range(1024)]
        log.record(*(ok(f"{turn}-{row}", matrix=each) for row, each in enumerate(wide)))
        log.seal()
        with log.database.cursor() as cursor:
            cursor.execute("CHECKPOINT")
        sizes.append(log.path.stat().st_size)
    # What is written in one turn is a megabyte and more, and what is gone makes room for it.
    assert sizes[-1] <= sizes[1] + 2**20
    assert log.count().events == 6 * 1024


# ---------------------------------------------------------------------- ends


def test_killed_at_each_step_every_row_is_live_or_sealed_and_never_both(tmp_path: Path) -> None:
    expected: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-m", "tests.segment_lives", str(tmp_path / "events.duckdb")],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as lives:
        assert lives.stdin is not None
        assert lives.stdout is not None
        log = Log(tmp_path)
        for step in STEPS:
            with log:
                log.fill(3)
                expected = log.ids()
                live = log.live()
            lives.stdin.write(f"{step}\n")
            lives.stdin.flush()
            assert lives.stdout.readline() == "-9\n", step
            with log:
                assert log.live() == (0 if step == "committed" else live), step
                assert log.ids() == expected
                log.upkeep.tidy()
                assert log.ids() == expected
                assert files(tmp_path) == listed(log), step
        with log:
            [segment] = log.seal() or log.database.segments.listed(log.database.cursor())
            assert segment.rows == 12 * len(STEPS)
            assert log.ids() == expected
    assert len(set(expected)) == len(expected) == 12 * len(STEPS)


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "events").glob("*/*")}


def listed(log: Log) -> set[str]:
    with log.database.cursor() as cursor:
        segments = log.database.segments.listed(cursor)
    return {name for segment in segments for name in (segment.file, segment.manifest)}


@pytest.mark.usefixtures("quick")
def test_a_segment_that_the_database_does_not_know_is_never_removed(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.fill(2)
        [segment] = log.seal()
    log.path.unlink()
    with Log(tmp_path) as anew, capture_logs() as logs:
        anew.upkeep.tidy()
        anew.record(*(ok(f"new{number}") for number in range(8)))
        anew.upkeep.tidy()
        [second] = anew.seal()
        assert files(tmp_path) == {segment.file, segment.manifest, second.file, second.manifest}
        assert anew.ids() == [f"new{number}" for number in range(8)]
    assert [entry["file"] for entry in logs if "left alone" in entry["event"]] == 2 * [str(log.path_of(segment))]


def test_a_sink_that_stops_ends_a_sealing_and_leaves_its_rows_live(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.fill(3)
    write = Sealing._write

    def stopping(sealing: Sealing, *arguments: Any) -> None:
        write(sealing, *arguments)
        sealing.cancel()

    monkeypatch.setattr(Sealing, "_write", stopping)
    with pytest.raises((Unsound, duckdb.Error)):
        log.seal()
    assert log.live() == 12
    assert files(log.path.parent) == set()


# ---------------------------------------------------------------------- damage


def missing(path: Path) -> None:
    path.unlink()


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def overwritten(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    path.write_bytes(content)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("damage", [missing, truncated, overwritten])
def test_a_damaged_segment_costs_its_own_rows_alone_and_is_named(log: Log, damage: Callable[[Path], None]) -> None:
    log.fill(4)
    segments = log.seal(most_rows=4)
    log.fill(1)
    whole = log.ids()
    entries = [event.entry_id for event in log.events()]
    path = log.path_of(segments[1])
    kept = path.read_bytes()
    damage(path)
    expected = whole[:4] + whole[8:]
    with capture_logs() as logs:
        assert log.ids() == expected
        assert log.ids(oldest_first=False) == expected[::-1]
        counted = log.count()
        assert log.followed(16) == expected
        recorded = log.database.recorded("roi_prediction", entries)
    assert (counted.events, counted.distinct_requests) == (16, 16)
    assert "roi_prediction/5-8.parquet can't be read, and its 4 events are missing" in counted.alarms["roi_prediction"]
    assert {request_id for _, _, request_id, _ in recorded} == set(expected)
    assert any("5-8.parquet" in entry.get("why", "") for entry in logs)
    path.write_bytes(kept)
    assert log.ids() == whole
    assert not log.count().alarms


def test_rows_whose_chain_does_not_hold_are_not_sealed_and_that_is_told(tmp_path: Path) -> None:
    with Log(tmp_path, segment_rows=4) as log:
        log.fill(1)
        log.fill(1, "churn")
        with log.database.cursor() as cursor:
            cursor.execute("UPDATE events SET outputs = '[{\"roi_pct\":9.0}]' WHERE request_id = 'roi_prediction-2'")
        with capture_logs():
            log.upkeep.look()
        assert log.upkeep.notes.keys() == {"roi_prediction"}
        assert "the chain does not hold" in log.upkeep.notes["roi_prediction"]
        assert log.live() == 4
        with pytest.raises(grpc.RpcError) as refused:
            log.stub.Seal(v1.SealRequest(), timeout=20)
        assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert [segment.model_id for segment in sealed(log)] == ["churn"]
        assert files(tmp_path) == listed(log)


# ---------------------------------------------------------------------- when, how long, where else


@pytest.mark.usefixtures("quick")
def test_a_model_is_sealed_when_its_events_are_old_enough_or_many_enough(tmp_path: Path) -> None:
    with Log(tmp_path, segment_seconds=3600, segment_rows=8) as log:
        old_ms, now_ms = (time.time_ns() // 1_000_000 - ago for ago in (3_601_000, 1000))
        log.record(ok("old"), model_id="old", ms=old_ms)
        log.record(ok("young"), model_id="young", ms=now_ms)
        for entry in range(5):
            log.record(*(ok(f"many{entry}{at}") for at in range(4)), model_id="many", ms=now_ms + entry)
        log.upkeep.look()
        assert [segment.file for segment in sealed(log)] == ["1-8.parquet", "9-16.parquet", "1-1.parquet"]
        assert (len(log.ids()), log.live()) == (22, 5)
        log.record(ok("older"), model_id="old", ms=old_ms + 1)
        log.upkeep.look()  # one that is caught up with waits for the next hour
        assert log.live() == 6
        assert len(log.stub.Seal(v1.SealRequest(model_id="old"), timeout=20).manifests) == 1
        assert log.live() == 5
        assert log.stub.Seal(v1.SealRequest(model_id="nobody"), timeout=20) == v1.SealResponse()


def sealed(log: Log) -> list[Segment]:
    with log.database.cursor() as cursor:
        return log.database.segments.listed(cursor)


@pytest.mark.usefixtures("quick")
def test_retention_removes_whole_segments_from_the_old_end_and_keeps_where_the_chain_was(tmp_path: Path) -> None:
    with Log(tmp_path) as log:
        log.fill(4)
        segments = log.seal(most_rows=4)
        log.fill(1)
        size = sum(segment.size for segment in segments[2:])
    with Log(tmp_path, event_retention_bytes=size) as log:
        log.upkeep.look()
        assert sealed(log) == segments[2:]
        assert [event.request_id for event in log.events()] == [f"roi_prediction-{number}" for number in range(8, 20)]
        assert log.one("SELECT number FROM anchors") == 8
        assert log.one("SELECT hex(chain) FROM anchors").lower() == segments[1].chain_after
        assert files(tmp_path) == listed(log)
    with Log(tmp_path, event_retention_days=1) as log:
        log.upkeep.look()  # what is live is not sealed, and stays whatever its age
        assert (sealed(log), log.live()) == ([], 4)


@pytest.mark.usefixtures("quick")
def test_a_segment_is_copied_elsewhere_and_stays_until_it_is(tmp_path: Path) -> None:
    away = True
    copies: dict[str, bytes] = {}

    def keep(name: str, content: bytes | Path) -> None:
        if away:
            raise KeepFailed("the store is away")
        assert isinstance(content, Path)
        copies[name] = content.read_bytes()

    with Log(tmp_path, event_retention_days=1) as log:
        log.upkeep = Upkeep(log.settings, log.database, keep)
        log.fill(1)
        [segment] = log.seal()
        content = log.path_of(segment).read_bytes()
        with contextlib.suppress(KeepFailed):
            log.upkeep.copy()
        log.upkeep.look()
        assert sealed(log) == [segment]
        away = False
        log.upkeep.copy()
        folder = "events/roi_prediction"
        assert copies == {f"{folder}/1-4.parquet": content, f"{folder}/1-4.json": segment.encode().encode()}
        copies.clear()
        log.upkeep.copy()
        assert copies == {}
        log.upkeep.look()
        assert sealed(log) == []


@pytest.mark.usefixtures("quick")
def test_a_segment_of_large_requests_takes_little_memory(log: Log) -> None:
    large = [matrix([float(at) for at in range(40_000)])]
    log.record(*(ok(f"large{number}", matrix=each) for number in range(300) for each in large))
    with log.database.cursor() as cursor:
        cursor.execute("SET memory_limit = '190MB'")  # all of them at once are more than that
        [segment] = log.seal()
        with pytest.raises(grpc.RpcError):
            log.ids(limit=300)
        cursor.execute("SET memory_limit = '1GB'")
    with duckdb.connect() as anybody:
        footer = "SELECT num_row_groups FROM parquet_file_metadata(?)"
        assert anybody.execute(footer, [str(log.path_of(segment))]).fetchone() != (1,)
    # Too little memory for an answer is no damage of the file.
    assert len(log.ids(limit=300)) == 300


@pytest.mark.usefixtures("quick")
def test_what_comes_again_after_it_was_sealed_is_not_recorded_again(
    redis_url: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server lost its last exits, and their events are in segments by then."""
    monkeypatch.setenv("MILLSTREAM_SEGMENT_SECONDS", "0.001")
    monkeypatch.setattr(consumers.sink.upkeep, "LOOK_S", 0.05)
    events = [ok(f"r{number}") for number in range(5)]
    with EventStream(redis_url, prefix) as stream, RunningSink(redis_url, prefix, tmp_path) as sink:
        stream.announce()
        for event in events:
            stream.append(event)

        def sealed_rows() -> int:
            manifests = sink.stub.ListSegments(v1.ListSegmentsRequest()).manifests
            return sum(Segment.decode(manifest).rows for manifest in manifests)

        eventually(lambda: sealed_rows() == 5, within=20)
        stream.number = 2
        stream.append(events[2], events[3])
        stream.append(events[4], ok("r5"))
        eventually(lambda: sealed_rows() == 6, within=20)
        assert [event.request_id for event in sink.events()] == [f"r{number}" for number in range(6)]
    with duckdb.connect(str(tmp_path / "events.duckdb"), read_only=True) as stopped:
        assert stopped.execute("SELECT count(*) FROM events").fetchone() == (0,)
        assert stopped.execute("SELECT count(*) FROM gaps").fetchone() == (1,)


def test_each_seal_is_told_once_it_is_listed(tmp_path: Path) -> None:
    """So that it is signed at once, asked for or due."""
    told: list[int] = []
    with Log(tmp_path, segment_rows=8) as log:
        upkeep = Upkeep(log.settings, log.database, on_sealed=lambda: told.append(len(listed(log))))
        log.fill(1)
        upkeep.seal("")
        upkeep.seal("")  # nothing is left
        log.fill(2)
        upkeep.look()
        upkeep.look()
    assert told == [2, 4]  # a file and its manifest each
