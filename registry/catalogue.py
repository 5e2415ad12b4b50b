"""Every version that was ever found, in DuckDB: what is known of it, where it stands, what happened to it.

The registry process is the only one to open the file. Rows are read once, at the start, and written through; calls
that reach DuckDB block and belong in a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
from packaging.version import Version

from contract.version import version_order

_SCHEMA = """
CREATE TABLE IF NOT EXISTS models (
    model_id VARCHAR PRIMARY KEY, revision UBIGINT NOT NULL, record BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS versions (
    model_id VARCHAR, version VARCHAR, digest VARCHAR NOT NULL, signature_json BLOB NOT NULL,
    trained_date VARCHAR NOT NULL, location VARCHAR NOT NULL, tag VARCHAR NOT NULL, place VARCHAR NOT NULL,
    refused VARCHAR NOT NULL, first_seen TIMESTAMPTZ NOT NULL, PRIMARY KEY (model_id, version));
CREATE TABLE IF NOT EXISTS artifacts (
    model_id VARCHAR NOT NULL, version VARCHAR NOT NULL, name VARCHAR NOT NULL, sha256 VARCHAR NOT NULL,
    size UBIGINT NOT NULL, blob VARCHAR NOT NULL, etag VARCHAR NOT NULL);
CREATE TABLE IF NOT EXISTS places (
    place VARCHAR PRIMARY KEY, fingerprint VARCHAR NOT NULL, model_id VARCHAR NOT NULL, version VARCHAR NOT NULL,
    digest VARCHAR NOT NULL, tag VARCHAR NOT NULL, location VARCHAR NOT NULL, problem VARCHAR NOT NULL,
    warnings VARCHAR[] NOT NULL, first_seen TIMESTAMPTZ NOT NULL);
CREATE TABLE IF NOT EXISTS history (
    noted TIMESTAMPTZ NOT NULL, model_id VARCHAR NOT NULL, version VARCHAR NOT NULL, digest VARCHAR NOT NULL,
    act VARCHAR NOT NULL, detail VARCHAR NOT NULL);
"""


VersionKey = tuple[str, str]
"""Model and version."""
Rank = tuple[tuple[int, Version, str], datetime]


def rank(version: str, trained_date: str) -> Rank:
    """Between versions tagged alike the higher one wins, then the one trained later."""
    trained = datetime.fromisoformat(trained_date.upper().replace(" ", "T"))
    return version_order(version), trained if trained.tzinfo else trained.replace(tzinfo=UTC)


class CatalogueUnusable(Exception):
    """The database can't be opened; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class StoredArtifact:
    """One file of a version: what its bytes are, and the blob they were last seen in."""

    name: str
    sha256: str
    size: int
    blob: str
    etag: str


@dataclass(frozen=True, slots=True)
class KnownVersion:
    """A version whose identity is on record; its contents never change."""

    model_id: str
    version: str
    digest: str
    """Hex version digest."""
    signature_json: bytes
    """Canonical."""
    trained_date: str
    location: str
    tag: str
    """production, canary, shadow, staging or retired; as last seen, once its blobs are gone."""
    place: str
    """Where it stands in the store; empty once its blobs are gone."""
    refused: str
    """Why workers do not load it; empty where nothing speaks against it."""
    first_seen: datetime
    artifacts: tuple[StoredArtifact, ...]

    @property
    def key(self) -> VersionKey:
        return self.model_id, self.version

    @property
    def rank(self) -> Rank:
        """A key to sort the versions of a model by, lowest first."""
        return rank(self.version, self.trained_date)

    @property
    def name(self) -> str:
        """For people: `churn 1.0.0`."""
        return f"{self.model_id} {self.version}"


@dataclass(frozen=True, slots=True)
class Place:
    """What was found at one place of the store when it last changed."""

    place: str
    fingerprint: str
    model_id: str
    version: str
    digest: str
    """Empty where the contents make up no version."""
    tag: str
    location: str
    problem: str
    """Why what stands here is not servable."""
    warnings: tuple[str, ...]
    first_seen: datetime


@dataclass(frozen=True, slots=True)
class Act:
    """One line of a model's history."""

    at: datetime
    model_id: str
    version: str
    digest: str
    act: str
    """found, tagged, refused, vanished, loading, live, superseded, restored or dropped."""
    detail: str


def now() -> datetime:
    return datetime.now(UTC)


class Catalogue:
    """The registry's memory over restarts."""

    def __init__(self, database: Path) -> None:
        """Opens or makes the database. Raises CatalogueUnusable."""
        self._lock = threading.RLock()
        try:
            database.parent.mkdir(parents=True, exist_ok=True)
            self._db = duckdb.connect(str(database))
            self._db.execute("SET TimeZone = 'UTC'")
            self._db.execute(_SCHEMA)
        except (duckdb.Error, OSError) as error:
            reason = str(error).partition("\n")[0]
            raise CatalogueUnusable(
                f"cannot use {database} as the registry's catalogue: {reason}; {_advice(reason)}"
            ) from None
        self.versions = {version.key: version for version in self._read_versions()}
        self.places = {place.place: place for place in self._read_places()}
        self.records: dict[str, tuple[int, bytes]] = {
            model_id: (revision, bytes(record))
            for model_id, revision, record in self._rows("SELECT model_id, revision, record FROM models")
        }
        """model_id -> revision and serialized record as last written to Redis."""

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def put_version(self, version: KnownVersion, *acts: Act) -> None:
        """Records a version, replacing what was known of it."""
        with self._lock:
            self._put_version(version, acts)

    def _put_version(self, version: KnownVersion, acts: Iterable[Act]) -> None:
        columns = astuple(version)[:-1]
        artifacts = [(*version.key, a.name, a.sha256, a.size, a.blob, a.etag) for a in version.artifacts]
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", list(columns))
            db.execute("DELETE FROM artifacts WHERE model_id = ? AND version = ?", list(version.key))
            for artifact in artifacts:
                db.execute("INSERT INTO artifacts VALUES (?, ?, ?, ?, ?, ?, ?)", list(artifact))
            _write_history(db, acts)
        # Replaced whole, so that whoever iterates in another thread sees the one or the other.
        self.versions = {**self.versions, version.key: version}

    def amend(self, key: VersionKey, *acts: Act, **changes: str) -> None:
        """Changes some fields of a version that is on record, whatever else was changed meanwhile."""
        with self._lock:
            version = replace(self.versions[key], **changes)  # type: ignore[arg-type]
            self._put_version(version, acts)

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

    def note(self, *acts: Act) -> None:
        with self._transaction() as db:
            _write_history(db, acts)

    def history(self, model_id: str = "") -> list[Act]:
        """What happened, oldest first; of all models where none is named."""
        rows = self._rows(
            "SELECT epoch_us(noted), model_id, version, digest, act, detail FROM history "
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
        db.execute("INSERT INTO history VALUES (?, ?, ?, ?, ?, ?)", list(astuple(act)))


def _time(micros: int) -> datetime:
    seconds, rest = divmod(micros, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)
