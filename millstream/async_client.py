"""The client on an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.request import RequestIds
from ingest.answer import Answer, NotFound, Pending, PredictionError, outcome
from ingest.question import needs_names, question
from millstream.calls import (
    GRACE_S,
    POLL_S,
    Question,
    answered,
    channel_options,
    error_from_call,
    feature_names,
    health_service,
    not_ready,
    raised,
    result_request,
)
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc


class AsyncClient:
    """The same as Client on an event loop; to be made and used in one running loop."""

    def __init__(self, address: str = "127.0.0.1:50051", *, timeout: float = 30.0) -> None:
        self.address = address
        self.timeout = timeout
        self._channel = grpc.aio.insecure_channel(address, options=channel_options(address))
        self._stub: Any = v1_grpc.PredictorStub(self._channel)
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
        self._ids = RequestIds()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls under way end as cancelled."""
        await self._channel.close(None)

    async def wait_ready(self, timeout: float = 30.0, model_id: str = "") -> None:
        """Like Client.wait_ready."""
        until, last = time.monotonic() + timeout, "not asked yet"
        while (left := until - time.monotonic()) > 0:
            try:
                reply = await self._health.Check(
                    health_pb2.HealthCheckRequest(service=health_service(model_id)), timeout=left, wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                last = error_from_call(error, address=self.address).message
            else:
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                last = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
            await asyncio.sleep(max(0.0, min(POLL_S, until - time.monotonic())))
        raise not_ready(self.address, timeout, last)

    async def models(self, *, timeout: float | None = None) -> list[v1.Model]:
        """Like Client.models."""
        return list((await self._call(self._stub.ListModels, v1.ListModelsRequest(), timeout)).models)

    async def model(self, model_id: str, version: str = "", *, timeout: float | None = None) -> v1.Model:
        """Like Client.model."""
        request = v1.GetModelRequest(model_id=model_id, version=version)
        model: v1.Model = await self._call(self._stub.GetModel, request, timeout)
        return model

    async def predict(
        self,
        model_id: str,
        inputs: Any = None,
        *,
        features: Any = None,
        rows: Any = None,
        entity_id: str = "",
        version: str = "",
        request_id: str = "",
        timeout: float | None = None,
    ) -> Answer:
        """Like Client.predict; cancelling the task withdraws the request."""
        form = {"inputs": inputs, "features": features, "rows": rows, "entity_id": entity_id, "request_id": request_id}
        return answered(await self._ask(self._stub.Predict, model_id, version, form, timeout))

    async def submit(
        self,
        model_id: str,
        inputs: Any = None,
        *,
        features: Any = None,
        rows: Any = None,
        entity_id: str = "",
        version: str = "",
        request_id: str = "",
        discard_reply: bool = False,
        timeout: float | None = None,
    ) -> str:
        """Like Client.submit."""
        form = {
            "inputs": inputs, "features": features, "rows": rows, "entity_id": entity_id, "request_id": request_id,
            "discard_reply": discard_reply,
        }  # fmt: skip
        reply: v1.SubmitResponse = await self._ask(self._stub.Submit, model_id, version, form, timeout)
        return reply.request_id

    async def result(self, model_id: str, request_id: str, *, wait: float = 0.0) -> Answer | Pending:
        """Like Client.result."""
        request = result_request(model_id, request_id, wait)
        return raised(await self._call(self._stub.GetResult, request, max(wait, self.timeout) + GRACE_S, request_id))

    async def predict_stream(
        self,
        questions: Iterable[Question] | AsyncIterable[Question],
        *,
        in_flight: int = 256,
        timeout: float | None = None,
    ) -> AsyncIterator[Answer | PredictionError]:
        """Like Client.predict_stream; `questions` may be an asynchronous iterable too."""
        room = asyncio.Semaphore(in_flight)
        broken: list[BaseException] = []

        async def feed() -> AsyncIterator[v1.PredictRequest]:
            try:
                async for item in _each(questions):
                    await room.acquire()
                    yield await self._streamed(item)
            except Exception as error:  # noqa: BLE001 - raised again where the caller reads the answers
                broken.append(error)

        call = self._stub.PredictStream(feed(), timeout=timeout)
        try:
            async for reply in call:
                room.release()
                result = outcome(reply)
                if not isinstance(result, Pending):
                    yield result
            if broken:
                raise broken[0]
        except grpc.aio.AioRpcError as error:
            raise error_from_call(error, address=self.address) from None
        finally:
            call.cancel()

    async def _streamed(self, item: Question) -> v1.PredictRequest:
        message = item if isinstance(item, v1.PredictRequest) else question(**await self._named(dict(item)))
        if not message.request_id:
            message.request_id = self._ids.next()
        return message

    async def _named(self, form: dict[str, Any]) -> dict[str, Any]:
        if not needs_names(form.get("rows")):
            return form
        model = await self.model(form["model_id"], form.get("version", ""))
        return {**form, "columns": feature_names(model), "version": model.version}

    async def _ask(
        self, method: Callable[..., Any], model_id: str, version: str, form: dict[str, Any], timeout: float | None
    ) -> Any:
        form = {"model_id": model_id, "version": version, **form}
        if needs_names(form.get("rows")) and not version:
            try:
                return await self._call(method, question(**await self._named(form)), timeout, form["request_id"])
            except NotFound as error:
                if error.reason != "VERSION_UNKNOWN":
                    raise
        return await self._call(method, question(**await self._named(form)), timeout, form["request_id"])

    async def _call(self, method: Callable[..., Any], request: Any, timeout: float | None, request_id: str = "") -> Any:
        try:
            return await method(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.aio.AioRpcError as error:
            raise error_from_call(error, request_id, self.address) from None


async def _each(questions: Iterable[Question] | AsyncIterable[Question]) -> AsyncIterator[Question]:
    if isinstance(questions, AsyncIterable):
        async for item in questions:
            yield item
    else:
        for item in questions:
            yield item
