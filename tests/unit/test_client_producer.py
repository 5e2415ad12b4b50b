"""The producer against a real server, which some tests fill or stop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import redis

from contract.keys import Keys
from ingest.answer import InvalidInput, ModelFailed, NotFound, Overloaded, Pending, Unavailable
from ingest.producer import Producer
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.servers import RedisServer

pytestmark = pytest.mark.integration


@pytest.fixture
def producer(redis_url: str, redis_client: redis.Redis, prefix: str) -> Iterator[Producer]:
    redis_client.hset(Keys(prefix).catalog, "churn", b"signed")
    with Producer(redis_url, prefix) as producer:
        yield producer


def _bodies(client: redis.Redis, prefix: str) -> list[dict[str, object]]:
    entries = client.xrange(Keys(prefix).model("churn").bulk)
    return [json.loads(fields[b"json"]) for _, fields in entries]  # type: ignore[union-attr,index]


def test_each_form_of_request_is_one_json_entry(producer: Producer, redis_client: redis.Redis, prefix: str) -> None:
    ids = [
        producer.send("churn", [25, 120]),
        producer.send("churn", np.array([25.0, 120.0])),
        producer.send("churn", features={"age": np.int64(25)}, request_id="mine"),
        producer.send("churn", entity_id="101", discard_reply=True),
    ]
    assert _bodies(redis_client, prefix) == [
        {"request_id": ids[0], "inputs": [25, 120]},
        {"request_id": ids[1], "inputs": [25.0, 120.0]},
        {"request_id": "mine", "features": {"age": 25}},
        {"request_id": ids[3], "entity_id": "101", "discard_reply": True},
    ]


def test_many_are_sent_in_batches_and_their_ids_come_back_in_order(
    producer: Producer, redis_client: redis.Redis, prefix: str
) -> None:
    progress: list[int] = []
    ids = producer.send_many("churn", ([n, n] for n in range(25)), batch=10, on_progress=progress.append)
    assert progress == [10, 20, 25]
    assert [body["request_id"] for body in _bodies(redis_client, prefix)] == ids
    assert [body["inputs"] for body in _bodies(redis_client, prefix)] == [[n, n] for n in range(25)]


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({}, "inputs"),
        ({"inputs": [1], "features": {"age": 1}}, "features"),
        ({"inputs": [float("nan")]}, "inputs[0]"),
        ({"inputs": [[1]]}, "inputs[0]"),
        ({"features": {"age": object()}}, "age"),
        ({"inputs": [1], "request_id": "a b"}, "request_id"),
        ({"inputs": [1], "request_id": "1-2"}, "request_id"),
        ({"inputs": [2**80]}, "inputs"),
    ],
)
def test_what_no_worker_would_take_is_refused_before_it_is_sent(
    producer: Producer, redis_client: redis.Redis, prefix: str, form: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        producer.send("churn", **form)  # type: ignore[arg-type]
    assert caught.value.violations[0].field == field
    assert _bodies(redis_client, prefix) == []


def test_a_misspelt_model_is_refused_and_makes_no_stream(
    producer: Producer, redis_client: redis.Redis, prefix: str
) -> None:
    with pytest.raises(NotFound, match="there is: churn"):
        producer.send("chrun", [1, 2])
    assert redis_client.exists(Keys(prefix).model("chrun").bulk) == 0


def test_a_result_is_pending_then_there_and_unknown_once_the_lane_is_empty(
    producer: Producer, redis_client: redis.Redis, prefix: str
) -> None:
    names = Keys(prefix).model("churn")
    request_id = producer.send("churn", [25, 120])
    assert producer.result("churn", request_id) == Pending(request_id, "churn"), "no worker has read it"
    state = wire.ReplyState(body_sha256=b"x" * 32, lane=wire.BULK, entry_id="1-1")
    redis_client.set(names.reply(request_id), state.SerializeToString())
    assert producer.result("churn", request_id) == Pending(request_id, "churn"), "a worker has it"
    response = v1.PredictResponse(request_id=request_id, model_id="churn", version="1.0.0")
    response.predictions.add().outputs["churn_probability"].number = 0.85
    state.response = response.SerializeToString()
    redis_client.set(names.reply(request_id), state.SerializeToString())
    answer = producer.result("churn", request_id, wait=5)
    assert not isinstance(answer, Pending)
    assert answer.outputs == {"churn_probability": 0.85}
    redis_client.delete(names.reply(request_id), names.bulk)
    with pytest.raises(NotFound):
        producer.result("churn", request_id)


def test_a_failure_is_raised_as_what_it_was(producer: Producer, redis_client: redis.Redis, prefix: str) -> None:
    response = v1.PredictResponse(request_id="r", error=v1.Error(reason="MODEL_FAILED", message="no", code=13))
    state = wire.ReplyState(body_sha256=b"x" * 32, response=response.SerializeToString())
    redis_client.set(Keys(prefix).model("churn").reply("r"), state.SerializeToString())
    with pytest.raises(ModelFailed) as caught:
        producer.result("churn", "r")
    assert caught.value.request_id == "r"


def test_a_full_server_is_said_plainly_and_what_it_took_before_stays(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, server.client() as client:
        client.hset("ms:catalog", "churn", b"signed")
        with Producer(server.url, patience=0.2) as producer:
            producer.send("churn", [1, 2])
            client.config_set("maxmemory", 1)
            with pytest.raises(Overloaded, match="Redis is full") as caught:
                producer.send("churn", [3, 4], request_id="mine")
            assert caught.value.request_id == "mine"
            assert client.xlen("ms:{churn}:bulk") == 1
            client.config_set("maxmemory", 0)
            assert producer.send("churn", [3, 4], request_id="mine") == "mine"
            assert client.xlen("ms:{churn}:bulk") == 2


def test_a_server_that_comes_back_in_time_gets_every_request(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server:
        with server.client() as client:
            client.hset("ms:catalog", "churn", b"signed")
        with Producer(server.url, patience=20) as producer:
            first = producer.send("churn", [1, 2])
            server.kill()
            with Producer(server.url, patience=0) as hasty, pytest.raises(Unavailable, match="may be sent again"):
                hasty.send("churn", [1, 2])
            with ThreadPoolExecutor(1) as pool, Producer(server.url, patience=20) as late:
                begun_while_it_was_away = pool.submit(late.send, "churn", [5, 6])
                with Producer(server.url, patience=0.3) as hasty, pytest.raises(Unavailable):
                    hasty.send("churn", [1, 2])
                server.start()
                third = begun_while_it_was_away.result(timeout=60)
            second = producer.send("churn", [3, 4])
        with server.client() as client:
            bodies = [json.loads(fields[b"json"]) for _, fields in client.xrange("ms:{churn}:bulk")]
    assert {second, third} <= {body["request_id"] for body in bodies}
    assert first != second


def test_a_wrong_password_is_not_tried_again_and_not_shown(redis_url: str) -> None:
    url = redis_url.replace("://", "://someone:secret@", 1)
    with Producer(url, patience=60) as producer, pytest.raises(Unavailable) as caught:
        producer.send("churn", [1, 2])
    assert "secret" not in caught.value.message
