"""The log of a process, seen from outside: set up in a child, since it is set up once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.servers import ROOT

_CHILD = """
import logging, structlog
from contract.log import set_up_log
from contract.settings import Settings
set_up_log(Settings.read(), "worker")
log = structlog.get_logger()
log.debug("unseen")
log.info("batch", request_id="r1", model_id="churn", version="1.0.0", rows=3, odd={1, 2})
logging.getLogger("some.library").info("chatter")
logging.getLogger("some.library").warning("trouble")
try:
    raise ValueError("why")
except ValueError:
    log.exception("failed")
"""


def lines_of(**settings: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", _CHILD],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_json_is_one_object_a_line_with_the_role_and_the_fields() -> None:
    lines = lines_of(MILLSTREAM_LOG_FORMAT="json")
    objects: list[dict[str, Any]] = [json.loads(line) for line in lines if line.startswith("{")]
    batch, failed = objects
    stamp = batch.pop("timestamp")
    assert stamp.endswith("Z")
    odd = batch.pop("odd")
    assert odd == "{1, 2}"
    assert batch == {
        "event": "batch",
        "level": "info",
        "role": "worker",
        "request_id": "r1",
        "model_id": "churn",
        "version": "1.0.0",
        "rows": 3,
    }
    assert failed["level"] == "error"
    assert "ValueError: why" in failed["exception"]
    assert [line for line in lines if not line.startswith("{")] == ["WARNING some.library trouble"]


def test_not_on_a_terminal_it_is_json_by_itself() -> None:
    assert json.loads(lines_of()[0])["event"] == "batch"


@pytest.mark.parametrize(("level", "events"), [("debug", 3), ("warning", 1), ("error", 1)])
def test_the_least_level_is_a_setting(level: str, events: int) -> None:
    lines = lines_of(MILLSTREAM_LOG_FORMAT="json", MILLSTREAM_LOG_LEVEL=level)
    assert sum(1 for line in lines if line.startswith("{")) == events


def test_a_console_is_for_people() -> None:
    first = lines_of(MILLSTREAM_LOG_FORMAT="console")[0]
    assert not first.startswith("{")
    assert "request_id=r1" in first
