"""Publishers: whose version it is, and what is no proof of that; and what a file's name tells of a draft."""

from __future__ import annotations

import os
import stat
import subprocess
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from contract.settings import Settings
from contract.trust import (
    CONTEXT,
    KeyUnusable,
    UntrustedVersion,
    check_endorsed,
    endorse,
    new_publisher_key,
    publisher_key,
    publisher_keys,
    publisher_text,
)
from millstream.publish import guess, next_version
from registry.blobs import Blob
from registry.watch.layout import find_versions
from registry.watch.publishers import Publishers

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PUBLIC = KEY.public_key()
TEXT = publisher_text(PUBLIC)
DIGEST = "ab" * 32


def test_a_version_signed_by_a_trusted_publisher_is_taken() -> None:
    trusted = [OTHER.public_key(), PUBLIC]
    assert check_endorsed(endorse(DIGEST, KEY), DIGEST, trusted) == TEXT
    assert check_endorsed(endorse(DIGEST, KEY).replace(b"\n", b"\r\n\r\n"), DIGEST, trusted) == TEXT


def test_the_signature_of_another_version_does_not_fit() -> None:
    with pytest.raises(UntrustedVersion, match="not the one that was signed"):
        check_endorsed(endorse("cd" * 32, KEY), DIGEST, [PUBLIC])


def test_a_publisher_who_is_not_trusted_is_named() -> None:
    with pytest.raises(UntrustedVersion, match="nobody in trusted_publishers") as refused:
        check_endorsed(endorse(DIGEST, OTHER), DIGEST, [PUBLIC])
    assert publisher_text(OTHER.public_key()) in str(refused.value)


def test_a_trusted_name_before_somebody_elses_signature_is_no_proof() -> None:
    forged = endorse(DIGEST, OTHER).replace(publisher_text(OTHER.public_key()).encode(), TEXT.encode())
    with pytest.raises(UntrustedVersion, match="does not fit"):
        check_endorsed(forged, DIGEST, [PUBLIC])


def test_a_signature_made_for_something_else_is_none_for_a_version() -> None:
    for signed in (DIGEST.encode(), CONTEXT + DIGEST.encode()):
        raw = f"{TEXT} {b64encode(KEY.sign(signed)).decode()}\n".encode()
        with pytest.raises(UntrustedVersion):
            check_endorsed(raw, DIGEST, [PUBLIC])


def test_one_good_line_is_enough_whatever_else_there_is() -> None:
    raw = f"{TEXT} AAAA\n{TEXT}\nnonsense \xff\n".encode() + endorse(DIGEST, KEY)
    assert check_endorsed(raw, DIGEST, [PUBLIC]) == TEXT


@given(st.binary(max_size=300))
def test_whatever_stands_in_the_file_nothing_but_untrusted_version_is_raised(raw: bytes) -> None:
    for content in (raw, TEXT.encode() + b" " + raw):
        with pytest.raises(UntrustedVersion):
            check_endorsed(content, DIGEST, [PUBLIC])


def test_signing_again_replaces_ones_own_line_and_keeps_the_others() -> None:
    both = endorse(DIGEST, OTHER, endorse("cd" * 32, KEY))
    again = endorse(DIGEST, KEY, both)
    assert len(again.splitlines()) == 2
    for key in (KEY, OTHER):
        assert check_endorsed(again, DIGEST, [key.public_key()])


def test_a_key_pair_is_made_once_and_the_private_half_is_for_its_owner_alone(tmp_path: Path) -> None:
    mask = os.umask(0)
    try:
        text = new_publisher_key(tmp_path / "me.pem")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "me.pem").stat().st_mode) == 0o600
    assert (tmp_path / "me.pem.pub").read_text() == f"{text}\n"
    assert publisher_text(publisher_key(tmp_path / "me.pem").public_key()) == text
    for spared in ("me.pem", "me.pem.pub"):
        (tmp_path / spared).unlink()
        with pytest.raises(KeyUnusable, match="a key is never replaced"):
            new_publisher_key(tmp_path / "me.pem")
        (tmp_path / spared).write_text("x")
    with pytest.raises(KeyUnusable, match="No such file"):
        new_publisher_key(tmp_path / "absent/me.pem")


