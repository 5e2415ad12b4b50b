"""Replay of what real workers answered: the same to the last bit, and where it is not, that is found and told."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import duckdb
import grpc
import joblib
import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingRegressor, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from consumers.audit.reading import open_stopped
from consumers.replay.calls import Call, Selection, read_calls
from consumers.replay.verdict import Outcome, Verdict, Why, compare
from consumers.replay.verify import Verifier
from consumers.replay.versions import Versions
from contract.settings import Settings
from contract.signature import Signature, Value
from millstream.stored_versions import in_store
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.event_entries import RunningSink
from tests.odd_models import RAISES
from tests.servers import ROOT, RedisServer
from tests.stage import ODD, GatewayProcess, Stage, ask

pytestmark = pytest.mark.integration

TORCH = find_spec("torch") is not None
"""It is in no lock file, being too large; all other formats are always replayed."""
WIDTH = 30
RNG = np.random.default_rng(7)
X = RNG.normal(size=(200, WIDTH)) * np.exp(RNG.normal(size=(1, WIDTH)))
Y = X @ RNG.normal(size=WIDTH)
LABELS = (Y > 0).astype(np.int64)
LINEAR, SHADOW = "linear", "1.1.0"
SEALED = ("forest", "nulls")
"""Models whose events are in Parquet files; all others' are in the database."""
LOOSE = "loose"
"""Its compiled form may answer other numbers, within a tolerance."""
PROBABILITIES = [{"name": "p", "call": "predict_proba"}, {"name": "label", "call": "predict"}]


def dumped(estimator: object) -> bytes:
    file = BytesIO()
    joblib.dump(estimator, file)
    return file.getvalue()


def onnx_file() -> bytes:
    to_onnx = import_module("skl2onnx").to_onnx
    content: bytes = to_onnx(LogisticRegression().fit(X, LABELS), X[:1].astype(np.float32)).SerializeToString()
    return content


def torch_file() -> bytes:
    torch: Any = import_module("torch")
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(WIDTH, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    file = BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(net.eval(), torch.zeros(1, WIDTH)), file)
    return file.getvalue()


def made() -> Iterator[tuple[str, str, str, bytes, Mapping[str, Any]]]:
    """Model, version, file, its content, and what its signature says beside."""
    out = {"outputs": [{"name": "out"}]}
    yield LINEAR, "1.0.0", "model.joblib", dumped(LinearRegression().fit(X, Y)), out
    yield LINEAR, SHADOW, "model.joblib", dumped(LinearRegression().fit(X[:150], Y[:150])), out
    forest = RandomForestClassifier(n_estimators=8, max_depth=4, random_state=1).fit(X, LABELS)
    yield "forest", "1.0.0", "model.pkl", dumped(forest), {"outputs": PROBABILITIES}
    yield LOOSE, "1.0.0", "model.pkl", dumped(forest), {"outputs": PROBABILITIES}
    yield "nulls", "1.0.0", "model.joblib", dumped(HistGradientBoostingRegressor(max_iter=5).fit(X, Y)), out
    skops: Any = import_module("skops.io")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, LABELS)
    yield "skops", "1.0.0", "model.skops", skops.dumps(pipeline), {"outputs": PROBABILITIES}
    xgboost: Any = import_module("xgboost")
    booster = xgboost.XGBClassifier(n_estimators=4, max_depth=3).fit(X, LABELS).get_booster()
    yield "boosted", "1.0.0", "model.ubj", bytes(booster.save_raw("ubj")), {"outputs": PROBABILITIES[:1]}
    lightgbm: Any = import_module("lightgbm")
    light = lightgbm.LGBMClassifier(n_estimators=4, verbose=-1).fit(X, LABELS)
    yield "light", "1.0.0", "model.joblib", dumped(light), {"outputs": PROBABILITIES}
    yield "onnx", "1.0.0", "model.onnx", onnx_file(), {"outputs": PROBABILITIES}
    if TORCH:
        yield "torch", "1.0.0", "model.pt", torch_file(), out


