"""The Predictor service.

Requests come in and replies go out as bytes: a request is parsed here, so that bytes that are none get a clear
answer, and a reply is passed on as the worker wrote it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, NoReturn, TypeVar

import grpc
import redis.asyncio
from google.protobuf.message import DecodeError
from redis.exceptions import RedisError

from contract import entry
from contract.admission import Admitted, Draft
from contract.catalog import Catalog
from contract.clock import now_us
from contract.completion import BULK, INTERACTIVE, pending_state
from contract.errors import Reason, Refused, Violation, invalid
from contract.keys import Keys
from contract.overload import UNKNOWN, Bound, Pool
from contract.record import ModelRecord, Version, route
from contract.request import Request, RequestIds
from contract.settings import Settings
from gateway.calls import Call, Cancellable, DirectServer, FutureCall
from gateway.models import model_message
from gateway.status import internal, status_of
from gateway.waiters import Waiter, Waiters
from gateway.withdrawals import Withdrawals
from ingest.entrance import Answer, Entrance, Seen
from ingest.features import FeatureStore
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

SERVICE = "millstream.v1.Predictor"
MOST_ON_ONE_STREAM = 1024
LONGEST_WAIT_S = 300.0
LONGEST_DEADLINE_S = 86_400.0
"""A deadline further away is none: that is how some servers say it."""
LONG_S, LONG_STEPS, STEPS = 2.0, 16, 1000
"""From what seconds on a deadline counts as long, and in how many steps of a second each kind is told apart."""
ANSWER_S = 0.2
"""What is left of a call's deadline for an answer on its way."""

Parsed = TypeVar("Parsed", v1.GetResultRequest, v1.GetModelRequest)
Context = grpc.aio.ServicerContext[Any, Any]


class Submission:
    """One request on its way into the bulk lane."""

    __slots__ = ("appended", "bound", "payload", "request_id", "rows", "state")

    def __init__(self, payload: bytes, rows: int, state: bytes, request_id: str) -> None:
        self.payload = payload
        self.rows = rows
        self.state = state
        self.request_id = request_id
        self.bound: Bound | None = None
        self.appended: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def answered(self, answer: Answer) -> None:
        if not self.appended.done():
            self.appended.set_result(answer)


