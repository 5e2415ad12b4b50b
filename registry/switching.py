"""Which version of a model goes live, and the next step towards it: decisions, as values.

found -> LOADING -> every living worker has it -> LIVE, and the one before it RETIRING -> dropped
                 -> one worker cannot load it  -> refused; the next best is tried
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from contract.presence import Presence
from contract.record import LIVE, LOADING, RETIRING, ModelRecord, Routing, Version
from registry.catalogue import KnownVersion


@dataclass(frozen=True, slots=True)
class Load:
    """Workers are to load this version."""

    version: KnownVersion


@dataclass(frozen=True, slots=True)
class Switch:
    """All workers have it: it answers from now on."""

    version: KnownVersion


@dataclass(frozen=True, slots=True)
class Refuse:
    """It does not load, or may not; nobody tries it again until its blobs are written anew."""

    version: KnownVersion
    reason: str


@dataclass(frozen=True, slots=True)
class Withdraw:
    """What was being loaded is not wanted any more."""


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


def candidates(versions: Iterable[KnownVersion], record: ModelRecord | None) -> list[KnownVersion]:
    """The versions of one model that may be live, best first: those tagged production that nothing speaks against.

    One whose blobs are gone is one only while it is live: deleting blobs never takes a model down.
    """
    live = record.live if record else None
    return sorted(
        (
            version
            for version in versions
            if version.tag == "production"
            and not version.refused
            and (version.place or (live is not None and live.digest.hex() == version.digest))
        ),
        key=lambda version: version.rank,
        reverse=True,
    )


def decide(
    record: ModelRecord | None,
    best: KnownVersion | None,
    workers: Sequence[Presence],
    wait: Wait,
    limit_s: float,
) -> Step | None:
    """The next step for one model; None where there is nothing to do but wait.

    Without a candidate what is live stays live. Workers that end while they load a version, and do not come back, are
    a veto too: they would go on ending for as long as it is offered. Where there is something live, nothing is
    offered to a pool without workers, so that they can always start on what is known to load.
    """
    held = record.versions if record else {}
    live = record.live if record else None
    if best is None or (live is not None and live.digest.hex() == best.digest):
        return Withdraw() if any(version.state == LOADING for version in held.values()) else None
    here = held.get(best.version)
    if here is not None and here.digest.hex() != best.digest:
        return Refuse(best, f"versions are immutable: Redis has {best.version} with digest {here.digest.hex()[:12]}")
    serving = [worker for worker in workers if serves(worker, best.model_id)]
    if here is None or here.state != LOADING:
        return Load(best) if serving or live is None else None
    if not serving and wait.gone_s > min(GONE_LIMIT_S, limit_s):
        if wait.seen:
            return Refuse(best, "every worker ended while it was being loaded, and none came back")
        return Withdraw() if live is not None else None
    for worker in serving:
        if best.digest in worker.failed:
            return Refuse(best, f"worker {worker.name} cannot load it: {worker.failed[best.digest]}")
    missing = [worker.name for worker in serving if best.digest not in worker.loaded]
    if serving and not missing:
        return Switch(best)
    if serving and wait.waited_s > limit_s:
        share = f"{len(missing)} of {len(serving)} workers"
        return Refuse(best, f"not loaded within {limit_s:g} s by {share}: {', '.join(missing[:5])}")
    return None


def serves(worker: Presence, model_id: str) -> bool:
    """Whether a worker loads the versions of a model at all; one that does not say serves every model."""
    models: Sequence[str] = getattr(worker, "models", ())
    return not models or model_id in models


def loading(record: ModelRecord | None, version: Version) -> ModelRecord:
    """The record with a version to load, instead of any other that was being loaded."""
    if record is None:
        return ModelRecord(version.signature.model_id, 0, {version.version: version}, Routing())
    return replace(record, versions={**_without(record, LOADING), version.version: replace(version, state=LOADING)})


def switched(record: ModelRecord, version: str) -> ModelRecord:
    """The record with a version live and the one before it retiring."""
    versions = {
        name: replace(each, state=LIVE if name == version else RETIRING if each.state == LIVE else each.state)
        for name, each in record.versions.items()
    }
    return replace(record, versions=versions, routing=replace(record.routing, production=version))


def withdrawn(record: ModelRecord) -> ModelRecord:
    """The record without what was being loaded."""
    return replace(record, versions=_without(record, LOADING))


def _without(record: ModelRecord, state: int) -> Mapping[str, Version]:
    return {name: version for name, version in record.versions.items() if version.state != state}
