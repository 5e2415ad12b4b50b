"""What the gate rules of a version that is about to take over, by what a replay of recorded requests found.

terms of the model, finding of a replay -> GoOn: it takes over, perhaps with a warning
                                        -> Hold: what answers goes on; tried again, or not until it is said anew
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from contract.signature_parts import Value
from contract.trial import Answers, plain

Policy = Literal["off", "warn", "block"]
OFF, WARN, BLOCK = POLICIES = get_args(Policy)
LEAST_ANSWERS = 20
"""Of fewer recorded answers no share is taken."""
MOST_ROWS = 10_000
_SHOWN = 5
"""Outputs that are told of one by one."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a model asks of a version before it takes over."""

    policy: Policy
    rows: int
    """Most recorded answers that are compared, the newest."""
    changed: float
    """Share of them that may change, 0 to 1."""
    tolerance: float
    """By how much a number may differ without being another: so much, and this part of what it was."""

    @property
    def problem(self) -> str:
        """Why these are no terms; empty where they are."""
        if self.policy not in POLICIES:
            return f"expected one of {', '.join(POLICIES)} as policy, got {self.policy[:40]!r}"
        if not 1 <= self.rows <= MOST_ROWS:
            return f"expected 1 to {MOST_ROWS:,} recorded answers to compare, got {self.rows:,}"
        if not 0 <= self.changed <= 1:
            return f"expected a share of answers that may change from 0 to 1, got {self.changed:g}"
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            return f"expected a tolerance of 0 or more, got {self.tolerance:g}"
        return ""

    @property
    def told(self) -> str:
        """For people."""
        if self.policy == OFF:
            return "off: versions take over without a replay"
        limit = f"at most {percent(self.changed)} of the last {self.rows:,} recorded answers may change"
        within = f", by more than {self.tolerance:g} where they are numbers" if self.tolerance else ", in any bit"
        return f"{self.policy}: {limit}{within}"


OPEN = Terms(OFF, MOST_ROWS, 1.0, 0.0)
"""Every version takes over."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How one output differs from what was answered."""

    changed: int = 0
    largest: float | None = None
    """The largest distance between two numbers; None where none is larger than 0, or they are no numbers."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a replay found."""

    against: str
    """The version that gave the recorded answers."""
    replayed: int
    """Recorded answers that were compared, whatever came of that."""
    changed: int = 0
    failed: int = 0
    """Rows on which the version raised."""
    unfit: int = 0
    """Rows that its signature does not admit any more."""
    outputs: Mapping[str, Difference] = field(default_factory=dict)
    why: str = ""
    """What it raised, or why a row is not admitted; the first of them."""

    @property
    def others(self) -> int:
        """Recorded answers that would not be given again: another one, or an error."""
        return self.changed + self.failed + self.unfit

    @property
    def told(self) -> str:
        """What was seen, for people and for the history."""
        share = f" ({percent(self.others / self.replayed)})" if self.replayed else ""
        said = [
            f"of {self.replayed:,} recorded answers of {self.against}, {self.others:,}{share} would not be given again"
        ]
        if self.others:
            kinds = ((self.changed, "changed"), (self.failed, "failed"), (self.unfit, "not admitted any more"))
            said.append(", ".join(f"{count:,} {kind}" for count, kind in kinds if count))
        differing = {name: each for name, each in self.outputs.items() if each.changed or each.largest}
        most = sorted(differing.items(), key=lambda item: (-item[1].changed, item[0]))
        said += [_differs(name, each) for name, each in most[:_SHOWN]]
        if len(most) > _SHOWN:
            said.append(f"{len(most) - _SHOWN} more outputs differ")
        return "; ".join([*said, *([self.why] if self.why else [])])


@dataclass(frozen=True, slots=True)
class Unsettled:
    """Why there is no finding; it may pass."""

    reason: str


@dataclass(frozen=True, slots=True)
class GoOn:
    """The version takes over."""

    told: str = ""
    is_warning: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """What answers goes on."""

    told: str
    """For the history."""
    short: str
    """For who asks why it is held back."""
    again: bool
    """Whether the next look into the store has it replayed anew."""


