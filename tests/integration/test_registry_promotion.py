"""Promotion step by step: what is dropped, what two writers do to each other, how artifacts stand in Redis."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import duckdb
import pytest
import redis
import redis.asyncio

from contract import trust
from contract.connection import connect_async, show
from contract.keys import Keys
from contract.presence import Presence
from contract.record import LIVE, LOADING, RETIRING, ModelRecord
from contract.signature import parse_signature
from contract.trial import Verdict
from registry.acts import Acts
from registry.blobs import BlobChanged
from registry.blobs.directory import DirectoryStore
from registry.catalogue.catalogue import Catalogue, CatalogueUnusable
from registry.promotion.promotion import Promotion
from registry.promotion.records import Records
from registry.promotion.timeline import wanted
from registry.trial import OnTrial, Trial, TrialUnavailable
from registry.watch.artifacts import ArtifactKeys
from registry.watch.poll import StoreWatch

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
        show(self.client, Presence("worker", "a", revision=self.revision, loaded=digests).beat(self.keys))

    async def go_live(self, version: str) -> None:
        await self.watch.look()
        await self.promotion.tick()
        self.load_all()
        await self.promotion.tick()
        assert self.record.routing.production == version

    async def settle(self, ticks: int = 4) -> None:
        """As many steps as a version takes from RETIRING until it is dropped; the worker keeps up."""
        for _ in range(ticks):
            await self.promotion.tick()
            self.load_all()

    @property
    def revision(self) -> int:
        return int(cast("bytes | None", self.client.get(self.keys.catalog_revision)) or 0)

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


async def test_a_retired_version_goes_with_its_chunks_once_everybody_has_seen_it_retiring(bench: Bench) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    bench.publish("1.1.0")
    await bench.go_live("1.1.0")
    assert bench.chunks() == 6
    late = Presence("gateway", "g", revision=bench.revision - 1)
    show(bench.client, late.beat(bench.keys))
    await bench.settle()
    assert bench.states() == {"1.0.0": RETIRING, "1.1.0": LIVE}
    show(bench.client, replace(late, revision=bench.revision).beat(bench.keys))
    await bench.settle()
    assert bench.states() == {"1.1.0": LIVE}
    assert bench.chunks() == 3
    assert bench.catalogue.history("churn")[-1].act == "dropped"


async def test_a_worker_that_still_routes_by_the_record_before_keeps_a_retired_version(bench: Bench) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    bench.publish("1.1.0")
    await bench.go_live("1.1.0")
    for _ in range(5):
        await bench.promotion.tick()
    assert bench.states() == {"1.0.0": RETIRING, "1.1.0": LIVE}


@pytest.mark.parametrize("lane", ["requests", "bulk"])
async def test_a_retired_version_stays_while_an_entry_may_be_pinned_to_it(bench: Bench, lane: str) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    stream = getattr(bench.keys.model("churn"), lane)
    old = bench.client.xadd(stream, {"pb": b""})
    bench.client.xgroup_create(stream, "workers", "0")
    bench.client.xreadgroup("workers", "a", {stream: ">"})
    bench.publish("1.1.0")
    await bench.go_live("1.1.0")
    await bench.settle()
    assert bench.states() == {"1.0.0": RETIRING, "1.1.0": LIVE}
    new = bench.client.xadd(stream, {"pb": b""})  # younger than the mark: it keeps nothing
    bench.client.xack(stream, "workers", cast("bytes", old))
    bench.client.xdel(stream, cast("bytes", old))
    await bench.settle()
    assert bench.states() == {"1.1.0": LIVE}
    assert [entry[0] for entry in cast("list[tuple[bytes, object]]", bench.client.xrange(stream))] == [new]


async def test_chunks_that_another_version_shares_are_kept(bench: Bench) -> None:
    bench.publish("1.0.0", b"the same model")
    await bench.go_live("1.0.0")
    bench.publish("1.1.0", b"the same model")
    await bench.go_live("1.1.0")
    await bench.settle()
    assert bench.states() == {"1.1.0": LIVE}
    assert await bench.artifacts.present(bench.record.versions["1.1.0"].artifacts)


async def test_a_version_dropped_from_redis_is_fetched_again_when_it_is_wanted_again(bench: Bench) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    bench.publish("1.1.0")
    await bench.go_live("1.1.0")
    await bench.settle()
    assert bench.chunks() == 3
    bench.publish("1.1.0", status="retired")
    await bench.watch.look()
    await bench.promotion.tick()
    assert bench.watch.supply.wanted == {("churn", "1.0.0")}
    assert bench.promotion.waiting == {("churn", "1.0.0"): "it is being fetched and tried"}
    assert (await bench.watch.look()).downloaded == 1
    await bench.promotion.tick()
    assert bench.states() == {"1.1.0": LIVE, "1.0.0": LOADING}


async def test_only_the_version_that_would_go_live_is_put_into_redis(bench: Bench) -> None:
    for version in ("0.8.0", "1.0.0", "0.9.0"):
        bench.publish(version)
    assert (await bench.watch.look()).downloaded == 3
    assert bench.chunks() == 3
    assert bench.watch.supply.wanted == set()


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

    async def trial(signature_json: bytes, artifacts: Sequence[OnTrial]) -> Verdict:
        signature, _ = parse_signature(signature_json)
        tried.append(signature.version)
        content = b"".join([chunk async for chunk in artifacts[0].chunks()])
        return Verdict("it ended the process that loaded it" if content == b"bad" else "")

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


async def test_a_version_that_can_t_be_tried_now_waits_and_is_tried_again(bench: Bench) -> None:
    answers: list[Verdict | None] = [None, Verdict(warnings=("trained with another version of its library",))]

    async def trial(signature_json: bytes, artifacts: Sequence[OnTrial]) -> Verdict:
        verdict = answers.pop(0)
        if verdict is None:
            raise TrialUnavailable("nobody is there to try it")
        return verdict

    bench.catalogue.close()
    bench.open(trial=trial)
    bench.publish("1.0.0")
    look = await bench.watch.look()
    assert look.problems == ("churn/1.0.0: nobody is there to try it",)
    await bench.promotion.tick()
    assert bench.client.hexists(bench.keys.catalog, "churn") is False
    assert bench.promotion.waiting["churn", "1.0.0"] == "nobody is there to try it"
    await bench.watch.look()
    await bench.promotion.tick()
    assert bench.states() == {"1.0.0": LOADING}
    assert bench.catalogue.versions["churn", "1.0.0"].refused == ""
    assert bench.catalogue.places["churn/1.0.0"].warnings == ("trained with another version of its library",)


async def test_a_write_over_a_record_that_changed_meanwhile_does_nothing(bench: Bench) -> None:
    bench.publish("1.0.0")
    await bench.go_live("1.0.0")
    key = trust.private_key(bench.folder / "registry.key")
    records = Records(bench.aclient, bench.keys, key, bench.catalogue)
    await records.read()
    bench.client.hset(bench.keys.catalog, "churn", b"somebody else's")
    assert await records.write(records.good["churn"]) is False
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


# ---------------------------------------------------------------- the registry ends between two steps

Step = Callable[[Bench], Awaitable[object]]


async def look(bench: Bench) -> None:
    await bench.watch.look()


async def tick(bench: Bench) -> None:
    await bench.promotion.tick()


async def load(bench: Bench) -> None:
    bench.load_all()


async def publish_second(bench: Bench) -> None:
    bench.publish("1.1.0")


async def roll_back(bench: Bench) -> None:
    await Acts(bench.catalogue, bench.promotion).rollback("churn", "alice")


STEPS: tuple[Step, ...] = (look, tick, load, tick, publish_second, look, tick, load, tick, roll_back, tick, load, tick)


@pytest.mark.parametrize("lost", ["catalogue", "redis"])
@pytest.mark.parametrize("at", [place for place, step in enumerate(STEPS) if step is tick])
async def test_a_step_that_only_one_of_redis_and_catalogue_knows_is_made_up_for(
    bench: Bench, at: int, lost: str
) -> None:
    bench.publish("1.0.0")
    database, key = bench.folder / "registry.duckdb", bench.keys.catalog
    for place, step in enumerate(STEPS):
        if place == at:
            bench.catalogue.close()
            shutil.copy(database, bench.folder / "before")
            before = cast("bytes | None", bench.client.hget(key, "churn"))
            bench.open()
            await bench.promotion.adopt()
        await step(bench)
        if place == at:  # killed; one of the two has not got what was written last
            bench.catalogue.close()
            if lost == "catalogue":
                shutil.copy(bench.folder / "before", database)
            elif before is None:
                bench.client.hdel(key, "churn")
            else:
                bench.client.hset(key, "churn", before)
            bench.open()
            await bench.promotion.adopt()
            await bench.watch.look()
            await bench.promotion.tick()
            if bench.client.hexists(key, "churn"):
                bench.load_all()
            await bench.promotion.tick()
    await bench.settle(ticks=8)
    assert bench.states() == {"1.0.0": LIVE}
    assert bench.record.routing.production == "1.0.0"
    assert bench.chunks() == 3
    assert [act.act for act in bench.catalogue.history("churn")].count("rollback") == 1
    assert bench.revision >= bench.record.revision > 0


async def test_an_act_is_the_newest_statement_though_the_clock_was_set_back(bench: Bench) -> None:
    bench.publish("1.0.0")
    bench.publish("1.1.0", status="staging")
    await bench.go_live("1.0.0")
    ahead = replace(bench.catalogue.statements["churn"][0], at=datetime(2099, 1, 1, tzinfo=UTC), word="production")
    bench.catalogue.state(ahead)
    await Acts(bench.catalogue, bench.promotion).promote("churn", "1.1.0", "alice")
    goal = bench.promotion.wanted("churn")
    assert goal.production is not None
    assert goal.production.version.version == "1.1.0"


class OnceChanged(DirectoryStore):
    """A directory one of whose blobs is being written when it is first read."""

    async def read(
        self, name: str, *, if_match: str | None = None, progress: Callable[[int, int], None] | None = None
    ) -> AsyncGenerator[bytes, None]:
        if "1.0.0" in name and not hasattr(self, "was_read"):
            self.was_read = True
            raise BlobChanged(f"{name} was written again")
        async for piece in super().read(name, if_match=if_match, progress=progress):
            yield piece


async def test_a_tag_counts_from_when_it_was_listed_and_not_from_when_it_could_be_read(bench: Bench) -> None:
    bench.publish("1.1.0")
    bench.publish("1.0.0")
    bench.watch = StoreWatch(OnceChanged(bench.store), bench.catalogue, bench.artifacts, bench.folder)
    assert len((await bench.watch.look()).problems) == 1
    bench.catalogue.close()  # nor from when the registry came back
    bench.open()
    assert (await bench.watch.look()).downloaded == 1
    first, second = bench.catalogue.statements["churn"]
    assert first.at == second.at
    goal = bench.promotion.wanted("churn")
    assert goal.production is not None
    assert goal.production.version.version == "1.1.0"


async def test_chunks_that_a_crash_left_behind_go_at_the_next_start(bench: Bench) -> None:
    bench.publish("1.0.0")
    bench.publish("0.9.0", status="staging")
    await bench.go_live("1.0.0")
    left = bench.catalogue.versions["churn", "0.9.0"].artifacts[0]
    for number in range(2):
        bench.client.set(bench.keys.chunk(left.sha256, number), b"0.9.0" * 200)
    assert bench.chunks() == 5
    bench.catalogue.close()
    bench.open()
    await bench.promotion.adopt()
    await bench.promotion.tick()
    assert bench.chunks() == 3


async def test_a_canary_that_a_new_worker_cannot_load_does_not_keep_it_from_production(bench: Bench) -> None:
    bench.publish("1.0.0")
    bench.publish("1.1.0", status="canary")
    await bench.go_live("1.0.0")
    for _ in range(3):
        await bench.promotion.tick()
        bench.load_all()
    assert bench.record.routing.canary == "1.1.0"
    digest = bench.record.versions["1.1.0"].digest.hex()
    show(bench.client, Presence("worker", "b", failed={digest: "no module named torch"}).beat(bench.keys))
    await bench.promotion.tick()
    await bench.promotion.tick()
    assert bench.record.routing.canary == ""
    assert bench.states()["1.0.0"] == LIVE
    assert bench.catalogue.versions["churn", "1.1.0"].refused == "worker b cannot load it: no module named torch"


def test_a_catalogue_from_before_there_was_a_timeline_is_read_as_it_was_meant(tmp_path: Path) -> None:
    with duckdb.connect(str(tmp_path / "registry.duckdb")) as db:
        db.execute(
            """
            CREATE TABLE models (model_id VARCHAR PRIMARY KEY, revision UBIGINT NOT NULL, record BLOB NOT NULL);
            CREATE TABLE versions (
                model_id VARCHAR, version VARCHAR, digest VARCHAR NOT NULL, signature_json BLOB NOT NULL,
                trained_date VARCHAR NOT NULL, location VARCHAR NOT NULL, tag VARCHAR NOT NULL, place VARCHAR NOT NULL,
                refused VARCHAR NOT NULL, first_seen TIMESTAMPTZ NOT NULL, PRIMARY KEY (model_id, version));
            CREATE TABLE history (
                noted TIMESTAMPTZ NOT NULL, model_id VARCHAR NOT NULL, version VARCHAR NOT NULL,
                digest VARCHAR NOT NULL, act VARCHAR NOT NULL, detail VARCHAR NOT NULL);
            INSERT INTO versions VALUES
                ('churn', '1.1.0', 'b', '{}', '2023-10-25', 'x', 'production', 'p1', '', '2026-01-01 00:00:00+00'),
                ('churn', '1.0.0', 'a', '{}', '2023-10-25', 'x', 'production', 'p0', '', '2026-01-02 00:00:00+00');
            INSERT INTO history VALUES ('2026-01-01 00:00:00+00', 'churn', '1.1.0', 'b', 'found', 'tagged');
            """
        )
    for _ in range(2):
        catalogue = Catalogue(tmp_path / "registry.duckdb")
        goal = wanted(catalogue.versions.values(), catalogue.statements["churn"])
        assert goal.production is not None
        assert goal.production.version.version == "1.1.0"  # found first, and the highest as it always counted
        assert [(act.act, act.by) for act in catalogue.history("churn")] == [("found", "")]
        catalogue.close()
