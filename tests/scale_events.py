"""Events in great numbers, as workers write them: a few whole ones, with other ids, times and numbers in them.

    one event, serialized as a worker does  ->  where in it what differs stands  ->  many of them, column by column

Everything is drawn from one seed, so that each run makes the same log.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from consumers.model.model import OutputColumn
from consumers.worker.answers import Answers
from contract.completion import INTERACTIVE, event, header
from contract.wire import timestamp, varint
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

START_US = 1_767_225_600_000_000
"""The first of January 2026."""
HOUR_US = 3_600_000_000
DIGEST = bytes(range(32))
VERSION = "1.4.0"
ENTITIES = 100_000
FAILS = 60
"""One predict call in so many fails, and all of its requests with it."""
TURN = 10
"""Parts that the models share a stretch of time by."""
CALLS = 16
"""Predict calls of a part."""

_ASKED, _ADMITTED, _DEADLINE, _DELIVERED = (START_US + 777_771 + place for place in range(4))
_PREDICTED = START_US + 888_888
_ENTRY_ID = b"1767225600777-7"
_ENTITY = b"c99999999"
_SHA256 = bytes(range(100, 132))
_INPUT, _OUTPUT = 1234.5678, 8765.4321
Bytes = NDArray[np.uint8]


class Kind(NamedTuple):
    """What a model's requests are like."""

    model_id: str
    parts: int
    """Of TURN."""
    features: int
    outputs: int
    rows: int = 1
    own_ids: bool = False
    entities: bool = False

    def own_id(self, number: int) -> str:
        """That of its event with this running number, where callers choose their ids."""
        return f"{self.model_id}-{number:010d}"


KINDS = (
    Kind("churn", 4, 6, 2, entities=True),
    Kind("roi_prediction", 3, 2, 1),
    Kind("credit", 2, 12, 1, own_ids=True),
    Kind("basket", 1, 4, 1, rows=4),
)


class Entry(NamedTuple):
    """What stands in a model's stream: its id, and its two fields."""

    model_id: str
    entry_id: str
    number: int
    pb: bytes
    events: int

    @property
    def fields(self) -> dict[bytes, bytes]:
        return {b"n": b"%d" % self.number, b"pb": self.pb}


class _Mould:
    """One event, and where in it stands what differs from one to the next."""

    def __init__(self, kind: Kind, *, first: bool, fails: bool) -> None:
        self.kind = kind
        request_id = ("_" * len(kind.own_id(0)) if kind.own_ids else "_" * 16).encode()
        fields: dict[str, Any] = {}
        if kind.own_ids:
            fields |= {"reply_ttl_s": 600, "body_sha256": _SHA256}
        if kind.entities:
            fields |= {"entity_id": _ENTITY.decode(), "hydrated": [wire.Hydrated(index=1, origin=wire.REDIS)]}
        values = struct.pack("<d", _INPUT) * (kind.features * kind.rows)
        entry = wire.Entry(
            request_id=request_id.decode(),
            model_id=kind.model_id,
            version=VERSION,
            digest=DIGEST,
            matrix=v1.Matrix(rows=kind.rows, float64=values),
            user_request_us=_ASKED,
            admitted_us=_ADMITTED,
            deadline_us=_DEADLINE,
            gateway="gateway-1",
            packed=kind.rows > 1,
            **fields,
        )
        outputs = [
            OutputColumn(f"out_{place}", "float", np.full(2 * kind.rows, _OUTPUT)) for place in range(kind.outputs)
        ]
        if fails:
            response = v1.PredictResponse(request_id=request_id.decode(), model_id=kind.model_id, version=VERSION)
            response.user_request_timestamp.FromMicroseconds(_ASKED)
            response.error.reason, response.error.code = "MODEL_FAILED", 13
            response.error.message = "the model raised ValueError: Input X contains infinity"
            raw = response.SerializeToString()
        else:
            answers = Answers(kind.model_id, VERSION, outputs, _PREDICTED)
            raw = answers.response(request_id, 0, kind.rows, _ASKED, packed=kind.rows > 1, degraded=False)
        status = wire.FAILED if fails else wire.OK
        place = 0 if first else 100
        made = event(entry.SerializeToString(), raw, status, INTERACTIVE, _ENTRY_ID, _DELIVERED, 1, place)
        self.bytes = np.frombuffer(made, dtype=np.uint8)
        self.ids = _places(made, request_id)
        self.times = [
            (_places(made, varint(each)), each - _ASKED) for each in (_ASKED, _ADMITTED, _DEADLINE, _DELIVERED)
        ]
        self.asked = _places(made, timestamp(_ASKED))
        self.predicted = _places(made, timestamp(_PREDICTED))
        self.entry_ids = _places(made, _ENTRY_ID)
        self.entities = _places(made, _ENTITY)
        self.sha256 = _places(made, _SHA256)
        self.inputs = _places(made, values)
        self.outputs = _places(made, struct.pack("<d", _OUTPUT))
        self.position = [] if first else [len(made) - 1]

    def cast(self, some: _Drawn) -> Bytes:
        """(events, bytes of each): those of `some`."""
        made = np.tile(self.bytes, (some.asked.size, 1))
        for at in self.ids:
            made[:, at : at + some.ids.shape[1]] = some.ids
        for places, _ in self.times[:1]:
            _put(made, places, _varints(some.asked, 8))
        for (places, _), later in zip(self.times[1:], (90, 5_000_000, 410), strict=True):
            _put(made, places, _varints(some.asked + later, 8))
        _put(made, self.asked, _timestamps(some.asked))
        _put(made, self.predicted, _timestamps(some.predicted))
        _put(made, self.entry_ids, some.entry_ids)
        _put(made, self.entities, some.entities)
        _put(made, self.sha256, some.sha256)
        _put(made, self.inputs, some.inputs)
        for place, at in enumerate(self.outputs):
            _put(made, [at], some.outputs[:, 8 * place : 8 * place + 8])
        for at in self.position:
            made[:, at] = some.position
        return made


