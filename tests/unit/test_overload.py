"""How many rows may wait, so that what is let in is answered before its deadline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import Reason
from contract.overload import BATCHES, LONGEST_RETRY_S, SHARE, UNKNOWN, Bound, Pool, pools
from contract.presence import Presence
from contract.settings import Settings

SETTINGS = Settings.read(batch_rows=256, max_waiting_rows=200_000)


def worker(name: str, rough: tuple[str, ...] = (), models: tuple[str, ...] = (), **rows_per_s: float) -> Presence:
    return Presence("worker", name, rows_per_s=rows_per_s, rough=rough, models=models)


def test_with_no_rate_known_two_batches_per_worker_may_wait() -> None:
    assert UNKNOWN.bound(30.0, SETTINGS) == Bound(512)
    assert Pool(workers=3).bound(0.001, SETTINGS) == Bound(1536)
    assert pools([], {"churn": 0})["churn"].bound(30.0, SETTINGS) == Bound(512)


def test_what_may_wait_is_what_the_pool_computes_within_the_deadline() -> None:
    pool = Pool(1000.0, workers=2, rough=False)
    assert pool.bound(0.5, SETTINGS) == Bound(int(1000 * 0.5 * SHARE), 0.001)
    assert pool.bound(5.0, SETTINGS).rows == 10 * pool.bound(0.5, SETTINGS).rows


def test_no_deadline_lets_more_rows_wait_than_the_setting_says() -> None:
    assert Pool(1e6, rough=False).bound(30.0, SETTINGS).rows == 200_000
    assert Pool(workers=10_000).bound(30.0, SETTINGS).rows == 200_000


@pytest.mark.parametrize("deadline_s", [0.0, -3.0, 0.0001])
def test_nothing_may_wait_for_a_deadline_that_is_over(deadline_s: float) -> None:
    assert Pool(1000.0, rough=False).bound(deadline_s, SETTINGS).rows == 0


def test_a_rate_of_small_batches_is_the_least_that_is_let_in() -> None:
    """A forest does 150 rows a second one by one and 25,000 in batches: the first calls must not shut the door."""
    rough = Pool(150.0, workers=1, rough=True)
    assert rough.bound(0.1, SETTINGS).rows == BATCHES * 256
    assert rough.bound(30.0, SETTINGS).rows == int(30 * SHARE * 150)


def test_rates_of_all_workers_that_serve_a_model_add_up() -> None:
    workers = [
        worker("a", churn=100.0, credit=10.0),
        worker("b", churn=300.0),
        worker("c", models=("credit",), churn=7.0),
    ]
    seen = pools(workers, {"churn": 0, "credit": 0})
    assert (seen["churn"].rows_per_s, seen["churn"].workers) == (400.0, 2)
    assert (seen["credit"].rows_per_s, seen["credit"].workers) == (30.0, 3)


def test_a_worker_without_a_rate_counts_as_the_mean_of_the_others() -> None:
    seen = pools([worker("a", churn=100.0), worker("b", churn=300.0), worker("c")], {"churn": 0})
    assert (seen["churn"].rows_per_s, seen["churn"].workers, seen["churn"].rough) == (600.0, 3, False)


def test_one_sure_rate_is_worth_more_than_rough_ones() -> None:
    seen = pools([worker("a", churn=900.0), worker("b", ("churn",), churn=100.0)], {"churn": 0})
    assert (seen["churn"].rows_per_s, seen["churn"].rough) == (1800.0, False)
    assert pools([worker("b", ("churn",), churn=100.0)], {"churn": 0})["churn"].rough


def test_a_model_shares_the_pool_with_those_that_wait_and_with_no_other() -> None:
    one = worker("a", light=1000.0, heavy=10.0, idle=5.0)
    seen = pools([one], {"light": 0, "heavy": 1000, "idle": 0})
    assert seen["light"].others_s == (100.0,)
    assert seen["heavy"].others_s == ()
    # Half the time is the other's as long as it has work, and it has more than this model will see.
    assert seen["light"].bound(1.0, SETTINGS).rows == int(1000 * SHARE / 2)
    assert pools([one], {"light": 0, "heavy": 1})["light"].bound(1.0, SETTINGS).rows == int(1000 * (SHARE - 0.1))


@given(
    others=st.lists(st.floats(0.001, 100.0), max_size=8).map(lambda each: tuple(sorted(each))),
    deadline_s=st.floats(0.001, 100.0),
)
def test_the_share_is_the_largest_that_leaves_every_other_model_as_much(
    others: tuple[float, ...], deadline_s: float
) -> None:
    pool = Pool(1e6, rough=False, others_s=others)
    unbounded = Settings.read(max_waiting_rows=10**12)
    own_s = pool.bound(deadline_s, unbounded).rows / 1e6
    finished_s = own_s + sum(min(other, own_s) for other in others)
    assert finished_s == pytest.approx(deadline_s * SHARE, rel=1e-3, abs=1e-4)


def test_a_refusal_says_how_much_waits_and_when_it_will_be_gone() -> None:
    refused = Bound(100, 0.01).refusal(waiting=140, rows=10)
    assert refused.reason == Reason.QUEUE_FULL
    assert refused.retry_after_s == pytest.approx(0.5)
    assert "140 rows are waiting" in refused.message
    assert Bound(100).refusal(150, 1).retry_after_s == 0.5
    assert Bound(0, 1.0).refusal(10_000, 1).retry_after_s == LONGEST_RETRY_S
