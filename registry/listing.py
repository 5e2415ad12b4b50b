"""What people are shown of versions: the catalogue, the records and what is under way, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from contract.record import LIVE, LOADING, ModelRecord, Routing
from protos import millstream_v1_pb2 as v1
from registry.catalogue.catalogue import Catalogue
from registry.catalogue.known import KnownVersion, Place, VersionKey
from registry.promotion.canary import CanaryCounts
from registry.promotion.ruling import Hold, Terms
from registry.promotion.timeline import PRODUCTION, RETIRE, TAGS, Statement, Wanted, is_asked_for

ROLES = TAGS[:3]
"""Tags that ask for something."""


def listed_versions(
    catalogue: Catalogue,
    records: Mapping[str, ModelRecord],
    goals: Callable[[str], Wanted],
    waiting: Mapping[VersionKey, str],
    trouble: Mapping[str, str],
    model_id: str = "",
) -> list[v1.VersionInfo]:
    """Every version that was ever found and every place that holds none that is servable, by model and version."""
    rows = []
    wanted = {name: goals(name) for name in {key[0] for key in catalogue.versions} if model_id in ("", name)}
    for version in catalogue.versions.values():
        if version.model_id in wanted:
            place = catalogue.places.get(version.place)
            problem = trouble.get(version.place) or waiting.get(version.key, "")
            rows.append(_known(version, records.get(version.model_id), wanted[version.model_id], place, problem))
    known = {version.place for version in catalogue.versions.values()}
    rows += [_place(place) for place in catalogue.places.values() if place.problem]
    rows += [
        v1.VersionInfo(state="refused", location=place, problem=problem)
        for place, problem in trouble.items()
        if place not in known and place not in catalogue.places
    ]
    chosen = [row for row in rows if not model_id or row.model_id == model_id]
    return sorted(chosen, key=lambda row: (row.model_id, row.version, row.location))


def routing_of(
    model_id: str, record: ModelRecord | None, goal: Wanted, counts: CanaryCounts | None, terms: Terms
) -> v1.ModelRouting:
    """Which version of a model is what, and by which statement."""
    routing = record.routing if record else Routing()
    wanted = goal.production
    is_there = wanted is not None and wanted.version.version == routing.production
    canary = goal.canary if goal.canary is not None and goal.canary.version.version == routing.canary else None
    return v1.ModelRouting(
        model_id=model_id,
        production=routing.production,
        statement=wanted.statement.told if wanted is not None and is_there else "",
        coming=wanted.version.version if wanted is not None and not is_there else "",
        pinned=f"{goal.pin.version} {goal.pin.told}" if goal.pin else "",
        canary=routing.canary,
        canary_percent=routing.canary_basis_points / 100,
        abort_over=canary.statement.abort_over if canary else 0.0,
        canary_finished=counts.tally.finished if counts else 0,
        canary_failed=counts.tally.failed if counts else 0,
        shadow=routing.shadow,
        gate=terms.told,
    )


def state_of(version: KnownVersion, record: ModelRecord | None, goal: Wanted) -> tuple[str, str]:
    """A version's state and, where it does not answer, why."""
    held = record.versions.get(version.version) if record else None
    live = record.live if record else None
    instead = f"{live.version} answers instead" if live is not None else "nothing answers instead"
    ruling = goal.gated.get(version.version)
    kept = _gated(version, ruling) if ruling is not None else ""
    if record is not None and held is not None and held.digest.hex() == version.digest:
        if held.state == LOADING:
            return "loading", ""
        if held.state == LIVE:
            return _role(version.version, record.routing), kept
        if kept:
            return "held back", kept
        return ("refused", version.refused) if version.refused else ("retiring", instead)
    if version.refused:
        return "refused", version.refused
    if not version.place:
        return "vanished", "its blobs are gone from the store"
    if any(claim.version.key == version.key for claim in goal.claims):
        return "waiting", ""
    if kept:
        return "held back", kept
    keeper = goal.held.get(version.version)
    if keeper is not None:
        return "retired" if keeper.word == RETIRE else "held back", _keeps(keeper, version.version)
    if version.tag == PRODUCTION:
        return "superseded", instead
    if version.tag in ROLES:
        return "superseded", f"another version is the {version.tag}"
    if version.version in goal.retired:
        return "retired", "retired by an operator"
    return version.tag, f"tagged {version.tag}, not production"


def refused_versions(catalogue: Catalogue) -> dict[str, str]:
    """Digest -> which version it is and why it was refused, of those that somebody waits for; for `status`."""
    return {
        version.digest: f"{version.name}: {version.refused}"
        for version in catalogue.versions.values()
        if version.refused and version.place and is_asked_for(version, catalogue.statements.get(version.model_id, ()))
    }


def timestamp(at: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


def _role(version: str, routing: Routing) -> str:
    roles = {routing.shadow: "shadow", routing.canary: "canary", routing.production: "live"}
    return roles.get(version, "retiring")


def _keeps(keeper: Statement, version: str) -> str:
    return keeper.told if keeper.version == version else f"{keeper.version} was {keeper.told}"


def _gated(version: KnownVersion, ruling: Hold) -> str:
    despite = f"millstream registry promote {version.model_id} {version.version} --despite-gate"
    return f"held back by the gate: {ruling.short}; `{despite}` puts it into production all the same"


def _traffic(version: str, routing: Routing) -> float:
    if version == routing.canary:
        return routing.canary_basis_points / 100
    return 100 - (routing.canary_basis_points / 100 if routing.canary else 0) if version == routing.production else 0.0


def _known(
    version: KnownVersion, record: ModelRecord | None, goal: Wanted, place: Place | None, problem: str
) -> v1.VersionInfo:
    state, reason = state_of(version, record, goal)
    warnings = list(place.warnings) if place else []
    passing = state in ("loading", "waiting")
    if problem and not passing:
        warnings.append(problem)
    if not version.place and state != "vanished":
        warnings.append("its blobs are gone from the store; it is served from Redis")
    keeper = goal.held.get(version.version)
    claim = next((claim for claim in goal.claims if claim.version.key == version.key), None)
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
        held_back=_keeps(keeper, version.version) if keeper else "",
        statement=claim.statement.told if claim else "",
        traffic_percent=_traffic(version.version, record.routing) if state in ("live", "canary") and record else 0.0,
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
