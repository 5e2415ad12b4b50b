"""Recorded requests as load: real gateway, worker and sink record them, and they are asked again from the log."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor
from typer.testing import CliRunner, Result

from ingest.question import pack
from millstream.cli import app
from protos import millstream_v1_pb2 as v1
from tests.conditions import eventually
from tests.event_entries import RunningSink
from tests.servers import ROOT, RedisServer
from tests.stage import GatewayProcess, Stage, ask, failure

pytestmark = pytest.mark.integration

runner = CliRunner()
NULLS = "nulls"
AGE = "user:101:age"
FEATURES = [
    {"name": "x", "type": "float", "nullable": True, "example": 0.5},
    {"name": "n", "type": "int", "example": 3},
    {"name": "yes", "type": "bool", "example": True},
]
RNG = np.random.default_rng(1)
TABLE = np.column_stack([RNG.normal(size=200), RNG.integers(0, 9, 200), RNG.random(200) < 0.5])


@dataclass
class House:
    """Everything that runs, and how often it was asked for real."""

    stage: Stage
    gateway: GatewayProcess
    sink: RunningSink
    state: Path
    answered: int

    def load(self, *words: str) -> Result:
        place = ("--event-log", self.sink.address, "--state-dir", str(self.state))
        return runner.invoke(app, ["replay", "load", *words, "--to", self.gateway.address, *place])

    def recorded(self, events: int, **query: Any) -> list[v1.ModelEvent]:
        """The events of a query, once there are as many."""
        eventually(lambda: self.sink.count(**query) >= events, within=20)
        return self.sink.events(**query)


@pytest.fixture(scope="module")
def house(valkey: RedisServer, stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("load")
    with Stage(folder, valkey.url, f"l{uuid.uuid4().hex[:12]}") as stage:
        for model_id in ("credit_risk", "churn", "loan_approval"):
            stage.publish(stock / model_id / "1.0.0")
        stage.publish_model(NULLS, HistGradientBoostingRegressor(max_iter=5).fit(TABLE, TABLE[:, 1]), FEATURES)
        stage.worker()
        gateway = stage.gateway(*stage.records)
        stage.redis.set(AGE, "25")
        stage.redis.set(AGE.replace("age", "clicks"), "120")
        asked = [
            ask("credit_risk", 0.6, 45),
            ask("credit_risk", -0.0, 18, request_id="mine"),
            v1.PredictRequest(model_id="credit_risk", rows=pack([[0.1, 20], [-0.0, 120]])),
            v1.PredictRequest(model_id="churn", entity_id="101"),
            ask("loan_approval", 12000.0, "salaried", True),
            ask(NULLS, None, 3, True),
            ask(NULLS, -1.5, -4, False),
            v1.PredictRequest(model_id=NULLS, rows=pack([[None, 1, True], [2.5, 2, False]])),
        ]
        for request in asked:
            gateway.predict(request)
        stage.push("credit_risk", {"inputs": [0.25, 33], "request_id": "pushed"})
        stage.push("credit_risk", {"inputs": ["many", 33], "request_id": "refused"})
        state = folder / "state"
        state.mkdir()
        with RunningSink(valkey.url, stage.keys.prefix, state) as sink:
            eventually(lambda: sink.count() == len(asked) + 2, within=20)
            stage.redis.set(AGE, "99")  # what is stored today must not matter
            yield House(stage, gateway, sink, state, len(asked) + 1)


def _inputs(events: list[v1.ModelEvent]) -> list[tuple[str, str]]:
    return sorted((event.model_id, event.inputs_json) for event in events if event.status == "OK")


def _line(result: Result) -> Mapping[str, Any]:
    assert result.exit_code == 0, result.stderr
    found: Mapping[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize("over", ["grpc", "stream"])
def test_recorded_requests_are_asked_again_to_the_last_bit_and_stand_apart_from_real_ones(
    house: House, over: str
) -> None:
    real = house.sink.events()
    to = f"{house.stage.url},{house.gateway.address}" if over == "stream" else house.gateway.address
    words = ["--speed", "max", "--name", over, "--json", "--over", over, "--to", to]
    if over == "stream":
        words += ["--prefix", house.stage.keys.prefix]
    found = _line(runner.invoke(app, ["replay", "load", *words, "--event-log", house.sink.address]))
    assert found["replay"] == over
    answers = found["answers"]
    # How many share a predict call is another number each time, which alone can change last digits.
    assert answers["equal"] + answers["close"] == house.answered
    assert (answers["changed"], answers["not_answered_then"]) == (0, 0)
    assert (found["requests"], found["errors"]) == (house.answered, {})
    assert found["left_out"] == {"it was refused, so there are no inputs": 1}
    marked = house.recorded(house.answered, replay=over)
    assert _inputs(marked) == _inputs(real)
    assert {event.replay for event in marked} == {over}
    assert not {event.request_id for event in marked} & {event.request_id for event in real}
    assert {event.lane for event in marked} == {"bulk" if over == "stream" else "requests"}
    assert house.sink.events() == real
    assert house.sink.count() == len(real)


def test_it_comes_at_its_own_pace_many_times_as_fast_by_what_is_asked_for(house: House) -> None:
    done = house.load("credit_risk", "--speed", "1000", "--limit", "2", "--name", "few")
    assert done.exit_code == 0, done.stderr
    assert "replay few, 1000 times as fast as then" in done.stdout
    assert "answered as then" in done.stdout
    assert len(house.recorded(2, replay="few")) == 2


def test_what_is_stored_today_is_not_asked_for(house: House) -> None:
    _line(house.load("churn", "--entity", "101", "--speed", "max", "--name", "stored", "--json"))
    [event] = house.recorded(1, replay="stored")
    assert (event.inputs_json, event.origins_json, event.entity_id) == ("[[25.0,120.0]]", "", "101")


@pytest.mark.parametrize("name", ["*", "a\nb", "x" * 129])
def test_a_mark_that_nobody_could_ask_for_is_refused_in_both_lanes(house: House, name: str) -> None:
    before = house.sink.count()
    with pytest.raises(grpc.RpcError) as refused:
        house.gateway.predict(ask("credit_risk", 0.6, 45, replay=name))
    found = failure(refused.value)
    assert (found.code, list(found.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, ["replay"])
    entry = house.stage.push("credit_risk", {"inputs": [0.6, 45], "replay": name})
    assert house.stage.stored("credit_risk", entry).error.violations[0].field == "replay"
    [event] = house.recorded(1, replay="*", request_id=entry)
    assert (event.status, event.replay) == ("INVALID", name[:128])
    assert house.sink.count() == before


def test_what_there_is_not_is_said(house: House) -> None:
    assert house.load("nobody").exit_code == 4
    nothing = house.load("--until", "2020-01-01")
    assert (nothing.exit_code, "no requests of what was asked for" in nothing.stderr) == (4, True)


def test_another_versions_features_are_sent_by_name_and_with_pin_the_old_version_is_asked(house: House) -> None:
    stage = house.stage
    swapped = [FEATURES[1], FEATURES[0], FEATURES[2]]
    model = HistGradientBoostingRegressor(max_iter=5).fit(TABLE[:, [1, 0, 2]], TABLE[:, 1])
    stage.publish_model(NULLS, model, swapped, version="1.1.0")
    eventually(lambda: house.gateway.live(NULLS) == "1.1.0", within=20)
    now = _line(house.load(NULLS, "--speed", "max", "--name", "as-now", "--json"))
    assert now["left_out"] == {"it has many rows, and the version that is live takes other features": 1}
    events = house.recorded(2, replay="as-now")
    assert sorted((event.version, event.inputs_json) for event in events) == [
        ("1.1.0", "[[-4.0,-1.5,0.0]]"),
        ("1.1.0", "[[3.0,null,1.0]]"),
    ]
    then = _line(house.load(NULLS, "--speed", "max", "--name", "as-then", "--json", "--pin"))
    assert then["answers"] == {"equal": 3, "close": 0, "changed": 0, "not_answered_then": 0}
    assert {event.version for event in house.recorded(3, replay="as-then")} == {"1.0.0"}


def test_ctrl_c_ends_a_replay_with_the_report_so_far(house: House) -> None:
    words = ["replay", "load", "--speed", "0.0001", "--name", "slowly", "--json", "--to", house.gateway.address]
    child = subprocess.Popen(
        [sys.executable, "-m", "millstream", *words, "--event-log", house.sink.address],
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    house.recorded(1, replay="slowly")
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=20)
    found = json.loads(out)
    assert (child.returncode, found["stopped"], found["errors"]) == (130, True, {})
    assert found["answers"]["equal"] + found["answers"]["close"] == found["answered"] >= 1
