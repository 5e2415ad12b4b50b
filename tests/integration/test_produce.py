"""`millstream produce`: a file through the bulk lane, once, whatever interrupts it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest
from typer.testing import CliRunner, Result

from contract.request import Native
from millstream.cli import app
from tests.conditions import eventually
from tests.odd_models import RAISES
from tests.servers import ROOT
from tests.stage import ODD, GatewayProcess, Stage, named, outputs

pytestmark = pytest.mark.integration

runner = CliRunner()
NOTE = ".millstream-progress"


@pytest.fixture
def idle(stage: Stage, stock: Path, tmp_path: Path) -> Iterator[Stage]:
    """A stage with the churn model and no worker: what is sent stays in the lane."""
    with Stage(tmp_path / "idle", stage.url, f"i{uuid.uuid4().hex[:12]}") as idle:
        idle.publish(stock / "churn" / "1.0.0")
        yield idle


def produce(stage: Stage, *arguments: object, **more: Any) -> Result:
    where = ["--redis-url", stage.url, "--prefix", stage.keys.prefix]
    return runner.invoke(app, ["produce", *map(str, arguments), *where], **more)


def in_lane(stage: Stage, model_id: str = "churn") -> list[dict[str, Any]]:
    entries: Any = stage.redis.xrange(stage.keys.model(model_id).bulk)
    return [json.loads(fields[b"json"]) for _, fields in entries]


def people(path: Path, rows: int, start: int = 0) -> Path:
    lines = [f"{20 + n % 80},{n}" for n in range(start, start + rows)]
    path.write_text("\n".join(["age,clicks", *lines]) + "\n")
    return path


def test_every_way_of_writing_a_file_gives_the_answers_of_the_gateway_in_its_order(
    stage: Stage, gateway: GatewayProcess, tmp_path: Path
) -> None:
    rows: list[dict[str, Native]] = [{"age": 30 + n, "clicks": n} for n in range(25)]
    expected = [outputs(gateway.predict(named("churn", row))) for row in rows]
    csv, jsonl, parquet = tmp_path / "a.csv", tmp_path / "a.jsonl", tmp_path / "a.parquet"
    csv.write_text("\ufeffclicks,age\n" + "".join(f"{row['clicks']},{row['age']}\n" for row in rows))
    jsonl.write_text("".join(json.dumps({"features": row}) + "\n" for row in rows))
    duckdb.connect().execute(f"COPY (SELECT * FROM '{csv}') TO '{parquet}' (FORMAT parquet)")
    for file in (csv, jsonl, parquet):
        out = tmp_path / f"{file.name}.out"
        done = produce(stage, "churn", file, "--results", out, "--json")
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout) == {
            "model_id": "churn", "requests": 25, "skipped": 0, "answered": 25, "failed": {}, "lost": 0,
        }  # fmt: skip
        answers = [json.loads(line) for line in out.read_text().splitlines()]
        assert [answer["predictions"] for answer in answers] == expected
        numbers = [answer["line"] for answer in answers]
        assert numbers == list(range(2, 27) if file is csv else range(1, 26))
    assert not list(tmp_path.glob(f"*{NOTE}"))


def test_the_signature_comes_from_the_gateway_where_there_is_one(
    stage: Stage, gateway: GatewayProcess, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("x\n5.5\n")
    done = produce(stage, ODD, file, "--address", gateway.address, "--wait")
    assert (done.exit_code, done.stdout) == (0, f"{ODD}: 1 requests sent\n1 answered, 0 failed\n")
    file.write_text("y\n5.5\n")
    assert produce(stage, ODD, file, "--address", gateway.address).exit_code == 3


def test_a_file_that_is_sent_again_is_predicted_and_recorded_once(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("x\n" + "".join(f"{1000 + n}\n" for n in range(40)))
    before, events = stage.count(ODD), len(stage.events(ODD))
    first, second = tmp_path / "first", tmp_path / "second"
    assert produce(stage, ODD, file, "--results", first).exit_code == 0
    assert produce(stage, ODD, file, "--results", second).exit_code == 0
    assert second.read_text() == first.read_text()
    stage.drained(ODD)
    after = stage.count(ODD)
    assert after["accepted"] - before.get("accepted", 0) == 40
    assert after["duplicates"] - before.get("duplicates", 0) == 40
    assert len(stage.events(ODD)) - events == 40


def test_what_fails_is_counted_by_its_reason_and_ends_with_1(stage: Stage, tmp_path: Path) -> None:
    file, out = tmp_path / "rows.jsonl", tmp_path / "out"
    mine = uuid.uuid4().hex
    lines = [
        {"inputs": [1.0], "request_id": mine},
        {"inputs": [2.0], "request_id": mine},
        {"inputs": [RAISES]},
        {"rows": [[1.0], [2.0]]},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = produce(stage, ODD, file, "--results", out, "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["failed"] == {"MODEL_FAILED": 1, "REQUEST_ID_REUSED": 1}
    first, reused, failed, both = (json.loads(line) for line in out.read_text().splitlines())
    assert (first["predictions"], both["predictions"]) == ([{"out": 2.0}], [{"out": 2.0}, {"out": 4.0}])
    assert (reused["error"]["reason"], failed["error"]["reason"]) == ("REQUEST_ID_REUSED", "MODEL_FAILED")


def test_replies_that_nobody_reads_are_not_kept_and_waiting_ends_all_the_same(stage: Stage, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("x\n" + "".join(f"{2000 + n}\n" for n in range(30)))
    done = produce(stage, ODD, file, "--discard-reply", "--wait", "--json")
    assert json.loads(done.stdout)["answered"] == 30
    assert produce(stage, ODD, file, "--discard-reply", "--results", tmp_path / "out").exit_code == 2
    seen = {event.entry.request_id for event in stage.events(ODD) if event.entry.discard_reply}
    seen = {request_id for request_id in seen if re.fullmatch(r"f[0-9a-f]{12}-[0-9]+", request_id)}
    assert len(seen) == 30
    assert stage.redis.exists(*(stage.keys.model(ODD).reply(request_id) for request_id in seen)) == 0


def test_bad_lines_among_the_first_are_all_named_and_nothing_is_sent(idle: Stage, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("age,clicks\n25,1\nold,2\n26,3\n-1,-2\n")
    done = produce(idle, "churn", file)
    assert done.exit_code == 3
    assert done.stderr.splitlines() == [
        f"{file}, line 3: age: expected an int from 0 to 130, got 'old'",
        f"{file}, line 5: age: expected an int from 0 to 130, got -1",
        f"{file}, line 5: clicks: expected an int of at least 0, got -2",
        "nothing was sent; correct the file, or leave such lines out with --skip-bad",
    ]
    assert in_lane(idle) == []
    done = produce(idle, "churn", file, "--skip-bad")
    assert (done.exit_code, done.stdout) == (0, "churn: 2 requests sent, 2 lines left out\n")
    assert f"{file}, line 5: age: expected" in done.stderr
    assert [body["features"]["age"] for body in in_lane(idle)] == [25, 26]


def test_a_bad_line_further_down_ends_the_run_there_and_the_next_one_goes_on(idle: Stage, tmp_path: Path) -> None:
    file = people(tmp_path / "rows.csv", 1200)
    with file.open("a") as more:
        more.write("old,1\n27,2\n")
    done = produce(idle, "churn", file, "--check", 100)
    assert done.exit_code == 3
    assert "line 1202: age" in done.stderr
    assert "lines up to 1,201 were sent" in done.stderr
    assert len(in_lane(idle)) == 1200
    again = produce(idle, "churn", file, "--resume", "--skip-bad", "--json")
    assert json.loads(again.stdout) == {"model_id": "churn", "requests": 1201, "skipped": 1}
    assert len(in_lane(idle)) == 1201
    assert not file.with_name(file.name + NOTE).exists()


def test_what_can_not_be_sent_at_all_is_said_plainly(idle: Stage, tmp_path: Path) -> None:
    file = people(tmp_path / "rows.csv", 1)
    for arguments, code, said in (
        (("nobody", file), 4, "no model 'nobody'"),
        (("churn", tmp_path / "absent.csv"), 3, "can't be read"),
        (("churn", file, "--results", tmp_path / "no" / "out"), 3, "can't be written"),
    ):
        done = produce(idle, *arguments)
        assert (done.exit_code, said in done.stderr) == (code, True), done.output
    (tmp_path / "rows.csv.millstream-progress").write_text("{}")
    done = produce(idle, "churn", file, "--resume")
    assert (done.exit_code, "remove it to start anew" in done.stderr) == (3, True)
    assert in_lane(idle) == []
    assert "nothing to resume" in produce(idle, "churn", people(tmp_path / "b.csv", 1), "--resume").stderr


class Interruptible:
    """The command in a process of its own, to be interrupted."""

    def __init__(self, stage: Stage, *arguments: object) -> None:
        where = ["--redis-url", stage.url, "--prefix", stage.keys.prefix]
        self.child = subprocess.Popen(
            [sys.executable, "-m", "millstream", "produce", *map(str, arguments), *where],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def interrupt(self) -> tuple[int, str]:
        """Ctrl-C; the exit code and what it said."""
        os.kill(self.child.pid, signal.SIGINT)
        _, said = self.child.communicate(timeout=20)
        return self.child.returncode, said


def test_ctrl_c_says_how_to_go_on_and_the_next_run_sends_what_is_left(idle: Stage, tmp_path: Path) -> None:
    file = people(tmp_path / "rows.csv", 3000)
    # The lane stays full, as no worker takes anything: the run stands still after the first batches.
    running = Interruptible(idle, "churn", file, "--max-waiting", 700)
    eventually(lambda: len(in_lane(idle)) == 1000, within=20)
    code, said = running.interrupt()
    assert code == 130
    assert f"interrupted after line 1,001; go on with: millstream produce churn {file} --resume" in said
    done = produce(idle, "churn", file, "--resume")
    assert f"{file}: going on after line 1,001" in done.stderr
    assert done.stdout == "churn: 3,000 requests sent\n"
    bodies = in_lane(idle)
    assert [body["features"]["clicks"] for body in bodies] == list(range(3000))
    assert len({body["request_id"] for body in bodies}) == 3000


def test_results_go_on_after_an_interruption_without_a_gap_or_a_double(stage: Stage, tmp_path: Path) -> None:
    file, out = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    file.write_text("x\n" + "".join(f"{3000 + n}\n" for n in range(900)))
    before = stage.count(ODD).get("duplicates", 0)
    with stage.odd.closed():
        running = Interruptible(stage, ODD, file, "--results", out)
        eventually(lambda: stage.waiting(ODD) > 0, within=20)
        code, _ = running.interrupt()
        assert code == 130
        with out.open("a") as torn:
            torn.write('{"line": 99')  # a line that was half written
    done = produce(stage, ODD, file, "--results", out, "--resume")
    assert done.exit_code == 0, done.output
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [answer["line"] for answer in answers] == list(range(2, 902))
    assert [answer["predictions"][0]["out"] for answer in answers] == [2.0 * (3000 + n) for n in range(900)]
    assert stage.count(ODD).get("duplicates", 0) == before, "nothing was sent twice"
