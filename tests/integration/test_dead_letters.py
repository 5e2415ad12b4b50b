"""Dead letters: listed, shown, put back onto the bulk lane in one step with their removal, or dropped."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis
from typer.testing import CliRunner, Result

from contract.completion import BULK
from contract.errors import Reason
from contract.request import Request
from ingest.dead_letters import DeadLetter, DeadLetters
from millstream.cli import app
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.lanes import ModelLanes, finish
from tests.servers import RedisServer, free_port
from tests.stage import ODD, Stage, outputs

pytestmark = pytest.mark.integration

POISON, MALFORMED, REUSED = Reason.MODEL_CRASHED.text, Reason.MALFORMED.text, Reason.REQUEST_ID_REUSED.text
Dead = Callable[..., Result]


@pytest.fixture
def dead(redis_url: str, prefix: str) -> Dead:
    """`millstream dead …` on this test's keys."""

    def command(*words: str, answer: str = "") -> Result:
        where = ["--redis-url", redis_url, "--prefix", prefix]
        return CliRunner().invoke(app, ["dead", *words, *where], input=answer)

    return command


@pytest.fixture
def churn(redis_client: redis.Redis, prefix: str) -> ModelLanes:
    return ModelLanes(redis_client, prefix)


def admitted(request_id: str, *values: float, model_id: str = "churn") -> bytes:
    matrix = v1.Matrix(rows=1, float64=np.array(values).tobytes())
    entry = wire.Entry(request_id=request_id, model_id=model_id, version="1.0.0", digest=b"\x01" * 32, matrix=matrix)
    return entry.SerializeToString()


def die(lanes: ModelLanes, request_id: str, *, reply_ttl_s: int | bytes = b"", reason: str = POISON) -> str:
    """An interactive request that leaves as a worker lets it leave; the letter's id."""
    [entry_id] = lanes.enter((admitted(request_id, 25.0, 120.0), 1, b"", request_id))
    lanes.read()
    lanes.client.hset(lanes.keys.crashes, entry_id, "host-1-a host-2-b")
    lanes.leave(finish(entry_id, request_id, dead=reason.encode(), reply_ttl_s=reply_ttl_s, gateway=""))
    return newest(lanes)


def bury(lanes: ModelLanes, fields: dict[str, bytes], reason: str = REUSED) -> str:
    """A bulk entry that leaves the same way."""
    entry_id: Any = lanes.client.xadd(lanes.keys.bulk, _fields(fields))
    lanes.read(lane=BULK)
    lanes.leave(
        finish(entry_id, entry_id.decode(), lane=BULK, dead=reason.encode(), reply_ttl_s=b"", gateway="", rows=0)
    )
    return newest(lanes)


def _fields(fields: dict[str, bytes]) -> dict[Any, Any]:
    # redis-py's own type for it admits no plain dict.
    return dict(fields)


def newest(lanes: ModelLanes) -> str:
    [[letter_id, _]] = entries(lanes, lanes.keys.dead)[-1:]
    return str(letter_id.decode())


def bulk(lanes: ModelLanes) -> list[dict[bytes, bytes]]:
    return [fields for _, fields in entries(lanes, lanes.keys.bulk)]


def entries(lanes: ModelLanes, stream: str) -> list[Any]:
    found: Any = lanes.client.xrange(stream)
    return list(found)


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_letters_of_all_models_are_listed_newest_first(
    dead: Dead, churn: ModelLanes, redis_client: redis.Redis, prefix: str
) -> None:
    """The other model stands in no catalogue."""
    other = ModelLanes(redis_client, prefix, "other")
    first = die(churn, "r1")
    second = bury(other, {"json": b'{"inputs": [1], "request_id": "mine"}'})
    third = bury(other, {"json": b"no JSON\x1b[31m"}, MALFORMED)
    shown = dead("list", "--json")
    assert shown.exit_code == 0
    kept = ("id", "model_id", "reason", "lane", "crashes", "request_id")
    # Two of different models may have come in the same millisecond.
    assert sorted([line[name] for name in kept] for line in lines(shown)) == sorted(
        [
            [third, "other", MALFORMED, "bulk", 0, died_as(other, third)],
            [second, "other", REUSED, "bulk", 0, "mine"],
            [first, "churn", POISON, "requests", 2, "r1"],
        ]
    )
    times = [line["at"] for line in lines(shown)]
    assert times == sorted(times, reverse=True)
    assert all(0 <= line["age_s"] < 3600 for line in lines(shown))
    assert [line["id"] for line in lines(dead("list", "--json", "--limit", "1"))] == [lines(shown)[0]["id"]]
    assert [line["id"] for line in lines(dead("list", "--json", "--model", "churn"))] == [first]
    table = dead("list").stdout
    assert first in table
    assert "\x1b" not in table


