"""Proof at size: so many events, of many shapes, all come back from their rows byte for byte.

    python -m tests.rebuild --events 1000000

They go the way that the sink's go: decoded, inserted, selected, rebuilt, and compared with what was there before; the
chain of what was rebuilt is that of what was inserted. It says how fast each way was.
"""

from __future__ import annotations

import argparse
import random
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from consumers.audit.rebuild import altered_columns, links, read_rows
from consumers.model.model import OutputColumn
from consumers.sink.database import Batch, EventDatabase
from consumers.sink.pieces import cut
from consumers.sink.position import Position
from consumers.sink.rows import Link
from consumers.worker.answers import Answers
from contract.completion import BULK, INTERACTIVE, event, header
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.event_entries import T0

SEED = 7
WORDS = ("", "salarié", "rent", 'a "quoted" word', "\0", "😀", "x" * 300)


class Shape(NamedTuple):
    """What a model takes and answers: a letter for each feature and for each output (d, i, b, s)."""

    model_id: str
    features: str
    outputs: str
    nulls: bool = False
    rows: int = 1
    hydrated: bool = False


SHAPES = (
    Shape("roi_prediction", "dd", "d"),
    Shape("churn", "dddddd", "db", hydrated=True),
    Shape("credit", "dibs", "sd"),
    Shape("sparse", "ddd", "d", nulls=True),
    Shape("segments", "dsib", "i", nulls=True),
    Shape("wide", "d" * 40, "d"),
    Shape("packed", "dd", "di", rows=16),
    Shape("packed_columns", "dis", "s", rows=5, nulls=True),
)
KINDS = {"d": "float", "i": "int", "b": "bool", "s": "string"}


def value(letter: str, dice: random.Random) -> Any:
    if letter == "d":
        return dice.choice((dice.gauss(0, 1e3), struct.unpack("<d", dice.randbytes(8))[0], -0.0, 1e300, 0.1, 3.0))
    if letter == "i":
        return dice.choice((dice.getrandbits(64) - 2**63, 0, -1, 2**63 - 1, -(2**63)))
    return bool(dice.getrandbits(1)) if letter == "b" else dice.choice(WORDS)


def rows_of(shape: Shape, dice: random.Random) -> dict[str, Any]:
    """The rows of an entry."""
    if set(shape.features) == {"d"}:
        count = len(shape.features) * shape.rows
        values = [float("nan") if shape.nulls and dice.random() < 0.1 else value("d", dice) for _ in range(count)]
        return {"matrix": v1.Matrix(rows=shape.rows, float64=struct.pack(f"<{count}d", *values))}
    table = v1.Columns(rows=shape.rows)
    for letter in shape.features:
        column = table.columns.add()
        values = [value(letter, dice) for _ in range(shape.rows)]
        if letter == "s" and shape.nulls:
            column.nulls.extend(row for row in range(shape.rows) if dice.random() < 0.3)
            values = ["" if row in column.nulls else each for row, each in enumerate(values)]
        kind = {"d": column.doubles, "i": column.integers, "b": column.booleans, "s": column.strings}[letter]
        kind.values.extend(values)  # type: ignore[attr-defined]
    return {"columns": table}


