"""Whether the log has everything that was accepted: the counters in Redis against the log, never the log with itself.

accepted + copies = completed + what waits in the lanes       in Redis, at one moment
completed         = the last running number in the log, less what the log is ahead since Redis lost something
every number up to it is a row once, or a gap or retention says where it is
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import redis

from consumers.audit.numbers import InLog
from consumers.sink.schema import COPY
from contract.keys import Keys

_COUNTERS = ("accepted", "completed", "copies", "duplicates")


@dataclass(frozen=True, slots=True)
class Counts:
    """What Redis says of a model, at one moment."""

    model_id: str
    accepted: int
    completed: int
    copies: int
    duplicates: int
    epoch: str
    requests: int
    """Entries in the interactive lane."""
    bulk: int
    """Entries in the bulk lane, with those that nobody has read: they are accepted at their first read."""

    @property
    def waiting(self) -> int:
        """Requests that were accepted and not completed, by the counters."""
        return self.accepted + self.copies - self.completed

    @property
    def problem(self) -> str:
        """How the counters differ from the lanes, in a sentence; empty where they do not."""
        if self.requests <= self.waiting <= self.requests + self.bulk:
            return ""
        lanes = f"{self.requests} in the interactive lane and {self.bulk} in the bulk lane"
        return (
            f"accepted {self.accepted} + copies {self.copies} - completed {self.completed} = {self.waiting} should "
            f"wait, and there are {lanes}"
        )


def read_counts(client: redis.Redis, keys: Keys, models: Iterable[str]) -> dict[str, Counts]:
    """By model, each at one moment. Raises what redis-py raises."""
    found = {}
    for model_id in models:
        names = keys.model(model_id)
        pipe = client.pipeline(transaction=True)
        pipe.hgetall(names.count)
        pipe.xlen(names.requests)
        pipe.xlen(names.bulk)
        counts, requests, bulk = pipe.execute()
        said = {name.decode(): value.decode() for name, value in counts.items()}
        accepted, completed, copies, duplicates = (_number(said.get(name, "0")) for name in _COUNTERS)
        epoch = said.get("epoch", "")
        found[model_id] = Counts(model_id, accepted, completed, copies, duplicates, epoch, requests, bulk)
    return found


def _number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        return 0


@dataclass(frozen=True, slots=True)
class Reconciled:
    """The books of a model."""

    counts: Counts
    log: InLog
    unknown: tuple[str, ...] = ()
    """Digests that no registry knows, each with its version."""
    unchecked: int = 0
    """Digests that nobody could be asked about."""
    problems: tuple[str, ...] = ()
    """What does not add up, in sentences."""

    @property
    def adds_up(self) -> bool:
        return not self.problems


def reconcile(
    before: Counts, log: InLog, after: Counts, known: Collection[str], *, knows_all: bool, alarm: str = ""
) -> Reconciled:
    """`before` was read, then the log, then `after`; `known` are digests, of all versions that ever were or of some."""
    problems = [after.problem] if after.problem else []
    if log.epoch and after.epoch and log.epoch != after.epoch:
        problems.append("the stream in Redis is another one than the log was written from")
    elif log.counted < before.completed:
        behind = f"{before.completed - log.counted} events are not in the log: it has reached {log.counted}"
        why = f"; {alarm}" if alarm else ""
        problems.append(f"{behind}, Redis counts {before.completed} completed{why}")
    elif log.counted > after.completed:
        problems.append(f"the log has reached {log.counted}, Redis counts {after.completed} completed")
    problems += [f"{hole}" for hole in log.holes]
    problems += [f"{text}" for text in log.unreadable]
    copies = log.by_status.get(COPY, 0)
    if log.whole and not before.copies <= copies <= after.copies:
        problems.append(f"the log has {copies} copies ({COPY}), Redis counts {after.copies}")
    missing = {digest: version for digest, version in log.versions.items() if digest not in known}
    unknown = tuple(f"{version} ({digest})" for digest, version in sorted(missing.items())) if knows_all else ()
    problems += [f"the registry does not know version {text}" for text in unknown]
    return Reconciled(after, log, unknown, 0 if knows_all else len(missing), tuple(problems))