class Predictor:
    """Answers callers; everything it needs is passed in, and nothing here blocks the event loop."""

    def __init__(
        self,
        *,
        settings: Settings,
        name: str,
        client: redis.asyncio.Redis,
        catalog: Catalog,
        entrance: Entrance,
        waiters: Waiters,
        withdrawals: Withdrawals,
        features: FeatureStore,
    ) -> None:
        self._settings = settings
        self._name = name
        self._client = client
        self._keys = Keys(settings.prefix)
        self._catalog = catalog
        self._entrance = entrance
        self._waiters = waiters
        self._withdrawals = withdrawals
        self._features = features
        self._ids = RequestIds()
        self._woken = entry.woken(name)
        self._pools: Mapping[str, Pool] = {}
        self._bounds: dict[tuple[str, float], Bound] = {}
        self.draining = False
        self.engines: Mapping[str, str] = {}
        """Hex version digest -> what computes it, set by the same."""
        waiters.on_gone = withdrawals.withdraw
        waiters.append = self._append

    @property
    def pools(self) -> Mapping[str, Pool]:
        """How fast each model is, set by who looks at the workers; what is let in follows from it."""
        return self._pools

    @pools.setter
    def pools(self, pools: Mapping[str, Pool]) -> None:
        self._pools = pools
        self._bounds.clear()

    def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server; without serializers, so that bytes stay bytes."""
        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.stream_stream_rpc_method_handler
        methods: dict[str, Any] = {
            "Predict": unary(self.predict),
            "PredictStream": stream(self.predict_stream),
            "Submit": unary(self.submit),
            "GetResult": unary(self.get_result),
            "ListModels": unary(self.list_models),
            "GetModel": unary(self.get_model),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, methods),))
        # Method by method too: the native engine passes what it knows by service alone on to a grpcio server.
        registered: Any = server
        registered.add_registered_method_handlers(SERVICE, methods)
        if isinstance(server, DirectServer):
            server.answer_directly(f"/{SERVICE}/Predict", self.begin)

    async def predict(self, raw: bytes, context: Context) -> bytes:
        """One request, one answer."""
        request_id = ""
        try:
            request = Request.from_bytes(raw)
            request_id = request.request_id or self._ids.next()
            return await self._ask(request, request_id, context.time_remaining())
        except Exception as error:  # noqa: BLE001 - `_abort` tells refusals from faults
            await _abort(context, error, "Predict", request_id)

    def begin(self, raw: bytes, user_request_us: int, deadline_s: float | None, call: Call) -> Cancellable | None:
        """One request of a caller who waits without a coroutine; what to cancel when that caller goes away."""
        request_id = ""
        try:
            request = Request.from_bytes(raw)
            request_id = request.request_id or self._ids.next()
            if request.entity_id:
                # Stored features have to be waited for.
                return asyncio.get_running_loop().create_task(self._relay(request, request_id, deadline_s, call))
            version, admitted = self._admit(request, request_id)
            if isinstance(admitted, Draft):
                admitted = admitted.complete({})
            return self._start(call, request, request_id, version, admitted, user_request_us, deadline_s)
        except Exception as error:  # noqa: BLE001 - one that is no refusal is a fault
            call.refuse(error if isinstance(error, Refused) else internal(error, "Predict"), request_id)
            return None

    async def _relay(self, request: Request, request_id: str, deadline_s: float | None, call: Call) -> None:
        try:
            call.reply(await self._ask(request, request_id, deadline_s))
        except Exception as error:  # noqa: BLE001 - one that is no refusal is a fault
            call.refuse(error if isinstance(error, Refused) else internal(error, "Predict"), request_id)

    async def predict_stream(self, raws: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        """Many requests in flight on one call, answered as they finish."""
        answers: asyncio.Queue[bytes | None] = asyncio.Queue()
        room = asyncio.Semaphore(MOST_ON_ONE_STREAM)
        tasks: set[asyncio.Task[None]] = set()

        async def answer(raw: bytes) -> None:
            answers.put_nowait(await self._answer(raw, context.time_remaining()))

        async def read() -> None:
            try:
                async for raw in raws:
                    await room.acquire()
                    task = asyncio.create_task(answer(raw))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                while tasks:
                    await asyncio.wait(tasks)
            finally:
                answers.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (response := await answers.get()) is not None:
                yield response
                # Only now: who sends and never reads would have all answers kept here.
                room.release()
            await reader
        finally:
            reader.cancel()
            for task in tasks:
                task.cancel()

    async def submit(self, raw: bytes, context: Context) -> bytes:
        """Appends to the bulk lane; the answer is there for GetResult later."""
        request_id = ""
        answer: Answer | None = None
        try:
            request = Request.from_bytes(raw)
            record = self._record(request.model_id)
            request_id = request.request_id or self._ids.next()
            checked = route(record, request.version, request.entity_id, request_id).admission.draft(request)
            if isinstance(checked, Draft) and not checked.wanted:
                checked = checked.complete({})
            submission = Submission(
                payload=request._replace(request_id=request_id).to_message().SerializeToString(),
                rows=request.row_count,
                state=pending_state(request.body_sha256(), BULK),
                request_id=request_id,
            )
            self._entrance.append(request.model_id, BULK, submission)
            answer = await submission.appended
            if isinstance(answer, Refused):
                raise answer
            return v1.SubmitResponse(
                request_id=request_id, model_id=request.model_id, duplicate=isinstance(answer, Seen)
            ).SerializeToString()
        except Exception as error:  # noqa: BLE001 - `_abort` tells refusals from faults
            await _abort(context, error, "Submit", request_id)
        finally:
            answer = None  # as in `_ask`

    async def get_result(self, raw: bytes, context: Context) -> bytes:
        """The result of a request by its id."""
        try:
            request = _parsed(v1.GetResultRequest, raw)
            model_id, request_id = request.model_id, request.request_id
            if not model_id or not request_id:
                missing = [name for name in ("model_id", "request_id") if not getattr(request, name)]
                raise invalid([Violation(name, "expected, got nothing") for name in missing])
            response = await self._stored(model_id, request_id)
            remaining = context.time_remaining()
            # That it is still pending has to reach the caller before the call's deadline does.
            longest = LONGEST_WAIT_S if remaining is None else remaining - ANSWER_S
            wait_s = min(request.wait.ToMilliseconds() / 1000, longest, LONGEST_WAIT_S)
            if response is None and wait_s > 0:
                call = FutureCall()
                waiter = self._waiters.add(call, model_id, request_id, wait_s)
                try:
                    await asyncio.wait((call.future,), timeout=wait_s)
                    if call.future.done():
                        call.future.exception()  # a failure is read from its key like any result
                finally:
                    self._waiters.remove(waiter)
                response = await self._stored(model_id, request_id)
            if response is not None:
                return response
            return v1.PredictResponse(request_id=request_id, model_id=model_id, pending=True).SerializeToString()
        except Exception as error:  # noqa: BLE001 - `_abort` tells refusals from faults
            await _abort(context, error, "GetResult")

    async def list_models(self, _raw: bytes, _context: Context) -> bytes:
        """Every model with a live version."""
        records = self._catalog.records.values()
        models = [
            model_message(record, record.live, self.engines, whole=False)
            for record in records
            if record.live is not None
        ]
        return v1.ListModelsResponse(models=models).SerializeToString()

    async def get_model(self, raw: bytes, context: Context) -> bytes:
        """One model."""
        try:
            request = _parsed(v1.GetModelRequest, raw)
            record = self._catalog.record(request.model_id)
            version = route(record, request.version, "", "")
            return model_message(record, version, self.engines, whole=True).SerializeToString()
        except Exception as error:  # noqa: BLE001 - `_abort` tells refusals from faults
            await _abort(context, error, "GetModel")

    def _record(self, model_id: str) -> ModelRecord:
        """A model that may be asked now."""
        if self.draining:
            raise Refused(Reason.DRAINING, "this gateway is stopping; ask another", retry_after_s=0.5)
        record = self._catalog.record(model_id)
        if model_id not in self._waiters.subscribed:
            raise Refused(Reason.STORE_UNAVAILABLE, "replies can't be received now: Redis is gone", retry_after_s=0.5)
        return record

    async def _answer(self, raw: bytes, deadline_s: float | None) -> bytes:
        """One answer on a stream, where a refusal is a reply like any other."""
        request_id, model_id = "", ""
        try:
            request = Request.from_bytes(raw)
            request_id, model_id = request.request_id or self._ids.next(), request.model_id
            return await self._ask(request, request_id, deadline_s)
        except Refused as refused:
            error = refused
        except Exception as fault:  # noqa: BLE001
            error = internal(fault, "PredictStream")
        return v1.PredictResponse(request_id=request_id, model_id=model_id, error=error.to_error()).SerializeToString()

    async def _ask(self, request: Request, request_id: str, deadline_s: float | None) -> bytes:
        """admit -> append -> wait. Raises Refused."""
        user_request_us = now_us()
        version, admitted = self._admit(request, request_id)
        if isinstance(admitted, Draft):
            admitted = await self._hydrate(admitted)
        call = FutureCall()
        waiter = self._start(call, request, request_id, version, admitted, user_request_us, deadline_s)
        try:
            return await call.future
        except asyncio.CancelledError:
            waiter.cancel()
            raise
        finally:
            # A refusal's traceback holds this frame, with all that was asked; it must not be held by it too.
            del call, waiter

    def _admit(self, request: Request, request_id: str) -> tuple[Version, Admitted | Draft]:
        """The version that answers, and what it makes of the request. Raises Refused."""
        version = route(self._record(request.model_id), request.version, request.entity_id, request_id)
        return version, version.admission.draft(request)

    def _start(
        self,
        call: Call,
        request: Request,
        request_id: str,
        version: Version,
        admitted: Admitted,
        user_request_us: int,
        deadline_s: float | None,
    ) -> Waiter:
        """Appends an admitted request, and has its reply passed to the call."""
        if deadline_s is None or deadline_s > LONGEST_DEADLINE_S:
            deadline_s = self._settings.default_deadline_s
        body_sha256 = request.body_sha256() if request.request_id else b""
        model_id = request.model_id
        extras = b""
        if body_sha256 or request.replay or admitted.packed or admitted.hydrated or admitted.degraded:
            extras = entry.extras(
                hydrated=admitted.hydrated,
                degraded=admitted.degraded,
                packed=admitted.packed,
                reply_ttl_s=self._settings.reply_ttl_own_id_s if body_sha256 else 0,
                body_sha256=body_sha256,
                replay=request.replay,
            )
        payload = entry.joined(
            request_id,
            entry.pinned(model_id, version.version, version.digest),
            admitted.rows_field,
            request.entity_id,
            user_request_us + int(deadline_s * 1_000_000),
            user_request_us,
            now_us(),
            self._woken,
            extras,
        )
        state = pending_state(body_sha256, INTERACTIVE) if body_sha256 else b""
        bound = self._bound(model_id, deadline_s)
        waiter = self._waiters.add(call, model_id, request_id, deadline_s, payload, admitted.n, state, bound)
        self._append(waiter)
        return waiter

    def _append(self, waiter: Waiter) -> None:
        self._entrance.append(waiter.model_id, INTERACTIVE, waiter)

    def _bound(self, model_id: str, deadline_s: float) -> Bound:
        """What may wait for a request with that deadline, to 3 % of it: so most of one turn have the same."""
        steps = LONG_STEPS if deadline_s > LONG_S else STEPS
        key = (model_id, int(deadline_s * steps) / steps)
        bound = self._bounds.get(key)
        if bound is None:
            bound = self._bounds[key] = self._pools.get(model_id, UNKNOWN).bound(key[1], self._settings)
        return bound

    async def _hydrate(self, draft: Draft) -> Admitted:
        if not draft.wanted:
            return draft.complete({})
        found = await self._features.stored(draft)
        return draft.complete(found.values, store_failed=found.failed)

    async def _stored(self, model_id: str, request_id: str) -> bytes | None:
        """The stored reply, None while pending. Raises Refused where there is neither."""
        try:
            raw: Any = await self._client.get(self._keys.model(model_id).reply(request_id))
        except (RedisError, OSError):
            raise Refused(Reason.STORE_UNAVAILABLE, "Redis did not answer", retry_after_s=0.5) from None
        if raw is None:
            text = (
                f"nothing is known of request {request_id[:128]!r} of model {model_id[:128]!r}: never sent, or expired"
            )
            raise Refused(Reason.RESULT_UNKNOWN, text)
        return wire.ReplyState.FromString(raw).response or None


def _parsed(kind: type[Parsed], raw: bytes) -> Parsed:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise Refused(Reason.MALFORMED, f"the bytes are no {kind.DESCRIPTOR.full_name}") from None


async def _abort(context: Context, error: Exception, call: str, request_id: str = "") -> NoReturn:
    """Ends a unary call: a refusal with its status, a fault with an id, since its text would go to the caller."""
    refused = error if isinstance(error, Refused) else internal(error, call)
    await context.abort_with_status(status_of(refused, request_id))
    raise AssertionError("abort raises")
