"""A file of a version as a format gets it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Stored:
    """A file's name, its bytes, and what stands beside it; the digest of all of it was checked."""

    name: str
    content: bytes | memoryview
    beside: Mapping[str, bytes | memoryview] = field(default_factory=dict)
    """The version's files that are neither model nor transform, by name: weights, a configuration."""
