"""What the registry and the process that tries versions say to each other, over one stream socket.

registry  4 bytes of length, a JSON header, the signature, the artifacts one after another, rows  ->  trial
registry  <-  4 bytes of length, a JSON verdict; where rows were sent, 4 bytes of length, answers      trial

Rows are recorded requests, a serialized Rows; a version that gets some answers them instead of its golden examples.
Nothing that comes back is trusted: the code of the version on trial may have written it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

import orjson
from google.protobuf.message import DecodeError

from contract.signature_parts import Value
from protos import millstream_v1_pb2 as v1

LENGTH = struct.Struct("!I")
"""What stands before each header and each verdict."""
MAX_HEADER_BYTES = 2**20
MAX_VERDICT_BYTES = 2**16
MAX_ROWS_BYTES = 2**24
MAX_ANSWERS_BYTES = 2**23
IDLE_S = 5.0
"""After a trial a warden that has one registry alone waits so long for the next, and ends: it holds over 100 MB."""
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
    rows_bytes: int = 0
    """How long the rows are that it should answer; 0 where there are none."""

    @property
    def total(self) -> int:
        """Bytes that follow."""
        return self.signature_bytes + sum(file.size for file in self.files) + self.rows_bytes

    def encode(self) -> bytes:
        files = [asdict(file) for file in self.files]
        body = orjson.dumps({"signature": self.signature_bytes, "files": files, "rows": self.rows_bytes})
        return LENGTH.pack(len(body)) + body

    @classmethod
    def decode(cls, body: bytes) -> TrialHeader:
        """From what follows the length; raises ValueError."""
        try:
            content = orjson.loads(body)
            files = tuple(TrialFile(str(f["name"]), str(f["sha256"]), int(f["size"])) for f in content["files"])
            header = cls(int(content["signature"]), files, int(content.get("rows", 0)))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not the header of a trial: {error}") from None
        if min(header.signature_bytes, header.rows_bytes, *(file.size for file in files)) < 0:
            raise ValueError("not the header of a trial: a size below zero")
        if header.rows_bytes > MAX_ROWS_BYTES:
            raise ValueError(f"not the header of a trial: {header.rows_bytes:,} bytes of rows")
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


@dataclass(frozen=True, slots=True)
class Answers:
    """What a version on trial answered to rows."""

    columns: Mapping[str, Sequence[Value]]
    """Output -> its value for each row, in order; of a row that failed, whatever."""
    failed: frozenset[int] = frozenset()
    """Rows on which it raised."""
    why: str = ""
    """What it raised on the first of them."""

    def encode(self) -> bytes:
        """Raises ValueError where that is longer than anybody reads."""
        message = v1.PredictResponse(error=v1.Error(message=plain(self.why)) if self.failed else None)
        for name, values in self.columns.items():
            column = message.columns.add(name=name).column
            _FILLERS[type(values[0])](column, values)
            column.nulls.extend(sorted(self.failed))
        raw = message.SerializeToString()
        if len(raw) > MAX_ANSWERS_BYTES:
            raise ValueError(f"its answers have {in_words(len(raw))}; {in_words(MAX_ANSWERS_BYTES)} are the most")
        return raw

    @classmethod
    def decode(cls, raw: bytes, rows: int) -> Self:
        """Answers to so many rows, one at least; raises ValueError where these are none."""
        try:
            message = v1.PredictResponse.FromString(raw)
        except DecodeError:
            raise ValueError("not answers: no message") from None
        columns: dict[str, Sequence[Value]] = {}
        failed: frozenset[int] = frozenset()
        for output in message.columns:
            kind = output.column.WhichOneof("kind")
            values = getattr(output.column, kind).values if kind else ()
            if len(values) != rows or output.name in columns:
                raise ValueError(f"not answers to {rows} rows: {len(values)} values of {plain(output.name)!r}")
            columns[output.name] = list(values)
            failed |= frozenset(output.column.nulls)
        if not columns or max(failed, default=0) >= rows:
            raise ValueError(f"not answers to {rows} rows")
        return cls(columns, failed, plain(message.error.message))


_FILLERS: Mapping[type, Callable[[v1.Column, Any], None]] = {
    float: lambda column, values: column.doubles.values.extend(values),
    int: lambda column, values: column.integers.values.extend(values),
    bool: lambda column, values: column.booleans.values.extend(values),
    str: lambda column, values: column.strings.values.extend(values),
}


def plain(text: object) -> str:
    """One line of printable text."""
    line = " ".join(str(text).split())
    return "".join(character for character in line if character.isprintable())[:MAX_TEXT]


def in_words(size: int) -> str:
    """A number of bytes for people: `4.0 GiB`."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
