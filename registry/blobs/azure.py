"""A container of Azure Blob Storage, or a part of one, as a blob store.

With `refusals` the only module that loads the Azure libraries.

The SDK's own retries are off: they know nothing of how much of a download has arrived, and their delays are minutes.
"""

from __future__ import annotations

import importlib
import logging
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from types import TracebackType
from typing import Any, Final, Protocol, Self, TypeVar, TypeVarTuple, Unpack, cast

import aiohttp
import anyio
from azure.core import MatchConditions
from azure.core.credentials import AzureNamedKeyCredential, AzureSasCredential
from azure.core.exceptions import AzureError, HttpResponseError
from azure.storage.blob import BlobBlock, BlobProperties
from azure.storage.blob.aio import BlobClient, ContainerClient

from registry.blobs import (
    CHUNK,
    Blob,
    BlobTooLarge,
    Progress,
    Retry,
    StoreUnavailable,
    StoreUrlError,
    check_blob_name,
    is_blob_name,
)
from registry.blobs.address import AzureAddress
from registry.blobs.refusals import refusal_of

T = TypeVar("T")
Args = TypeVarTuple("Args")

_CONNECT_SECONDS: Final = 5.0
_SILENCE_SECONDS: Final = 30.0
_PAGE: Final = 5000  # the most the service lists at once
_DIGEST: Final = "sha256"
"""The blob metadata that holds the contents' SHA-256 in hex."""
_CLIENT_OPTIONS: Final[dict[str, Any]] = {
    "retry_total": 0,
    "connection_timeout": _CONNECT_SECONDS,
    "read_timeout": _SILENCE_SECONDS,
    "max_single_get_size": CHUNK,
    "max_chunk_get_size": CHUNK,
}


class _Closable(Protocol):
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Piece:
    """One range of a blob, with what the answer said of the whole."""

    content: bytes
    etag: str
    total: int


class AzureStore:
    """One container, seen below a prefix. Each range of a download carries If-Match, so a stream is of one version."""

    def __init__(
        self,
        container: ContainerClient,
        *,
        prefix: str = "",
        retry: Retry | None = None,
        identity: _Closable | None = None,
        anonymous: bool = False,
        page: int = _PAGE,
    ) -> None:
        """`prefix` is a folder's name without slashes around it; `identity` is closed with the store.

        `anonymous` says that requests carry no credentials: then a refusal says which there could be.
        """
        self._container = container
        self._prefix = f"{prefix}/" if prefix else ""
        self._retry = retry or Retry()
        self._identity = identity
        self._anonymous = anonymous
        self._page = page
        # The client's own URL carries the shared access signature.
        self._url = (container.url.partition("?")[0].rstrip("/") + "/" + self._prefix).rstrip("/")

    @property
    def url(self) -> str:
        return self._url

    async def list(self, prefix: str = "") -> tuple[Blob, ...]:
        found: list[Blob] = []
        token: str | None = None
        while True:
            # One page per attempt, so that a fault on the tenth does not repeat the nine before it.
            page, token = await self._persist(f"list {self._url}", self._list_page, prefix, token)
            found.extend(page)
            if not token:
                return tuple(sorted(found, key=lambda blob: blob.name))

    async def read(
        self, name: str, *, if_match: str | None = None, progress: Progress | None = None
    ) -> AsyncGenerator[bytes, None]:
        blob = self._blob(name)
        etag = if_match
        done = 0
        while True:
            action = f"read {self._url}/{name}" + (f" from byte {done:,}" if done else "")
            piece = await self._persist(action, _download, blob, done, CHUNK, etag)
            etag = piece.etag
            done += len(piece.content)
            if piece.content:
                if progress is not None:
                    progress(done, piece.total)
                yield piece.content
            if done >= piece.total:
                return

    async def read_small(self, name: str, limit: int, *, if_match: str | None = None) -> bytes:
        blob = self._blob(name)
        action = f"read {self._url}/{name}"
        content = b""
        etag = if_match
        while True:
            length = min(CHUNK, limit - len(content)) or 1
            piece = await self._persist(action, _download, blob, len(content), length, etag)
            if piece.total > limit:
                raise BlobTooLarge(
                    f"cannot {action}: it has {piece.total:,} bytes, more than the {limit:,} allowed here"
                )
            content += piece.content
            etag = piece.etag
            if len(content) >= piece.total:
                return content

    async def write(
        self, name: str, content: bytes | AsyncIterable[bytes], *, if_none_match: bool = False, sha256: str = ""
    ) -> Blob:
        blob = self._blob(name)
        action = f"write {self._url}/{name}"
        # Blocks staged by somebody else under the same name must not be mistaken for these.
        upload = uuid.uuid4().hex
        staged: list[BlobBlock] = []
        size = 0
        async for block in _blocks(content):
            staged.append(BlobBlock(f"{upload}{len(staged):06d}"))
            await self._persist(action, _stage, blob, staged[-1].id, block)
            size += len(block)
        options: dict[str, Any] = {"match_condition": MatchConditions.IfMissing} if if_none_match else {}
        if sha256:
            options["metadata"] = {_DIGEST: sha256}
        answer = await self._persist(action, partial(blob.commit_block_list, staged, **options))
        written = _utc(cast(datetime, answer["last_modified"]))
        return Blob(name, _bare(cast(str, answer["etag"])), size, written, sha256)

    async def aclose(self) -> None:
        await self._container.close()
        if self._identity is not None:
            await self._identity.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _blob(self, name: str) -> BlobClient:
        return self._container.get_blob_client(self._prefix + check_blob_name(name))

    async def _list_page(self, prefix: str, token: str | None) -> tuple[list[Blob], str | None]:  # type: ignore[valid-type]
        # Metadata is asked for because accounts with real folders mark them there, and digests are noted there.
        pages = self._container.list_blobs(
            name_starts_with=self._prefix + prefix, include=["metadata"], results_per_page=self._page
        ).by_page(continuation_token=token)
        page = await anext(pages)
        found = [self._listed(properties) async for properties in page if not _is_folder(properties)]
        return [blob for blob in found if is_blob_name(blob.name)], cast(Any, pages).continuation_token

    def _listed(self, properties: BlobProperties) -> Blob:
        name = properties.name.removeprefix(self._prefix)
        noted = str((properties.metadata or {}).get(_DIGEST, ""))
        return Blob(name, _bare(properties.etag), properties.size, _utc(properties.last_modified), noted)

    async def _persist(self, action: str, call: Callable[[Unpack[Args]], Awaitable[T]], *args: *Args) -> T:
        """The call's answer. What passes by itself is tried again, up to a bound; the rest is raised at once."""
        delays = self._retry.delays()
        while True:
            try:
                return await call(*args)
            except (AzureError, aiohttp.ClientError, OSError) as error:
                refusal = refusal_of(error, action, anonymous=self._anonymous)
            # Raised outside the handler: the SDK's error holds the request, and that the credentials.
            delay = next(delays, None)
            if delay is None or not isinstance(refusal, StoreUnavailable):
                raise refusal
            if refusal.retry_after > self._retry.patience:
                raise refusal
            await anyio.sleep(max(delay, refusal.retry_after))


