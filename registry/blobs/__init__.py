"""Blob stores: where models are found. One small interface over a directory and over Azure Blob Storage."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Final, Protocol, Self
from urllib.parse import urlsplit

CHUNK: Final = 8 * 1024 * 1024
"""Bytes per piece of a streamed read and per block of a write."""

Progress = Callable[[int, int], None]
"""Called with (bytes read so far, size of the blob in bytes) after each piece."""


class StoreError(Exception):
    """A blob store refused or failed. The message is one sentence for people and never holds a secret."""


class StoreUrlError(StoreError, ValueError):
    """The address or the credentials given for a store cannot be used as they stand."""


class StoreUnavailable(StoreError):
    """The store could not be reached, throttled or failed, after retries. Passing: worth trying again later."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds the store asked to be left alone for; 0 where it did not."""


class StoreDenied(StoreError):
    """The store is there and says no: wrong key, expired signature, missing permission."""


class ContainerMissing(StoreError):
    """The container, or the directory standing in for one, does not exist."""


class BlobNotFound(StoreError):
    """No blob of this name."""


class BlobChanged(StoreError):
    """The blob's ETag is not the expected one: it was written again, perhaps while it was being read."""


class BlobExists(StoreError):
    """A write that must not replace anything found a blob of this name."""


class BlobTooLarge(StoreError):
    """The blob is larger than the limit its reader set."""


class BlobNameError(StoreError, ValueError):
    """A name no store of ours lists, reads or writes; see `is_blob_name`."""


@dataclass(frozen=True, slots=True)
class Blob:
    """One blob as a listing shows it."""

    name: str
    """Relative to the store's URL, parts joined by `/`."""
    etag: str
    """Opaque, without quotes; changes whenever the contents are written."""
    size: int
    """In bytes."""
    last_modified: datetime
    """Aware, in UTC."""
    sha256: str = ""
    """Of the contents in hex, as its writer noted it beside them; empty where nobody did. A claim, not a proof."""


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and how patiently a failing request to a remote store is repeated."""

    attempts: int = 4
    first_delay: float = 0.5
    """Seconds; each later delay is twice the one before."""
    longest_delay: float = 8.0
    """Seconds."""
    patience: float = 30.0
    """Seconds; a store that asks for a longer pause than this is given up at once, until somebody comes again."""

    def delays(self) -> Iterator[float]:
        """Seconds to wait before each further attempt: one value fewer than there are attempts."""
        delay = self.first_delay
        for _ in range(self.attempts - 1):
            yield min(delay, self.longest_delay)
            delay *= 2


class BlobStore(Protocol):
    """A container of blobs. Every method may raise `StoreUnavailable`, `StoreDenied` or `ContainerMissing`.

    Names that fail `is_blob_name` do not exist: listings leave them out, reads and writes raise `BlobNameError`.
    """

    @property
    def url(self) -> str:
        """Where the store is, without credentials; `url + "/" + name` is a blob's address for people."""
        ...

    async def list(self, prefix: str = "") -> tuple[Blob, ...]:
        """All blobs whose names start with `prefix` (any text, not only whole parts), sorted by name."""
        ...

    def read(
        self, name: str, *, if_match: str | None = None, progress: Progress | None = None
    ) -> AsyncGenerator[bytes, None]:
        """Stream a blob in pieces of at most `CHUNK` bytes, all of one ETag: `if_match`, else the first seen.

        Who stops early closes the stream (`contextlib.aclosing`). Raises `BlobNotFound`, and `BlobChanged` as soon
        as the ETag differs: what was yielded until then is of no use. A blob removed after it was listed is either.
        """
        ...

    async def read_small(self, name: str, limit: int, *, if_match: str | None = None) -> bytes:
        """A whole blob of at most `limit` bytes. Raises `BlobTooLarge`, `BlobNotFound`, `BlobChanged`."""
        ...

    async def write(
        self, name: str, content: bytes | AsyncIterable[bytes], *, if_none_match: bool = False, sha256: str = ""
    ) -> Blob:
        """Put a blob in place in one step: readers see the old contents or all of the new ones.

        With `if_none_match` nothing is replaced and an existing blob raises `BlobExists`. `sha256` is noted beside
        the contents where the store can (not in a directory), and not checked.
        """
        ...

    async def aclose(self) -> None:
        """Give back connections. The store is not usable afterwards."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


_NAME_LIMIT: Final = 1024  # Azure's own, in characters
_SECRETS: Final = re.compile(r"(?i)\b(sig|AccountKey|SharedAccessSignature)=[^\s;&\"']+")


def is_blob_name(name: str) -> bool:
    """Whether a name is a plain relative path: no empty, `.` or hidden part, no backslash or control character,
    not ending in `.tmp` (a write under way), at most 1,024 characters."""
    return (
        0 < len(name) <= _NAME_LIMIT
        and not name.endswith(".tmp")
        and "\\" not in name
        and name.isprintable()
        and all(part and not part.startswith(".") for part in name.split("/"))
    )


def check_blob_name(name: str) -> str:
    """The name itself. Raises `BlobNameError` where `is_blob_name` is false."""
    if is_blob_name(name):
        return name
    shown = ascii(name if len(name) <= 100 else name[:100] + "…")
    raise BlobNameError(
        f"{shown} cannot name a blob: expected a relative path such as 'churn/1.0.0/model.joblib', "
        f"without hidden, empty, '.' or '..' parts, backslashes or control characters, and not ending in '.tmp'"
    )


def redact(text: str) -> str:
    """The text with account keys and the signatures of shared access signatures struck out."""
    return _SECRETS.sub(r"\1=[redacted]", text)


def open_store(
    url: str,
    *,
    connection_string: str | None = None,
    account_url: str | None = None,
    account_key: str | None = None,
    sas_token: str | None = None,
    retry: Retry | None = None,
) -> BlobStore:
    """The store at a URL; nothing is contacted yet.

    - a plain path or `file:///path`: a directory; the credentials are not looked at
    - `azure://container[/prefix]`: with `connection_string`, or with `account_url` and one of `account_key`,
      `sas_token`, or neither (a managed identity where azure-identity is installed, else anonymous)
    - `https://account.blob.core.windows.net/container[/prefix][?sas]`: the same, without `account_url`

    Raises `StoreUrlError`.
    """
    scheme = urlsplit(url).scheme if "://" in url or url.startswith("file:") else ""
    if scheme in ("", "file"):
        from registry.blobs.directory import DirectoryStore, directory_path

        return DirectoryStore(directory_path(url))
    if scheme in ("azure", "https", "http"):
        # Imported here, so that a registry on a directory never loads the Azure libraries.
        from registry.blobs.address import AzureAddress
        from registry.blobs.azure import open_container

        return open_container(
            AzureAddress.parse(url, account_url),
            connection_string=connection_string,
            account_key=account_key,
            sas_token=sas_token,
            retry=retry,
        )
    raise StoreUrlError(
        f"a blob store cannot be at {redact(url)!r}: expected a directory, file:///path, azure://container/prefix "
        f"or https://account.blob.core.windows.net/container"
    )
