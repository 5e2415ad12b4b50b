"""The sink against a real server: every event is a row, once, and nothing is trimmed that is not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pytest
import redis
from structlog.testing import capture_logs

from consumers.sink.streams import READ_ENTRIES
from contract.connection import living
from contract.keys import Keys
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.event_entries import (
    DIGEST,
    SHADOW_DIGEST,
    T0,
    EventStream,
    RunningSink,
    copied,
    failed,
    header,
    matrix,
    ok,
)
from tests.servers import RedisServer
from tests.sink_lives import chained

pytestmark = pytest.mark.integration


@pytest.fixture
def stream(redis_url: str, prefix: str) -> Iterator[EventStream]:
    with EventStream(redis_url, prefix) as stream:
        stream.announce()
        yield stream


def rows(database: Path, sql: str) -> list[tuple[Any, ...]]:
    """What stands in the file, once no sink holds it."""
    with duckdb.connect(str(database), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def test_every_field_of_an_event_is_in_its_row(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    event = ok(
        "r1",
        0.1,
        entity_id="101",
        deadline_us=T0 + 30_000_000,
        degraded=True,
        reply_ttl_s=600,
        body_sha256=b"\x01" * 32,
        caller="alice",
        trace="00-ab",
        hydrated=[wire.Hydrated(index=1, origin=wire.REDIS)],
    )
    event.lane, event.batch_position, event.deliveries = wire.BULK, 3, 2
    event_entry = stream.append(event, head=header(batch_rows=7))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        [found] = eventually(sink.events)
    expected = v1.ModelEvent(
        model_id="roi_prediction",
        request_id="r1",
        version="1.0.0",
        digest=DIGEST.hex(),
        status="OK",
        lane="bulk",
        entity_id="101",
        inputs_json="[[0.6,45.0]]",
        outputs_json='[{"roi_pct":0.1}]',
        origins_json='{"1":"redis"}',
        worker="w1",
        gateway="g1",
        caller="alice",
        deliveries=2,
        entry_id=event.entry_id,
        event_entry_id=event_entry,
        batch_id="w1-1",
        batch_rows=7,
        batch_position=3,
        rows=1,
        engine="sklearn",
        runtime_id="r1",
        degraded=True,
    )
    expected.user_request_timestamp.FromMicroseconds(T0)
    expected.admitted_timestamp.FromMicroseconds(T0 + 100)
    expected.appended_timestamp.FromMicroseconds(T0)
    expected.delivered_timestamp.FromMicroseconds(T0 + 200)
    expected.predicted_at_timestamp.FromMicroseconds(T0 + 5_000_001)
    assert expected == found
    columns = "number, reply_ttl_s, body_sha256, trace, packed, discard_reply, epoch_us(deadline_timestamp), exact"
    [row] = rows(tmp_path / "events.duckdb", f"SELECT {columns} FROM events")
    assert row == (1, 600, b"\x01" * 32, "00-ab", False, False, T0 + 30_000_000, None)


def test_a_failure_is_a_row_with_its_reason_and_no_answer(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    stream.append(ok("r1"), failed("r2"), head=header(predicted_us=0))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 2)
        [found] = sink.events(status="FAILED")
    assert (
        found.request_id,
        found.error_reason,
        found.error_message,
        found.outputs_json,
    ) == ("r2", "MODEL_FAILED", "the model raised", "")
    assert not found.HasField("predicted_at_timestamp")
    [(violations, code)] = rows(
        tmp_path / "events.duckdb", "SELECT error_violations, error_code FROM events WHERE status = 'FAILED'"
    )
    assert orjson.loads(violations) == [{"field": "age", "description": "expected 18 to 120, got 7"}]
    assert code == 13


def test_floats_are_exact_to_the_bit(stream: EventStream, redis_url: str, prefix: str, tmp_path: Path) -> None:
    values = (-0.0, 1e308, 5e-324, 0.1, 2.0**53, -1.7976931348623157e308)
    stream.append(ok("r1", -0.0, matrix=matrix(values)), ok("r2", 5e-324, matrix=matrix(values)))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        found = eventually(sink.events)
    assert [list(map(float.hex, values))] == [list(map(float.hex, row)) for row in orjson.loads(found[0].inputs_json)]
    outputs = {event.request_id: orjson.loads(event.outputs_json)[0]["roi_pct"].hex() for event in found}
    assert {"r1": (-0.0).hex(), "r2": (5e-324).hex()} == outputs


def test_hydrated_features_are_named_by_the_catalogue(redis_url: str, prefix: str, tmp_path: Path) -> None:
    signature = {
        "model_id": "churn",
        "version": "1.0.0",
        "trained_date": "2023-10-25",
        "status": "production",
        "azure_location": "ai-models",
        "expected_features": [
            {"index": 1, "name": "clicks", "type": "int", "default": 0},
            {"index": 0, "name": "age", "type": "int"},
        ],
    }
    version = wire.VersionRecord(
        version="1.0.0", digest=DIGEST, state=wire.LIVE, signature_json=orjson.dumps(signature)
    )
    record = wire.ModelRecord(model_id="churn", revision=1, versions=[version])
    with EventStream(redis_url, prefix, "churn") as stream:
        signed = wire.SignedRecord(record=record.SerializeToString())
        stream.client.hset(stream.keys.catalog, "churn", signed.SerializeToString())
        hydrated = [wire.Hydrated(index=0, origin=wire.REDIS), wire.Hydrated(index=1, origin=wire.DEFAULT)]
        stream.append(ok("r1", hydrated=hydrated), ok("r2"))
        with RunningSink(redis_url, prefix, tmp_path) as sink:
            found = {event.request_id: event.origins_json for event in eventually(sink.events)}
    assert found == {"r1": '{"age":"redis","clicks":"default"}', "r2": ""}


def test_a_model_that_comes_later_is_read_from_its_first_event(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    with RunningSink(redis_url, prefix, tmp_path) as sink, EventStream(redis_url, prefix, "churn") as late:
        stream.append(ok("r1"))
        eventually(lambda: sink.count() == 1)
        late.append(ok("r2"))
        late.announce()
        eventually(lambda: sink.count(model_id="churn") == 1)
    assert rows(tmp_path / "events.duckdb", "SELECT model_id, expected, found, why FROM gaps") == []


def test_a_model_that_left_the_catalogue_is_still_read(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    stream.append(ok("r1"))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 1)
    stream.client.delete(stream.keys.catalog)
    stream.append(ok("r2"))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 2)


def test_a_backlog_is_drained_in_order_and_trimmed(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    for entry in range(120):
        stream.append(*(ok(f"{entry}-{at}", at_us=T0 + entry) for at in range(100)))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 12_000, within=60)
        eventually(lambda: stream.length == 0)
    found = rows(
        tmp_path / "events.duckdb",
        "SELECT count(*), count(DISTINCT request_id), min(number), max(number), count(DISTINCT number) FROM events",
    )
    assert found == [(12_000, 12_000, 1, 12_000, 12_000)]
    assert rows(tmp_path / "events.duckdb", "SELECT model_id, expected, found, why FROM gaps") == []
    assert rows(tmp_path / "events.duckdb", "SELECT number FROM positions") == [(12_000,)]
    apart = "SELECT count(*) FROM (SELECT number - sequence AS d FROM events) WHERE d <> 0"
    assert rows(tmp_path / "events.duckdb", apart) == [(0,)]


def test_commits_are_apart_only_where_one_takes_all_that_is_there(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a sink could record no more in a second than fits into so many commits, however much waited."""
    monkeypatch.setattr("consumers.sink.sink.GROUP_S", 3600.0)
    monkeypatch.setattr("consumers.sink.sink.GATHER_S", 0.0)
    for entry in range(3 * READ_ENTRIES + 1):
        stream.append(ok(f"r{entry}"))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 3 * READ_ENTRIES + 1)


