"""The candidate of a comparison: a version by its name, wherever it is on record, or a folder that is not published."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream.cli import replay_log as log
from millstream.cli.errors import NOT_FOUND, REFUSED, CommandFailed
from millstream.cli.place import DEFAULT_STATE_DIR, REDIS, REGISTRY, Place, called
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from consumers.replay.versions import Loaded
    from contract.settings import Settings
    from registry.blobs import BlobStore
    from registry.watch.drafts import Draft


@dataclass(frozen=True, slots=True)
class Found:
    """A candidate in memory."""

    loaded: Loaded
    version: str
    digest: str
    place: str
    """Where it came from, for people."""


def find_candidate(opened: log.ReplayLog, place: Place, screen: Screen, model_id: str, name: str, store: str) -> Found:
    """The candidate, loaded as a worker does. Raises CommandFailed: NOT_FOUND, or REFUSED where it does not load."""
    from consumers.replay.versions import VersionGone, Versions, VersionUnloadable
    from millstream.cli.roles import settings_of

    try:
        if is_folder(name):
            return _of_folder(model_id, Path(name))
        settings = settings_of(state_dir=place.state_dir, store_url=store or None)
        digest, where, vouched = _digest(place, settings, model_id, name)
        versions = opened.versions
        if vouched:
            from millstream.stored_versions import in_store

            versions = Versions(in_store(settings, lambda _model, _digest: "", screen.note))
        return Found(versions.load(model_id, name, digest), name, digest, where)
    except VersionUnloadable as error:
        raise CommandFailed(f"{model_id} {name} does not load: {error}", REFUSED) from None
    except VersionGone as error:
        raise CommandFailed(str(error), NOT_FOUND) from None


def is_folder(name: str) -> bool:
    """Whether a candidate is named by its folder: a version's name has no separator in it."""
    return "/" in name or name in (".", "..")


def _of_folder(model_id: str, folder: Path) -> Found:
    from consumers.replay.versions import Artifacts, Versions
    from contract.version import SIGNATURE_FILE
    from registry.publishing.local_version import LocalVersion, PublishRefused, files_of

    try:
        signature = (folder / SIGNATURE_FILE).read_bytes()
        found = LocalVersion.of(signature, files_of(folder)[0])
        content = {name: file.path.read_bytes() for name, file in found.files.items()}
    except PublishRefused as error:
        raise CommandFailed(f"{folder}: {error}", REFUSED) from None
    except OSError as error:
        wanted = f"expected a version of {model_id}, or a folder with its {SIGNATURE_FILE} and its files"
        raise CommandFailed(f"{folder}: {wanted}; {error.strerror}", NOT_FOUND) from None
    if found.signature.model_id != model_id:
        raise CommandFailed(f"{folder}: expected a version of {model_id}, got one of {found.name}", REFUSED)
    versions = Versions(lambda _model, _version, _digest: Artifacts(found.signature, content))
    version = found.signature.version
    return Found(versions.load(model_id, version, found.digest), version, found.digest, f"the folder {folder}")


def _digest(place: Place, settings: Settings, model_id: str, version: str) -> tuple[str, str, bool]:
    """A version's digest, who says so, and whether it is whoever asks that vouches for it, by naming a store."""
    from millstream.local.state_dir import StateDir

    state = StateDir(settings.state_dir)
    asked: list[str] = []
    sources: list[tuple[str, Callable[[], str]]] = []
    if _runs(place, REGISTRY):
        sources.append(("the registry", lambda: _registry(place, model_id, version)))
    elif state.registry.exists():
        sources.append((str(state.registry), lambda: _catalogue(state.registry, model_id, version)))
    if _runs(place, REDIS):
        sources.append(("the records in Redis", lambda: _records(place, settings, model_id, version)))
    for where, ask in sources:
        if digest := ask():
            return digest, where, False
        asked.append(where)
    url = settings.store_url
    if url and not any(where != "the records in Redis" for where, _ in sources):
        import anyio

        if digest := anyio.run(_stored, settings, model_id, version):
            return digest, url, True
        asked.append(url)
    places = " and ".join(asked) or "no registry, Redis or store that is named or runs"
    raise CommandFailed(
        f"there is no version {version!r} of {model_id}: {places} has none; `millstream registry list` shows them, "
        "and a folder with its signature.json can be named instead",
        NOT_FOUND,
    )


def _runs(place: Place, part: str) -> bool:
    """Whether a part is named, or told by a state directory that is meant."""
    from millstream.local.state_dir import StateDir

    if part in dict(place.named):
        return True
    if place.state_dir is None and place.named:
        return False
    running = StateDir(place.state_dir or DEFAULT_STATE_DIR).running()
    return running is not None and bool(running.addresses.get(part))


def _registry(place: Place, model_id: str, version: str) -> str:
    from protos import millstream_v1_pb2 as v1
    from protos import millstream_v1_pb2_grpc as v1_grpc

    with place.channel(REGISTRY) as channel:
        stub: Any = v1_grpc.RegistryStub(channel)
        request = v1.ListVersionsRequest(model_id=model_id)
        listed = called(REGISTRY, place.address(REGISTRY), lambda: stub.ListVersions(request, timeout=30))
    return next(
        (str(each.digest) for each in listed.versions if (each.model_id, each.version) == (model_id, version)), ""
    )


def _catalogue(database: Path, model_id: str, version: str) -> str:
    import duckdb

    sql = "SELECT digest FROM versions WHERE model_id = ? AND version = ?"
    try:
        with duckdb.connect(str(database), read_only=True, config={"threads": 1}) as connection:
            found = connection.execute(sql, [model_id, version]).fetchone()
    except duckdb.Error:
        return ""
    return str(found[0]) if found else ""


def _records(place: Place, settings: Settings, model_id: str, version: str) -> str:
    from redis.exceptions import RedisError

    from contract.catalog import Catalog
    from contract.connection import connect
    from contract.keys import Keys
    from contract.trust import KeyUnusable, public_key
    from millstream.roles import public_key_file

    keys = Keys(settings.prefix)
    try:
        catalog = Catalog(public_key(public_key_file(settings)))
        with connect(place.address(REDIS)) as client:
            sealed: Any = client.hgetall(keys.catalog)
    except (KeyUnusable, RedisError):
        return ""  # which was told when the log was opened
    catalog.update(1, sealed)
    record = catalog.records.get(model_id)
    found = record.versions.get(version) if record is not None else None
    return found.digest.hex() if found is not None else ""


async def _stored(settings: Settings, model_id: str, version: str) -> str:
    """The digest of what a store that is vouched for holds under this name; its bytes are read for it."""
    from contract.version import version_digest
    from registry.blobs import StoreError
    from registry.blobs.configured import configured_store
    from registry.watch.drafts import DraftRefused, read_draft
    from registry.watch.layout import find_versions

    try:
        async with configured_store(settings) as store:
            for each in find_versions(await store.list()):
                if each.signature is None:
                    continue
                try:
                    draft = await read_draft(store, each, each.signature)
                except DraftRefused:
                    continue
                if draft.key == (model_id, version):
                    return version_digest(draft.signature, await _hashed(store, draft))
    except StoreError as error:
        raise CommandFailed(str(error), NOT_FOUND) from None
    return ""


async def _hashed(store: BlobStore, draft: Draft) -> dict[str, str]:
    digests = {}
    for name, blob in draft.files.items():
        seen = hashlib.sha256()
        async with aclosing(store.read(blob.name, if_match=blob.etag)) as pieces:
            async for piece in pieces:
                seen.update(piece)
        digests[name] = seen.hexdigest()
    return digests
