"""A version as files on this machine, ready to be published: its signature read strictly, its files hashed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from contract.signature import Signature, SignatureError, parse_signature
from contract.version import SIGNATURE_FILE, ArtifactsError, Roles, version_digest
from registry.blobs import is_blob_name

ENDORSEMENT_FILE = f"{SIGNATURE_FILE}.sig"

_NO_FIELD = ": no such field;"


class PublishRefused(Exception):
    """A version that is not published; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One artifact on this machine, as it was when it was hashed."""

    path: Path
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class LocalVersion:
    """A version as it is to be published: its signature and its files by their name in the version."""

    signature_json: bytes
    signature: Signature
    files: Mapping[str, LocalFile]
    warnings: tuple[str, ...]
    digest: str = field(init=False)
    """Hex version digest."""

    def __post_init__(self) -> None:
        digests = {name: file.sha256 for name, file in self.files.items()}
        object.__setattr__(self, "digest", version_digest(self.signature, digests))

    @property
    def name(self) -> str:
        """For people: `churn 1.0.0`."""
        return f"{self.signature.model_id} {self.signature.version}"

    @property
    def folder(self) -> str:
        """Where it stands in the store."""
        return f"{self.signature.model_id}/{self.signature.version}"

    @classmethod
    def of(cls, signature_json: bytes, files: Mapping[str, Path]) -> LocalVersion:
        """Reads the signature, to which an unknown field is an error here, and hashes the files.

        Raises PublishRefused.
        """
        try:
            signature, warnings = parse_signature(signature_json)
        except SignatureError as error:
            raise PublishRefused(f"{SIGNATURE_FILE} is refused:\n{error}") from None
        unknown = [warning for warning in warnings if _NO_FIELD in warning]
        if unknown:
            raise PublishRefused(f"{SIGNATURE_FILE} is refused:\n" + "\n".join(unknown))
        try:
            roles = Roles.assign(signature, files)
        except ArtifactsError as error:
            raise PublishRefused(str(error)) from None
        folder = f"{signature.model_id}/{signature.version}"
        hashed: dict[str, LocalFile] = {}
        for name, path in files.items():
            if not is_blob_name(f"{folder}/{name}"):
                raise PublishRefused(f"{path} can't be published under this name: rename it, or leave it out")
            hashed[name] = _hashed(path)
        for name in (*roles.transforms, roles.model):
            if not hashed[name].size:
                raise PublishRefused(f"{hashed[name].path} is empty: expected a model or a transform in it")
        return cls(signature_json, signature, hashed, warnings)


def files_of(folder: Path) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The artifacts below a version's folder by their name in it, and the names of files that are left out.

    Raises PublishRefused where another version's folder stands below, and OSError.
    """
    files: dict[str, Path] = {}
    left_out: list[str] = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if not path.is_file() or name in (SIGNATURE_FILE, ENDORSEMENT_FILE):
            continue
        if path.name == SIGNATURE_FILE:
            raise PublishRefused(f"{path} makes {path.parent} a version of its own: publish one version's folder")
        if name.endswith((SIGNATURE_FILE, ENDORSEMENT_FILE)) or not is_blob_name(name):
            left_out.append(name)
        else:
            files[name] = path
    return files, tuple(left_out)


def _hashed(path: Path) -> LocalFile:
    seen = sha256()
    size = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                seen.update(piece)
                size += len(piece)
    except OSError as error:
        raise PublishRefused(f"{path} can't be read: {error.strerror}") from None
    return LocalFile(path, size, seen.hexdigest())
