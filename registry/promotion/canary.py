"""The canary's failures: how many of the requests it got it failed, as the living workers count them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from contract.presence import Presence
from registry.promotion.timeline import Claim

LEAST_REQUESTS = 20
"""Of fewer requests no share is taken."""


@dataclass(frozen=True, slots=True)
class Tally:
    """Requests since the share was set."""

    finished: int = 0
    failed: int = 0
    """Of the finished ones: the model raised, or took its process down."""

    def is_over(self, limit: float) -> bool:
        """Whether a larger share than `limit` failed; 0 is no limit."""
        return limit > 0 and self.finished >= LEAST_REQUESTS and self.failed > limit * self.finished

    @property
    def told(self) -> str:
        return f"{self.failed} of {self.finished} requests failed"


class CanaryCounts:
    """What the workers counted for one canary, from when its share was set."""

    def __init__(self) -> None:
        self._of: tuple[str, datetime] | None = None
        self._last: dict[str, tuple[int, int]] = {}
        self.tally = Tally()

    def look(self, claim: Claim, workers: Sequence[Presence]) -> Tally:
        """Takes in what the workers show now; a new statement about the canary starts the count over.

        What a worker had counted before that is left out; one that came up since counts from its start.
        """
        digest = claim.version.digest
        shown = {worker.name: worker.outcomes[digest] for worker in workers if digest in worker.outcomes}
        if self._of != (digest, claim.statement.at):
            self._of, self.tally, self._last = (digest, claim.statement.at), Tally(), shown
            return self.tally
        for name, (finished, failed) in shown.items():
            past = self._last.get(name, (0, 0))
            more = Tally(self.tally.finished + finished - past[0], self.tally.failed + failed - past[1])
            self.tally = more
        self._last |= shown
        return self.tally
