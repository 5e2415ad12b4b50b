"""`millstream events reconcile`: what Redis counted against what is in the log."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from copy import copy as copy_of
from pathlib import Path
from typing import Any

import anyio
import duckdb
import pytest
import redis
from typer.testing import CliRunner, Result

from consumers.audit.log_files import LogFiles
from consumers.audit.numbers import InLog, in_log
from consumers.audit.reconcile import Counts, reconcile
from consumers.audit.standing import Anchor, Missing, Recorded, Standing
from contract.completion import BULK
from millstream.cli import app
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.event_entries import DIGEST, EventStream, RunningSink, ok
from tests.filled_log import filled
from tests.lanes import BODY, ModelLanes, copy, finish, withdraw
from tests.registry_world import World
from tests.servers import RedisServer, free_port

pytestmark = pytest.mark.integration

HEAD = wire.Header(model_id="churn", version="1.0.0", digest=DIGEST, batch_id="b1", batch_rows=1)


def told(result: Result) -> list[dict[str, Any]]:
    """The JSON lines; a sink in this process writes its log between them."""
    return [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]


class Books:
    """A model whose requests go through the real scripts, and a sink that records what became of them."""

    def __init__(self, url: str, prefix: str, folder: Path, client: redis.Redis) -> None:
        self.url, self.prefix, self.folder = url, prefix, folder
        self.lanes = ModelLanes(client, prefix)
        with EventStream(url, prefix, "churn") as stream:
            stream.announce()

    def answer(self, *request_ids: str) -> None:
        """Each in an entry of the events stream of its own."""
        appended = self.lanes.append(*request_ids)
        self.lanes.read()
        for entry_id, request_id in zip(appended, request_ids, strict=True):
            self.lanes.leave(finish(entry_id, request_id), head=HEAD)

    def lose(self, entries: int) -> None:
        """Removes the oldest entries of the events stream, as somebody would who trims it."""
        oldest: Any = self.lanes.client.xrange(self.lanes.keys.events, count=entries)
        for entry_id, _ in oldest:
            self.lanes.client.xdel(self.lanes.keys.events, entry_id)

    def sink(self) -> RunningSink:
        return RunningSink(self.url, self.prefix, self.folder)

    def asked(self, *words: str) -> tuple[int, list[dict[str, Any]], str]:
        """Exit code, books and messages."""
        where = ["--redis-url", self.url, "--prefix", self.prefix, "--json", "--wait", "0.5"]
        result = CliRunner().invoke(app, ["events", "reconcile", *words, *where])
        return result.exit_code, told(result), result.stderr

    def stopped(self) -> tuple[int, dict[str, Any]]:
        code, books, said = self.asked("--state-dir", str(self.folder))
        assert len(books) == 1, said
        return code, books[0]

    def change(self, sql: str) -> None:
        """In the file, as somebody would who has it."""
        with duckdb.connect(str(self.folder / "events.duckdb")) as connection:
            connection.execute(sql)


@pytest.fixture
def books(redis_url: str, prefix: str, tmp_path: Path, redis_client: redis.Redis) -> Books:
    (tmp_path / "state").mkdir()
    return Books(redis_url, prefix, tmp_path / "state", redis_client)


@pytest.fixture(scope="module")
def kept(valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Books]:
    """Five requests that were answered and recorded; tests work on copies of the log, and put back what they count."""
    with valkey.client() as client:
        prefix, folder = f"k{uuid.uuid4().hex[:12]}", tmp_path_factory.mktemp("kept")
        yield recorded(Books(valkey.url, prefix, folder, client), "a", "b", "c", "d", "e")


@pytest.fixture
def five(kept: Books, tmp_path: Path) -> Books:
    books = copy_of(kept)
    books.folder = tmp_path
    shutil.copy(kept.folder / "events.duckdb", tmp_path)
    return books


def recorded(books: Books, *request_ids: str) -> Books:
    """Answered, in the log, and the sink has stopped."""
    books.answer(*request_ids)
    with books.sink() as sink:
        eventually(lambda: sink.count() == len(request_ids))
    return books


def test_books_of_every_kind_of_end_add_up(books: Books) -> None:
    lanes = books.lanes
    books.answer("a", "b", "c")
    [gone, *_] = lanes.append("withdrawn", "waits-1", "waits-2")
    lanes.leave(withdraw(gone, "withdrawn"), copy(b"1-1", "a"), head=HEAD)
    for request_id in ("bulk", "twice", "unread"):
        lanes.client.xadd(lanes.keys.bulk, {"json": request_id})
    bulk, twice = lanes.read(lane=BULK, count=2)
    lanes.claim((bulk, 1, BODY, "bulk"), (twice, 1, BODY, "bulk"))
    lanes.leave(finish(bulk, "bulk", lane=BULK), head=HEAD)
    with books.sink() as sink:
        eventually(lambda: sink.count() == 6)
        sink.stub.Seal(v1.SealRequest())
        books.answer("d")
        code, [book], said = books.asked("--event-log", sink.address)
    assert code == 0, said
    expected = {
        **{"accepted": 8, "completed": 7, "copies": 1, "duplicates": 1, "requests": 2, "bulk": 1, "reached": 7},
        **{"sealed": 6, "live": 1, "by_status": {"CANCELLED": 1, "OK": 5, "SHADOW": 1}, "holes": [], "problems": []},
        "adds_up": True,
    }
    assert book | expected == book


def test_what_the_sink_has_not_recorded_is_said_with_its_alarm(books: Books) -> None:
    """The events of a model whose stream was trimmed by somebody wait for a decision."""
    recorded(books, "a")
    books.answer("b", "c")
    books.lose(1)
    with books.sink() as sink:
        code, [book], _ = books.asked("--event-log", sink.address)
    assert code == 1
    [problem] = book["problems"]
    assert problem.startswith("2 events are not in the log: it has reached 1, Redis counts 3 completed; events 2 to 2")


def test_a_gap_that_was_accepted_explains_its_events_and_no_others(books: Books) -> None:
    recorded(books, "a", "b")
    books.answer("c", "d", "e", "f")
    books.lose(2)
    with RunningSink(books.url, books.prefix, books.folder, accept_gap=True) as sink:
        eventually(lambda: sink.count() == 4)
    code, book = books.stopped()
    assert (code, book["problems"]) == (0, [])
    [hole] = book["explained"]
    assert (hole["first"], hole["last"]) == (3, 4)
    assert hole["why"].endswith("accepted")
    books.change("DELETE FROM events WHERE number = 5")
    code, book = books.stopped()
    assert (code, book["problems"]) == (1, ["event 5: missing, and nothing says why"])


@pytest.mark.parametrize(
    ("sql", "problems"),
    [
        ("DELETE FROM events WHERE number = 3", ["event 3: missing, and nothing says why"]),
        ("DELETE FROM events WHERE number IN (1, 2, 5)", ["events 1 to 2", "event 5: missing, and nothing says why"]),
        (
            "INSERT INTO events SELECT * REPLACE (6 AS sequence) FROM events WHERE number = 5",
            ["event 5: after event 5"],
        ),
        ("UPDATE events SET number = 9 WHERE number = 3", ["events 3 to 8", "event 4: after event 9"]),
        ("UPDATE positions SET number = 4", ["event 5: the log says of itself"]),
        ("UPDATE events SET status = 'SHADOW' WHERE number = 2", ["the log has 1 copies (SHADOW), Redis counts 0"]),
        ("UPDATE positions SET epoch = 'other'", ["the stream in Redis is another one"]),
    ],
)
def test_what_was_done_to_the_file_is_found(five: Books, sql: str, problems: list[str]) -> None:
    assert five.stopped()[0] == 0
    five.change(sql)
    code, book = five.stopped()
    assert code == 1
    assert [problem[: len(start)] for problem, start in zip(book["problems"], problems, strict=True)] == problems


@pytest.mark.parametrize(
    ("counter", "change", "problem"),
    [
        ("completed", 2, "2 events are not in the log: it has reached 5, Redis counts 7 completed"),
        ("completed", -1, "the log has reached 5, Redis counts 4 completed"),
        ("accepted", 1, "accepted 6 + copies 0 - completed 5 = 1 should wait"),
        ("accepted", -1, "accepted 4 + copies 0 - completed 5 = -1 should wait"),
        ("copies", 1, "the log has 0 copies (SHADOW), Redis counts 1"),
    ],
)
def test_a_counter_that_was_changed_is_found(five: Books, counter: str, change: int, problem: str) -> None:
    five.lanes.client.hincrby(five.lanes.keys.count, counter, change)
    try:
        code, book = five.stopped()
    finally:
        five.lanes.client.hincrby(five.lanes.keys.count, counter, -change)
    assert code == 1
    assert [each for each in book["problems"] if each.startswith(problem)], book["problems"]


def test_a_segment_that_is_missing_is_named_with_its_events(redis_url: str, tmp_path: Path) -> None:
    with filled(redis_url, tmp_path / "state") as running:
        prefix = running.prefix
    (tmp_path / "state" / "events" / "roi_prediction" / "1-30.parquet").unlink()
    where = ["--redis-url", redis_url, "--prefix", prefix, "--state-dir", str(tmp_path / "state")]
    result = CliRunner().invoke(app, ["events", "reconcile", *where])
    assert result.exit_code == 1
    said = "the segment roi_prediction/1-30.parquet (events 1 to 30) is left out: its file is missing"
    assert f"roi_prediction: {said}" in result.stdout
    assert "nothing says why" not in result.stdout


@pytest.mark.anyio
async def test_a_version_that_no_registry_knows_is_found(world: World, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    books = Books(world.redis_url, world.keys.prefix, tmp_path / "log", world.client)
    recorded(books, "a")
    assert books.stopped()[1]["unchecked_versions"] == 1
    async with world.registry():
        where = ["--state-dir", str(books.folder), "--registry", world.address]
        code, [book], said = await anyio.to_thread.run_sync(books.asked, *where)
    assert (code, book["unknown_versions"]) == (1, [f"1.0.0 ({DIGEST.hex()})"]), said
    assert f"the registry does not know version 1.0.0 ({DIGEST.hex()})" in book["problems"]


@pytest.mark.parametrize(
    ("numbers", "gaps", "explained", "holes"),
    [
        # Redis lost events, and they came again: the log's own numbers go on, and explain nothing that is missing.
        ([1, 2, 3, 4, 5, 6], [("5-0", "5-1", 7, 4)], [], []),
        ([1, 2, 3, 4, 5, 7], [("5-0", "5-1", 7, 4)], [], ["6 to 6"]),
        ([1, 2, 3, 4, 5, 5, 6], [("5-0", "5-1", 7, 4)], [], ["5 to 5"]),
        # Redis was emptied, and that was accepted.
        ([1, 2, 3, 4], [("3-0", "0-0", 3, 0)], [], []),
        ([1, 2, 4], [("3-0", "0-0", 3, 0)], [], ["3 to 3"]),
        # An entry that could not be read.
        ([1, 2, 5], [("2-0", "2-5", 2, 4)], ["3 to 4"], []),
        # One that the database refused.
        ([1, 2, 5], [("2-5", "2-5", 4, 4)], ["3 to 4"], []),
        # A gap elsewhere explains nothing here.
        ([1, 2, 5], [("7-0", "8-0", 2, 4)], [], ["3 to 4"]),
        # The log begins late.
        ([4, 5], [("0-0", "1-0", 1, 4)], ["1 to 3"], []),
        ([4, 5], [], [], ["1 to 3"]),
    ],
)
def test_a_gap_explains_what_it_is_about(
    tmp_path: Path, numbers: list[int], gaps: list[tuple[str, str, int, int]], explained: list[str], holes: list[str]
) -> None:
    live = written(tmp_path / "live.parquet", numbers)
    noted = tuple(Missing("churn", start, end, expected, found, 0, "why") for start, end, expected, found in gaps)
    at = Recorded("churn", f"{len(numbers)}-0", numbers[-1])
    log = in_log(LogFiles((), live, positions=(at,), standing=Standing(gaps=noted)), "churn")
    assert [f"{hole.first} to {hole.last}" for hole in log.holes] == holes
    assert [f"{hole.first} to {hole.last}" if hole.events else "" for hole in log.explained] == explained


@pytest.mark.parametrize(
    ("numbers", "holes"), [([4, 5, 6], []), ([5, 6], ["4 to 4"]), ([3, 4, 5, 6], []), ([], ["4 to 6"])]
)
def test_what_retention_removed_is_no_hole_and_explains_none(
    tmp_path: Path, numbers: list[int], holes: list[str]
) -> None:
    """Nor does a gap that lies before it."""
    standing = Standing(gaps=(Missing("churn", "0-0", "1-0", 1, 2, 0, "why"),), anchors=(Anchor("churn", 3, b"", 0),))
    live = written(tmp_path / "live.parquet", numbers)
    log = in_log(LogFiles((), live, positions=(Recorded("churn", "9-0", 6),), standing=standing), "churn")
    assert [f"{hole.first} to {hole.last}" for hole in log.holes] == holes
    assert (log.removed, log.whole) == (3, False)


def written(path: Path, numbers: list[int]) -> Path:
    """Rows with these running numbers, each in an entry of its own."""
    rows = ", ".join(f"({at}, 'churn', {number}, '{at}-0', 'OK')" for at, number in enumerate([*numbers, 0], 1))
    columns = "sequence, model_id, number, event_entry_id, status"
    duckdb.execute(f"COPY (SELECT * FROM (VALUES {rows}) AS t({columns}) WHERE number > 0) TO '{path}'")
    return path


def test_what_waits_may_be_accepted_at_its_first_read() -> None:
    """Bulk entries that nobody has read are in the lane, and in no counter yet."""
    log = InLog("churn", number=5, by_status={"OK": 5})
    counts = {"model_id": "churn", "completed": 5, "copies": 0, "duplicates": 0, "epoch": ""}
    for accepted, requests, bulk, adds_up in ((7, 2, 0, True), (7, 0, 4, True), (7, 1, 0, False), (7, 3, 9, False)):
        both = Counts(**counts, accepted=accepted, requests=requests, bulk=bulk)  # type: ignore[arg-type]
        assert reconcile(both, log, both, (), knows_all=True).adds_up is adds_up


def test_a_log_that_is_ahead_of_a_redis_that_lost_something_adds_up() -> None:
    both = Counts("churn", 5, 5, 0, 0, "", 0, 0)
    assert reconcile(both, InLog("churn", number=7, ahead=2), both, (), knows_all=True).problems == ()
    behind = reconcile(both, InLog("churn", number=6, ahead=2), both, (), knows_all=True)
    assert behind.problems == ("1 events are not in the log: it has reached 4, Redis counts 5 completed",)


def test_a_model_that_is_nowhere_and_a_redis_that_is_away_are_told_apart(books: Books) -> None:
    recorded(books, "a")
    code, found, said = books.asked("nope", "--state-dir", str(books.folder))
    assert (code, found, said) == (4, [], "neither the event log nor Redis has a model 'nope'\n")
    away = f"redis://127.0.0.1:{free_port()}"
    result = CliRunner().invoke(app, ["events", "reconcile", "--redis-url", away, "--state-dir", str(books.folder)])
    assert result.exit_code == 5
    assert "Traceback" not in result.stderr


def test_sealing_is_asked_for_and_told(books: Books) -> None:
    books.answer("a", "b")
    with books.sink() as sink:
        eventually(lambda: sink.count() == 2)

        def seal(*words: str) -> tuple[int, list[dict[str, Any]], str]:
            result = CliRunner().invoke(app, ["events", "seal", *words, "--event-log", sink.address, "--json"])
            return result.exit_code, told(result), result.stderr

        code, [segment], _ = seal("churn")
        assert (code, segment["file"], segment["rows"]) == (0, "1-2.parquet", 2)
        assert seal("churn") == (0, [], "there was nothing to seal\n")
        assert seal("nope") == (4, [], "the event log has nothing of a model 'nope'\n")


def test_replays_are_shown_when_they_are_asked_for(books: Books, redis_url: str, prefix: str) -> None:
    with EventStream(redis_url, prefix) as stream, books.sink() as sink:
        stream.announce()
        stream.append(ok("real"), ok("again", replay="friday"))
        eventually(lambda: sink.count(replay="*") == 2)

        def ids(*words: str) -> list[tuple[str, str]]:
            asked = ["events", "query", "--event-log", sink.address, "--json", "--oldest-first", *words]
            return sorted((each["request_id"], each["replay"]) for each in told(CliRunner().invoke(app, asked)))

        assert ids() == [("real", "")]
        assert ids("--replay", "friday") == [("again", "friday")]
        assert ids("--replay", "all") == [("again", "friday"), ("real", "")]
