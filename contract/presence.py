"""Presence: what each living process shows of itself, renewed every second and gone with it."""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import orjson

from contract.keys import Keys

ALL = ""
"""In place of a model's id."""
TTL_S = 5
BEAT_S = 1.0


def consumer_prefix(pid: int) -> str:
    """What the name of every process with that pid on this host starts with."""
    host = "".join(c if c.isalnum() and c.isascii() else "_" for c in socket.gethostname())[:40]
    return f"{host}-{pid}-"


def process_name() -> str:
    """Host, pid and a mark of this boot of the process: a consumer's and a gateway's name."""
    return consumer_prefix(os.getpid()) + secrets.token_hex(3)


@dataclass(frozen=True, slots=True)
class Presence:
    """What a process shows: the catalogue revision it has seen, what it loaded, what failed, how fast it is."""

    role: str
    name: str
    revision: int = 0
    loaded: frozenset[str] = frozenset()
    """Hex version digests."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Hex version digest -> why it does not load."""
    engines: Mapping[str, str] = field(default_factory=dict)
    """Hex version digest -> what a worker computes it with: its library, or that of its compiled form."""
    rows_per_s: Mapping[str, float] = field(default_factory=dict)
    """model_id -> what the worker serves when it works on that model alone."""
    rough: tuple[str, ...] = ()
    """Models whose rate was measured at small batches only: it may be far higher."""
    pid: int = 0
    models: tuple[str, ...] = ()
    """The models a worker was told to serve; empty: all."""
    left: tuple[str, ...] = ()
    """Models that it leaves to others of its pool, since one of their versions is too big for its slot; not read."""
    served: Mapping[str, float] = field(default_factory=dict)
    """model_id -> rows/s that a worker completed over the last seconds."""
    outcomes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Hex version digest -> requests that this worker completed with it, and how many of them the model failed."""
    shadowed: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """model_id -> copies of requests that this worker computed on the shadow, and those that it dropped."""
    alarm: Mapping[str, str] = field(default_factory=dict)
    """model_id -> why the sink records nothing of it any more, and what to do; ALL -> what troubles all of it."""

    def serves(self, model_id: str) -> bool:
        """Whether a worker loads a model's versions and reads its lanes, as far as it shows."""
        return model_id not in self.left and (not self.models or model_id in self.models)

    def beat(self, keys: Keys) -> list[tuple[str | bytes | int | float, ...]]:
        """The Redis commands that renew it."""
        key = keys.presence(self.role, self.name)
        body = orjson.dumps(
            {
                "revision": self.revision,
                "loaded": sorted(self.loaded),
                "failed": dict(self.failed),
                "engines": dict(self.engines),
                "rows_per_s": dict(self.rows_per_s),
                "rough": list(self.rough),
                "pid": self.pid,
                "models": list(self.models),
                "left": list(self.left),
                "served": dict(self.served),
                "outcomes": dict(self.outcomes),
                "shadowed": dict(self.shadowed),
                "alarm": dict(self.alarm),
            }
        )
        now = time.time()
        return [
            ("HSET", key, "body", body),
            ("EXPIRE", key, TTL_S),
            ("ZADD", keys.roll(self.role), now, self.name),
            ("ZREMRANGEBYSCORE", keys.roll(self.role), "-inf", now - 600),
        ]

    def leave(self, keys: Keys) -> list[tuple[str | bytes | int | float, ...]]:
        """The Redis commands that take it away at once, where a process stops in order."""
        return [("DEL", keys.presence(self.role, self.name)), ("ZREM", keys.roll(self.role), self.name)]

    @classmethod
    def decode(cls, role: str, name: str, raw: bytes) -> Presence:
        """From the `body` field of its hash."""
        body = orjson.loads(raw)
        return cls(
            role=role,
            name=name,
            revision=body["revision"],
            loaded=frozenset(body["loaded"]),
            failed=body["failed"],
            engines=body.get("engines", {}),
            rows_per_s=body["rows_per_s"],
            rough=tuple(body["rough"]),
            pid=body["pid"],
            models=tuple(body["models"]),
            left=tuple(body.get("left", ())),
            served=body.get("served", {}),
            outcomes={digest: (counts[0], counts[1]) for digest, counts in body.get("outcomes", {}).items()},
            shadowed={model_id: (counts[0], counts[1]) for model_id, counts in body.get("shadowed", {}).items()},
            alarm=body.get("alarm", {}),
        )
