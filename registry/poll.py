"""One look into the store: list, read what changed, hash it, record what it is.

    listing -> places that changed -> signatures -> artifacts hashed, best candidates first -> versions on record

An unchanged store costs one listing. A fault of one place is that place's problem; only a store that can't be reached
ends a look, and what it had found by then stays.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import structlog
from anyio import to_thread
from redis.exceptions import ResponseError

from contract.signature import MAX_BYTES, Signature, SignatureError, parse_signature
from contract.version import ArtifactsError, Roles, version_digest
from registry.artifacts import ArtifactKeys, Progress, Spooled, spool
from registry.blobs import (
    Blob,
    BlobChanged,
    BlobNotFound,
    BlobStore,
    BlobTooLarge,
    ContainerMissing,
    StoreError,
    StoreUnavailable,
)
from registry.catalogue import Act, Catalogue, KnownVersion, Place, StoredArtifact, VersionKey, now, rank
from registry.layout import FoundVersion, find_versions

Trial = Callable[[bytes, Mapping[str, bytes]], Awaitable[str]]
"""Loads a version from its signature's JSON and its artifacts by name, apart from everything that serves.

Answers why it does not load, or nothing where it does.
"""

STRENGTH = ("production", "canary", "shadow", "staging", "retired")
"""Which of two tags of the same version counts, the first of these."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found."""

    listed: int
    downloaded: int
    changes: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Draft:
    """A version whose signature is read and whose bytes are not hashed yet."""

    found: FoundVersion
    signature: Signature
    warnings: tuple[str, ...]
    files: Mapping[str, Blob]
    tag: str

    @property
    def key(self) -> VersionKey:
        return self.signature.model_id, self.signature.version