def write_versions(store: Path) -> None:
    for model_id, version, file, content, more in made():
        nullable = {"nullable": True} if model_id == "nulls" else {}
        signature = {
            "model_id": model_id,
            "version": version,
            "trained_date": "2026-01-31",
            "status": "production",
            "azure_location": "tests",
            "expected_features": [
                {"index": index, "name": f"f{index}", "type": "float", "example": 0.5, **nullable}
                for index in range(WIDTH)
            ],
            **more,
        }
        folder = store / model_id / version
        folder.mkdir(parents=True)
        (folder / file).write_bytes(content)
        (folder / "signature.json").write_text(json.dumps(signature))


def any_row(signature: Signature, rng: np.random.Generator) -> list[Value]:
    """A row that fits; some are null where they may be, and some are -0.0."""
    row: list[Value] = []
    for feature in signature.features:
        low, high = feature.usual
        if feature.nullable and rng.random() < 0.2:
            row.append(None)
        elif feature.categories:
            row.append(feature.categories[int(rng.integers(len(feature.categories)))])
        elif feature.type == "bool":
            row.append(bool(rng.random() < 0.5))
        elif feature.type == "int":
            row.append(int(rng.uniform(low, high)))
        elif feature.type == "float":
            row.append(-0.0 if low <= 0 <= high and rng.random() < 0.1 else float(rng.uniform(low, high)))
        else:
            row.append(feature.sample())
    return row


@dataclass
class Recording:
    """What was asked and answered, in a log whose sink is stopped, and where the versions are."""

    state: Path
    store: Path
    stage: Stage
    answered: int
    """Requests with an answer."""
    environment: Mapping[str, str] = field(default_factory=dict)

    def copied(self, folder: Path) -> Path:
        """A state directory of its own with the same log."""
        folder.mkdir(exist_ok=True)
        shutil.copy(self.state / "events.duckdb", folder / "events.duckdb")
        if (self.state / "events").is_dir():
            shutil.copytree(self.state / "events", folder / "events", dirs_exist_ok=True)
        return folder

    def command(self, *words: str, state: Path | None = None) -> list[str]:
        place = ["--state-dir", str(state or self.state)]
        return [sys.executable, "-m", "millstream", "replay", "verify", *words, *place]

    def verify(self, *words: str, state: Path | None = None) -> tuple[int, list[dict[str, Any]], str]:
        """Exit code, JSON lines and stderr of `replay verify` in a process of its own."""
        done = subprocess.run(
            self.command(*words, "--json", state=state),
            capture_output=True,
            text=True,
            timeout=120,
            env={**os.environ, **self.environment},
            check=False,
        )
        return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    @property
    def redis(self) -> tuple[str, str]:
        return "--redis-url", self.stage.url


@pytest.fixture(scope="module")
def recording(valkey: RedisServer, stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recording]:
    folder = tmp_path_factory.mktemp("replay")
    store = folder / "store"
    shutil.copytree(stock, store)
    shutil.rmtree(store / "credit_risk" / "1.1.0")
    write_versions(store)
    prefix = f"r{uuid.uuid4().hex[:12]}"
    with Stage(folder, valkey.url, prefix, max_waiting_rows=20_000) as stage:
        for signature in sorted(store.glob("*/*/signature.json")):
            stage.publish(signature.parent)
        stage.route(LINEAR, production="1.0.0", shadow=SHADOW)
        stage.publish_odd()
        stage.worker(compile_tolerance=f"{LOOSE}=1e-6")
        gateway = stage.gateway(*stage.records)
        shown = gateway.stub.GetModel(v1.GetModelRequest(model_id=LOOSE), timeout=5).versions[0].engine
        assert shown.endswith(" within 1e-06")
        signatures = [r.versions["1.0.0"].signature for model_id, r in stage.records.items() if model_id != ODD]
        answered = ask_all(stage, gateway, signatures)
        eventually(lambda: sum(e.status == wire.SHADOW for e in stage.events(LINEAR)) >= 30, within=20)
        ended = sum(stage.count(model_id).get("completed", 0) for model_id in stage.records)
        state = folder / "state"
        state.mkdir()
        with RunningSink(valkey.url, prefix, state) as sink:
            eventually(lambda: sink.count(model_id="") >= ended, within=20)
            for model_id in SEALED:
                sink.stub.Seal(v1.SealRequest(model_id=model_id), timeout=30)
        environment = {
            "PYTHONPATH": str(ROOT),
            "MILLSTREAM_PREFIX": prefix,
            "MILLSTREAM_REGISTRY_PUBLIC_KEY": str(stage.environment["registry_public_key"]),
        }
        assert [path.parent.name for path in sorted(state.glob("events/*/*.parquet"))] == list(SEALED)
        yield Recording(state, store, stage, answered, environment)


