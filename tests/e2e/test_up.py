"""`millstream up` from its first start over faults of every child to its last, on one state directory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.answer import Answer, PredictionError
from ingest.producer import Producer
from millstream.local.allocator import library
from tests.conditions import eventually
from tests.e2e.front_door import FrontDoor, has_mimalloc, processes_of, run, until_gone
from tests.trial_models import runs

# The first signature that people write, with a comma left out after the version.
WITHOUT_A_COMMA = """{
  "model_id": "broken",
  "version": "1.0.0"
  "trained_date": "2023-10-25",
  "status": "production",
  "azure_location": "ai-models",
  "expected_features": [{"index": 0, "name": "debt_to_income_ratio", "type": "float"}]
}
"""
BACK_S = 30.0
"""Far above what it takes to start a child again, which is mostly the loading of libraries."""


@pytest.fixture(scope="module")
def store(stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stock models, and three versions that can't be served for three reasons."""
    folder = tmp_path_factory.mktemp("store")
    shutil.copytree(stock, folder, dirs_exist_ok=True)
    for name in ("broken", "lost", "garbage"):
        version = folder / name / "1.0.0"
        version.mkdir(parents=True)
        text = WITHOUT_A_COMMA if name == "broken" else WITHOUT_A_COMMA.replace('"1.0.0"', '"1.0.0",')
        (version / "signature.json").write_text(text.replace('"broken"', f'"{name}"'))
    shutil.copy(stock / "roi_prediction/1.0.0/model.production.joblib", folder / "broken/1.0.0")
    (folder / "garbage/1.0.0/model.production.joblib").write_bytes(b"this is no pickle")
    return folder


@pytest.fixture(scope="module")
def up(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontDoor]:
    """The tests of this file go on with it in order: each leaves it running."""
    with FrontDoor(tmp_path_factory.mktemp("up"), "--store", store, "--workers", "2") as up:
        yield up


def answered(up: FrontDoor, **more: str) -> Answer | None:
    """An answer of the gateway, or None where it has none yet."""
    try:
        with up.client(timeout=3.0) as client:
            return client.predict("credit_risk", [0.6, 45], **more)  # type: ignore[arg-type]
    except PredictionError:
        return None


def test_it_serves_what_can_be_served_and_says_what_can_not(up: FrontDoor) -> None:
    [serving] = up.lines("serving")
    assert f"millstream predict --state-dir {up.state}" in serving
    refused = [line for line in up.lines("registry") if "is not served" in line]
    assert len(refused) == 3
    assert "line 4, column 3" in next(line for line in refused if "broken" in line)
    found = {(row["model_id"], row["state"]): row["problem"] for row in up.rows("registry", "list")}
    live = {model_id for model_id, state in found if state == "live"}
    assert live == {"churn", "credit_risk", "loan_approval", "roi_prediction"}
    assert "signature.json: line 4, column 3: expected a comma" in found["broken", "refused"]
    assert "expected a model file" in found["lost", "refused"]
    assert "can't be loaded" in found["garbage", "refused"]


def test_every_command_finds_it_by_its_state_directory(up: FrontDoor) -> None:
    models = up.rows("models")
    assert {model["model_id"] for model in models} == {"churn", "credit_risk", "loan_approval", "roi_prediction"}
    [answer] = up.rows("predict", "credit_risk", "0.6", "45", "--request-id", "by-hand")
    assert answer["version"] == "1.0.0"
    [submitted] = up.rows("submit", "credit_risk", "0.6", "45")
    [later] = up.rows("result", "credit_risk", submitted["request_id"], "--wait", "20")
    assert later["predictions"] == answer["predictions"]
    eventually(lambda: up.events() == 2, within=20)
    [event] = up.rows("events", "query", "--request-id", "by-hand")
    assert event["outputs"] == answer["predictions"]
    done = up.cli("status")
    assert done.returncode == 0
    assert "SERVING" in done.stdout


