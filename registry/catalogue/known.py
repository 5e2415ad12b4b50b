"""What the registry knows of a version, of a place in the store, and of what happened: plain values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from packaging.version import Version

from contract.version import version_order

VersionKey = tuple[str, str]
"""Model and version."""
Rank = tuple[tuple[int, Version, str], datetime]


def rank(version: str, trained_date: str) -> Rank:
    """Between versions tagged alike the higher one wins, then the one trained later."""
    trained = datetime.fromisoformat(trained_date.upper().replace(" ", "T"))
    return version_order(version), trained if trained.tzinfo else trained.replace(tzinfo=UTC)


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
    """found, tagged, refused, vanished, replayed, held back, loading, live, superseded, restored, dropped, or an
    operator's act."""
    detail: str
    by: str = ""
    """Who did it, where somebody did."""


def now() -> datetime:
    return datetime.now(UTC)