def ask_all(stage: Stage, gateway: GatewayProcess, signatures: Sequence[Signature]) -> int:
    """Many at once and many in one request, so that a worker makes batches of them; how many were answered."""
    rng = np.random.default_rng(3)
    answered = 0
    rows = {signature: [any_row(signature, rng) for _ in range(60)] for signature in signatures}
    for wave in range(3):
        waiting = []
        with stage.odd.closed():
            waiting.append(gateway.start_predict(ask(ODD, 1.0)))
            eventually(lambda: stage.odd.calls, within=20)  # the worker has it, and everything else waits behind it
            for signature, all_rows in rows.items():
                some = all_rows[wave * 20 : wave * 20 + 20]
                waiting += [gateway.start_predict(ask(signature.model_id, *row)) for row in some]
            eventually(lambda: all(stage.waiting(signature.model_id) == 20 for signature in signatures), within=20)
        assert {call.exception() for call in waiting} == {None}
        answered += len(waiting)
    for signature, all_rows in rows.items():
        gateway.predict(v1.PredictRequest(model_id=signature.model_id, rows=packed(signature, all_rows)))
    with pytest.raises(grpc.RpcError):
        gateway.predict(ask(ODD, RAISES))
    return answered + len(rows)


def packed(signature: Signature, rows: Sequence[Sequence[Value]]) -> v1.Rows:
    if signature.matrix:
        table = np.array([[np.nan if item is None else item for item in row] for row in rows], dtype="<f8")
        return v1.Rows(matrix=v1.Matrix(rows=len(rows), float64=table.tobytes()))
    columns = v1.Columns(rows=len(rows))
    kinds = {"float": "doubles", "int": "integers", "bool": "booleans", "string": "strings"}
    for feature in signature.features:
        getattr(columns.columns.add(), kinds[feature.type]).values.extend([row[feature.index] for row in rows])
    return v1.Rows(columns=columns)


def calls_of(recording: Recording, folder: Path, selection: Selection) -> list[Call]:
    with open_stopped(recording.state / "events.duckdb", folder).connect() as connection:
        return list(read_calls(connection, selection))


# ---------------------------------------------------------------- the same again


def test_every_model_and_format_answers_the_same_again_to_the_last_bit(recording: Recording) -> None:
    code, lines, _ = recording.verify(*recording.redis)
    assert [line for line in lines[:-1] if line["outcome"] != "REPRODUCED"] == []
    summary = lines[-1]["summary"]
    assert (code, summary["different"], summary["runtime_differs"], summary["not_reproducible"]) == (0, 0, 0, 0)
    copies = {(each["model"], each["version"]): each["reproduced"] for each in summary["by_version"]}
    assert copies.pop((LINEAR, SHADOW)) >= 30
    assert sum(copies.values()) == recording.answered
    assert summary["not_predicted"] == 1
    assert {model for model, _ in copies} == set(recording.stage.records)


def test_each_engine_that_answered_was_asked_again(recording: Recording, tmp_path: Path) -> None:
    engines = {call.engine.partition(" ")[0] for call in calls_of(recording, tmp_path, Selection())}
    expected = {"numpy", "treelite", "sklearn", "xgboost", "lightgbm", "onnxruntime"} | ({"torch"} if TORCH else set())
    assert engines >= expected
    loose = {call.engine for call in calls_of(recording, tmp_path, Selection(model_id=LOOSE))}
    assert {re.sub(r"[\d.]+ ", "", engine, count=1) for engine in loose} == {
        "onnxruntime (RandomForestClassifier) within 1e-06"
    }


@pytest.fixture
def one_thread() -> Iterator[None]:
    """BLAS as a worker has it, in this process, and as it was afterwards."""
    with threadpool_limits(limits=1):
        yield


