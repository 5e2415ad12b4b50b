"""What operators and tags do to what is in production, against a real server and a directory of blobs."""

from __future__ import annotations

import hashlib
import shutil
from typing import Any

import grpc
import pytest

from contract.connection import living
from contract.record import LIVE, LOADING, RETIRING, route
from protos import millstream_v1_pb2 as v1
from tests.conditions import eventually_async
from tests.registry_run import RegistryRun
from tests.registry_world import World, says

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

ALICE = "alice@desk"


async def promote(world: World, version: str) -> v1.ActResponse:
    answer: v1.ActResponse = await world.calls.Promote(v1.PromoteRequest(model_id="churn", version=version, by=ALICE))
    return answer


async def canary(world: World, version: str, percent: float = 0.0, **other: Any) -> v1.ActResponse:
    request = v1.SetCanaryRequest(model_id="churn", version=version, by=ALICE, percent=percent, **other)
    answer: v1.ActResponse = await world.calls.SetCanary(request)
    return answer


async def refusal(call: Any) -> tuple[str, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await call
    return refused.value.code().name, refused.value.details() or ""


async def row(world: World, version: str) -> v1.VersionInfo:
    return {each.version: each for each in await world.listed("churn")}[version]


async def routing(world: World) -> v1.ModelRouting:
    answer = await world.calls.ListVersions(v1.ListVersionsRequest(model_id="churn"))
    found: v1.ModelRouting = answer.models[0]
    return found


async def in_production(world: World, version: str) -> None:
    async def is_so() -> bool:
        record = world.record()
        return record is not None and record.live is not None and record.live.version == version

    await eventually_async(is_so, within=10)


async def test_an_operator_promotes_and_a_rollback_goes_back_and_further_back(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.0.0")
        for version in ("1.1.0", "1.2.0"):
            world.publish(version=version, status="staging")
        await world.sync()
        for version in ("1.1.0", "1.2.0"):
            done = await promote(world, version)
            assert (done.version, done.digest) == (version, (await row(world, version)).digest)
            assert done.detail.startswith(f"churn {version} answers once every worker has loaded it")
            await in_production(world, version)
        for version in ("1.1.0", "1.0.0"):
            assert (await world.calls.Rollback(v1.RollbackRequest(model_id="churn", by=ALICE))).version == version
            await in_production(world, version)
        code, said = await refusal(world.calls.Rollback(v1.RollbackRequest(model_id="churn")))
        assert code == "FAILED_PRECONDITION"
        assert said.startswith("churn has nothing to roll back to: nothing answered before 1.0.0; ")
        await says(world.last_act, ("1.1.0", "superseded"))
        history = (await world.calls.History(v1.HistoryRequest(model_id="churn"))).entries
        acts = [(entry.act, entry.version, entry.by) for entry in history if entry.by]
        assert acts == [
            ("promote", "1.1.0", ALICE),
            ("promote", "1.2.0", ALICE),
            ("rollback", "1.1.0", ALICE),
            ("rollback", "1.0.0", ALICE),
        ]
        lives = [entry.detail for entry in history if entry.act == "live"]
        assert [detail.split(";")[1].split(",")[0].strip() for detail in lives] == [
            "tagged production",
            f"promoted by {ALICE}",
            f"promoted by {ALICE}",
            f"rolled back to by {ALICE}",
            f"rolled back to by {ALICE}",
        ]


async def test_what_a_rollback_keeps_back_says_so_and_a_later_tag_beats_it(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.0.0")
        world.publish(version="1.1.0")
        await world.sync()
        await in_production(world, "1.1.0")
        await world.calls.Rollback(v1.RollbackRequest(model_id="churn", by=ALICE))
        await in_production(world, "1.0.0")
        assert (await row(world, "1.1.0")).held_back.startswith(f"1.0.0 was rolled back to by {ALICE}, ")
        assert (await row(world, "1.0.0")).statement.startswith(f"rolled back to by {ALICE}, ")
        assert (await world.sync()).changes == []
        assert world.states() == {"1.0.0": LIVE, "1.1.0": RETIRING}
        world.publish(version="1.2.0")
        await world.sync()
        await in_production(world, "1.2.0")
        assert (await row(world, "1.1.0")).held_back == ""


async def test_a_tag_that_moves_back_to_an_older_version_promotes_it(world: World) -> None:
    world.publish(version="1.1.0")
    world.publish(status="staging")
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.1.0")
        world.publish(status="production")  # 1.1.0 keeps its tag: the newest statement wins
        assert (await world.sync()).changes == ["churn 1.0.0: tagged, production; was staging"]
        await in_production(world, "1.0.0")
        assert await world.shown() == {
            "churn 1.0.0": ("live", ""),
            "churn 1.1.0": ("retiring", "1.0.0 answers instead"),
        }


async def test_a_pin_holds_against_later_tags_until_it_is_undone(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.0.0")
        await world.calls.Pin(v1.PinRequest(model_id="churn", by=ALICE))
        world.publish(version="1.1.0")
        await world.sync()
        held = await row(world, "1.1.0")
        assert held.state == "held back"
        assert held.held_back.startswith(f"1.0.0 was pinned by {ALICE}, ")
        assert (await routing(world)).pinned.startswith(f"1.0.0 pinned by {ALICE}, ")
        assert world.states() == {"1.0.0": LIVE}
        assert (await promote(world, "1.1.0")).detail.endswith("until `millstream registry unpin`")
        await in_production(world, "1.1.0")
        await world.calls.Pin(v1.PinRequest(model_id="churn", version="1.0.0", by=ALICE))
        await in_production(world, "1.0.0")
        world.publish(version="1.2.0")
        await world.sync()
        await world.calls.Unpin(v1.UnpinRequest(model_id="churn", by=ALICE))
        await in_production(world, "1.2.0")
        assert (await refusal(world.calls.Unpin(v1.UnpinRequest(model_id="churn"))))[0] == "FAILED_PRECONDITION"


async def test_a_canary_is_live_beside_production_and_keeps_its_callers_while_its_share_grows(world: World) -> None:
    world.publish()
    world.publish(version="1.1.0", status="canary")
    async with world.registry(), world.workers("a"):
        by_tag = await world.until(v1_0_0=LIVE, v1_1_0=LIVE)
        assert (by_tag.routing.canary, by_tag.routing.canary_basis_points) == ("1.1.0", 0)

        async def shares(percent: float) -> set[str]:
            await canary(world, "1.1.0", percent)

            async def is_set() -> bool:
                record = world.record()
                return record is not None and record.routing.canary_basis_points == percent * 100

            await eventually_async(is_set, within=10)
            record = world.record()
            assert record is not None
            assert route(record, "1.1.0", "u", "r").version == "1.1.0"  # named: the share does not matter
            return {user for user in map(str, range(400)) if route(record, "", user, "r").version == "1.1.0"}

        few, more = await shares(5), await shares(40)
        assert few < more
        assert [each.traffic_percent for each in await world.listed("churn")] == [60, 40]
        await world.calls.Promote(v1.PromoteRequest(model_id="churn", version="1.1.0", by=ALICE))
        after = await world.until(v1_0_0=RETIRING, v1_1_0=LIVE)
        assert (after.routing.production, after.routing.canary) == ("1.1.0", "")
        code, said = await refusal(canary(world, "1.1.0", 5))
        assert (code, said) == (
            "FAILED_PRECONDITION",
            "churn 1.1.0 is in production; a canary is another version beside it",
        )


async def test_a_canary_that_fails_too_much_loses_its_share(world: World) -> None:
    world.publish()
    world.publish(version="1.1.0", status="staging")
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.0.0")
        digest = (await row(world, "1.1.0")).digest
        world.outcomes = {digest: (1000, 1000)}  # from before there was a share

        async def is_shown() -> bool:
            return any(digest in worker.outcomes for worker in living(world.client, world.keys, "worker"))

        await eventually_async(is_shown, within=10)
        await canary(world, "1.1.0", 50, abort_over=0.1)
        running = await world.until(v1_0_0=LIVE, v1_1_0=LIVE)
        assert running.routing.canary_basis_points == 5000

        async def counted() -> int:
            return int((await routing(world)).canary_finished)

        world.outcomes = {digest: (1050, 1005)}
        await says(counted, 50)
        assert (await routing(world)).canary_percent == 50
        world.outcomes = {digest: (1060, 1007)}

        async def last_acts() -> list[tuple[str, str]]:
            return (await world.acts())[-2:]

        await says(last_acts, [("1.1.0", "canary aborted"), ("1.1.0", "canary")])
        record = world.record()
        assert record is not None
        assert (record.routing.canary, record.routing.canary_basis_points) == ("1.1.0", 0)
        aborted = (await world.calls.History(v1.HistoryRequest(model_id="churn"))).entries[-2]
        assert aborted.by == "the registry"
        assert aborted.detail == "7 of 60 requests failed, more than 10 %: its share is 0 % now, was 50 %"


async def test_a_shadow_is_loaded_and_answers_nobody(world: World) -> None:
    world.publish()
    world.publish(version="1.1.0", status="staging")
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.0.0")
        await world.calls.SetShadow(v1.SetShadowRequest(model_id="churn", version="1.1.0", by=ALICE))
        record = await world.until(v1_0_0=LIVE, v1_1_0=LIVE)
        assert (record.routing.shadow, record.routing.canary) == ("1.1.0", "")
        assert (await row(world, "1.1.0")).state == "shadow"
        await world.calls.SetShadow(v1.SetShadowRequest(model_id="churn", version="1.1.0", by=ALICE, off=True))
        assert (await world.until(v1_0_0=LIVE, v1_1_0=RETIRING)).routing.shadow == ""


async def test_what_answers_is_retired_only_by_force_and_then_the_next_takes_over_or_nothing(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.0.0")
        world.publish(version="1.1.0")
        await world.sync()
        await in_production(world, "1.1.0")
        retire = v1.RetireRequest(model_id="churn", version="1.1.0", by=ALICE)
        code, said = await refusal(world.calls.Retire(retire))
        assert code == "FAILED_PRECONDITION"
        assert said.startswith("churn 1.1.0 answers now, and 1.0.0 takes over once every worker has it; say --yes")
        await world.calls.Retire(v1.RetireRequest(model_id="churn", version="1.1.0", by=ALICE, force=True))
        await in_production(world, "1.0.0")
        assert (await row(world, "1.1.0")).held_back.startswith(f"retired by {ALICE}, ")
        await world.calls.Retire(v1.RetireRequest(model_id="churn", version="1.0.0", by=ALICE, force=True))
        record = await world.until(v1_0_0=RETIRING, v1_1_0=RETIRING)
        assert record.routing.production == ""
        await promote(world, "1.0.0")
        await in_production(world, "1.0.0")


async def test_a_version_that_was_refused_is_tried_again_when_an_operator_says_so(world: World) -> None:
    world.publish()
    world.publish(version="2.0.0", status="staging")
    async with world.registry(), world.workers("a", failing="2.0.0"):
        await in_production(world, "1.0.0")

        async def held() -> set[str]:
            """The artifacts in Redis."""
            keys = world.client.scan_iter(f"{world.keys.prefix}:{{{'?' * 64}}}:*")
            return {key.decode().split("{")[1].split("}")[0] for key in keys}

        await promote(world, "2.0.0")
        refused = ("refused", "worker a cannot load it: it is no model")
        await says(world.shown, {"churn 1.0.0": ("live", ""), "churn 2.0.0": refused})
        await world.until(v1_0_0=LIVE)

        async def told_in_status() -> list[str]:
            return [why for each in living(world.client, world.keys, "registry") for why in each.failed.values()]

        await says(told_in_status, [f"churn 2.0.0: {refused[1]}"])
        await says(held, {hashlib.sha256(b"churn 1.0.0" * 200).hexdigest()})
        world.mended.add("2.0.0")
        done = await promote(world, "2.0.0")
        assert done.detail.endswith("it was refused (worker a cannot load it: it is no model) and is tried again")
        await in_production(world, "2.0.0")


async def test_a_rollback_to_a_version_that_was_dropped_fetches_it_again(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        first = await world.until(v1_0_0=LIVE)
    world.publish(version="1.1.0")
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.1.0")
        await says(world.last_act, ("1.0.0", "superseded"))
        for artifact in first.versions["1.0.0"].artifacts:
            for number in range(artifact.chunks):
                world.client.delete(world.keys.chunk(artifact.sha256, number))
        await world.calls.Rollback(v1.RollbackRequest(model_id="churn", by=ALICE))
        await in_production(world, "1.0.0")
        assert world.holds(first.versions["1.0.0"].artifacts)


async def test_a_rollback_needs_no_store_while_redis_still_has_the_version(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.0.0")
        world.publish(version="1.1.0")
        await world.sync()
        await in_production(world, "1.1.0")
    world.store.rename(world.store.with_name("away"))
    async with world.registry(), world.workers("a"):
        assert (await world.sync()).problems != []
        await world.calls.Rollback(v1.RollbackRequest(model_id="churn", by=ALICE))
        await in_production(world, "1.0.0")


async def test_a_rollback_passes_over_what_cannot_answer(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.0.0")
        for version in ("1.1.0", "1.2.0"):
            world.publish(version=version)
            await world.sync()
            await in_production(world, version)
        await world.calls.Retire(v1.RetireRequest(model_id="churn", version="1.1.0", by=ALICE))
        done = await world.calls.Rollback(v1.RollbackRequest(model_id="churn", by=ALICE))
        assert (done.version, done.detail.partition("passed over: ")[2]) == ("1.0.0", "1.1.0: it was retired")


@pytest.mark.parametrize(
    ("version", "code", "said"),
    [
        ("9.9.9", "NOT_FOUND", "churn has no version '9.9.9'; there are: 1.0.0"),
        ("3.0.0", "FAILED_PRECONDITION", "churn 3.0.0 is not servable: expected a model file"),
        ("1.0.0", "FAILED_PRECONDITION", "churn 1.0.0 is in production already: tagged production, first seen "),
    ],
)
async def test_a_version_that_cannot_be_promoted_says_why(world: World, version: str, code: str, said: str) -> None:
    world.publish()
    (world.publish(version="3.0.0") / "model.joblib").unlink()
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.0.0")
        found = await refusal(promote(world, version))
        assert (found[0], found[1][: len(said)]) == (code, said)


async def test_an_unknown_model_names_those_there_are(world: World) -> None:
    world.publish()
    async with world.registry():
        for call in (
            world.calls.Promote(v1.PromoteRequest(model_id="chrun", version="1.0.0")),
            world.calls.SetCanary(v1.SetCanaryRequest(model_id="chrun", version="1.0.0")),
            world.calls.Rollback(v1.RollbackRequest(model_id="chrun")),
            world.calls.Pin(v1.PinRequest(model_id="chrun")),
        ):
            assert await refusal(call) == ("NOT_FOUND", "no model 'chrun' was ever found; there are: churn")


@pytest.mark.parametrize(("percent", "abort_over"), [(-1, 0), (100.5, 0), (float("nan"), 0), (5, 1.5), (5, -1)])
async def test_a_share_out_of_range_is_refused(world: World, percent: float, abort_over: float) -> None:
    world.publish()
    async with world.registry():
        code, said = await refusal(canary(world, "1.0.0", percent, abort_over=abort_over))
        assert code == "FAILED_PRECONDITION"
        assert said.startswith("expected a share")


async def test_acts_outlive_the_process_and_what_was_under_way_goes_on(world: World) -> None:
    world.publish()
    world.publish(version="1.1.0", status="staging")
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.0.0")
        await world.calls.Pin(v1.PinRequest(model_id="churn", by=ALICE))
    async with world.registry():  # without a worker nothing is loaded
        await promote(world, "1.1.0")
    world.publish(version="1.2.0")
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.1.0")
        assert (await row(world, "1.2.0")).held_back.startswith(f"1.0.0 was pinned by {ALICE}, ")


async def test_a_lost_catalogue_takes_over_what_a_rollback_decided(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.0.0")
        world.publish(version="1.1.0")
        world.publish(version="1.0.5")  # never in service: the record does not know it
        await world.sync()
        await in_production(world, "1.1.0")
        await says(world.last_act, ("1.0.0", "superseded"))
        await world.calls.Rollback(v1.RollbackRequest(model_id="churn", by=ALICE))
        await in_production(world, "1.0.0")
    (world.state / "registry.duckdb").unlink()
    async with world.registry(), world.workers("a"):
        await world.sync()
        assert world.states() == {"1.0.0": LIVE, "1.1.0": RETIRING}
        assert (await row(world, "1.1.0")).held_back.startswith("1.0.0 was taken over from the record in Redis, ")
        world.publish(version="1.2.0")
        await world.sync()
        await in_production(world, "1.2.0")


async def test_a_catalogue_of_yesterday_takes_over_what_was_decided_since(world: World) -> None:
    world.publish()
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.0.0")
    shutil.copy(world.state / "registry.duckdb", world.state / "yesterday")
    world.publish(version="1.1.0")
    world.publish(version="1.2.0")
    async with world.registry(), world.workers("a"):
        await in_production(world, "1.2.0")
        await promote(world, "1.1.0")
        await in_production(world, "1.1.0")
    shutil.move(world.state / "yesterday", world.state / "registry.duckdb")
    async with world.registry(), world.workers("a"):
        await world.sync()
        record = world.record()
        assert record is not None
        assert record.routing.production == "1.1.0"
        assert (await row(world, "1.2.0")).held_back.startswith("1.1.0 was taken over from the record in Redis, ")


async def test_of_fifty_models_with_three_versions_each_the_right_ones_are_wanted(world: World) -> None:
    models = [f"m{number:02}" for number in range(50)]
    for model_id in models:
        for version, status in (("1.0.0", "production"), ("1.1.0", "production"), ("2.0.0", "staging")):
            world.publish(model_id, version, status=status)
    run = RegistryRun(world.store.parent, world.redis_url, world.keys.prefix, world.client, store_url=str(world.store))
    async with run.running():
        await run.until_live(dict.fromkeys(models, "1.1.0"))
        again = await run.sync()
        assert (again.listed, again.downloaded, list(again.changes), list(again.problems)) == (300, 0, [], [])
        states = [row.state for row in (await run.listed()).versions]
        assert {state: states.count(state) for state in states} == {"live": 50, "superseded": 50, "staging": 50}


async def test_a_model_is_offered_while_its_canary_is_still_loading(world: World) -> None:
    world.publish()
    world.publish(version="1.1.0", status="canary")
    async with world.registry(), world.workers("a", failing="1.1.0"):
        await says(
            world.shown,
            {"churn 1.0.0": ("live", ""), "churn 1.1.0": ("refused", "worker a cannot load it: it is no model")},
        )
        record = await world.until(v1_0_0=LIVE)
        assert record.routing.canary == ""
    assert LOADING not in world.states().values()
