"""The demo: it ends with 0 when everything came out as it says, and with 1 when one thing did not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import anyio.lowlevel
import pytest
from rich.console import Console

from contract.settings import Settings
from millstream import demo as module
from millstream.demo import Demo, demo
from tests.e2e.front_door import processes_of, run


@pytest.mark.slow
def test_the_demo_keeps_every_claim_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = run("demo", "--json", "--state-dir", tmp_path, within=110)
    claims = [json.loads(line) for line in done.stdout.splitlines()]
    assert [claim["claim"] for claim in claims if not claim["held"]] == []
    assert len(claims) >= 12
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert processes_of(tmp_path) == []


def test_a_broken_claim_is_shown_and_counted() -> None:
    shown = io.StringIO()
    run = Demo(Console(file=shown, width=100), as_json=False)
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
    async def play(run: Demo, *_rest: object) -> None:
        await anyio.lowlevel.checkpoint()
        run.step("Only this")
        run.check(True, "one holds")
        run.check(held, "the other may not")

    monkeypatch.setattr(module, "_run", play)
    assert demo(Settings.read(state_dir=tmp_path), as_json=True) == code
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["claim"], line["held"]) for line in lines] == [("one holds", True), ("the other may not", held)]
