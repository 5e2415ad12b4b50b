"""The Registry service: what is known, what happened, and a look into the store now."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import structlog
from anyio import to_thread
from redis.exceptions import RedisError

from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as rpc
from registry.catalogue import Catalogue
from registry.listing import listed_versions, timestamp
from registry.poll import Look, StoreWatch
from registry.promotion import Promotion

_log = structlog.get_logger()


class RegistryService(rpc.RegistryServicer):
    """Reads the catalogue; changes nothing but by looking."""

    def __init__(
        self, catalogue: Catalogue, watch: StoreWatch, promotion: Promotion, sync: Callable[[], Awaitable[Look]]
    ) -> None:
        self._catalogue = catalogue
        self._watch = watch
        self._promotion = promotion
        self._sync = sync

    async def ListVersions(
        self, request: v1.ListVersionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> v1.ListVersionsResponse:
        versions = listed_versions(
            self._catalogue,
            self._promotion.records,
            self._promotion.waiting,
            self._watch.trouble,
            request.model_id,
        )
        if request.model_id and not versions:
            await self._unknown(request.model_id, context)
        last = self._watch.last_look
        return v1.ListVersionsResponse(
            versions=versions,
            store=self._watch.store.url,
            last_poll=timestamp(last) if last else None,
            store_problem=self._watch.problem,
        )

    async def Sync(
        self,
        request: v1.SyncRequest,  # noqa: ARG002 - it says nothing
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> v1.SyncResponse:
        try:
            look = await self._sync()
        except (RedisError, OSError) as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"Redis did not answer as it should: {error}")
        except Exception:  # noqa: BLE001 - its text is not for callers
            mark = uuid.uuid4().hex[:12]
            _log.exception("a look into the store failed", mark=mark)
            await context.abort(grpc.StatusCode.INTERNAL, f"the look failed; the registry's log has it under {mark}")
        return v1.SyncResponse(
            listed=look.listed, downloaded=look.downloaded, changes=look.changes, problems=look.problems
        )

    async def History(
        self, request: v1.HistoryRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> v1.HistoryResponse:
        acts = await to_thread.run_sync(self._catalogue.history, request.model_id)
        if request.model_id and not acts:
            await self._unknown(request.model_id, context)
        return v1.HistoryResponse(
            entries=[
                v1.HistoryEntry(
                    at=timestamp(act.at),
                    model_id=act.model_id,
                    version=act.version,
                    digest=act.digest,
                    act=act.act,
                    detail=act.detail,
                )
                for act in acts
            ]
        )

    async def _unknown(self, model_id: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        models = sorted({version.model_id for version in self._catalogue.versions.values()})
        there = ", ".join(models[:20]) or "none"
        message = f"no model {model_id[:128]!r} was ever found; there are: {there}"
        await context.abort(grpc.StatusCode.NOT_FOUND, message)
