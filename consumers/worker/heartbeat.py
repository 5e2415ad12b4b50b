"""The heartbeat: what a worker does while it computes, so that others see that it lives, and end it when it hangs.

    beat   renews leases, shows presence, removes silent consumers: waits for Redis
    watch  waits for nothing but time: tells the supervisor that Python runs, ends an endless batch or a long drain

They are two threads, so that a Redis that hangs is not taken for a worker that does.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import redis
import structlog
from redis.exceptions import RedisError

from consumers.worker.lanes import Lanes
from consumers.worker.leases import Leases, forget
from consumers.worker.pace import Paces
from consumers.worker.shadow import Shadow
from consumers.worker.shelf import Shelf
from consumers.worker.tally import Tally
from contract.connection import living, show
from contract.keys import Keys
from contract.presence import BEAT_S, Presence
from contract.settings import Settings

FORGET_LEASES = 10
"""A consumer that holds nothing is forgotten after the time of so many leases; looked for as often."""

log = structlog.get_logger()


class Heartbeat:
    """One worker's."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        settings: Settings,
        name: str,
        *,
        leases: Leases,
        shelf: Shelf,
        lanes: Lanes,
        paces: Paces,
        tally: Tally,
        shadow: Shadow,
    ) -> None:
        self._client = client
        self._keys = keys
        self._settings = settings
        self._name = name
        self._leases = leases
        self._shelf = shelf
        self._lanes = lanes
        self._paces = paces
        self._tally = tally
        self._shadow = shadow
        self._every_s = min(settings.heartbeat_s, BEAT_S)
        self.on_beat: Callable[[float], None] = lambda _within: None
        """Hears each beat of the watch, and within how many seconds the next one comes."""
        shelf.before_load = self.tell

    def beat_until(self, ended: threading.Event) -> None:
        """Until the last batch is done, however long ago the worker was told to stop: its lease is renewed."""
        show_at, forget_s = 0.0, FORGET_LEASES * self._settings.lease_s
        forget_at = time.monotonic() + forget_s
        while not ended.wait(self._every_s):
            now = time.monotonic()
            try:
                self._leases.renew(self._client)
                if now >= show_at:
                    self.show()
                    workers = living(self._client, self._keys, "worker")
                    self._lanes.workers = {m: sum(each.serves(m) for each in workers) for m in self._shelf.ready}
                    show_at = now + BEAT_S * 0.9
                if now >= forget_at:
                    forget(self._client, self._keys, self._shelf.ready, forget_s)
                    forget_at = now + forget_s
            except (RedisError, OSError) as error:
                log.debug("a heartbeat failed", error=str(error))

    def watch_until(self, left: threading.Event, stop: threading.Event, on_late: Callable[[], None]) -> None:
        """Until the worker has left; `on_late` is called where it takes longer for that than a stop may take."""
        stopping_at: float | None = None
        limit_s, drain_s = self._settings.batch_limit_s, self._settings.drain_s
        while not left.wait(self._every_s):
            self.tell()
            if max(self._leases.stuck_s, self._shadow.stuck_s) > limit_s:
                log.error("a batch is past its time limit; this worker ends itself", limit_s=limit_s)
                os.kill(os.getpid(), signal.SIGKILL)
            if stop.is_set():
                stopping_at = stopping_at or time.monotonic()
                if time.monotonic() - stopping_at > drain_s:
                    on_late()

    def tell(self) -> None:
        """Beats once for the supervisor, and says how long it may be silent: what holds Python's lock stops this."""
        limits = self._settings
        self.on_beat(max(limits.batch_limit_s, limits.load_silence_s if self._shelf.loading else 0.0))

    def show(self) -> None:
        """Renews the presence. Raises what Redis raises when it is gone."""
        show(self._client, self._presence().beat(self._keys))

    def leave(self) -> None:
        """Takes the presence away. Raises what Redis raises when it is gone."""
        show(self._client, self._presence().leave(self._keys))

    def _presence(self) -> Presence:
        return Presence(
            role="worker",
            name=self._name,
            revision=self._shelf.revision,
            loaded=self._shelf.loaded,
            failed={**self._shelf.failed, **self._shadow.failed},
            engines=self._shelf.engines,
            rows_per_s=self._paces.rows_per_s(),
            rough=self._paces.rough(),
            pid=os.getpid(),
            models=self._settings.models,
            # Not before the last read of it is over: the registry takes what is shown for a promise.
            left=tuple(sorted(self._shelf.left.difference(self._lanes.served))),
            outcomes=self._tally.outcomes(),
            shadowed=self._shadow.counts(),
            served=self._tally.rows_per_s(time.monotonic()),
        )
