"""Promotion step by step: what is dropped, what two writers do to each other, how artifacts stand in Redis."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import cast

import pytest
import redis
import redis.asyncio

from contract import trust
from contract.connection import connect_async, show
from contract.keys import Keys
from contract.presence import Presence
from contract.record import LIVE, LOADING, RETIRING, ModelRecord
from contract.signature import parse_signature
from registry.artifacts import ArtifactKeys
from registry.blobs.directory import DirectoryStore
from registry.catalogue import Catalogue, CatalogueUnusable
from registry.poll import StoreWatch, Trial
from registry.promotion import Promotion

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


class Bench:
    """The registry's parts, turned by hand."""

    def __init__(self, folder: Path, client: redis.Redis, aclient: redis.asyncio.Redis, prefix: str) -> None:
        self.store = folder / "store"
        self.store.mkdir(exist_ok=True)
        self.client = client
        self.keys = Keys(prefix)
        self.folder = folder
        self.aclient = aclient
        self.told: list[tuple[str, int, int]] = []
        self.open()

    def open(self, chunk_bytes: int = 1000, trial: Trial | None = None) -> None:
        key = trust.private_key(self.folder / "registry.key")
        self.catalogue = Catalogue(self.folder / "registry.duckdb")
        self.artifacts = ArtifactKeys(self.aclient, self.keys, chunk_bytes)
        store = DirectoryStore(self.store)
        self.watch = StoreWatch(
            store, self.catalogue, self.artifacts, self.folder, lambda *at: self.told.append(at), trial
        )
        self.promotion = Promotion(
            self.aclient, self.keys, key, self.catalogue, self.watch, self.artifacts, load_limit_s=60, retire_after_s=0
        )

    def tell(self, blob: str, done: int, size: int) -> None:
        self.told.append((blob, done, size))

    def publish(self, version: str, content: bytes = b"", **other: object) -> None:
        folder = self.store / "churn" / version
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.joblib").write_bytes(content or version.encode() * 500)
        signature = {
            "model_id": "churn",
            "version": version,
            "trained_date": "2023-10-25",
            "status": "production",
            "azure_location": "ai-models",
            "expected_features": [{"index": 0, "name": "age", "type": "int"}],
            **other,
        }
        (folder / "signature.json").write_text(json.dumps(signature))

    def load_all(self) -> None:
        """A worker that has loaded all that the record holds."""
        digests = frozenset(version.digest.hex() for version in self.record.versions.values())
        show(self.client, Presence("worker", "a", loaded=digests).beat(self.keys))

    async def go_live(self, version: str) -> None:
        await self.watch.look()
        await self.promotion.tick()
        self.load_all()
        await self.promotion.tick()
        assert self.record.routing.production == version

    @property
    def record(self) -> ModelRecord:
        raw = cast("bytes", self.client.hget(self.keys.catalog, "churn"))
        return trust.unseal(raw, "churn", trust.public_key(self.folder / "registry.pub"))

    def states(self) -> dict[str, int]:
        return {name: version.state for name, version in self.record.versions.items()}

    def chunks(self) -> int:
        return sum(1 for _ in self.client.scan_iter(f"{self.keys.prefix}:{{{'?' * 64}}}:*"))


@pytest.fixture
async def bench(tmp_path: Path, redis_url: str, redis_client: redis.Redis, prefix: str) -> AsyncIterator[Bench]:
    async with connect_async(redis_url) as aclient:
        bench = Bench(tmp_path, redis_client, aclient, prefix)
        yield bench
        bench.catalogue.close()
    for key in redis_client.scan_iter(f"{prefix}:*"):
        redis_client.delete(key)


async def test_a_retired_version_goes_with_its_chunks_two_looks_later(bench: Bench) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    bench.publish("1.1.0")
    await bench.go_live("1.1.0")
    assert bench.states() == {"1.0.0": RETIRING, "1.1.0": LIVE}
    assert bench.chunks() == 6
    await bench.promotion.tick()
    await bench.watch.look()
    await bench.promotion.tick()
    assert bench.states() == {"1.0.0": RETIRING, "1.1.0": LIVE}
    await bench.watch.look()
    await bench.promotion.tick()
    assert bench.states() == {"1.1.0": LIVE}
    assert bench.chunks() == 3
    assert bench.catalogue.history("churn")[-1].act == "dropped"


