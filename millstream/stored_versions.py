"""Versions as they stand in a blob store, for replays: found by what their signatures say, and taken by their digest.

A model's file runs code when it is loaded, and who can write to a store can put any file there. So a version is taken
only where its digest is one that the registry recorded, unless whoever asks named the store and there is no registry
to ask.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path

import anyio
import duckdb

from consumers.replay.versions import Artifacts, Fetch, VersionGone
from contract.settings import Settings
from contract.signature import MAX_BYTES, Signature, SignatureError, parse_signature
from registry.blobs import Blob, BlobStore, StoreError
from registry.blobs.configured import configured_store
from registry.watch.layout import FoundVersion, find_versions

Known = Callable[[str, str], str]
"""(model_id, hex digest) -> why the version is not to be loaded; empty where the registry recorded it."""

Say = Callable[[str], None]


def in_store(settings: Settings, known: Known, say: Say = lambda _line: None) -> Fetch:
    """What the blob store of the settings holds; `say` gets a line for each file that is downloaded."""

    def look(model_id: str, version: str, digest: str) -> Artifacts:
        if refused := known(model_id, digest):
            raise VersionGone(refused)
        try:
            return anyio.run(_find, settings, model_id, version, digest, say)
        except StoreError as error:
            raise VersionGone(str(error)) from None

    return look


def in_catalogue(database: Path) -> Known:
    """Asks the database of a registry that is stopped."""

    def known(model_id: str, digest: str) -> str:
        sql = "SELECT 1 FROM versions WHERE model_id = ? AND digest = ?"
        try:
            with duckdb.connect(str(database), read_only=True, config={"threads": 1}) as connection:
                found = connection.execute(sql, [model_id, digest]).fetchall()
        except duckdb.Error as error:
            why = "another process has it open" if "lock" in str(error) else str(error).splitlines()[0]
            return f"{database} can't be read ({why}): name the registry that runs with --registry HOST:PORT"
        return "" if found else never_recorded(str(database))

    return known


def never_recorded(where: str) -> str:
    """What is said of a digest that no registry knows."""
    return f"{where} has no version with this digest, so what the store holds under its name is not loaded"


async def _find(settings: Settings, model_id: str, version: str, digest: str, say: Say) -> Artifacts:
    """Raises VersionGone, StoreError."""
    others = 0
    async with configured_store(settings) as store:
        found = [each for each in find_versions(await store.list()) if each.signature is not None]
        # Where names say what is in a place, no other has to be looked into.
        found.sort(key=lambda each: each.guess != (model_id, version))
        for each in found:
            signature = await _signature(store, each)
            if signature is None or (signature.model_id, signature.version) != (model_id, version):
                continue
            say(f"fetching {model_id} {version} from {store.url}")
            files = {name: await _content(store, blob) for name, blob in each.chosen(signature).items()}
            artifacts = Artifacts(signature, files)
            if artifacts.is_of(digest):
                return artifacts
            others += 1
    where = f"{store.url} holds no {model_id} {version}"
    raise VersionGone(f"{where} with this digest, but {others} with another" if others else f"{where} any more")


async def _signature(store: BlobStore, found: FoundVersion) -> Signature | None:
    if found.signature is None or found.signature.size > MAX_BYTES:
        return None
    raw = await store.read_small(found.signature.name, MAX_BYTES, if_match=found.signature.etag)
    try:
        return parse_signature(raw)[0]
    except SignatureError:
        return None


async def _content(store: BlobStore, blob: Blob) -> bytes:
    content = bytearray()
    async with aclosing(store.read(blob.name, if_match=blob.etag)) as pieces:
        async for piece in pieces:
            content += piece
    return bytes(content)
