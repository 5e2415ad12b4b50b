"""Events as a worker writes them, a stream of them with its running number, and a sink to read them."""

from __future__ import annotations

import hashlib
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import grpc

from consumers.sink.sink import run_sink
from contract.connection import connect
from contract.keys import Keys
from contract.settings import Settings
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from protos import millstream_wire_v1_pb2 as wire

DIGEST = hashlib.sha256(b"roi_prediction 1.0.0").digest()
SHADOW_DIGEST = hashlib.sha256(b"roi_prediction 2.0.0").digest()
T0 = 1_700_000_000_000_000
"""Microseconds; a second in November 2023."""
PREDICTED_US = T0 + 5_000_001


def matrix(*rows: Sequence[float]) -> v1.Matrix:
    values = [value for row in rows for value in row]
    return v1.Matrix(rows=len(rows), float64=struct.pack(f"<{len(values)}d", *values))


def header(model_id: str = "roi_prediction", **fields: Any) -> wire.Header:
    shared: dict[str, Any] = {
        "model_id": model_id,
        "version": "1.0.0",
        "digest": DIGEST,
        "worker": "w1",
        "batch_id": "w1-1",
        "batch_rows": 1,
        "engine": "sklearn",
        "runtime_id": "r1",
        "predicted_us": PREDICTED_US,
    }
    return wire.Header(**{**shared, **fields})


def ok(request_id: str, roi: float = 0.25, *, at_us: int = T0, **fields: Any) -> wire.Event:
    """An answered request of one row; `fields` are the entry's."""
    entry: dict[str, Any] = {
        "request_id": request_id,
        "model_id": "roi_prediction",
        "version": "1.0.0",
        "digest": DIGEST,
        "matrix": matrix((0.6, 45.0)),
        "user_request_us": at_us,
        "admitted_us": at_us + 100,
        "gateway": "g1",
    }
    event = wire.Event(
        entry=wire.Entry(**{**entry, **fields}),
        response=v1.PredictResponse(request_id=request_id, model_id="roi_prediction", version="1.0.0"),
        status=wire.OK,
        entry_id=f"{at_us // 1000}-{int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:4], 'big')}",
        delivered_us=at_us + 200,
        deliveries=1,
    )
    event.response.predictions.add().outputs["roi_pct"].number = roi
    if event.entry.user_request_us:
        event.response.user_request_timestamp.FromMicroseconds(event.entry.user_request_us)
    event.response.predicted_at_timestamp.FromMicroseconds(PREDICTED_US)
    event.response.degraded = event.entry.degraded
    return event


def copied(event: wire.Event, roi: float = 0.5) -> wire.Event:
    """What a shadow made of the same request."""
    copy = wire.Event()
    copy.CopyFrom(event)
    copy.status = wire.SHADOW
    copy.entry.version = copy.response.version = "2.0.0"
    copy.entry.digest = SHADOW_DIGEST
    copy.response.predictions[0].outputs["roi_pct"].number = roi
    return copy


def failed(request_id: str, reason: str = "MODEL_FAILED", *, at_us: int = T0) -> wire.Event:
    """A request that ended with an error."""
    event = ok(request_id, at_us=at_us)
    event.status = wire.FAILED
    event.response.ClearField("predictions")
    event.response.ClearField("predicted_at_timestamp")
    event.response.error.reason = reason
    event.response.error.message = "the model raised"
    event.response.error.code = 13
    event.response.error.violations.add(field="age", description="expected 18 to 120, got 7")
    return event


class EventStream:
    """The events stream of one model, with the running number that the exit keeps."""

    def __init__(self, url: str, prefix: str, model_id: str = "roi_prediction") -> None:
        self.client = connect(url)
        self.keys = Keys(prefix)
        self.key = self.keys.model(model_id).events
        self.counts = self.keys.model(model_id).count
        self.model_id = model_id
        self.number = 0

    def announce(self) -> None:
        """Puts the model into the catalogue, so that a sink knows of it."""
        record = wire.ModelRecord(model_id=self.model_id, revision=1)
        signed = wire.SignedRecord(record=record.SerializeToString())
        self.client.hset(self.keys.catalog, self.model_id, signed.SerializeToString())
        self.client.incr(self.keys.catalog_revision)

    def append(self, *events: wire.Event, head: wire.Header | None = None, entry_id: str = "*") -> str:
        """One entry with these events, and the running number that it reaches, as the exit writes both; its id."""
        batch = wire.EventBatch(header=head or header(self.model_id), events=events)
        self.number += len(events)
        pipe = self.client.pipeline()
        pipe.hset(self.counts, "completed", str(self.number))
        pipe.xadd(self.key, {"n": self.number, "pb": batch.SerializeToString()}, id=entry_id)
        _, found = pipe.execute()
        return str(found.decode())

    def append_fields(self, fields: dict[Any, Any], entry_id: str = "*") -> str:
        found: Any = self.client.xadd(self.key, fields, id=entry_id)
        return str(found.decode())

    @property
    def length(self) -> int:
        count: Any = self.client.xlen(self.key)
        return int(count)

    @property
    def oldest(self) -> bytes:
        """Id of the first entry that is not trimmed."""
        found: Any = self.client.xrange(self.key, count=1)
        return bytes(found[0][0]) if found else b""

    def trimmed_since(self, oldest: bytes) -> bool:
        return self.oldest != oldest

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()


class RunningSink:
    """A sink in a thread of the test, and a stub to ask it."""

    def __init__(self, url: str, prefix: str, folder: Path, *, accept_gap: bool = False) -> None:
        self.database = folder / "events.duckdb"
        self.address = f"unix:{folder}/s.sock" if len(str(folder)) < 80 else "127.0.0.1:0"
        self._settings = Settings.read(prefix=prefix)
        self._url = url
        self._accept_gap = accept_gap
        self.alarms: list[str] = []
        """What it told before it was ready."""
        self._stop = threading.Event()
        self._ready = threading.Event()
        self._ended: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self.stub: v1_grpc.EventLogStub

    def _run(self) -> None:
        try:
            run_sink(
                self._settings,
                redis_url=self._url,
                database=self.database,
                listen=self.address,
                on_ready=self._ready.set,
                stop=self._stop,
                accept_gap=self._accept_gap,
                on_alarm=self.alarms.append,
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, the test that stops the sink gets it
            self._ended = error
            self._ready.set()

    def stop(self) -> None:
        """As SIGTERM would; raises what the sink ended with."""
        self._stop.set()
        self._thread.join(30)
        assert not self._thread.is_alive()
        if self._ended is not None:
            raise self._ended

    def events(self, **query: Any) -> list[v1.ModelEvent]:
        """The rows of a query, oldest first unless it says otherwise."""
        return list(self.stub.Query(v1.EventQuery(**{"oldest_first": True, "limit": 100_000, **query}), timeout=30))

    def count(self, **query: Any) -> int:
        return self.counted(**query).events

    def counted(self, **query: Any) -> v1.EventCount:
        counted: v1.EventCount = self.stub.Count(v1.EventQuery(**query), timeout=30)
        return counted

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(20)
        if self._ended is not None:
            raise self._ended
        self._channel = grpc.insecure_channel(self.address)
        self.stub = v1_grpc.EventLogStub(self._channel)
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()
        self.stop()
