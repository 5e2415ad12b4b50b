"""Artifacts: from the blob store through a spool on disk, hashed on the way, into Redis in chunks.

An artifact's keys hold its SHA-256, which is known only once all of it has been read: hence the spool. Bytes under a
content address never change, so what is there in full is never written again.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import IO, cast

import redis.asyncio
import structlog
from anyio import to_thread

from contract.keys import Keys
from contract.record import Artifact, Version
from registry.blobs import Blob, BlobStore
from registry.catalogue.known import KnownVersion

Progress = Callable[[str, int, int], None]
"""Called with (blob name, bytes so far, size in bytes) while an artifact is downloaded."""

_SHOWN = 64 * 2**20
"""A download this large is announced in the log when it starts, too."""

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Spooled:
    """A downloaded artifact on disk, gone when its context ends."""

    sha256: str
    size: int
    file: IO[bytes]


class ArtifactKeys:
    """How artifacts are laid out in Redis."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, chunk_bytes: int) -> None:
        self._client = client
        self._keys = keys
        self._chunk_bytes = chunk_bytes

    def artifact(self, name: str, digest: str, size: int) -> Artifact:
        """As a record names it; an empty artifact is one empty chunk."""
        return Artifact(name, digest, size, max(1, -(-size // self._chunk_bytes)))

    def chunked(self, version: KnownVersion | Version) -> tuple[Artifact, ...]:
        """The artifacts of a version as a record names them."""
        return tuple(self.artifact(each.name, each.sha256, each.size) for each in version.artifacts)

    async def present(self, artifacts: Iterable[Artifact]) -> bool:
        """Whether all bytes of all artifacts are in Redis, by their sizes."""
        wanted = list(artifacts)
        pipe = self._client.pipeline(transaction=False)
        for artifact in wanted:
            for key in self._chunks(artifact):
                _ = pipe.strlen(key) if artifact.size else pipe.exists(key)
        answers = iter(await pipe.execute())
        sizes = [sum(islice(answers, artifact.chunks)) for artifact in wanted]
        return sizes == [artifact.size or artifact.chunks for artifact in wanted]

    async def put(self, spooled: Spooled) -> None:
        """Writes the chunks, one at a time, so that neither side holds the whole."""
        artifact = self.artifact("", spooled.sha256, spooled.size)
        if await self.present([artifact]):
            return
        await to_thread.run_sync(spooled.file.seek, 0)
        for key in self._chunks(artifact):
            await self._client.set(key, await to_thread.run_sync(spooled.file.read, self._chunk_bytes))

    async def chunks(self, artifact: Artifact) -> AsyncIterator[bytes]:
        """Its bytes as they are in Redis, chunk by chunk; nothing here trusts them unchecked."""
        for key in self._chunks(artifact):
            yield cast("bytes | None", await self._client.get(key)) or b""

    async def drop(self, artifacts: Iterable[Artifact]) -> None:
        """Takes the chunks of artifacts that no record names any more out of Redis."""
        pipe = self._client.pipeline(transaction=False)
        for artifact in artifacts:
            for key in self._chunks(artifact):
                pipe.unlink(key)
        await pipe.execute()

    def _chunks(self, artifact: Artifact) -> Iterator[str]:
        return (self._keys.chunk(artifact.sha256, number) for number in range(artifact.chunks))


@asynccontextmanager
async def spool(store: BlobStore, blob: Blob, folder: Path, progress: Progress | None) -> AsyncIterator[Spooled]:
    """Downloads the very blob that was listed into an unnamed file in `folder`.

    Raises StoreError (BlobChanged where it was written since), and OSError where the disk is full.
    """
    started = time.monotonic()
    if blob.size >= _SHOWN:
        _log.info("artifact download started", blob=blob.name, bytes=blob.size)
    seen = sha256()
    size = 0
    told = (lambda done, total: progress(blob.name, done, total)) if progress is not None else None
    with await to_thread.run_sync(lambda: tempfile.TemporaryFile(dir=folder)) as file:
        async with aclosing(store.read(blob.name, if_match=blob.etag, progress=told)) as pieces:
            async for piece in pieces:
                seen.update(piece)
                size += len(piece)
                await to_thread.run_sync(file.write, piece)
        digest = seen.hexdigest()
        seconds = round(time.monotonic() - started, 3)
        _log.info("artifact downloaded", blob=blob.name, bytes=size, seconds=seconds, sha256=digest)
        yield Spooled(digest, size, file)
