"""The catalogue as a process knows it: the signed records of ms:catalog, verified and compiled once per change."""

from __future__ import annotations

from collections.abc import Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from contract.errors import Reason, Refused, Violation, invalid
from contract.record import ModelRecord
from contract.trust import UntrustedRecord, unseal


class Catalog:
    """Model records by id. `update` replaces them whole; readers take what stands, without a lock."""

    def __init__(self, key: Ed25519PublicKey, *, max_rows: int = 100_000) -> None:
        self._key = key
        self._max_rows = max_rows
        self._sealed: dict[str, bytes] = {}
        self.revision = -1
        """ms:catalog:rev that was last applied; -1 before the first look."""
        self.records: Mapping[str, ModelRecord] = {}
        self.untrusted: Mapping[str, str] = {}
        """model_id -> why its record is not used; the record before it stays in force."""
        self._lost = False
        """The server was emptied, and not every record is back yet."""

    def update(self, revision: int, sealed: Mapping[bytes, bytes]) -> dict[str, str]:
        """Applies what stands in Redis: `sealed` is the whole of ms:catalog at that revision, 0 where there is none.

        Answers what became untrusted with it: model_id -> why.
        A revision that is gone was lost with the server's memory: models that were known go on until each is back.
        """
        self._lost = (self._lost or revision == 0) and bool(self.records)
        records: dict[str, ModelRecord] = {}
        untrusted: dict[str, str] = {}
        kept: dict[str, bytes] = {}
        for name, raw in sealed.items():
            model_id = name.decode(errors="replace")
            known = self.records.get(model_id)
            if known is not None and self._sealed.get(model_id) == raw:
                records[model_id], kept[model_id] = known, raw
                continue
            try:
                records[model_id], kept[model_id] = unseal(raw, model_id, self._key, known), raw
            except UntrustedRecord as error:
                untrusted[model_id] = str(error)
                if known is not None:
                    records[model_id], kept[model_id] = known, self._sealed[model_id]
        if self._lost:
            self._lost = not records.keys() >= self.records.keys()
            records, kept = {**self.records, **records}, {**self._sealed, **kept}
        for record in records.values():
            for version in record.versions.values():
                version.admission.max_rows = self._max_rows
        newly = {model_id: why for model_id, why in untrusted.items() if model_id not in self.untrusted}
        self._sealed = kept
        self.untrusted = untrusted
        self.records = dict(sorted(records.items()))
        self.revision = revision
        return newly

    def record(self, model_id: str) -> ModelRecord:
        """The record of a model. Raises Refused naming the models there are."""
        record = self.records.get(model_id)
        if record is None:
            there = ", ".join(list(self.records)[:20]) or "none"
            if not model_id:
                raise invalid([Violation("model_id", f"not sent; there are: {there}")])
            raise Refused(Reason.MODEL_UNKNOWN, f"there is no model {model_id[:80]!r}; there are: {there}")
        return record