@pytest.mark.parametrize("lane", ["requests", "bulk"])
async def test_a_retired_version_stays_while_an_entry_may_be_pinned_to_it(bench: Bench, lane: str) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    bench.publish("1.1.0")
    await bench.go_live("1.1.0")
    stream = getattr(bench.keys.model("churn"), lane)
    bench.client.xadd(stream, {"pb": b""})
    for _ in range(4):
        await bench.watch.look()
        await bench.promotion.tick()
    assert bench.states() == {"1.0.0": RETIRING, "1.1.0": LIVE}
    bench.client.delete(stream)
    await bench.promotion.tick()
    assert bench.states() == {"1.1.0": LIVE}


async def test_chunks_that_another_version_shares_are_kept(bench: Bench) -> None:
    bench.publish("1.0.0", b"the same model")
    await bench.go_live("1.0.0")
    bench.publish("1.1.0", b"the same model")
    await bench.go_live("1.1.0")
    await bench.promotion.tick()
    for _ in range(2):
        await bench.watch.look()
        await bench.promotion.tick()
    assert bench.states() == {"1.1.0": LIVE}
    assert await bench.artifacts.present(bench.record.versions["1.1.0"].artifacts)


async def test_a_version_dropped_from_redis_is_fetched_again_when_it_is_wanted_again(bench: Bench) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    bench.publish("1.1.0")
    await bench.go_live("1.1.0")
    await bench.promotion.tick()
    for _ in range(2):
        await bench.watch.look()
        await bench.promotion.tick()
    bench.publish("1.1.0", status="retired")
    await bench.watch.look()
    await bench.promotion.tick()
    assert bench.watch.wanted == {("churn", "1.0.0")}
    assert bench.promotion.waiting == {("churn", "1.0.0"): "it is being fetched and tried"}
    assert (await bench.watch.look()).downloaded == 1
    await bench.promotion.tick()
    assert bench.states() == {"1.1.0": LIVE, "1.0.0": LOADING}


async def test_only_the_version_that_would_go_live_is_put_into_redis(bench: Bench) -> None:
    for version in ("0.8.0", "1.0.0", "0.9.0"):
        bench.publish(version)
    assert (await bench.watch.look()).downloaded == 3
    assert bench.chunks() == 3
    assert bench.watch.wanted == set()


async def test_a_version_that_is_overtaken_while_it_loads_is_withdrawn(bench: Bench) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    bench.publish("1.1.0")
    await bench.watch.look()
    await bench.promotion.tick()
    assert bench.states() == {"1.0.0": LIVE, "1.1.0": LOADING}
    bench.publish("1.2.0")
    await bench.watch.look()
    await bench.promotion.tick()
    assert bench.states() == {"1.0.0": LIVE, "1.2.0": LOADING}
    bench.publish("1.2.0", status="staging")
    bench.publish("1.1.0", status="staging")
    await bench.watch.look()
    await bench.promotion.tick()
    assert bench.states() == {"1.0.0": LIVE}


async def test_a_version_that_fails_its_trial_is_never_offered_to_a_worker(bench: Bench) -> None:
    tried: list[str] = []

    async def trial(signature_json: bytes, artifacts: Mapping[str, bytes]) -> str:
        signature, _ = parse_signature(signature_json)
        tried.append(signature.version)
        return "it ended the process that loaded it" if artifacts["model.joblib"] == b"bad" else ""

    bench.catalogue.close()
    bench.open(trial=trial)
    bench.publish("1.0.0")
    bench.publish("1.1.0")
    bench.publish("2.0.0", b"bad")
    await bench.watch.look()
    await bench.promotion.tick()
    await bench.watch.look()  # the next best had not been tried yet
    await bench.promotion.tick()
    assert bench.states() == {"1.1.0": LOADING}
    assert tried == ["2.0.0", "1.1.0"]
    assert bench.catalogue.versions["churn", "2.0.0"].refused == "it ended the process that loaded it"
    await bench.watch.look()
    await bench.promotion.tick()
    assert tried == ["2.0.0", "1.1.0"]


