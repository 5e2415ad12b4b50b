"""Promotion: the records in Redis follow what is wanted of each model, a step at a time.

What a server that lost its memory held is written again from the catalogue.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import anyio
import redis.asyncio
import structlog
from anyio import to_thread
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.exceptions import ResponseError

from contract.connection import living_async
from contract.keys import Keys
from contract.presence import BEAT_S, Presence
from contract.record import LOADING, RETIRING, ModelRecord, Version
from registry.catalogue.catalogue import Catalogue
from registry.catalogue.known import Act, KnownVersion, VersionKey, now
from registry.promotion.adoption import adopt
from registry.promotion.canary import CanaryCounts
from registry.promotion.gate import Gate, through
from registry.promotion.records import Records
from registry.promotion.repair import Repair
from registry.promotion.retirement import Retirements
from registry.promotion.ruling import OPEN
from registry.promotion.switching import (
    Load,
    Refuse,
    Switch,
    Wait,
    Withdraw,
    arranged,
    beside_veto,
    decide,
    loading,
    serves,
    with_live,
    withdrawn,
)
from registry.promotion.timeline import Claim, Statement, Wanted, wanted
from registry.promotion.transitions import transitions
from registry.watch.artifacts import ArtifactKeys
from registry.watch.poll import StoreWatch
from registry.watch.sweep import Sweep

RETIRE_AFTER_S = 60.0
"""A version that was replaced stays in memory for so long at least: the way back is short then."""

_log = structlog.get_logger()


class Promotion:
    """Keeps the records in Redis true to what is wanted."""

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
        gate: Gate | None = None,
    ) -> None:
        """Without a gate every version takes over that loads."""
        self.waiting: dict[VersionKey, str] = {}
        """Version -> what its loading waits for, for people."""
        self._coming: dict[VersionKey, str] = {}
        """The same, of the tick that is under way."""
        self.canaries: dict[str, CanaryCounts] = {}
        """Model -> what its canary has answered and failed, where somebody watches that."""
        self._client = client
        self._keys = keys
        self._catalogue = catalogue
        self._watch = watch
        self._artifacts = artifacts
        self._records = Records(client, keys, key, catalogue)
        self._repair = Repair(self._records, catalogue, artifacts, watch.supply)
        self._sweep = Sweep(catalogue, artifacts, watch.supply)
        self._retirements = Retirements(client, keys, retire_after_s)
        self.gate = gate if gate is not None else Gate(catalogue, artifacts, OPEN)
        self._load_limit_s = load_limit_s
        self._stuck: dict[str, str] = {}
        self._waits: dict[tuple[str, str], Wait] = {}
        self._told: dict[str, tuple[object, object, object, int, Wanted]] = {}
        """Model -> what was wanted of it, and from what that follows: the same values are not judged twice."""
        self._goals: dict[str, Wanted] = {}
        """Model -> what was wanted of it at its last step."""
        self._last_tick = time.monotonic()
        self._lock = anyio.Lock()

    @property
    def records(self) -> dict[str, ModelRecord]:
        """The good records, as last seen in Redis."""
        return self._records.good

    def wanted(self, model_id: str, *also: Statement) -> Wanted:
        """What is wanted of a model now, or would be if these statements were made too."""
        record = self.records.get(model_id)
        versions, said = self._catalogue.versions, self._catalogue.statements.get(model_id, ())
        told = self._told.get(model_id)
        edition = self.gate.edition
        if not also and told is not None:
            *past, ruled, goal = told
            if ruled == edition and all(a is b for a, b in zip(past, (versions, said, record), strict=True)):
                return goal
        in_redis = {version.digest.hex() for version in record.versions.values()} if record else set()
        known = [version for version in versions.values() if version.model_id == model_id]
        goal_of = partial(wanted, known, (*said, *also), in_redis)
        live = record.live if record is not None else None
        goal = through(goal_of, partial(self.gate.standing, live=live))
        if not also:
            self._told[model_id] = versions, said, record, edition, goal
        return goal

    async def adopt(self) -> None:
        """Takes in what the records say and the catalogue does not (a new or restored one, or one step behind)."""
        await self._records.read()
        for record in self.records.values():
            lost = await adopt(record, self._catalogue)
            if lost is not None:
                self._watch.adopted[record.model_id] = lost
                _log.warning("the catalogue had lost what led to a record in Redis", model_id=record.model_id)

    async def tick(self) -> bool:
        """One step for each model; true where something was written, so that the next tick is worth doing soon."""
        async with self._lock:
            return await self._tick()

    async def _tick(self) -> bool:
        # A tick that was held up itself says nothing about the workers.
        elapsed, self._last_tick = min(time.monotonic() - self._last_tick, 2 * BEAT_S), time.monotonic()
        await self._records.read()
        workers = await living_async(self._client, self._keys, "worker")
        gateways: list[Presence] | None = None
        models = {key[0] for key in self._catalogue.versions} | self.records.keys() | self._catalogue.records.keys()
        moved = False
        self._coming = {}
        for model_id in sorted(models):
            try:
                record = self.records.get(model_id)
                if record is not None and any(version.state == RETIRING for version in record.versions.values()):
                    if gateways is None:
                        gateways = await living_async(self._client, self._keys, "gateway")
                    moved |= await self._retire(record, [*gateways, *workers])
                moved |= await self._step(model_id, workers, elapsed)
                self._stuck.pop(model_id, None)
            except ResponseError as error:  # one model's broken keys are not another's
                if self._stuck.get(model_id) != str(error):
                    _log.error(
                        "Redis refused a step of promotion; it is tried again", model_id=model_id, problem=str(error)
                    )
                self._stuck[model_id] = str(error)
        self.waiting = self._coming
        await self._sweep.run(self._goals, self.records)
        return moved

    async def _step(self, model_id: str, workers: Sequence[Presence], elapsed: float) -> bool:
        record = self.records.get(model_id)
        moved = False
        if record is None and model_id in self._catalogue.records:
            moved = await self._repair.restore(model_id)
            if moved or any(key[0] == model_id for key in self._watch.supply.wanted):
                return moved
        if record is not None:
            moved = await self._repair.mend(record)
            record = self.records.get(model_id)
        return await self._advance(model_id, record, workers, elapsed) or moved

    async def _advance(
        self, model_id: str, record: ModelRecord | None, workers: Sequence[Presence], elapsed: float
    ) -> bool:
        goal = self.wanted(model_id)
        if await self._abort(model_id, goal, workers):
            goal = self.wanted(model_id)
        self._goals[model_id] = goal
        moved = False
        if record is not None and arranged(record, goal) != record:
            moved = await self._arrange(record, goal)
            record = self.records.get(model_id)
        mine = {(model_id, claim.version.digest) for claim in goal.claims}
        for other in [key for key in self._waits if key[0] == model_id and key not in mine]:
            del self._waits[other]
        if not goal.is_examined:
            self.gate.withdraw(model_id)
        for claim in goal.claims:
            version = claim.version
            if goal.is_examined and claim is goal.production:
                await self._examine(record, claim)
                continue
            wait = self._wait(record, version, workers, elapsed)
            match decide(record, version, workers, wait, self._load_limit_s):
                case Load():
                    if record is not None and version.version in record.versions:
                        self._watch.supply.passed.add(version.digest)  # workers had it: the way back needs no store
                    if await self._is_at_hand(version):
                        return await self._load(record, version, goal)
                case Switch() if record is not None:
                    return await self._arrange(with_live(record, version.version), goal)
                case Refuse(_, reason):
                    return await self._refuse(record, version, reason)
                case Withdraw() if record is not None:
                    return await self._records.write(withdrawn(record))
            held = record.versions.get(version.version) if record else None
            if record is not None and held is not None and (reason := beside_veto(record, held, workers)):
                return await self._refuse(record, version, reason)
            if held is not None and held.state == LOADING:
                serving = [worker for worker in workers if serves(worker, model_id)]
                count = sum(version.digest in worker.loaded for worker in serving)
                there = f"{count} of {len(serving)} workers have loaded it"
                self._coming[version.key] = there if serving else "no worker is running to load it"
                break  # one at a time: where workers end, it is known under which
        return moved

    async def _arrange(self, record: ModelRecord, goal: Wanted) -> bool:
        """Writes the record as it should stand, with what it says anew as history."""
        after = replace(arranged(record, goal), decided_us=goal.decided_us)
        return await self._records.write(after, *transitions(self.records.get(record.model_id), after, goal, now()))

    async def _load(self, record: ModelRecord | None, version: KnownVersion, goal: Wanted) -> bool:
        digest = bytes.fromhex(version.digest)
        artifacts = self._artifacts.chunked(version)
        offered = Version.make(digest, LOADING, version.signature_json, artifacts, version.location)
        return await self._arrange(loading(record, offered), goal)

    async def _examine(self, record: ModelRecord | None, claim: Claim) -> None:
        """Has the gate examine a version that is to take over, as soon as it can be tried."""
        version = claim.version
        held = record.versions.get(version.version) if record else None
        if held is not None and held.digest.hex() == version.digest:
            self._watch.supply.passed.add(version.digest)  # as canary, shadow or before: workers have loaded it
        if record is not None and record.live is not None and await self._is_at_hand(version):
            self.gate.ask(claim, record.live)
            self._coming[version.key] = f"recorded requests of {record.live.version} are replayed on it"

    async def _is_at_hand(self, version: KnownVersion) -> bool:
        """Whether its artifacts are in Redis and were tried; where they are not, the next look sees to it."""
        supply = self._watch.supply
        if supply.is_tried(version.digest) and await self._artifacts.present(self._artifacts.chunked(version)):
            return True
        supply.wanted.add(version.key)
        self._coming[version.key] = self._watch.trouble.get(version.place, "it is being fetched and tried")
        return False

    async def _refuse(self, record: ModelRecord | None, version: KnownVersion, reason: str) -> bool:
        _log.error("version refused", model_id=version.model_id, version=version.version, problem=reason)
        act = Act(now(), *version.key, version.digest, "refused", reason)
        await to_thread.run_sync(partial(self._catalogue.amend, version.key, act, refused=reason))
        if record is not None and any(held.state == LOADING for held in record.versions.values()):
            await self._records.write(withdrawn(record))
        return True

    def _wait(
        self, record: ModelRecord | None, version: KnownVersion, workers: Sequence[Presence], elapsed: float
    ) -> Wait:
        """How the loading of a version has gone; it starts over with each offer."""
        key = version.model_id, version.digest
        held = record.versions.get(version.version) if record else None
        living = any(serves(worker, version.model_id) for worker in workers)
        is_offered = held is not None and held.state == LOADING
        past = self._waits.get(key, Wait())
        self._waits[key] = past.after(elapsed, living) if is_offered else Wait(seen=living)
        return self._waits[key]

    async def _abort(self, model_id: str, goal: Wanted, workers: Sequence[Presence]) -> bool:
        """Takes the canary's share away where it fails more than it may; true where that was so."""
        claim = goal.canary
        if claim is None or not claim.statement.abort_over:
            self.canaries.pop(model_id, None)
            return False
        limit, share = claim.statement.abort_over, claim.statement.basis_points
        tally = self.canaries.setdefault(model_id, CanaryCounts()).look(claim, workers)
        if not share or not tally.is_over(limit):
            return False
        detail = f"{tally.told}, more than {limit * 100:g} %: its share is 0 % now, was {share / 100:g} %"
        _log.error("canary aborted", model_id=model_id, version=claim.version.version, detail=detail)
        statement = replace(claim.statement, at=now(), by="the registry", basis_points=0)
        act = Act(statement.at, *claim.version.key, claim.version.digest, "canary aborted", detail, "the registry")
        await to_thread.run_sync(self._catalogue.state, statement, act)
        return True

    async def _retire(self, record: ModelRecord, processes: Sequence[Presence]) -> bool:
        """Drops the versions that nobody can be busy with any more."""
        due = {version.version for version in await self._retirements.due(record, processes)}
        if not due:
            return False
        after = replace(record, versions={name: each for name, each in record.versions.items() if name not in due})
        return await self._records.write(after, *transitions(record, after, None, now()))