def died_as(lanes: ModelLanes, letter_id: str) -> str:
    return str(dict(entries(lanes, lanes.keys.dead))[letter_id.encode()][b"entry_id"].decode())


def test_no_letters_are_no_trouble(dead: Dead) -> None:
    shown = dead("list", "--json")
    assert (shown.exit_code, shown.stdout) == (0, "")
    assert dead("retry", "--all").exit_code == 0
    assert dead("drop", "--all").exit_code == 0


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"json": b'{"inputs": [25, 120.5], "request_id": "a"}'}, {"inputs": [25, 120.5], "request_id": "a"}),
        ({"json": b"\x1b[31mno JSON"}, "\x1b[31mno JSON"),
        ({"pb": b"\xff\xff"}, "\ufffd\ufffd"),
        (
            {"pb": v1.PredictRequest(model_id="churn", inputs=[v1.Value(integer=2)]).SerializeToString()},
            {"model_id": "churn", "inputs": [{"integer": "2"}]},
        ),
    ],
    ids=["JSON", "not JSON", "not protobuf", "protobuf"],
)
def test_a_letter_is_shown_with_what_it_holds(
    dead: Dead, churn: ModelLanes, fields: dict[str, bytes], expected: object
) -> None:
    letter_id = bury(churn, fields, MALFORMED)
    shown = dead("show", letter_id, "--json")
    assert shown.exit_code == 0
    [content] = lines(shown)
    assert (content["body"], content["id"], content["field"]) == (expected, letter_id, next(iter(fields)))
    for_people = dead("show", letter_id)
    assert letter_id in for_people.stdout
    assert "\x1b" not in for_people.stdout


def test_an_admitted_request_is_shown_with_its_rows(dead: Dead, churn: ModelLanes) -> None:
    [content] = lines(dead("show", die(churn, "r1"), "--json"))
    assert content["body"]["rows"] == [[25.0, 120.0]]
    assert content["body"]["digest"] == "01" * 32
    assert content["request_id"] == "r1"


def test_rows_of_every_type_are_decoded() -> None:
    columns = v1.Columns(
        rows=2,
        columns=[
            v1.Column(strings=v1.Strings(values=["a", ""]), nulls=[1]),
            v1.Column(booleans=v1.Booleans(values=[True, False])),
            v1.Column(integers=v1.Integers(values=[2**60, 1])),
        ],
    )
    raw = wire.Entry(request_id="r", model_id="m", columns=columns).SerializeToString()
    letter = DeadLetter("m", "1-0", POISON, "requests", "1-0", 2, "pb", raw)
    assert letter.decoded()["rows"] == [["a", True, 2**60], [None, False, 1]]
    again = letter.request()
    assert again.packed == v1.Rows(columns=columns)


def test_what_ended_processes_goes_back_only_when_forced(dead: Dead, churn: ModelLanes) -> None:
    letter_id = die(churn, "r1")
    refused = dead("retry", letter_id)
    assert (refused.exit_code, bulk(churn), len(churn.dead())) == (3, [], 1)
    assert "--force" in refused.stderr
    done = dead("retry", letter_id, "--force", "--json")
    assert done.exit_code == 0
    assert lines(done)[0]["request_id"] == "r1"
    [fields] = bulk(churn)
    request = Request.from_bytes(fields[b"pb"])
    assert (request.model_id, request.version, request.request_id) == ("churn", "", "r1")
    assert request.packed is not None
    assert request.packed.matrix.float64 == np.array([25.0, 120.0]).tobytes()
    assert churn.dead() == []


