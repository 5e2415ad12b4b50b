"""Lanes: the next batch is read in the round trip in which the last one leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import redis
from redis.exceptions import ResponseError

from consumers.worker.crowds import MOST_S, Crowds
from consumers.worker.exits import Exits
from consumers.worker.lanes import Batch, Lanes
from consumers.worker.leases import Leases
from contract.completion import BULK, INTERACTIVE
from contract.keys import Keys
from contract.line import Line
from contract.settings import Settings
from protos import millstream_wire_v1_pb2 as wire
from tests.lanes import ModelLanes, finish
from tests.servers import RedisServer

pytestmark = pytest.mark.integration


class Reader:
    """What a worker reads and completes with, and the lanes of two models."""

    def __init__(self, server: RedisServer, client: redis.Redis, prefix: str) -> None:
        settings = Settings.read(prefix=prefix)
        keys = Keys(prefix)
        self.line = Line(server.url, timeout_s=5.0)
        self.lanes = Lanes(self.line, client, keys, settings, "w1")
        self.exits = Exits(self.line, keys, Leases(keys, settings, "w1"), "w1", threading.Event().is_set)
        self.churn, self.fraud = ModelLanes(client, prefix, "churn"), ModelLanes(client, prefix, "fraud")
        self.lanes.serve(["churn", "fraud"])

    def leave(self, batch: Batch) -> list[int]:
        """Completes a batch; what is next may be read with it."""
        items = [finish(each.entry_id, f"done {each.entry_id!r}", lane=batch.lane) for each in batch.deliveries]
        head = wire.Header(model_id=batch.model_id)
        return self.exits.complete(batch.model_id, batch.lane, head, items, self.lanes.after(batch))


@pytest.fixture
def reader(valkey: RedisServer, redis_client: redis.Redis, prefix: str) -> Iterator[Reader]:
    one = Reader(valkey, redis_client, prefix)
    yield one
    one.line.close()


def ids(batches: list[Batch]) -> list[tuple[str, bytes]]:
    return [(batch.model_id, each.entry_id) for batch in batches for each in batch.deliveries]


def test_what_came_meanwhile_is_taken_with_the_exit_and_given_once(reader: Reader) -> None:
    first = reader.churn.append("r1", "r2")
    (batch,) = reader.lanes.read(wait=False)
    later = reader.churn.append("r3", "r4")
    assert reader.leave(batch) == [1, 1]
    assert reader.lanes.holds
    assert ids([batch]) == [("churn", each) for each in first]
    assert ids(reader.lanes.take()) == [("churn", each) for each in later]
    assert (reader.lanes.holds, reader.lanes.take()) == (False, [])
    assert reader.churn.held() == {each.decode(): "w1" for each in later}


def test_when_another_model_is_asked_it_is_its_turn(reader: Reader) -> None:
    reader.churn.append("r1")
    (batch,) = reader.lanes.read(wait=False)
    reader.churn.append("r2")
    (other,) = reader.fraud.append("r3")
    assert reader.leave(batch) == [1]
    # Nobody had asked when this one was read: one more of the same, and then the other.
    (taken,) = reader.lanes.take()
    reader.churn.append("r4")
    assert reader.lanes.after(taken) is None
    assert reader.leave(taken) == [1]
    assert not reader.lanes.holds
    assert ids(reader.lanes.read(wait=False)) == [("fraud", other)]


def test_after_a_read_that_waited_nothing_is_taken(reader: Reader) -> None:
    reader.churn.append("r1")
    (batch,) = reader.lanes.read()
    assert reader.lanes.after(batch) is not None
    assert reader.lanes.read() == []
    assert reader.lanes.after(batch) is None


@pytest.mark.parametrize("changes", [{"lane": BULK}, {"lone": True}, {"model_id": "of no worker"}])
def test_bulk_and_lone_attempts_and_models_that_were_left_take_nothing(
    changes: dict[str, object], reader: Reader
) -> None:
    reader.churn.append("r1")
    (batch,) = reader.lanes.read(wait=False)
    assert reader.lanes.after(batch._replace(**changes)) is None  # type: ignore[arg-type]


def test_what_was_taken_is_kept_though_the_exit_is_refused(reader: Reader) -> None:
    reader.churn.append("r1")
    (batch,) = reader.lanes.read(wait=False)
    later = reader.churn.append("r2")
    reader.churn.client.set(reader.churn.keys.crashes, "no hash")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        reader.leave(batch)
    assert ids(reader.lanes.take()) == [("churn", each) for each in later]


@pytest.mark.parametrize("came", [1, 3])
def test_who_waits_for_a_slow_model_comes_before_bulk_once_the_crowd_had_its_time(came: int, reader: Reader) -> None:
    """Fewer than there were, or as many, so that more are waited for."""
    now = 100.0
    reader.lanes.crowds = Crowds(lambda _model: 1.0, lambda: now)
    reader.churn.append("r1", "r2", "r3")
    (batch,) = reader.lanes.read(wait=False)
    reader.leave(batch)
    reader.lanes.answered(batch)
    later = reader.churn.append(*(f"later {each}" for each in range(came)))
    read = []
    for each in range(6):
        reader.churn.append(f"bulk {each}", lane=BULK)
        (batch,) = reader.lanes.read(wait=False)
        read.append(batch.lane)
        assert reader.leave(batch) == [1] * len(batch.deliveries)
        reader.lanes.answered(batch)
        now += 0.4 * MOST_S
    assert read[:4].count(INTERACTIVE) == 1
    assert read[4:] == [BULK, BULK]
    assert not reader.churn.held().keys() & {each.decode() for each in later}


def test_a_server_that_forgot_its_scripts_completes_and_reads_all_the_same(reader: Reader) -> None:
    reader.churn.append("r1")
    (batch,) = reader.lanes.read(wait=False)
    later = reader.churn.append("r2")
    reader.churn.client.script_flush()
    assert reader.leave(batch) == [1]
    assert ids(reader.lanes.take()) == [("churn", each) for each in later]


def test_groups_that_are_gone_are_made_again_by_the_next_pass(reader: Reader) -> None:
    reader.churn.append("r1")
    (batch,) = reader.lanes.read(wait=False)
    reader.churn.client.delete(reader.churn.keys.requests)
    assert reader.leave(batch) == [0]
    assert not reader.lanes.holds
    assert reader.lanes.after(batch) is None
    (later,) = reader.churn.append("r2")
    assert reader.lanes.read(wait=False) == []
    assert ids(reader.lanes.read(wait=False)) == [("churn", later)]
