"""Repair: what Redis lost of the models in service comes back, from the catalogue and the store."""

from __future__ import annotations

from dataclasses import replace

from google.protobuf.message import DecodeError

from contract.record import RETIRING, ModelRecord, Routing, Version
from contract.signature import SignatureError
from registry.catalogue.catalogue import Catalogue
from registry.catalogue.known import Act, now
from registry.promotion.records import Records
from registry.watch.artifacts import ArtifactKeys
from registry.watch.supply import Supply


class Repair:
    """Records and chunks that are gone."""

    def __init__(self, records: Records, catalogue: Catalogue, artifacts: ArtifactKeys, supply: Supply) -> None:
        self._records = records
        self._catalogue = catalogue
        self._artifacts = artifacts
        self._supply = supply

    async def restore(self, model_id: str) -> bool:
        """Writes the last record again where Redis lost it, with what was live; its bytes must be there first."""
        _, raw = self._catalogue.records[model_id]
        try:
            last = ModelRecord.decode(raw)
        except (DecodeError, SignatureError):
            return False
        live = last.live
        if live is None or live.digest.hex() in self._supply.unsigned:
            return False
        artifacts = self._artifacts.chunked(live)
        if not await self._artifacts.present(artifacts):
            self._ask_for(model_id, live)
            return False
        versions = {live.version: replace(live, artifacts=artifacts)}
        record = replace(last, versions=versions, routing=Routing(production=live.version))
        act = Act(now(), model_id, live.version, live.digest.hex(), "restored", "Redis had lost the record")
        return await self._records.write(record, act)

    async def mend(self, record: ModelRecord) -> bool:
        """Asks for chunks that Redis lost; rewrites a record whose chunks are cut otherwise since."""
        for version in record.versions.values():
            if version.state == RETIRING or await self._artifacts.present(version.artifacts):
                continue
            artifacts = self._artifacts.chunked(version)
            if artifacts != version.artifacts and await self._artifacts.present(artifacts):
                versions = {**record.versions, version.version: replace(version, artifacts=artifacts)}
                return await self._records.write(replace(record, versions=versions))
            self._ask_for(record.model_id, version)
        return False

    def _ask_for(self, model_id: str, version: Version) -> None:
        """Has the artifacts of a version that was in service fetched again."""
        known = self._catalogue.versions.get((model_id, version.version))
        if known is not None and known.place and known.digest == version.digest.hex():
            self._supply.passed.add(known.digest)
            self._supply.wanted.add(known.key)
