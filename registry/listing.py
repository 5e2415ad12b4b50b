"""What people are shown of versions: the catalogue, the records and what is under way, put together."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from contract.record import LIVE, LOADING, RETIRING, ModelRecord
from protos import millstream_v1_pb2 as v1
from registry.catalogue import Catalogue, KnownVersion, Place, VersionKey, rank

_STATES = {LOADING: "loading", LIVE: "live", RETIRING: "retiring"}


def listed_versions(
    catalogue: Catalogue,
    records: Mapping[str, ModelRecord],
    waiting: Mapping[VersionKey, str],
    trouble: Mapping[str, str],
    model_id: str = "",
) -> list[v1.VersionInfo]:
    """Every version that was ever found and every place that holds none that is servable, by model and version."""
    rows = []
    for version in catalogue.versions.values():
        place = catalogue.places.get(version.place)
        problem = trouble.get(version.place) or waiting.get(version.key, "")
        rows.append(_known(version, records.get(version.model_id), place, problem))
    known = {version.place for version in catalogue.versions.values()}
    rows += [_place(place) for place in catalogue.places.values() if place.problem]
    rows += [
        v1.VersionInfo(state="refused", location=place, problem=problem)
        for place, problem in trouble.items()
        if place not in known and place not in catalogue.places
    ]
    chosen = [row for row in rows if not model_id or row.model_id == model_id]
    return sorted(chosen, key=lambda row: (row.model_id, row.version, row.location))


def state_of(version: KnownVersion, record: ModelRecord | None) -> tuple[str, str]:
    """A version's state and, where it does not answer, why."""
    held = record.versions.get(version.version) if record else None
    live = record.live if record else None
    if held is not None and held.digest.hex() == version.digest:
        reason = f"{live.version} answers instead" if held.state == RETIRING and live is not None else ""
        return _STATES.get(held.state, "loading"), reason
    if version.refused:
        return "refused", version.refused
    if not version.place:
        return "vanished", "its blobs are gone from the store"
    if version.tag != "production":
        return version.tag, f"tagged {version.tag}, not production"
    if live is not None and rank(live.version, live.signature.trained_date) > version.rank:
        return "superseded", f"{live.version} answers instead"
    return "waiting", ""


def timestamp(at: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


def _known(version: KnownVersion, record: ModelRecord | None, place: Place | None, problem: str) -> v1.VersionInfo:
    state, reason = state_of(version, record)
    warnings = list(place.warnings) if place else []
    passing = state in ("loading", "waiting")
    if problem and not passing:
        warnings.append(problem)
    if not version.place and state != "vanished":
        warnings.append("its blobs are gone from the store; it is served from Redis")
    return v1.VersionInfo(
        model_id=version.model_id,
        version=version.version,
        state=state,
        tag=version.tag,
        digest=version.digest,
        trained_date=version.trained_date,
        location=version.location,
        problem=problem if problem and passing else reason,
        first_seen=timestamp(version.first_seen),
        warnings=warnings,
    )


def _place(place: Place) -> v1.VersionInfo:
    return v1.VersionInfo(
        model_id=place.model_id,
        version=place.version,
        state="refused",
        tag=place.tag,
        digest=place.digest,
        location=place.location,
        problem=place.problem,
        first_seen=timestamp(place.first_seen),
        warnings=place.warnings,
    )
