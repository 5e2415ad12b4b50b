"""What the registry and the process that tries versions say to each other, over one stream socket.

registry  4 bytes of length, a JSON header, the signature, the artifacts one after another   ->  trial
registry  <-  4 bytes of length, a JSON verdict                                                   trial

Nothing that comes back is trusted: the code of the version on trial may have written it.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import orjson

LENGTH = struct.Struct("!I")
"""What stands before each header and each verdict."""
MAX_HEADER_BYTES = 2**20
MAX_VERDICT_BYTES = 2**16
IDLE_S = 60.0
"""After a trial a warden that has one registry alone waits so long for the next, and ends."""
MAX_TEXT = 1000
"""Characters kept of each sentence of a verdict."""
_MOST = 20
"""Warnings and libraries kept of a verdict."""


@dataclass(frozen=True, slots=True)
class TrialFile:
    """One artifact on its way: its name, the SHA-256 that was recorded, and its size in bytes."""

    name: str
    sha256: str
    size: int


@dataclass(frozen=True, slots=True)
class TrialHeader:
    """What follows it: how long the signature is, and which artifacts."""

    signature_bytes: int
    files: tuple[TrialFile, ...]

    @property
    def total(self) -> int:
        """Bytes that follow."""
        return self.signature_bytes + sum(file.size for file in self.files)

    def encode(self) -> bytes:
        body = orjson.dumps({"signature": self.signature_bytes, "files": [asdict(file) for file in self.files]})
        return LENGTH.pack(len(body)) + body

    @classmethod
    def decode(cls, body: bytes) -> TrialHeader:
        """From what follows the length; raises ValueError."""
        try:
            content = orjson.loads(body)
            files = tuple(TrialFile(str(f["name"]), str(f["sha256"]), int(f["size"])) for f in content["files"])
            header = cls(int(content["signature"]), files)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the header of a trial: {error}") from None
        if header.signature_bytes < 0 or any(file.size < 0 for file in files):
            raise ValueError("not the header of a trial: a size below zero")
        return header


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a version on trial: why it is not to serve, in one sentence, or nothing; and what was seen."""

    reason: str = ""
    load_s: float = 0.0
    peak_bytes: int = 0
    """Most memory that the process that tried it had."""
    libraries: Mapping[str, str] = field(default_factory=dict)
    """Import name of each library it was tried with -> its version."""
    warnings: tuple[str, ...] = ()

    def encode(self) -> bytes:
        told = replace(self, reason=plain(self.reason), warnings=tuple(map(plain, self.warnings[:_MOST])))
        body = orjson.dumps(asdict(told))
        return LENGTH.pack(len(body)) + body

    @classmethod
    def decode(cls, body: bytes) -> Verdict:
        """From what follows the length, cut to size and without what could steer a terminal; raises ValueError."""
        content = orjson.loads(body)
        if not isinstance(content, dict):
            raise ValueError("not a verdict")
        libraries, warnings = content.get("libraries"), content.get("warnings")
        if not isinstance(libraries, dict) or not isinstance(warnings, list) or "reason" not in content:
            raise ValueError("not a verdict")
        return cls(
            plain(content["reason"]),
            _number(content.get("load_s")),
            int(_number(content.get("peak_bytes"))),
            {plain(name): plain(version) for name, version in list(libraries.items())[:_MOST]},
            tuple(plain(warning) for warning in warnings[:_MOST]),
        )


def plain(text: object) -> str:
    """One line of printable text."""
    line = " ".join(str(text).split())
    return "".join(character for character in line if character.isprintable())[:MAX_TEXT]


def in_words(size: int) -> str:
    """A number of bytes for people: `4.0 GiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
