"""Which version goes live, and the next step towards it."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from contract.presence import Presence
from contract.record import LIVE, LOADING, RETIRING, ModelRecord, Routing, Version
from protos import millstream_wire_v1_pb2 as wire
from registry.catalogue.known import KnownVersion
from registry.promotion.switching import (
    Load,
    Refuse,
    Switch,
    Wait,
    Withdraw,
    arranged,
    beside_veto,
    decide,
    loading,
    with_live,
    withdrawn,
)
from registry.promotion.timeline import Claim, Statement, Wanted


def known(version: str, *, digest: str = "", **other: str) -> KnownVersion:
    fields = {"trained_date": "2023-10-25", "tag": "production", "place": f"churn/{version}", "refused": "", **other}
    return KnownVersion(
        model_id="churn",
        version=version,
        digest=digest or digest_of(version),
        signature_json=b"{}",
        location="here",
        first_seen=datetime(2026, 1, 1, tzinfo=UTC),
        artifacts=(),
        **fields,
    )


def digest_of(version: str) -> str:
    return version.encode().hex().ljust(64, "0")


def held(version: str, state: wire.VersionState) -> Version:
    content = {
        "model_id": "churn",
        "version": version,
        "trained_date": "2023-10-25",
        "status": "production",
        "azure_location": "ai-models",
        "expected_features": [{"index": 0, "name": "age", "type": "int"}],
    }
    return Version.make(bytes.fromhex(digest_of(version)), state, json.dumps(content).encode(), (), "here")


def record(production: str = "", **states: wire.VersionState) -> ModelRecord:
    versions = {name[1:].replace("_", "."): state for name, state in states.items()}
    return ModelRecord(
        "churn", 7, {name: held(name, state) for name, state in versions.items()}, Routing(production=production)
    )


def worker(name: str, *loaded: str, failed: str = "") -> Presence:
    return Presence(
        "worker",
        name,
        loaded=frozenset(digest_of(version) for version in loaded),
        failed={digest_of(failed): "no module named torch"} if failed else {},
    )


def step(record: ModelRecord | None, version: KnownVersion, *workers: Presence, wait: Wait | None = None) -> object:
    return decide(record, version, workers, wait or Wait(), limit_s=60.0)


def claim(version: str, share: int = 0) -> Claim:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    statement = Statement(at, "churn", version, digest_of(version), "act", "canary", "alice", share, "salt")
    return Claim(known(version), statement)


def goal(production: str = "", canary: str = "", share: int = 0, shadow: str = "", retired: str = "") -> Wanted:
    return Wanted(
        claim(production) if production else None,
        claim(canary, share) if canary else None,
        claim(shadow) if shadow else None,
        retired=frozenset({retired} - {""}),
    )


def test_a_new_version_is_loaded_first() -> None:
    assert step(None, known("1.0.0"), worker("a")) == Load(known("1.0.0"))
    assert step(record("1.0.0", v1_0_0=LIVE), known("2.0.0"), worker("a")) == Load(known("2.0.0"))


def test_a_retiring_version_that_is_wanted_again_is_loaded_again() -> None:
    assert step(record("2.0.0", v1_0_0=RETIRING, v2_0_0=LIVE), known("1.0.0"), worker("a")) == Load(known("1.0.0"))


def test_it_switches_only_when_every_living_worker_has_it() -> None:
    loading_2 = record("1.0.0", v1_0_0=LIVE, v2_0_0=LOADING)
    assert step(loading_2, known("2.0.0")) is None
    assert step(loading_2, known("2.0.0"), worker("a", "1.0.0", "2.0.0"), worker("b", "1.0.0")) is None
    assert step(loading_2, known("2.0.0"), worker("a", "2.0.0"), worker("b", "2.0.0")) == Switch(known("2.0.0"))


def test_one_worker_that_cannot_load_it_vetoes() -> None:
    loading_2 = record("1.0.0", v1_0_0=LIVE, v2_0_0=LOADING)
    decided = step(loading_2, known("2.0.0"), worker("a", "2.0.0"), worker("b", "1.0.0", failed="2.0.0"))
    assert decided == Refuse(known("2.0.0"), "worker b cannot load it: no module named torch")


def test_a_version_that_is_never_loaded_is_given_up_after_the_limit() -> None:
    loading_2 = record("1.0.0", v1_0_0=LIVE, v2_0_0=LOADING)
    workers = worker("a", "2.0.0"), worker("b", "1.0.0")
    assert step(loading_2, known("2.0.0"), *workers, wait=Wait(seen=True, waited_s=60.0)) is None
    decided = step(loading_2, known("2.0.0"), *workers, wait=Wait(seen=True, waited_s=60.1))
    assert decided == Refuse(known("2.0.0"), "not loaded within 60 s by 1 of 2 workers: b")


def test_a_version_under_which_every_worker_ends_is_refused() -> None:
    loading_2 = record("1.0.0", v1_0_0=LIVE, v2_0_0=LOADING)
    assert step(loading_2, known("2.0.0"), wait=Wait(seen=True, gone_s=15.0)) is None
    decided = step(loading_2, known("2.0.0"), wait=Wait(seen=True, gone_s=15.1))
    assert decided == Refuse(known("2.0.0"), "every worker ended while it was being loaded, and none came back")


def test_workers_can_always_start_on_what_is_live() -> None:
    assert step(record("1.0.0", v1_0_0=LIVE), known("2.0.0")) is None
    offered = record("1.0.0", v1_0_0=LIVE, v2_0_0=LOADING)
    assert step(offered, known("2.0.0"), wait=Wait(gone_s=15.1)) == Withdraw()


def test_a_first_version_waits_for_workers_for_as_long_as_it_takes() -> None:
    assert step(None, known("1.0.0")) == Load(known("1.0.0"))
    assert step(record("", v1_0_0=LOADING), known("1.0.0"), wait=Wait(gone_s=10_000)) is None


def test_time_counts_from_the_first_worker_on() -> None:
    wait = Wait().after(100, any_living=False)
    assert (wait.seen, wait.waited_s, wait.gone_s) == (False, 0, 100)
    wait = wait.after(1, any_living=True).after(2, any_living=False)
    assert (wait.seen, wait.waited_s, wait.gone_s) == (True, 3, 2)


def test_other_contents_under_a_version_that_redis_has_are_refused() -> None:
    other = known("1.0.0", digest="ab" * 32)
    assert isinstance(step(record("1.0.0", v1_0_0=LIVE), other, worker("a", "1.0.0")), Refuse)


def test_nothing_happens_while_the_wanted_version_is_live() -> None:
    assert step(record("1.0.0", v1_0_0=LIVE), known("1.0.0"), worker("a", "1.0.0")) is None


def test_only_one_version_is_being_loaded_and_the_live_one_is_left_alone() -> None:
    before = record("1.0.0", v1_0_0=LIVE, v2_0_0=LOADING)
    assert loading(before, held("3.0.0", LOADING)) == record("1.0.0", v1_0_0=LIVE, v3_0_0=LOADING)
    first = loading(None, held("1.0.0", LOADING))
    assert first == replace(record("", v1_0_0=LOADING), revision=0)
    assert first.live is None
    assert withdrawn(before) == record("1.0.0", v1_0_0=LIVE)


@pytest.mark.parametrize(
    ("before", "wanted", "after"),
    [
        # What is wanted and not live yet changes nothing but what was being loaded instead.
        (record("1.0.0", v1_0_0=LIVE, v2_0_0=LOADING), goal("2.0.0"), record("1.0.0", v1_0_0=LIVE, v2_0_0=LOADING)),
        (record("1.0.0", v1_0_0=LIVE, v2_0_0=LOADING), goal("1.0.0"), record("1.0.0", v1_0_0=LIVE)),
        (record("1.0.0", v1_0_0=LIVE, v2_0_0=LOADING), goal(), record("1.0.0", v1_0_0=LIVE)),
        # A switch and what it retires, in one record.
        (record("1.0.0", v1_0_0=LIVE, v2_0_0=LIVE), goal("2.0.0"), record("2.0.0", v1_0_0=RETIRING, v2_0_0=LIVE)),
        # Without a wanted version what answers goes on, unless somebody retired it.
        (record("1.0.0", v1_0_0=LIVE), goal(), record("1.0.0", v1_0_0=LIVE)),
        (record("1.0.0", v1_0_0=LIVE), goal(retired="1.0.0"), record("", v1_0_0=RETIRING)),
        (record("1.0.0", v1_0_0=LIVE), goal("2.0.0", retired="1.0.0"), record("1.0.0", v1_0_0=LIVE)),
    ],
)
def test_a_record_is_arranged_as_wanted(before: ModelRecord, wanted: Wanted, after: ModelRecord) -> None:
    assert arranged(before, wanted) == after


def test_a_canary_is_live_beside_production_with_its_share_and_salt() -> None:
    both = record("1.0.0", v1_0_0=LIVE, v2_0_0=LIVE, v3_0_0=LIVE)
    after = arranged(both, goal("1.0.0", "2.0.0", 500, "3.0.0"))
    assert after.routing == Routing("1.0.0", "2.0.0", 500, "salt", "3.0.0")
    assert after.versions == both.versions


def test_a_canary_that_becomes_production_takes_over_in_one_step() -> None:
    before = replace(record("1.0.0", v1_0_0=LIVE, v2_0_0=LIVE), routing=Routing("1.0.0", "2.0.0", 500, "salt"))
    assert arranged(before, goal("2.0.0")) == record("2.0.0", v1_0_0=RETIRING, v2_0_0=LIVE)


def test_what_was_canary_or_shadow_and_is_no_more_retires() -> None:
    before = replace(record("1.0.0", v1_0_0=LIVE, v2_0_0=LIVE), routing=Routing("1.0.0", shadow="2.0.0"))
    assert arranged(before, goal("1.0.0")) == record("1.0.0", v1_0_0=LIVE, v2_0_0=RETIRING)


def test_a_version_that_all_workers_have_is_live_and_then_gets_its_place() -> None:
    before = record("1.0.0", v1_0_0=LIVE, v2_0_0=LOADING)
    assert arranged(with_live(before, "2.0.0"), goal("2.0.0")) == record("2.0.0", v1_0_0=RETIRING, v2_0_0=LIVE)


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        pytest.param(worker("a", "1.0.0", "2.0.0"), "", id="loaded"),
        pytest.param(
            worker("a", "1.0.0", failed="2.0.0"), "worker a cannot load it: no module named torch", id="not loaded"
        ),
        pytest.param(worker("a", "1.0.0", "2.0.0", failed="2.0.0"), "no module named torch", id="given up since"),
    ],
)
def test_what_stands_beside_production_goes_where_a_worker_gives_it_up(shown: Presence, expected: str) -> None:
    held_so = record("1.0.0", v1_0_0=LIVE, v2_0_0=LIVE)
    assert beside_veto(held_so, held_so.versions["2.0.0"], [worker("b", "1.0.0", "2.0.0"), shown]) == expected
    assert beside_veto(held_so, held_so.versions["1.0.0"], [worker("a", "2.0.0", failed="1.0.0")]) == ""