def test_a_letter_that_went_back_is_a_request_that_passed_the_entrance(dead: Dead, churn: ModelLanes) -> None:
    """It is pending and counted, and the worker that reads it finds it to be its own."""
    letter_id = bury(churn, {"json": b'{"rows": [[1, 2], [3, 4]], "request_id": "mine"}'})
    before = churn.counts().get("accepted", 0)
    [line] = lines(dead("retry", letter_id, "--json"))
    state = churn.state("mine")
    assert state is not None
    assert (state.entry_id, state.lane, state.response) == (line["entry_id"], wire.BULK, b"")
    assert churn.rows(BULK) == 2
    assert churn.counts()["accepted"] == before + 1
    [fields] = bulk(churn)
    assert json.loads(fields[b"json"]) == {"rows": [[1, 2], [3, 4]], "request_id": "mine"}
    [entry_id] = churn.read(lane=BULK)
    body = Request.from_json(fields[b"json"], "churn").body_sha256()
    assert churn.claim((entry_id, 2, body, "mine")) == [2]


def test_a_request_whose_reply_is_still_remembered_gets_a_fresh_id(dead: Dead, churn: ModelLanes) -> None:
    """Under its own id the lane would take it for a duplicate."""
    letter_id = die(churn, "r1", reply_ttl_s=60)
    [line] = lines(dead("retry", letter_id, "--force", "--json"))
    assert line["request_id"] != "r1"
    assert Request.from_bytes(bulk(churn)[0][b"pb"]).request_id == line["request_id"]
    first, second = churn.state("r1"), churn.state(line["request_id"])
    assert first is not None
    assert first.response
    assert second is not None
    assert not second.response


def test_a_bulk_request_without_an_id_gets_one_that_its_result_can_be_asked_by(dead: Dead, churn: ModelLanes) -> None:
    letter_id = bury(churn, {"json": b'{"inputs": [1, 2]}'})
    shown = dead("retry", letter_id)
    [fields] = bulk(churn)
    request_id = json.loads(fields[b"json"])["request_id"]
    assert f"millstream result churn {request_id}" in shown.stdout
    assert churn.state(request_id) is not None


def test_a_letter_goes_back_once(redis_client: redis.Redis, prefix: str, churn: ModelLanes, dead: Dead) -> None:
    """Two people at once: the second finds it gone, and nothing is asked twice."""
    letter_id = bury(churn, {"json": b'{"inputs": [1, 2]}'})
    letters = DeadLetters(redis_client, prefix)
    letter = letters.find("churn", letter_id)
    assert letter is not None
    assert letters.retry(letter) is not None
    assert letters.retry(letter) is None
    assert len(bulk(churn)) == 1
    again = dead("retry", letter_id)
    assert again.exit_code == 4
    assert letter_id in again.stderr


def test_a_lane_of_the_wrong_type_leaves_the_letter_where_it_is(
    redis_client: redis.Redis, prefix: str, churn: ModelLanes, dead: Dead
) -> None:
    letter_id = bury(churn, {"json": b'{"inputs": [1, 2]}'})
    before = churn.counts()
    redis_client.set(churn.keys.rows_bulk, "not a number")
    assert dead("retry", letter_id).exit_code == 5
    assert (len(churn.dead()), churn.counts()) == (1, before)


@pytest.mark.parametrize(
    "fields",
    [{"json": b"no JSON"}, {"json": b'{"inputs": "x"}'}, {"pb": b"\xff"}, {"other": b"1"}, {"json": b"[1]"}],
    ids=repr,
)
def test_what_is_no_request_stays_and_the_message_says_so(
    dead: Dead, churn: ModelLanes, fields: dict[str, bytes]
) -> None:
    letter_id = bury(churn, fields, MALFORMED)
    refused = dead("retry", letter_id)
    assert (refused.exit_code, len(churn.dead()), bulk(churn)) == (3, 1, [])
    assert "dead drop" in refused.stderr


def test_all_go_back_but_those_that_can_not(dead: Dead, churn: ModelLanes) -> None:
    die(churn, "r1")
    bury(churn, {"json": b"no JSON"}, MALFORMED)
    for number in range(3):
        bury(churn, {"json": b'{"inputs": [%d, 1]}' % number})
    shown = dead("retry", "--all", "--json")
    assert shown.exit_code == 3
    assert len(lines(shown)) == 3
    assert [json.loads(fields[b"json"])["inputs"] for fields in bulk(churn)] == [[0, 1], [1, 1], [2, 1]]
    assert [letter[b"reason"].decode() for letter in churn.dead()] == [POISON, MALFORMED]


