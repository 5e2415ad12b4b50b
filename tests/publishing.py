"""Puts a version folder straight into Redis as the registry would, for tests that need no registry."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from contract.keys import Keys
from contract.record import LIVE, Artifact, ModelRecord, Routing, Version
from contract.signature import parse_signature
from contract.trust import seal
from contract.version import version_digest
from protos import millstream_wire_v1_pb2 as wire


def publish(
    client: redis.Redis,
    keys: Keys,
    key: Ed25519PrivateKey,
    folder: Path,
    *,
    state: wire.VersionState = LIVE,
    chunk: int = 1 << 16,
    before: ModelRecord | None = None,
) -> ModelRecord:
    """One version from its folder, made the production version where it is LIVE; `before` is the record it extends."""
    files = {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "signature.json"}
    return publish_files(client, keys, key, (folder / "signature.json").read_bytes(), files, state, chunk, before)


def publish_files(
    client: redis.Redis,
    keys: Keys,
    key: Ed25519PrivateKey,
    signature_json: bytes,
    files: Mapping[str, bytes],
    state: wire.VersionState = LIVE,
    chunk: int = 1 << 16,
    before: ModelRecord | None = None,
) -> ModelRecord:
    """The same from a signature and artifacts in memory."""
    signature, _ = parse_signature(signature_json)
    artifacts = []
    for name, content in files.items():
        sha256 = hashlib.sha256(content).hexdigest()
        chunks = [content[start : start + chunk] for start in range(0, len(content), chunk)] or [b""]
        for number, part in enumerate(chunks):
            client.set(keys.chunk(sha256, number), part)
        artifacts.append(Artifact(name, sha256, len(content), len(chunks)))
    digest = bytes.fromhex(version_digest(signature, {a.name: a.sha256 for a in artifacts}))
    version = Version.make(digest, state, signature_json, tuple(artifacts), "tests")
    versions = {**(before.versions if before else {}), version.version: version}
    routing = before.routing if before else Routing()
    if state == LIVE:
        routing = replace(routing, production=version.version)
    record = ModelRecord(signature.model_id, (before.revision if before else 0) + 1, versions, routing)
    put(client, keys, key, record)
    return record


def put(client: redis.Redis, keys: Keys, key: Ed25519PrivateKey, record: ModelRecord) -> None:
    """Writes a record as the registry does: sealed, in one step with the revision."""
    pipe = client.pipeline(transaction=True)
    pipe.hset(keys.catalog, record.model_id, seal(record, key))
    pipe.incr(keys.catalog_revision)
    pipe.execute()
