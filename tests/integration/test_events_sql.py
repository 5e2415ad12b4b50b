"""`millstream events sql`: one SELECT over the log, in a process that reaches nothing else."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from consumers.audit.log_files import LogFiles
from consumers.audit.reading import open_stopped
from consumers.audit.sql import EXAMPLES, Limits, SqlFailed, SqlRefused
from consumers.audit.sql import ask as ask_log
from millstream.cli import app
from tests.conditions import eventually
from tests.filled_log import Filled, filled
from tests.servers import ROOT, RedisServer

pytestmark = pytest.mark.integration

Ask = Callable[..., Result]
NO_SOCKETS = shutil.ignore_patterns("*.sock")
ENDLESS = "WITH RECURSIVE t AS (SELECT 1 AS a UNION ALL SELECT a FROM t) SELECT count(*) FROM t"


@pytest.fixture(scope="module")
def running(valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filled]:
    with filled(valkey.url, tmp_path_factory.mktemp("running")) as running:
        yield running


@pytest.fixture(scope="module")
def kept(running: Filled, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state directory of a log that nobody writes."""
    folder = tmp_path_factory.mktemp("kept") / "state"
    return Path(shutil.copytree(running.sink.database.parent, folder, ignore=NO_SOCKETS))


@pytest.fixture(scope="module")
def state(kept: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, with a Parquet file that is none of its segments."""
    state = Path(shutil.copytree(kept, tmp_path_factory.mktemp("log") / "state", ignore=NO_SOCKETS))
    shutil.copy(state / "events" / "roi_prediction" / "1-30.parquet", state / "other.parquet")
    return state


@pytest.fixture(scope="module")
def log(state: Path, tmp_path_factory: pytest.TempPathFactory) -> LogFiles:
    """Its files."""
    return open_stopped(state / "events.duckdb", tmp_path_factory.mktemp("taken"))


@pytest.fixture
def ask(kept: Path) -> Ask:
    return lambda *words: CliRunner().invoke(app, ["events", "sql", *map(str, words), "--state-dir", str(kept)])


def rows(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_sealed_and_live_rows_are_one_table(ask: Ask) -> None:
    found = rows(ask("SELECT model_id, status, count(*) AS n FROM events GROUP BY ALL ORDER BY ALL", "--json"))
    assert found == [
        {"model_id": "churn", "status": "OK", "n": 5},
        {"model_id": "roi_prediction", "status": "FAILED", "n": 2},
        {"model_id": "roi_prediction", "status": "OK", "n": 68},
    ]


def test_values_are_told_as_they_are(ask: Ask) -> None:
    query = """
        SELECT inputs, user_request_timestamp AS at, body_sha256 AS hash, 0.1::DOUBLE AS x, 1.5 AS d, true AS b,
            'nan'::DOUBLE AS nan, {'a': [1]} AS s, 170141183460469231731687303715884105727 AS big,
            DATE '2026-01-31' AS day, 1 AS x
        FROM events WHERE number = 1 AND model_id = 'churn'"""
    [found] = rows(ask(query, "--json"))
    assert math.isnan(found.pop("nan"))
    assert found == {
        "inputs": [[0.6, 45.0]],
        "at": "2023-11-15T00:13:20.000000+00:00",
        "hash": None,
        "x": 0.1,
        "d": 1.5,
        "b": True,
        "s": {"a": [1]},
        "big": 2**127 - 1,
        "day": "2026-01-31",
        "x_2": 1,
    }


def test_csv_and_table_show_the_same(ask: Ask) -> None:
    query = "SELECT request_id, inputs, error_reason FROM events WHERE request_id IN ('r0-0', 'f0') ORDER BY ALL"
    found = list(csv.reader(io.StringIO(ask(query, "--csv").stdout)))
    assert found == [
        ["request_id", "inputs", "error_reason"],
        ["f0", "[[0.6,45.0]]", "MODEL_FAILED"],
        ["r0-0", "[[0.6,45.0]]", ""],
    ]
    table = ask(query)
    assert all(cell in table.stdout for cell in ("request_id", "f0", "[[0.6,45.0]]", "MODEL_FAILED"))
    assert "2 rows" in table.stderr


def test_most_rows_are_a_limit_that_is_told(ask: Ask) -> None:
    result = ask("FROM events", "--max-rows", 7, "--json")
    assert len(rows(result)) == 7
    assert "7 rows, and there are more" in result.stderr
    assert "more" not in ask("FROM events", "--max-rows", 75, "--json").stderr


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model", "churn"], 5),
        (["--since", "2023-11-14T23:00:00Z"], 45),
        (["--since", "2023-11-14T23:00:00Z", "--until", "2023-11-14T23:30:00Z"], 30),
        (["--since", "2023-11-14T23:00:00Z", "--until", "2023-11-14T23:00:00Z"], 0),
    ],
)
def test_a_model_and_times_say_what_is_read(ask: Ask, options: list[str], expected: int) -> None:
    assert rows(ask("SELECT count(*) AS n FROM events", "--json", *options)) == [{"n": expected}]


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("DELETE FROM events", "expected a SELECT, got DELETE"),
        ("WITH x AS (DELETE FROM gaps RETURNING 1) SELECT * FROM x", "data-modifying"),
        ("DROP VIEW events", "expected a SELECT, got DROP"),
        ("COPY (SELECT 1) TO '{segment}' (FORMAT parquet, USE_TMP_FILE false)", "expected a SELECT, got COPY"),
        ("SELECT * FROM query('COPY (SELECT 1) TO ''{folder}/stolen.csv''')", "single SELECT"),
        ("EXPLAIN ANALYZE SELECT 1", "expected a SELECT, got EXPLAIN"),
        ("ATTACH '{folder}/registry.duckdb'", "expected a SELECT, got ATTACH"),
        ("SELECT 1; DROP VIEW events", "expected one SELECT, got 2 statements"),
        ("-- nothing", "expected one SELECT, got no statements"),
        ("SELECT * FROM read_csv('/etc/passwd')", "only the log's tables can be read here"),
        ("SELECT * FROM read_blob('{database}')", "only the log's tables can be read here"),
        ("SELECT * FROM read_parquet('{folder}/other.parquet')", "only the log's tables can be read here"),
        ("SELECT * FROM '/etc/passwd'", "does not exist"),
        ("SELECT getenv('HOME')", "does not exist"),
        ("INSTALL httpfs", "expected a SELECT, got LOAD"),
        ("PRAGMA database_list", "expected a SELECT, got PRAGMA"),
        ("SET enable_external_access = true", "expected a SELECT, got SET"),
        ("CALL pragma_version()", "expected a SELECT, got CALL"),
        ("SELECT nope FROM events", '"nope" not found'),
        ("SELEC 1", "syntax error"),
        ("SELECT 'a'::INT", "Could not convert"),
        (") AS asked(c0); COPY (SELECT 1) TO '{folder}/stolen.csv'; SELECT * FROM (SELECT 1", "syntax error"),
    ],
)
def test_nothing_but_reading_the_log_is_answered(log: LogFiles, state: Path, query: str, said: str) -> None:
    segment = state / "events" / "roi_prediction" / "1-30.parquet"
    before = {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}
    asked = query.format(segment=segment, folder=state, database=state / "events.duckdb")
    with pytest.raises((SqlRefused, SqlFailed)) as raised:
        ask_log(log, asked, Limits(60))
    assert said in str(raised.value)
    assert before == {path: path.read_bytes() for path in state.rglob("*") if path.is_file()}


def test_what_is_refused_ends_with_code_three(ask: Ask) -> None:
    result = ask("DROP VIEW events", "--json")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == "expected a SELECT, got DROP: the log is read here, and nothing else\n"


@pytest.mark.parametrize(
    ("query", "code", "said"),
    [
        (ENDLESS, 6, "within 1 s"),
        ("SELECT hash(range) AS h FROM range(1000000000) ORDER BY h", 3, "more than 100 MB of memory"),
        ("SELECT string_agg(repeat('x', 1000000), '') AS s FROM range(100000)", 3, "more than 100 MB of memory"),
        ("SELECT sum(hash(a.range + b.range)) FROM range(10000000) a, range(10000000) b", 6, "within 1 s"),
    ],
)
def test_what_would_never_end_or_fit_is_cut(ask: Ask, query: str, code: int, said: str) -> None:
    result = ask(query, "--limit-seconds", 1 if code == 6 else 60, "--memory", "100MB")
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["SELECT 1", "--memory", "much"], 2, "--memory: expected a size such as 500MB or 2GB, got 'much'"),
        (["SELECT 1", "--memory", "1MB"], 2, "--memory: expected at least 64MiB"),
        (["SELECT 1", "--since", "soon"], 2, "--since: expected a time"),
        (["SELECT 1", "--since", "1h", "--until", "2h"], 2, "--until: expected a time that is not before --since"),
        (["SELECT 1", "--json", "--csv"], 2, "expected one of --json and --csv"),
        (["SELECT 1", "--model", "nope"], 4, "the event log has nothing of a model 'nope'"),
        (["SELECT 1", "--event-log", "127.0.0.1:1"], 5, "nothing answers"),
    ],
)
def test_what_is_asked_wrongly_is_said_plainly(ask: Ask, options: list[str], code: int, said: str) -> None:
    result = ask(*options)
    assert result.exit_code == code, result.stderr
    assert said in result.stderr


def test_where_there_is_no_log_it_says_so(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["events", "sql", "SELECT 1", "--state-dir", str(tmp_path)])
    assert result.exit_code == 5
    assert "nothing is running in" in result.stderr


def test_without_a_question_it_says_what_can_be_asked(ask: Ask) -> None:
    result = ask()
    assert result.exit_code == 0
    assert "user_request_timestamp" in result.stdout
    assert result.stderr.count("millstream events sql") == 3


def test_the_examples_are_answered(ask: Ask) -> None:
    answers = rows(ask(" UNION ALL BY NAME ".join(f"({example})" for example in EXAMPLES), "--json"))
    assert {each["events"] for each in answers} == {2, 5, 68, None}


def test_a_segment_that_was_altered_is_left_out_by_its_name(kept: Path, tmp_path: Path) -> None:
    """Where the change is found only while its rows are read."""
    state = Path(shutil.copytree(kept, tmp_path / "altered", ignore=NO_SOCKETS))
    path = state / "events" / "roi_prediction" / "1-30.parquet"
    content = bytearray(path.read_bytes())
    for at in range(4, len(content) // 4):
        content[at] ^= 0xFF
    path.write_bytes(content)
    query = "SELECT count(*) AS n, count(inputs) AS i, min(request_id) AS r FROM events WHERE model_id LIKE 'roi%'"
    result = CliRunner().invoke(app, ["events", "sql", query, "--json", "--state-dir", str(state)])
    assert rows(result) == [{"n": 40, "i": 40, "r": "f1"}]
    assert "roi_prediction/1-30.parquet (events 1 to 30) is left out: expected SHA-256" in result.stderr


def test_a_running_sink_is_asked(running: Filled) -> None:
    query = "SELECT count(*) AS n, max(number) AS last FROM events"
    result = CliRunner().invoke(app, ["events", "sql", query, "--json", "--event-log", running.sink.address])
    assert rows(result) == [{"n": 75, "last": 70}]


def test_an_interrupt_ends_the_query_too(kept: Path) -> None:
    command = [sys.executable, "-m", "millstream", "events", "sql", ENDLESS, "--state-dir", str(kept)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as asker:
        (child,) = eventually(lambda: children(asker.pid), within=20)
        asker.send_signal(signal.SIGINT)
        assert asker.wait(20) == 130
    assert eventually(lambda: ended(child))


def ended(pid: int) -> bool:
    """Whether it is gone, or would be if somebody had waited for it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return True


def children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def test_a_query_ends_with_the_one_who_asked() -> None:
    """Killed at once, it can't end its query; the kernel does."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux ends a child with its parent")
    program = (
        "import sys; from consumers.audit.log_files import LogFiles; from consumers.audit.sql import Limits, ask; "
        "ask(LogFiles((), None), sys.argv[1], Limits(60))"
    )
    with subprocess.Popen([sys.executable, "-c", program, ENDLESS], cwd=ROOT) as asker:
        (child,) = eventually(lambda: children(asker.pid), within=20)
        eventually(lambda: limited(child), within=20)
        asker.kill()
    assert eventually(lambda: ended(child))


def limited(pid: int) -> bool:
    """Whether it has confined itself."""
    return "Max file size             0" in Path(f"/proc/{pid}/limits").read_text()
