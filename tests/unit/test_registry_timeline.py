"""What is wanted of a model, by the timeline of tags and acts alone."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from registry.catalogue.known import KnownVersion
from registry.promotion.timeline import RETIRE, Statement, Wanted, answered_before, wanted

START = datetime(2026, 1, 1, tzinfo=UTC)

Said = tuple[str, str] | tuple[str, str, int]
"""An act or tag, the version, and for a canary its share in basis points."""


def known(version: str, *, refused: str = "", place: str = "here", trained_date: str = "2023-10-25") -> KnownVersion:
    return KnownVersion(
        "churn", version, f"digest {version}", b"{}", trained_date, "here", "staging", place, refused, START, ()
    )


def timeline(*lines: str) -> list[Statement]:
    """One statement a line, an hour after the one before: `tag production 1.0.0`, `act canary 1.1.0 500`.

    A line that starts with `&` is of the same moment as the one before it.
    """
    statements: list[Statement] = []
    for line in lines:
        kind, *words = line.removeprefix("& ").split()
        basis_points = int(words.pop()) if words[-1].isdigit() else 0
        version = words.pop()
        hour = timedelta(hours=0 if line.startswith("&") else 1)
        at = statements[-1].at + hour if statements else START
        assert kind in ("tag", "act")
        statements.append(
            Statement(
                at,
                "churn",
                version,
                f"digest {version}",
                "tag" if kind == "tag" else "act",
                " ".join(words),
                "alice",
                basis_points,
                "salt" if basis_points else "",
            )
        )
    return statements


def roles(goal: Wanted) -> str:
    """`1.0.0`, or `1.0.0 canary 1.1.0 5% shadow 1.2.0`."""
    told = [goal.production.version.version if goal.production else "nothing"]
    if goal.canary:
        told.append(f"canary {goal.canary.version.version} {goal.canary.statement.basis_points / 100:g}%")
    if goal.shadow:
        told.append(f"shadow {goal.shadow.version.version}")
    return " ".join(told)


ALL = [known(version) for version in ("1.0.0", "1.1.0", "1.2.0", "1.10.0")]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([], "nothing"),
        (["tag staging 1.0.0"], "nothing"),
        (["tag production 1.0.0"], "1.0.0"),
        # Of one moment the highest, whichever was read first; 1.10 is above 1.2.
        (["tag production 1.2.0", "& tag production 1.10.0", "& tag production 1.0.0"], "1.10.0"),
        # The newest statement wins, also where it goes back.
        (["tag production 1.0.0", "tag production 1.1.0"], "1.1.0"),
        (["tag production 1.1.0", "tag production 1.0.0"], "1.0.0"),
        (["tag staging 1.0.0", "tag production 1.1.0", "tag production 1.0.0"], "1.0.0"),
        # A tag that is taken away, or moved.
        (["tag production 1.0.0", "tag production 1.1.0", "tag staging 1.1.0"], "1.0.0"),
        (["tag production 1.0.0", "tag production 1.1.0", "tag retired 1.1.0"], "1.0.0"),
        (["tag production 1.0.0", "tag retired 1.0.0"], "nothing"),
        (["tag production 1.0.0", "tag staging 1.0.0", "tag production 1.0.0"], "1.0.0"),
        # Acts are on the same timeline.
        (["tag production 1.0.0", "tag staging 1.1.0", "act promote 1.1.0"], "1.1.0"),
        (["tag production 1.0.0", "act promote 1.1.0", "tag production 1.2.0"], "1.2.0"),
        (["tag production 1.0.0", "tag production 1.1.0", "act rollback 1.0.0"], "1.0.0"),
        (["tag production 1.0.0", "tag production 1.1.0", "act rollback 1.0.0", "tag production 1.2.0"], "1.2.0"),
        (["tag production 1.0.0", "tag production 1.1.0", "act retire 1.1.0"], "1.0.0"),
        (["tag production 1.0.0", "act retire 1.0.0"], "nothing"),
        (["tag production 1.0.0", "act retire 1.0.0", "act promote 1.0.0"], "1.0.0"),
        (["tag production 1.0.0", "act promote 1.1.0", "tag retired 1.1.0"], "1.0.0"),
        # A promoted canary that loses its canary tag stays in production.
        (["tag production 1.0.0", "tag canary 1.1.0", "act promote 1.1.0", "tag staging 1.1.0"], "1.1.0"),
        # A pin: later tags count for nothing, acts do; once it is gone the newest of all wins.
        (["tag production 1.0.0", "act pin 1.0.0", "tag production 1.1.0"], "1.0.0"),
        (["tag production 1.0.0", "act pin 1.0.0", "tag retired 1.0.0", "tag production 1.1.0"], "1.0.0"),
        (["tag production 1.0.0", "tag production 1.1.0", "act pin 1.0.0"], "1.0.0"),
        (["tag production 1.0.0", "act pin 1.0.0", "act promote 1.2.0", "tag production 1.1.0"], "1.2.0"),
        (["tag production 1.0.0", "act pin 1.0.0", "tag production 1.1.0", "act unpin 1.0.0"], "1.1.0"),
        (["tag production 1.1.0", "act pin 1.0.0", "act unpin 1.0.0"], "1.0.0"),
        (
            ["tag production 1.0.0", "act pin 1.0.0", "tag production 1.1.0", "act promote 1.2.0", "act unpin 1.2.0"],
            "1.2.0",
        ),
        # Canary and shadow.
        (["tag production 1.0.0", "tag canary 1.1.0"], "1.0.0 canary 1.1.0 0%"),
        (["tag production 1.0.0", "act canary 1.1.0 500"], "1.0.0 canary 1.1.0 5%"),
        (["tag production 1.0.0", "act canary 1.1.0 500", "act canary 1.1.0 2500"], "1.0.0 canary 1.1.0 25%"),
        (["tag production 1.0.0", "act canary 1.1.0 500", "act canary 1.2.0 100"], "1.0.0 canary 1.2.0 1%"),
        (["tag production 1.0.0", "act canary 1.1.0 500", "tag canary 1.2.0"], "1.0.0 canary 1.2.0 0%"),
        (["tag production 1.0.0", "act canary 1.1.0 500", "act canary off 1.1.0"], "1.0.0"),
        (["tag production 1.0.0", "tag canary 1.1.0", "act canary off 1.1.0"], "1.0.0"),
        (["tag production 1.0.0", "tag canary 1.1.0", "act retire 1.1.0"], "1.0.0"),
        (["tag production 1.0.0", "act canary 1.1.0 500", "act promote 1.1.0"], "1.1.0"),
        # It was promoted, and is no canary again once another one is.
        (["tag production 1.0.0", "act canary 1.1.0 500", "act promote 1.1.0", "act promote 1.2.0"], "1.2.0"),
        (["tag production 1.0.0", "tag canary 1.1.0", "tag production 1.1.0", "tag production 1.2.0"], "1.2.0"),
        (["tag production 1.0.0", "act canary 1.1.0 500", "tag production 1.2.0"], "1.2.0 canary 1.1.0 5%"),
        (["tag production 1.0.0", "tag shadow 1.1.0"], "1.0.0 shadow 1.1.0"),
        (["tag production 1.0.0", "act shadow 1.1.0", "act shadow off 1.1.0"], "1.0.0"),
        (["tag production 1.0.0", "act shadow 1.1.0", "act canary 1.1.0 100"], "1.0.0 canary 1.1.0 1%"),
        (["tag production 1.0.0", "act canary 1.1.0 100", "act shadow 1.1.0"], "1.0.0 shadow 1.1.0"),
        (["tag production 1.0.0", "act canary 1.1.0 100", "act shadow 1.2.0"], "1.0.0 canary 1.1.0 1% shadow 1.2.0"),
        (["tag production 1.0.0", "act pin 1.0.0", "tag canary 1.1.0"], "1.0.0"),
        (["tag production 1.0.0", "act pin 1.0.0", "act canary 1.1.0 100"], "1.0.0 canary 1.1.0 1%"),
        (["act adopt 1.0.0", "tag staging 1.1.0"], "1.0.0"),
    ],
)
def test_what_is_wanted_follows_from_the_timeline(lines: Sequence[str], expected: str) -> None:
    assert roles(wanted(ALL, timeline(*lines))) == expected


@pytest.mark.parametrize(
    ("versions", "expected"),
    [
        ([known("1.0.0"), known("latest")], "1.0.0"),
        ([known("2.0rc1"), known("2.0")], "2.0"),
        ([known("1.0", trained_date="2024-01-01"), known("1.0.0")], "1.0"),
        ([known("1.0"), known("1.0.0", trained_date="2023-10-25T01:00:00+00:00")], "1.0.0"),
        ([known("1.0.0"), known("3.0.0", refused="it does not load")], "1.0.0"),
        ([known("1.0.0"), known("2.0.0", place="")], "1.0.0"),
    ],
)
def test_of_versions_tagged_in_one_moment_the_highest_that_can_be_loaded_wins(
    versions: list[KnownVersion], expected: str
) -> None:
    lines = [f"{'& ' if place else ''}tag production {each.version}" for place, each in enumerate(versions)]
    assert roles(wanted(versions, timeline(*lines))) == expected


def test_a_version_whose_blobs_are_gone_is_wanted_as_long_as_redis_has_it() -> None:
    versions = [known("1.0.0"), known("2.0.0", place="")]
    said = timeline("tag production 1.0.0", "tag production 2.0.0")
    assert roles(wanted(versions, said, {"digest 2.0.0"})) == "2.0.0"


def test_what_was_said_of_other_contents_under_the_same_version_counts_for_nothing() -> None:
    (statement,) = timeline("tag production 1.0.0")
    other = Statement(statement.at, "churn", "1.0.0", "another digest", "tag", "production")
    assert roles(wanted([known("1.0.0")], [other])) == "nothing"


@pytest.mark.parametrize(
    ("lines", "version", "keeper"),
    [
        (["tag production 1.0.0", "tag production 1.1.0", "act rollback 1.0.0"], "1.1.0", "rollback 1.0.0"),
        (["tag production 1.0.0", "tag production 1.1.0", "act retire 1.1.0"], "1.1.0", "retire 1.1.0"),
        (["tag production 1.0.0", "act pin 1.0.0", "tag production 1.1.0"], "1.1.0", "pin 1.0.0"),
        (["tag production 1.1.0", "act pin 1.0.0"], "1.1.0", "pin 1.0.0"),
        (["tag production 1.0.0", "tag canary 1.1.0", "act canary off 1.1.0"], "1.1.0", "canary off 1.1.0"),
        (["tag production 1.0.0", "tag canary 1.1.0", "act canary 1.2.0 100"], "1.1.0", "canary 1.2.0"),
        (["tag production 1.0.0", "act pin 1.0.0", "tag canary 1.1.0"], "1.1.0", "pin 1.0.0"),
    ],
)
def test_what_an_act_keeps_back_is_told_with_the_act(lines: Sequence[str], version: str, keeper: str) -> None:
    held = wanted(ALL, timeline(*lines)).held
    assert {name: f"{by.word} {by.version}" for name, by in held.items() if name == version} == {version: keeper}


@pytest.mark.parametrize(
    "lines",
    [
        ["tag production 1.0.0", "tag production 1.1.0"],  # one tag after another keeps nothing back
        ["tag production 1.0.0", "tag staging 1.1.0", "act promote 1.0.0"],
        ["tag production 1.1.0", "act promote 1.0.0", "tag production 1.2.0"],  # a tag beat the act
    ],
)
def test_what_no_act_keeps_back_is_not_told_as_held(lines: Sequence[str]) -> None:
    assert wanted(ALL, timeline(*lines)).held == {}


def test_a_retired_version_is_said_to_be_until_something_asks_for_it() -> None:
    lines = ["tag production 1.0.0", f"act {RETIRE} 1.0.0"]
    assert wanted(ALL, timeline(*lines)).retired == {"1.0.0"}
    assert wanted(ALL, timeline(*lines, "tag staging 1.0.0")).retired == {"1.0.0"}
    assert wanted(ALL, timeline(*lines, "tag staging 1.0.0", "tag production 1.0.0")).retired == frozenset()
    assert wanted(ALL, timeline(*lines, "act canary 1.0.0 100")).retired == frozenset()


@pytest.mark.parametrize(
    ("lines", "lives", "expected"),
    [
        (["tag production 1.0.0"], ["1.0.0"], []),
        (["tag production 1.0.0", "tag production 1.1.0"], ["1.0.0", "1.1.0"], ["1.0.0"]),
        (
            ["tag production 1.0.0", "tag production 1.1.0", "act promote 1.2.0"],
            ["1.0.0", "1.1.0", "1.2.0"],
            ["1.1.0", "1.0.0"],
        ),
        # A second rollback goes further back, not forth.
        (
            ["tag production 1.0.0", "tag production 1.1.0", "act promote 1.2.0", "act rollback 1.1.0"],
            ["1.0.0", "1.1.0", "1.2.0", "1.1.0"],
            ["1.0.0"],
        ),
        (["tag production 1.0.0", "tag production 1.1.0", "act rollback 1.0.0"], ["1.0.0", "1.1.0", "1.0.0"], []),
        (
            ["tag production 1.0.0", "tag production 1.1.0", "act rollback 1.0.0", "act promote 1.1.0"],
            ["1.0.0", "1.1.0", "1.0.0", "1.1.0"],
            ["1.0.0"],
        ),
    ],
)
def test_a_rollback_goes_to_what_answered_before(lines: Sequence[str], lives: list[str], expected: list[str]) -> None:
    said = timeline(*lines)
    # Each went live right after the statement that asked for it.
    moments = [statement.at + timedelta(minutes=1) for statement in said]
    assert answered_before(list(zip(moments, lives, strict=True)), said, lives[-1]) == expected


def test_where_nothing_answers_a_rollback_goes_to_what_answered_last() -> None:
    said = timeline("tag production 1.0.0", "tag production 1.1.0", "act retire 1.1.0")
    lives = [(statement.at, statement.version) for statement in said[:2]]
    assert answered_before(lives, said) == ["1.1.0", "1.0.0"]


def test_a_statement_is_told_in_a_sentence() -> None:
    tag, act = timeline("tag production 1.0.0", "act canary 1.1.0 550")
    assert tag.told == "tagged production, first seen 2026-01-01 00:00:00 UTC"
    assert act.told == "made canary at 5.5 % by alice, 2026-01-01 01:00:00 UTC"