@pytest.mark.skipif(library() is None, reason="mimalloc comes with the extra `fast`, on Linux")
def test_whatever_a_request_passes_through_has_the_faster_allocator(up: FrontDoor) -> None:
    assert len(up.lines("allocator")) == 1
    pids = {role: up.pid_of(role) for role in ("gateway", "worker", "sink", "registry")}
    found = {role: has_mimalloc(pid) for role, pid in {**pids, "redis": up.server_pid()}.items()}
    assert found == {"gateway": True, "worker": True, "sink": True, "redis": True, "registry": False}


def test_a_second_one_on_the_same_directory_is_refused_and_names_the_first(up: FrontDoor) -> None:
    pid = json.loads((up.state / "running.json").read_text())["pid"]
    assert pid == up.pid
    done = up.cli("up", "--listen", "127.0.0.1:0")
    assert done.returncode != 0
    assert f"in use by a running `millstream up` (pid {pid})" in done.stderr
    assert "training" not in done.stderr  # nothing was written into a directory of somebody else's
    assert "Traceback" not in done.stderr
    assert answered(up)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("child", "pid_of"),
    [
        ("worker-", lambda up: up.pid_of("worker")),
        ("gateway", lambda up: up.pid_of("gateway")),
        ("sink", lambda up: up.pid_of("sink")),
        ("registry", lambda up: up.pid_of("registry")),
        ("redis", FrontDoor.server_pid),
        ("redis", FrontDoor.keeper_pid),
    ],
    ids=["worker", "gateway", "sink", "registry", "redis", "keeper"],
)
def test_a_killed_child_is_replaced_and_everything_goes_on(
    up: FrontDoor, child: str, pid_of: Callable[[FrontDoor], int]
) -> None:
    address = up.addresses["gateway"]
    before = len([line for line in up.said.splitlines() if line.startswith(child) and "is in its place" in line])
    os.kill(pid_of(up), signal.SIGKILL)
    eventually(
        lambda: (
            len([line for line in up.said.splitlines() if line.startswith(child) and "is in its place" in line])
            > before
        ),
        within=BACK_S,
    )
    request_id = f"after-{uuid.uuid4().hex}"
    eventually(lambda: answered(up, request_id=request_id), within=BACK_S)
    assert up.addresses["gateway"] == address  # callers go on with the address they know
    [event] = eventually(lambda: _queried(up, request_id), within=BACK_S)
    assert event["status"] == "OK"
    assert up.cli("registry", "list").returncode == 0


def _queried(up: FrontDoor, request_id: str) -> list[dict[str, object]]:
    done = up.cli("events", "query", "--request-id", request_id, "--json")
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_new_version_takes_over_without_a_failed_request(up: FrontDoor, store: Path) -> None:
    stop = threading.Event()
    versions: list[str] = []
    failures: list[Exception] = []

    def ask() -> None:
        with up.client() as client:
            while not stop.is_set():
                try:
                    versions.append(client.predict("credit_risk", [0.6, 45]).version)
                except Exception as error:  # noqa: BLE001
                    failures.append(error)

    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        eventually(lambda: versions)
        _drop_in(store / "credit_risk/1.1.0", store / "credit_risk/2.0.0", "2.0.0")
        # It ends with 1, since the three others can't be served still.
        synced = up.cli("registry", "sync", "--json")
        assert synced.returncode in (0, 1), synced.stderr
        try:
            eventually(lambda: versions[-1:] == ["2.0.0"], within=BACK_S)
        except AssertionError:
            listed = up.cli("registry", "list", "credit_risk").stdout
            pytest.fail(f"{len(versions)} answers, failed: {failures[:3]}\n{synced.stdout}{synced.stderr}\n{listed}")
    finally:
        stop.set()
        for caller in callers:
            caller.join()
    assert failures == []
    assert set(versions) == {"1.0.0", "2.0.0"}
    expected = versions.count("2.0.0")
    eventually(lambda: up.rows("events", "count", "--version", "2.0.0")[0]["events"] == expected, within=20)


