"""The benchmark against servers that run: Millstream and the echo, with h2load where there is one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from loadgen.bench import process_tree
from loadgen.bench.__main__ import main
from loadgen.bench.generators import H2load
from loadgen.bench.models import BenchModel, fit
from loadgen.bench.peers import PEERS, Peer
from loadgen.bench.server import NotStarted, running
from tests.conditions import eventually
from tests.servers import ROOT

pytestmark = pytest.mark.integration

needs_h2load = pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed: nghttp2-client")
ECHO: Peer = next(peer for peer in PEERS if peer.name == "echo")


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> BenchModel:
    return fit(tmp_path_factory.mktemp("models"), "light")


@needs_h2load
@pytest.mark.e2e
def test_a_run_measures_millstream_beside_the_echo_and_finds_every_answer_recorded(tmp_path: Path) -> None:
    words = ["--peers", "millstream-grpcio,echo", "--models", "light", "--in-flight", "64"]
    assert main([*words, "--rounds", "1", "--seconds", "1", "--output", str(tmp_path), "--name", "small"]) == 0
    found = json.loads((tmp_path / "small/results.json").read_text())
    cells = {cell["peer"]: cell for cell in found["cells"]}
    assert set(cells) == {"millstream-grpcio", "echo"}
    assert [(cell["answered"] > 0, cell["errors"]) for cell in cells.values()] == [(True, 0)] * 2
    assert all(0 < cell["p50_ms"] <= cell["p99_ms"] for cell in cells.values())
    ours = cells["millstream-grpcio"]
    assert set(ours["cpu_us"]) == {"gateway", "worker", "redis", "sink", "registry", "up"}
    assert all(ours["cpu_us"][role] > 0 for role in ("gateway", "worker"))
    assert ours["redis_bytes"] > 0
    start = next(start for start in found["starts"] if start["peer"] == "millstream-grpcio")
    assert start["problem"] == ""
    assert start["recorded"] >= start["answered"] > 0
    assert "Millstream, grpcio engine" in (tmp_path / "small/README.md").read_text()
    assert "Millstream, grpcio engine" in (tmp_path / "small/light.svg").read_text()


@needs_h2load
def test_refusals_that_look_like_answers_to_h2load_are_found(light: BenchModel, tmp_path: Path) -> None:
    with running(ECHO, light, Path(sys.executable)) as server:
        nowhere = replace(server.question, path="/millstream.v1.Predictor/Nothing")
        refused = H2load().run(nowhere, server.address, 4, 0.3, tmp_path)
        answered = H2load().run(server.question, server.address, 4, 0.3, tmp_path)
        shortest = server.shortest_answer
    assert refused.answered > 0
    assert refused.silent_errors(shortest) == refused.answered
    assert answered.silent_errors(shortest) == 0


@needs_h2load
def test_a_run_that_is_told_to_stop_stops_its_server_too(tmp_path: Path) -> None:
    words = ["--peers", "echo", "--models", "light", "--in-flight", "4", "--seconds", "60", "--output", str(tmp_path)]
    said = tmp_path / "said"
    with said.open("wb") as console:
        # As a shell starts a job in the background: with SIGINT ignored.
        ignoring = "import os, signal, sys; signal.signal(2, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
        argv = [sys.executable, "-c", ignoring, sys.executable, "-m", "loadgen.bench", *words]
        run = subprocess.Popen(argv, stderr=console, cwd=ROOT)
    try:
        eventually(lambda: _commands(run.pid, b"h2load") and _commands(run.pid, b"loadgen.echo"), within=60)
        servers = _commands(run.pid, b"loadgen.echo")
        run.terminate()
        assert run.wait(30) == 130, said.read_text()
    finally:
        run.kill()
        run.wait()
    left = {standing.pid: standing.began for standing in process_tree.everybody()}
    assert not [server for server in servers if left.get(server.pid) == server.began]


def test_a_server_that_answers_wrong_is_not_measured_and_leaves_nothing_behind(light: BenchModel) -> None:
    wrong = replace(ECHO, question=lambda model: replace(ECHO.question(model), expected=2.0))
    with (
        pytest.raises(NotStarted, match=r"expected 2\.0, which the model answers, got"),
        running(wrong, light, Path(sys.executable)),
    ):
        pass
    assert not _commands(os.getpid(), b"loadgen.echo")


def test_a_server_that_ends_at_once_is_quoted(light: BenchModel) -> None:
    broken = replace(
        ECHO, launch=lambda place, model: replace(ECHO.launch(place, model), argv=("sh", "-c", "echo why"))
    )
    with pytest.raises(NotStarted, match="it ended with 0: why"), running(broken, light, Path(sys.executable)):
        pass


def _commands(root: int, word: bytes) -> list[process_tree.Standing]:
    """The processes below that one with the word in their command lines."""
    found = []
    for standing in process_tree.below(root, process_tree.everybody()):
        with suppress(OSError):  # It has ended meanwhile.
            if standing.pid != root and word in (process_tree.PROC / str(standing.pid) / "cmdline").read_bytes():
                found.append(standing)
    return found