def batch(shape: Shape, place: int, dice: random.Random) -> bytes:
    """One predict call of 1 to 64 requests, a few of which failed, as a worker writes it."""
    count = dice.choice((1, 7, 32, 64))
    asked = T0 + place * 1_000_000 + dice.randrange(1_000_000)
    predicted = asked + 4_321
    columns = []
    for place_of, letter in enumerate(shape.outputs):
        values = [value(letter, dice) for _ in range(count * shape.rows)]
        made = values if letter == "s" else np.array(values, dtype={"d": "<f8", "i": "<i8", "b": "?"}[letter])
        columns.append(OutputColumn("out_" + "x" * (9 - place_of), KINDS[letter], made))  # type: ignore[arg-type]
    answers = Answers(shape.model_id, "1.2.3", columns, predicted)
    digest = bytes(range(32))
    parts = []
    for row in range(count):
        entry = wire.Entry(
            request_id=f"{place:08x}{row:024x}",
            model_id=shape.model_id,
            version="1.2.3",
            digest=digest,
            user_request_us=asked + row,
            admitted_us=asked + row + 90,
            deadline_us=asked + 5_000_000,
            gateway="g1",
            packed=shape.rows > 1,
            **rows_of(shape, dice),
        )
        if shape.hydrated:
            entry.entity_id = str(row)
            entry.hydrated.add(index=1, origin=wire.REDIS)
        status, lane = wire.OK, INTERACTIVE
        if dice.random() < 0.02:
            status, lane = dice.choice(((wire.FAILED, BULK), (wire.EXPIRED, INTERACTIVE)))
            response = v1.PredictResponse(request_id=entry.request_id, model_id=shape.model_id, version="1.2.3")
            response.user_request_timestamp.FromMicroseconds(entry.user_request_us)
            response.error.reason, response.error.message, response.error.code = "MODEL_FAILED", "it raised", 13
            raw = response.SerializeToString()
        else:
            raw = answers.response(
                entry.request_id.encode(),
                row * shape.rows,
                shape.rows,
                entry.user_request_us,
                packed=shape.rows > 1,
                degraded=False,
            )
        entry_id = b"%d-%d" % (asked // 1000, row)
        parts.append(event(entry.SerializeToString(), raw, status, lane, entry_id, asked + 200, 1, row * shape.rows))
    head = wire.Header(
        model_id=shape.model_id,
        version="1.2.3",
        digest=digest,
        worker="w1",
        batch_id=f"w1-{place}",
        batch_rows=count * shape.rows,
        engine="sklearn 1.9",
        runtime_id="r1",
        predicted_us=predicted,
    )
    return header(head) + b"".join(parts)


def batch_at(place: int) -> tuple[Shape, random.Random]:
    """What stands at this place, and what it is made with: the same each time."""
    dice = random.Random(SEED * 1_000_003 + place)
    return dice.choice(SHAPES), dice


class Progress:
    """A line that says how far it is, now and then."""

    def __init__(self, what: str, of: int) -> None:
        self._what = what
        self._of = of
        self._began = self._told = time.monotonic()

    def at(self, done: int) -> None:
        now = time.monotonic()
        if now - self._told > 0.5 or done >= self._of:
            self._told = now
            rate = done / max(1e-9, now - self._began)
            end = "\n" if done >= self._of else ""
            sys.stderr.write(f"\r{self._what}: {done:,} of {self._of:,} events, {rate:,.0f}/s {end}")
            sys.stderr.flush()


class Written(NamedTuple):
    """What was inserted: batches, events, and the seconds of CPU that decoding and inserting took."""

    places: int
    events: int
    spent: float


def write(database: EventDatabase, events: int) -> Written:
    """Inserts at least so many."""
    place, done, spent = 0, 0, 0.0
    numbers = dict.fromkeys((shape.model_id for shape in SHAPES), 0)
    progress = Progress("written", events)
    while done < events:
        some, positions = [], {}
        for _ in range(64):
            place += 1
            shape, dice = batch_at(place)
            raw = batch(shape, place, dice)
            count = len(cut(raw).events)
            numbers[shape.model_id] += count
            some.append((shape.model_id, f"{place}-0", {b"n": str(numbers[shape.model_id]).encode(), b"pb": raw}))
            positions[shape.model_id] = Position(f"{place}-0", numbers[shape.model_id])
            done += count
        start = time.process_time()
        decoded = tuple(Link.decode(*each) for each in some)
        database.commit(Batch(decoded, (), positions))
        spent += time.process_time() - start
        progress.at(done)
    return Written(place, done, spent)


class Proven(NamedTuple):
    """What came back: events that were kept as they were, and the seconds of CPU that reading and rebuilding took."""

    exact: int
    spent: float


def prove(database: EventDatabase, written: Written) -> Proven:
    """Rebuilds and compares, model by model. Raises AssertionError."""
    done, exact, spent = 0, 0, 0.0
    chains = {model_id: at.chain for model_id, at in database.positions().items()}
    progress = Progress("rebuilt", written.events)
    with database.cursor() as cursor:
        for model_id in sorted(chains):
            value, some = bytes(32), []
            rebuilt = links(read_rows(cursor, "model_id = ?", [model_id]))
            for place in range(1, written.places + 1):
                shape, dice = batch_at(place)
                if shape.model_id != model_id:
                    continue
                start = time.process_time()
                link = next(rebuilt)
                spent += time.process_time() - start
                pieces = cut(batch(shape, place, dice))
                assert link.entry_id == f"{place}-0"
                assert link.header == pieces.header, f"the header of {model_id} {link.entry_id}"
                for one, piece in zip(link.events, pieces.events, strict=True):
                    assert one.raw == piece, f"event {one.number} of {model_id}"
                    exact += one.row.exact is not None
                value = link.after(value)
                assert value == link.chain
                done += len(link.events)
                progress.at(done)
                if place % 31 == 0:
                    some.append(link)
            assert next(rebuilt, None) is None, "there is more than was written"
            assert value == chains[model_id], f"the chain of {model_id}"
            assert list(altered_columns(some)) == []
    assert done == written.events
    return Proven(exact, spent)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    events = parser.parse_args().events
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.duckdb"
        database = EventDatabase(path)
        try:
            written = write(database, events)
            proven = prove(database, written)
        finally:
            database.close()
        size = path.stat().st_size
    count = written.events
    print(f"{count:,} events came back byte for byte, {proven.exact:,} of them kept as they were")
    print(f"decoding and inserting took {written.spent / count * 1e6:.1f} µs of CPU for each,", end=" ")
    print(
        f"reading and rebuilding {proven.spent / count * 1e6:.1f} µs; the file has {size / count:,.0f} bytes for each"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
