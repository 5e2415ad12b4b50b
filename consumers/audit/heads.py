"""Heads: how far a model's chain was at one moment, signed, for keeping where whoever changes the log can't write.

    the log at one moment  ->  Head  ->  one JSON document, Ed25519 by the sink's own key  ->  a store, never replaced

A chain that somebody computed anew is as good as the first one, and a log without its newest rows is a log. Only a head
that was kept elsewhere tells.
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from contract.trust import KeyUnusable, private_key, publisher_text

CONTEXT = b"millstream.v1.EventLogHead\n"
"""Signed in front of a head, so that a signature made for something else is none for a head."""
FORMAT = 1
MAX_BYTES = 64 * 1024
"""Largest document that is read."""
FOLDER = "heads"

Keep = Callable[[str, bytes | Path], None]
"""Puts content, or a file's, under a name into a store, where nothing is ever replaced: what has that name stays.

Raises KeepFailed.
"""

_NAME = re.compile(r"(?:heads/)?([^/]+)/([0-9]{20})-([0-9]+)\.json")


class KeepFailed(Exception):
    """A store that does not take what it is given now; the message says why."""


class MalformedHead(ValueError):
    """A document that is no head; the message says what was expected and what came."""


class ForgedHead(Exception):
    """A head that the sink's key did not sign."""


@dataclass(frozen=True, slots=True)
class Head:
    """How far a model's log was."""

    model_id: str
    entry_id: str
    """The last entry of the events stream that is in it."""
    number: int
    """The running number that it reached."""
    rows: int
    """Rows that stood in the log then, sealed and live."""
    chain: str
    """The chain's value after it, hex."""
    erased: int
    """Events that were erased until then, as the log's own record of erasures says."""
    removed_up_to: int
    """The last number that retention had removed; 0: nothing."""
    removed_chain: str
    """The chain's value after that, hex; empty: nothing was."""
    at_us: int
    """When, in microseconds since the Unix epoch."""

    @property
    def name(self) -> str:
        """What it is kept under: ordered by running number, then by time, one never another's."""
        return f"{FOLDER}/{self.model_id}/{self.number:020d}-{self.at_us}.json"

    @property
    def signed(self) -> bytes:
        """What the signature is over: one form for one head."""
        return CONTEXT + orjson.dumps(asdict(self), option=orjson.OPT_SORT_KEYS)

    def encode(self, key: Ed25519PrivateKey) -> bytes:
        """The signed document: JSON on several lines, ending with one."""
        content = {
            "format": FORMAT,
            "head": asdict(self),
            "key": publisher_text(key.public_key()),
            "signature": b64encode(key.sign(self.signed)).decode(),
        }
        return orjson.dumps(content, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    @classmethod
    def decode(cls, raw: bytes, key: Ed25519PublicKey) -> Self:
        """Raises MalformedHead, and ForgedHead where the signature is not this key's."""
        try:
            document = orjson.loads(raw)
            version = document["format"]
            if version != FORMAT:
                raise MalformedHead(f"expected a head of format {FORMAT}, got format {version!r}")
            head = cls(**document["head"])
            signature = b64decode(document["signature"], validate=True)
            signer = str(document["key"])
        except MalformedHead:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise MalformedHead(f"expected a signed head: {_reason(error)}") from None
        for name, value in asdict(head).items():
            expected: type = int if name in _NUMBERS else str
            if type(value) is not expected:
                raise MalformedHead(f"expected a signed head: {name} is {value!r}, not {expected.__name__}")
        try:
            key.verify(signature, head.signed)
        except InvalidSignature:
            own = publisher_text(key)
            told = "not what that key signed" if signer == own else f"signed by another key, {signer[:60]}"
            raise ForgedHead(f"expected a head that {own} signed; it is {told}") from None
        return head


_NUMBERS = frozenset({"number", "rows", "erased", "removed_up_to", "at_us"})


def signing_key(path: Path) -> Ed25519PrivateKey:
    """The sink's own key, made at first use with mode 0600, the public one beside it as `.pub`. Raises KeyUnusable."""
    try:
        return private_key(path)
    except OSError as error:
        raise KeyUnusable(f"no key can be made at {path}: {error.strerror}; name another place (heads_key)") from None


def model_of(name: str) -> str | None:
    """Of which model the head under that name is; None: it is no head's name."""
    found = _NAME.fullmatch(name)
    return found[1] if found else None


def time_of(name: str) -> int:
    """When the head under that name was made, in microseconds since the Unix epoch; 0: it is no head's name."""
    found = _NAME.fullmatch(name)
    return int(found[3]) if found else 0


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it has no {error}"
    text: Any = str(error)
    return str(text).splitlines()[0]
