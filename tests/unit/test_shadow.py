"""Which version gets copies, and how often a slow one is let at them."""

from __future__ import annotations

import pytest

from consumers.worker.shadow import rest_s, shadow_of
from contract.record import LIVE, LOADING, RETIRING, ModelRecord
from tests.records import record, version

ONE, TWO = version("1.0.0"), version("2.0.0")


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        pytest.param(None, None, id="no record"),
        pytest.param(record(ONE, TWO), None, id="no shadow"),
        pytest.param(record(ONE, TWO, shadow="2.0.0"), "2.0.0", id="a shadow"),
        pytest.param(record(ONE, version("2.0.0", LOADING), shadow="2.0.0"), None, id="still loading"),
        pytest.param(record(ONE, version("2.0.0", RETIRING), shadow="2.0.0"), None, id="on its way out"),
        pytest.param(record(ONE, shadow="3.0.0"), None, id="not there"),
    ],
)
def test_only_a_live_shadow_gets_copies(known: ModelRecord | None, expected: str | None) -> None:
    found = shadow_of(known)
    assert (found.version if found else None) == expected
    assert found is None or found.state == LIVE


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.001, 0.0), (0.005, 0.0), (0.02, 0.18), (3.0, 27.0)],
)
def test_a_call_that_takes_too_long_is_followed_by_a_rest_that_leaves_nine_tenths_to_others(
    seconds: float, expected: float
) -> None:
    assert rest_s(seconds, 0.005) == pytest.approx(expected)