def verified(recording: Recording, calls: Iterable[Call], store: Path | None = None) -> list[Verdict]:
    """Verdicts of this process, with the versions of a store that is vouched for."""
    stored = in_store(Settings.read(store_url=str(store or recording.store)), lambda _model, _digest: "")
    found: Any = recording.stage.redis.hgetall(recording.stage.keys.runtimes)
    verifier = Verifier(Versions(stored), {name.decode(): record for name, record in found.items()})
    return [verdict for call in calls for verdict in verifier.verify(call)]


@pytest.mark.usefixtures("one_thread")
def test_another_batch_size_alone_changes_the_last_bits_of_a_linear_model(recording: Recording, tmp_path: Path) -> None:
    calls = calls_of(recording, tmp_path, Selection(model_id=LINEAR, version="1.0.0"))
    shared = [call for call in calls if len(call.events) > 1]
    assert {verdict.outcome for verdict in verified(recording, shared)} == {Outcome.REPRODUCED}
    model = Versions(in_store(Settings.read(store_url=str(recording.store)), lambda _model, _digest: "")).load(
        LINEAR, "1.0.0", shared[0].digest
    )
    alone = [
        compare(event.outputs(), model.predict(event.inputs(), call.engine), 0)
        for call in shared
        for event in call.events
    ]
    changed = [each for each in alone if each.count]
    assert len(changed) > len(alone) / 20
    assert max(each.largest for each in changed) < 1e-9


@pytest.mark.usefixtures("one_thread")
def test_who_shared_a_call_is_read_with_an_event_that_alone_was_asked_for(recording: Recording, tmp_path: Path) -> None:
    calls = calls_of(recording, tmp_path, Selection(model_id=LINEAR, version="1.0.0"))
    largest = max(calls, key=lambda call: len(call.events))
    asked = largest.events[-1]
    for selection in (
        Selection(model_id=LINEAR, version="1.0.0", request_id=asked.request_id),
        Selection(model_id=LINEAR, version="1.0.0", since_us=asked.asked_us, until_us=asked.asked_us + 1),
    ):
        found = [
            call for call in calls_of(recording, tmp_path, selection) if asked.number in [e.number for e in call.wanted]
        ]
        assert [len(call.events) for call in found] == [len(largest.events)]
        verdicts = verified(recording, found)
        assert asked.number in [verdict.event.number for verdict in verdicts]
        assert {verdict.outcome for verdict in verdicts} == {Outcome.REPRODUCED}


# ---------------------------------------------------------------- not the same, or not to be had


def test_an_altered_answer_is_found_and_everything_that_is_missing_is_told_by_its_reason(
    recording: Recording, tmp_path: Path
) -> None:
    state = recording.copied(tmp_path / "state")
    calls = calls_of(recording, tmp_path, Selection(model_id=LINEAR, version="1.0.0"))
    first, second, elsewhere, *_ = [call for call in calls if len(call.events) > 2]
    altered, erased, unanswered = first.events[1], *second.events[:2]
    answer = altered.outputs()[0]["out"]
    assert isinstance(answer, float)
    told = float(np.nextafter(answer, np.inf))
    with duckdb.connect(str(state / "events.duckdb")) as database:
        change = "UPDATE events SET {} WHERE model_id = 'linear' AND {}".format
        database.execute(change("outputs = ?", "number = ?"), [json.dumps([{"out": told}]), altered.number])
        database.execute(
            change("inputs = NULL, outputs = NULL, erased_at = now(), erased_sha256 = 'x'", "number = ?"),
            [erased.number],
        )
        database.execute(change("outputs = NULL", "number = ?"), [unanswered.number])
        database.execute(change("runtime_id = 'of another machine'", "batch_id = ?"), [elsewhere.events[0].batch_id])
        record = json.dumps({**runtime_record(recording, elsewhere.runtime_id), "cpu": "8086", "numpy": "0.1"})
        database.execute("INSERT INTO runtimes VALUES ('of another machine', ?)", [record])
    # Redis has the record of no other machine; the log has.
    code, lines, _ = recording.verify(LINEAR, "--version", "1.0.0", *recording.redis, state=state)
    by_number = {line["number"]: line for line in lines[:-1]}
    summary = lines[-1]["summary"]
    assert code == 1
    assert by_number[altered.number]["outcome"] == "DIFFERENT"
    assert by_number[altered.number]["differences"] == [
        {"row": 0, "output": "out", "recorded": told, "computed": answer}
    ]
    assert (by_number[erased.number]["outcome"], by_number[erased.number]["why"]) == ("NOT_REPRODUCIBLE", "erased")
    assert by_number[unanswered.number]["why"] == "no answer was recorded"
    other = [by_number[event.number] for event in elsewhere.events]
    assert {line["outcome"] for line in other} == {"RUNTIME_DIFFERS"}
    assert [each.split(":")[0] for each in other[0]["runtime"]] == ["numpy", "cpu"]
    assert summary["equal_in_another_runtime"] == len(elsewhere.events)
    assert len(by_number) == len(elsewhere.events) + 3