def test_a_stopped_sink_goes_on_where_it_was(stream: EventStream, redis_url: str, prefix: str, tmp_path: Path) -> None:
    for start in range(0, 30, 10):
        with RunningSink(redis_url, prefix, tmp_path) as sink:
            for number in range(start, start + 10):
                stream.append(ok(f"r{number}"))
            eventually(lambda: sink.count() == stream.number)
    found = rows(tmp_path / "events.duckdb", "SELECT request_id, number FROM events ORDER BY number")
    assert [(f"r{number}", number + 1) for number in range(30)] == found


def test_entries_that_vanish_stop_their_model_until_the_gap_is_accepted(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    first = stream.append(ok("r1"))
    stream.client.xdel(stream.key, stream.append(ok("r2"), ok("r3")))
    last = stream.append(ok("r4"))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        [told] = sink.alarms
        assert told.startswith(
            "roi_prediction: events 2 to 3 are gone from the stream or from this database; recording"
        )
        eventually(lambda: stream.length == 1)
        assert sink.count() == 1
    with RunningSink(redis_url, prefix, tmp_path, accept_gap=True) as sink:
        eventually(lambda: sink.count() == 2)
    found = rows(tmp_path / "events.duckdb", "SELECT model_id, from_entry, to_entry, expected, found, why FROM gaps")
    why = "events 2 to 3 are gone from the stream or from this database; accepted"
    assert [("roi_prediction", first, last, 2, 4, why)] == found


def test_entries_that_cannot_be_read_are_gaps_and_cost_nothing_else(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    good = wire.EventBatch(header=header(), events=[ok("r0")]).SerializeToString()
    stream.append(ok("r1"))
    for fields in (
        {"json": "{}"},
        {"n": "x", "pb": good},
        {"n": "-5", "pb": good},
        {"n": 10**30, "pb": good},
        {"n": 1},
        {"n": 1, "pb": good[:-3]},
        {"n": 1, "pb": b""},
    ):
        stream.append_fields(fields)
    stream.append(ok("r2"))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 2)
        eventually(lambda: stream.length == 0)
    found = rows(tmp_path / "events.duckdb", "SELECT why FROM gaps ORDER BY to_entry")
    assert len(found) == 7
    assert all(why.startswith("the entry can't be read: expected ") for (why,) in found)


def test_rows_that_do_not_fit_together_are_kept_as_they_came(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    odd = ok("r2", matrix=v1.Matrix(rows=1, float64=b"\x00" * 9))
    stream.append(ok("r1"), odd, ok("r3"))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 3)
    found = rows(tmp_path / "events.duckdb", "SELECT inputs, exact FROM events ORDER BY number")
    assert [("[[0.6,45.0]]", None), (None, odd.SerializeToString()), ("[[0.6,45.0]]", None)] == found


def test_a_value_that_the_database_refuses_costs_its_entry_alone(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    with RunningSink(redis_url, prefix, tmp_path):
        pass
    with duckdb.connect(str(tmp_path / "events.duckdb")) as connection:
        [(created,)] = connection.execute("SELECT sql FROM duckdb_tables() WHERE table_name = 'events'").fetchall()
        connection.execute("DROP TABLE events")
        connection.execute(created.rstrip().rstrip(";").rstrip(")") + ", CHECK (request_id <> 'bad'))")
    for request_id in ("r1", "bad", "r2"):
        stream.append(ok(request_id))
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 2)
        eventually(lambda: stream.length == 0)
    [(why,)] = rows(tmp_path / "events.duckdb", "SELECT why FROM gaps")
    assert why.startswith("the database refused it: Constraint Error")
    chained(tmp_path / "events.duckdb")
    assert rows(tmp_path / "events.duckdb", "SELECT request_id, number FROM events ORDER BY 2") == [
        ("r1", 1),
        ("r2", 3),
    ]


def test_a_stream_that_came_back_with_less_is_a_gap_and_no_event_twice(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    events = [ok(f"r{number}") for number in range(5)]
    for event in events:
        stream.append(event)
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        eventually(lambda: sink.count() == 5)
        # The server lost the last three exits; their requests are delivered and completed again, beside a new one.
        stream.number = 2
        stream.append(events[2], events[3])
        eventually(lambda: stream.length == 0)
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        stream.append(events[4], ok("r5"))
        eventually(lambda: sink.count() == 6)
    found = rows(tmp_path / "events.duckdb", "SELECT request_id FROM events ORDER BY sequence")
    assert [(f"r{number}",) for number in range(6)] == found
    assert rows(tmp_path / "events.duckdb", "SELECT expected, found FROM gaps") == [(7, 4)]
    assert rows(tmp_path / "events.duckdb", "SELECT number, ahead FROM positions") == [(6, 0)]
    assert rows(tmp_path / "events.duckdb", "SELECT number FROM events ORDER BY sequence") == [
        (number,) for number in range(1, 7)
    ]
    chained(tmp_path / "events.duckdb")


def test_records_of_what_predicts_are_in_the_log_too(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    stream.client.hset(stream.keys.runtimes, "r1", '{"python":"3.11"}')
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        stream.append(ok("r1"))
        eventually(lambda: sink.count() == 1)
        stream.client.hset(stream.keys.runtimes, "r2", '{"python":"3.12"}')
        expected = {"r1": '{"python":"3.11"}', "r2": '{"python":"3.12"}'}
        eventually(lambda: dict(sink.stub.ListSegments(v1.ListSegmentsRequest()).runtimes) == expected)
    assert rows(tmp_path / "events.duckdb", "SELECT count(*) FROM runtimes") == [(2,)]


def test_a_copy_is_no_duplicate_of_what_it_is_a_copy_of_nor_recorded_twice_itself(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    """The server lost its last writes, and all that they were is done again; a copy even after nothing waits."""
    events = [ok(f"r{number}") for number in range(3)]
    copies = [copied(event) for event in events]
    shadow = header(version="2.0.0", digest=SHADOW_DIGEST)
    database = tmp_path / "events.duckdb"
    with capture_logs() as told, RunningSink(redis_url, prefix, tmp_path) as sink:
        stream.append(*events)
        stream.append(copies[0], copies[1], head=shadow)
        eventually(lambda: sink.count() == 5)
        stream.number = 1
        stream.append(*events[1:])
        # One that is recorded and one that is not, whose request is.
        stream.append(copies[0], copies[2], head=shadow)
        eventually(lambda: any(each["event"] == "every event that came again was matched" for each in told))
        assert sink.count() == 6
    with RunningSink(redis_url, prefix, tmp_path) as sink:
        stream.append(copies[1], head=shadow)
        later = ok("r3", at_us=T0 + 60_000_000)
        stream.append(later)
        stream.append(copied(later), head=shadow)
        eventually(lambda: sink.count() == 8)
    found = rows(database, "SELECT request_id, status, version, digest FROM events ORDER BY sequence")
    live, copy = ("OK", "1.0.0", DIGEST.hex()), ("SHADOW", "2.0.0", SHADOW_DIGEST.hex())
    first = [("r0", *live), ("r1", *live), ("r2", *live), ("r0", *copy), ("r1", *copy)]
    assert found == [*first, ("r2", *copy), ("r3", *live), ("r3", *copy)]


def test_a_key_of_another_type_stops_no_other_model(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    with EventStream(redis_url, prefix, "broken") as broken:
        broken.announce()
        broken.client.set(broken.key, "not a stream")
        stream.append(ok("r1"))
        with RunningSink(redis_url, prefix, tmp_path) as sink:
            eventually(lambda: sink.count() == 1)


def test_it_shows_its_presence_and_takes_it_away(
    stream: EventStream, redis_url: str, prefix: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    with RunningSink(redis_url, prefix, tmp_path):
        eventually(lambda: len(living(redis_client, Keys(prefix), "sink")) == 1)
    assert living(redis_client, Keys(prefix), "sink") == []


def fill(stream: EventStream) -> None:
    """Appends until the server refuses."""
    for number in itertools.count():
        event = ok(f"r{number}")
        event.refused_body = b"x" * 64_000
        stream.append(event)


def test_a_full_server_is_emptied_by_the_sink(prefix: str, tmp_path: Path) -> None:
    config = {"maxmemory": "16mb", "appendonly": "no"}
    with RedisServer(tmp_path / "redis", config=config) as server, EventStream(server.url, prefix) as stream:
        stream.announce()
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            fill(stream)
        entries = stream.length
        with RunningSink(server.url, prefix, tmp_path) as sink:
            eventually(lambda: sink.count() == entries, within=20)
            eventually(lambda: stream.length == 0)


@pytest.mark.faults
def test_a_server_that_dies_and_comes_back_loses_the_sink_nothing(prefix: str, tmp_path: Path) -> None:
    config = {"appendfsync": "always"}
    with (
        RedisServer(tmp_path / "redis", config=config) as server,
        EventStream(server.url, prefix) as stream,
        RunningSink(server.url, prefix, tmp_path) as sink,
    ):
        stream.announce()
        for attempt in range(3):
            stream.append(ok(f"a{attempt}"))
            eventually(lambda: sink.count() == stream.number)
            server.kill()
            server.start()
            stream.append(ok(f"b{attempt}"))
            eventually(lambda: sink.count() == stream.number)
    assert rows(tmp_path / "events.duckdb", "SELECT model_id, expected, found, why FROM gaps") == []
