"""A file of a version as a format gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Stored:
    """A file's name, its bytes, and what stands beside it; the digest of all of it was checked.

    A BytesIO made from these bytes shares them: reading from it copies no more than what is read.
    """

    name: str
    content: bytes
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """The version's files that are neither model nor transform, by name: weights, a configuration."""
    threads: int = 1
    """How many threads its library may compute with."""
