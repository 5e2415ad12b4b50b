"""Signed records: only what the registry's key signed, for this model, and no older than what is known, is taken."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from contract.trust import CONTEXT, KeyUnusable, UntrustedRecord, private_key, public_key, seal, unseal
from protos import millstream_wire_v1_pb2 as wire
from tests.records import record, version

KEY = Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key()
RECORD = record(revision=3)


def signed(raw: bytes) -> wire.SignedRecord:
    return wire.SignedRecord.FromString(raw)


def test_what_was_sealed_is_unsealed() -> None:
    assert unseal(seal(RECORD, KEY), "churn", PUBLIC) == RECORD


def test_any_changed_byte_is_found() -> None:
    raw = seal(RECORD, KEY)
    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1
        with pytest.raises(UntrustedRecord):
            unseal(bytes(changed), "churn", PUBLIC)


def test_a_record_of_somebody_elses_key_is_refused() -> None:
    with pytest.raises(UntrustedRecord, match="not signed by this registry"):
        unseal(seal(RECORD, Ed25519PrivateKey.generate()), "churn", PUBLIC)


def test_the_signature_of_another_record_does_not_fit() -> None:
    one, other = signed(seal(RECORD, KEY)), signed(seal(record(revision=4), KEY))
    swapped = wire.SignedRecord(record=one.record, ed25519=other.ed25519)
    with pytest.raises(UntrustedRecord):
        unseal(swapped.SerializeToString(), "churn", PUBLIC)


def test_a_signature_over_the_record_alone_is_none_for_a_record() -> None:
    raw = RECORD.encode()
    forged = wire.SignedRecord(record=raw, ed25519=KEY.sign(raw)).SerializeToString()
    with pytest.raises(UntrustedRecord):
        unseal(forged, "churn", PUBLIC)
    assert unseal(wire.SignedRecord(record=raw, ed25519=KEY.sign(CONTEXT + raw)).SerializeToString(), "churn", PUBLIC)


@pytest.mark.parametrize("raw", [b"", b"\xff", b"garbage", wire.SignedRecord(record=b"x").SerializeToString()])
def test_what_is_no_signed_record_is_refused(raw: bytes) -> None:
    with pytest.raises(UntrustedRecord):
        unseal(raw, "churn", PUBLIC)


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff\xff",
        wire.ModelRecord(model_id="churn", versions=[wire.VersionRecord(version="1.0.0")]).SerializeToString(),
    ],
)
def test_signed_bytes_that_are_no_record_are_refused(raw: bytes) -> None:
    sealed = wire.SignedRecord(record=raw, ed25519=KEY.sign(CONTEXT + raw)).SerializeToString()
    with pytest.raises(UntrustedRecord):
        unseal(sealed, "churn", PUBLIC)


def test_a_record_under_another_models_name_is_refused() -> None:
    with pytest.raises(UntrustedRecord, match="the record of credit_risk is the one of churn"):
        unseal(seal(RECORD, KEY), "credit_risk", PUBLIC)


def test_an_old_record_put_back_is_refused() -> None:
    with pytest.raises(UntrustedRecord, match="went back from revision 3 to 2"):
        unseal(seal(record(revision=2), KEY), "churn", PUBLIC, RECORD)


def test_the_same_and_a_newer_revision_are_taken() -> None:
    assert unseal(seal(RECORD, KEY), "churn", PUBLIC, RECORD) == RECORD
    newer = record(version("1.0.0"), version("2.0.0"), revision=4)
    assert unseal(seal(newer, KEY), "churn", PUBLIC, RECORD) == newer


# ---------------------------------------------------------------- key files


def test_the_key_is_made_once_and_nobody_else_may_read_it(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "registry.key"
    first = private_key(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert private_key(path).private_bytes_raw() == first.private_bytes_raw()
    assert public_key(path.with_suffix(".pub")).public_bytes_raw() == first.public_key().public_bytes_raw()


def test_the_key_of_nobody_else_may_read_holds_under_a_generous_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        private_key(tmp_path / "registry.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "registry.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("content", [b"", b"short", b"x" * 33, b"-----BEGIN PRIVATE KEY-----"])
def test_a_file_that_holds_no_key_is_named(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "registry.key"
    path.write_bytes(content)
    with pytest.raises(KeyUnusable, match="holds no Ed25519 private key"):
        private_key(path)
    with pytest.raises(KeyUnusable, match="holds no Ed25519 public key"):
        public_key(path)


def test_a_public_key_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyUnusable, match=str(tmp_path / "none.pub")):
        public_key(tmp_path / "none.pub")
