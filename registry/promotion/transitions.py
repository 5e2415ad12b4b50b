"""What one record says that the one before it did not, as lines of history."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from contract.record import LOADING, RETIRING, ModelRecord
from registry.catalogue.known import Act
from registry.promotion.timeline import Wanted


def transitions(before: ModelRecord | None, after: ModelRecord, wanted: Wanted | None, at: datetime) -> list[Act]:
    """The lines of history that lead from one record to the next; `wanted` tells which statements they follow from."""
    return list(_lines(before or ModelRecord(after.model_id, 0, {}, type(after.routing)()), after, wanted, at))


def _lines(before: ModelRecord, after: ModelRecord, wanted: Wanted | None, at: datetime) -> Iterator[Act]:
    by_version = {claim.version.version: claim.statement.told for claim in wanted.claims} if wanted else {}

    def line(version: str, act: str, detail: str, *, why: bool = True) -> Act:
        held = after.versions.get(version) or before.versions.get(version)
        statement = by_version.get(version, "") if why else ""
        told = "; ".join(filter(None, (detail, statement)))
        return Act(at, after.model_id, version, held.digest.hex() if held else "", act, told)

    for name, version in after.versions.items():
        past = before.versions.get(name)
        if version.state == LOADING and (past is None or past.state != LOADING):
            yield line(name, "loading", "in Redis, for the workers to load")
    then, now = before.routing, after.routing
    if now.production != then.production:
        if now.production:
            yield line(now.production, "live", "all workers have it")
        if then.production:
            instead = f"{now.production} answers instead" if now.production else "nothing answers instead"
            yield line(then.production, "superseded", instead, why=False)
    if then.canary and then.canary != now.canary:
        became = " it is in production now" if then.canary == now.production else " it gets no requests any more"
        yield line(then.canary, "canary ended", became.strip(), why=False)
    if now.canary and (now.canary, now.canary_basis_points) != (then.canary, then.canary_basis_points):
        share = f"{now.canary_basis_points / 100:g} % of the requests that name no version"
        yield line(now.canary, "canary", share if now.canary == then.canary else f"all workers have it; {share}")
    if then.shadow and then.shadow != now.shadow:
        yield line(then.shadow, "shadow ended", "", why=False)
    if now.shadow and now.shadow != then.shadow:
        yield line(now.shadow, "shadow", "all workers have it")
    for name, version in before.versions.items():
        if version.state == RETIRING and name not in after.versions:
            yield line(name, "dropped", "no entry waits for it", why=False)