Ruling = GoOn | Hold


def rule(seen: Finding | Unsettled, terms: Terms) -> Ruling:
    """Whether a version takes over; the policy of the terms is not `off`."""
    blocks = terms.policy == BLOCK
    if isinstance(seen, Unsettled):
        if blocks:
            return Hold(f"{seen.reason}; tried again at the next look into the store", seen.reason, again=True)
        return GoOn(f"nothing was compared: {seen.reason}; it goes on, the policy is to warn", is_warning=True)
    if seen.replayed < LEAST_ANSWERS:
        few = f"{seen.replayed} recorded answers of {seen.against} are too few to judge by ({LEAST_ANSWERS} are enough)"
        return GoOn(f"{few}; it goes on")
    if seen.failed and blocks:
        short = f"it fails {seen.failed:,} of {seen.replayed:,} recorded requests: {seen.why}"
        return Hold(f"{seen.told}; tried again at the next look into the store", short, again=True)
    share = seen.others / seen.replayed
    if share <= terms.changed and not seen.failed:
        return GoOn(seen.told)
    limit = f"at most {percent(terms.changed)}"
    if blocks:
        short = f"{percent(share)} of {seen.replayed:,} recorded answers change, {limit}"
        return Hold(f"{seen.told}; {limit} may", short, again=False)
    over = f"; {limit} may" if share > terms.changed else ""
    return GoOn(f"{seen.told}{over}; it goes on, the policy is to warn", is_warning=True)


def compared(
    against: str, then: Sequence[Mapping[str, Value]], answers: Answers | None, tolerance: float, unfit: int, why: str
) -> Finding:
    """What the answers to rows are beside those of `then`, row by row; `unfit` rows more were not admitted.

    None for no row that was. An output that is gone is a change; one that is new is none.
    """
    if answers is None:
        return Finding(against, unfit, unfit=unfit, why=why)
    outputs: dict[str, Difference] = {}
    changed = 0
    for row, recorded in enumerate(then):
        if row in answers.failed:
            continue
        is_other = False
        for name, distance in _distances(recorded, answers, row, tolerance):
            past = outputs.get(name, Difference())
            other, size = distance
            is_other |= other
            largest = max(past.largest or 0.0, size) or None
            outputs[name] = Difference(past.changed + other, largest)
        changed += is_other
    failed = len(answers.failed)
    return Finding(against, len(then) + unfit, changed, failed, unfit, outputs, (answers.why if failed else "") or why)


def _distances(
    recorded: Mapping[str, Value], answers: Answers, row: int, tolerance: float
) -> Iterator[tuple[str, tuple[bool, float]]]:
    for name, before in recorded.items():
        column = answers.columns.get(name)
        yield plain(name), (True, 0.0) if column is None else difference(before, column[row], tolerance)


def difference(before: Value, after: Value, tolerance: float) -> tuple[bool, float]:
    """Whether it is another value, and how far two numbers lie apart, 0 where they are none.

    `before` was JSON: what is no number there, NaN or an infinity, is None. Labels, booleans and two integers are the
    same only where they are equal.
    """
    if isinstance(after, float) and not math.isfinite(after):
        after = None
    if before is None or after is None or isinstance(before, bool | str) or isinstance(after, bool | str):
        return (type(before) is not type(after) or before != after), 0.0
    size = float(abs(after - before))
    if not size:
        return False, 0.0
    if isinstance(before, int) and isinstance(after, int):
        return True, size
    return size > tolerance + tolerance * abs(before), size


def percent(share: float) -> str:
    """`23 %`, `0.4 %`; what is not nothing never looks like nothing."""
    points = share * 100
    return f"{points:.3g} %" if points < 10 else f"{points:.1f} %".replace(".0 %", " %")


def _differs(name: str, each: Difference) -> str:
    by = f" by up to {each.largest:.3g}" if each.largest else ""
    return f"{name} differs{by} ({each.changed:,} changed)"
