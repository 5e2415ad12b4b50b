"""A store that keeps what the sink gives it: heads and sealed segments, each under its name, none ever replaced."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from consumers.audit.heads import FOLDER, MAX_BYTES, Keep, KeepFailed, model_of, time_of

if TYPE_CHECKING:
    from contract.settings import Settings
    from registry.blobs import BlobStore

AT_ONCE = 32
"""Heads that are read at the same time: each is a small request of its own."""


def keeper(settings: Settings, url: str) -> Keep:
    """Puts things into the store at `url`, with the settings' Azure credentials; each call is whole in itself.

    What has the name already stays as it is, and that is no failure: it was kept before. A folder is made.
    Raises StoreUrlError at once where the address can't be used.
    """
    opened(settings, url)  # an address that is none is told at the start, and not a minute later

    def keep(name: str, content: bytes | Path) -> None:
        from registry.blobs import StoreError

        try:
            anyio.run(_put, settings, url, name, content)
        except StoreError as error:
            failure = str(error)
        except OSError as error:
            failure = f"{name} can't be read or kept: {error.strerror}"
        else:
            return
        raise KeepFailed(failure)

    return keep


def kept_heads(
    settings: Settings,
    url: str,
    take: Callable[[str, bytes], None],
    *,
    model_id: str = "",
    newest: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Gives each head in a store to `take`, with its name, oldest first; `newest`: the last of each model alone.

    `url` names what holds the folder `heads`, or that folder itself. Raises StoreError.
    """
    anyio.run(_heads, settings, url, take, model_id, newest, progress or _nobody)


def opened(settings: Settings, url: str) -> BlobStore:
    """The store at `url`; nothing is contacted yet. Raises StoreUrlError."""
    from registry.blobs.configured import configured_store

    return configured_store(settings.model_copy(update={"store_url": url}))


async def _put(settings: Settings, url: str, name: str, content: bytes | Path) -> None:
    from registry.blobs import BlobExists

    async with opened(settings, url) as store:
        if store.url.startswith("file:"):
            from registry.blobs.directory import directory_path

            await anyio.Path(directory_path(store.url)).mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            await store.write(name, content if isinstance(content, bytes) else _pieces(content), if_none_match=True)
        except BlobExists:
            return


async def _pieces(path: Path) -> AsyncIterator[bytes]:
    from registry.blobs import CHUNK

    async with await anyio.open_file(path, "rb") as file:
        while piece := await file.read(CHUNK):
            yield piece


async def _heads(
    settings: Settings,
    url: str,
    take: Callable[[str, bytes], None],
    model_id: str,
    newest: bool,
    progress: Callable[[int, int], None],
) -> None:
    async with opened(settings, url) as store:
        blobs = await store.list(f"{FOLDER}/") or await store.list()
        names = sorted((blob.name for blob in blobs if model_id in ("", model_of(blob.name))), key=time_of)
        names = [name for name in names if model_of(name)]
        if newest:
            names = list({model_of(name): name for name in names}.values())
        for first in range(0, len(names), AT_ONCE):
            some = names[first : first + AT_ONCE]
            found: dict[str, bytes] = {}
            async with anyio.create_task_group() as tasks:
                for name in some:
                    tasks.start_soon(_read, store, name, found)
            for name in some:
                if name in found:
                    take(name, found[name])
            progress(first + len(some), len(names))


async def _read(store: BlobStore, name: str, found: dict[str, bytes]) -> None:
    from registry.blobs import BlobNotFound, BlobTooLarge

    with suppress(BlobNotFound):  # removed meanwhile
        try:
            found[name] = await store.read_small(name, MAX_BYTES)
        except BlobTooLarge:
            found[name] = b""  # no head is that large: told as one that can't be read


def _nobody(_done: int, _all: int) -> None:
    pass
