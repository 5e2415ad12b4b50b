"""What real workers answered, beside what another version answers: counted, drawn, and told so that one can decide."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import joblib
import numpy as np
import numpy.typing as npt
import pytest
from typer.testing import CliRunner, Result

from ingest.question import pack
from millstream.cli import app
from millstream.roles import THREAD_LIMITS
from protos import millstream_v1_pb2 as v1
from tests.conditions import eventually
from tests.event_entries import RunningSink
from tests.servers import RedisServer
from tests.stage import Stage, ask

pytestmark = pytest.mark.integration

runner = CliRunner()
RISK = "credit_risk"
FEATURES = ("debt_to_income_ratio", "age_years")
SINGLE, PACKED = 40, 600
RNG = np.random.default_rng(5)
ROWS = np.column_stack([RNG.gamma(2.0, 0.3, SINGLE + PACKED).round(3), RNG.integers(18, 91, SINGLE + PACKED)])
YOUNG = 21
TOLERANCE = 0.004
INTERRUPTED = 0.7771
"""An input on which a model of these tests presses Ctrl-C."""


class PressesCtrlC:
    """Answers the ratio; while one of the rows is INTERRUPTED, Ctrl-C comes."""

    def predict(self, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        if INTERRUPTED in rows[:, 0]:
            signal.raise_signal(signal.SIGINT)
        return rows[:, 0] / 10


@dataclass
class House:
    """A log that is being written, and the stock models' folder as the store."""

    sink: RunningSink
    stage: Stage
    store: Path

    def compare(self, *words: str) -> Result:
        place = ("--event-log", self.sink.address, "--store", str(self.store))
        return runner.invoke(app, ["replay", "compare", *words, *place])

    def found(self, *words: str) -> Mapping[str, Any]:
        result = self.compare(*words, "--json")
        assert result.exit_code == 0, result.stderr
        found: Mapping[str, Any] = json.loads(result.stdout)
        return found


