"""Drafts: versions whose signature is read and whose bytes are not hashed yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from anyio import to_thread

from contract.signature import MAX_BYTES, Signature, SignatureError, parse_signature
from contract.version import ArtifactsError, Roles
from registry.blobs import Blob, BlobStore, BlobTooLarge
from registry.catalogue.known import VersionKey
from registry.promotion.timeline import TAGS
from registry.watch.layout import FoundVersion


class DraftRefused(Exception):
    """What stands at a place makes up no version; the message says why."""

    def __init__(self, message: str, signature: Signature | None = None) -> None:
        super().__init__(message)
        self.signature = signature
        """Where it could be read."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A version as its place describes it."""

    found: FoundVersion
    signature: Signature
    warnings: tuple[str, ...]
    files: Mapping[str, Blob]
    tag: str

    @property
    def key(self) -> VersionKey:
        return self.signature.model_id, self.signature.version


async def read_draft(store: BlobStore, found: FoundVersion, blob: Blob) -> Draft:
    """The version of a place by its signature, `blob`. Raises DraftRefused and StoreError."""
    try:
        raw = await store.read_small(blob.name, MAX_BYTES, if_match=blob.etag)
    except BlobTooLarge as error:
        raise DraftRefused(str(error)) from None
    try:
        signature, warnings = await to_thread.run_sync(parse_signature, raw)
    except SignatureError as error:
        told = "; ".join(str(problem) for problem in error.problems[:10])
        raise DraftRefused(f"{blob.name}: {told}") from None
    files = found.chosen(signature)
    try:
        Roles.assign(signature, files)
    except ArtifactsError as error:
        raise DraftRefused(str(error), signature) from None
    others = (found.mismatch(signature), location_warning(store.url, found.place, signature))
    return Draft(found, signature, (*warnings, *filter(None, others)), files, stronger(found.tag, signature.status))


def stronger(*tags: str) -> str:
    """Of several tags of one version the one that counts; empty ones are none."""
    return min(filter(None, tags), key=TAGS.index)


def location_warning(url: str, place: str, signature: Signature) -> str:
    """A warning where the signature names another container or path; empty where they agree, or in a directory."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        return ""
    told = signature.azure_location.removeprefix("azure://").strip("/")
    if f"/{told}/" in f"{parts.path.rstrip('/')}/{place}/":
        return ""
    return f"azure_location says {signature.azure_location}; found in {url}/{place}"
