"""Sweep: bytes that nobody needs leave Redis: of versions that were dropped or refused, or that a crash left behind."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from contract.record import ModelRecord
from registry.catalogue.catalogue import Catalogue
from registry.catalogue.known import KnownVersion, VersionKey
from registry.promotion.timeline import Wanted
from registry.watch.artifacts import ArtifactKeys
from registry.watch.supply import Supply


class Sweep:
    """Takes the chunks of versions without a use out of Redis, once."""

    def __init__(self, catalogue: Catalogue, artifacts: ArtifactKeys, supply: Supply) -> None:
        self._catalogue = catalogue
        self._artifacts = artifacts
        self._supply = supply
        self._swept: set[str] = set()
        """Digests of versions without a use, whose chunks are out of Redis."""

    async def run(self, goals: Mapping[str, Wanted], records: Mapping[str, ModelRecord]) -> None:
        """`goals` are of the models that may be judged; the versions of others are left alone."""
        known = self._catalogue.versions.values()
        idle = idle_versions(known, records, goals, self._supply.wanted)
        digests = {version.digest for version in idle}
        new = [version for version in idle if version.digest not in self._swept]
        if new:
            used = {a.sha256 for version in known if version.digest not in digests for a in version.artifacts}
            used |= {a.sha256 for each in records.values() for v in each.versions.values() for a in v.artifacts}
            chunked = (artifact for version in new for artifact in self._artifacts.chunked(version))
            await self._artifacts.drop(artifact for artifact in chunked if artifact.sha256 not in used)
        self._swept = digests


def idle_versions(
    versions: Iterable[KnownVersion],
    records: Mapping[str, ModelRecord],
    goals: Mapping[str, Wanted],
    on_their_way: Collection[VersionKey],
) -> list[KnownVersion]:
    """Versions whose bytes nobody needs in Redis: dropped, refused, left behind by a crash."""
    needed = {
        (model_id, each.digest.hex()) for model_id, record in records.items() for each in record.versions.values()
    }
    needed |= {(model_id, claim.version.digest) for model_id, goal in goals.items() for claim in goal.claims}
    waiting = {(model_id, name) for model_id, goal in goals.items() for name, held in goal.gated.items() if held.again}
    return [
        version
        for version in versions
        if version.model_id in goals
        and (version.model_id, version.digest) not in needed
        and version.key not in on_their_way
        and version.key not in waiting
    ]
