"""What was recorded nowhere yet stays in Redis, however much it is and whatever happens to the sink."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.wire import length_delimited
from protos import millstream_wire_v1_pb2 as wire
from tests.event_entries import EventStream, header, ok
from tests.faults import REPEATS
from tests.sink_lives import Sinks, emptied, gaps, select
from tests.sink_process import Life

pytestmark = [pytest.mark.integration, pytest.mark.faults]

ENTRY_EVENTS = 512
ENTRIES = 200 * REPEATS


@pytest.fixture
def stream(redis_url: str, prefix: str) -> Iterator[EventStream]:
    with EventStream(redis_url, prefix) as stream:
        stream.announce()
        yield stream


def fill(stream: EventStream) -> None:
    """The requests r0, r1, …, in full entries, as the exit joins them."""
    head = wire.EventBatch(header=header(batch_rows=ENTRY_EVENTS)).SerializeToString()
    pipe = stream.client.pipeline(transaction=False)
    event = ok("r0000000")
    for _ in range(ENTRIES):
        body = [head]
        for number in range(stream.number, stream.number + ENTRY_EVENTS):
            request_id = f"r{number:07}"
            event.entry.request_id = event.response.request_id = request_id
            event.entry_id = f"1700000000000-{number}"
            body.append(length_delimited(b"\x12", event.SerializeToString()))
        stream.number += ENTRY_EVENTS
        pipe.xadd(stream.key, {"n": stream.number, "pb": b"".join(body)})
    pipe.hset(stream.counts, "completed", str(stream.number))
    pipe.execute()


@pytest.mark.timeout(300)
def test_a_backlog_is_drained_whole_though_the_sink_dies_on_the_way(
    stream: EventStream, redis_url: str, prefix: str, tmp_path: Path
) -> None:
    fill(stream)
    assert stream.length == ENTRIES
    with Sinks(redis_url, prefix, tmp_path) as sinks:
        for point in ("before commit", "after commit", "after trim"):
            # At its first pass: how many commits a backlog takes is the machine's affair.
            sinks.killed(Life(point))
            [(number,)] = select(sinks.database, "SELECT coalesce(max(number), 0) FROM positions")
            # Never less than what is not committed.
            assert stream.length >= ENTRIES - number // ENTRY_EVENTS
        with sinks.running():
            emptied(stream, within=120)
        counted = select(
            sinks.database,
            "SELECT count(*), count(DISTINCT request_id), min(number), max(number), count(DISTINCT number) FROM events",
        )
        events = ENTRIES * ENTRY_EVENTS
        assert counted == [(events, events, 1, events, events)]
        assert gaps(sinks.database) == []
