"""The bulk lane: whatever a producer wrote is answered, refused with a recorded reason, or counted as a duplicate."""

from __future__ import annotations

import json
from typing import Any

import pytest

from contract.request import value_of
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.stage import ODD, GatewayProcess, Stage, ask, outputs

pytestmark = pytest.mark.integration


def test_inputs_by_position_are_a_complete_request_and_the_stream_id_names_it(
    stage: Stage, gateway: GatewayProcess
) -> None:
    entry_id = stage.push(ODD, {"inputs": [16.0]})
    response = stage.stored(ODD, entry_id)
    assert (outputs(response), response.request_id, response.model_id) == ([{"out": 32.0}], entry_id, ODD)
    assert gateway.result(ODD, entry_id) == response
    event = stage.ended(ODD, entry_id)
    assert (event.status, event.lane, event.entry_id) == (wire.OK, wire.BULK, entry_id)
    assert event.entry.user_request_us == int(entry_id.partition("-")[0]) * 1000


def test_features_entities_rows_and_protobuf_are_understood(stage: Stage, gateway: GatewayProcess) -> None:
    stage.redis.mset({"user:t301:age": "25", "user:t301:clicks": "120"})
    expected = outputs(gateway.predict(ask("churn", 25, 120)))
    by_name = stage.push("churn", {"model_id": "churn", "features": {"age": 25, "clicks": 120}})
    by_entity = stage.push("churn", {"entity_id": "t301"})
    packed = stage.push("churn", {"rows": [[25, 120], [25, 120]]})
    asked = v1.PredictRequest(features={"age": value_of(25), "clicks": value_of(120)})
    as_message = stage.add("churn", {"pb": asked.SerializeToString()})
    assert outputs(stage.stored("churn", by_name)) == expected
    assert outputs(stage.stored("churn", by_entity)) == expected
    assert outputs(stage.stored("churn", as_message)) == expected
    columns = stage.stored("churn", packed).columns
    assert list(columns[0].column.doubles.values) == [expected[0]["churn_probability"]] * 2
    origins = [h.origin for h in stage.ended("churn", by_entity).entry.hydrated]
    assert origins == [wire.REDIS, wire.REDIS]


def test_an_entry_with_a_known_id_is_counted_as_a_duplicate_and_gone(stage: Stage) -> None:
    before = stage.count(ODD)
    stage.odd.forget()
    stage.push(ODD, {"inputs": [17.0], "request_id": "bulk-twice"})
    stage.push(ODD, {"inputs": [17], "request_id": "bulk-twice"})
    stage.stored(ODD, "bulk-twice")
    stage.push(ODD, {"request_id": "bulk-twice", "features": None, "inputs": [17.0]})
    stage.drained(ODD)
    after = stage.count(ODD)
    assert after["accepted"] - before.get("accepted", 0) == 1
    assert after["duplicates"] - before.get("duplicates", 0) == 2
    assert (len(stage.events(ODD, "bulk-twice")), stage.odd.saw(17.0)) == (1, 1)


def test_another_body_under_a_known_id_is_a_dead_letter_and_the_first_answer_stays(stage: Stage) -> None:
    stage.push(ODD, {"inputs": [18.0], "request_id": "bulk-reused"})
    first = stage.stored(ODD, "bulk-reused")
    entry_id = stage.push(ODD, {"inputs": [19.0], "request_id": "bulk-reused"})
    [letter] = eventually(lambda: [d for d in stage.dead(ODD) if d["entry_id"].decode() == entry_id])
    assert (letter["reason"], letter["field"]) == (b"REQUEST_ID_REUSED", b"json")
    assert json.loads(letter["body"])["inputs"] == [19.0]
    assert stage.stored(ODD, "bulk-reused") == first
    stage.drained(ODD)


def nested(levels: int) -> bytes:
    return b'{"inputs":' + b"[" * levels + b"]" * levels + b"}"


GARBAGE: dict[str, dict[str, bytes]] = {
    "no JSON": {"json": b"inputs=0.6"},
    "nothing": {"json": b""},
    "an array": {"json": b"[1,2]"},
    "10,000 levels": {"json": nested(10_000)},
    "duplicate keys": {"json": b'{"inputs":[1],"inputs":[2]}'},
    "NaN": {"json": b'{"inputs":[NaN]}'},
    "1e999": {"json": b'{"inputs":[1e999]}'},
    "5,000 digits": {"json": b'{"inputs":[' + b"9" * 5000 + b"]}"},
    "no UTF-8": {"json": b'{"inputs":["\xff"]}'},
    "half a surrogate pair": {"json": b'{"inputs":["\\ud800"]}'},
    "unknown field": {"json": b'{"inputs":[1],"reply_to":"another-gateway"}'},
    "inputs that are no list": {"json": b'{"inputs":{"x":1}}'},
    "an input that is a list": {"json": b'{"inputs":[[1]]}'},
    "features that are a list": {"json": b'{"features":[1]}'},
    "rows of numbers": {"json": b'{"rows":[1,2]}'},
    "an id that is a number": {"json": b'{"inputs":[1],"request_id":7}'},
    "deadline as text": {"json": b'{"inputs":[1],"deadline":"tomorrow"}'},
    "another stream's model": {"json": b'{"model_id":"churn","inputs":[1]}'},
    "another field": {"data": b'{"inputs":[1]}'},
    "both fields": {"json": b'{"inputs":[1]}', "pb": b""},
    "a field that is no UTF-8": {"\udcff": b"x"},
    "truncated protobuf": {"pb": ask(ODD, 1.0).SerializeToString()[:-3]},
    "protobuf of another type": {"pb": wire.Entry(request_id="x", deadline_us=7).SerializeToString() + b"\x08\x01"},
    "another stream's protobuf": {"pb": ask("churn", 1, 2).SerializeToString()},
}


