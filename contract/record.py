"""The model record: what stands in the catalogue about one model, and which version a request goes to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from contract.admission import Admission
from contract.errors import Reason, Refused
from contract.signature import Signature, parse_signature
from protos import millstream_wire_v1_pb2 as wire

LOADING, LIVE, RETIRING = wire.LOADING, wire.LIVE, wire.RETIRING
BUCKETS = 10_000


@dataclass(frozen=True, slots=True)
class Artifact:
    """One stored file of a version, content-addressed: its chunks are ms:{<sha256>}:0 and on."""

    name: str
    sha256: str
    size: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a model as processes know it."""

    version: str
    digest: bytes
    """SHA-256 over the artifacts' contents and the signature's identity."""
    state: wire.VersionState
    signature: Signature
    signature_json: bytes = field(repr=False)
    artifacts: tuple[Artifact, ...]
    location: str
    admission: Admission = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """For people: `churn 1.0.0`."""
        return f"{self.signature.model_id} {self.version}"

    @classmethod
    def make(
        cls,
        digest: bytes,
        state: wire.VersionState,
        signature_json: bytes,
        artifacts: tuple[Artifact, ...],
        location: str,
        known: Version | None = None,
    ) -> Version:
        """A version from its parts; `known` is the same version from before, whose compiled parts are reused.

        Raises SignatureError.
        """
        if known is not None and known.digest == digest and known.signature_json == signature_json:
            return replace(known, state=state, artifacts=artifacts, location=location)
        signature, _ = parse_signature(signature_json)
        return cls(
            version=signature.version,
            digest=digest,
            state=state,
            signature=signature,
            signature_json=signature_json,
            artifacts=artifacts,
            location=location,
            admission=Admission(signature),
        )


@dataclass(frozen=True, slots=True)
class Routing:
    """Which version answers a request that names none."""

    production: str = ""
    canary: str = ""
    canary_basis_points: int = 0
    salt: str = ""
    shadow: str = ""


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """Everything a gateway or a worker needs to know of one model."""

    model_id: str
    revision: int
    versions: Mapping[str, Version]
    routing: Routing
    decided_us: int = 0
    """When the newest statement was made that it follows from, in microseconds."""

    @property
    def live(self) -> Version | None:
        """The version that answers, where there is one."""
        version = self.versions.get(self.routing.production)
        return version if version is not None and version.state == LIVE else None

    def encode(self) -> bytes:
        """The serialized record; what is signed."""
        return wire.ModelRecord(
            model_id=self.model_id,
            revision=self.revision,
            versions=[
                wire.VersionRecord(
                    version=v.version,
                    digest=v.digest,
                    state=v.state,
                    signature_json=v.signature_json,
                    artifacts=[
                        wire.ArtifactRecord(name=a.name, sha256=bytes.fromhex(a.sha256), size=a.size, chunks=a.chunks)
                        for a in v.artifacts
                    ],
                    location=v.location,
                )
                for v in self.versions.values()
            ],
            routing=wire.Routing(
                production=self.routing.production,
                canary=self.routing.canary,
                canary_basis_points=self.routing.canary_basis_points,
                salt=self.routing.salt,
                shadow=self.routing.shadow,
            ),
            decided_us=self.decided_us,
        ).SerializeToString(deterministic=True)

    @classmethod
    def decode(cls, raw: bytes, known: ModelRecord | None = None) -> ModelRecord:
        """The record of these bytes; `known` is the one before it, whose compiled versions are reused.

        Raises DecodeError or SignatureError where the bytes are no record.
        """
        message = wire.ModelRecord.FromString(raw)
        before = known.versions if known else {}
        versions = {
            v.version: Version.make(
                digest=v.digest,
                state=v.state,
                signature_json=v.signature_json,
                artifacts=tuple(Artifact(a.name, a.sha256.hex(), a.size, a.chunks) for a in v.artifacts),
                location=v.location,
                known=before.get(v.version),
            )
            for v in message.versions
        }
        r = message.routing
        routing = Routing(r.production, r.canary, r.canary_basis_points, r.salt, r.shadow)
        return cls(message.model_id, message.revision, versions, routing, message.decided_us)


def bucket(model_id: str, salt: str, key: str) -> int:
    """Where a key stands between 0 and 9,999; the same on every machine and in every process."""
    digest = hashlib.sha256(f"{model_id}:{salt}:{key}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


def route(record: ModelRecord, version: str, entity_id: str, request_id: str) -> Version:
    """The version that answers a request; a pure function of the record and the request.

    A version that the request names bypasses the canary's share. Raises Refused where there is none.
    """
    if version:
        named = record.versions.get(version)
        if named is None or named.state != LIVE:
            there = ", ".join(v.version for v in record.versions.values() if v.state == LIVE) or "none"
            raise Refused(
                Reason.VERSION_UNKNOWN, f"{record.model_id} has no version {version[:80]!r} to ask; there is: {there}"
            )
        return named
    routing = record.routing
    if routing.canary and routing.canary_basis_points:
        canary = record.versions.get(routing.canary)
        share = bucket(record.model_id, routing.salt, entity_id or request_id) < routing.canary_basis_points
        if share and canary is not None and canary.state == LIVE:
            return canary
    live = record.live
    if live is None:
        raise Refused(Reason.VERSION_UNAVAILABLE, f"no version of {record.model_id} is live yet", retry_after_s=1.0)
    return live
