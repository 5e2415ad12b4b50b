"""status: what an operator sees of the models, on a real server and in a terminal of 100 columns."""

from __future__ import annotations

import json

import pytest
import redis
from typer.testing import CliRunner

from contract.connection import ensure_groups, show
from contract.keys import Keys
from contract.presence import ALL, Presence
from millstream.cli import app
from protos import millstream_wire_v1_pb2 as wire

pytestmark = pytest.mark.integration

AGE_S = 7200
ALARM = "the stream is another one than the log was written from; see `millstream sink --accept-gap`"


@pytest.fixture
def keys(redis_client: redis.Redis, prefix: str) -> Keys:
    """Two models; one has an old entry that is held and a new one in the bulk lane, and the sink does not record it."""
    keys = Keys(prefix)
    for model_id in ("credit_risk", "idle"):
        record = wire.ModelRecord(
            model_id=model_id,
            versions=[wire.VersionRecord(version="2026.11.23-rc1", digest=b"\xab" * 32, state=wire.LIVE)],
            routing=wire.Routing(production="2026.11.23-rc1", shadow="2027.1" if model_id == "credit_risk" else ""),
        )
        sealed = wire.SignedRecord(record=record.SerializeToString()).SerializeToString()
        redis_client.hset(keys.catalog, model_id, sealed)
        ensure_groups(redis_client, keys, model_id)
    names = keys.model("credit_risk")
    seconds = redis_client.time()[0]
    redis_client.xadd(names.requests, {"pb": b"x"}, id=f"{(seconds - AGE_S) * 1000}-0")
    redis_client.xreadgroup("workers", "w", {names.requests: ">"}, count=1)
    redis_client.xadd(names.bulk, {"json": b"{}"})
    redis_client.mset({names.rows_requests: 123_456, names.rows_bulk: 1})
    redis_client.hset(names.count, "copies", 9)
    redis_client.xadd(names.dead, {"reason": "MODEL_CRASHED"})
    for number in range(2):
        worker = Presence(
            "worker", f"a-long-host-name-{number}-abcdef", loaded=frozenset({"ab" * 32}), pid=1234567 + number,
            rows_per_s={"credit_risk": 40_000.0}, served={"credit_risk": 11_111.2}, shadowed={"credit_risk": (4, 30)},
        )  # fmt: skip
        show(redis_client, worker.beat(keys))
    show(redis_client, Presence("sink", "s", alarm={"credit_risk": ALARM}).beat(keys))
    show(redis_client, Presence("registry", "r", alarm={ALL: "the store: away (since noon)"}).beat(keys))
    return keys


def test_json_has_backlog_age_rate_and_alarm_of_each_model(keys: Keys, redis_url: str) -> None:
    answer = CliRunner().invoke(app, ["status", "--json", "--redis-url", redis_url, "--prefix", keys.prefix])
    busy, idle = json.loads(answer.stdout)["models"]
    assert busy["rows_waiting"] == {"requests": 123_456, "bulk": 1}
    assert (busy["backlog"], busy["held"]) == ({"requests": 1, "bulk": 1}, {"requests": 1, "bulk": 0})
    assert AGE_S <= busy["oldest_s"]["requests"] < AGE_S + 60
    assert 0 <= busy["oldest_s"]["bulk"] < 60
    assert (busy["rows_per_s"], busy["capacity_rows_per_s"]) == (22_222.4, 80_000.0)
    assert (busy["dead"], busy["alarm"]) == (1, ALARM)
    assert (busy["shadow"], busy["copies"], busy["copies_dropped"]) == ("2027.1", 9, 60)
    assert (idle["shadow"], idle["copies"], idle["copies_dropped"]) == ("", 0, 0)
    assert idle["oldest_s"] == {"requests": None, "bulk": None}
    assert (idle["rows_per_s"], idle["alarm"]) == (0.0, "")


def test_a_terminal_of_a_hundred_columns_holds_it(keys: Keys, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.cli.screen._UNWRAPPED", 100)
    shown = CliRunner().invoke(app, ["status", "--redis-url", redis_url, "--prefix", keys.prefix])
    assert max(len(line) for line in shown.stdout.splitlines()) <= 100
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in shown.stdout.splitlines()]
    assert ["credit_risk", "2026.11.23-rc1", "123457", "2", "1", "1", "2 h", "22222", "1", "0"] in rows
    assert f"the event log does not record credit_risk: {ALARM}" in shown.stderr
    assert "alarm: registry: the store: away (since noon)" in shown.stderr
    assert "shadow: credit_risk 2027.1: 9 copies of requests were computed, 60 dropped" in shown.stderr
    assert "shadow: idle" not in shown.stderr
