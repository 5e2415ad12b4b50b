"""Signed model records: only what the registry recorded is ever unpickled; and the publishers it records for.

Ed25519 over the serialized record. Whoever can write to Redis alone can't make a worker load anything, since the
digest of every artifact stands in a record with a good signature. The registry's keys are raw 32-byte files.

A publisher signs a version's digest, so that whoever can write to the blob store alone can't make the registry record
anything. The signature stands beside the version, in `signature.json.sig`, a line for each publisher:

    ed25519:<public key> <Ed25519 over ENDORSEMENT_CONTEXT and the hex version digest>          both in Base64
"""

from __future__ import annotations

import errno
import os
from base64 import b64decode, b64encode
from collections.abc import Iterable
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from google.protobuf.message import DecodeError

from contract.record import ModelRecord
from contract.signature import SignatureError
from protos import millstream_wire_v1_pb2 as wire

CONTEXT = b"millstream.v1.ModelRecord\n"
"""Signed in front of the record, so that a signature made for something else is none for a record."""


ENDORSEMENT_CONTEXT = b"millstream.v1.PublishedVersion\n"
"""Signed in front of a version's digest."""
MAX_ENDORSEMENT_BYTES = 16 * 1024
"""Largest signature.json.sig that is read: about a hundred publishers."""

_ALGORITHM = "ed25519:"


class UntrustedRecord(Exception):
    """A record that the registry did not sign."""


class UntrustedVersion(Exception):
    """A version that no trusted publisher signed; the message says what its signature file holds instead."""


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


def _write(path: Path, content: bytes, mode: int, *, exclusive: bool = False) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | (os.O_EXCL if exclusive else os.O_TRUNC), mode)
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


def new_publisher_key(path: Path) -> str:
    """Makes a publisher's key pair and returns the public key's text.

    The private key goes to `path` (PEM, mode 0600), the public one's text to the same name with `.pub` added.
    Raises KeyUnusable where either is there already or can't be written.
    """
    public = path.with_name(path.name + ".pub")
    key = Ed25519PrivateKey.generate()
    text = publisher_text(key.public_key())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        if public.exists():
            raise FileExistsError(errno.EEXIST, "File exists")
        _write(path, pem, 0o600, exclusive=True)
        _write(public, f"{text}\n".encode(), 0o644, exclusive=True)
    except FileExistsError:
        raise KeyUnusable(f"{path} or {public.name} is there already: a key is never replaced; name another") from None
    except OSError as error:
        raise KeyUnusable(f"no key can be written to {path}: {error.strerror}") from None
    return text


def publisher_key(path: Path) -> Ed25519PrivateKey:
    """A publisher's private key. Raises KeyUnusable."""
    try:
        key = load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise KeyUnusable(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise KeyUnusable(
            f"{path} holds no Ed25519 private key in PEM without a password; `millstream registry keygen` makes one"
        )
    return key


def publisher_text(key: Ed25519PublicKey) -> str:
    """A public key as people hand it on: `ed25519:` and 44 characters of Base64."""
    return _ALGORITHM + b64encode(key.public_bytes_raw()).decode()


def publisher_keys(entries: Iterable[str]) -> tuple[Ed25519PublicKey, ...]:
    """Public keys from their texts, or from files with one a line, in which `#` begins a comment.

    Raises KeyUnusable on whatever is neither, and on a file without a key: an empty list would trust everybody.
    """
    keys: list[Ed25519PublicKey] = []
    for entry in entries:
        if entry.startswith(_ALGORITHM):
            keys.append(_publisher(entry))
            continue
        try:
            text = Path(entry).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            told = error.strerror if isinstance(error, OSError) else "it is no text"
            raise KeyUnusable(
                f"{entry} is neither a publisher's key ({_ALGORITHM}…) nor a file that can be read: {told}"
            ) from None
        lines = [line.partition("#")[0].split() for line in text.splitlines()]
        found = [_publisher(words[0], entry) for words in lines if words]
        if not found:
            raise KeyUnusable(f"{entry} holds no publisher's key: expected lines of {_ALGORITHM}…")
        keys += found
    return tuple(keys)


def endorse(digest: str, key: Ed25519PrivateKey, before: bytes = b"") -> bytes:
    """A signature.json.sig for a version's hex digest; what other publishers wrote into the one `before` is kept."""
    own = publisher_text(key.public_key())
    kept = [
        line for line in before.decode("ascii", "replace").splitlines() if line.strip() and not line.startswith(own)
    ]
    line = f"{own} {b64encode(key.sign(_endorsed(digest))).decode()}"
    return "".join(f"{each}\n" for each in (*kept, line)).encode("ascii", "replace")


def check_endorsed(raw: bytes, digest: str, trusted: Iterable[Ed25519PublicKey]) -> str:
    """The text of the trusted publisher who signed a version's hex digest. Raises UntrustedVersion."""
    by_text = {publisher_text(key): key for key in trusted}
    signed_by = [line.split() for line in raw.decode("ascii", "replace").splitlines() if line.strip()]
    told = [words[0] for words in signed_by if words[0].startswith(_ALGORITHM)]
    spoiled = ""
    for words in signed_by:
        key = by_text.get(words[0])
        if key is None:
            continue
        try:
            key.verify(b64decode(words[1], validate=True), _endorsed(digest))
        except (IndexError, ValueError, InvalidSignature):
            spoiled = words[0]
        else:
            return words[0]
    if spoiled:
        raise UntrustedVersion(
            f"the signature of {spoiled} does not fit: the version is not the one that was signed; publish it again"
        )
    if told:
        raise UntrustedVersion(f"it is signed by {', '.join(told[:3])}, and by nobody in trusted_publishers")
    raise UntrustedVersion("its signature.json.sig holds no signature; publish it with --key")


def _endorsed(digest: str) -> bytes:
    return ENDORSEMENT_CONTEXT + digest.encode("ascii")


def _publisher(text: str, file: str = "") -> Ed25519PublicKey:
    try:
        return Ed25519PublicKey.from_public_bytes(b64decode(text.removeprefix(_ALGORITHM), validate=True))
    except ValueError:
        place = f" in {file}" if file else ""
        raise KeyUnusable(
            f"{text[:80]!r}{place} is no publisher's key: expected {_ALGORITHM} and 44 characters of Base64, as "
            f"`millstream registry keygen` prints it"
        ) from None
