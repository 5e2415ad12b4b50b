"""The Redis scripts: every change of a request's state that must happen whole or not at all.

    entrance   append what was admitted, once per event-loop turn of a gateway
    claim_ids  the same decision for the bulk lane, which passes no entrance, after its first read
    exit       the only way out: reply, event, acknowledgement, for a whole batch
    retry      take one abandoned entry for an attempt alone
    give_back  take such an attempt back that its process has outlived
    renew      keep the lease on what this worker holds
    hand_over  give a dead worker's entries back to the pool
    forget     remove consumers that hold nothing and are silent
    retry_dead put a dead letter back onto the bulk lane
    even_full  one write that must go through where memory is full

Redis does not roll a script back, so each reads every key with a command that fails on a wrong type before its first
write. What frees memory carries `allow-oom`: it must run when memory is full.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Script:
    """A script by its source; `sha` is what EVALSHA takes."""

    name: str
    source: str = field(repr=False)
    sha: str

    @classmethod
    def named(cls, name: str) -> Script:
        source = (files(__package__) / f"{name}.lua").read_text(encoding="utf-8")
        return cls(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


ENTRANCE = Script.named("entrance")
CLAIM_IDS = Script.named("claim_ids")
EXIT = Script.named("exit")
RETRY = Script.named("retry")
GIVE_BACK = Script.named("give_back")
RENEW = Script.named("renew")
HAND_OVER = Script.named("hand_over")
FORGET = Script.named("forget")
RETRY_DEAD = Script.named("retry_dead")
EVEN_FULL = Script.named("even_full")

ALL = (ENTRANCE, CLAIM_IDS, EXIT, RETRY, GIVE_BACK, RENEW, HAND_OVER, FORGET, RETRY_DEAD, EVEN_FULL)
