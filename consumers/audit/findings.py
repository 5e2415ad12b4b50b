"""What verifying a log finds: sentences for people, and the same as fields."""

from __future__ import annotations

from dataclasses import dataclass, field

MOST = 50
"""Findings of a model that are told one by one."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was recorded."""

    model_id: str
    what: str
    """row, order, hole, segment, position, erasure, head."""
    text: str
    """A sentence."""
    number: int | None = None
    """Running number of the first event it is about."""
    request_id: str | None = None
    columns: tuple[str, ...] = ()
    file: str = ""


@dataclass(slots=True)
class Verified:
    """What was found of one model."""

    model_id: str
    events: int = 0
    """Rows that were read."""
    uncovered: int = 0
    """Rows of them that were recorded before there was a chain."""
    segments: int = 0
    erased: int = 0
    """Rows of them that were erased, as the record of erasures says."""
    erasures: list[str] = field(default_factory=list)
    """When, how many and why."""
    number: int = 0
    """Running number of the last event."""
    chain: str = ""
    """The chain's value at its end, hex."""
    heads: int = 0
    """Heads that the log agrees with."""
    heads_unchecked: int = 0
    """Heads of what retention removed, or of what can't be read."""
    vouched_number: int = 0
    """The running number up to which a head agrees."""
    vouched_us: int = 0
    """When that head was made; 0: there is none."""
    findings: list[Finding] = field(default_factory=list)
    more: int = 0
    """Findings beyond the most that are told."""
    notes: list[str] = field(default_factory=list)
    """What is worth knowing and nothing wrong."""

    def found(self, finding: Finding) -> None:
        if len(self.findings) < MOST:
            self.findings.append(finding)
        else:
            self.more += 1

    @property
    def sound(self) -> bool:
        return not self.findings
