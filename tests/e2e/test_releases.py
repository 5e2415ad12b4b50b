"""Versions come and go as operators want under 200 callers: nobody is failed, and each event says who answered."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from contract.connection import connect
from contract.record import bucket
from ingest.answer import PredictionError
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.e2e.front_door import FrontDoor
from tests.faults.crowd import Crowd, Told
from tests.multiplying import factor, write
from tests.stage import outputs
from tests.trial_models import runs

MODEL = "release"
USERS = 200
LIVE, NEXT, CANARY, SHADOW, BAD_GOLDEN, CRASHING, RAISING = (f"{number}.0.0" for number in range(1, 8))
TAMPERED = NEXT
USER = {"name": "user_id", "key": "user:{id}:{feature}"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All versions that are ever tried, but for those that appear later."""
    store = tmp_path_factory.mktemp("store")
    write(store, MODEL, LIVE, "production", entity=USER)
    for version in (NEXT, CANARY, SHADOW):
        write(store, MODEL, version, entity=USER)
    write(store, MODEL, RAISING, raises_below_zero=True, entity=USER)
    return store


@pytest.fixture(scope="module")
def up(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FrontDoor]:
    """The tests of this file go on with it in order."""
    with FrontDoor(tmp_path_factory.mktemp("up"), "--store", store, "--workers", "2") as up:
        yield up


def routed(up: FrontDoor, version: str, state: str, percent: float) -> None:
    """Waits until the gateway itself routes so."""
    with up.client() as client:

        def is_so() -> bool:
            rows = client.model(MODEL).versions
            return (version, state, percent) in [(row.version, row.state, row.traffic_percent) for row in rows]

        eventually(is_so, within=40)


def answered(crowd: Crowd, since: int, count: int) -> list[tuple[Told, v1.PredictResponse]]:
    """Whoever was asked after the first `since` requests, once so many of them were answered."""

    def those() -> list[tuple[Told, v1.PredictResponse]]:
        return [(each, each.response) for each in crowd.told.copy().values() if each.x >= since and each.response]

    eventually(lambda: len(those()) >= count, within=60)
    return those()


def act(up: FrontDoor, *words: str) -> None:
    done = up.cli("registry", *words)
    assert done.returncode == 0, done.stderr


def salt(up: FrontDoor) -> str:
    with connect(up.addresses["redis"]) as client:
        raw: Any = client.hget("ms:catalog", MODEL)
    return wire.ModelRecord.FromString(wire.SignedRecord.FromString(raw).record).routing.salt


def asked_for(up: FrontDoor, entities: list[str], x: float = 1.0) -> dict[str, str]:
    """Entity -> the version that answered it."""
    with up.client() as client:
        return {entity: client.predict(MODEL, [x], entity_id=entity).version for entity in entities}


def events(up: FrontDoor) -> list[v1.ModelEvent]:
    with grpc.insecure_channel(up.addresses["event_log"]) as channel:
        stub: Any = v1_grpc.EventLogStub(channel)
        return list(stub.Query(v1.EventQuery(model_id=MODEL, limit=100_000), timeout=60))


