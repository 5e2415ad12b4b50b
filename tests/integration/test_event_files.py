"""The event log as files: from a sink that runs, and from its database while none does."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import grpc
import pytest

from consumers.audit.log_files import LogFiles, LogUnusable
from consumers.audit.reading import fetch, open_stopped
from consumers.sink.schema import COLUMNS
from protos import millstream_v1_pb2 as v1
from tests.conditions import eventually
from tests.event_entries import T0
from tests.filled_log import HOUR_US, Filled, filled
from tests.servers import RedisServer

pytestmark = pytest.mark.integration


@pytest.fixture
def own(redis_url: str, tmp_path: Path) -> Iterator[Filled]:
    """One that a test may change."""
    with filled(redis_url, tmp_path / "sink") as running:
        yield running


@pytest.fixture(scope="module")
def running(valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    """One that is read alone."""
    with filled(valkey.url, tmp_path_factory.mktemp("running")) as running:
        yield running


@pytest.fixture(scope="module")
def kept(valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, after the sink has stopped; tests work on copies of it."""
    folder = tmp_path_factory.mktemp("kept")
    with filled(valkey.url, folder):
        pass
    return folder


@pytest.fixture
def stopped(kept: Path, tmp_path: Path) -> Path:
    """A database of its own for each test."""
    shutil.copytree(kept, tmp_path / "stopped", ignore=shutil.ignore_patterns("*.sock"))
    return tmp_path / "stopped" / "events.duckdb"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "taken").mkdir()
    return tmp_path / "taken"


def numbers(files: LogFiles, model_id: str = "roi_prediction") -> list[int]:
    with files.connect() as connection:
        rows = connection.execute("SELECT number FROM events WHERE model_id = ? ORDER BY sequence", [model_id])
        return [number for (number,) in rows.fetchall()]


class Between:
    """A stub whose list of segments is asked for after something else has happened."""

    def __init__(self, stub: Any, act: Callable[[], object], folder: str | None = None) -> None:
        self._stub = stub
        self._act = act
        self._folder = folder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stub, name)

    def ListSegments(self, request: v1.ListSegmentsRequest) -> v1.ListSegmentsResponse:
        self._act()
        response: v1.ListSegmentsResponse = self._stub.ListSegments(request)
        if self._folder is not None:
            response.folder = self._folder
        return response


def test_a_running_sink_gives_every_row_once_sealed_or_not(running: Filled, folder: Path) -> None:
    files = fetch(running.sink.stub, folder)
    assert numbers(files) == list(range(1, 71))
    assert numbers(files, "churn") == list(range(1, 6))
    assert [each.path for each in files.segments] == running.segments, "where they stand, not copies"
    assert {each.model_id: each.number for each in files.positions} == {"roi_prediction": 70, "churn": 5}
    with files.connect() as connection:
        described = connection.execute("DESCRIBE events").fetchall()
    assert [(name, kind) for name, kind, *_ in described] == [
        (column.name, column.kind.replace("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE")) for column in COLUMNS
    ]
    assert [path.name for path in running.folder.glob(".*")] == [], "the sink keeps no copy"


def test_one_model_can_be_asked_for(running: Filled, folder: Path) -> None:
    files = fetch(running.sink.stub, folder, "churn")
    assert (numbers(files), numbers(files, "churn"), files.segments) == ([], [1, 2, 3, 4, 5], ())


def test_rows_that_are_sealed_while_they_are_read_are_there_once(own: Filled, folder: Path) -> None:
    stub = Between(own.sink.stub, lambda: own.sink.stub.Seal(v1.SealRequest()))
    files = fetch(stub, folder)
    assert len(files.segments) == 4
    assert numbers(files) == list(range(1, 71))
    assert numbers(files, "churn") == list(range(1, 6))


