"""Event logs on disk, made by the sink's own parts without a server, and what somebody may do to one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import count, islice
from pathlib import Path

import duckdb
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consumers.audit.chain import BEGINNING
from consumers.audit.findings import Verified
from consumers.audit.heads import Head, signing_key
from consumers.audit.log_files import parquet, quoted
from consumers.audit.reading import open_stopped
from consumers.audit.rebuild import SELECT_ROWS, Row, links
from consumers.audit.segment import Segment
from consumers.audit.verify import verify
from consumers.sink.database import EventDatabase
from consumers.sink.erasing import Erased, Erasing
from consumers.sink.heading import Heading
from consumers.sink.intake import EventIntake
from consumers.sink.position import Position
from consumers.sink.rows import no_names
from consumers.sink.sealing import Sealing
from protos import millstream_wire_v1_pb2 as wire
from tests.event_entries import T0, copied, failed, header, matrix, ok

MODEL = "roi_prediction"
OTHER = "churn"
PERSON = "p-101-secret"
"""The entity that some of the events are about."""


def links_of(model_id: str) -> Iterator[tuple[str, int, wire.EventBatch]]:
    """Entry id, running number and batch of one entry after another: events answered, failed, and as odd as any."""
    number = 0
    for entry in count(1):
        at_us = T0 + entry * 1_000_000
        named = {"model_id": model_id}
        full = ok(
            f"{model_id}-{entry}-a",
            0.1,
            at_us=at_us,
            entity_id=PERSON if entry % 2 else "202",
            deadline_us=at_us + 30_000_000,
            degraded=True,
            packed=True,
            discard_reply=True,
            reply_ttl_s=600,
            body_sha256=sha256(b"body").digest(),
            caller="alice",
            trace="00-ab",
            replay="again",
            hydrated=[wire.Hydrated(index=1, origin=wire.REDIS)],
            **named,
        )
        full.batch_position = 3
        odd = ok(f"{model_id}-{entry}-c", float("nan"), at_us=at_us, matrix=matrix((float("inf"), 1.0)), **named)
        odd.lane, odd.status, odd.refused_body = wire.BULK, wire.INVALID, b'{"half'
        events = [full, failed(f"{model_id}-{entry}-b", at_us=at_us), odd]
        if entry % 3 == 0:
            events.append(copied(full))
        for event in events:
            event.entry.model_id = event.response.model_id = model_id
        number += len(events)
        yield f"{at_us // 1000 + 50}-0", number, wire.EventBatch(header=header(model_id), events=events)


class Log:
    """A state directory with an event log in it that no sink has open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.database = folder / "events.duckdb"
        self.segments = folder / "events"

    @property
    def key(self) -> Ed25519PrivateKey:
        return signing_key(self.folder / "keys" / "sink.key")

    def copied_to(self, folder: Path) -> Log:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return Log(folder)

    # ------------------------------------------------------------------ what a sink does

    def record(self, model_id: str = MODEL, entries: int = 4) -> None:
        """Entries after those that are there, one transaction for all."""
        database = EventDatabase(self.database)
        intake = EventIntake(database)
        at = intake.positions.get(model_id, Position())
        new = (each for each in links_of(model_id) if each[1] > at.number)
        for entry_id, number, batch in islice(new, entries):
            fields = {b"n": str(number).encode(), b"pb": batch.SerializeToString(deterministic=True)}
            assert intake.take(model_id, entry_id, fields, no_names)
        database.commit(intake.batch())
        database.close()

    def seal(self, model_id: str = MODEL) -> list[Segment]:
        database = EventDatabase(self.database)
        try:
            return Sealing(database).seal(model_id, most_rows=1_000_000)
        finally:
            database.close()

    def erase(self, entity_id: str = PERSON, model_id: str = "", reason: str = "asked to") -> Erased:
        database = EventDatabase(self.database)
        try:
            return Erasing(database, Sealing(database), lambda: self.key).erase(entity_id, model_id, reason)
        finally:
            database.close()

    def sign(self) -> None:
        """Heads of what moved, and of each segment, into the folder `heads`."""

        def keep(name: str, content: bytes | Path) -> None:
            assert isinstance(content, bytes)
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if not path.exists():
                path.write_bytes(content)

        database = EventDatabase(self.database)
        heading = Heading(database, keep, self.key, every_s=60)
        heading.look()
        heading.send()
        database.close()

    # ------------------------------------------------------------------ what is done to it

    @contextmanager
    def opened(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with duckdb.connect(str(self.database)) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            yield connection

    def sql(self, *statements: str) -> None:
        """By somebody who has the file while no sink runs."""
        with self.opened() as connection:
            for statement in statements:
                connection.execute(statement)

    def rows(self, sql: str) -> list[tuple[object, ...]]:
        with self.opened() as connection:
            return connection.execute(sql).fetchall()

    def recompute(self, model_id: str = MODEL) -> None:
        """Somebody who knows how gives the live rows a chain that holds."""
        with self.opened() as connection:
            rows = connection.execute(f"{SELECT_ROWS} WHERE model_id = ? ORDER BY sequence", [model_id]).fetchall()
            running = BEGINNING
            last: list[str] = [
                raw
                for (raw,) in connection.execute(
                    "SELECT manifest FROM segments WHERE model_id = ? ORDER BY first_sequence", [model_id]
                ).fetchall()
            ]
            if last:
                running = bytes.fromhex(Segment.decode(last[-1]).chain_after)
            for link in links(map(Row._make, rows)):
                running = link.after(running)
                connection.execute(
                    "UPDATE events SET chain = ? WHERE sequence = ?", [running, link.events[-1].row.sequence]
                )
            connection.execute("UPDATE positions SET chain = ? WHERE model_id = ?", [running, model_id])

    def segment(self, place: int = 0, model_id: str = MODEL) -> Segment:
        """One of those that are listed, oldest first."""
        with self.opened() as connection:
            rows = connection.execute(
                "SELECT manifest FROM segments WHERE model_id = ? ORDER BY first_sequence", [model_id]
            ).fetchall()
        return Segment.decode(rows[place][0])

    def path(self, segment: Segment) -> Path:
        return self.segments / segment.model_id / segment.file

    def list_as(self, segment: Segment) -> None:
        """Another manifest in place of the one that is listed, and beside the file."""
        (self.segments / segment.model_id / segment.manifest).write_text(segment.encode())
        with self.opened() as connection:
            connection.execute(
                "UPDATE segments SET manifest = ? WHERE model_id = ? AND first_sequence = ?",
                [segment.encode(), segment.model_id, segment.first_sequence],
            )

    def rewrite(self, segment: Segment, change: str) -> None:
        """Another file in place of a segment's: SQL from `events` to the rows it has then."""
        path = self.path(segment)
        written = path.with_suffix(".new")
        with duckdb.connect() as connection:
            connection.execute(f"CREATE TABLE events AS SELECT * FROM {parquet([path])}")
            for statement in change.split(";"):
                connection.execute(statement)
            connection.execute(f"COPY (SELECT * FROM events) TO {quoted(str(written))} (FORMAT parquet)")
        written.replace(path)

    # ------------------------------------------------------------------ what is found

    def heads(self) -> list[Head]:
        """Those that are kept, all signed."""
        public = self.key.public_key()
        return [Head.decode(path.read_bytes(), public) for path in sorted(self.folder.glob("heads/*/*.json"))]

    def verified(self, model_id: str = MODEL, *, heads: bool = True) -> Verified:
        """What verifying finds of a model."""
        reading = self.folder / "reading"
        reading.mkdir(exist_ok=True)
        files = open_stopped(self.database, reading)
        kept = self.heads() if heads else None
        return next(each for each in verify(files, kept) if each.model_id == model_id)

    def texts(self, model_id: str = MODEL, *, heads: bool = True) -> list[str]:
        return [finding.text for finding in self.verified(model_id, heads=heads).findings]
