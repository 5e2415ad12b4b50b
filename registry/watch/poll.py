"""One look into the store: list, read what changed, hash it, record what it is.

    listing -> places that changed -> signatures -> artifacts hashed, best candidates first -> versions on record

An unchanged store costs one listing. A fault of one place is that place's problem; only a store that can't be reached
ends a look, and what it had found by then stays.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio import to_thread

from contract.version import version_digest
from registry.blobs import (
    Blob,
    BlobStore,
    StoreError,
    StoreUnavailable,
)
from registry.catalogue.catalogue import Catalogue
from registry.catalogue.known import KnownVersion, Place, StoredArtifact, now, rank
from registry.promotion.timeline import TAGS, Statement, wanted
from registry.trial import Trial
from registry.watch.artifacts import ArtifactKeys, Progress, Spooled, spool
from registry.watch.drafts import Draft, DraftRefused, read_draft, stronger
from registry.watch.findings import Findings
from registry.watch.layout import FoundVersion, find_versions
from registry.watch.publishers import Publishers
from registry.watch.supply import Supply

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Look:
    """What one look found."""

    listed: int
    downloaded: int
    changes: tuple[str, ...]
    problems: tuple[str, ...]


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
        publishers: Publishers | None = None,
    ) -> None:
        self.store = store
        self.looks = 0
        """How many looks have succeeded."""
        self.last_look: datetime | None = None
        self.problem = ""
        """Why the last look failed and since when; empty where it went well."""
        self.retry_after = 0.0
        """Seconds that the store asked to be left alone for when the last look failed."""
        self.trouble: dict[str, str] = {}
        """Place -> a problem that may pass; looked at again each time."""
        self._publishers = publishers or Publishers()
        self._catalogue = catalogue
        self._findings = Findings(catalogue, store.url, spool_folder)
        self.supply = Supply(store, catalogue, keys, spool_folder, self._findings, progress, trial)
        self._spool_folder = spool_folder
        self._progress = progress
        self._lock = anyio.Lock()
        self._failing_since: datetime | None = None
        self.adopted: dict[str, datetime] = {}
        """Model -> until when statements about it are lost: its record in Redis follows from them all the same."""
        self._modified: dict[str, datetime] = {}
        """Place -> when the youngest of its blobs was written; of those that changed."""

    async def look(self) -> Look:
        """One look. A store that fails is told in `problem`; Redis that can't be reached is raised."""
        async with self._lock:
            found = self._findings
            found.begin()
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
            self.trouble = found.trouble
            return Look(listed, found.downloaded, tuple(found.changes), tuple(found.problems))

    def _fail(self, error: StoreError) -> None:
        if self._failing_since is None:
            self._failing_since = now()
            _log.error("the store cannot be looked into; what is live stays live", problem=str(error))
        self.retry_after = error.retry_after if isinstance(error, StoreUnavailable) else 0.0
        self.problem = f"{error} (since {self._failing_since:%Y-%m-%d %H:%M:%S} UTC)"
        self._findings.problems.append(self.problem)

    async def _take_in(self, blobs: Iterable[Blob]) -> None:
        listing = {blob.name: blob for blob in blobs}
        found = find_versions(listing.values(), self._publishers.mark)
        places = {each.place for each in found}
        await self._forget(places)
        changed = [each for each in found if not self._is_known(each)]
        self._modified = {each.place: each.last_modified for each in changed}
        await self._do(self._catalogue.sight, now(), {each.place: each.fingerprint for each in changed})
        drafts = [draft for each in changed if each.signature and (draft := await self._draft(each, each.signature))]
        best = sorted(drafts, key=lambda d: rank(d.signature.version, d.signature.trained_date), reverse=True)
        for draft in sorted(best, key=lambda d: TAGS.index(d.tag)):
            async with self._findings.contained(draft.found.place, draft.found.location):
                await self._identify(draft, places)
        used = {artifact.blob for version in self._catalogue.versions.values() for artifact in version.artifacts}
        for place in used & self._catalogue.places.keys():  # a lone file that a signature has named since
            await to_thread.run_sync(self._catalogue.drop_place, place)
        for each in changed:
            if each.signature is None and each.location not in used:
                problem = f"not servable: no signature; `millstream serve {each.place.rpartition('/')[2]}` drafts one"
                await self._findings.refuse_place(each, problem)
        await self._settle()
        await self.supply.fill(listing)

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

    async def _draft(self, found: FoundVersion, blob: Blob) -> Draft | None:
        """The place's signature, where it can be read; otherwise the place's problem is recorded."""
        async with self._findings.contained(found.place, found.location):
            try:
                return await read_draft(self.store, found, blob)
            except DraftRefused as refused:
                await self._findings.refuse_place(found, str(refused), refused.signature)
        return None

    async def _identify(self, draft: Draft, places: set[str]) -> None:
        """Hashes the version's artifacts and records it; raises StoreError."""
        keep = self._is_wanted(draft)
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
                self._findings.downloaded += 1
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
                await self._findings.refuse_place(draft.found, problem, draft.signature, digest)
                return
            reason = await self._publishers.refusal(self.store, draft.found.endorsement, digest)
            is_home = known is not None and (known.place in ("", draft.found.place) or known.place not in places)
            if reason and not is_home:  # not put on record: its name would be taken for the publisher's own
                await self._findings.refuse_place(draft.found, reason, draft.signature, digest)
                return
            if reason:
                self.supply.unsigned[digest] = reason
            elif known is None or is_home:
                self.supply.unsigned.pop(digest, None)
            await self._record(draft, digest, tuple(artifacts), known, places)
            if reason:
                await self._distrust(draft, known, reason)
                return
            for each in spooled:
                await self.supply.put(each)
        if keep:
            await self.supply.attempt(self._catalogue.versions[draft.key])

    async def _distrust(self, draft: Draft, known: KnownVersion | None, reason: str) -> None:
        """A version on record that no trusted publisher stands behind (any more): it is not loaded again."""
        version = self._catalogue.versions[draft.key]
        place = self._catalogue.places[draft.found.place]
        # Without a fingerprint it is looked at again each time, and so told after a restart too.
        await self._do(self._catalogue.put_place, replace(place, fingerprint="", warnings=(*place.warnings, reason)))
        if known is None or known.refused != reason:
            await self._findings.refuse(version, reason)
        else:
            self._findings.problems.append(f"{version.name}: {reason}")
            await self._do(partial(self._catalogue.amend, version.key, refused=reason))

    def _is_wanted(self, draft: Draft) -> bool:
        """Whether it is wanted, of all that is known: then its bytes go on into Redis while they are here."""
        model_id, name = draft.key
        known = self._catalogue.versions.get(draft.key)
        version = KnownVersion(
            model_id, name, known.digest if known else "", b"", draft.signature.trained_date, "", draft.tag,
            draft.found.place, "", now(), (),
        )  # fmt: skip
        others = [
            each for each in self._catalogue.versions.values() if each.model_id == model_id and each.version != name
        ]
        said = list(self._catalogue.statements.get(model_id, ()))
        if known is None or known.tag != draft.tag:
            said = sorted([*said, self._tag(version, draft.tag, draft.found.place)], key=lambda each: each.at)
        return any(claim.version is version for claim in wanted([*others, version], said).claims)

    def _tag(self, version: KnownVersion, tag: str, *places: str) -> Statement:
        """What the tag of these places says of a version: it counts from when the first of them was listed so."""
        at = min(
            (self._catalogue.sightings[place][1] for place in places if place in self._catalogue.sightings),
            default=now(),
        )
        lost = self.adopted.get(version.model_id)
        if lost is not None and all(self._modified.get(place, at) <= lost for place in places):
            at = lost - timedelta(microseconds=1)
        return Statement(at, *version.key, version.digest, "tag", tag)

    async def _record(
        self,
        draft: Draft,
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
            line = self._findings.tell(version, "found", f"tagged {draft.tag}, in {location}")
            statement = self._tag(version, draft.tag, found.place)
            await self._do(partial(self._catalogue.put_version, version, line, statement=statement))
        elif known.place in ("", found.place) or known.place not in places:
            # Otherwise it is a copy, and the first place counts. A version written anew is tried anew.
            acts = () if known.place else (self._findings.tell(version, "found", f"found again in {location}"),)
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
                    await self._findings.change(version, "vanished", detail, place="")
                continue
            tag = stronger(*(place.tag for place in homes))
            if tag != version.tag:
                statement = self._tag(version, tag, *(place.place for place in homes if place.tag == tag))
                await self._findings.change(version, "tagged", f"{tag}; was {version.tag}", statement, tag=tag)

    async def _do(self, call: Any, *args: Any) -> None:
        await to_thread.run_sync(partial(call, *args))