@pytest.mark.faults
@pytest.mark.timeout(240)
def test_promote_canary_shadow_and_rollback_under_200_callers_fail_nobody(up: FrontDoor, store: Path) -> None:
    with Crowd([up.addresses["gateway"]], USERS, "caller", model_id=MODEL, think_s=0.2) as crowd:
        crowd.under_way(USERS)

        act(up, "promote", MODEL, NEXT)
        routed(up, NEXT, "live", 100.0)
        assert {response.version for _, response in answered(crowd, crowd.asked, USERS)} == {NEXT}

        # Versions that must never answer anybody, while all goes on; and one that is not what it was.
        write(store, MODEL, BAD_GOLDEN, "production", golden=[{"inputs": [2.0], "outputs": {"out": 11.0}}])
        crashing = write(store, MODEL, CRASHING, "production")
        (crashing / "model.joblib").write_bytes(runs("import os; os._exit(7)"))
        (store / MODEL / TAMPERED / "model.joblib").write_bytes((store / MODEL / SHADOW / "model.joblib").read_bytes())
        up.cli("registry", "sync")

        act(up, "canary", MODEL, CANARY, "--percent", "10")
        routed(up, CANARY, "canary", 10.0)
        at_10 = answered(crowd, crowd.asked, 1500)
        entities = [f"user-{number}" for number in range(150)]
        first = asked_for(up, entities)
        in_first = {entity for entity in entities if bucket(MODEL, salt(up), entity) < 1_000}
        assert {entity for entity, version in first.items() if version == CANARY} == in_first != set()
        act(up, "canary", MODEL, CANARY, "--percent", "30")
        routed(up, CANARY, "canary", 30.0)
        at_30 = answered(crowd, crowd.asked, 1000)
        assert asked_for(up, entities).items() >= {e: v for e, v in first.items() if v == CANARY}.items()

        act(up, "shadow", MODEL, SHADOW)
        routed(up, SHADOW, "shadow", 0.0)
        crowd.under_way(2 * USERS)

        said = {row["version"]: row for row in up.rows("models", MODEL)[0]["versions"]}
        act(up, "rollback", MODEL)
        routed(up, LIVE, "live", 70.0)
        after = answered(crowd, crowd.asked, USERS)
        told = crowd.finish()

    assert {each.ended for each in told.values()} == {"OK"}
    mark = salt(up)
    for share, sample in ((0.1, at_10), (0.3, at_30)):
        versions = [response.version for _, response in sample]
        assert set(versions) == {NEXT, CANARY}
        error = 4 * math.sqrt(share * (1 - share) / len(versions))
        assert abs(versions.count(CANARY) / len(versions) - share) < error
        for _, response in sample:
            in_canary = bucket(MODEL, mark, response.request_id) < share * 10_000
            assert response.version == (CANARY if in_canary else NEXT)
    assert {response.version for _, response in after} == {LIVE, CANARY}
    for each in told.values():
        assert each.response is not None
        assert outputs(each.response) == [{"out": factor(each.response.version) * each.x}]

    digests = {version: row["digest"] for version, row in said.items()}
    assert {(row["trained_date"], row["location"] != "") for row in said.values()} == {("2026-01-31", True)}
    assert {version: (row["state"], row["traffic_percent"]) for version, row in said.items()} == {
        LIVE: ("retiring", 0.0), NEXT: ("live", 70.0), CANARY: ("canary", 30.0), SHADOW: ("shadow", 0.0),
    }  # fmt: skip
    listed = {row["version"]: (row["state"], row["problem"]) for row in up.rows("registry", "list")}
    assert listed[BAD_GOLDEN][0] == listed[CRASHING][0] == "refused"
    assert "golden" in listed[BAD_GOLDEN][1]
    assert "exit code 7" in listed[CRASHING][1]
    tampered = up.cli("registry", "list", MODEL)
    assert "immutable" in tampered.stdout + tampered.stderr

    [counts] = [each for each in up.rows("status")[0]["models"] if each["model_id"] == MODEL]
    recorded = eventually(lambda: _all_recorded(up), within=40)
    answers = {event.request_id: event for event in recorded if event.status == "OK"}
    copies = {event.request_id: event for event in recorded if event.status == "SHADOW"}
    assert {event.status for event in recorded} == {"OK", "SHADOW"}
    for request_id, each in told.items():
        event = answers[request_id]
        assert each.response is not None
        assert (event.version, event.digest) == (each.response.version, digests[event.version])
    assert {(event.version, event.digest) for event in copies.values()} == {(SHADOW, digests[SHADOW])}
    assert copies.keys() <= answers.keys()
    for request_id, event in copies.items():
        assert (event.lane, event.entry_id) == (answers[request_id].lane, answers[request_id].entry_id)
    assert counts["shadow"] == SHADOW
    assert counts["copies"] <= len(copies)


def _all_recorded(up: FrontDoor) -> list[v1.ModelEvent]:
    """All events, once each accepted request and each copy has its own and no copy waits any more; else nothing."""
    [counts] = [each for each in up.rows("status")[0]["models"] if each["model_id"] == MODEL]
    found = events(up)
    return found if len(found) == counts["accepted"] + counts["copies"] == counts["completed"] else []


def test_a_canary_that_fails_too_often_goes_back_to_nothing_and_the_history_says_so(up: FrontDoor) -> None:
    act(up, "canary", MODEL, RAISING, "--percent", "50", "--abort-over", "5%")
    routed(up, RAISING, "canary", 50.0)
    reasons: list[str] = []
    with up.client() as client:

        def aborted() -> bool:
            for _ in range(5):
                try:
                    answer = client.predict(MODEL, [-1.0])
                except PredictionError as error:
                    reasons.append(error.reason)
                else:
                    assert (answer.version, answer.outputs) == (LIVE, {"out": -1.0})
            return all(row.traffic_percent == 0.0 for row in client.model(MODEL).versions if row.version == RAISING)

        eventually(aborted, within=30)
        assert set(reasons) == {"MODEL_FAILED"}
        assert {client.predict(MODEL, [-1.0]).version for _ in range(30)} == {LIVE}
    [line] = [row for row in up.rows("registry", "history", MODEL) if row["act"] == "canary aborted"]
    assert (line["version"], line["by"]) == (RAISING, "the registry")
    assert re.match(r"\d+ of \d+ requests failed, more than 5 %: its share is 0 % now, was 50 %", line["detail"])
