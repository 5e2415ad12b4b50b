"""Publishing: a version from files on this machine into a store, so that no look into it takes in half of one.

signature read strictly, files hashed -> what the store holds of it -> artifacts -> signature.json.sig -> signature.json

What makes a folder of the store a version is its signature.json, so that goes last. What is there already with the same
bytes is not sent again: an interrupted run is simply repeated.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Literal

import anyio
from anyio import to_thread
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from contract.signature import MAX_BYTES, SignatureError, parse_signature
from contract.trust import MAX_ENDORSEMENT_BYTES, endorse
from contract.version import SIGNATURE_FILE, ArtifactsError, version_digest
from registry.blobs import (
    CHUNK,
    Blob,
    BlobChanged,
    BlobExists,
    BlobStore,
    BlobTooLarge,
    check_blob_name,
)
from registry.publishing.local_version import ENDORSEMENT_FILE, LocalFile, LocalVersion, PublishRefused

Progress = Callable[[str, int, int], None]
"""Called with (file name, bytes sent so far, size in bytes) while a file is sent."""


@dataclass(frozen=True, slots=True)
class Published:
    """What publishing did."""

    location: str
    state: Literal["new", "changed", "unchanged"]
    """changed: the version was there, and its status, location or publisher's signature is another now."""
    sent: tuple[str, ...]
    kept: tuple[str, ...]
    """Files that were there with the same bytes."""


async def publish(
    store: BlobStore, version: LocalVersion, *, key: Ed25519PrivateKey | None = None, progress: Progress | None = None
) -> Published:
    """Puts the version into the store, its signature.json last; with a key a signature.json.sig beside it.

    Raises PublishRefused where the store holds something else in its place, and StoreError.
    """
    return await _Publication(store, version, key, progress).run()