@pytest.mark.parametrize("content", [b"", b"x" * 32, b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_holds_no_private_key_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(KeyUnusable, match="holds no Ed25519 private key in PEM"):
        publisher_key(tmp_path / "key")


def test_a_key_that_openssl_made_is_one(tmp_path: Path) -> None:
    made = subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519"], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("this openssl makes no Ed25519 keys")
    (tmp_path / "key").write_bytes(made.stdout)
    key = publisher_key(tmp_path / "key")
    assert check_endorsed(endorse(DIGEST, key), DIGEST, [key.public_key()])


def test_publishers_are_listed_in_the_setting_or_in_a_file(tmp_path: Path) -> None:
    other = publisher_text(OTHER.public_key())
    (tmp_path / "publishers").write_text(f"# the risk team\n{TEXT} ann@example\n\n{other}  # and Ben\n")
    listed = Settings.read(trusted_publishers=f"{other}, {tmp_path / 'publishers'}").trusted_publishers
    assert [publisher_text(key) for key in publisher_keys(listed)] == [other, TEXT, other]


@pytest.mark.parametrize("entry", ["ed25519:AAAA", "ed25519:", f"{TEXT}!", "/absent/publishers", "\0"], ids=range(5))
def test_an_entry_that_is_no_key_and_no_file_is_refused(entry: str) -> None:
    with pytest.raises(KeyUnusable, match=r"no publisher's key|neither a publisher's key"):
        publisher_keys([entry])


def test_a_file_without_a_key_is_refused_since_an_empty_list_would_trust_everybody(tmp_path: Path) -> None:
    (tmp_path / "publishers").write_text("# nobody yet\n")
    with pytest.raises(KeyUnusable, match="holds no publisher's key"):
        publisher_keys([str(tmp_path / "publishers")])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("churn_v1.2.joblib", ("churn", "1.2")),
        ("churn-2.production.pkl", ("churn", "2")),
        ("late payer.joblib", ("late_payer", "")),
        ("top10.joblib", ("top10", "")),
        ("churn/1.4.0/model.joblib", ("churn", "1.4.0")),
        ("churn/v3/model.production.pkl", ("churn", "v3")),
        ("ärger_7.pkl", ("rger", "7")),
        ("_.pkl", ("model", "")),
    ],
)
def test_a_files_name_tells_model_and_version(name: str, expected: tuple[str, str], tmp_path: Path) -> None:
    assert guess(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("published", "expected"),
    [
        ([], "1.0.0"),
        (["1.0.0", "1.9.3", "1.10.2"], "1.11.0"),
        (["7"], "8"),
        (["2.1"], "2.2"),
        (["main", "1.0.0"], "1.1.0"),
        (["main"], "1.0.0"),
    ],
)
def test_the_next_version_follows_the_highest(published: list[str], expected: str) -> None:
    assert next_version(published) == expected


def listed(*names: str) -> list[Blob]:
    return [Blob(name, f"etag of {name}", 1, datetime(2026, 1, 1, tzinfo=UTC)) for name in names]


def test_publishers_signatures_stand_beside_folders_and_flat_files_and_count_as_a_change() -> None:
    plain = listed("a/1/model.pkl", "a/1/signature.json", "b_1.pkl", "b_1.signature.json", "c.pkl")
    signed = listed(*(blob.name for blob in plain), "a/1/signature.json.sig", "b_1.signature.json.sig", "c.pkl.sig")
    before, after = find_versions(plain), find_versions(signed)
    assert [each.place for each in before] == [each.place for each in after] == ["a/1", "b_1.signature.json", "c.pkl"]
    assert [each.endorsement.name if each.endorsement else "" for each in after] == [
        "a/1/signature.json.sig",
        "b_1.signature.json.sig",
        "",
    ]
    assert [dict(each.files) for each in after] == [dict(each.files) for each in before]
    same = [old.fingerprint == new.fingerprint for old, new in zip(before, after, strict=True)]
    assert same == [False, False, True]


def test_other_rules_have_everything_looked_at_again() -> None:
    blobs = listed("a/1/model.pkl", "a/1/signature.json")
    marks = [
        Publishers(keys).mark for keys in ([], [PUBLIC], [PUBLIC, OTHER.public_key()], [OTHER.public_key(), PUBLIC])
    ]
    prints = [found.fingerprint for mark in marks for found in find_versions(blobs, mark)]
    assert (prints[0], prints[3]) == (find_versions(blobs)[0].fingerprint, prints[2])
    assert len(set(prints)) == 3
