"""What is wanted of a model: one pure function of its versions and of the timeline of tags and operators' acts.

    tag   production   1.0.0   Monday, first seen so      |
    tag   production   1.1.0   Tuesday                    |   newest statement that still stands -> production 1.1.0
    act   canary       1.2.0   Wednesday, 5 %, by alice   |                                      -> canary 1.2.0, 5 %
    act   rollback     1.0.0   Thursday, by bob           v                                      -> production 1.0.0

A statement about a version stands until a later one about the same version takes it back: another tag instead of it,
the act that ends it, or a role that excludes it. Of the statements that stand the newest wins; of those of one moment,
the highest version, then the one trained last. While a model is pinned, tags that came after the pin count for
nothing; once it is unpinned they count from when they were seen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from registry.catalogue.known import KnownVersion, Rank
from registry.promotion.ruling import Hold

PRODUCTION, CANARY, SHADOW, STAGING, RETIRED = TAGS = ("production", "canary", "shadow", "staging", "retired")
"""What a tag may say, the strongest first."""

PROMOTE, ROLLBACK, PIN, UNPIN, ADOPT = "promote", "rollback", "pin", "unpin", "adopt"
DESPITE = "promote despite the gate"
RETIRE, CANARY_OFF, SHADOW_OFF = "retire", "canary off", "shadow off"

_CLAIMS: Mapping[str, frozenset[str]] = {
    PRODUCTION: frozenset({PROMOTE, DESPITE, ROLLBACK, PIN, ADOPT}),
    CANARY: frozenset({CANARY}),
    SHADOW: frozenset({SHADOW}),
}
"""Role -> the acts that give it to a version."""

_ENDS: Mapping[str, frozenset[str]] = {
    PRODUCTION: frozenset({RETIRE}),
    CANARY: frozenset({RETIRE, CANARY_OFF, SHADOW}) | _CLAIMS[PRODUCTION],
    SHADOW: frozenset({RETIRE, SHADOW_OFF, CANARY}) | _CLAIMS[PRODUCTION],
}
"""Role -> the acts that take it from a version."""

_SENTENCES = {
    PROMOTE: "promoted",
    DESPITE: "promoted despite the gate",
    ROLLBACK: "rolled back to",
    PIN: "pinned",
    UNPIN: "unpinned",
    ADOPT: "taken over from the record in Redis",
    RETIRE: "retired",
    CANARY_OFF: "taken out of canary",
    SHADOW_OFF: "taken out of shadow",
    SHADOW: "made shadow",
}


@dataclass(frozen=True, slots=True)
class Statement:
    """One entry of the timeline: what was said of a version, when, and by whom."""

    at: datetime
    """When a tag's blob was first seen so; when an act was done."""
    model_id: str
    version: str
    digest: str
    kind: Literal["tag", "act"]
    word: str
    """One of TAGS, or the act."""
    by: str = ""
    basis_points: int = 0
    """Of a canary: its share."""
    salt: str = ""
    abort_over: float = 0.0
    """Of a canary: the share of failures above which its share becomes 0; 0 for none."""

    @property
    def told(self) -> str:
        """For people: `promoted by alice@host, 2026-01-02 10:00:00 UTC`."""
        when = f"{self.at:%Y-%m-%d %H:%M:%S} UTC"
        if self.kind == "tag":
            return f"tagged {self.word}, first seen {when}"
        canary = f"made canary at {self.basis_points / 100:g} %"
        said = canary if self.word == CANARY else _SENTENCES[self.word]
        return f"{said}{f' by {self.by}' if self.by else ''}, {when}"


