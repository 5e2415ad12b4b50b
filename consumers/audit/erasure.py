"""Erasing: what of an event is emptied, what stays, and how the chain still holds over it.

    rows of a link  ->  the same with those of an entity emptied, each with the digest of what it was

The chain takes digests, so it is the same before and after.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from consumers.audit.rebuild import RebuiltLink, Row, links

EMPTIED = (
    *("inputs", "outputs", "request_id", "entity_id", "origins", "hydrated", "error_message", "error_violations"),
    *("caller", "trace", "body_sha256", "refused_body", "exact"),
)
"""The columns that hold, or may hold, what is about a person.

The digest of an event stays, and of a request that is nearly known it could confirm a guess: the id that a gateway made
is 96 random bits of it, which nobody has any more once it is emptied.
"""

_MARK_CONTEXT = b"millstream.v1.ErasedEntity\n"


class NotRebuilt(Exception):
    """A row that no sink wrote: what it was can't be kept as a digest. The message names it."""


@dataclass(frozen=True, slots=True)
class Emptied:
    """What changes in one row."""

    sequence: int
    sha256: bytes | None
    """The digest of its event, where the row is emptied."""
    header: bytes | None
    """What `exact_header` has to be from now on, since the columns that are left do not give it; None: as it is."""


def emptied(some: Iterable[RebuiltLink], entity_id: str, at_us: int) -> Iterator[Emptied]:
    """What erasing an entity changes in these links. Raises NotRebuilt."""
    for link in some:
        rows: list[Row] = []
        digests: dict[int, bytes] = {}
        for event in link.events:
            row = event.row
            if row.entity_id == entity_id:
                if event.problem:
                    raise NotRebuilt(
                        f"event {event.number} of {link.model_id} can't be erased, since no event can be built from "
                        f"its columns: {event.problem}; `millstream events verify {link.model_id}` says more"
                    )
                digests[row.sequence] = event.sha256
                nothing: dict[str, Any] = dict.fromkeys(EMPTIED)
                row = row._replace(**nothing, erased_at=at_us, erased_sha256=event.sha256)
            rows.append(row)
        last = rows[-1].sequence
        [left] = links(rows)
        header = None if left.header == link.header else link.header
        for row in rows:
            digest = digests.get(row.sequence)
            own = header if row.sequence == last else None
            if digest is not None or own is not None:
                yield Emptied(row.sequence, digest, own)


def entity_mark(entity_id: str, key: Ed25519PrivateKey) -> bytes:
    """What the record of erasures keeps of an entity's id: 32 bytes.

    Ids are short, and a plain digest of one is found by trying them all: only who has the sink's key can ask whether
    an id was erased.
    """
    secret = sha256(_MARK_CONTEXT + key.private_bytes_raw()).digest()
    return hmac.digest(secret, entity_id.encode(), "sha256")
