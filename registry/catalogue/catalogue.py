"""Every version that was ever found, in DuckDB: what is known of it, where it stands, what happened to it.

The registry process is the only one to open the file. Rows are read once, at the start, and written through; calls
that reach DuckDB block and belong in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import astuple, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb

from registry.catalogue.known import Act, KnownVersion, Place, StoredArtifact, VersionKey
from registry.catalogue.tables import prepare
from registry.promotion.ruling import Terms
from registry.promotion.timeline import CANARY_OFF, RETIRE, SHADOW_OFF, UNPIN, Statement

ENDING = frozenset({RETIRE, UNPIN, CANARY_OFF, SHADOW_OFF})
"""Acts that ask for nothing to be loaded."""


class CatalogueUnusable(Exception):
    """The database can't be opened; the message says why and what to do."""


class Catalogue:
    """The registry's memory over restarts."""

    def __init__(self, database: Path) -> None:
        """Opens or makes the database. Raises CatalogueUnusable."""
        self._lock = threading.RLock()
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            self._db = duckdb.connect(str(database))
            self._db.execute("SET TimeZone = 'UTC'")
            prepare(self._db)
        except (duckdb.Error, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise CatalogueUnusable(
                f"cannot use {database} as the registry's catalogue: {reason}; {_advice(reason)}"
            ) from None
        self.versions = {version.key: version for version in self._read_versions()}
        self.places = {place.place: place for place in self._read_places()}
        self.statements: dict[str, tuple[Statement, ...]] = {}
        """model_id -> its timeline, oldest first."""
        for statement in self._read_statements():
            self.statements[statement.model_id] = (*self.statements.get(statement.model_id, ()), statement)
        self.sightings: dict[str, tuple[str, datetime]] = {
            place: (fingerprint, _time(seen))
            for place, fingerprint, seen in self._rows("SELECT place, fingerprint, epoch_us(seen) FROM sightings")
        }
        """Place -> its fingerprint, and when it was first listed so; until what stands there is on record."""
        self.records: dict[str, tuple[int, bytes]] = {
            model_id: (revision, bytes(record))
            for model_id, revision, record in self._rows("SELECT model_id, revision, record FROM models")
        }
        """model_id -> revision and serialized record as last written to Redis."""
        self.lives: dict[VersionKey, datetime] = {
            (model_id, version): _time(at)
            for model_id, version, at in self._rows(
                "SELECT model_id, version, epoch_us(max(noted)) FROM history WHERE act = 'live' GROUP BY ALL"
            )
        }
        """When each version last became the one that answers."""
        self.gates: dict[str, Terms] = {
            model_id: Terms(*terms) for model_id, *terms in self._rows("SELECT * FROM gates")
        }
        """model_id -> its own terms for the gate."""

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def put_version(self, version: KnownVersion, *acts: Act, statement: Statement | None = None) -> None:
        """Records a version, replacing what was known of it, and what its tag says."""
        with self._lock:
            self._put_version(version, acts, statement)

    def _put_version(self, version: KnownVersion, acts: Iterable[Act], statement: Statement | None) -> None:
        columns = astuple(version)[:-1]
        artifacts = [(*version.key, a.name, a.sha256, a.size, a.blob, a.etag) for a in version.artifacts]
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", list(columns))
            db.execute("DELETE FROM artifacts WHERE model_id = ? AND version = ?", list(version.key))
            for artifact in artifacts:
                db.execute("INSERT INTO artifacts VALUES (?, ?, ?, ?, ?, ?, ?)", list(artifact))
            _write_history(db, acts)
            if statement is not None:
                _write_statement(db, statement)
        # Replaced whole, so that whoever iterates in another thread sees the one or the other.
        self.versions = {**self.versions, version.key: version}
        if statement is not None:
            self._add(statement)

    def amend(self, key: VersionKey, *acts: Act, statement: Statement | None = None, **changes: str) -> None:
        """Changes some fields of a version that is on record, whatever else was changed meanwhile."""
        with self._lock:
            version = replace(self.versions[key], **changes)  # type: ignore[arg-type]
            self._put_version(version, acts, statement)

    def state(self, statement: Statement, *acts: Act) -> None:
        """Puts an act onto the timeline of its model. One that was refused before may be tried again."""
        key = statement.model_id, statement.version
        with self._lock:
            version = self.versions.get(key)
            if version is not None and version.refused and statement.word not in ENDING:
                self._put_version(replace(version, refused=""), acts, statement)
                return
            with self._transaction() as db:
                _write_history(db, acts)
                _write_statement(db, statement)
            self._add(statement)

    def _add(self, statement: Statement) -> None:
        timeline = sorted((*self.statements.get(statement.model_id, ()), statement), key=lambda each: each.at)
        self.statements = {**self.statements, statement.model_id: tuple(timeline)}

    def sight(self, seen: datetime, places: Mapping[str, str]) -> None:
        """Notes when places (to their fingerprints) were first listed as they are; the others' notes are dropped."""
        with self._lock:
            kept = {
                place: self.sightings[place]
                if self.sightings.get(place, ("",))[0] == fingerprint
                else (fingerprint, seen)
                for place, fingerprint in places.items()
            }
            if kept == self.sightings:
                return
            gone = [[place] for place in self.sightings.keys() - kept.keys()]
            new = [[place, *kept[place]] for place in kept if kept[place] != self.sightings.get(place)]
            with self._transaction() as db:
                if gone:
                    db.executemany("DELETE FROM sightings WHERE place = ?", gone)
                if new:
                    db.executemany("INSERT OR REPLACE INTO sightings VALUES (?, ?, ?)", new)
            self.sightings = kept

    def put_place(self, place: Place, *acts: Act) -> None:
        """Records what was found at a place."""
        columns = [list(column) if isinstance(column, tuple) else column for column in astuple(place)]
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO places VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", columns)
            _write_history(db, acts)
        self.places = {**self.places, place.place: place}

    def drop_place(self, place: str) -> None:
        with self._transaction() as db:
            db.execute("DELETE FROM places WHERE place = ?", [place])
        self.places = {name: each for name, each in self.places.items() if name != place}

    def put_record(self, model_id: str, revision: int, record: bytes, *acts: Act) -> None:
        """Keeps the record that was written to Redis, should Redis lose it."""
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO models VALUES (?, ?, ?)", [model_id, revision, record])
            _write_history(db, acts)
        self.records = {**self.records, model_id: (revision, record)}
        self.lives |= {(act.model_id, act.version): act.at for act in acts if act.act == "live"}

    def put_gate(self, model_id: str, terms: Terms | None, *acts: Act) -> None:
        """A model's own terms for the gate; None where it goes by the defaults again."""
        with self._transaction() as db:
            db.execute("DELETE FROM gates WHERE model_id = ?", [model_id])
            if terms is not None:
                db.execute("INSERT INTO gates VALUES (?, ?, ?, ?, ?)", [model_id, *astuple(terms)])
            _write_history(db, acts)
        others = {name: each for name, each in self.gates.items() if name != model_id}
        self.gates = others if terms is None else {**others, model_id: terms}

    def note(self, *acts: Act) -> None:
        with self._transaction() as db:
            _write_history(db, acts)

    def history(self, model_id: str = "") -> list[Act]:
        """What happened, oldest first; of all models where none is named."""
        rows = self._rows(
            "SELECT epoch_us(noted), model_id, version, digest, act, detail, who FROM history "
            "WHERE ? = '' OR model_id = ? ORDER BY noted, rowid",
            [model_id, model_id],
        )
        return [Act(_time(at), *rest) for at, *rest in rows]

    def _read_versions(self) -> Iterator[KnownVersion]:
        artifacts: dict[tuple[str, str], list[StoredArtifact]] = {}
        for model_id, version, *rest in self._rows("SELECT * FROM artifacts ORDER BY model_id, version, name"):
            artifacts.setdefault((model_id, version), []).append(StoredArtifact(*rest))
        for row in self._rows("SELECT * REPLACE (epoch_us(first_seen) AS first_seen) FROM versions"):
            model_id, version, digest, signature, trained_date, location, tag, place, refused, seen = row
            yield KnownVersion(
                model_id, version, digest, bytes(signature), trained_date, location, tag, place, refused, _time(seen),
                tuple(artifacts.get((model_id, version), ())),
            )  # fmt: skip

    def _read_statements(self) -> Iterator[Statement]:
        for at, *rest in self._rows(
            "SELECT epoch_us(said), model_id, version, digest, kind, word, who, basis_points, salt, abort_over "
            "FROM statements ORDER BY said, rowid"
        ):
            yield Statement(_time(at), *rest)

    def _read_places(self) -> Iterator[Place]:
        for row in self._rows("SELECT * REPLACE (epoch_us(first_seen) AS first_seen) FROM places"):
            place, fingerprint, model_id, version, digest, tag, location, problem, warnings, seen = row
            yield Place(
                place, fingerprint, model_id, version, digest, tag, location, problem, tuple(warnings), _time(seen)
            )

    def _rows(self, query: str, values: Iterable[object] = ()) -> list[tuple[Any, ...]]:
        with self._lock:
            return self._db.execute(query, list(values)).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._lock:
            self._db.begin()
            try:
                yield self._db
            except BaseException:
                self._db.rollback()
                raise
            self._db.commit()


def _advice(reason: str) -> str:
    if "lock" in reason:
        return "another registry has it open: stop that one first"
    if "permission" in reason.lower() or "directory" in reason.lower():
        return "check the folder and who owns it"
    return "move it away, and a new one is made from the store"


def _write_history(db: duckdb.DuckDBPyConnection, acts: Iterable[Act]) -> None:
    for act in acts:
        db.execute("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?, ?)", list(astuple(act)))


def _write_statement(db: duckdb.DuckDBPyConnection, statement: Statement) -> None:
    db.execute("INSERT INTO statements VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", list(astuple(statement)))


def _time(micros: int) -> datetime:
    seconds, rest = divmod(micros, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)