@pytest.fixture(scope="module")
def house(valkey: RedisServer, stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("compare")
    with Stage(folder, valkey.url, f"c{uuid.uuid4().hex[:12]}") as stage:
        stage.publish(stock / RISK / "1.0.0")
        stage.worker()
        gateway = stage.gateway(*stage.records)
        waiting = [gateway.start_predict(ask(RISK, *row)) for row in ROWS[:SINGLE].tolist()]
        assert {call.exception() for call in waiting} == {None}
        for start in range(SINGLE, SINGLE + PACKED, 200):
            gateway.predict(v1.PredictRequest(model_id=RISK, rows=pack(ROWS[start : start + 200].tolist())))
        gateway.predict(ask(RISK, 0.6, 45, replay="not a real one"))
        stage.push(RISK, {"inputs": [0.6, 17], "request_id": "refused"})
        gateway.predict(ask(RISK, INTERRUPTED, YOUNG, request_id="last"))
        state = folder / "state"
        state.mkdir()
        with RunningSink(valkey.url, stage.keys.prefix, state) as sink:
            eventually(lambda: sink.count(replay="*") == SINGLE + PACKED // 200 + 3, within=20)
            yield House(sink, stage, stock)


@pytest.fixture(autouse=True)
def _threads_are_as_they_were(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The command sets these for itself, and writes its report where it stands."""
    for limit in THREAD_LIMITS:
        monkeypatch.setenv(limit, "1")
    monkeypatch.chdir(tmp_path)


def probabilities(store: Path, version: str) -> npt.NDArray[np.float64]:
    """By scikit-learn itself, of all that was asked for real."""
    folder = store / RISK / version
    rows = np.vstack([ROWS, [[INTERRUPTED, YOUNG]]])
    scaled = joblib.load(folder / "scaler.joblib").transform(rows)
    model = joblib.load(next(path for path in folder.glob("*.joblib") if path.name != "scaler.joblib"))
    answer: npt.NDArray[np.float64] = model.predict_proba(scaled)[:, 1]
    return answer


def drafted(folder: Path, store: Path, **changes: Any) -> Path:
    """The stock's 1.1.0 as 2.0.0 with another signature, published nowhere."""
    shutil.copytree(store / RISK / "1.1.0", folder)
    signature = json.loads((folder / "signature.json").read_text())
    signature |= {"version": "2.0.0", "golden": [], **changes}
    (folder / "signature.json").write_text(json.dumps(signature))
    return folder


def test_what_changes_is_counted_as_scikit_learn_itself_says(house: House) -> None:
    found = house.found(RISK, "1.1.0", "--tolerance", str(TOLERANCE), "--threshold", "0.3")
    then, now = probabilities(house.store, "1.0.0"), probabilities(house.store, "1.1.0")
    difference = now - then
    expected = {
        "requests": SINGLE + PACKED // 200 + 1,
        "answers": SINGLE + PACKED + 1,
        "changed": int((np.abs(difference) > TOLERANCE).sum()),
        "flips": int(((then >= 0.3) != (now >= 0.3)).sum()),
    }
    assert {name: found[name] for name in expected} == expected
    assert 0 < expected["changed"] < expected["answers"]
    assert expected["flips"] > 0
    [output] = found["outputs"]
    assert output["raised"] - output["lowered"] == int((now >= 0.3).sum()) - int((then >= 0.3).sum())
    assert output["difference"]["largest"] == pytest.approx(difference.max(), abs=1e-12)
    assert output["difference"]["mean"] == pytest.approx(difference.mean(), abs=1e-12)
    median = next(each for each in output["quantiles"] if each["part"] == 0.5)
    assert median["now"] == pytest.approx(np.quantile(now, 0.5, method="inverted_cdf"), rel=0.006)
    largest = found["largest_changes"][0]
    assert largest["largest_difference"] == pytest.approx(np.abs(difference).max(), abs=1e-12)
    at = int(np.abs(difference).argmax())
    assert [largest["inputs"][name] for name in FEATURES] == [*ROWS, [INTERRUPTED, YOUNG]][at].tolist()
    assert [sum(one["answers"] for one in each["slices"]) for each in found["features"]] == [expected["answers"]] * 2
    assert found["against"][0]["version"] == "1.0.0"
    assert found["left_out"]["requests"] == 0


def test_the_report_needs_nothing_else_and_its_command_makes_it_once_more(house: House, tmp_path: Path) -> None:
    made = house.compare(RISK, "1.1.0", "--tolerance", str(TOLERANCE))
    assert made.exit_code == 0, made.stderr
    text = (tmp_path / "compare-credit_risk-1.1.0.html").read_text()
    said = made.stdout.splitlines()[0]
    assert said in text
    assert re.findall(r"<script|<link|<img|@import|(?:src|href)=\"(?!#|data:)[^\"]*\"", text) == []
    assert text.count("<svg") == 3
    command = re.search(r"<pre>millstream (.*)</pre>", text)
    assert command is not None
    again = runner.invoke(app, [*shlex.split(command[1].replace("&#39;", "'")), "--json"])
    assert json.loads(again.stdout)["headline"][0] == said


def test_the_version_that_answered_gives_the_same_bits_and_counts_only_where_it_is_named(house: House) -> None:
    found = house.found(RISK, "1.0.0", "--against", "1.0.0")
    assert (found["answers"], found["changed_bits"]) == (SINGLE + PACKED + 1, 0)
    itself = house.compare(RISK, "1.0.0", "--json")
    assert itself.exit_code == 4
    reasons = json.loads(itself.stdout)["left_out"]["reasons"]
    assert reasons == {"it was answered by the candidate itself": SINGLE + PACKED // 200 + 1}


def test_a_version_is_found_by_its_name_in_redis_or_in_a_registry_that_is_stopped(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLSTREAM_PREFIX", house.stage.keys.prefix)
    monkeypatch.setenv("MILLSTREAM_REGISTRY_PUBLIC_KEY", str(house.stage.environment["registry_public_key"]))
    words = ["replay", "compare", RISK, "1.0.0", "--against", "1.0.0", "--json", "--event-log", house.sink.address]
    by_record = json.loads(runner.invoke(app, [*words, "--redis-url", house.stage.url]).stdout)
    digest = house.stage.records[RISK].versions["1.0.0"].digest.hex()
    with duckdb.connect(str(tmp_path / "registry.duckdb")) as registry:
        registry.execute("CREATE TABLE versions (model_id VARCHAR, version VARCHAR, digest VARCHAR)")
        registry.execute("INSERT INTO versions VALUES (?, ?, ?)", [RISK, "1.0.0", digest])
    stopped = ["--state-dir", str(tmp_path), "--store", str(house.store)]
    by_registry = json.loads(runner.invoke(app, [*words, *stopped]).stdout)
    where = ("the records in Redis", str(tmp_path / "registry.duckdb"))
    for found, place in zip((by_record, by_registry), where, strict=True):
        assert (found["candidate"]["digest"], found["candidate"]["from"]) == (digest, place)
        assert (found["answers"], found["changed_bits"]) == (SINGLE + PACKED + 1, 0)
    other = runner.invoke(app, [*words[:3], "1.1.0", *words[6:], *stopped])
    assert other.exit_code == 4  # the store has it, and the registry never recorded it


def test_a_folder_that_is_not_published_is_asked_by_the_names_of_its_features(house: House, tmp_path: Path) -> None:
    folder = drafted(tmp_path / "draft", house.store)
    signature = json.loads((folder / "signature.json").read_text())
    ratio, age = signature["expected_features"]
    age |= {"min": YOUNG + 1}
    (folder / "signature.json").write_text(json.dumps({**signature, "expected_features": [ratio, age]}))
    found = house.found(RISK, str(folder), "--limit", str(SINGLE))
    young = int((ROWS[:SINGLE, 1] <= YOUNG).sum())
    assert young > 0
    assert found["does_not_fit"]["requests"] == young
    [reason] = found["does_not_fit"]["reasons"]
    assert (reason["feature"], reason["why"]) == ("age_years", "expected an int from 22 to 120")
    assert found["answers"] == SINGLE - young
    # By name, whatever the order; what the log has not is the default.
    model = {"model_file": "model.joblib", "transforms": [], "outputs": [{"name": "default_probability"}]}
    features = [
        {"index": 0, "name": "bonus", "type": "float", "default": 0.25},
        {**age, "index": 1, "min": 18},
    ]
    other = drafted(tmp_path / "other", house.store, expected_features=features, **model)
    for file in other.glob("*.joblib"):
        file.unlink()
    joblib.dump(PressesCtrlC(), other / "model.joblib")
    answers = house.found(RISK, str(other), "--limit", "5")
    assert {each["now"]["default_probability"] for each in answers["largest_changes"]} == {0.025}
    assert answers["defaulted_features"] == {"bonus": 5}
    needs = [{**features[0], "type": "float"}, features[1]]
    del needs[0]["default"]
    refused = house.compare(RISK, str(drafted_again(other, needs)), "--json")
    assert refused.exit_code == 3
    assert json.loads(refused.stdout)["does_not_fit"]["reasons"][0]["why"] == "it was not recorded and has no default"


def drafted_again(folder: Path, features: list[dict[str, Any]]) -> Path:
    signature = json.loads((folder / "signature.json").read_text())
    (folder / "signature.json").write_text(json.dumps({**signature, "expected_features": features}))
    return folder


def test_how_it_ends_says_what_came_of_it(house: House, tmp_path: Path) -> None:
    few = ("--limit", "5", "--no-report", "--tolerance", "0")
    assert house.compare("nobody", "1.1.0", *few).exit_code == 4
    unknown = house.compare(RISK, "9.9.9", *few)
    assert (unknown.exit_code, "there is no version '9.9.9' of credit_risk" in unknown.stderr) == (4, True)
    assert house.compare(RISK, str(tmp_path / "nothing"), *few).exit_code == 4
    assert house.compare(RISK, str(house.store / "loan_approval" / "1.0.0"), *few).exit_code == 3
    assert house.compare(RISK, "1.1.0", *few, "--status", "FAILED").exit_code == 2
    assert house.compare(RISK, "1.1.0", "--report", str(tmp_path / "no" / "where.html")).exit_code == 2
    assert house.compare(RISK, "1.1.0", *few, "--fail-over", "100").exit_code == 0
    over = house.compare(RISK, "1.1.0", *few, "--fail-over", "99.9")
    assert (over.exit_code, "100 % of the answers change" in over.stderr) == (1, True)
    assert list(tmp_path.glob("*.html")) == []


def test_ctrl_c_ends_it_with_a_report_that_says_that_it_is_partial(house: House, tmp_path: Path) -> None:
    folder = drafted(tmp_path / "draft", house.store, transforms=[], outputs=[{"name": "default_probability"}])
    for file in folder.glob("*.joblib"):
        file.unlink()
    joblib.dump(PressesCtrlC(), folder / "model.joblib")
    eventually(lambda: house.sink.count(request_id="last") == 1)
    house.stage.push(RISK, {"inputs": [0.6, 45], "request_id": "after"})
    eventually(lambda: house.sink.count(request_id="after") == 1, within=20)
    ended = house.compare(RISK, str(folder), "--until", "2100-01-01")
    assert ended.exit_code == 130, ended.stderr
    text = (tmp_path / "compare-credit_risk-2.0.0.html").read_text()
    # The call in which it came is still counted whole, and none after it.
    requests = SINGLE + PACKED // 200 + 1
    said = f"This is partial: it was ended after {requests} of {requests + 1} requests."
    assert said in ended.stdout
    assert said in text
    assert "Partial: it was ended before all requests were looked at" in text
