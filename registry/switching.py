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
    waited_s: float,
    limit_s: float,
) -> Step | None:
    """The next step for one model; None where there is nothing to do but wait.

    `waited_s` is how long living workers have had `best` to load. Without a candidate what is live stays live.
    """
    held = record.versions if record else {}
    live = record.live if record else None
    if best is None or (live is not None and live.digest.hex() == best.digest):
        return Withdraw() if any(version.state == LOADING for version in held.values()) else None
    here = held.get(best.version)
    if here is not None and here.digest.hex() != best.digest:
        return Refuse(best, f"versions are immutable: Redis has {best.version} with digest {here.digest.hex()[:12]}")
    if here is None or here.state != LOADING:
        return Load(best)
    serving = [worker for worker in workers if serves(worker, best.model_id)]
    for worker in serving:
        if best.digest in worker.failed:
            return Refuse(best, f"worker {worker.name} cannot load it: {worker.failed[best.digest]}")
    missing = [worker.name for worker in serving if best.digest not in worker.loaded]
    if serving and not missing:
        return Switch(best)
    if serving and waited_s > limit_s:
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