def test_letters_are_dropped_when_the_person_says_so(dead: Dead, churn: ModelLanes) -> None:
    first, second = die(churn, "r1"), die(churn, "r2")
    kept = dead("drop", first, answer="n\n")
    assert (kept.exit_code, len(churn.dead())) == (3, 2)
    nobody = dead("drop", first)
    assert (nobody.exit_code, len(churn.dead())) == (2, 2)
    assert "--yes" in nobody.stderr
    assert dead("drop", first, answer="y\n").exit_code == 0
    assert [line["id"] for line in lines(dead("list", "--json"))] == [second]
    assert lines(dead("drop", "--all", "--yes", "--json")) == [{"dropped": 1}]
    assert churn.dead() == []


@pytest.mark.parametrize("words", [("retry",), ("drop",), ("retry", "1-0", "--all"), ("show", "x"), ("show", "1-٣")])
def test_wrong_usage_ends_with_2(dead: Dead, words: tuple[str, ...]) -> None:
    assert dead(*words).exit_code == 2


def test_an_id_that_is_nowhere_is_not_found(dead: Dead, churn: ModelLanes) -> None:
    die(churn, "r1")
    for words in (("show", "1-1"), ("retry", "1-1"), ("drop", "1-1", "--yes")):
        assert dead(*words).exit_code == 4


def test_an_id_of_two_models_needs_the_model(
    dead: Dead, churn: ModelLanes, redis_client: redis.Redis, prefix: str
) -> None:
    other = ModelLanes(redis_client, prefix, "other")
    letter_id = die(churn, "r1")
    [fields] = churn.dead()
    redis_client.xadd(other.keys.dead, dict(fields), id=letter_id)  # type: ignore[arg-type]
    either = dead("show", letter_id)
    assert either.exit_code == 2
    assert "churn, other" in either.stderr
    assert lines(dead("show", letter_id, "--model", "other", "--json"))[0]["model_id"] == "other"


def test_a_redis_that_is_away_ends_with_5() -> None:
    shown = CliRunner().invoke(app, ["dead", "list", "--redis-url", f"redis://127.0.0.1:{free_port()}"])
    assert shown.exit_code == 5
    assert "Traceback" not in shown.stderr
    wrong = CliRunner().invoke(app, ["dead", "list", "--redis-url", "nonsense"])
    assert wrong.exit_code == 2


def test_thousands_of_letters_are_gone_through_page_by_page(
    redis_client: redis.Redis, prefix: str, churn: ModelLanes
) -> None:
    pipe = redis_client.pipeline(transaction=False)
    for number in range(1234):
        pipe.xadd(churn.keys.dead, {"reason": MALFORMED, "lane": "bulk", "entry_id": f"{number}-0"})
    pipe.execute()
    letters = DeadLetters(redis_client, prefix)
    assert [letter.entry_id for letter in letters.all("churn")] == [f"{number}-0" for number in range(1234)]
    assert letters.models() == ["churn"]
    assert letters.newest("churn", 1)[0].entry_id == "1233-0"


def test_letters_that_went_back_are_served_like_any_request(valkey: RedisServer, tmp_path: Path) -> None:
    """One that had ended processes, while no worker is there yet; and one whose id was another request's."""
    prefix = f"d{uuid.uuid4().hex[:12]}"
    with Stage(tmp_path, valkey.url, prefix) as stage:
        stage.publish_odd()
        lanes = ModelLanes(stage.redis, prefix, ODD)
        [entry_id] = lanes.enter((admitted("poison", 4.0, model_id=ODD), 1, b"", "poison"))
        lanes.read()
        item = finish(entry_id, "poison", dead=POISON.encode(), reply_ttl_s=b"", gateway="", rows=1)
        lanes.leave(item)
        stage.worker()
        stage.push(ODD, {"inputs": [1.0], "request_id": "shared"})
        stage.push(ODD, {"inputs": [5.0], "request_id": "shared"})
        eventually(lambda: len(stage.dead(ODD)) == 2)
        letters = DeadLetters(stage.redis, prefix)
        went = {letter.reason: letters.retry(letter) for letter in letters.all(ODD)}
        poison, shared = went[POISON], went[REUSED]
        assert poison is not None
        assert shared is not None
        assert poison.request_id == "poison"
        assert stage.stored(ODD, "poison").columns[0].column.doubles.values == [8.0]
        assert outputs(stage.stored(ODD, shared.request_id)) == [{"out": 10.0}]
        assert outputs(stage.stored(ODD, "shared")) == [{"out": 2.0}]
        stage.drained(ODD)
        assert stage.dead(ODD) == []
