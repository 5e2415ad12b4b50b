"""A running sink with sealed segments and live rows of two models."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protos import millstream_v1_pb2 as v1
from tests.conditions import eventually
from tests.event_entries import T0, EventStream, RunningSink, failed, ok

HOUR_US = 3_600_000_000


class Filled:
    """A running sink with two sealed segments of 30 events an hour apart, and 10 live ones; and another model's 5."""

    def __init__(self, sink: RunningSink, roi: EventStream) -> None:
        self.sink = sink
        self.prefix = roi.keys.prefix
        self.folder = sink.database.parent / "events"

    @property
    def segments(self) -> list[Path]:
        return sorted((self.folder / "roi_prediction").glob("*.parquet"))


def fill(sink: RunningSink, roi: EventStream, churn: EventStream) -> Filled:
    recorded = 0
    for hour in range(2):
        roi.append(*(ok(f"r{hour}-{number}", at_us=T0 + hour * HOUR_US) for number in range(29)))
        roi.append(failed(f"f{hour}", at_us=T0 + hour * HOUR_US))
        recorded += 30
        eventually(lambda expected=recorded: sink.count() == expected)  # type: ignore[misc]
        sink.stub.Seal(v1.SealRequest())
    roi.append(*(ok(f"live-{number}", at_us=T0 + 2 * HOUR_US) for number in range(10)))
    churn.append(*(ok(f"c{number}", at_us=T0 + 2 * HOUR_US, model_id="churn") for number in range(5)))
    eventually(lambda: sink.count() == recorded + 15)
    return Filled(sink, roi)


@contextmanager
def filled(url: str, folder: Path) -> Iterator[Filled]:
    folder.mkdir(exist_ok=True)
    prefix = f"k{uuid.uuid4().hex[:12]}"
    with EventStream(url, prefix) as roi, EventStream(url, prefix, "churn") as churn:
        for stream in (roi, churn):
            stream.announce()
        with RunningSink(url, prefix, folder) as sink:
            yield fill(sink, roi, churn)
