"""Adoption: what stands in Redis at the start and the catalogue does not know is taken into it.

The catalogue may be new, or one that was restored from yesterday; or the process ended between the two writes of a
step. A signed record says when the newest statement was made that it follows from: where the catalogue's timeline ends
before that it has lost statements, and what answers goes on answering.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial

from anyio import to_thread
from google.protobuf.message import DecodeError

from contract.record import ModelRecord, Version
from contract.signature import SignatureError
from registry.catalogue.catalogue import Catalogue
from registry.catalogue.known import Act, KnownVersion, StoredArtifact, now
from registry.promotion.timeline import ADOPT, CANARY, SHADOW, Statement, micros
from registry.promotion.transitions import transitions


async def adopt(record: ModelRecord, catalogue: Catalogue) -> datetime | None:
    """Takes one record in. Answers until when statements about the model are lost; None where none are."""
    said = catalogue.statements.get(record.model_id, ())
    newest_us = max((micros(statement.at) for statement in said), default=-1)
    # A record of a time before there was a timeline does not say when it was decided.
    decided = _moment(record.decided_us) if record.decided_us else now()
    is_lost = record.decided_us > newest_us if record.decided_us else newest_us < 0
    for version in record.versions.values():
        if (record.model_id, version.version) in catalogue.versions:
            continue
        known = _adopted(version)
        act = Act(now(), *known.key, known.digest, "found", "in a signed record in Redis")
        tag = Statement(decided - timedelta(microseconds=1), *known.key, known.digest, "tag", known.tag)
        await to_thread.run_sync(partial(catalogue.put_version, known, act, statement=tag))
    if is_lost:
        for statement, act in _statements(record, decided):
            await to_thread.run_sync(catalogue.state, statement, act)
    await _catch_up(record, catalogue)
    return decided if is_lost else None


async def _catch_up(record: ModelRecord, catalogue: Catalogue) -> None:
    """Notes the record that is in Redis, where the process ended before it was noted."""
    revision, raw = catalogue.records.get(record.model_id, (0, b""))
    if record.revision <= revision or raw == record.encode():
        return
    try:
        before = ModelRecord.decode(raw) if raw else None
    except (DecodeError, SignatureError):
        before = None
    acts = transitions(before, record, None, now()) if before is not None else []
    await to_thread.run_sync(catalogue.put_record, record.model_id, record.revision, record.encode(), *acts)


def _statements(record: ModelRecord, at: datetime) -> list[tuple[Statement, Act]]:
    """What the record's routing says, as statements; of versions that it holds."""
    routing = record.routing
    roles = ((routing.production, ADOPT), (routing.canary, CANARY), (routing.shadow, SHADOW))
    said = []
    for name, word in roles:
        version = record.versions.get(name)
        if version is None:
            continue
        statement = Statement(at, record.model_id, name, version.digest.hex(), "act", word)
        if word == CANARY:
            statement = replace(statement, basis_points=routing.canary_basis_points, salt=routing.salt)
        detail = "the catalogue had lost what led to it"
        said.append((statement, Act(now(), record.model_id, name, statement.digest, "adopted", detail)))
    return said


def _moment(us: int) -> datetime:
    seconds, rest = divmod(us, 1_000_000)
    return datetime.fromtimestamp(seconds, UTC).replace(microsecond=rest)


def _adopted(version: Version) -> KnownVersion:
    signature = version.signature
    artifacts = tuple(StoredArtifact(a.name, a.sha256, a.size, "", "") for a in version.artifacts)
    return KnownVersion(
        signature.model_id, version.version, version.digest.hex(), version.signature_json, signature.trained_date,
        version.location, signature.status, "", "", now(), artifacts,
    )  # fmt: skip