class StoreWatch:
    """Looks into one store, and keeps the catalogue true to it."""

    def __init__(
        self,
        store: BlobStore,
        catalogue: Catalogue,
        keys: ArtifactKeys,
        spool_folder: Path,
        progress: Progress | None = None,
        trial: Trial | None = None,
    ) -> None:
        self.store = store
        self.looks = 0
        """How many looks have succeeded."""
        self.last_look: datetime | None = None
        self.problem = ""
        """Why the last look failed and since when; empty where it went well."""
        self.trouble: dict[str, str] = {}
        """Place -> a problem that may pass; looked at again each time."""
        self.wanted: set[VersionKey] = set()
        """Versions whose artifacts should be in Redis and are not."""
        self.passed: set[str] = set()
        """Digests of versions that a trial has loaded, or workers before it."""
        self._trial = trial
        self._catalogue = catalogue
        self._keys = keys
        self._spool_folder = spool_folder
        self._progress = progress
        self._lock = anyio.Lock()
        self._failing_since: datetime | None = None
        self._downloaded = 0
        self._changes: list[str] = []
        self._problems: list[str] = []

    def is_tried(self, digest: str) -> bool:
        """Whether a version may be offered to the workers as far as trials go."""
        return self._trial is None or digest in self.passed

    async def look(self) -> Look:
        """One look. A store that fails is told in `problem`; Redis that can't be reached is raised."""
        async with self._lock:
            self._downloaded, self._changes, self._problems = 0, [], []
            listed = 0
            try:
                blobs = await self.store.list()
                listed = len(blobs)
                await self._take_in(blobs)
            except StoreError as error:
                self._fail(error)
            else:
                self.looks += 1
                self.last_look = now()
                if self._failing_since is not None:
                    _log.info("the store answers again", store=self.store.url)
                self.problem, self._failing_since = "", None
            return Look(listed, self._downloaded, tuple(self._changes), tuple(self._problems))

    def _fail(self, error: StoreError) -> None:
        if self._failing_since is None:
            self._failing_since = now()
            _log.error("the store cannot be looked into; what is live stays live", problem=str(error))
        self.problem = f"{error} (since {self._failing_since:%Y-%m-%d %H:%M:%S} UTC)"
        self._problems.append(self.problem)

    async def _take_in(self, blobs: Iterable[Blob]) -> None:
        listing = {blob.name: blob for blob in blobs}
        found = find_versions(listing.values())
        places = {each.place for each in found}
        self.trouble = {}
        await self._forget(places)
        changed = [each for each in found if not self._is_known(each)]
        drafts = [draft for each in changed if each.signature and (draft := await self._draft(each, each.signature))]
        best = sorted(drafts, key=lambda d: rank(d.signature.version, d.signature.trained_date), reverse=True)
        for draft in sorted(best, key=lambda d: STRENGTH.index(d.tag)):
            async with self._contained(draft.found.place, draft.found.location):
                await self._identify(draft, places)
        used = {artifact.blob for version in self._catalogue.versions.values() for artifact in version.artifacts}
        for place in used & self._catalogue.places.keys():  # a lone file that a signature has named since
            await to_thread.run_sync(self._catalogue.drop_place, place)
        for each in changed:
            if each.signature is None and each.location not in used:
                problem = f"not servable: no signature; `millstream serve {each.place.rpartition('/')[2]}` drafts one"
                await self._refuse_place(each, problem)
        await self._settle()
        await self._fill(listing)

    def _is_known(self, found: FoundVersion) -> bool:
        place = self._catalogue.places.get(found.place)
        return place is not None and place.fingerprint == found.fingerprint

    async def _forget(self, places: set[str]) -> None:
        """Drops places that are gone; a copy elsewhere of a version that stood there is read anew, to take over."""
        gone = self._catalogue.places.keys() - places
        homeless = {version.key for version in self._catalogue.versions.values() if version.place in gone}
        for place in list(self._catalogue.places.values()):
            if place.place in gone or (place.model_id, place.version) in homeless:
                await to_thread.run_sync(self._catalogue.drop_place, place.place)

    async def _draft(self, found: FoundVersion, blob: Blob) -> _Draft | None:
        """The place's signature, where it can be read; otherwise the place's problem is recorded."""
        raw = None
        async with self._contained(found.place, found.location):
            try:
                raw = await self.store.read_small(blob.name, MAX_BYTES, if_match=blob.etag)
            except BlobTooLarge as error:
                await self._refuse_place(found, str(error))
        if raw is None:
            return None
        try:
            signature, warnings = await to_thread.run_sync(parse_signature, raw)
            files = found.chosen(signature)
            Roles.assign(signature, files)
        except SignatureError as error:
            told = "; ".join(str(problem) for problem in error.problems[:10])
            await self._refuse_place(found, f"{blob.name}: {told}")
            return None
        except ArtifactsError as error:
            await self._refuse_place(found, str(error), signature)
            return None
        others = (found.mismatch(signature), location_warning(self.store.url, found.place, signature))
        return _Draft(
            found, signature, (*warnings, *filter(None, others)), files, stronger(found.tag, signature.status)
        )

    async def _identify(self, draft: _Draft, places: set[str]) -> None:
        """Hashes the version's artifacts and records it; raises StoreError."""
        keep = draft.tag == "production" and self._is_foremost(draft)
        known = self._catalogue.versions.get(draft.key)
        by_blob = {(a.blob, a.etag): a for v in self._catalogue.versions.values() for a in v.artifacts}
        async with AsyncExitStack() as stack:
            spooled: list[Spooled] = []
            artifacts: list[StoredArtifact] = []
            for name, blob in sorted(draft.files.items()):
                seen = by_blob.get((blob.name, blob.etag))
                if seen is not None:
                    artifacts.append(replace(seen, name=name))
                    continue
                download = spool(self.store, blob, self._spool_folder, self._progress)
                each = await stack.enter_async_context(download)
                self._downloaded += 1
                artifacts.append(StoredArtifact(name, each.sha256, each.size, blob.name, blob.etag))
                if keep:
                    spooled.append(each)
                else:
                    each.file.close()
            digest = version_digest(draft.signature, {a.name: a.sha256 for a in artifacts})
            if known is not None and known.digest != digest:
                problem = (
                    f"versions are immutable: {known.name} is on record with digest {known.digest[:12]} and this is "
                    f"{digest[:12]}; publish it under a new version"
                )
                await self._refuse_place(draft.found, problem, draft.signature, digest)
                return
            await self._record(draft, digest, tuple(artifacts), known, places)
            for each in spooled:
                await self._put(each)
        if keep:
            await self._try(self._catalogue.versions[draft.key])

    def _is_foremost(self, draft: _Draft) -> bool:
        """Whether it would go live of all that is known: then its bytes go on into Redis while they are here."""
        own = rank(draft.signature.version, draft.signature.trained_date)
        return all(
            version.rank <= own
            for version in self._catalogue.versions.values()
            if version.model_id == draft.key[0] and version.tag == "production" and not version.refused
        )

    async def _record(
        self,
        draft: _Draft,
        digest: str,
        artifacts: tuple[StoredArtifact, ...],
        known: KnownVersion | None,
        places: set[str],
    ) -> None:
        found, signature = draft.found, draft.signature
        location = f"{self.store.url}/{found.location}".rstrip("/")
        before = self._catalogue.places.get(found.place)
        place = Place(
            found.place, found.fingerprint, *draft.key, digest, draft.tag, location, "", draft.warnings,
            before.first_seen if before else now(),
        )  # fmt: skip
        version = KnownVersion(
            *draft.key, digest, signature.canonical(), signature.trained_date, location, draft.tag, found.place, "",
            known.first_seen if known else now(), artifacts,
        )  # fmt: skip
        await self._do(self._catalogue.put_place, place)
        if known is None:
            line = self._tell(version, "found", f"tagged {draft.tag}, in {location}")
            await self._do(self._catalogue.put_version, version, line)
        elif known.place in ("", found.place) or known.place not in places:
            # Otherwise it is a copy, and the first place counts. A version written anew is tried anew.
            acts = () if known.place else (self._tell(version, "found", f"found again in {location}"),)
            await self._do(self._catalogue.put_version, replace(version, tag=known.tag), *acts)
        for warning in draft.warnings:
            _log.warning(warning, model_id=version.model_id, version=version.version)

    async def _settle(self) -> None:
        """Tags as the places have them now; versions that stand nowhere any more are kept, and said so."""
        for version in list(self._catalogue.versions.values()):
            homes = [
                place
                for place in self._catalogue.places.values()
                if (place.model_id, place.version, place.digest) == (*version.key, version.digest) and not place.problem
            ]
            if not homes:
                if version.place:
                    detail = f"its blobs are gone from {version.location}"
                    await self._change(version, "vanished", detail, place="")
                continue
            tag = stronger(*(place.tag for place in homes))
            if tag != version.tag:
                await self._change(version, "tagged", f"{tag}; was {version.tag}", tag=tag)

    async def _fill(self, listing: Mapping[str, Blob]) -> None:
        """Artifacts that Redis lacks, from the store."""
        for key in sorted(self.wanted):
            version = self._catalogue.versions.get(key)
            if version is None or not version.place:
                self.wanted.discard(key)
                continue
            async with self._contained(version.place, version.location):
                for artifact in version.artifacts:
                    if await self._keys.present([self._keys.artifact(artifact.name, artifact.sha256, artifact.size)]):
                        continue
                    blob = listing.get(artifact.blob)
                    if blob is None or blob.etag != artifact.etag:
                        raise BlobChanged(f"{artifact.blob} is not what was recorded of {version.name} any more")
                    async with spool(self.store, blob, self._spool_folder, self._progress) as spooled:
                        self._downloaded += 1
                        if spooled.sha256 != artifact.sha256:
                            raise BlobChanged(f"{artifact.blob} is not what was recorded of {version.name} any more")
                        await self._put(spooled)
                await self._try(version)
                self.wanted.discard(key)

    async def _put(self, spooled: Spooled) -> None:
        try:
            await self._keys.put(spooled)
        except ResponseError as error:
            raise StoreError(f"Redis did not take {spooled.size:,} bytes of it: {error}; raise maxmemory") from None

    async def _try(self, version: KnownVersion) -> None:
        """Refuses a version that the trial can't load, before a worker is asked to."""
        if self._trial is None or version.digest in self.passed:
            return
        artifacts = {a.name: self._keys.artifact(a.name, a.sha256, a.size) for a in version.artifacts}
        if not await self._keys.present(artifacts.values()):
            return  # tried once they are there
        files = {name: await self._keys.read(artifact) for name, artifact in artifacts.items()}
        reason = await self._trial(version.signature_json, files)
        if reason:
            _log.error("version refused", model_id=version.model_id, version=version.version, problem=reason)
            self._problems.append(f"{version.name}: {reason}")
            await self._change(version, "refused", reason, refused=reason)
        else:
            self.passed.add(version.digest)

    @asynccontextmanager
    async def _contained(self, place: str, location: str) -> AsyncIterator[None]:
        """Keeps the fault of one place to itself; what concerns the whole store goes on up."""
        try:
            yield
        except (StoreUnavailable, ContainerMissing):
            raise
        except (BlobChanged, BlobNotFound) as error:
            self._trouble(place, f"{error}; looked at again at the next poll")
        except StoreError as error:
            self._trouble(place, str(error))
        except OSError as error:
            if isinstance(error, ConnectionError | TimeoutError):
                raise
            self._trouble(place, f"cannot spool {location} in {self._spool_folder}: {error.strerror}; make room there")

    def _trouble(self, place: str, problem: str) -> None:
        self.trouble[place] = problem
        self._problems.append(f"{place}: {problem}")
        _log.error("version not taken in", place=place, problem=problem)

    async def _refuse_place(
        self, found: FoundVersion, problem: str, signature: Signature | None = None, digest: str = ""
    ) -> None:
        """Records that what stands there is not servable, and why."""
        model_id, version = (signature.model_id, signature.version) if signature else found.guess
        before = self._catalogue.places.get(found.place)
        tag = stronger(found.tag, signature.status) if signature else found.tag
        place = Place(
            found.place, found.fingerprint, model_id, version, digest, tag,
            f"{self.store.url}/{found.location}", problem, (), before.first_seen if before else now(),
        )  # fmt: skip
        self._problems.append(f"{found.place}: {problem}")
        _log.error("version refused", place=found.place, model_id=model_id, version=version, problem=problem)
        act = Act(now(), model_id, version, digest, "refused", f"{place.location}: {problem}")
        await self._do(self._catalogue.put_place, place, act)

    async def _change(self, version: KnownVersion, act: str, detail: str, **changes: str) -> None:
        line = self._tell(version, act, detail)
        await self._do(partial(self._catalogue.amend, version.key, line, **changes))

    def _tell(self, version: KnownVersion, act: str, detail: str) -> Act:
        """The line of history about a change, which this look reports and the log shows."""
        self._changes.append(f"{version.name}: {act}, {detail}")
        _log.info(f"version {act}", model_id=version.model_id, version=version.version, detail=detail)
        return Act(now(), *version.key, version.digest, act, detail)

    async def _do(self, call: Any, *args: Any) -> None:
        await to_thread.run_sync(partial(call, *args))


def stronger(*tags: str) -> str:
    """Of several tags of one version the one that counts; empty ones are none."""
    return min(filter(None, tags), key=STRENGTH.index)


def location_warning(url: str, place: str, signature: Signature) -> str:
    """A warning where the signature names another container or path; empty where they agree, or in a directory."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return ""
    told = signature.azure_location.removeprefix("azure://").strip("/")
    if f"/{told}/" in f"{parts.path.rstrip('/')}/{place}/":
        return ""
    return f"azure_location says {signature.azure_location}; found in {url}/{place}"
