"""predict, submit, result, models, load and status against a real gRPC server, as somebody types them."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from typer.testing import CliRunner, Result

from contract.keys import Keys
from contract.presence import Presence
from millstream.cli import app
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.servers import ROOT
from tests.small_gateway import SmallGateway, sent_inputs

runner = CliRunner()


@pytest.fixture
def gateway() -> Iterator[SmallGateway]:
    with SmallGateway() as gateway:
        yield gateway


def _run(gateway: SmallGateway, *arguments: str, typed: str = "") -> Result:
    return runner.invoke(app, [*arguments, "--address", gateway.address], input=typed)


def _lines(result: Result) -> list[dict[str, object]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_values_on_the_command_line_are_typed_by_the_signature(gateway: SmallGateway) -> None:
    (answer,) = _lines(_run(gateway, "predict", "credit_risk", "0.6", "45", "--json"))
    assert answer["predictions"] == [{"total": 45.6}]
    assert answer["model_id"] == "credit_risk"
    assert answer["user_request_timestamp"] == "2023-11-14T22:13:20.123456+00:00"
    assert [type(value) for value in sent_inputs(gateway.seen[0])] == [float, int]


def test_a_negative_number_is_a_value_and_refused_by_the_model_alone(gateway: SmallGateway) -> None:
    result = _run(gateway, "predict", "credit_risk", "-0.5", "45")
    assert sent_inputs(gateway.seen[0]) == [-0.5, 45]
    assert result.exit_code == 3
    assert "debt_to_income_ratio" in result.stderr


def test_a_person_sees_a_table_on_stdout_and_the_rest_on_stderr(gateway: SmallGateway) -> None:
    result = _run(gateway, "predict", "credit_risk", "-f", "age_years=45", "-f", "debt_to_income_ratio=0.6")
    assert result.exit_code == 0
    assert "total" in result.stdout
    assert "45.6" in result.stdout
    assert "request made-by-gateway, answered in" in result.stderr
    quiet = _run(gateway, "predict", "credit_risk", "0.6", "45", "--quiet")
    assert quiet.stderr == ""


def test_features_are_fetched_by_entity(gateway: SmallGateway) -> None:
    (answer,) = _lines(_run(gateway, "predict", "churn", "--entity", "101", "--json"))
    assert answer["predictions"] == [{"total": 145.0}]


def test_all_violations_are_shown_each_on_its_line(gateway: SmallGateway) -> None:
    result = _run(gateway, "predict", "credit_risk", "-1", "3")
    assert result.exit_code == 3
    assert result.stdout == ""
    assert [line.split(":")[0].strip() for line in result.stderr.splitlines()] == [
        "refused, 2 things are wrong",
        "debt_to_income_ratio",
        "age_years",
    ]


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (["predict", "credit_risk", "high", "45"], 3),
        (["predict", "credit_risk", "0.6"], 3),
        (["predict", "reused", "1"], 3),
        (["predict", "unheard_of", "1"], 4),
        (["predict", "credit_risk", "0.6", "45", "--version", "9"], 4),
        (["result", "credit_risk", "never"], 4),
        (["predict", "busy", "1"], 5),
        (["predict", "away", "1"], 5),
        (["predict", "slow", "1", "--timeout", "0.3"], 6),
        (["result", "credit_risk", "pending"], 6),
        (["predict", "broken", "1"], 1),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_each_outcome_has_its_exit_code(gateway: SmallGateway, arguments: list[str], exit_code: int) -> None:
    result = _run(gateway, *arguments)
    assert result.exit_code == exit_code
    assert result.stdout == ""
    assert result.stderr.strip()
    assert "Traceback" not in result.stderr


def test_a_file_of_rows_is_answered_row_by_row(gateway: SmallGateway, tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text("age_years,id,debt_to_income_ratio\n20,a,0.5\n30,b,0.25\n")
    result = _run(gateway, "predict", "credit_risk", "--rows", str(path), "--json")
    assert [(line["row"], line["outputs"]) for line in _lines(result)] == [(1, {"total": 20.5}), (2, {"total": 30.25})]
    assert "columns that credit_risk does not take: id" in result.stderr
    table = _run(gateway, "predict", "credit_risk", "--rows", str(path))
    assert "30.25" in table.stdout


def test_a_refused_row_is_named_as_the_file_counts(gateway: SmallGateway, tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_text("age_years,debt_to_income_ratio\n20,0.5\n3,0.25\n")
    result = _run(gateway, "predict", "credit_risk", "--rows", str(path))
    assert result.exit_code == 3
    assert "row 2.age_years" in result.stderr


def test_submit_prints_the_id_and_result_reads_it(gateway: SmallGateway) -> None:
    submitted = _run(gateway, "submit", "credit_risk", "0.6", "45", "--request-id", "mine")
    assert submitted.stdout == "mine\n"
    assert "millstream result credit_risk mine" in submitted.stderr
    (answer,) = _lines(_run(gateway, "result", "credit_risk", "mine", "--wait", "1", "--json"))
    assert answer["predictions"] == [{"total": 45.6}]


def test_models_are_listed_and_one_is_shown(gateway: SmallGateway) -> None:
    assert [line["model_id"] for line in _lines(_run(gateway, "models", "--json"))] == [
        "churn",
        "credit_risk",
        "loan_approval",
    ]
    (model,) = _lines(_run(gateway, "models", "churn", "--json"))
    assert model["features"][1] == {  # type: ignore[index]
        "index": 1, "name": "clicks", "type": "int", "required": False, "nullable": False, "hydrated": True,
        "default": 0, "min": 0.0,
    }  # fmt: skip
    assert [each["engine"] for each in model["versions"]] == ["sums 1.0"]  # type: ignore[attr-defined]
    shown = _run(gateway, "models", "credit_risk")
    assert "an int from 18" in shown.stdout
    assert "sums 1.0" in shown.stdout
    assert "default_probability" not in shown.stdout
    assert _run(gateway, "models", "unheard_of").exit_code == 4


def test_predict_without_arguments_asks_and_asks_again(gateway: SmallGateway) -> None:
    typed = "\n".join(["nine", "credit_risk", "high", "-1", "", "0.6", "3", "45", ""])
    result = _run(gateway, "predict", "--json", typed=typed)
    (answer,) = _lines(result)
    assert answer["predictions"] == [{"total": 45.6}]
    assert "there is no 'nine'" in result.stderr
    assert "expected a finite number of at least 0" in result.stderr
    assert "debt_to_income_ratio has no default" in result.stderr
    assert "an int from 18" in result.stderr


def test_an_empty_answer_leaves_out_what_is_fetched_or_has_a_default(gateway: SmallGateway) -> None:
    (answer,) = _lines(_run(gateway, "predict", "churn", "--json", typed="101\n\n7\n"))
    assert answer["predictions"] == [{"total": 32.0}]
    (answer,) = _lines(_run(gateway, "predict", "churn", "--json", typed="\n30\n\n"))
    assert answer["predictions"] == [{"total": 30.0}]
    assert list(gateway.seen[1].features) == ["age"]


def test_an_input_that_ends_early_is_a_usage_error(gateway: SmallGateway) -> None:
    result = _run(gateway, "predict", typed="1\n")
    assert result.exit_code == 2
    assert "the input ended" in result.stderr


def test_the_conversation_works_on_a_terminal(gateway: SmallGateway) -> None:
    """A real terminal, since that is where a person sits: prompts and answers share one screen."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "millstream", "predict", "--address", gateway.address]
    child = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, close_fds=True)
    os.close(theirs)
    screen = b""

    def sees(text: bytes) -> bool:
        nonlocal screen
        if text not in screen and select.select([ours], [], [], 0.05)[0]:
            screen += os.read(ours, 4096)
        return text in screen

    try:
        for prompt, answer in (
            (b"Which model", b"2\n"),
            (b"debt_to_income_ratio (", b"0.6\n"),
            (b"age_years (", b"45\n"),
        ):
            eventually(lambda prompt=prompt: sees(prompt), 20)  # type: ignore[misc]
            os.write(ours, answer)
        eventually(lambda: sees(b"45.6"), 20)
        assert child.wait(20) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)