@pytest.mark.parametrize("case", GARBAGE)
def test_an_entry_that_cant_be_understood_is_a_dead_letter_an_event_and_an_error_reply(stage: Stage, case: str) -> None:
    fields = {name.encode("utf-8", "surrogateescape"): body for name, body in GARBAGE[case].items()}
    entry_id = stage.add(ODD, fields)
    event = stage.ended(ODD, entry_id)
    assert (event.status, event.lane) == (wire.INVALID, wire.BULK)
    body = next(iter(fields.values()))
    assert event.refused_body == body[: 64 * 1024]
    error = stage.stored(ODD, entry_id).error
    assert error.code == 3
    assert error.message
    [letter] = [d for d in stage.dead(ODD) if d["entry_id"].decode() == entry_id]
    assert (letter["reason"].decode(), letter["body"]) == (error.reason, body)
    stage.drained(ODD)


UNFIT: dict[str, tuple[dict[str, Any], set[str]]] = {
    "numbers as text": ({"inputs": ["0.6", "45"]}, {"debt_to_income_ratio", "age_years"}),
    "too few": ({"inputs": [0.6]}, {"inputs"}),
    "an unknown feature": ({"features": {"debt": 1, "age_years": 45}}, {"debt", "debt_to_income_ratio"}),
    "nothing asked": ({}, {"inputs"}),
    "no rows": ({"rows": []}, {"rows"}),
    "a hostile entity": ({"inputs": [0.6, 45], "entity_id": "*" * 1000}, {"entity_id"}),
}


@pytest.mark.parametrize("case", UNFIT)
def test_an_entry_that_does_not_fit_is_answered_with_its_violations_under_its_own_id(stage: Stage, case: str) -> None:
    body, fields = UNFIT[case]
    request_id = f"unfit-{case.replace(' ', '-')}"
    stage.push("credit_risk", {**body, "request_id": request_id})
    error = stage.stored("credit_risk", request_id).error
    assert ({v.field for v in error.violations} - {"entity_id", *fields}, error.reason) == (set(), "INPUT_INVALID")
    assert fields <= {v.field for v in error.violations}
    assert stage.ended("credit_risk", request_id).status == wire.INVALID
    stage.drained("credit_risk")


def test_an_unreadable_entry_that_says_its_id_is_answered_under_it(stage: Stage) -> None:
    stage.push(ODD, {"inputs": "1", "request_id": "bulk-unreadable"})
    error = stage.stored(ODD, "bulk-unreadable").error
    assert [v.field for v in error.violations] == ["inputs"]
    pb = ask("churn", 1, 2, request_id="bulk-stray").SerializeToString()
    stage.add(ODD, {"pb": pb})
    assert stage.stored(ODD, "bulk-stray").error.reason == "MALFORMED"
    stage.drained(ODD)


def test_an_entry_over_the_message_limit_is_refused_unread(stage: Stage) -> None:
    body = b'{"request_id":"bulk-large","inputs":[' + b"1," * 8_400_000 + b"1]}"
    entry_id = stage.push(ODD, body)
    error = stage.stored(ODD, entry_id).error
    assert (error.reason, error.code) == ("MALFORMED", 3)
    assert "16,777,216" in error.message
    event = stage.ended(ODD, entry_id)
    assert (event.status, len(event.refused_body)) == (wire.INVALID, 64 * 1024)
    stage.redis.delete(stage.keys.model(ODD).dead)
    stage.drained(ODD)


def test_an_id_that_no_key_may_hold_falls_back_to_the_stream_id(stage: Stage) -> None:
    entry_id = stage.push(ODD, {"inputs": [1.0], "request_id": "a b\n"})
    assert {v.field for v in stage.stored(ODD, entry_id).error.violations} == {"request_id"}
    stage.drained(ODD)


def test_an_unknown_version_fails_and_a_known_one_answers(stage: Stage) -> None:
    assert stage.stored(ODD, stage.push(ODD, {"inputs": [1.0], "version": "1.0.0"})).version == "1.0.0"
    entry_id = stage.push(ODD, {"inputs": [1.0], "version": "9.9"})
    assert stage.stored(ODD, entry_id).error.reason == "VERSION_UNKNOWN"
    assert stage.ended(ODD, entry_id).status == wire.FAILED


def test_good_entries_between_bad_ones_are_answered_each_with_its_own(stage: Stage) -> None:
    """A row that is dropped must not shift the others' results."""
    with stage.odd.closed():
        stage.push(ODD, {"inputs": [500.0]})
        eventually(lambda: stage.odd.saw(500.0) == 1)
        good = {number: stage.push(ODD, {"inputs": [600.0 + number]}) for number in range(0, 100, 2)}
        for number in range(1, 100, 2):
            if number not in good:
                stage.push(ODD, {"inputs": ["bad", number]} if number % 3 else b"{")
            if number % 10 == 1:
                good[number + 1] = stage.push(ODD, {"inputs": [601.0 + number]})
    for number, entry_id in good.items():
        assert outputs(stage.stored(ODD, entry_id)) == [{"out": 2 * (600.0 + number)}]
    stage.drained(ODD)


def test_entries_that_came_before_anybody_read_are_served(stage: Stage) -> None:
    """The group begins at 0: what was appended before the first worker is not lost."""
    entry_id = stage.push("later", {"inputs": [20.0]})
    stage.publish_odd("later")
    assert outputs(stage.stored("later", entry_id)) == [{"out": 40.0}]
