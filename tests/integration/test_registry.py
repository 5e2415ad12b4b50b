"""The registry process against a real server and a real store."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import anyio
import grpc
import pytest
from anyio import to_thread

from contract import trust
from contract.connection import living, show
from contract.presence import ALL, Presence
from contract.record import LIVE, LOADING, RETIRING, ModelRecord, Routing
from contract.settings import Settings
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as rpc
from registry.app import CannotListen, run_registry
from registry.catalogue.catalogue import CatalogueUnusable
from tests.conditions import eventually, eventually_async
from tests.publishing import put
from tests.registry_world import World, says, signature
from tests.servers import Azurite, RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


async def test_a_version_waits_for_workers_and_goes_live_once_they_have_it(world: World) -> None:
    world.publish()
    async with world.registry():
        loading = await world.until(v1_0_0=LOADING)
        assert loading.routing.production == ""
        await says(world.shown, {"churn 1.0.0": ("loading", "no worker is running to load it")})
        async with world.workers("a", "b"):
            live = await world.until(v1_0_0=LIVE)
        assert live.routing == Routing(production="1.0.0")
        assert live.revision > loading.revision
        assert [artifact.chunks for artifact in live.versions["1.0.0"].artifacts] == [3]
        assert live.versions["1.0.0"].location == f"{world.store.as_uri()}/churn/1.0.0"
        await says(world.shown, {"churn 1.0.0": ("live", "")})
        assert await world.acts() == [("1.0.0", "found"), ("1.0.0", "loading"), ("1.0.0", "live")]


async def test_a_new_production_version_takes_over_while_the_old_one_goes_on(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        before = await world.until(v1_0_0=LIVE)
        revision = int(world.client.get(world.keys.catalog_revision) or 0)
        world.publish(version="1.1.0")
        assert (await world.sync()).changes == [
            f"churn 1.1.0: found, tagged production, in {world.store.as_uri()}/churn/1.1.0"
        ]
        after = await world.until(v1_0_0=RETIRING, v1_1_0=LIVE)
        assert after.routing.production == "1.1.0"
        assert after.revision == before.revision + 2
        assert int(world.client.get(world.keys.catalog_revision) or 0) == revision + 2
        assert (await world.shown())["churn 1.0.0"] == ("retiring", "1.1.0 answers instead")
        assert (await world.acts())[-3:] == [("1.1.0", "loading"), ("1.1.0", "live"), ("1.0.0", "superseded")]


async def test_of_versions_seen_together_the_highest_takes_over_and_a_staging_one_never_does(world: World) -> None:
    for version in ("1.9.0", "1.10.0", "1.2.0"):
        world.publish(version=version)
    world.publish(version="2.0.0", status="staging")
    async with world.registry(), world.workers("a"):
        await world.until(v1_10_0=LIVE)
        await says(
            world.shown,
            {
                "churn 1.10.0": ("live", ""),
                "churn 1.2.0": ("superseded", "1.10.0 answers instead"),
                "churn 1.9.0": ("superseded", "1.10.0 answers instead"),
                "churn 2.0.0": ("staging", "tagged staging, not production"),
            },
        )


async def test_a_file_renamed_to_say_production_promotes_its_version(world: World) -> None:
    world.publish()
    folder = world.publish(version="1.1.0", status="staging")
    async with world.registry(), world.workers("a"):
        await world.until(v1_0_0=LIVE)
        digest = {row.version: row.digest for row in await world.listed()}["1.1.0"]
        (folder / "model.joblib").rename(folder / "model.production.joblib")
        assert (await world.sync()).changes == ["churn 1.1.0: tagged, production; was staging"]
        after = await world.until(v1_0_0=RETIRING, v1_1_0=LIVE)
        assert after.versions["1.1.0"].digest.hex() == digest


async def test_taking_the_tag_away_goes_back_to_the_version_before(world: World) -> None:
    world.publish()
    world.publish(version="1.1.0")
    async with world.registry(), world.workers("a"):
        await world.until(v1_1_0=LIVE)
        world.publish(version="1.1.0", status="retired")
        await world.sync()
        await world.until(v1_0_0=LIVE, v1_1_0=RETIRING)
        world.publish(version="1.0.0", status="retired")
        await world.sync()
        assert world.states() == {"1.0.0": LIVE, "1.1.0": RETIRING}


async def test_a_signature_that_lacks_a_comma_is_refused_with_line_and_column_and_others_are_served(
    world: World,
) -> None:
    world.publish("roi_prediction")
    broken = world.publish() / "signature.json"
    broken.write_text('{\n  "model_id": "churn"\n  "version": "1.0.0"\n}')
    async with world.registry(), world.workers("a"):
        await world.until("roi_prediction", v1_0_0=LIVE)
        (row,) = await world.listed("churn")
        assert (row.state, row.version) == ("refused", "1.0.0")
        assert row.problem.startswith("churn/1.0.0/signature.json: line 3, column 3: ")
        assert world.record() is None
        assert await world.acts() == [("1.0.0", "refused")]

        world.publish()
        assert (await world.sync()).problems == []
        await world.until(v1_0_0=LIVE)
        assert [row.state for row in await world.listed("churn")] == ["live"]


async def test_a_missing_artifact_is_named(world: World) -> None:
    (world.publish(transforms=["scaler.joblib"]) / "model.joblib").rename(world.store / "churn/1.0.0/model.pkl")
    async with world.registry():
        assert await world.shown() == {
            "churn 1.0.0": ("refused", "scaler.joblib is named in the signature and missing; there are: model.pkl")
        }


async def test_other_contents_under_a_version_on_record_are_refused_and_the_first_stay_live(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        live = await world.until(v1_0_0=LIVE)
        world.publish(content=b"something else")
        (problem,) = (await world.sync()).problems
        assert problem.startswith("churn/1.0.0: versions are immutable: churn 1.0.0 is on record with digest ")
        rows = {row.state: row.problem for row in await world.listed()}
        assert rows["live"] == ""
        assert rows["refused"].startswith("versions are immutable")
        assert world.record() == live


async def test_of_two_folders_with_one_version_the_second_is_refused_unless_it_is_a_copy(world: World) -> None:
    folder = world.publish()
    shutil.copytree(folder, world.store / "copy" / "1.0.0")
    other = world.store / "other" / "1.0.0"
    shutil.copytree(folder, other)
    (other / "model.joblib").write_bytes(b"something else")
    async with world.registry(), world.workers("a"):
        live = await world.until(v1_0_0=LIVE)
        assert live.versions["1.0.0"].artifacts[0].size == len(b"churn 1.0.0" * 200)
        rows = await world.listed()
        assert [(row.state, row.location.rpartition("/store/")[2]) for row in rows] == [
            ("live", "churn/1.0.0"),
            ("refused", "other/1.0.0"),
        ]


async def test_a_version_that_a_worker_cannot_load_leaves_the_old_one_live_and_is_not_tried_again(
    world: World,
) -> None:
    world.publish()
    async with world.registry(), world.workers("a"), world.workers("b", failing="2.0.0"):
        await world.until(v1_0_0=LIVE)
        folder = world.publish(version="2.0.0")
        await world.sync()
        reason = "worker b cannot load it: it is no model"
        await says(world.shown, {"churn 1.0.0": ("live", ""), "churn 2.0.0": ("refused", reason)})
        await world.until(v1_0_0=LIVE)
        before = await world.acts()
        await world.sync()
        assert await world.acts() == before
        # Written anew, with the same contents, it is tried anew.
        world.publish(version="2.0.0", content=(folder / "model.joblib").read_bytes())
        await world.sync()
        await says(world.acts, [*before, ("2.0.0", "loading"), ("2.0.0", "refused")])


async def test_after_a_refusal_the_next_best_version_is_tried(world: World) -> None:
    for version in ("1.0.0", "1.1.0", "2.0.0"):
        world.publish(version=version)
    async with world.registry(), world.workers("a", failing="2.0.0"):
        live = await world.until(v1_1_0=LIVE)
        assert live.routing.production == "1.1.0"


async def test_a_version_that_one_worker_never_loads_is_given_up_after_the_limit(world: World) -> None:
    world.settings["load_limit_s"] = 0.3
    world.publish()
    async with world.registry():
        await world.until(v1_0_0=LOADING)
        show(world.client, Presence("worker", "stuck").beat(world.keys))
        reason = "not loaded within 0.3 s by 1 of 1 workers: stuck"
        await says(world.shown, {"churn 1.0.0": ("refused", reason)})
        assert world.states() == {}


async def test_an_unchanged_store_costs_no_download(world: World) -> None:
    world.publish()
    world.publish(version="0.9.0")
    async with world.registry(), world.workers("a"):
        await world.until(v1_0_0=LIVE)
        again = await world.sync()
        assert (again.listed, again.downloaded, list(again.changes), list(again.problems)) == (4, 0, [], [])


async def test_after_a_restart_nothing_is_downloaded_and_nothing_changes(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        live = await world.until(v1_0_0=LIVE)
        first = await world.listed()
        acts = await world.acts()
    async with world.registry(), world.workers("a"):
        assert (await world.sync()).downloaded == 0
        assert world.record() == live
        assert await world.listed() == first
        assert await world.acts() == acts


async def test_a_restarted_registry_goes_on_where_it_stopped(world: World) -> None:
    world.publish()
    async with world.registry():
        loading = await world.until(v1_0_0=LOADING)
    async with world.registry(), world.workers("a"):
        live = await world.until(v1_0_0=LIVE)
        assert live.revision == loading.revision + 1


async def test_without_its_database_it_takes_over_what_is_live_and_raises_revisions_further(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        live = await world.until(v1_0_0=LIVE)
    (world.state / "registry.duckdb").unlink()
    async with world.registry(), world.workers("a"):
        assert world.record() == live
        world.publish(content=b"other contents under a known version")
        assert len((await world.sync()).problems) == 1
        assert world.record() == live
        world.publish(version="1.1.0")
        await world.sync()
        after = await world.until(v1_0_0=RETIRING, v1_1_0=LIVE)
        assert after.revision > live.revision


@pytest.mark.parametrize("restarted", [False, True])
async def test_what_a_redis_without_memory_lost_is_written_again(world: World, restarted: bool) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        live = await world.until(v1_0_0=LIVE)
        await says(world.last_act, ("1.0.0", "live"))  # the catalogue has it too: written after Redis
        revision = int(world.client.get(world.keys.catalog_revision) or 0)
        if not restarted:
            world.forget()
            after = await world.until(v1_0_0=LIVE)
            await says(world.last_act, ("1.0.0", "restored"))
    if restarted:
        world.forget()
        async with world.registry(), world.workers("a"):
            after = await world.until(v1_0_0=LIVE)
            await says(world.last_act, ("1.0.0", "restored"))
    assert world.holds(after.versions["1.0.0"].artifacts)
    assert after.revision > live.revision
    assert int(world.client.get(world.keys.catalog_revision) or 0) > revision


async def test_a_lost_chunk_comes_back(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        live = await world.until(v1_0_0=LIVE)
        (artifact,) = live.versions["1.0.0"].artifacts
        world.client.delete(world.keys.chunk(artifact.sha256, 1))

        async def is_back() -> bool:
            return world.holds([artifact])

        await eventually_async(is_back, within=10)
        assert world.record() == live


async def test_a_record_that_somebody_else_wrote_is_replaced(world: World) -> None:
    world.publish()
    async with world.registry():
        async with world.workers("a"):
            live = await world.until(v1_0_0=LIVE)
        stranger = trust.private_key(world.state / "stranger.key")
        put(world.client, world.keys, stranger, ModelRecord("churn", 99, {}, Routing()))

        async def is_back() -> bool:
            try:
                return world.states() == {"1.0.0": LIVE}
            except trust.UntrustedRecord:
                return False

        await eventually_async(is_back, within=10)
        after = world.record()
        assert after is not None
        assert after.versions == live.versions
        assert after.revision > live.revision


async def test_a_model_whose_blobs_are_gone_goes_on(world: World) -> None:
    world.publish(version="0.9.0")
    folder = world.publish()
    async with world.registry(), world.workers("a"):
        live = await world.until(v1_0_0=LIVE)
        shutil.rmtree(folder)
        (change,) = (await world.sync()).changes
        assert change.startswith("churn 1.0.0: vanished, its blobs are gone from ")
        assert world.record() == live
        row = {row.version: row for row in await world.listed()}["1.0.0"]
        assert (row.state, list(row.warnings)) == (
            "live",
            ["its blobs are gone from the store; it is served from Redis"],
        )
        world.publish()
        assert [change.split(",")[0] for change in (await world.sync()).changes] == ["churn 1.0.0: found"]
        assert world.record() == live


async def test_a_folder_that_moved_is_the_same_version_in_another_place(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        live = await world.until(v1_0_0=LIVE)
        (world.store / "churn" / "1.0.0").rename(world.store / "churn" / "v1.0.0")
        assert (await world.sync()).problems == []
        (row,) = await world.listed()
        assert (row.state, row.location.rpartition("/")[2]) == ("live", "v1.0.0")
        assert world.record() == live
        world.forget()
        assert (await world.until(v1_0_0=LIVE)).versions["1.0.0"].digest == live.versions["1.0.0"].digest


async def test_while_the_store_is_away_serving_goes_on_and_the_problem_is_told(world: World) -> None:
    world.publish()
    away = world.store.with_name("away")
    async with world.registry(), world.workers("a"):
        live = await world.until(v1_0_0=LIVE)
        world.store.rename(away)
        (problem,) = (await world.sync()).problems
        assert problem.startswith(f"cannot list {world.store}: there is no directory")
        assert world.record() == live
        listing = await world.calls.ListVersions(v1.ListVersionsRequest())
        assert listing.store_problem == problem
        assert [row.state for row in listing.versions] == ["live"]

        def shown() -> bool:
            [registry] = living(world.client, world.keys, "registry")
            return registry.alarm == {ALL: f"the store: {problem}"}

        await to_thread.run_sync(lambda: eventually(shown, within=10))
    async with world.registry(), world.workers("a"):  # ready from what Redis holds
        assert world.record() == live
        away.rename(world.store)

        async def answers() -> bool:
            return not (await world.calls.ListVersions(v1.ListVersionsRequest())).store_problem

        await eventually_async(answers, within=10)  # without being asked to look


async def test_it_is_not_ready_before_the_store_answered_where_redis_holds_nothing(world: World) -> None:
    world.publish()
    away = world.store.with_name("away")
    world.store.rename(away)
    async with anyio.create_task_group() as tasks:
        started = anyio.Event()

        async def run() -> None:
            async with world.registry():
                started.set()
                await world.until(v1_0_0=LOADING)

        tasks.start_soon(run)
        async with grpc.aio.insecure_channel(world.address) as channel:
            calls: Any = rpc.RegistryStub(channel)

            async def is_told() -> bool:
                answer = await calls.ListVersions(v1.ListVersionsRequest(), wait_for_ready=True)
                return bool(answer.store_problem)

            await eventually_async(is_told)
            assert not started.is_set()
        away.rename(world.store)


async def test_the_flat_form_is_served_and_a_model_without_signature_says_what_drafts_one(world: World) -> None:
    (world.store / "churn_v1.production.pkl").write_bytes(b"a model")
    (world.store / "scaler.pkl").write_bytes(b"a scaler")
    flat = signature(status="staging", transforms=["scaler.pkl"])
    (world.store / "churn_v1.signature.json").write_text(json.dumps(flat))
    (world.store / "risk_v1.production.pkl").write_bytes(b"another model")
    async with world.registry(), world.workers("a"):
        live = await world.until(v1_0_0=LIVE)
        assert [artifact.name for artifact in live.versions["1.0.0"].artifacts] == [
            "churn_v1.production.pkl",
            "scaler.pkl",
        ]
        shown = await world.shown()
        problem = "not servable: no signature; `millstream serve risk_v1.production.pkl` drafts one"
        assert shown == {"churn 1.0.0": ("live", ""), "risk_v1 ": ("refused", problem)}
        assert (await world.sync()).downloaded == 0


async def test_warnings_are_listed(world: World) -> None:
    world.publish(colour="green")
    (world.store / "churn").rename(world.store / "renamed")
    async with world.registry():
        (row,) = await world.listed()
        assert any("colour" in warning for warning in row.warnings)
        assert "the folder renamed/1.0.0 holds churn 1.0.0; the signature counts" in row.warnings


async def test_a_poll_finds_a_version_without_being_asked(world: World) -> None:
    world.settings["poll_s"] = 0.05
    async with world.registry(), world.workers("a"):
        world.publish()
        await world.until(v1_0_0=LIVE)


async def test_an_unknown_model_is_not_found(world: World) -> None:
    world.publish()
    async with world.registry():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await world.listed("nobody")
        assert refused.value.code() == grpc.StatusCode.NOT_FOUND
        assert refused.value.details() == "no model 'nobody' was ever found; there are: churn"
        with pytest.raises(grpc.aio.AioRpcError):
            await world.acts("nobody")


async def test_its_presence_shows_while_it_runs(world: World) -> None:
    async with world.registry():

        async def is_shown() -> bool:
            return bool(world.client.zcard(world.keys.roll("registry")))

        await eventually_async(is_shown)
    assert world.client.zcard(world.keys.roll("registry")) == 0


async def test_redis_that_goes_and_comes_back_does_not_end_it(world: World, tmp_path: Path) -> None:
    world.publish()
    with RedisServer(tmp_path / "redis") as server:
        world.redis_url, world.client = server.url, server.client()
        async with world.registry():
            await world.until(v1_0_0=LOADING)
            server.kill()
            world.publish(version="1.1.0")
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await world.sync()
            assert refused.value.code() == grpc.StatusCode.UNAVAILABLE
            server.start()
            async with world.workers("a"):
                await world.until(v1_1_0=LIVE)
        world.client.close()


async def test_a_full_redis_is_told_and_tried_again(world: World, tmp_path: Path) -> None:
    world.publish(content=b"x" * 30_000_000)
    world.settings["chunk_bytes"] = 1_000_000
    with RedisServer(tmp_path / "redis", config={"maxmemory": "20mb"}) as server:
        world.redis_url, world.client = server.url, server.client()
        async with world.registry():
            (row,) = await world.listed()
            assert row.state == "waiting"
            assert row.problem.startswith("Redis did not take 30,000,000 bytes of it: ")
            world.client.config_set("maxmemory", "200mb")
            async with world.workers("a"):
                await world.until(v1_0_0=LIVE)
        world.client.close()


@pytest.mark.parametrize(
    ("spoil", "error", "says"),
    [
        ("database", CatalogueUnusable, "registry.duckdb as the registry's catalogue: .*; move it away"),
        ("address", CannotListen, "cannot listen on nowhere:x"),
    ],
)
async def test_what_it_cannot_start_with_is_said_plainly(
    world: World, spoil: str, error: type[Exception], says: str
) -> None:
    world.state.mkdir()
    if spoil == "database":
        (world.state / "registry.duckdb").write_bytes(b"not a database at all" * 1000)
    with pytest.raises(error, match=says):
        await run_registry(
            Settings(**world.settings),
            redis_url=world.redis_url,
            database=world.state / "registry.duckdb",
            private_key=world.key_file,
            listen="nowhere:x" if spoil == "address" else world.address,
            on_ready=lambda: None,
            stop=anyio.Event(),
        )


async def test_versions_are_found_in_azure(world: World, azurite: Azurite) -> None:
    from azure.storage.blob.aio import ContainerClient

    container = world.keys.prefix
    async with ContainerClient.from_connection_string(azurite.connection_string, container) as client:
        await client.create_container()
        content = json.dumps(signature(azure_location="elsewhere")).encode()
        await client.upload_blob("churn/1.0.0/signature.json", content)
        await client.upload_blob("churn/1.0.0/model.joblib", b"a model" * 1000)
        world.settings["store_url"] = f"azure://{container}"
        world.settings["azure_connection_string"] = azurite.connection_string
        async with world.registry(), world.workers("a"):
            live = await world.until(v1_0_0=LIVE)
            assert live.versions["1.0.0"].location == f"{azurite.url}/{container}/churn/1.0.0"
            (row,) = await world.listed()
            assert row.warnings == [f"azure_location says elsewhere; found in {azurite.url}/{container}/churn/1.0.0"]
            again = await world.sync()
            assert (again.listed, again.downloaded) == (2, 0)