def test_load_reports_and_ends_with_1_where_requests_failed(gateway: SmallGateway) -> None:
    (report,) = _lines(_run(gateway, "load", "credit_risk", "--users", "3", "--requests", "12", "--json"))
    assert (report["requests"], report["answered"], report["errors"]) == (12, 12, {})
    failed = _run(gateway, "load", "busy", "--users", "1", "--requests", "2")
    assert failed.exit_code == 1
    assert "RESOURCE_EXHAUSTED" in failed.stdout


def test_load_asks_at_a_rate_for_models_by_their_shares(gateway: SmallGateway) -> None:
    words = ("load", "credit_risk=3", "loan_approval", "--rate", "400", "--seconds", "0.5", "--json")
    (report,) = _lines(_run(gateway, *words))
    assert report["models"] == ["credit_risk", "loan_approval"]
    assert report["offered_per_s"] == 2 * len(gateway.seen)
    asked = Counter(request.model_id for request in gateway.seen)
    assert asked["credit_risk"] > asked["loan_approval"] > 0


def test_load_sends_many_rows_in_a_request(gateway: SmallGateway) -> None:
    _run(gateway, "load", "loan_approval", "--users", "1", "--requests", "2", "--rows", "7")
    assert [request.rows.columns.rows for request in gateway.seen] == [7, 7]


