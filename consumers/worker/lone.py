"""Lone attempts: an entry whose lease ran out is tried alone, since it may be what ended the worker that held it.

abandoned -> this worker's name is put down -> tried -> completed: the exit takes all names away
                                                     -> came to nothing, and the worker lives: it takes its name away
                                                     -> the worker died: its name stays, and is a crash

So only a process that died while it computed an entry alone counts against that entry.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import redis
import structlog

from consumers.worker.lanes import Batch, delivery
from contract.completion import BULK, INTERACTIVE
from contract.connection import Argument, run
from contract.keys import GROUP, Keys
from contract.line import Line
from contract.scripts import GIVE_BACK, RETRY
from contract.settings import Settings

LOOK_S = 0.1

log = structlog.get_logger()


class LoneAttempts:
    """One worker's; used by the thread that predicts, `give_back` by whoever ends the worker too."""

    def __init__(self, line: Line, keys: Keys, settings: Settings, consumer: str) -> None:
        self._line = line
        self._keys = keys
        self._consumer = consumer
        self._lease_s = settings.lease_s
        self._most = settings.max_crashes
        self._look_at = 0.0
        self._tried: set[str] = set()
        """Models where this worker's name may stand though it tries nothing."""

    @property
    def due(self) -> bool:
        """Whether it is time to look."""
        return time.monotonic() >= self._look_at

    def look(self, models: Sequence[str]) -> list[Batch]:
        """An abandoned entry for an attempt alone, where there is one; looked for every tenth of a second.

        Raises what Redis raises when it is gone.
        """
        now = time.monotonic()
        if not self.due:
            return []
        for model_id in list(self._tried):
            self._line.run(GIVE_BACK, *self._names(model_id))
            self._tried.discard(model_id)
        for model_id in models:
            keys = self._keys.model(model_id)
            for lane, stream in ((INTERACTIVE, keys.requests), (BULK, keys.bulk)):
                arguments: list[Argument] = [GROUP, self._consumer, int(self._lease_s * 1000), self._most]
                # From here on: where the answer is lost, nobody knows whether the name was put down.
                self._tried.add(model_id)
                answer = self._line.run(RETRY, [stream, keys.crashes, keys.lone], arguments)
                if answer and len(answer) > 1:
                    entry_id, fields, names, deliveries = answer
                    before = names.decode().split()
                    log.info("retrying alone", model_id=model_id, entry=entry_id.decode(), crashes=len(before))
                    if len(before) < self._most or not self._any_lives(before):
                        one = delivery((entry_id, fields), deliveries)
                        return [Batch(model_id, lane, [one], lone=True, crashes=len(before))]
                    # It is computing, or has only lost its lease: another lease from now there will be more to see.
                    log.warning("a request is not given up yet: who tried it alone lives", entry=entry_id.decode())
                self._tried.discard(model_id)
        self._look_at = now + max(LOOK_S, 0.005 * len(models))
        return []

    def completed(self, model_id: str) -> None:
        """The attempt is over, and the exit has taken the name away."""
        self._tried.discard(model_id)

    def hold_off(self) -> None:
        """For the time of a lease nothing is taken: Redis was gone, and living workers have to renew theirs first."""
        self._look_at = time.monotonic() + self._lease_s

    def give_back(self, client: redis.Redis) -> None:
        """This worker ends though it lives: no attempt of its own was a crash. Raises what Redis raises."""
        for model_id in list(self._tried):
            run(client, GIVE_BACK, *self._names(model_id))
            self._tried.discard(model_id)

    @property
    def owes(self) -> bool:
        """Whether its name may stand somewhere."""
        return bool(self._tried)

    def _names(self, model_id: str) -> tuple[list[str], list[Argument]]:
        keys = self._keys.model(model_id)
        return [keys.requests, keys.bulk, keys.crashes, keys.lone], [GROUP, self._consumer]

    def _any_lives(self, names: Sequence[str]) -> bool:
        """Whether a process that is thought to have died shows itself still."""
        return any(self._line.ask([("EXISTS", self._keys.presence("worker", name)) for name in names]))
