"""Which models there are, what their features are called and what predicts: read and trusted with nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import redis
from google.protobuf.message import DecodeError

from contract.keys import Keys
from contract.signature import SignatureError, parse_signature
from protos import millstream_wire_v1_pb2 as wire


class EventCatalog:
    """A view of the catalogue that one thread refreshes and others read."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self._seen: tuple[bytes | None, frozenset[bytes]] = (None, frozenset())
        self._names: dict[bytes, tuple[str, ...]] = {}
        self.models: frozenset[str] = frozenset()
        self.runtimes: Mapping[str, str] = {}
        """runtime_id -> its record. Replaced, never changed: other threads read it."""

    @property
    def revision(self) -> int:
        return int(self._seen[0] or 0)

    def refresh(self, client: redis.Redis) -> None:
        """Reads the records again where the catalogue has changed. Raises what redis-py raises."""
        pipe = client.pipeline(transaction=False)
        pipe.get(self._keys.catalog_revision)
        pipe.hkeys(self._keys.catalog)
        pipe.hkeys(self._keys.runtimes)
        revision, model_ids, runtime_ids = pipe.execute()
        self._learn_runtimes(client, [raw for raw in runtime_ids if raw.decode(errors="replace") not in self.runtimes])
        seen = (revision, frozenset(model_ids))
        if seen == self._seen:
            return
        for raw in client.hvals(self._keys.catalog):
            self._learn(raw)
        self.models = frozenset(model_id.decode(errors="replace") for model_id in model_ids)
        self._seen = seen

    def _learn_runtimes(self, client: redis.Redis, runtime_ids: list[Any]) -> None:
        if runtime_ids:
            records: Any = client.hmget(self._keys.runtimes, runtime_ids)
            found = {
                runtime_id.decode(errors="replace"): record.decode(errors="replace")
                for runtime_id, record in zip(runtime_ids, records, strict=True)
                if record is not None
            }
            self.runtimes = {**self.runtimes, **found}

    def _learn(self, raw: Any) -> None:
        try:
            record = wire.ModelRecord.FromString(wire.SignedRecord.FromString(raw).record)
        except DecodeError:
            return  # the workers refuse it and say so; here it only costs the names
        for version in record.versions:
            if version.digest not in self._names:
                try:
                    signature, _ = parse_signature(version.signature_json)
                except SignatureError:
                    continue
                features = sorted(signature.features, key=lambda feature: feature.index)
                self._names[version.digest] = tuple(feature.name for feature in features)

    def names(self, _model_id: str, digest: bytes) -> Sequence[str]:
        """Feature names of a version in index order; empty where it is not known."""
        return self._names.get(digest, ())
