"""The snapshot through admission: Redis first, then the file, then the default, on both lanes."""

from __future__ import annotations

import struct
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.odd_models import OddModel
from tests.servers import RedisServer
from tests.snapshots import NOW, publish_snapshot
from tests.stage import GatewayProcess, Stage

pytestmark = pytest.mark.integration

FEATURES: list[dict[str, object]] = [{"name": "a", "type": "float"}, {"name": "b", "type": "float", "default": -1.0}]
TAKES, REFUSES = "takes", "refuses"
REDIS, FILE, DEFAULT = wire.REDIS, wire.FILE, wire.DEFAULT


@dataclass(frozen=True, slots=True)
class House:
    """A stage whose gateway and worker have a feature store of their own, and a snapshot beside it."""

    stage: Stage
    gateway: GatewayProcess
    store: RedisServer
    file: Path

    def hydrated(self, model_id: str, request_id: str) -> tuple[tuple[float, ...], list[int], bool]:
        """What stands in the event: the row, where each value came from, whether degraded."""
        entry = self.stage.ended(model_id, request_id).entry
        return struct.unpack("<2d", entry.matrix.float64), [h.origin for h in entry.hydrated], entry.degraded

    def asked(self, model_id: str, entity_id: str) -> tuple[tuple[float, ...], list[int], bool]:
        """The same of a request through the gateway."""
        reply = self.gateway.predict(v1.PredictRequest(model_id=model_id, entity_id=entity_id))
        found = self.hydrated(model_id, reply.request_id)
        assert reply.degraded == found[2]
        return found

    def pushed(self, model_id: str, entity_id: str) -> tuple[tuple[float, ...], list[int], bool]:
        """The same of an entry of the bulk lane, which the worker completes."""
        entry_id = self.stage.push(model_id, {"entity_id": entity_id})
        reply = self.stage.stored(model_id, entry_id)
        assert not reply.HasField("error"), reply.error
        return self.hydrated(model_id, entry_id)

    @contextmanager
    def without_store(self) -> Iterator[None]:
        """Redis of the feature store is frozen: it takes connections and never answers."""
        self.store.pause()
        try:
            yield
        finally:
            self.store.resume()

    def publish(self, *rows: tuple[str, str, str]) -> None:
        publish_snapshot(self.file, [(*row, NOW) for row in rows])


@pytest.fixture(scope="module")
def house(valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("snapshot")
    file = folder / "features.parquet"
    file.write_bytes(b"broken at first")
    with RedisServer(folder / "store") as store, store.client() as client:
        client.mset({"user:redis:a": "1.5", "user:both:a": "2.5"})
        # Fast machine or not: Redis answers in time unless it is frozen.
        more = {"features_url": store.url, "features_file": file, "features_timeout_ms": 500}
        with Stage(folder, valkey.url, f"s{uuid.uuid4().hex[:12]}", **more) as stage:
            (folder / "odd").mkdir(exist_ok=True)
            for model_id, policy in ((TAKES, "default"), (REFUSES, "refuse")):
                entity = {"name": "user_id", "key": "user:{id}:{feature}", "on_store_error": policy}
                stage.publish_model(model_id, OddModel(folder / "odd"), FEATURES, entity=entity)
            stage.worker()
            yield House(stage, stage.gateway(TAKES, REFUSES), store, file)


@pytest.fixture
def full(house: House) -> House:
    """The house with a published snapshot that both processes have read."""
    house.publish(("file", "a", "7.5"), ("file", "b", "8.5"), ("both", "a", "99"), ("both", "b", "3.5"))
    for model_id in (TAKES, REFUSES):
        for ask in (house.asked, house.pushed):
            eventually(lambda ask=ask, model_id=model_id: ask(model_id, "both")[0] == (2.5, 3.5))  # type: ignore[misc]
    return house


def test_a_broken_or_missing_file_is_said_once_and_counts_as_having_nothing(house: House) -> None:
    expected = ((1.5, -1.0), [REDIS, DEFAULT], False)
    assert [house.asked(TAKES, "redis") for _ in range(3)] == [expected] * 3
    assert house.pushed(TAKES, "redis") == expected
    said = [line for line in house.gateway.log.read_text().splitlines() if "snapshot of features is not used" in line]
    assert len(said) == 1
    assert "expected a Parquet or DuckDB file" in said[0]
    with pytest.raises(grpc.RpcError) as caught:
        house.asked(TAKES, "nobody")
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize("model_id", [TAKES, REFUSES])
def test_redis_comes_first_then_the_file_then_the_default(full: House, model_id: str) -> None:
    for ask in (full.asked, full.pushed):
        assert ask(model_id, "both") == ((2.5, 3.5), [REDIS, FILE], False)
        assert ask(model_id, "file") == ((7.5, 8.5), [FILE, FILE], False)
        assert ask(model_id, "redis") == ((1.5, -1.0), [REDIS, DEFAULT], False)


def test_while_redis_is_late_the_file_answers_and_says_degraded(full: House) -> None:
    full.publish(("both", "a", "99"))
    with full.without_store():
        for ask in (full.asked, full.pushed):
            # From the old file until the new one is seen.
            eventually(lambda ask=ask: ask(TAKES, "both") == ((99.0, -1.0), [FILE, DEFAULT], True))  # type: ignore[misc]
        with pytest.raises(grpc.RpcError) as caught:
            full.asked(TAKES, "redis")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    eventually(lambda: full.asked(TAKES, "both") == ((2.5, -1.0), [REDIS, DEFAULT], False))


def test_a_signature_that_refuses_takes_nothing_from_the_file_while_redis_is_late(full: House) -> None:
    with full.without_store():
        with pytest.raises(grpc.RpcError) as caught:
            full.asked(REFUSES, "file")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        entry_id = full.stage.push(REFUSES, {"entity_id": "file"})
        assert full.stage.stored(REFUSES, entry_id).error.reason == "FEATURES_UNAVAILABLE"
    eventually(lambda: full.asked(REFUSES, "file") == ((7.5, 8.5), [FILE, FILE], False))


def test_a_value_of_the_file_that_no_feature_takes_is_refused_and_named(full: House) -> None:
    full.publish(("wrong", "a", "many"))

    def refusal() -> str:
        with pytest.raises(grpc.RpcError) as caught:
            full.asked(TAKES, "wrong")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        return str(caught.value.details())

    eventually(lambda: "the stored value of wrong in the snapshot is unusable" in refusal())


def test_a_new_file_under_load_is_picked_up_and_no_request_fails(full: House) -> None:
    stop = threading.Event()

    def ask() -> list[float]:
        answers: list[float] = []
        while not stop.is_set():
            reply = full.gateway.predict(v1.PredictRequest(model_id=TAKES, entity_id="file"))
            answers.append(reply.predictions[0].outputs["out"].number / 2)
        return answers

    with ThreadPoolExecutor(4) as callers:
        asking = [callers.submit(ask) for _ in range(4)]
        try:
            for number in (1.25, 2.25):
                full.publish(("file", "a", str(number)))
                eventually(lambda number=number: full.asked(TAKES, "file")[0][0] == number)  # type: ignore[misc]
        finally:
            stop.set()
        seen = [call.result() for call in asking]
    # Each caller saw the files in the order in which they were published, and nothing else.
    order = [7.5, 1.25, 2.25]
    assert [sorted(each, key=order.index) for each in seen] == seen
    eventually(lambda: full.pushed(TAKES, "file")[0][0] == 2.25)