def test_segments_that_are_not_on_this_machine_are_downloaded_and_checked(own: Filled, folder: Path) -> None:
    came: dict[str, int] = {}
    altered, sound = own.segments
    content = bytearray(altered.read_bytes())
    content[len(content) // 2] ^= 1
    altered.write_bytes(content)

    def on_progress(name: str, size: int) -> None:
        came[name] = came.get(name, 0) + size

    stub = Between(own.sink.stub, lambda: None, folder=str(folder / "elsewhere"))
    files = fetch(stub, folder, on_progress=on_progress)
    assert [each.path.read_bytes() for each in files.segments] == [sound.read_bytes()]
    assert came[sound.name] == sound.stat().st_size
    assert numbers(files) == list(range(31, 71)), "the others are there"
    (skipped,) = files.skipped
    assert f"roi_prediction/{altered.name} (events 1 to 30) is left out: expected SHA-256" in str(skipped)


def test_times_leave_out_segments_without_such_requests(running: Filled, folder: Path) -> None:
    files = fetch(running.sink.stub, folder, since_us=T0 + HOUR_US, until_us=T0 + 2 * HOUR_US)
    assert [each.segment.first_number for each in files.segments] == [31]
    assert [each.first_number for each in files.outside] == [1]


def test_nothing_but_segments_can_be_read(running: Filled) -> None:
    for name in ("../events.duckdb", "/etc/passwd", "", "1-30.json", "../roi_prediction/1-30.parquet"):
        for model_id in ("roi_prediction", "", ".", "none"):
            with pytest.raises(grpc.RpcError) as raised:
                list(running.sink.stub.ReadSegment(v1.ReadSegmentRequest(model_id=model_id, file=name)))
            assert raised.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_reader_who_goes_away_leaves_nothing_behind(running: Filled) -> None:
    for _ in range(5):
        running.sink.stub.ReadLive(v1.ReadLiveRequest()).cancel()
    call = running.sink.stub.ReadLive(v1.ReadLiveRequest())
    next(call)
    call.cancel()
    assert eventually(lambda: not list(running.folder.glob(".*")), within=10)
    assert running.sink.count() == 75


def test_a_stopped_log_is_read_and_left_as_it_is(stopped: Path, folder: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in stopped.parent.rglob("*")}
    files = open_stopped(stopped, folder)
    assert numbers(files) == list(range(1, 71))
    assert numbers(files, "churn") == list(range(1, 6))
    assert {each.model_id: each.number for each in files.positions} == {"roi_prediction": 70, "churn": 5}
    assert before == {path: path.stat().st_mtime_ns for path in stopped.parent.rglob("*")}


def test_a_log_whose_sink_was_killed_is_read_with_its_last_rows(running: Filled, tmp_path: Path, folder: Path) -> None:
    """They stand in the log beside the file until a sink opens it again."""
    left = shutil.copytree(running.sink.database.parent, tmp_path / "left", ignore=shutil.ignore_patterns("*.sock"))
    assert (left / "events.duckdb.wal").exists()
    before = {path: path.stat().st_size for path in left.rglob("*")}
    assert numbers(open_stopped(left / "events.duckdb", folder)) == list(range(1, 71))
    assert before == {path: path.stat().st_size for path in left.rglob("*")}


def test_a_log_that_another_process_has_open_is_refused_in_plain_words(stopped: Path, folder: Path) -> None:
    program = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print('open', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program, str(stopped)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"open\n"
        with pytest.raises(LogUnusable, match="another process has it open; where that is a sink, name its address"):
            open_stopped(stopped, folder)
        holder.stdin.close()


def test_what_is_no_log_is_refused_in_plain_words(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(LogUnusable, match="there is no event log"):
        open_stopped(tmp_path / "none.duckdb", folder)
    (tmp_path / "text.duckdb").write_text("nothing of the kind" * 1000)
    with pytest.raises(LogUnusable, match="can't be read"):
        open_stopped(tmp_path / "text.duckdb", folder)


def test_a_log_of_an_earlier_version_has_empty_columns(tmp_path: Path, folder: Path) -> None:
    with duckdb.connect(str(tmp_path / "old.duckdb")) as old:
        old.execute("CREATE TABLE events (sequence BIGINT, model_id VARCHAR, number BIGINT, inputs JSON)")
        old.execute("INSERT INTO events VALUES (1, 'churn', 1, '[[1]]')")
        old.execute("CREATE TABLE positions (model_id VARCHAR, entry_id VARCHAR, number BIGINT)")
        old.execute("INSERT INTO positions VALUES ('churn', '5-0', 1)")
    files = open_stopped(tmp_path / "old.duckdb", folder)
    assert [(each.model_id, each.number, each.chain) for each in files.positions] == [("churn", 1, b"")]
    with files.connect() as connection:
        row = connection.execute("SELECT number, inputs, chain, replay FROM events").fetchall()
    assert row == [(1, "[[1]]", None, None)]


@pytest.mark.parametrize("damage", ["missing", "truncated", "no Parquet"])
def test_a_damaged_segment_is_left_out_by_its_name(stopped: Path, folder: Path, damage: str) -> None:
    path = stopped.parent / "events" / "roi_prediction" / "31-60.parquet"
    content = path.read_bytes()
    match damage:
        case "missing":
            path.unlink()
        case "truncated":
            path.write_bytes(content[:-100])
        case "no Parquet":
            path.write_bytes(b"x" * len(content))
    files = open_stopped(stopped, folder)
    assert numbers(files) == [*range(1, 31), *range(61, 71)]
    assert [each.segment.file for each in files.skipped] == ["31-60.parquet"]


def test_a_byte_that_changed_within_a_segment_is_found_by_reading_it(stopped: Path, folder: Path) -> None:
    path = stopped.parent / "events" / "roi_prediction" / "1-30.parquet"
    content = bytearray(path.read_bytes())
    content[40] ^= 0xFF
    path.write_bytes(content)
    files = open_stopped(stopped, folder).sound()
    assert [each.segment.file for each in files.segments] == ["31-60.parquet"]
    assert [each.segment.file for each in files.skipped] == ["1-30.parquet"]
    assert numbers(files) == list(range(31, 71))
