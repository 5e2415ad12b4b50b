"""Only what the registry recorded is unpickled: artifacts and records swapped in Redis, alone and together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consumers.model.formats import load_artifact
from consumers.worker.shelf import Shelf
from contract.catalog import Catalog
from contract.keys import Keys
from contract.record import ModelRecord, Routing
from protos import millstream_wire_v1_pb2 as wire
from tests.publishing import publish_files, put
from tests.trial_models import dumped, linear, runs, signature

pytestmark = pytest.mark.integration

KEY = Ed25519PrivateKey.generate()
SOMEBODY_ELSES = Ed25519PrivateKey.generate()
MODEL = "tried"


class Redis:
    """A model in a Redis that an attacker may write to, and a worker's shelf."""

    def __init__(self, client: redis.Redis, prefix: str, folder: Path) -> None:
        self.client = client
        self.keys = Keys(prefix)
        self.proof = folder / "it ran"
        self.bad = runs(f"open({str(self.proof)!r}, 'w').close()", linear())
        self.shelf = self.worker()

    def worker(self) -> Shelf:
        return Shelf(self.client, self.keys, Catalog(KEY.public_key()), ())

    def publish(self, content: bytes, version: str, key: Ed25519PrivateKey = KEY, revision: int = 0) -> ModelRecord:
        files = {"model.joblib": content}
        before = ModelRecord(MODEL, revision, {}, Routing())
        return publish_files(self.client, self.keys, key, signature(version=version), files, chunk=100, before=before)

    def swap(self, record: ModelRecord) -> None:
        """Puts the bad file's bytes where the recorded file's stand."""
        (version,) = record.versions.values()
        (artifact,) = version.artifacts
        for number in range(artifact.chunks):
            self.client.set(self.keys.chunk(artifact.sha256, number), self.bad if number == 0 else b"")


@pytest.fixture
def attacked(redis_client: redis.Redis, prefix: str, tmp_path: Path) -> Iterator[Redis]:
    yield Redis(redis_client, prefix, tmp_path)
    for key in redis_client.scan_iter(f"{prefix}:*"):
        redis_client.delete(key)


def digest(record: ModelRecord) -> bytes:
    (version,) = record.versions.values()
    return version.digest


def test_the_bad_file_runs_where_it_is_unpickled(attacked: Redis) -> None:
    """Otherwise nothing below says anything."""
    load_artifact("model.joblib", attacked.bad)
    assert attacked.proof.exists()


def test_a_swapped_artifact_is_refused_and_never_unpickled(attacked: Redis) -> None:
    record = attacked.publish(dumped(linear()), "1.0.0")
    attacked.swap(record)
    attacked.shelf.refresh()
    expected = "model.joblib is not the file that was recorded: its SHA-256 differs"
    assert attacked.shelf.failed == {digest(record).hex(): expected}
    assert attacked.shelf.loaded == frozenset()
    assert not attacked.proof.exists()


@pytest.mark.parametrize("newer", [False, True])
def test_a_swapped_record_is_refused_and_the_one_before_it_goes_on(attacked: Redis, newer: bool) -> None:
    """With the artifact that it names in its place: the attacker's own, under its right digest."""
    record = attacked.publish(dumped(linear()), "1.0.0")
    attacked.shelf.refresh()
    attacked.publish(attacked.bad, "2.0.0", SOMEBODY_ELSES, revision=9 if newer else 0)
    for shelf in (attacked.shelf, attacked.worker()):
        shelf.refresh()
        assert shelf.loaded == ({digest(record).hex()} if shelf is attacked.shelf else set())
    assert not attacked.proof.exists()


def test_a_record_with_the_signature_of_another_is_refused(attacked: Redis) -> None:
    attacked.publish(dumped(linear()), "1.0.0")
    signed = wire.SignedRecord.FromString(attacked.client.hget(attacked.keys.catalog, MODEL))  # type: ignore[arg-type]
    forged = attacked.publish(attacked.bad, "1.0.0", SOMEBODY_ELSES)
    swapped = wire.SignedRecord(record=forged.encode(), ed25519=signed.ed25519)
    attacked.client.hset(attacked.keys.catalog, MODEL, swapped.SerializeToString())
    attacked.shelf.refresh()
    assert (attacked.shelf.loaded, attacked.shelf.failed) == (frozenset(), {})
    assert not attacked.proof.exists()


def test_a_swapped_artifact_and_a_swapped_record_together_are_refused(attacked: Redis) -> None:
    """The record says what the artifact is now, in the name of the same version."""
    record = attacked.publish(dumped(linear()), "1.0.0")
    attacked.swap(record)
    forged = attacked.publish(attacked.bad, "1.0.0", SOMEBODY_ELSES, revision=5)
    assert forged.versions["1.0.0"].artifacts[0].sha256 == hashlib.sha256(attacked.bad).hexdigest()
    attacked.shelf.refresh()
    assert attacked.shelf.loaded == frozenset()
    # What the registry wrote itself is loaded as ever.
    put(attacked.client, attacked.keys, KEY, attacked.publish(dumped(linear()), "1.0.0", revision=6))
    attacked.shelf.refresh()
    assert attacked.shelf.loaded == {digest(record).hex()}
    assert not attacked.proof.exists()
