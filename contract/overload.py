"""Overload: how many rows may wait for a model, so that what is let in is answered before its deadline.

    wait = rows waiting / rows the pool computes in a second        refused at once where wait > deadline

What is estimated, and how:
- A worker's rate for a model is what it does when it works on that model alone, in batches of the size it reads when
  there is enough: checking, predicting and completing, per row. Requests of many rows cost less per row than those of
  one; the rate is that of the mix it served last. It is known to gateways about a second later. A living worker that
  has not yet been measured on a model counts as the mean of those that have.
- While only small batches were measured, the rate may be far higher: then at least two batches per worker are let in,
  as where nothing was measured yet.
- Workers take the interactive lanes in turn, one batch of each model that waits. So a model gets an equal share of the
  pool's time, as long as the others have work: until it is done, every other model is given as much time as it wants,
  and at most as much as this one. That batches of different models take equally long is assumed; it is what their
  size aims at, but for a model whose single row takes longer.
- What others have waiting is as the gateway saw it last, a quarter of a second ago at most. The rows of the model
  itself are counted where the request is appended, in the same step.
- The bulk lane does not count: it is read only where no interactive lane has anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from contract.errors import Reason, Refused
from contract.presence import Presence
from contract.settings import Settings

SHARE = 0.8
"""Of a deadline, this much may go by while the request waits; the rest is for its way in and out and for what the
estimate does not know."""
BATCHES = 2
"""Batches per worker that are let in while the rate is not known."""
SHORTEST_RETRY_S, UNKNOWN_RETRY_S, LONGEST_RETRY_S = 0.05, 0.5, 30.0


class Bound(NamedTuple):
    """Rows that may wait for one request to be let in, its own among them."""

    rows: int
    retry_s_per_row: float = 0.0
    """How long a waiting row takes to be gone, 0 where nobody knows."""

    def refusal(self, waiting: int, rows: int) -> Refused:
        """What a request is told that came when too much was waiting."""
        text = f"{waiting} rows are waiting for this model, the bound for this request is {self.rows}"
        if not self.retry_s_per_row:
            return Refused(Reason.QUEUE_FULL, text, retry_after_s=UNKNOWN_RETRY_S)
        excess_s = (waiting + rows - self.rows) * self.retry_s_per_row
        text += f": {1 / self.retry_s_per_row:.3g} rows are computed a second, it would be answered after its deadline"
        return Refused(Reason.QUEUE_FULL, text, retry_after_s=min(max(excess_s, SHORTEST_RETRY_S), LONGEST_RETRY_S))


@dataclass(frozen=True, slots=True)
class Pool:
    """What the living workers do for one model."""

    rows_per_s: float = 0.0
    """All of them together; 0 while no rate is known."""
    workers: int = 1
    rough: bool = True
    """Only small batches were measured so far: the rate is the least that it can be."""
    others_s: Sequence[float] = ()
    """Seconds of work, on the whole pool, for each other model that has rows waiting; ascending."""

    def bound(self, deadline_s: float, settings: Settings) -> Bound:
        """What may wait so that a request which is `deadline_s` from its deadline is answered in time."""
        rows = BATCHES * settings.batch_rows * max(1, self.workers) if self.rough else 0
        if self.rows_per_s:
            own_s = self._share(max(0.0, deadline_s) * SHARE)
            rows = max(rows, int(own_s * self.rows_per_s))
        return Bound(min(rows, settings.max_waiting_rows), 1 / self.rows_per_s if self.rows_per_s else 0.0)

    def _share(self, seconds: float) -> float:
        """Seconds of them that are this model's own: the largest x with x + sum(min(other, x)) <= seconds."""
        left, sharing = seconds, len(self.others_s) + 1
        for other in self.others_s:
            if other * sharing >= left:
                break
            left -= other
            sharing -= 1
        return left / sharing


UNKNOWN = Pool()


def pools(workers: Sequence[Presence], waiting: Mapping[str, int]) -> dict[str, Pool]:
    """The pool as each model sees it; `waiting` is model_id -> rows in its interactive lane."""
    seen = {model_id: _alone(model_id, workers) for model_id in waiting}
    work_s = {
        model_id: waiting[model_id] / pool.rows_per_s
        for model_id, pool in seen.items()
        if waiting[model_id] > 0 and pool.rows_per_s
    }
    return {
        model_id: replace(pool, others_s=tuple(sorted(s for other, s in work_s.items() if other != model_id)))
        for model_id, pool in seen.items()
    }


def _alone(model_id: str, workers: Iterable[Presence]) -> Pool:
    """What the workers that serve a model do where no other model has work."""
    serving = [worker for worker in workers if worker.serves(model_id)]
    measured = [worker for worker in serving if worker.rows_per_s.get(model_id, 0.0) > 0]
    sure = [worker for worker in measured if model_id not in worker.rough]
    rates = [worker.rows_per_s[model_id] for worker in sure or measured]
    return Pool(sum(rates) / len(rates) * len(serving) if rates else 0.0, len(serving), not sure)
