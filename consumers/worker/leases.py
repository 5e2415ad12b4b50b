"""Leases: what this worker holds stays its own while it lives, on a thread that a long predict can't stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

import redis

from contract.connection import Argument, run
from contract.keys import GROUP, ORPHANS, Keys
from contract.scripts import FORGET, HAND_OVER, RENEW
from contract.settings import Settings
from protos import millstream_wire_v1_pb2 as wire

MOST_IDS = 512


class Leases:
    """Entry ids by model and lane that were read and are not completed yet."""

    def __init__(self, keys: Keys, settings: Settings, consumer: str) -> None:
        self._keys = keys
        self._lease_ms = int(settings.lease_s * 1000)
        self._consumer = consumer
        self._lock = threading.Lock()
        self._held: dict[tuple[str, wire.Lane], set[bytes]] = {}
        self._since = 0.0

    def hold(self, model_id: str, lane: wire.Lane, ids: Iterable[bytes]) -> None:
        """These were read."""
        with self._lock:
            self._held.setdefault((model_id, lane), set()).update(ids)
            self._since = time.monotonic()

    def drop(self, model_id: str, lane: wire.Lane, ids: Iterable[bytes]) -> None:
        """These are completed, or somebody else's."""
        with self._lock:
            held = self._held.get((model_id, lane))
            if held is not None:
                held.difference_update(ids)
                if not held:
                    del self._held[(model_id, lane)]
            self._since = time.monotonic()

    def touch(self) -> None:
        """What is held does not hang: it waits for Redis."""
        with self._lock:
            self._since = time.monotonic()

    @property
    def stuck_s(self) -> float:
        """Seconds since something was last read or completed, while something is held."""
        with self._lock:
            return time.monotonic() - self._since if self._held else 0.0

    def renew(self, client: redis.Redis) -> None:
        """Renews what is still this worker's own; raises what Redis raises when it is gone."""
        with self._lock:
            held = {key: list(ids) for key, ids in self._held.items()}
        for (model_id, lane), ids in held.items():
            keys = self._keys.model(model_id)
            stream = keys.bulk if lane == wire.BULK else keys.requests
            for start in range(0, len(ids), MOST_IDS):
                arguments: list[Argument] = [GROUP, self._consumer, self._lease_ms, *ids[start : start + MOST_IDS]]
                run(client, RENEW, [stream, keys.lone], arguments)


def hand_over(client: redis.Redis, keys: Keys, models: Iterable[str], consumer: str) -> int:
    """Gives all entries of a dead consumer back to the pool and removes it; how many there were."""
    total = 0
    for model_id in models:
        names = keys.model(model_id)
        for stream in (names.requests, names.bulk):
            while True:
                moved = int(run(client, HAND_OVER, [stream, names.lone], [GROUP, consumer, ORPHANS, MOST_IDS]))
                total += moved
                if moved < MOST_IDS:
                    break
    return total


def forget(client: redis.Redis, keys: Keys, models: Iterable[str], silence_s: float) -> int:
    """Removes consumers that hold nothing and were silent for so long, such as those of lost machines; how many."""
    total = 0
    for model_id in models:
        names = keys.model(model_id)
        for stream in (names.requests, names.bulk):
            total += int(run(client, FORGET, [stream], [GROUP, int(silence_s * 1000)]))
    return total