@pytest.mark.parametrize("text", ["churn=", "churn=0", "churn=-1", "churn=many", "=2", "churn=inf"])
def test_load_says_how_a_share_is_written(gateway: SmallGateway, text: str) -> None:
    refused = _run(gateway, "load", text)
    assert refused.exit_code == 2
    assert "MODEL=SHARE" in refused.stderr


def test_status_of_a_gateway_alone_follows_its_health(gateway: SmallGateway) -> None:
    (seen,) = _lines(_run(gateway, "status", "--json"))
    assert seen["gateway"] == "SERVING"
    gateway.serve(serving=False)
    assert _run(gateway, "status").exit_code == 1


@pytest.mark.integration
def test_status_counts_what_waits(
    gateway: SmallGateway, redis_url: str, redis_client: redis.Redis, prefix: str
) -> None:
    keys = Keys(prefix)
    names = keys.model("churn")
    record = wire.ModelRecord(
        model_id="churn",
        versions=[wire.VersionRecord(version="1.0.0", digest=b"\xab" * 32, state=wire.LIVE)],
        routing=wire.Routing(production="1.0.0"),
    )
    sealed = wire.SignedRecord(record=record.SerializeToString()).SerializeToString()
    redis_client.hset(keys.catalog, "churn", sealed)
    for _ in range(3):
        redis_client.xadd(names.requests, {"pb": b"x"})
    redis_client.xgroup_create(names.requests, "workers", id="0")
    redis_client.xreadgroup("workers", "w", {names.requests: ">"}, count=2)
    redis_client.xadd(names.bulk, {"json": b"{}"})
    redis_client.xadd(names.dead, {"reason": "POISON"})
    redis_client.set(names.rows_requests, 30)
    redis_client.hset(names.count, mapping={"accepted": 9, "completed": 6})
    for command in Presence("worker", "host-1-a", loaded=frozenset({"ab" * 32}), rows_per_s={"churn": 50.0}).beat(keys):
        redis_client.execute_command(*command)  # type: ignore[no-untyped-call]
    arguments = ["status", "--redis-url", redis_url, "--prefix", prefix]
    (seen,) = _lines(_run(gateway, *arguments, "--json"))
    models: Any = seen["models"]
    assert 0 < models[0].pop("oldest_s")["requests"] < 60
    assert models == [
        {
            "model_id": "churn",
            "live": "1.0.0",
            "versions": {"1.0.0": "live"},
            "digests": {"1.0.0": "ab" * 32},
            "backlog": {"requests": 3, "bulk": 1},
            "held": {"requests": 2, "bulk": 0},
            "rows_waiting": {"requests": 30, "bulk": 0},
            "rows_per_s": 0.0,
            "capacity_rows_per_s": 50.0,
            "accepted": 9,
            "completed": 6,
            "duplicates": 0,
            "shadow": "",
            "copies": 0,
            "copies_dropped": 0,
            "dead": 1,
            "sink_behind": 0,
            "alarm": "",
        }
    ]
    table = _run(gateway, *arguments)
    assert "churn 1.0.0" in table.stdout
    assert table.exit_code == 0