async def test_a_write_over_a_record_that_changed_meanwhile_does_nothing(bench: Bench) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    record = bench.promotion.records["churn"]
    bench.client.hset(bench.keys.catalog, "churn", b"somebody else's")
    assert await bench.promotion._write(record) is False
    assert bench.client.hget(bench.keys.catalog, "churn") == b"somebody else's"
    assert await bench.promotion.tick() is True
    assert bench.states() == {"1.0.0": LIVE}


async def test_another_chunk_size_leaves_what_is_there_and_cuts_anew_what_was_lost(bench: Bench) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    before = bench.record
    bench.catalogue.close()
    bench.open(chunk_bytes=500)
    await bench.promotion.adopt()
    await bench.watch.look()
    assert await bench.promotion.tick() is False
    assert bench.record == before
    (artifact,) = before.versions["1.0.0"].artifacts
    bench.client.delete(bench.keys.chunk(artifact.sha256, 2))
    await bench.promotion.tick()
    await bench.watch.look()
    await bench.promotion.tick()
    (artifact,) = bench.record.versions["1.0.0"].artifacts
    assert artifact.chunks == 5
    parts = [cast("bytes", bench.client.get(bench.keys.chunk(artifact.sha256, i))) for i in range(5)]
    assert hashlib.sha256(b"".join(parts)).hexdigest() == artifact.sha256


async def test_an_empty_artifact_is_one_empty_chunk(bench: Bench) -> None:
    bench.publish("1.0.0")
    (bench.store / "churn/1.0.0/marker.txt").write_bytes(b"")
    await bench.go_live("1.0.0")
    empty = next(a for a in bench.record.versions["1.0.0"].artifacts if a.name == "marker.txt")
    assert (empty.size, empty.chunks) == (0, 1)
    assert bench.client.get(bench.keys.chunk(empty.sha256, 0)) == b""
    bench.client.delete(bench.keys.chunk(empty.sha256, 0))
    assert not await bench.artifacts.present([empty])


async def test_a_download_tells_how_far_it_is(bench: Bench) -> None:
    bench.publish("1.0.0")
    await bench.watch.look()
    assert bench.told == [("churn/1.0.0/model.joblib", 2500, 2500)]


async def test_nothing_of_a_download_is_left_on_disk(bench: Bench) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    left = {path.name for path in bench.folder.iterdir() if path.is_file()}
    assert left - {"registry.duckdb.wal"} == {"registry.duckdb", "registry.key", "registry.pub"}


async def test_a_model_whose_keys_are_broken_does_not_stop_the_others(bench: Bench) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    bench.publish("1.1.0")
    await bench.go_live("1.1.0")
    bench.client.set(bench.keys.model("churn").requests, "no stream")
    (bench.store / "zebra").mkdir()
    (bench.store / "churn" / "1.1.0").rename(bench.store / "zebra" / "1.1.0")
    signature = json.loads((bench.store / "zebra/1.1.0/signature.json").read_text())
    (bench.store / "zebra/1.1.0/signature.json").write_text(json.dumps({**signature, "model_id": "zebra"}))
    for _ in range(3):
        await bench.watch.look()
        await bench.promotion.tick()
    assert bench.client.hexists(bench.keys.catalog, "zebra")
    assert bench.states() == {"1.0.0": RETIRING, "1.1.0": LIVE}


async def test_what_is_on_record_outlives_the_process(bench: Bench) -> None:
    bench.publish("1.0.0", colour="green")
    (bench.store / "lone.pkl").write_bytes(b"a model")
    await bench.go_live("1.0.0")
    versions, places, records = bench.catalogue.versions, bench.catalogue.places, bench.catalogue.records
    history = bench.catalogue.history()
    bench.catalogue.close()
    bench.open()
    assert bench.catalogue.versions == versions
    assert bench.catalogue.places == places
    assert bench.catalogue.records == records
    assert bench.catalogue.history() == history
    assert [act.act for act in history] == ["found", "refused", "loading", "live"]


def test_a_catalogue_in_a_place_that_is_no_folder_is_refused_plainly(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogueUnusable, match=r"cannot use .*registry\.duckdb as the registry's catalogue"):
        Catalogue(tmp_path / "file" / "registry.duckdb")
