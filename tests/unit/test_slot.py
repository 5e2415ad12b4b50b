"""Which workers of a pool serve a big model, with how many threads, and what is counted of the others."""

from __future__ import annotations

from dataclasses import replace

from consumers.worker.slot import Slot, cores
from contract.overload import pools
from contract.presence import Presence
from contract.record import LIVE, LOADING, Artifact, Version
from contract.settings import Settings
from gateway.health import serving
from registry.promotion.switching import Switch, Wait, decide
from tests.unit import test_registry_switching as switching
from tests.unit.test_health import DIGEST, SIGNATURE, record

LIMIT = 1000


def version(*sizes: int) -> Version:
    files = tuple(Artifact(f"{number}.pkl", "00" * 32, size, 1) for number, size in enumerate(sizes))
    return Version.make(DIGEST, LIVE, SIGNATURE, files, "tests")


def slots(count: int, **settings: object) -> list[Slot]:
    told = Settings.read(big_model_bytes=LIMIT, **settings)
    return [Slot.of(told.model_copy(update={"slot": number})) for number in range(1, count + 1)]


def test_a_big_version_is_left_to_the_first_workers() -> None:
    big, small = version(LIMIT, 1), version(LIMIT - 1, 1)
    assert [slot.leaves(big) for slot in slots(4)] == [False, True, True, True]
    assert [slot.leaves(big) for slot in slots(4, big_model_workers=3)] == [False, False, False, True]
    assert [slot.leaves(small) for slot in slots(4)] == [False] * 4


def test_a_worker_alone_leaves_nothing() -> None:
    alone = Slot.of(Settings.read(big_model_bytes=1))
    assert (alone.leaves(version(LIMIT)), alone.threads(version(LIMIT))) == (False, 1)
    assert Slot.of(Settings.read(big_model_bytes=1, big_model_threads=3)).threads(version(LIMIT)) == 3


def test_a_big_version_has_threads_and_a_small_one_has_one() -> None:
    big, small = version(LIMIT + 1), version(LIMIT)
    assert [slots(1)[0].threads(each) for each in (big, small)] == [cores(), 1]
    assert slots(1, big_model_threads=3)[0].threads(big) == 3


def presence(name: str, *left: str, loaded: bool = True, rate: float = 0.0) -> Presence:
    rates = {"m": rate} if rate else {}
    return Presence("worker", name, loaded=frozenset({DIGEST.hex()} if loaded else ()), left=left, rows_per_s=rates)


def test_who_leaves_a_model_to_others_does_not_count_for_its_rate_nor_for_its_health() -> None:
    pool = [presence("1", rate=100.0), *(presence(str(n), "m", loaded=False) for n in (2, 3, 4))]
    assert [worker.serves("m") for worker in pool] == [True, False, False, False]
    seen = pools(pool, {"m": 0, "other": 0})
    assert (seen["m"].workers, seen["m"].rows_per_s, seen["other"].workers) == (1, 100.0, 4)
    assert serving({"m": record()}, pool, ()) == {"m": True}
    assert serving({"m": record()}, pool[1:], {"m"}) == {"m": False}


def test_a_big_version_switches_once_those_who_serve_it_have_it() -> None:
    """And not before the others have said that they read the model no more."""
    offered = switching.record("1.0.0", v1_0_0=LIVE, v2_0_0=LOADING)
    first, second = switching.worker("1", "1.0.0", "2.0.0"), switching.worker("2", "1.0.0")
    wanted = switching.known("2.0.0")
    assert decide(offered, wanted, [first, second], Wait(), 60.0) is None
    assert decide(offered, wanted, [first, replace(second, left=("churn",))], Wait(), 60.0) == Switch(wanted)
