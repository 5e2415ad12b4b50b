"""Signed model records: only what the registry recorded is ever unpickled.

Ed25519 over the serialized record. Whoever can write to Redis alone can't make a worker load anything, since the
digest of every artifact stands in a record with a good signature. Keys are raw 32-byte files.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from google.protobuf.message import DecodeError

from contract.record import ModelRecord
from contract.signature import SignatureError
from protos import millstream_wire_v1_pb2 as wire

CONTEXT = b"millstream.v1.ModelRecord\n"
"""Signed in front of the record, so that a signature made for something else is none for a record."""


class UntrustedRecord(Exception):
    """A record that the registry did not sign."""


class KeyUnusable(Exception):
    """A key file that is absent or holds no key."""


def private_key(path: Path) -> Ed25519PrivateKey:
    """The registry's key, made at first use with mode 0600; the public key is written beside it as `.pub`."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        key = Ed25519PrivateKey.generate()
        public = path.with_suffix(".pub")
        _write(public, key.public_key().public_bytes_raw(), 0o644)
        _write(path, key.private_bytes_raw(), 0o600)
    try:
        return Ed25519PrivateKey.from_private_bytes(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KeyUnusable(f"{path} holds no Ed25519 private key: {error}") from None


def public_key(path: Path) -> Ed25519PublicKey:
    """The registry's public key. Raises KeyUnusable."""
    try:
        return Ed25519PublicKey.from_public_bytes(path.read_bytes())
    except (OSError, ValueError) as error:
        raise KeyUnusable(f"{path} holds no Ed25519 public key: {error}") from None


def _write(path: Path, content: bytes, mode: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def seal(record: ModelRecord, key: Ed25519PrivateKey) -> bytes:
    """The value of the record in ms:catalog."""
    raw = record.encode()
    return wire.SignedRecord(record=raw, ed25519=key.sign(CONTEXT + raw)).SerializeToString()


def unseal(raw: bytes, model_id: str, key: Ed25519PublicKey, known: ModelRecord | None = None) -> ModelRecord:
    """The record of a value in ms:catalog; `known` is the one before it.

    Raises UntrustedRecord where the signature is not good, the model is another, or the revision fell: an old record
    put back is a good record at the wrong time.
    """
    try:
        signed = wire.SignedRecord.FromString(raw)
        key.verify(signed.ed25519, CONTEXT + signed.record)
        record = ModelRecord.decode(signed.record, known)
    except (DecodeError, InvalidSignature, SignatureError):
        raise UntrustedRecord(f"the record of {model_id} was not signed by this registry") from None
    if record.model_id != model_id:
        raise UntrustedRecord(f"the record of {model_id} is the one of {record.model_id}")
    if known is not None and record.revision < known.revision:
        raise UntrustedRecord(f"the record of {model_id} went back from revision {known.revision} to {record.revision}")
    return record