class _Drawn(NamedTuple):
    """What differs, a row for each event: texts and numbers as the bytes that stand in it."""

    asked: NDArray[np.int64]
    predicted: NDArray[np.int64]
    position: NDArray[np.int64]
    ids: Bytes
    entry_ids: Bytes
    entities: Bytes
    sha256: Bytes
    inputs: Bytes
    outputs: Bytes

    def at(self, rows: Any) -> _Drawn:
        return _Drawn(*(column[rows] for column in self))


class Stream:
    """A model's entries, in the order of time."""

    def __init__(self, kind: Kind, seed: int = 7) -> None:
        self.kind = kind
        self.number = 0
        self._dice = np.random.default_rng([seed, *kind.model_id.encode()])
        self._moulds = {
            (first, fails): _Mould(kind, first=first, fails=fails) for first in (True, False) for fails in (True, False)
        }
        self._calls = 0

    def entries(self, calls: int, since_us: int, until_us: int) -> Iterator[Entry]:
        """So many predict calls of the same size, evenly in [since, until)."""
        size = int(self._dice.choice((16, 32, 64))) if self.kind.rows == 1 else 16
        drawn = self._drawn(calls, size, since_us, until_us)
        is_first = np.arange(calls * size) % size == 0
        cast = {
            (first, fails): mould.cast(drawn.at(is_first if first else ~is_first))
            for (first, fails), mould in self._moulds.items()
        }
        for call in range(calls):
            self._calls += 1
            fails = self._calls % FAILS == 0
            self.number += size
            at = call * size
            predicted_us = int(drawn.predicted[at])
            head = wire.Header(
                model_id=self.kind.model_id,
                version=VERSION,
                digest=DIGEST,
                worker="host-1-4711-a1b2c3",
                batch_id=f"host-1-4711-a1b2c3-{self._calls}",
                batch_rows=size * self.kind.rows,
                engine="sklearn 1.9.0",
                runtime_id="5f1d7a84d2c96f03",
                predicted_us=0 if fails else predicted_us,
            )
            rest = cast[False, fails][call * (size - 1) : (call + 1) * (size - 1)]
            raw = header(head) + cast[True, fails][call].tobytes() + rest.tobytes()
            yield Entry(self.kind.model_id, f"{predicted_us // 1000 + 1}-{self._calls}", self.number, raw, size)

    def _drawn(self, calls: int, size: int, since_us: int, until_us: int) -> _Drawn:
        kind, dice, count = self.kind, self._dice, calls * size
        # The requests of a call came within 2 ms. Nanoseconds of five bytes, so that all events are equally long.
        began = np.linspace(since_us, until_us, calls, endpoint=False, dtype=np.int64)
        began = began // 1_000_000 * 1_000_000 + 270_000 + began % 1_000_000 * 7 // 10
        asked = (began[:, None] + np.sort(dice.integers(0, 2000, (calls, size)), axis=1)).ravel()
        predicted = np.repeat(began + 4_321, size)
        numbers = np.arange(self.number + 1, self.number + 1 + count)
        if kind.own_ids:
            ids = _texts([kind.own_id(number).encode() for number in numbers.tolist()])
        else:
            ids = np.frombuffer(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_", np.uint8)[
                dice.integers(0, 64, (count, 16))
            ]
        entry_ids = _texts([b"%013d-%d" % (ms, at % 10) for at, ms in enumerate((asked // 1000).tolist())])
        entities = _texts([b"c%08d" % each for each in dice.integers(0, ENTITIES, count).tolist()])
        # An age, an amount with two decimals, and what has all its digits.
        width = kind.features * kind.rows
        inputs = dice.normal(0, 1, (count, width))
        inputs[:, 0::3] = dice.integers(18, 90, inputs[:, 0::3].shape)
        inputs[:, 1::3] = np.round(dice.gamma(2, 900, inputs[:, 1::3].shape), 2)
        outputs = dice.random((count, kind.outputs * kind.rows))
        return _Drawn(
            asked=asked,
            predicted=predicted,
            position=np.tile(np.arange(size) * kind.rows, calls),
            ids=ids,
            entry_ids=entry_ids,
            entities=entities,
            sha256=dice.integers(0, 256, (count, 32 if kind.own_ids else 0), dtype=np.uint8),
            inputs=np.ascontiguousarray(inputs, dtype="<f8").view(np.uint8),
            outputs=np.ascontiguousarray(outputs, dtype="<f8").view(np.uint8),
        )


def entries(events: int, hours: float = 8.0) -> Iterator[list[Entry]]:
    """At least so many events of all models, over so many hours; each list is what the sink commits together."""
    streams = {kind.model_id: Stream(kind) for kind in KINDS}
    done, since_us = 0, START_US
    while done < events:
        # As far as the events are, so far is the time.
        until_us = max(since_us + 1_000_000, START_US + int(hours * HOUR_US * min(1.0, (done + 6000) / events)))
        found = [
            entry for kind in KINDS for entry in streams[kind.model_id].entries(CALLS * kind.parts, since_us, until_us)
        ]
        done += sum(entry.events for entry in found)
        since_us = until_us
        yield found


def _places(raw: bytes, part: bytes) -> list[int]:
    """Where in it that stands."""
    found, at = [], raw.find(part)
    while at >= 0:
        found.append(at)
        at = raw.find(part, at + len(part))
    return found


def _put(made: Bytes, places: list[int], part: Bytes) -> None:
    for at in places:
        made[:, at : at + part.shape[1]] = part


def _texts(texts: list[bytes]) -> Bytes:
    """(texts, bytes of each): all are equally long."""
    return np.frombuffer(b"".join(texts), dtype=np.uint8).reshape(len(texts), -1)


def _varints(numbers: NDArray[np.int64], size: int) -> Bytes:
    """(numbers, size): each takes as many bytes."""
    made = (numbers[:, None] >> (7 * np.arange(size)) & 127).astype(np.uint8)
    made[:, :-1] |= 128
    return made


def _timestamps(micros: NDArray[np.int64]) -> Bytes:
    """google.protobuf.Timestamp, of times with a fraction of a second that is more than a quarter."""
    seconds, nanos = micros // 1_000_000, micros % 1_000_000 * 1000
    tags = [np.full((micros.size, 1), tag, dtype=np.uint8) for tag in (0x08, 0x10)]
    return np.hstack([tags[0], _varints(seconds, 5), tags[1], _varints(nanos, 5)])
