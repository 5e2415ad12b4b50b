"""Thousands of interleavings of the delivery, each found again by its seed."""

from __future__ import annotations

import pytest

from tests.properties.delivery_model import Faults, Violated, run

SEEDS = 3_000


def run_all(faults: Faults) -> None:
    for seed in range(SEEDS):
        run(seed, faults)


def test_no_interleaving_loses_a_request_or_records_it_twice() -> None:
    run_all(Faults())


@pytest.mark.parametrize(
    ("faults", "found"),
    [
        (Faults(naive_exit=True), "has 2 events"),
        (Faults(position_first=True), "has no event"),
        (Faults(greedy_heartbeat=True), "which kept its lease"),
        (Faults(survivors_count=True), "is given up after [01] deaths"),
    ],
    ids=[
        "an exit without a gate",
        "a position before its rows",
        "a heartbeat that renews what is not its own",
        "a crash that nobody died of",
    ],
)
def test_a_planted_mistake_is_found(faults: Faults, found: str) -> None:
    """Otherwise the test above could not fail."""
    with pytest.raises(Violated, match=found):
        run_all(faults)


def test_the_same_seed_is_the_same_run() -> None:
    def ends(seed: int) -> str:
        try:
            run(seed, Faults(naive_exit=True))
        except Violated as violated:
            return str(violated)
        return "kept"

    first = [ends(seed) for seed in range(50)]
    assert [ends(seed) for seed in range(50)] == first
    assert any(text != "kept" for text in first)
