"""A directory as a blob store: the embedded default."""

from __future__ import annotations

import errno
import os
import stat
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from io import BufferedWriter, FileIO
from operator import attrgetter
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar, TypeVarTuple, Unpack
from urllib.parse import unquote, urlsplit

import anyio
from anyio import to_thread

from registry.blobs import (
    CHUNK,
    Blob,
    BlobChanged,
    BlobExists,
    BlobNotFound,
    BlobTooLarge,
    ContainerMissing,
    Progress,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    StoreUrlError,
    check_blob_name,
    is_blob_name,
)

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.EISDIR, errno.EEXIST, errno.ENOTDIR, errno.ENOTEMPTY)

T = TypeVar("T")
Args = TypeVarTuple("Args")


@dataclass(frozen=True, slots=True)
class _OpenBlob:
    """A blob held open, with the address a replacement of it would appear at."""

    blob: Blob
    address: Path
    file: FileIO


class DirectoryStore:
    """Files under one root. An ETag is made of modification time, size and inode.

    File access runs in threads. Symlinks are followed as long as they stay under the root.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def url(self) -> str:
        return self._root.as_uri()

    async def list(self, prefix: str = "") -> tuple[Blob, ...]:
        return await self._in_thread(f"list {self._root}", self._list, prefix)

    async def read(
        self, name: str, *, if_match: str | None = None, progress: Progress | None = None
    ) -> AsyncGenerator[bytes, None]:
        opened = await self._open(name, if_match)
        with opened.file:
            done = 0
            while done < opened.blob.size:
                piece = await self._in_thread(f"read {opened.address}", self._piece, opened, done)
                done += len(piece)
                if progress is not None:
                    progress(done, opened.blob.size)
                yield piece

    async def read_small(self, name: str, limit: int, *, if_match: str | None = None) -> bytes:
        opened = await self._open(name, if_match)
        with opened.file:
            size = opened.blob.size
            if size > limit:
                raise BlobTooLarge(f"{opened.address} has {size:,} bytes, more than the {limit:,} allowed here")
            content = b""
            while len(content) < size:
                content += await self._in_thread(f"read {opened.address}", self._piece, opened, len(content))
            return content

    async def write(
        self,
        name: str,
        content: bytes | AsyncIterable[bytes],
        *,
        if_none_match: bool = False,
        sha256: str = "",  # noqa: ARG002 - a file has no place for it
    ) -> Blob:
        target = self._root / check_blob_name(name)
        draft = target.with_name(f".{uuid.uuid4().hex}.tmp")
        action = f"write {target}"
        try:
            with await self._in_thread(action, self._draft, draft, target) as file:
                if isinstance(content, bytes):
                    await self._in_thread(action, file.write, content)
                else:
                    async for piece in content:
                        await self._in_thread(action, file.write, piece)
                await self._in_thread(action, _flush, file)
            return await self._in_thread(action, self._place, draft, target, not if_none_match)
        finally:
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(_discard, draft)

    async def aclose(self) -> None:
        """Nothing is held open between calls."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _open(self, name: str, if_match: str | None) -> _OpenBlob:
        address = self._root / check_blob_name(name)
        opened = await self._in_thread(f"read {address}", self._open_file, name, address)
        if if_match is not None and if_match.strip('"') != opened.blob.etag:
            opened.file.close()
            raise _changed(address)
        return opened

    async def _in_thread(self, action: str, call: Callable[[Unpack[Args]], T], *args: *Args) -> T:
        """Run a call off the event loop; what the operating system refuses becomes a `StoreError`."""
        try:
            return await to_thread.run_sync(call, *args)
        except OSError as error:
            failure = error
        reason = (failure.strerror or type(failure).__name__).lower()
        if failure.errno in _DENIED:
            raise StoreDenied(f"cannot {action}: {reason}; check who owns it and its mode")
        if not await to_thread.run_sync(self._root.is_dir):
            raise ContainerMissing(f"cannot {action}: there is no directory {self._root}; create it first")
        if failure.errno in _IN_THE_WAY and action.startswith("write"):
            raise StoreError(f"cannot {action}: a file or folder of that name is in the way")
        if failure.errno in _ABSENT:
            raise BlobNotFound(f"cannot {action}: {reason}")
        raise StoreUnavailable(f"cannot {action}: {reason}")

    # In threads from here on.

    def _list(self, prefix: str) -> tuple[Blob, ...]:
        folder = prefix.rpartition("/")[0]
        if folder and not is_blob_name(folder):
            return ()
        root = self._root.resolve(strict=True)
        start = root / folder
        if folder and not start.is_dir():
            return ()
        found = self._walk(start, f"{folder}/" if folder else "", root, frozenset())
        return tuple(sorted((blob for blob in found if blob.name.startswith(prefix)), key=attrgetter("name")))

    def _walk(self, folder: Path, prefix: str, root: Path, above: frozenset[Path]) -> Iterator[Blob]:
        """Blobs below a folder. `above` holds the real paths of the folders on the way, so that links make no loop."""
        real = folder.resolve()
        if real in above or not real.is_relative_to(root):
            return
        with os.scandir(folder) as entries:
            for entry in entries:
                name = prefix + entry.name
                path = Path(entry.path)
                if not is_blob_name(name) or (entry.is_symlink() and not _inside(path, root)):
                    continue
                try:
                    facts = entry.stat()
                except FileNotFoundError:
                    continue  # removed since the directory was read, or a link to nothing
                if stat.S_ISDIR(facts.st_mode):
                    yield from self._walk(path, name + "/", root, above | {real})
                elif stat.S_ISREG(facts.st_mode):
                    yield _blob(name, facts)

    def _open_file(self, name: str, address: Path) -> _OpenBlob:
        if not _inside(address, self._root.resolve(strict=True)):
            raise StoreDenied(f"cannot read {address}: a link there leaves {self._root}; copy the file in instead")
        # O_NONBLOCK: opening a named pipe would otherwise wait for somebody to write to it.
        file = FileIO(os.open(address, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            file.close()
            raise BlobNotFound(f"cannot read {address}: it is not a file")
        return _OpenBlob(_blob(name, facts), address, file)

    def _piece(self, opened: _OpenBlob, start: int) -> bytes:
        """Up to `CHUNK` bytes from `start`. The file is then looked at by name, so that a write in place
        and a replacement are both noticed before the piece is passed on."""
        piece = os.pread(opened.file.fileno(), min(CHUNK, opened.blob.size - start), start)
        if not piece or _etag(opened.address.stat()) != opened.blob.etag:
            raise _changed(opened.address)
        return piece

    def _draft(self, draft: Path, target: Path) -> BufferedWriter:
        if not _inside(draft.parent, self._root.resolve(strict=True)):
            raise StoreDenied(f"cannot write {target}: a link on the way leaves {self._root}")
        draft.parent.mkdir(parents=True, exist_ok=True)
        return draft.open("xb")

    def _place(self, draft: Path, target: Path, replace: bool) -> Blob:
        if replace:
            draft.replace(target)
        else:
            try:
                target.hardlink_to(draft)  # unlike a rename, fails where the name is taken
            except FileExistsError:
                raise BlobExists(f"{target} is there already and was left as it is") from None
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        name = target.relative_to(self._root).as_posix()
        return _blob(name, target.stat())


def directory_path(url: str) -> Path:
    """The path in a `file:` URL, or the plain path itself. Raises `StoreUrlError`."""
    if not url.startswith("file:"):
        if not url or "\0" in url:
            raise StoreUrlError("a blob store needs an address: a directory, or azure://container/prefix")
        return Path(url).expanduser()
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc not in ("", "localhost") or not path.startswith("/") or "\0" in path:
        raise StoreUrlError(f"{url!r} names no directory on this machine: expected file:///absolute/path")
    return Path(path)


def _inside(path: Path, root: Path) -> bool:
    """Whether a path, its links followed as far as they go, stays under a root that is resolved already."""
    try:
        return path.resolve().is_relative_to(root)
    except RuntimeError:  # a loop of links, before Python 3.13
        return False


def _changed(address: Path) -> BlobChanged:
    return BlobChanged(f"{address} is no longer the version that was asked for; list again")


def _etag(facts: os.stat_result) -> str:
    return f"{facts.st_mtime_ns:x}-{facts.st_size:x}-{facts.st_ino:x}"


def _blob(name: str, facts: os.stat_result) -> Blob:
    return Blob(name, _etag(facts), facts.st_size, datetime.fromtimestamp(facts.st_mtime, UTC))


def _flush(file: BufferedWriter) -> None:
    file.flush()
    os.fsync(file.fileno())


def _discard(draft: Path) -> None:
    with suppress(OSError):
        draft.unlink()
