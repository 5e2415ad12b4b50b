"""Presence: what a living process shows reads back, and its name says which process of which machine it is."""

from __future__ import annotations

import os

from contract.keys import Keys
from contract.presence import TTL_S, Presence, consumer_prefix, process_name

SHOWN = Presence(
    role="worker",
    name="host-1-abc",
    revision=7,
    loaded=frozenset({"aa", "bb"}),
    failed={"cc": "needs xgboost"},
    engines={"aa": "sklearn 1.9.1", "bb": "numpy 2.4.6 (LogisticRegression)"},
    rows_per_s={"churn": 1234.5},
    served={"churn": 12.5},
    outcomes={"aa": (7, 1)},
    shadowed={"churn": (3, 2)},
    pid=42,
)
KEYS = Keys("t")


def test_what_is_shown_reads_back() -> None:
    (_, key, field, body), *_ = SHOWN.beat(KEYS)
    assert (key, field) == ("t:proc:worker:host-1-abc", "body")
    assert isinstance(body, bytes)
    assert Presence.decode("worker", "host-1-abc", body) == SHOWN


def test_nothing_shown_yet_reads_back_too() -> None:
    empty = Presence("gateway", "g")
    body = empty.beat(KEYS)[0][3]
    assert isinstance(body, bytes)
    assert Presence.decode("gateway", "g", body) == empty


def test_a_beat_lives_for_seconds_only() -> None:
    assert ("EXPIRE", "t:proc:worker:host-1-abc", TTL_S) in SHOWN.beat(KEYS)


def test_leaving_takes_away_all_that_a_beat_writes() -> None:
    assert SHOWN.leave(KEYS) == [
        ("DEL", "t:proc:worker:host-1-abc"),
        ("ZREM", "t:procs:worker", "host-1-abc"),
    ]


def test_a_name_begins_with_host_and_pid_and_differs_from_life_to_life() -> None:
    names = {process_name() for _ in range(20)}
    assert len(names) == 20
    assert all(name.startswith(consumer_prefix(os.getpid())) for name in names)


def test_the_prefix_of_one_pid_is_no_prefix_of_another() -> None:
    assert not consumer_prefix(12).startswith(consumer_prefix(1))
    assert consumer_prefix(1).isascii()
