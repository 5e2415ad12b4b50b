"""A version's identity and order, and which of its files is what."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

from packaging.version import InvalidVersion, Version

from contract.signature import Signature

SIGNATURE_FILE = "signature.json"
MODEL_SUFFIXES = (".joblib", ".pkl", ".skops", ".onnx", ".pt", ".pt2", ".ubj")
"""What is taken for the model where the signature names none; `.json` is one too, and as often a configuration."""

_SIGNATURE_SUFFIXES = (SIGNATURE_FILE, f"{SIGNATURE_FILE}.sig")


class ArtifactsError(ValueError):
    """Files that do not make up the version its signature describes; the message names what is missing or unclear."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Which file of a version is what, by file name."""

    transforms: tuple[str, ...]
    """In the order they are applied."""
    model: str
    others: tuple[str, ...]
    """Sorted: configuration, a tokenizer; kept with the version and not loaded."""

    @classmethod
    def assign(cls, signature: Signature, files: Iterable[str]) -> Roles:
        """The roles of a version's files, signature files left out; raises ArtifactsError."""
        names = sorted({file for file in files if not file.endswith(_SIGNATURE_SUFFIXES)})
        for file in (*signature.transforms, *filter(None, (signature.model_file,))):
            if file not in names:
                raise ArtifactsError(f"{file} is named in the signature and missing; there are: {_listed(names)}")
        rest = [name for name in names if name not in signature.transforms]
        model = signature.model_file or _only_model(rest)
        return cls(signature.transforms, model, tuple(name for name in rest if name != model))

    def labelled(self) -> list[tuple[str, str]]:
        """(role, file name) of each: `transform.0`, …, `model`, and `other:` with the name of each other one."""
        transforms = [(f"transform.{place}", name) for place, name in enumerate(self.transforms)]
        return [*transforms, ("model", self.model), *((f"other:{name}", name) for name in self.others)]


def _only_model(files: list[str]) -> str:
    """The one file that can be the model: the only one of a known format, else the only one at all."""
    known = [file for file in files if file.endswith(MODEL_SUFFIXES)]
    candidates = known or files
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise ArtifactsError(f"expected a model file ({', '.join(MODEL_SUFFIXES)}) beside the signature, got none")
    raise ArtifactsError(f"expected model_file in the signature to say which is the model: {_listed(candidates)}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (", …" if len(names) > 10 else "") if names else "none"


def version_digest(signature: Signature, digests: Mapping[str, str]) -> str:
    """A version's identity: hex SHA-256 over its signature's identity and its artifacts' digests by role.

    `digests` are the hex SHA-256 of the artifacts by file name. Renaming the model or a transform, or a new status,
    changes nothing. Raises ArtifactsError.
    """
    artifacts = [(role, digests[name].lower()) for role, name in Roles.assign(signature, digests).labelled()]
    packed = json.dumps(artifacts, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    return sha256(signature.identity() + b"\n" + packed).hexdigest()


def version_order(version: str) -> tuple[int, Version, str]:
    """A key to sort versions by, lowest first: PEP 440, and below all of them what does not parse, by its text."""
    try:
        return (1, Version(version), "")
    except InvalidVersion:
        return (0, Version("0"), version)
