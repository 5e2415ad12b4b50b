"""Names of every key, stream and channel in Redis."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

GROUP = "workers"
"""The consumer group on both lanes of every model."""

ORPHANS = "orphans"
"""The consumer that holds a dead worker's entries until a living one claims them; it never reads."""


@dataclass(frozen=True, slots=True)
class ModelKeys:
    """The keys of one model; they share a hash slot, so that one script may touch them.

    Plain attributes, made once, since the hot path names them for every batch.
    """

    base: str
    requests: str
    """Stream: the interactive lane."""
    bulk: str
    """Stream: the asynchronous lane."""
    events: str
    """Stream: model events, one entry for each call of the exit."""
    dead: str
    """Stream: what could not be served."""
    crashes: str
    """Hash: entry id, `bulk ` before it for that lane -> consumers that tried it alone and were not seen to live on."""
    count: str
    """Hash: accepted, completed, copies, duplicates; the sink's epoch."""
    lone: str
    """String: the entry that is tried alone, named as in `crashes`; one in the pool at a time."""
    shadow: str
    """Hash: `<digest> <consumer>` of who computes copies on a shadow, or was not seen to live on after it."""
    rows_requests: str
    """Counter: rows waiting in the interactive lane."""
    rows_bulk: str
    """Counter: rows waiting in the bulk lane."""
    reply_prefix: str
    """What a request id is appended to for the string that holds its state."""
    replies_prefix: str
    """What a gateway's name is appended to for its channel."""

    @classmethod
    @lru_cache(maxsize=4096)
    def under(cls, base: str) -> ModelKeys:
        return cls(
            base=base,
            requests=f"{base}:requests",
            bulk=f"{base}:bulk",
            events=f"{base}:events",
            dead=f"{base}:dead",
            crashes=f"{base}:crashes",
            count=f"{base}:count",
            lone=f"{base}:lone",
            shadow=f"{base}:shadow",
            rows_requests=f"{base}:rows:requests",
            rows_bulk=f"{base}:rows:bulk",
            reply_prefix=f"{base}:reply:",
            replies_prefix=f"{base}:replies:",
        )

    def reply(self, request_id: str) -> str:
        """String: the state of one request."""
        return self.reply_prefix + request_id

    def replies(self, gateway: str) -> str:
        """Sharded channel that wakes one gateway."""
        return self.replies_prefix + gateway


@dataclass(frozen=True, slots=True)
class Keys:
    """All names under one prefix."""

    prefix: str = "ms"

    def model(self, model_id: str) -> ModelKeys:
        return ModelKeys.under(f"{self.prefix}:{{{model_id}}}")

    @property
    def catalog(self) -> str:
        """Hash: model_id -> SignedRecord."""
        return f"{self.prefix}:catalog"

    @property
    def catalog_revision(self) -> str:
        """Counter: raised in the step that writes a record."""
        return f"{self.prefix}:catalog:rev"

    def presence(self, role: str, name: str) -> str:
        """Hash with a TTL: what a living process shows of itself."""
        return f"{self.prefix}:proc:{role}:{name}"

    def roll(self, role: str) -> str:
        """Sorted set: a role's processes by when they were last seen, so that nobody scans for them."""
        return f"{self.prefix}:procs:{role}"

    @property
    def runtimes(self) -> str:
        """Hash: runtime id -> JSON of what predicted: Python, numpy, model library, BLAS and its threads, CPU."""
        return f"{self.prefix}:runtimes"

    def chunk(self, sha256: str, number: int) -> str:
        """String: one chunk of an artifact."""
        return f"{self.prefix}:{{{sha256}}}:{number}"