def runtime_record(recording: Recording, runtime_id: str) -> dict[str, Any]:
    record: Any = recording.stage.redis.hget(recording.stage.keys.runtimes, runtime_id)
    content: dict[str, Any] = json.loads(record)
    return content


@pytest.mark.usefixtures("one_thread")
def test_a_call_of_which_some_rows_are_missing_is_tried_and_never_called_different(
    recording: Recording, tmp_path: Path
) -> None:
    calls = calls_of(recording, tmp_path, Selection(model_id=LINEAR, version="1.0.0"))
    shared = next(call for call in calls if len(call.events) > 2)
    without = Call(shared.events[1:], shared.rows)
    # Others' values do not change a row's, once they stand in its place.
    assert {verdict.outcome for verdict in verified(recording, [without])} == {Outcome.REPRODUCED}
    event = replace(shared.events[1], outputs_text='[{"out": 1.5}]')
    verdict, *_ = verified(recording, [Call((event, *shared.events[2:]), shared.rows)])
    assert (verdict.outcome, verdict.why) == (Outcome.NOT_REPRODUCIBLE, Why.INCOMPLETE)
    whole, *_ = verified(recording, [Call((shared.events[0], event, *shared.events[2:]), shared.rows)])[1:]
    assert (whole.outcome, whole.compared.differences[0].recorded) == (Outcome.DIFFERENT, 1.5)


def test_the_store_alone_is_enough_and_who_asks_is_told_to_trust_it(recording: Recording, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shutil.copytree(recording.store / LINEAR / "1.0.0", store / "elsewhere" / "1")
    code, lines, told = recording.verify(LINEAR, "--store", str(store))
    summary = lines[-1]["summary"]
    assert "no registry is there to ask" in told
    # Redis was not named: what predicted is on record in the log, if anywhere.
    assert code == 0
    assert summary["reasons"] == {"not reproducible: artifact gone": summary["not_reproducible"]}
    gone = {line["version"]: line["detail"] for line in lines[:-1] if line["why"] == "artifact gone"}
    assert gone.keys() == {SHADOW}
    assert gone[SHADOW].endswith(f"{store} holds no linear 1.1.0 any more")


# ---------------------------------------------------------------- the command


def test_nothing_to_replay_and_options_that_mean_nothing_are_said_plainly(recording: Recording) -> None:
    cases = {
        ("--since", "2020-01-01", "--until", "2020-01-02"): (4, "the event log has no events of what was asked for"),
        ("no_such_model",): (4, "the event log has nothing of a model 'no_such_model'"),
        ("--status", "GOOD"): (2, "--status: expected one of OK, FAILED"),
        ("--since", "1h", "--until", "2h"): (2, "--until: expected a time that is not before --since; got '2h'"),
    }
    for words, (expected, says) in cases.items():
        code, lines, told = recording.verify(*words)
        assert (code, lines) == (expected, [])
        assert says in told


def test_ctrl_c_gives_what_was_found_so_far(recording: Recording) -> None:
    odd = recording.stage.odd
    with odd.closed():
        run = subprocess.Popen(
            recording.command("--json", *recording.redis),
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **recording.environment},
        )
        try:
            eventually(lambda: odd.calls, within=30)
            run.send_signal(signal.SIGINT)
            out, _ = run.communicate(timeout=20)
        finally:
            run.kill()
    summary = json.loads(out.splitlines()[-1])["summary"]
    assert (run.returncode, summary["complete"]) == (130, False)
    assert 0 < summary["reproduced"] < recording.answered
