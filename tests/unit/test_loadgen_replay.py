"""The mark of a replay, recorded requests as load against a real gRPC server, and what a load run is made of."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from contract.errors import Reason, Refused
from contract.request import Request, value_of
from loadgen.asking import SUBMIT
from loadgen.closed_loop import closed_loop
from loadgen.open_loop import NOT_ASKED, open_loop
from loadgen.plot import NotDrawable, check_plot, write_plot
from loadgen.replay import MAX_SPEED, Recorded, ReplayReport, replay_calls, same_answer
from loadgen.report import Tally
from millstream.cli import app
from protos import millstream_v1_pb2 as v1
from tests.conditions import eventually, eventually_async
from tests.servers import ROOT
from tests.small_gateway import SmallGateway

runner = CliRunner()


@pytest.fixture
def gateway() -> Iterator[SmallGateway]:
    with SmallGateway() as gateway:
        yield gateway


def _run(gateway: SmallGateway, *arguments: str) -> Result:
    return runner.invoke(app, [*arguments, "--address", gateway.address])


def _recorded(at_s: float, total: float, *inputs: float, model_id: str = "credit_risk") -> Recorded:
    request = v1.PredictRequest(model_id=model_id, inputs=[value_of(item) for item in inputs], request_id="as-then")
    return Recorded(at_s, request, [{"total": total}])


async def _until(predicate: Callable[[], object]) -> None:
    async def asked() -> object:
        return predicate()

    await eventually_async(asked, within=20)


# ---------------------------------------------------------------- the mark


def test_the_mark_of_a_replay_comes_in_both_forms_and_goes_on_in_a_message() -> None:
    by_json = Request.from_json(b'{"inputs":[1],"replay":"before release"}', "m")
    message = v1.PredictRequest(model_id="m", inputs=[v1.Value(integer=1)], replay="before release")
    by_message = Request.from_bytes(message.SerializeToString())
    assert (by_json.replay, by_message.replay) == ("before release", "before release")
    assert by_message.to_message() == message
    assert by_json.check_ids() == []


@pytest.mark.parametrize("name", ["x" * 129, "a\nb", "\x00", "*"])
def test_a_mark_that_nobody_could_ask_for_is_refused_by_its_field(name: str) -> None:
    assert [each.field for each in Request("m", replay=name).check_ids()] == ["replay"]


def test_a_mark_that_is_no_text_is_refused_by_its_field() -> None:
    with pytest.raises(Refused) as refused:
        Request.from_json(b'{"inputs":[1],"replay":7}', "m")
    assert refused.value.reason is Reason.INPUT_INVALID
    assert [each.field for each in refused.value.violations] == ["replay"]


def test_a_replay_is_another_request_than_the_real_one_under_the_same_id() -> None:
    real = Request("m", inputs=[1.0], request_id="mine")
    assert real.body_sha256() != real._replace(replay="again").body_sha256()
    assert real.body_sha256() == Request("m", inputs=[1]).body_sha256()


# ---------------------------------------------------------------- recorded requests as load


@pytest.mark.anyio
async def test_recorded_requests_are_asked_marked_and_without_their_ids_and_answers_are_compared(
    gateway: SmallGateway,
) -> None:
    recorded = [
        _recorded(0.0, 45.5, 0.5, 45),
        _recorded(0.0, 99.0, 0.25, 30),
        _recorded(0.0, 30.25 * (1 + 1e-12), 0.25, 30),
        _recorded(0.0, 1.0, 1.0, model_id="busy"),
    ]
    recorded.append(recorded[0]._replace(answer=()))
    found = await replay_calls(gateway.address, recorded, name="again", speed=MAX_SPEED)
    assert (found.equal, found.close, found.changed, found.unknown) == (1, 1, 1, 1)
    assert (found.report.answered, found.report.errors) == (4, {"RESOURCE_EXHAUSTED": 1})
    assert {(request.replay, request.request_id) for request in gateway.seen} == {("again", "")}
    assert found.to_json()["answers"] == {"equal": 1, "close": 1, "changed": 1, "not_answered_then": 1}


@pytest.mark.anyio
async def test_a_pace_is_kept_and_made_faster_whether_answers_come_or_not(gateway: SmallGateway) -> None:
    # What `slow` waits for comes with the end of its call: the others are asked long before.
    recorded = [_recorded(0.0, 7.0, 1.0, model_id="slow"), *(_recorded(at / 2, 19.0, 1.0, 18) for at in range(1, 5))]
    began = time.perf_counter()
    run = asyncio.create_task(replay_calls(gateway.address, recorded, name="r", speed=10.0, timeout_s=20.0))
    await _until(lambda: len(gateway.seen) >= 5)
    spent = time.perf_counter() - began
    gateway.released.set()
    found = await run
    assert spent >= 2.0 / 10  # two seconds of requests, ten times as fast
    assert (found.equal, found.changed) == (4, 1)
    assert found.report.offered_per_s > 0


@pytest.mark.anyio
async def test_an_endless_log_is_read_only_a_little_ahead_and_a_stop_ends_it_with_the_report(
    gateway: SmallGateway,
) -> None:
    stop, read = asyncio.Event(), 0

    def endless() -> Iterator[Recorded]:
        nonlocal read
        while True:
            read += 1
            yield _recorded(0.0, 46.0, 1.0, 45)

    run = asyncio.create_task(
        replay_calls(gateway.address, endless(), name="r", speed=MAX_SPEED, in_flight=4, stop=stop)
    )
    await _until(lambda: len(gateway.seen) >= 20)
    stop.set()
    found: ReplayReport = await run
    assert found.report.stopped
    assert found.equal >= 16
    assert read <= len(gateway.seen) + 1100


@pytest.mark.anyio
async def test_what_reading_the_log_raises_is_raised(gateway: SmallGateway) -> None:
    def broken() -> Iterator[Recorded]:
        yield _recorded(0.0, 46.0, 1.0, 45)
        raise OSError("the file is gone")

    with pytest.raises(ExceptionGroup) as raised:
        await replay_calls(gateway.address, broken(), name="r", speed=MAX_SPEED)
    assert raised.group_contains(OSError, match="the file is gone")


@pytest.mark.parametrize(
    ("then", "now", "same"),
    [
        ([{"p": 0.5}], [{"p": 0.5}], True),
        ([{"p": float("nan")}], [{"p": float("nan")}], True),
        ([{"p": 0.0}], [{"p": -0.0}], False),
        ([{"p": 1}], [{"p": 1.0}], False),
        ([{"p": True}], [{"p": 1}], False),
        ([{"p": "a"}], [{"q": "a"}], False),
        ([{"p": 0.5}], [{"p": 0.5}, {"p": 0.5}], False),
    ],
)
def test_an_answer_is_the_same_by_its_bits_alone(
    then: list[dict[str, object]], now: list[dict[str, object]], same: bool
) -> None:
    assert same_answer(then, now) is same  # type: ignore[arg-type]


# ---------------------------------------------------------------- load runs


@pytest.mark.anyio
async def test_a_stopped_run_reports_what_ended_until_then(gateway: SmallGateway) -> None:
    stop, tally = asyncio.Event(), Tally()
    requests = [v1.PredictRequest(model_id="credit_risk", inputs=[v1.Value(number=1), v1.Value(integer=45)])]
    run = asyncio.create_task(closed_loop(gateway.address, 3, requests, seconds=60, stop=stop, tally=tally))
    await _until(lambda: tally.answered >= 10)
    stop.set()
    report = await run
    assert report.stopped
    assert report.answered == tally.answered >= 10
    assert report.seconds < 60


@pytest.mark.anyio
async def test_an_open_loop_stopped_early_does_not_wait_for_what_is_under_way(gateway: SmallGateway) -> None:
    stop, tally = asyncio.Event(), Tally()
    requests = [v1.PredictRequest(model_id="slow", inputs=[v1.Value(number=1)])]
    run = asyncio.create_task(open_loop(gateway.address, 200.0, requests, seconds=60, stop=stop, tally=tally))
    await _until(lambda: tally.under_way)
    stop.set()
    report = await run
    assert (report.stopped, report.requests) == (True, 0)


@pytest.mark.anyio
async def test_the_bulk_lane_is_asked_by_submit_and_keeps_no_replies(gateway: SmallGateway) -> None:
    requests = [v1.PredictRequest(model_id="credit_risk", inputs=[v1.Value(number=1), v1.Value(integer=45)])]
    report = await closed_loop(gateway.address, 2, requests, count=6, method=SUBMIT)
    assert (report.answered, [request.discard_reply for request in gateway.seen]) == (6, [True] * 6)
    assert gateway.results


def test_a_tally_tells_models_apart_and_goes_moment_by_moment() -> None:
    tally = Tally()
    for milliseconds in range(1, 101):
        tally.answer(milliseconds / 1000, "fast" if milliseconds <= 50 else "slow")
    tally.tick(1.0)
    tally.error(NOT_ASKED)
    tally.answer(0.5, "slow")
    report = tally.report(2.0)
    assert {name: each.answered for name, each in report.models.items()} == {"fast": 50, "slow": 51}
    assert report.models["fast"].max_ms == pytest.approx(50, rel=2e-3)
    assert [(each.at, each.answered, each.failed) for each in report.moments] == [(1.0, 100, 0), (2.0, 1, 1)]
    assert report.moments[0].p50_ms == pytest.approx(50, rel=2e-3)
    assert (report.percentiles[0][0], report.percentiles[-1]) == (50.0, (100.0, report.max_ms))
    assert [ms for _, ms in report.curve] == sorted(ms for _, ms in report.curve)


@pytest.mark.parametrize(("kind", "begins"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".html", b"<!doctype html>")])
def test_a_run_is_drawn_in_the_kind_that_the_file_is_named(tmp_path: Path, kind: str, begins: bytes) -> None:
    tally = Tally()
    tally.answer(0.010, "churn")
    tally.error("UNAVAILABLE")
    path = tmp_path / f"run{kind}"
    write_plot(path, "churn & <others>", tally.report(1.0))
    content = path.read_bytes()
    assert content.startswith(begins)
    if kind == ".html":
        assert b"churn &amp; &lt;others&gt;" in content
        assert b"failed with UNAVAILABLE" in content


@pytest.mark.parametrize("name", ["run.pdf", "run", "nowhere/run.svg"])
def test_a_file_that_no_picture_can_be_is_refused_before_the_run(tmp_path: Path, name: str) -> None:
    with pytest.raises(NotDrawable, match=r"expected a file|no folder"):
        check_plot(tmp_path / name)


def test_without_matplotlib_a_plot_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(NotDrawable, match=r"pip install 'millstream\[reports\]'"):
        check_plot(tmp_path / "run.svg")


def test_load_draws_and_tells_models_apart(gateway: SmallGateway, tmp_path: Path) -> None:
    words = ("load", "credit_risk=90%", "churn=10%", "--users", "4", "--requests", "40")
    done = _run(gateway, *words, "--plot", str(tmp_path / "load.svg"))
    assert done.exit_code == 0, done.stderr
    assert "99.9 %" in done.stdout
    assert {"credit_risk", "churn"} <= set(done.stdout.split())
    assert (tmp_path / "load.svg").read_bytes().startswith(b"<?xml")


@pytest.mark.parametrize(
    ("words", "says", "code"),
    [
        (("nowhere", "credit_risk", "gone"), "no model 'nowhere', 'gone' is live; there is: credit_risk", 4),
        (("--rate", "0"), "--rate: expected requests a second, above 0", 2),
        (("--rate", "-5"), "--rate", 2),
        (("--rate", "inf"), "--rate", 2),
        (("--rate", "5", "--users", "3"), "expected one of them", 2),
        (("--rate", "5", "--requests", "3"), "--requests goes with --users", 2),
        (("--ramp", "20"), "--ramp: expected at most", 2),
        (("--seconds", "nan"), "--seconds", 2),
        (("--lane", "fast"), "expected requests or bulk, got 'fast'", 2),
        (("credit_risk=60%", "churn=30%"), "add up to 100, got 90", 2),
        (("credit_risk=60%", "churn=40"), "all shares as percent or none", 2),
        (("churn", "churn=2"), "churn twice", 2),
        (("--plot", "run.pdf"), "--plot: expected a file that ends with", 2),
    ],
)
def test_load_says_what_is_wrong_before_it_asks(
    gateway: SmallGateway, words: tuple[str, ...], says: str, code: int
) -> None:
    refused = _run(gateway, "load", *words)
    assert (refused.exit_code, says in " ".join(refused.stderr.split())) == (code, True), refused.stderr
    assert gateway.seen == []


def test_ctrl_c_ends_a_load_with_the_report_so_far(gateway: SmallGateway) -> None:
    words = ["load", "credit_risk", "--users", "2", "--seconds", "60", "--json", "--address", gateway.address]
    child = subprocess.Popen(
        [sys.executable, "-m", "millstream", *words], stdout=subprocess.PIPE, cwd=ROOT, env={**os.environ}
    )
    eventually(lambda: len(gateway.seen) > 20, within=20)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=20)
    report = json.loads(out)
    assert child.returncode == 130
    assert report["stopped"] is True
    assert report["answered"] > 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--speed", "0"), "--speed: expected a number above 0 or max"),
        (("--speed", "quick"), "--speed: expected a number above 0 or max"),
        (("--over", "pigeon"), "--over: expected grpc or stream"),
        (("--name", "*"), "--name: expected 1 to 128 printable characters"),
        (("--name", "all"), "stands for every replay"),
        (("--to", "redis://127.0.0.1:1"), "--to: expected a state directory or HOST:PORT"),
        (("--to", "127.0.0.1:1", "--over", "stream"), "which says what its models take"),
    ],
)
def test_replay_load_says_what_is_wrong_before_it_reads(words: tuple[str, ...], says: str) -> None:
    refused = runner.invoke(app, ["replay", "load", *words])
    assert (refused.exit_code, says in " ".join(refused.stderr.split())) == (2, True), refused.stderr
