"""Questions to the event log, over gRPC against a sink that runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from consumers.sink.database import EventDatabase
from consumers.sink.service import MAX_FOLLOWERS, EventLogServer, ListenError
from consumers.sink.sink import Sink
from contract.keys import Keys
from contract.settings import Settings
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.event_entries import T0, EventStream, RunningSink, failed, ok

pytestmark = pytest.mark.integration

SECOND = 1_000_000


def at(seconds: float) -> Timestamp:
    time = Timestamp()
    time.FromMicroseconds(T0 + int(seconds * SECOND))
    return time


@pytest.fixture
def roi(redis_url: str, prefix: str) -> Iterator[EventStream]:
    with EventStream(redis_url, prefix) as stream:
        stream.announce()
        yield stream


@pytest.fixture
def churn(redis_url: str, prefix: str) -> Iterator[EventStream]:
    with EventStream(redis_url, prefix, "churn") as stream:
        stream.announce()
        yield stream


@pytest.fixture
def sink(roi: EventStream, churn: EventStream, redis_url: str, prefix: str, tmp_path: Path) -> Iterator[RunningSink]:
    """Four requests of two models, a second apart, and one of them twice in the log."""
    bulk = ok("r3", at_us=T0 + 2 * SECOND, entity_id="101", version="1.1.0")
    bulk.lane = wire.BULK
    roi.append(ok("r1", at_us=T0), failed("r2", at_us=T0 + SECOND), bulk)
    churn.append(ok("c1", at_us=T0 + 3 * SECOND, entity_id="101"), ok("c1", at_us=T0 + 4 * SECOND))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 5)
        yield sink


def ids(events: list[v1.ModelEvent]) -> list[str]:
    return [event.request_id for event in events]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, ["r1", "r2", "r3", "c1", "c1"]),
        ({"oldest_first": False}, ["c1", "c1", "r3", "r2", "r1"]),
        ({"limit": 2}, ["r1", "r2"]),
        ({"limit": 2, "oldest_first": False}, ["c1", "c1"]),
        ({"model_id": "churn"}, ["c1", "c1"]),
        ({"model_id": "none"}, []),
        ({"version": "1.1.0"}, ["r3"]),
        ({"status": "FAILED"}, ["r2"]),
        ({"status": "OK", "model_id": "roi_prediction"}, ["r1", "r3"]),
        ({"entity_id": "101"}, ["r3", "c1"]),
        ({"request_id": "c1"}, ["c1", "c1"]),
        ({"request_id": "'; DROP TABLE events; --"}, []),
        ({"lane": "bulk"}, ["r3"]),
        ({"since": at(1)}, ["r2", "r3", "c1", "c1"]),
        ({"until": at(1)}, ["r1"]),
        ({"since": at(1), "until": at(2.000001)}, ["r2", "r3"]),
        ({"since": at(1), "until": at(1)}, []),
    ],
    ids=str,
)
def test_a_query_answers_what_its_filters_say(sink: RunningSink, query: dict[str, Any], expected: list[str]) -> None:
    assert expected == ids(sink.events(**query))


def test_a_query_without_a_limit_answers_a_hundred_rows(sink: RunningSink, roi: EventStream) -> None:
    roi.append(*(ok(f"more{number}") for number in range(150)))
    eventually(lambda: sink.count() == 155)
    assert len(sink.events(limit=0)) == 100
    assert len(sink.events(limit=120)) == 120


def test_count_says_how_many_by_status_and_model(sink: RunningSink) -> None:
    expected = v1.EventCount(
        events=5,
        distinct_requests=4,
        by_status={"OK": 4, "FAILED": 1},
        by_model={"roi_prediction": 3, "churn": 2},
    )
    assert expected == sink.stub.Count(v1.EventQuery(limit=1))


@pytest.mark.parametrize(
    ("query", "field", "message"),
    [
        ({"status": "GOOD"}, "status", "expected one of OK, FAILED, INVALID, EXPIRED, POISON, CANCELLED, SHADOW"),
        ({"lane": "fast"}, "lane", "expected requests or bulk, got 'fast'"),
        ({"limit": 100_001}, "limit", "expected at most 100000 rows in one call, got 100001"),
        ({"since": at(2), "until": at(1)}, "until", "expected a time that is not before since"),
        ({"since": Timestamp(seconds=2**62)}, "since", "expected a time between the years 1 and 9999"),
        ({"until": Timestamp(nanos=-1)}, "until", "expected a time between the years 1 and 9999"),
    ],
)
def test_a_question_that_cannot_be_asked_is_refused_with_its_field(
    sink: RunningSink, query: dict[str, Any], field: str, message: str
) -> None:
    for ask in (
        lambda asked: list(sink.stub.Query(asked)),
        sink.stub.Count,
        lambda asked: list(sink.stub.Follow(asked)),
    ):
        with pytest.raises(grpc.RpcError) as raised:
            ask(v1.EventQuery(**query))
        status = rpc_status.from_call(raised.value)
        assert status is not None
        assert raised.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        details = error_details_pb2.BadRequest()
        assert status.details[0].Unpack(details)
        assert field == details.field_violations[0].field
        assert details.field_violations[0].description.startswith(message)


class Follower:
    """A caller who follows, in a thread, and keeps what came."""

    def __init__(self, sink: RunningSink, **query: Any) -> None:
        self._call = sink.stub.Follow(v1.EventQuery(**query))
        self._call.initial_metadata()  # from here on nothing is missed
        self.came: list[v1.ModelEvent] = []
        self.ended: grpc.RpcError | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for event in self._call:
                self.came.append(event)
        except grpc.RpcError as error:
            self.ended = error

    def leave(self) -> None:
        self._call.cancel()
        self.join()

    def join(self) -> None:
        self._thread.join(20)
        assert not self._thread.is_alive()


def test_a_follower_sees_new_rows_alone(sink: RunningSink, roi: EventStream, churn: EventStream) -> None:
    follower = Follower(sink, model_id="roi_prediction")
    churn.append(ok("c2"))
    roi.append(ok("r4"), ok("r5"))
    eventually(lambda: len(follower.came) == 2)
    roi.append(*(ok(f"m{number}") for number in range(1200)))
    eventually(lambda: len(follower.came) == 1202)
    follower.leave()
    assert ["r4", "r5", *(f"m{number}" for number in range(1200))] == ids(follower.came)


def test_a_follower_since_a_time_gets_what_was_there_first(sink: RunningSink, roi: EventStream) -> None:
    follower = Follower(sink, since=at(2))
    eventually(lambda: len(follower.came) == 3)
    roi.append(ok("old", at_us=T0), ok("new", at_us=T0 + 9 * SECOND))
    eventually(lambda: len(follower.came) == 4)
    follower.leave()
    assert sorted(ids(follower.came)[:3]) + ids(follower.came)[3:] == ["c1", "c1", "r3", "new"]


def test_a_follower_with_a_limit_ends(sink: RunningSink, roi: EventStream) -> None:
    follower = Follower(sink, limit=2)
    roi.append(ok("r4"), ok("r5"), ok("r6"))
    follower.join()
    assert follower.ended is None
    assert ids(follower.came) == ["r4", "r5"]


def test_followers_never_take_the_last_thread(sink: RunningSink) -> None:
    followers = [Follower(sink) for _ in range(MAX_FOLLOWERS)]
    one_more = Follower(sink)
    one_more.join()
    assert one_more.ended is not None
    assert one_more.ended.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert sink.count() == 5
    for follower in followers:
        follower.leave()
    # A place is free again as soon as the server has seen the callers go.
    assert eventually(lambda: _follows(sink), within=10)


def _follows(sink: RunningSink) -> bool:
    call = sink.stub.Follow(v1.EventQuery(limit=1))
    try:
        call.initial_metadata()
        return bool(call.is_active())
    finally:
        call.cancel()


def test_followers_are_told_when_the_sink_stops(roi: EventStream, redis_url: str, prefix: str, tmp_path: Path) -> None:
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        follower = Follower(sink)
        sink.stop()
        follower.join()
    assert follower.ended is not None
    assert follower.ended.code() == grpc.StatusCode.UNAVAILABLE


def test_what_fails_inside_is_answered_without_its_insides(tmp_path: Path) -> None:
    """Only its number is told: the rest stands in the sink's log."""
    database = EventDatabase(tmp_path / "events.duckdb")
    server = EventLogServer(database)
    try:
        address = server.listen("127.0.0.1:0")
        database.close()
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as raised:
            v1_grpc.EventLogStub(channel).Count(v1.EventQuery(), timeout=10)
        assert raised.value.code() == grpc.StatusCode.INTERNAL
        assert str(raised.value.details()).startswith("the event log could not answer; its log says more under ")
    finally:
        server.stop()


def test_an_address_that_is_in_use_is_named(sink: RunningSink, redis_url: str, prefix: str, tmp_path: Path) -> None:
    second = Sink(Settings.read(prefix=prefix), Keys(prefix), redis_url, tmp_path / "other.duckdb")
    third = Sink(Settings.read(prefix=prefix), Keys(prefix), redis_url, tmp_path / "third.duckdb")
    try:
        taken = second.serve("127.0.0.1:0")
        with pytest.raises(ListenError, match=f"can't listen on {taken}: the address is in use"):
            third.serve(taken)
    finally:
        second.close()
        third.close()