@dataclass(slots=True)
class _Publication:
    store: BlobStore
    version: LocalVersion
    key: Ed25519PrivateKey | None
    progress: Progress | None
    sent: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)

    async def run(self) -> Published:
        there = await self._listed()
        is_new = SIGNATURE_FILE not in there
        await self._compare(there)
        for name, file in sorted(self.version.files.items()):
            if name in there:  # the same bytes, as was just compared
                self.kept.append(name)
            else:
                await self._send(name, file)
        await self._endorse(there)
        await self._sign(there)
        await self._look_back()
        state: Literal["new", "changed", "unchanged"] = "new" if is_new else "changed" if self.sent else "unchanged"
        location = f"{self.store.url}/{self.version.folder}"
        return Published(location, state, tuple(self.sent), tuple(self.kept))

    async def _listed(self) -> dict[str, Blob]:
        """What stands in the version's folder of the store, by its name there."""
        below = f"{self.version.folder}/"
        return {blob.name.removeprefix(below): blob for blob in await self.store.list(below)}

    async def _compare(self, there: Mapping[str, Blob]) -> None:
        """Refuses where the folder holds anything but this version, whole or in part."""
        digests = {
            name: await self._digest(blob)
            for name, blob in there.items()
            if name not in (SIGNATURE_FILE, ENDORSEMENT_FILE)
        }
        if SIGNATURE_FILE in there:
            await self._compare_version(there[SIGNATURE_FILE], digests)
        at = f"{self.store.url}/{self.version.folder}"
        strangers = [name for name in digests if name not in self.version.files]
        if strangers:
            raise PublishRefused(
                f"{at} holds {', '.join(strangers[:5])}, which {self.version.name} here does not: remove it there, or "
                f"publish under another version"
            )
        for name, digest in digests.items():
            if digest != self.version.files[name].sha256:
                raise PublishRefused(
                    f"{at}/{name} is there with other contents, and no {SIGNATURE_FILE}: somebody's unfinished "
                    f"publication; remove it there, or publish under another version"
                )

    async def _compare_version(self, blob: Blob, digests: Mapping[str, str]) -> None:
        """Refuses where the version that is there is another: versions do not change."""
        other = f"{self.version.name} is in {self.store.url} already"
        try:
            raw = await self.store.read_small(blob.name, MAX_BYTES, if_match=blob.etag)
            digest = version_digest(parse_signature(raw)[0], digests)
        except (SignatureError, ArtifactsError, BlobTooLarge) as error:
            reason = str(error).partition("\n")[0]
            raise PublishRefused(
                f"{other}, and not servable ({reason}): remove it there, or publish under another version"
            ) from None
        if digest != self.version.digest:
            raise PublishRefused(
                f"{other} with other contents (digest {digest[:12]}, this is {self.version.digest[:12]}): versions do "
                f"not change, so publish under a new version"
            )

    async def _digest(self, blob: Blob) -> str:
        """Of a blob's contents, as its writer noted it; otherwise it is read."""
        if blob.sha256:
            return blob.sha256
        seen = sha256()
        async with aclosing(self.store.read(blob.name, if_match=blob.etag)) as pieces:
            async for piece in pieces:
                seen.update(piece)
        return seen.hexdigest()

    async def _send(self, name: str, file: LocalFile) -> None:
        blob = check_blob_name(f"{self.version.folder}/{name}")
        try:
            await self.store.write(blob, self._pieces(name, file), if_none_match=True, sha256=file.sha256)
        except (BlobExists, BlobChanged):
            # Another publisher was quicker, or the answer to our own write was lost and its repetition refused.
            if (found := (await self._listed()).get(name)) is None or await self._digest(found) != file.sha256:
                raise PublishRefused(
                    f"{self.store.url}/{blob} has just been written by somebody else, with other contents"
                ) from None
        self.sent.append(name)

    async def _pieces(self, name: str, file: LocalFile) -> AsyncIterator[bytes]:
        """The file's bytes; one that changed since it was hashed is noticed before the store shows any of it."""
        seen = sha256()
        done = 0
        try:
            opened = await anyio.open_file(file.path, "rb")
        except OSError as error:
            raise PublishRefused(f"{file.path} can't be read any more: {error.strerror}") from None
        async with opened:
            while piece := await opened.read(CHUNK):
                seen.update(piece)
                done += len(piece)
                yield piece
                if self.progress is not None:
                    self.progress(name, done, max(done, file.size))
        if seen.hexdigest() != file.sha256:
            raise PublishRefused(f"{file.path} changed while it was published: wait until it is written, and try again")

    async def _endorse(self, there: Mapping[str, Blob]) -> None:
        if self.key is None:
            return
        before = b""
        if (blob := there.get(ENDORSEMENT_FILE)) is not None:
            try:
                before = await self.store.read_small(blob.name, MAX_ENDORSEMENT_BYTES, if_match=blob.etag)
            except BlobTooLarge:
                before = b""  # nobody reads that much: it is replaced
        content = await to_thread.run_sync(endorse, self.version.digest, self.key, before)
        if content != before:
            await self._put(ENDORSEMENT_FILE, content)

    async def _sign(self, there: Mapping[str, Blob]) -> None:
        blob = there.get(SIGNATURE_FILE)
        content = self.version.signature_json
        if blob is None:
            try:
                await self._put(SIGNATURE_FILE, content, if_none_match=True)
            except (BlobExists, BlobChanged):
                found = await self.store.read_small(f"{self.version.folder}/{SIGNATURE_FILE}", MAX_BYTES)
                if found != content:
                    raise PublishRefused(
                        f"{self.version.name} has just been published by somebody else, with another {SIGNATURE_FILE}"
                    ) from None
                self.sent.append(SIGNATURE_FILE)
        elif await self.store.read_small(blob.name, MAX_BYTES, if_match=blob.etag) != content:
            await self._put(SIGNATURE_FILE, content)  # the same version under another status or location

    async def _put(self, name: str, content: bytes, *, if_none_match: bool = False) -> None:
        digest = sha256(content).hexdigest()
        await self.store.write(f"{self.version.folder}/{name}", content, if_none_match=if_none_match, sha256=digest)
        self.sent.append(name)

    async def _look_back(self) -> None:
        """Another publisher's files beside these would be taken for a part of the version."""
        strangers = (await self._listed()).keys() - {*self.version.files, SIGNATURE_FILE, ENDORSEMENT_FILE}
        if strangers:
            raise PublishRefused(
                f"{self.store.url}/{self.version.folder} holds {', '.join(sorted(strangers)[:5])} too by now, from "
                f"somebody else: remove it there, or the version is another than the one published here"
            )


async def published_versions(store: BlobStore, model_id: str) -> list[str]:
    """The versions of a model whose folders are in the store, by the folders' names."""
    names = [blob.name.split("/") for blob in await store.list(f"{model_id}/")]
    return [parts[1] for parts in names if len(parts) == 3 and parts[2] == SIGNATURE_FILE]
