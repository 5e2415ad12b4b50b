"""Artifacts on their way from Redis into a worker: one buffer, filled chunk by chunk and hashed on the way."""

from __future__ import annotations

import hashlib
from typing import Any

import redis
from redis.exceptions import RedisError

from consumers.worker.assembly import Assembly
from contract.keys import Keys
from contract.record import Artifact


class ArtifactRefused(Exception):
    """An artifact whose bytes are not the ones that were recorded, or that does not fit into memory."""


class ArtifactOutOfReach(Exception):
    """An artifact that can't be fetched now; another look may find it."""


def fetch(client: redis.Redis, keys: Keys, artifact: Artifact) -> bytes:
    """An artifact's bytes from Redis; the same bytes that are checked are the ones that are returned.

    Takes its size of memory and that of a few chunks. Raises ArtifactOutOfReach, ArtifactRefused.
    """
    differs = f"{artifact.name} is not the file that was recorded: its SHA-256 differs"
    try:
        assembly = Assembly(artifact.size)
    except MemoryError:
        raise ArtifactRefused(f"{artifact.name} has {artifact.size:,} bytes, and there is no memory for them") from None
    digest = hashlib.sha256()
    for number in range(artifact.chunks):
        try:
            chunk: Any = client.get(keys.chunk(artifact.sha256, number))
        except RedisError as error:
            raise ArtifactOutOfReach(f"{artifact.name} could not be fetched: {error}") from None
        if chunk is None:
            raise ArtifactOutOfReach(f"chunk {number} of {artifact.name} is not in Redis; the registry puts it back")
        try:
            assembly.add(chunk)
        except ValueError:
            raise ArtifactRefused(differs) from None
        digest.update(chunk)
        del chunk  # before the next one comes
    if digest.hexdigest() != artifact.sha256 or not assembly.is_full:
        raise ArtifactRefused(differs)
    return assembly.whole()
