"""Supply: artifacts that Redis should have and lacks, from the store; tried before a worker is asked to load them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from anyio import to_thread
from redis.exceptions import ResponseError

from registry.blobs import Blob, BlobChanged, BlobStore, StoreError
from registry.catalogue.catalogue import Catalogue
from registry.catalogue.known import KnownVersion, VersionKey
from registry.trial import Trial, on_trial, told
from registry.watch.artifacts import ArtifactKeys, Progress, Spooled, spool
from registry.watch.findings import Findings


class Supply:
    """Brings versions to where workers fetch them."""

    def __init__(
        self,
        store: BlobStore,
        catalogue: Catalogue,
        keys: ArtifactKeys,
        spool_folder: Path,
        findings: Findings,
        progress: Progress | None = None,
        trial: Trial | None = None,
    ) -> None:
        self.wanted: set[VersionKey] = set()
        """Versions whose artifacts should be in Redis and are not."""
        self.passed: set[str] = set()
        """Digests of versions that a trial has loaded, or workers before it."""
        self.unsigned: dict[str, str] = {}
        """Digest of a version on record -> why no trusted publisher stands behind it."""
        self._store = store
        self._catalogue = catalogue
        self._keys = keys
        self._spool_folder = spool_folder
        self._findings = findings
        self._progress = progress
        self._trial = trial

    def is_tried(self, digest: str) -> bool:
        """Whether a version may be offered to the workers as far as publishers and trials go."""
        return digest not in self.unsigned and (self._trial is None or digest in self.passed)

    async def fill(self, listing: Mapping[str, Blob]) -> None:
        """Fetches what is wanted, by the blobs of a listing. Raises StoreError where that concerns the whole store."""
        for key in sorted(self.wanted):
            version = self._catalogue.versions.get(key)
            if version is None or not version.place or version.refused:
                self.wanted.discard(key)
                continue
            if version.digest in self.unsigned:  # nothing to fetch: it is only said again
                await self.attempt(version)
                self.wanted.discard(key)
                continue
            async with self._findings.contained(version.place, version.location):
                for artifact in version.artifacts:
                    if await self._keys.present([self._keys.artifact(artifact.name, artifact.sha256, artifact.size)]):
                        continue
                    blob = listing.get(artifact.blob)
                    if blob is None or blob.etag != artifact.etag:
                        raise BlobChanged(f"{artifact.blob} is not what was recorded of {version.name} any more")
                    async with spool(self._store, blob, self._spool_folder, self._progress) as spooled:
                        self._findings.downloaded += 1
                        if spooled.sha256 != artifact.sha256:
                            raise BlobChanged(f"{artifact.blob} is not what was recorded of {version.name} any more")
                        await self.put(spooled)
                await self.attempt(version)
                self.wanted.discard(key)

    async def put(self, spooled: Spooled) -> None:
        """Writes an artifact into Redis. Raises StoreError where that is full."""
        try:
            await self._keys.put(spooled)
        except ResponseError as error:
            raise StoreError(f"Redis did not take {spooled.size:,} bytes of it: {error}; raise maxmemory") from None

    async def attempt(self, version: KnownVersion) -> None:
        """Refuses a version that the trial can't load, before a worker is asked to. Raises TrialUnavailable."""
        if version.digest in self.unsigned:
            reason = self.unsigned[version.digest]
            await to_thread.run_sync(partial(self._catalogue.amend, version.key, refused=reason))
            return
        if self._trial is None or version.digest in self.passed:
            return
        artifacts = [self._keys.artifact(a.name, a.sha256, a.size) for a in version.artifacts]
        if not await self._keys.present(artifacts):
            return  # tried once they are there
        verdict = await self._trial(version.signature_json, on_trial(self._keys, artifacts))
        if verdict.reason:
            await self._findings.refuse(version, verdict.reason)
            return
        self.passed.add(version.digest)
        told(verdict, version.model_id, version.version)
        place = self._catalogue.places.get(version.place)
        if place is not None and (new := tuple(each for each in verdict.warnings if each not in place.warnings)):
            warned = replace(place, warnings=(*place.warnings, *new))
            await to_thread.run_sync(self._catalogue.put_place, warned)