def open_container(
    address: AzureAddress,
    *,
    connection_string: str | None = None,
    account_key: str | None = None,
    sas_token: str | None = None,
    retry: Retry | None = None,
) -> AzureStore:
    """The store at an address; which credentials win is told at `registry.blobs.open_store`. Raises `StoreUrlError`."""
    if connection_string:
        address.refuse_account()
        try:
            client = ContainerClient.from_connection_string(connection_string, address.container, **_CLIENT_OPTIONS)
        except ValueError:
            client = None
        if client is None:  # outside the handler, as the SDK's error may quote the text
            raise StoreUrlError(
                "the Azure connection string cannot be read: expected AccountName=…;AccountKey=…;EndpointSuffix=…, "
                "as the portal shows it"
            )
        anonymous = client.credential is None and "?" not in client.url  # where a SAS token would be
        return AzureStore(client, prefix=address.prefix, retry=retry, anonymous=anonymous)
    account = address.required_account()
    signature = sas_token or address.signature
    credential: Any = None
    identity: _Closable | None = None
    if account_key:
        credential = AzureNamedKeyCredential(address.account_name, account_key)
    elif signature:
        credential = AzureSasCredential(signature.lstrip("?"))
    elif account.startswith("https:"):  # tokens are never sent in the clear
        credential = identity = _managed_identity()
    client = ContainerClient(account, address.container, credential=credential, **_CLIENT_OPTIONS)
    return AzureStore(client, prefix=address.prefix, retry=retry, identity=identity, anonymous=credential is None)


async def _download(blob: BlobClient, start: int, length: int, etag: str | None) -> _Piece:
    """One range, whole. The `_Piece` of an empty blob is empty: its only range cannot be satisfied (416)."""
    pinned: dict[str, Any] = (
        {"etag": f'"{_bare(etag)}"', "match_condition": MatchConditions.IfNotModified} if etag else {}
    )
    try:
        # Bytes as they are stored: a digest is taken of them, whatever their Content-Encoding says.
        answer = await blob.download_blob(start, length, decompress=False, max_concurrency=1, **pinned)
    except HttpResponseError as error:
        if error.status_code == 416 and start == 0:
            return _Piece(b"", etag or "", 0)
        raise
    content = await answer.readall()
    total = int(str(answer.properties.content_range).rpartition("/")[2])
    if len(content) != min(length, total - start):
        raise AzureError(f"{len(content):,} bytes came where {min(length, total - start):,} were announced")
    return _Piece(content, _bare(answer.properties.etag), total)


async def _stage(blob: BlobClient, block_id: str, block: bytes) -> None:
    # A file-like body is sent piece by piece; bytes of this size would hold up the event loop.
    await blob.stage_block(block_id, BytesIO(block), length=len(block))


async def _blocks(content: bytes | AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    """The same bytes in blocks of `CHUNK`, the last one shorter."""
    if isinstance(content, bytes):
        for start in range(0, len(content), CHUNK):
            yield content[start : start + CHUNK]
        return
    waiting = bytearray()
    async for piece in content:
        waiting += piece
        while len(waiting) >= CHUNK:
            yield bytes(waiting[:CHUNK])
            del waiting[:CHUNK]
    if waiting:
        yield bytes(waiting)


def _managed_identity() -> Any:
    """A credential from azure-identity, or None where that is not installed: public containers need none."""
    try:
        identity = importlib.import_module("azure.identity.aio")
    except ModuleNotFoundError:
        return None
    # At each failure it tells a page about every login it looked for; the refusal says it in a sentence.
    logging.getLogger("azure.identity").setLevel(logging.CRITICAL)
    return identity.DefaultAzureCredential()


def _is_folder(properties: BlobProperties) -> bool:
    return bool((properties.metadata or {}).get("hdi_isfolder"))


def _bare(etag: str) -> str:
    """Listings give ETags without quotes, headers with them: one form, to compare."""
    return etag.strip('"')


def _utc(moment: datetime) -> datetime:
    return moment.astimezone(UTC)