@dataclass(frozen=True, slots=True)
class Claim:
    """A version and the statement that gives it its role."""

    version: KnownVersion
    statement: Statement

    @property
    def rank(self) -> tuple[datetime, Rank]:
        """A key to sort claims of one role by: the highest wins."""
        return self.statement.at, self.version.rank


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is wanted of one model."""

    production: Claim | None = None
    """The version that should answer; None: what answers goes on, unless it was retired."""
    canary: Claim | None = None
    shadow: Claim | None = None
    pin: Statement | None = None
    retired: frozenset[str] = frozenset()
    """Versions that an operator took out of service."""
    held: Mapping[str, Statement] = field(default_factory=dict)
    """Version -> the act that keeps back what its tag asks for."""
    decided_us: int = 0
    """When the newest statement was made, in microseconds since the Unix epoch."""
    gated: Mapping[str, Hold] = field(default_factory=dict)
    """Version -> why the gate keeps it from production, though a statement asks for it."""
    is_examined: bool = False
    """Whether the gate still examines the version that should answer: until then what answers goes on."""

    @property
    def claims(self) -> list[Claim]:
        """The versions that should be loaded, the most important first."""
        return [claim for claim in (self.production, self.canary, self.shadow) if claim is not None]


def wanted(
    versions: Iterable[KnownVersion],
    statements: Sequence[Statement],
    in_redis: Collection[str] = frozenset(),
    without: Collection[Statement] = frozenset(),
) -> Wanted:
    """What is wanted of one model; `statements` are those about it, oldest first.

    Those in `without` give no role and take none; a pin among them still makes later tags count for nothing.

    A version that was refused gets no role. One whose blobs are gone gets one only where its digest is `in_redis`:
    deleting blobs never takes a model down.
    """
    known = list(versions)
    pin = _pin(statements)
    own = {
        each.version: [
            s for s in statements if (s.version, s.digest) == (each.version, each.digest) and s not in without
        ]
        for each in known
    }
    counting = {version: [s for s in said if not _is_held_by(pin, s)] for version, said in own.items()}

    def best(role: str, *taken: Claim | None) -> Claim | None:
        others = {claim.version.key for claim in taken if claim is not None}
        claims = [
            Claim(each, statement)
            for each in known
            if (statement := _standing(role, counting[each.version])) is not None
            and each.key not in others
            and not each.refused
            and (each.place or each.digest in in_redis)
        ]
        return max(claims, key=lambda claim: claim.rank, default=None)

    production = best(PRODUCTION)
    canary = best(CANARY, production)
    shadow = best(SHADOW, production, canary)
    chosen = {PRODUCTION: production, CANARY: canary, SHADOW: shadow}
    held = {}
    for each in known:
        by = _holder(own[each.version], pin, chosen)
        if by is not None:
            held[each.version] = by
    return Wanted(
        production,
        canary,
        shadow,
        pin,
        frozenset(version for version, said in counting.items() if _is_retired(said)),
        held,
        max((micros(statement.at) for statement in statements), default=0),
    )


def is_asked_for(version: KnownVersion, statements: Iterable[Statement]) -> bool:
    """Whether a tag or an act asks for a role for it, whatever speaks against that."""
    said = [s for s in statements if (s.version, s.digest) == (version.version, version.digest)]
    return any(_standing(role, said) is not None for role in _CLAIMS)


def micros(at: datetime) -> int:
    """Microseconds since the Unix epoch, exact."""
    return int(at.timestamp()) * 1_000_000 + at.microsecond


def answered_before(
    lives: Sequence[tuple[datetime, str]], statements: Sequence[Statement], live: str = ""
) -> list[str]:
    """The versions that a rollback goes back to, the nearest first; `live`, which answers now, is not among them.

    `lives` is when which version became the one that answers, oldest first. A rollback leaves what it came from
    behind, so that the next one goes further back and not forth.
    """
    stack: list[str] = []
    for at, version in lives:
        newest = [
            s
            for s in statements
            if s.version == version and s.at <= at and (s.word in _CLAIMS[PRODUCTION] or s.word == PRODUCTION)
        ]
        if newest and newest[-1].word == ROLLBACK and version in stack:
            del stack[stack.index(version) + 1 :]
        else:
            stack = [each for each in stack if each != version] + [version]
    return [version for version in reversed(stack) if version != live]


def _pin(statements: Iterable[Statement]) -> Statement | None:
    """The pin that is in force."""
    pin = None
    for statement in statements:
        if statement.kind == "act" and statement.word in (PIN, UNPIN):
            pin = statement if statement.word == PIN else None
    return pin


def _is_held_by(pin: Statement | None, statement: Statement) -> bool:
    return pin is not None and statement.kind == "tag" and statement.at > pin.at


def _standing(role: str, said: Iterable[Statement]) -> Statement | None:
    """The statement that gives a role to a version, of all that was said of it; None where none stands."""
    standing, tag = None, ""
    for statement in said:
        if statement.kind == "tag":
            past, tag = tag, statement.word
            if tag == role:
                standing = statement
            elif past == role or tag in (PRODUCTION, RETIRED):
                standing = None
        elif statement.word in _CLAIMS[role]:
            standing = statement
        elif statement.word in _ENDS[role]:
            standing = None
    return standing


def _is_retired(said: Iterable[Statement]) -> bool:
    """Whether an operator took it out of service, and nothing since asks for it."""
    retired = False
    for statement in said:
        if statement.kind == "act":
            retired = statement.word == RETIRE or (
                retired and not any(statement.word in claims for claims in _CLAIMS.values())
            )
        elif statement.word in _CLAIMS:
            retired = False
    return retired


def _holder(said: Sequence[Statement], pin: Statement | None, chosen: Mapping[str, Claim | None]) -> Statement | None:
    """The act that keeps back what a version's tag asks for; None where none does."""
    tag = next((s for s in reversed(said) if s.kind == "tag"), None)
    if tag is None or tag.word not in chosen:
        return None
    winner = chosen[tag.word]
    if winner is not None and winner.version.version == tag.version:
        return None
    if _is_held_by(pin, tag):
        return pin
    later = [s for s in said if s.kind == "act" and s.at > tag.at]
    if later:
        last = later[-1]
        if last.word == RETIRE or last.word in _ENDS[tag.word]:
            return last
    if winner is not None and winner.statement.kind == "act" and winner.statement.at > tag.at:
        return winner.statement
    return None
