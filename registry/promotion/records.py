"""Records in Redis: read, checked, and written one at a time.

Each write is one MULTI/EXEC over a record that was read just before, signed, with its revision raised. Redis first, the
catalogue second: a crash between the two leaves the catalogue a record behind, which the next start makes up for.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import cast

import redis.asyncio
import structlog
from anyio import to_thread
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.exceptions import WatchError

from contract import trust
from contract.keys import Keys
from contract.record import ModelRecord
from registry.catalogue.catalogue import Catalogue
from registry.catalogue.known import Act

_log = structlog.get_logger()


class Records:
    """The model records as they stand in Redis."""

    def __init__(self, client: redis.asyncio.Redis, keys: Keys, key: Ed25519PrivateKey, catalogue: Catalogue) -> None:
        self.good: dict[str, ModelRecord] = {}
        """Those that this registry signed, as last seen."""
        self._client = client
        self._keys = keys
        self._key = key
        self._catalogue = catalogue
        self._raw: dict[str, bytes] = {}

    async def read(self) -> None:
        """The records as they are in Redis now; what this registry did not sign is none."""
        answer = cast("dict[bytes, bytes]", await self._client.hgetall(self._keys.catalog))
        raw = {name.decode(errors="replace"): value for name, value in answer.items()}
        public = self._key.public_key()
        good: dict[str, ModelRecord] = {}
        for model_id, value in raw.items():
            before = self.good.get(model_id)
            if before is not None and self._raw.get(model_id) == value:
                good[model_id] = before
                continue
            try:
                good[model_id] = trust.unseal(value, model_id, public, before)
            except trust.UntrustedRecord as error:
                if self._raw.get(model_id) != value:
                    _log.error("a record in Redis was not written by this registry and is not used", reason=str(error))
        self._raw, self.good = raw, good

    async def write(self, record: ModelRecord, *acts: Act) -> bool:
        """One step in Redis, over the very record that was decided on; false where somebody wrote meanwhile."""
        model_id = record.model_id
        past = self.good.get(model_id)
        revision = max(past.revision if past else 0, self._catalogue.records.get(model_id, (0, b""))[0]) + 1
        record = replace(record, revision=revision)
        sealed = trust.seal(record, self._key)
        async with self._client.pipeline(transaction=True) as pipe:
            await pipe.watch(self._keys.catalog)
            if await pipe.hget(self._keys.catalog, model_id) != self._raw.get(model_id):
                return False
            pipe.multi()  # type: ignore[no-untyped-call]
            pipe.hset(self._keys.catalog, model_id, sealed)
            # A counter that starts over could meet a number that was seen before; the time never does.
            pipe.set(self._keys.catalog_revision, int(time.time() * 1000), nx=True)
            pipe.incr(self._keys.catalog_revision)
            try:
                await pipe.execute()
            except WatchError:
                return False
        self._raw[model_id], self.good[model_id] = sealed, record
        await to_thread.run_sync(self._catalogue.put_record, model_id, revision, record.encode(), *acts)
        for act in acts:
            _log.info(
                f"version {act.act}", model_id=model_id, version=act.version, detail=act.detail, revision=revision
            )
        return True
