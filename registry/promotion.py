"""Records in Redis: the one place where a version becomes live.

Each write is one MULTI/EXEC over a record that was read just before, signed, with its revision raised. What a server
that lost its memory held is written again from the catalogue.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import anyio
import redis.asyncio
import structlog
from anyio import to_thread
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf.message import DecodeError
from redis.exceptions import ResponseError, WatchError

from contract import trust
from contract.connection import living_async
from contract.keys import Keys
from contract.presence import BEAT_S, Presence
from contract.record import LIVE, LOADING, RETIRING, ModelRecord, Version
from contract.signature import SignatureError
from registry.artifacts import ArtifactKeys
from registry.catalogue import Act, Catalogue, KnownVersion, StoredArtifact, VersionKey, now
from registry.poll import StoreWatch
from registry.switching import (
    Load,
    Refuse,
    Switch,
    Wait,
    Withdraw,
    candidates,
    decide,
    loading,
    serves,
    switched,
    withdrawn,
)

RETIRE_AFTER_S = 60.0
RETIRE_AFTER_LOOKS = 2

_log = structlog.get_logger()


class Promotion:
    """Keeps the records in Redis true to the catalogue, a step at a time."""

    def __init__(
        self,
        client: redis.asyncio.Redis,
        keys: Keys,
        key: Ed25519PrivateKey,
        catalogue: Catalogue,
        watch: StoreWatch,
        artifacts: ArtifactKeys,
        *,
        load_limit_s: float,
        retire_after_s: float = RETIRE_AFTER_S,
    ) -> None:
        self.records: dict[str, ModelRecord] = {}
        """The good records, as last seen in Redis."""
        self.waiting: dict[VersionKey, str] = {}
        """Version -> what its loading waits for, for people."""
        self._client = client
        self._keys = keys
        self._key = key
        self._catalogue = catalogue
        self._watch = watch
        self._artifacts = artifacts
        self._load_limit_s = load_limit_s
        self._retire_after_s = retire_after_s
        self._raw: dict[str, bytes] = {}
        self._stuck: dict[str, str] = {}
        self._waits: dict[tuple[str, str], Wait] = {}
        self._retiring: dict[tuple[str, bytes], tuple[float, int]] = {}
        self._last_tick = time.monotonic()
        self._lock = anyio.Lock()

    async def adopt(self) -> None:
        """Takes versions that stand in good records and not in the catalogue (a new or restored one) into it."""
        await self._read()
        for record in self.records.values():
            for version in record.versions.values():
                if (record.model_id, version.version) not in self._catalogue.versions:
                    known = _adopted(version)
                    act = Act(now(), *known.key, known.digest, "found", "in a signed record in Redis")
                    await to_thread.run_sync(self._catalogue.put_version, known, act)

    async def tick(self) -> bool:
        """One step for each model; true where something was written, so that the next tick is worth doing soon."""
        async with self._lock:
            return await self._tick()

    async def _tick(self) -> bool:
        # A tick that was held up itself says nothing about the workers.
        elapsed, self._last_tick = min(time.monotonic() - self._last_tick, 2 * BEAT_S), time.monotonic()
        await self._read()
        workers = await living_async(self._client, self._keys, "worker")
        known: dict[str, list[KnownVersion]] = defaultdict(list)
        for version in self._catalogue.versions.values():
            known[version.model_id].append(version)
        moved = False
        self.waiting = {}
        for model_id in sorted(known.keys() | self.records.keys() | self._catalogue.records.keys()):
            try:
                moved |= await self._step(model_id, known[model_id], workers, elapsed)
                self._stuck.pop(model_id, None)
            except ResponseError as error:  # one model's broken keys are not another's
                if self._stuck.get(model_id) != str(error):
                    _log.error(
                        "Redis refused a step of promotion; it is tried again", model_id=model_id, problem=str(error)
                    )
                self._stuck[model_id] = str(error)
        return moved

    async def _step(
        self, model_id: str, known: Sequence[KnownVersion], workers: Sequence[Presence], elapsed: float
    ) -> bool:
        record = self.records.get(model_id)
        moved = False
        if record is None and model_id in self._catalogue.records:
            moved = await self._restore(model_id)
            if moved or any(key[0] == model_id for key in self._watch.wanted):
                return moved
        if record is not None:
            moved = await self._mend(record) or await self._retire(record)
            record = self.records.get(model_id)
        return await self._advance(record, known, workers, elapsed) or moved

    async def _read(self) -> None:
        """The records as they are in Redis now; what this registry did not sign is none."""
        answer = cast("dict[bytes, bytes]", await self._client.hgetall(self._keys.catalog))
        raw = {name.decode(errors="replace"): value for name, value in answer.items()}
        public = self._key.public_key()
        records: dict[str, ModelRecord] = {}
        for model_id, value in raw.items():
            before = self.records.get(model_id)
            if before is not None and self._raw.get(model_id) == value:
                records[model_id] = before
                continue
            try:
                records[model_id] = trust.unseal(value, model_id, public, before)
            except trust.UntrustedRecord as error:
                if self._raw.get(model_id) != value:
                    _log.error("a record in Redis was not written by this registry and is not used", reason=str(error))
        self._raw, self.records = raw, records

    async def _advance(
        self, record: ModelRecord | None, known: Sequence[KnownVersion], workers: Sequence[Presence], elapsed: float
    ) -> bool:
        options = candidates(known, record)
        best = options[0] if options else None
        wait = self._wait(record, best, workers, elapsed) if best else Wait()
        match decide(record, best, workers, wait, self._load_limit_s):
            case Load(version):
                return await self._load(record, version)
            case Switch(version) if record is not None:
                return await self._switch(record, version)
            case Refuse(version, reason):
                return await self._refuse(record, version, reason)
            case Withdraw() if record is not None:
                return await self._write(withdrawn(record))
        if record is not None and best is not None and _is_loading(record):
            count = sum(best.digest in worker.loaded for worker in workers)
            there = (
                f"{count} of {len(workers)} workers have loaded it" if workers else "no worker is running to load it"
            )
            self.waiting[best.key] = there
        return False

    async def _switch(self, record: ModelRecord, version: KnownVersion) -> bool:
        acts = [_act(version, "live", "all workers have it")]
        if (past := record.live) is not None:
            detail = f"{version.version} answers instead"
            acts.append(Act(now(), record.model_id, past.version, past.digest.hex(), "superseded", detail))
        return await self._write(switched(record, version.version), *acts)

    async def _refuse(self, record: ModelRecord | None, version: KnownVersion, reason: str) -> bool:
        _log.error("version refused", model_id=version.model_id, version=version.version, problem=reason)
        act = _act(version, "refused", reason)
        await to_thread.run_sync(partial(self._catalogue.amend, version.key, act, refused=reason))
        if record is not None and _is_loading(record):
            await self._write(withdrawn(record))
        return True

    def _wait(
        self, record: ModelRecord | None, best: KnownVersion, workers: Sequence[Presence], elapsed: float
    ) -> Wait:
        """How the loading of the candidate has gone; it starts over with each offer."""
        mine = (best.model_id, best.digest)
        for other in [key for key in self._waits if key[0] == best.model_id and key != mine]:
            del self._waits[other]
        held = record.versions.get(best.version) if record else None
        living = any(serves(worker, best.model_id) for worker in workers)
        is_offered = held is not None and held.state == LOADING
        past = self._waits.get(mine, Wait())
        self._waits[mine] = past.after(elapsed, living) if is_offered else Wait(seen=living)
        return self._waits[mine]

    async def _load(self, record: ModelRecord | None, best: KnownVersion) -> bool:
        artifacts = tuple(self._artifacts.artifact(a.name, a.sha256, a.size) for a in best.artifacts)
        if not self._watch.is_tried(best.digest) or not await self._artifacts.present(artifacts):
            self._watch.wanted.add(best.key)
            self.waiting[best.key] = self._watch.trouble.get(best.place, "it is being fetched and tried")
            return False
        digest = bytes.fromhex(best.digest)
        version = Version.make(digest, LOADING, best.signature_json, artifacts, best.location)
        return await self._write(loading(record, version), _act(best, "loading", "in Redis, for the workers to load"))

    async def _restore(self, model_id: str) -> bool:
        """Writes the last record again where Redis lost it, with what was live; its bytes must be there first."""
        _, raw = self._catalogue.records[model_id]
        try:
            live = ModelRecord.decode(raw).live
        except (DecodeError, SignatureError):
            return False
        if live is None:
            return False
        known = self._catalogue.versions.get((model_id, live.version))
        artifacts = tuple(self._artifacts.artifact(a.name, a.sha256, a.size) for a in live.artifacts)
        if not await self._artifacts.present(artifacts):
            if known is not None and known.place and known.digest == live.digest.hex():
                self._watch.passed.add(known.digest)
                self._watch.wanted.add(known.key)
            return False
        last = ModelRecord.decode(raw)
        record = replace(last, versions={live.version: replace(live, artifacts=artifacts)})
        act = Act(now(), model_id, live.version, live.digest.hex(), "restored", "Redis had lost the record")
        return await self._write(record, act)

    async def _mend(self, record: ModelRecord) -> bool:
        """Asks for chunks that Redis lost; rewrites a record whose chunks are cut otherwise since."""
        for version in record.versions.values():
            if version.state == RETIRING or await self._artifacts.present(version.artifacts):
                continue
            artifacts = tuple(self._artifacts.artifact(a.name, a.sha256, a.size) for a in version.artifacts)
            if artifacts != version.artifacts and await self._artifacts.present(artifacts):
                versions = {**record.versions, version.version: replace(version, artifacts=artifacts)}
                return await self._write(replace(record, versions=versions))
            known = self._catalogue.versions.get((record.model_id, version.version))
            if known is not None and known.place:
                self._watch.passed.add(known.digest)
                self._watch.wanted.add(known.key)
        return False

    async def _retire(self, record: ModelRecord) -> bool:
        """Drops versions that have been retiring for long enough once nothing waits that may be pinned to them."""
        retiring = [version for version in record.versions.values() if version.state == RETIRING]
        marks = {(record.model_id, version.digest) for version in retiring}
        for gone in [mark for mark in self._retiring if mark[0] == record.model_id and mark not in marks]:
            del self._retiring[gone]
        due = []
        for version in retiring:
            since, looks = self._retiring.setdefault(
                (record.model_id, version.digest), (time.monotonic(), self._watch.looks)
            )
            aged = time.monotonic() - since >= self._retire_after_s
            if aged and self._watch.looks - looks >= RETIRE_AFTER_LOOKS:
                due.append(version)
        if not due:
            return False
        names = self._keys.model(record.model_id)
        if await self._client.xlen(names.requests) or await self._client.xlen(names.bulk):
            return False
        rest = {name: version for name, version in record.versions.items() if version not in due}
        acts = [
            Act(now(), record.model_id, version.version, version.digest.hex(), "dropped", "no entry waits for it")
            for version in due
        ]
        written = await self._write(replace(record, versions=rest), *acts)
        if written:
            used = {a.sha256 for each in self.records.values() for v in each.versions.values() for a in v.artifacts}
            await self._artifacts.drop(a for version in due for a in version.artifacts if a.sha256 not in used)
        return written

    async def _write(self, record: ModelRecord, *acts: Act) -> bool:
        """One step in Redis, over the very record that was decided on; false where somebody wrote meanwhile."""
        model_id = record.model_id
        past = self.records.get(model_id)
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
        self._raw[model_id], self.records[model_id] = sealed, record
        await to_thread.run_sync(self._catalogue.put_record, model_id, revision, record.encode(), *acts)
        for act in acts:
            _log.info(
                f"version {act.act}", model_id=model_id, version=act.version, detail=act.detail, revision=revision
            )
        return True


def _is_loading(record: ModelRecord) -> bool:
    return any(version.state == LOADING for version in record.versions.values())


def _act(version: KnownVersion, act: str, detail: str) -> Act:
    return Act(now(), *version.key, version.digest, act, detail)


def _adopted(version: Version) -> KnownVersion:
    signature = version.signature
    tag = "production" if version.state in (LIVE, LOADING) else signature.status
    artifacts = tuple(StoredArtifact(a.name, a.sha256, a.size, "", "") for a in version.artifacts)
    return KnownVersion(
        signature.model_id, version.version, version.digest.hex(), version.signature_json, signature.trained_date,
        version.location, tag, "", "", now(), artifacts,
    )  # fmt: skip
