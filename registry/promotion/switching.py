"""The next step of a model towards what is wanted of it: decisions, as values.

wanted -> LOADING -> every living worker has it -> LIVE, and what it replaces RETIRING -> dropped
                  -> one worker cannot load it  -> refused; the next best is tried
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from contract.presence import Presence
from contract.record import LIVE, LOADING, RETIRING, ModelRecord, Routing, Version
from registry.catalogue.known import KnownVersion
from registry.promotion.timeline import Claim, Wanted


@dataclass(frozen=True, slots=True)
class Load:
    """Workers are to load this version."""

    version: KnownVersion


@dataclass(frozen=True, slots=True)
class Switch:
    """All workers have it: it is what it should be from now on."""

    version: KnownVersion


@dataclass(frozen=True, slots=True)
class Refuse:
    """It does not load, or may not; nobody tries it again until its blobs are written anew, or an operator says so."""

    version: KnownVersion
    reason: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """What was being loaded is not offered for now."""


Step = Load | Switch | Refuse | Withdraw

GONE_LIMIT_S = 15.0
"""Without any worker for so long while a version is being loaded: the version is what ends them."""


@dataclass(frozen=True, slots=True)
class Wait:
    """How the loading of one version has gone so far."""

    seen: bool = False
    """Whether a worker has lived since it was offered, or just before."""
    waited_s: float = 0.0
    """Since a worker was first seen."""
    gone_s: float = 0.0
    """Since no worker lives any more."""

    def after(self, elapsed_s: float, any_living: bool) -> Wait:
        seen = self.seen or any_living
        return Wait(seen, self.waited_s + elapsed_s if seen else 0.0, 0.0 if any_living else self.gone_s + elapsed_s)


def decide(
    record: ModelRecord | None, version: KnownVersion, workers: Sequence[Presence], wait: Wait, limit_s: float
) -> Step | None:
    """The next step towards one version that is wanted; None where it is live, or there is nothing to do but wait.

    Workers that end while they load a version, and do not come back, are a veto too: they would go on ending for as
    long as it is offered. Where there is something live, nothing is offered to a pool without workers, so that they
    can always start on what is known to load.
    """
    live = record.live if record else None
    here = record.versions.get(version.version) if record else None
    if here is not None and here.digest.hex() != version.digest:
        held = here.digest.hex()[:12]
        return Refuse(version, f"versions are immutable: Redis has {version.version} with digest {held}")
    if here is not None and here.state == LIVE:
        return None
    serving = [worker for worker in workers if serves(worker, version.model_id)]
    if here is None or here.state != LOADING:
        return Load(version) if serving or live is None else None
    if not serving and wait.gone_s > min(GONE_LIMIT_S, limit_s):
        if wait.seen:
            return Refuse(version, "every worker ended while it was being loaded, and none came back")
        return Withdraw() if live is not None else None
    for worker in serving:
        if version.digest in worker.failed:
            return Refuse(version, f"worker {worker.name} cannot load it: {worker.failed[version.digest]}")
    missing = [worker.name for worker in serving if version.digest not in worker.loaded]
    if serving and not missing:
        return Switch(version)
    if serving and wait.waited_s > limit_s:
        share = f"{len(missing)} of {len(serving)} workers"
        return Refuse(version, f"not loaded within {limit_s:g} s by {share}: {', '.join(missing[:5])}")
    return None


def beside_veto(record: ModelRecord, version: Version, workers: Sequence[Presence]) -> str:
    """Why a canary or shadow can't stay; empty where nothing is wrong.

    A worker reads a model only once it has all its live versions: what stands beside must not keep one that comes up
    from that, nor end workers again and again.
    """
    if version.state != LIVE or version.version == record.routing.production:
        return ""
    digest = version.digest.hex()
    failing = next((worker for worker in workers if digest in worker.failed), None)
    if failing is None:
        return ""
    why = failing.failed[digest]
    return why if digest in failing.loaded else f"worker {failing.name} cannot load it: {why}"


def serves(worker: Presence, model_id: str) -> bool:
    """Whether a worker loads the versions of a model at all; one that does not say serves every model."""
    return worker.serves(model_id)


def loading(record: ModelRecord | None, version: Version) -> ModelRecord:
    """The record with a version to load, instead of any other that was being loaded."""
    if record is None:
        return ModelRecord(version.signature.model_id, 0, {version.version: version}, Routing())
    return replace(record, versions={**withdrawn(record).versions, version.version: replace(version, state=LOADING)})


def withdrawn(record: ModelRecord) -> ModelRecord:
    """The record without what was being loaded."""
    versions = {name: version for name, version in record.versions.items() if version.state != LOADING}
    return replace(record, versions=versions)


def with_live(record: ModelRecord, version: str) -> ModelRecord:
    """The record with a version that all workers have; `arranged` gives it its place."""
    return replace(record, versions={**record.versions, version: replace(record.versions[version], state=LIVE)})


def arranged(record: ModelRecord, wanted: Wanted) -> ModelRecord:
    """The record as it should stand with what is live: routing as wanted, and what has no role any more retiring.

    Without a version wanted in production what answers goes on, unless an operator retired it; while the wanted one
    is not live yet, or the gate examines it, it goes on in any case.
    """
    production = record.live.version if record.live else ""
    if wanted.production is not None and not wanted.is_examined and _is_live(record, wanted.production):
        production = wanted.production.version.version
    elif wanted.production is None and production in wanted.retired:
        production = ""
    routing = Routing(production=production)
    canary = wanted.canary
    if canary is not None and _is_live(record, canary) and canary.version.version != production:
        routing = replace(
            routing,
            canary=canary.version.version,
            canary_basis_points=canary.statement.basis_points,
            salt=canary.statement.salt,
        )
    shadow = wanted.shadow
    if shadow is not None and _is_live(record, shadow) and shadow.version.version not in (production, routing.canary):
        routing = replace(routing, shadow=shadow.version.version)
    roles = {routing.production, routing.canary, routing.shadow}
    coming = {claim.version.digest for claim in wanted.claims}
    versions = {
        name: replace(version, state=RETIRING) if version.state == LIVE and name not in roles else version
        for name, version in record.versions.items()
        if version.state != LOADING or version.digest.hex() in coming
    }
    return replace(record, versions=versions, routing=routing)


def _is_live(record: ModelRecord, claim: Claim) -> bool:
    held = record.versions.get(claim.version.version)
    return held is not None and held.state == LIVE and held.digest.hex() == claim.version.digest
