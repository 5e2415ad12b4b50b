"""Zip archives that models are stored in, looked at before a library unpacks them."""

from __future__ import annotations

from io import BytesIO
from zipfile import BadZipFile, ZipFile

from consumers.model.formats.refusal import UnloadableModel, said

FREE_BYTES = 256 << 20
"""Unpacked bytes that are taken however small the archive is."""
MOST_EXPANSION = 100
"""Times its own size that a larger archive may unpack to."""


def check_archive(name: str, content: bytes) -> tuple[str, ...]:
    """The names in an archive; raises UnloadableModel for what is none, leaves its folder, or unpacks without bound.

    The sizes it declares are the most that is ever read of a member, so their sum bounds what unpacking takes.
    """
    try:
        with ZipFile(BytesIO(content)) as archive:
            names = tuple(archive.namelist())
            size = sum(member.file_size for member in archive.infolist())
            _check_size(name, size, len(content))
            for member in names:
                if member.endswith(".npz"):  # an archive in the archive, as sparse matrices are stored
                    with archive.open(member) as inner, ZipFile(BytesIO(inner.read())) as matrix:
                        size += sum(part.file_size for part in matrix.infolist())
                        _check_size(name, size, len(content))
    except UnloadableModel:
        raise
    except BadZipFile:
        raise UnloadableModel(f"{name} ({len(content):,} bytes) can't be loaded: it is no whole zip archive") from None
    except Exception as error:
        raise UnloadableModel(f"{name} ({len(content):,} bytes) can't be unpacked: {said(error)}") from error
    for member in names:
        if member.startswith(("/", "\\")) or ".." in member.replace("\\", "/").split("/") or ":" in member[:2]:
            raise UnloadableModel(f"{name} holds {member!r}; expected names inside the archive")
    return names


def _check_size(name: str, unpacked: int, packed: int) -> None:
    if unpacked > max(FREE_BYTES, MOST_EXPANSION * packed):
        raise UnloadableModel(
            f"{name} ({packed:,} bytes) would unpack to {unpacked:,}; expected at most {MOST_EXPANSION} times its size"
        )
