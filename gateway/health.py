"""Health follows the workers: a server that can't predict does not say that it serves."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from contract.presence import Presence
from contract.record import ModelRecord


def serving(
    records: Mapping[str, ModelRecord], workers: Collection[Presence], served: Collection[str]
) -> dict[str, bool]:
    """Whether each model is SERVING; a pure decision.

    At first a model is once every living worker that serves it has its live version; one that was `served` before
    stays so while a single one has it, so that a restarting worker does not take a model out of service.
    """
    out = {}
    for model_id, record in records.items():
        live = record.live
        if live is None:
            out[model_id] = False
            continue
        digest = live.digest.hex()
        loaded = [digest in worker.loaded for worker in workers if worker.serves(model_id)]
        out[model_id] = any(loaded) and (model_id in served or all(loaded))
    return out
