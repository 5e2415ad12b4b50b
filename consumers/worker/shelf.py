"""The shelf: the versions a worker has loaded, checked against the digests of a signed record first.

ms:catalog -> record with a good signature -> chunks -> SHA-256 as recorded -> unpickled -> golden examples -> shelf
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any

import redis
import structlog
from redis.exceptions import RedisError

from consumers.model.model import LoadedModel, UnloadableModel, load_model
from consumers.worker.artifacts import ArtifactOutOfReach, ArtifactRefused, fetch
from consumers.worker.memory import give_back
from consumers.worker.slot import Slot
from contract.catalog import Catalog
from contract.keys import Keys
from contract.record import LIVE, ModelRecord, Version

LOOK_S = 0.1

log = structlog.get_logger()


class Shelf:
    """Loaded versions by digest. One thread loads; others only look."""

    def __init__(
        self,
        client: redis.Redis,
        keys: Keys,
        catalog: Catalog,
        models: Collection[str],
        *,
        compiles: bool = True,
        tolerances: Mapping[str, float] = MappingProxyType({}),
        slot: Slot | None = None,
    ) -> None:
        self._client = client
        self._keys = keys
        self._catalog = catalog
        self._only = frozenset(models)
        self._compiles = compiles
        self._tolerances = tolerances
        self._slot = slot or Slot()
        self._loaded: dict[bytes, LoadedModel] = {}
        self._engines: dict[bytes, str] = {}
        self.failed: Mapping[str, str] = {}
        """Hex digest -> why it does not load."""
        self.left: frozenset[str] = frozenset()
        """Models that others of the pool serve, since one of their versions is too big for this slot."""
        self._told: set[str] = set()
        self.revision = -1
        """Catalogue revision that everything loadable of is on the shelf."""
        self.loading = False
        """Whether a version is being loaded just now; that may hold Python's lock for long."""
        self.before_load: Callable[[], None] = lambda: None

    def get(self, digest: bytes) -> LoadedModel | None:
        return self._loaded.get(digest)

    @property
    def loaded(self) -> frozenset[str]:
        """Hex digests."""
        return frozenset(digest.hex() for digest in self._loaded)

    @property
    def engines(self) -> dict[str, str]:
        """Hex digest -> what computed its examples before it was put here, compiled where it could be."""
        return {digest.hex(): engine for digest, engine in self._engines.items()}

    @property
    def ready(self) -> list[str]:
        """Models all of whose live versions are here: only these are read.

        Of a model that is left to others nothing is read from when its big version begins to load until it is dropped:
        what is pinned to that version must never come here.
        """
        return [
            record.model_id
            for record in self._mine()
            if record.model_id not in self.left
            and any(v.state == LIVE for v in record.versions.values())
            and all(v.digest in self._loaded for v in record.versions.values() if v.state == LIVE)
        ]

    def refresh(self) -> bool:
        """Looks at the catalogue, loads what is new and drops what is gone; whether anything changed.

        Raises what Redis raises when it is gone.
        """
        revision = int(self._client.get(self._keys.catalog_revision) or 0)
        if revision == self.revision:
            return False
        if revision != self._catalog.revision:
            sealed: Any = self._client.hgetall(self._keys.catalog)
            for model_id, why in self._catalog.update(revision, sealed).items():
                log.error("a record is not used", model_id=model_id, why=why)
        whole = True
        versions = [v for record in self._mine() for v in record.versions.values()]
        self.left = frozenset(v.signature.model_id for v in versions if self._slot.leaves(v))
        wanted = {v.digest: v for v in versions if not self._slot.leaves(v)}
        failed = {digest: why for digest, why in self.failed.items() if bytes.fromhex(digest) in wanted}
        for digest, version in wanted.items():
            if digest not in self._loaded and digest.hex() not in failed:
                try:
                    model = self._load(version)
                    self._engines = {**self._engines, digest: model.engine}
                    self._loaded = {**self._loaded, digest: model}
                except ArtifactOutOfReach as error:
                    whole = False
                    if version.name not in self._told:
                        self._told.add(version.name)
                        log.warning("a version waits for its artifacts", version=version.name, why=str(error))
                except (UnloadableModel, ArtifactRefused) as error:
                    failed[digest.hex()] = str(error)
                    log.error("a version does not load", version=version.name, why=str(error))
        if self._loaded.keys() - wanted.keys():
            self._loaded = {digest: model for digest, model in self._loaded.items() if digest in wanted}
            self._engines = {digest: self._engines[digest] for digest in self._loaded}
            give_back()
        self.failed = failed
        if whole:
            # Otherwise the next look tries again.
            self.revision = revision
            self._told.clear()
        return True

    def follow(self, stop: threading.Event, on_change: Callable[[], None]) -> None:
        """Keeps up with the catalogue until `stop` is set; `on_change` is called after each change."""
        while not stop.wait(LOOK_S):
            try:
                if self.refresh():
                    on_change()
            except (RedisError, OSError) as error:
                log.debug("the catalogue can't be read", error=str(error))
            except Exception:
                # Whatever one version does while it loads must not end the loading of others.
                log.exception("loading failed")

    def _mine(self) -> list[ModelRecord]:
        records = self._catalog.records.values()
        return [record for record in records if not self._only or record.model_id in self._only]

    def _load(self, version: Version) -> LoadedModel:
        artifacts = {artifact.name: fetch(self._client, self._keys, artifact) for artifact in version.artifacts}
        self.loading = True
        try:
            self.before_load()
            model = load_model(version.signature, artifacts, self._slot.threads(version))
            artifacts.clear()  # before its compiled form takes memory too
            model.warm()
            compiled = self._compiled(model)
            model.warm()
        finally:
            self.loading = False
            give_back()
        for warning in model.warnings:
            log.warning("a version loaded with a warning", model=version.name, warning=warning)
        names = {"model_id": version.signature.model_id, "version": version.version}
        log.info("version loaded", **names, engine=model.engine, compiled=compiled)
        return model

    def _compiled(self, model: LoadedModel) -> str:
        """Has it computed in a compiled form where one is alike; what came of that, for the log."""
        if not self._compiles:
            return "switched off"
        why = model.compile(self._tolerances.get(model.signature.model_id, 0.0))
        if model.form is None:
            return why
        return f"within {model.form.tolerance:g}" if model.form.tolerance else "equal to the last bit"
