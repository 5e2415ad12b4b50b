"""The demo: it ends with 0 when everything came out as it says, and with 1 when one thing did not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import anyio.lowlevel
import pytest
from rich.console import Console

from contract.settings import Settings
from millstream.demo import demo as module
from millstream.demo import record
from millstream.demo.demo import demo
from millstream.demo.run import Run
from millstream.local.supervisor import Supervisor
from millstream.up import House
from tests.e2e.front_door import processes_of, run


@pytest.mark.slow
def test_the_demo_keeps_every_claim_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run("demo", "--json", "--state-dir", tmp_path, within=110)
    claims = [json.loads(line) for line in done.stdout.splitlines()]
    assert [claim["claim"] for claim in claims if not claim["held"]] == []
    told = {claim["claim"]: claim for claim in claims}
    for of_the_record in (
        "what was accepted was completed, and what was completed is in the log, once",
        "every event is as it was recorded, and where the sink signed the chain it agrees",
        "it is found, and the event is named",
    ):
        assert of_the_record in told
    assert told["every event is as it was recorded, and where the sink signed the chain it agrees"]["heads"] >= 4
    replayed = claims[-1]
    assert (replayed["different"], replayed["runtime_differs"], replayed["not_reproducible"]) == (0, 0, 0)
    assert replayed["predict_calls"] > 0
    assert len(claims) >= 18
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert processes_of(tmp_path) == []


def test_a_broken_claim_is_shown_and_counted() -> None:
    shown = io.StringIO()
    run = Run(Console(file=shown, width=100), as_json=False)
    run.check(True, "the sky is blue")
    run.check(False, "pigs fly")
    assert run.failed == ["pigs fly"]
    assert [line.split() for line in shown.getvalue().splitlines()] == [
        ["ok", "the", "sky", "is", "blue"],
        ["BROKEN", "pigs", "fly"],
    ]


@pytest.mark.parametrize(("held", "code"), [(True, 0), (False, 1)])
def test_the_exit_code_says_whether_every_claim_held(
    held: bool, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def play(run: Run, *_rest: object) -> None:
        await anyio.lowlevel.checkpoint()
        run.step("Only this")
        run.check(True, "one holds")
        run.check(held, "the other may not")

    monkeypatch.setattr(module, "_run", play)
    assert demo(Settings.read(state_dir=tmp_path), as_json=True) == code
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["claim"], line["held"]) for line in lines] == [("one holds", True), ("the other may not", held)]


@pytest.mark.anyio
async def test_a_command_that_does_not_end_well_breaks_the_claim_about_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(Console(quiet=True), as_json=True)
    nothing_runs = House(Settings.read(state_dir=tmp_path), Supervisor(tmp_path))
    await record.reconcile(run, nothing_runs)
    (line,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (line["held"], run.failed) == (False, [line["claim"]])
