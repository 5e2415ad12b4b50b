"""The Registry service: what is known, what happened, a look into the store now, and the acts of operators."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

import anyio
import grpc
import structlog
from anyio import to_thread
from redis.exceptions import RedisError

from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as rpc
from registry.acts import ActRefused, Acts, Done, NotKnown
from registry.catalogue.catalogue import Catalogue
from registry.listing import listed_versions, routing_of, timestamp
from registry.promotion.promotion import Promotion
from registry.watch.poll import Look, StoreWatch

_T = TypeVar("_T")
_log = structlog.get_logger()


class RegistryService(rpc.RegistryServicer):
    """Reads the catalogue; changes it by looking, and by what operators say."""

    def __init__(
        self,
        catalogue: Catalogue,
        watch: StoreWatch,
        promotion: Promotion,
        sync: Callable[[], Awaitable[Look]],
        stir: Callable[[], None],
    ) -> None:
        self._catalogue = catalogue
        self._watch = watch
        self._promotion = promotion
        self._sync = sync
        self._stir = stir
        """Has the next step of promotion taken now."""
        self._acts = Acts(catalogue, promotion)
        self._one_at_a_time = anyio.Lock()

    async def ListVersions(
        self, request: v1.ListVersionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> v1.ListVersionsResponse:
        versions = listed_versions(
            self._catalogue,
            self._promotion.records,
            self._promotion.wanted,
            self._promotion.waiting,
            self._watch.trouble,
            request.model_id,
        )
        if request.model_id and not versions:
            await self._unknown(request.model_id, context)
        models = sorted({row.model_id for row in versions} & {key[0] for key in self._catalogue.versions})
        last = self._watch.last_look
        return v1.ListVersionsResponse(
            versions=versions,
            store=self._watch.store.url,
            last_poll=timestamp(last) if last else None,
            store_problem=self._watch.problem,
            models=[
                routing_of(
                    model_id,
                    self._promotion.records.get(model_id),
                    self._promotion.wanted(model_id),
                    self._promotion.canaries.get(model_id),
                    self._promotion.gate.terms(model_id),
                )
                for model_id in models
            ],
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
                    by=act.by,
                )
                for act in acts
            ]
        )

    async def Promote(self, request: v1.PromoteRequest, context: grpc.aio.ServicerContext[Any, Any]) -> v1.ActResponse:
        act = partial(
            self._acts.promote, request.model_id, request.version, request.by, despite_gate=request.despite_gate
        )
        return await self._act(act, context)

    async def SetCanary(
        self, request: v1.SetCanaryRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> v1.ActResponse:
        act = partial(
            self._acts.canary,
            request.model_id,
            request.version,
            request.by,
            percent=request.percent,
            abort_over=request.abort_over,
            off=request.off,
        )
        return await self._act(act, context)

    async def SetShadow(
        self, request: v1.SetShadowRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> v1.ActResponse:
        act = partial(self._acts.shadow, request.model_id, request.version, request.by, off=request.off)
        return await self._act(act, context)

    async def Rollback(
        self, request: v1.RollbackRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> v1.ActResponse:
        return await self._act(partial(self._acts.rollback, request.model_id, request.by), context)

    async def Retire(self, request: v1.RetireRequest, context: grpc.aio.ServicerContext[Any, Any]) -> v1.ActResponse:
        act = partial(self._acts.retire, request.model_id, request.version, request.by, force=request.force)
        return await self._act(act, context)

    async def Pin(self, request: v1.PinRequest, context: grpc.aio.ServicerContext[Any, Any]) -> v1.ActResponse:
        return await self._act(partial(self._acts.pin, request.model_id, request.version, request.by), context)

    async def Unpin(self, request: v1.UnpinRequest, context: grpc.aio.ServicerContext[Any, Any]) -> v1.ActResponse:
        return await self._act(partial(self._acts.unpin, request.model_id, request.by), context)

    async def Gate(self, request: v1.GateRequest, context: grpc.aio.ServicerContext[Any, Any]) -> v1.GateResponse:
        names = ("policy", "rows", "changed", "tolerance")
        changes = {name: getattr(request, name) for name in names if request.HasField(name)}
        act = partial(self._acts.gate, request.model_id, request.by, changes, reset=request.reset)
        detail = await self._done(act, context)
        self._stir()
        gate = self._promotion.gate
        terms = gate.terms(request.model_id)
        is_own = request.model_id in self._catalogue.gates
        return v1.GateResponse(
            model_id=request.model_id,
            policy=terms.policy,
            rows=terms.rows,
            changed=terms.changed,
            tolerance=terms.tolerance,
            is_own=is_own,
            detail=detail,
            hindrance=gate.hindrance,
        )

    async def _act(
        self, act: Callable[[], Awaitable[Done]], context: grpc.aio.ServicerContext[Any, Any]
    ) -> v1.ActResponse:
        done = await self._done(act, context)
        said = done.statement
        _log.info("an operator's act", model_id=said.model_id, version=said.version, act=said.word, by=said.by)
        self._stir()
        return v1.ActResponse(model_id=said.model_id, version=said.version, digest=said.digest, detail=done.detail)

    async def _done(self, act: Callable[[], Awaitable[_T]], context: grpc.aio.ServicerContext[Any, Any]) -> _T:
        """Does it, one at a time; it is on record when this answers."""
        try:
            async with self._one_at_a_time:
                return await act()
        except NotKnown as refused:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(refused))
        except ActRefused as refused:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refused))
        except Exception:  # noqa: BLE001 - its text is not for callers
            mark = uuid.uuid4().hex[:12]
            _log.exception("an act failed", mark=mark)
            await context.abort(grpc.StatusCode.INTERNAL, f"it was not done; the registry's log has it under {mark}")
        raise AssertionError("a call that was ended goes on")

    async def _unknown(self, model_id: str, context: grpc.aio.ServicerContext[Any, Any]) -> None:
        models = sorted({version.model_id for version in self._catalogue.versions.values()})
        there = ", ".join(models[:20]) or "none"
        message = f"no model {model_id[:128]!r} was ever found; there are: {there}"
        await context.abort(grpc.StatusCode.NOT_FOUND, message)