def _drop_in(source: Path, target: Path, version: str) -> None:
    """A version folder as somebody copies it: artifacts first, then the signature."""
    target.mkdir()
    for path in source.iterdir():
        if path.name != "signature.json":
            shutil.copy(path, target / path.name.replace("model.joblib", "model.production.joblib"))
    signature = json.loads((source / "signature.json").read_text())
    (target / "signature.json").write_text(json.dumps({**signature, "version": version, "status": "production"}))


def test_a_version_that_ends_who_loads_it_never_comes_to_a_worker(up: FrontDoor, store: Path) -> None:
    """Its trial takes the blow: the old version answers, by the same workers, and the next best is tried."""
    before, live = set(processes_of(up.state)), answered(up)
    for version, crash in (("3.0.0", "os._exit(7)"), ("4.0.0", "__import__('ctypes').string_at(0)")):
        _drop_in(store / "credit_risk/1.1.0", store / "credit_risk" / version, version)
        (store / "credit_risk" / version / "model.production.joblib").write_bytes(runs(f"import os; {crash}"))
    synced = up.cli("registry", "sync")
    exited = "it ended its process with exit code 7 while loading"
    segfault = "it ended by signal 11 (SIGSEGV) while loading"
    assert f"credit_risk 4.0.0: {segfault}" in synced.stdout + synced.stderr

    def refused() -> dict[str, str]:
        up.cli("registry", "sync")
        return {row["version"]: row["problem"] for row in up.rows("registry", "list") if row["state"] == "refused"}

    assert eventually(lambda: refused().get("3.0.0"), within=30) == exited
    assert refused()["4.0.0"] == segfault
    now = answered(up)
    assert live is not None
    assert now is not None
    assert (now.version, now.outputs) == (live.version, live.outputs)
    assert set(processes_of(up.state)) == before


def test_sigterm_drains_and_the_next_start_goes_on_where_it_stopped(up: FrontDoor) -> None:
    before = eventually(lambda: _settled(up), within=20)
    with Producer(up.addresses["redis"]) as producer:
        ids = producer.send_many("churn", ([20 + n % 50, n % 200] for n in range(10_000)))
    assert up.end(signal.SIGTERM) == 0
    assert "stopped" in up.said
    assert until_gone(up.state, within=5) < 5
    up.kill()
    up.start()
    assert answered(up)
    eventually(lambda: up.events() == before + len(ids) + 1, within=BACK_S)
    live = {row["model_id"]: row["version"] for row in up.rows("registry", "list") if row["state"] == "live"}
    assert live["credit_risk"] == "2.0.0"


def _settled(up: FrontDoor) -> int:
    """The number of events once every accepted request has its own, else 0."""
    models = up.rows("status")[0]["models"]
    events = up.events()
    return events if events == sum(model["accepted"] for model in models) else 0


@pytest.mark.faults
def test_a_killed_up_takes_all_with_it_and_another_takes_over_at_once(up: FrontDoor) -> None:
    before = eventually(lambda: _settled(up), within=20)
    assert len(processes_of(up.state)) >= 7
    up.kill()
    assert until_gone(up.state, within=10) < 10
    up.start()
    assert answered(up)
    eventually(lambda: up.events() == before + 1, within=BACK_S)


def test_sigint_ends_it_like_sigterm_and_leaves_nothing_behind(up: FrontDoor) -> None:
    assert up.end(signal.SIGINT) == 0
    assert "stopped" in up.said
    assert processes_of(up.state) == []
    assert not (up.state / "running.json").exists()
    assert [path.name for path in up.state.glob("*.sock")] == []
    done = run("predict", "credit_risk", "0.6", "45", "--state-dir", up.state)
    assert done.returncode == 5
    assert f"nothing is running in {up.state}" in done.stderr
    # What the supervisor did in detail is in a file, not between the lines for people.
    assert '"event": "child serves"' in (up.state / "logs/up.log").read_text()
    assert "child serves" not in up.log.read_text()
