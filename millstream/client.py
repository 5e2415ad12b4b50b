"""The Python client: ask for predictions from a script, a notebook or a service.

    from millstream import Client

    with Client("127.0.0.1:50051") as client:
        answer = client.predict("credit_risk", [0.6, 45])
        answer.outputs                                                     # {"default_probability": 0.85}
        client.predict("credit_risk", features={"debt_to_income_ratio": 0.6, "age_years": 45})
        client.predict("churn", entity_id="101")                           # features come from the feature store
        client.predict("credit_risk", rows=frame).columns                  # a DataFrame or a numpy array, many rows

`AsyncClient` is the same on an event loop. Every refusal is a PredictionError; its subclass says what to do about it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from contract.request import RequestIds
from ingest.answer import (
    AlreadyExists,
    Answer,
    Cancelled,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    NotFound,
    Overloaded,
    Pending,
    PredictionError,
    Unavailable,
    outcome,
)
from ingest.question import needs_names, question
from millstream.async_client import AsyncClient
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

__all__ = [
    "AlreadyExists",
    "Answer",
    "AsyncClient",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "InvalidInput",
    "ModelFailed",
    "NotFound",
    "Overloaded",
    "Pending",
    "PredictionError",
    "Question",
    "Unavailable",
    "channel_options",
    "error_from_call",
    "question",
]


class Client:
    """A gateway as seen by a program; safe to share among threads, which then share one connection.

    `timeout` is the deadline of every call in seconds, unless a call brings its own; it travels with the request, so
    that nobody computes an answer that comes too late.
    """

    def __init__(self, address: str = "127.0.0.1:50051", *, timeout: float = 30.0) -> None:
        self.address = address
        self.timeout = timeout
        self._channel = grpc.insecure_channel(address, options=channel_options(address))
        self._stub = v1_grpc.PredictorStub(self._channel)
        self._health = health_pb2_grpc.HealthStub(self._channel)
        self._ids = RequestIds()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls under way end as cancelled."""
        self._channel.close()

    def wait_ready(self, timeout: float = 30.0, model_id: str = "") -> None:
        """Returns as soon as the gateway says it serves; raises Unavailable after `timeout` seconds.

        With a `model_id` it is that model that must be served, else every one.
        """
        until, last = time.monotonic() + timeout, "not asked yet"
        while (left := until - time.monotonic()) > 0:
            try:
                reply = self._health.Check(
                    health_pb2.HealthCheckRequest(service=health_service(model_id)), timeout=left, wait_for_ready=True
                )
            except grpc.RpcError as error:
                last = error_from_call(error, address=self.address).message
            else:
                if reply.status == health_pb2.HealthCheckResponse.SERVING:
                    return
                last = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
            time.sleep(max(0.0, min(POLL_S, until - time.monotonic())))
        raise not_ready(self.address, timeout, last)

    def models(self, *, timeout: float | None = None) -> list[v1.Model]:
        """Every model that can be asked now, with its features, outputs and versions."""
        return list(self._call(self._stub.ListModels, v1.ListModelsRequest(), timeout).models)

    def model(self, model_id: str, version: str = "", *, timeout: float | None = None) -> v1.Model:
        """One model; with `version` the signature of that version. Raises NotFound."""
        request = v1.GetModelRequest(model_id=model_id, version=version)
        model: v1.Model = self._call(self._stub.GetModel, request, timeout)
        return model

    def predict(
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
        """Asks one model and waits for its answer.

        One row goes as `inputs`, by position, or `features`, by name; with an `entity_id` what is left out is fetched
        from the feature store. Many rows go as `rows`: a numpy array of (rows, features), a list of lists, a list of
        dicts or a DataFrame, whose columns are put in the model's order.

        With a `request_id` of your own the request may be repeated: the same id gives the first result again. Raises
        PredictionError: InvalidInput, NotFound, Overloaded, Unavailable, DeadlineExceeded, AlreadyExists, ModelFailed.
        """
        form = {"inputs": inputs, "features": features, "rows": rows, "entity_id": entity_id, "request_id": request_id}
        return answered(self._ask(self._stub.Predict, model_id, version, form, timeout))

    def submit(
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
        """Leaves a request to be answered later and returns its id; `result` reads the answer.

        `discard_reply`: nobody will read it, only the event log keeps it.
        """
        form = {
            "inputs": inputs, "features": features, "rows": rows, "entity_id": entity_id, "request_id": request_id,
            "discard_reply": discard_reply,
        }  # fmt: skip
        reply: v1.SubmitResponse = self._ask(self._stub.Submit, model_id, version, form, timeout)
        return reply.request_id

    def result(self, model_id: str, request_id: str, *, wait: float = 0.0) -> Answer | Pending:
        """The answer to a submitted request, or Pending where there is none after `wait` seconds.

        Raises NotFound where the id is unknown or its answer expired, and the error the request ended with.
        """
        request = result_request(model_id, request_id, wait)
        reply = self._call(self._stub.GetResult, request, max(wait, self.timeout) + GRACE_S, request_id)
        return raised(reply)

    def predict_stream(
        self, questions: Iterable[Question], *, in_flight: int = 256, timeout: float | None = None
    ) -> Iterator[Answer | PredictionError]:
        """Asks many questions over one call, `in_flight` at a time, and yields outcomes in the order they finish.

        A question is a dict of the arguments of `predict` (`{"model_id": "churn", "inputs": [25, 120]}`). Match by
        `request_id`, which is made where a question brings none. A refused request is yielded as its error and ends
        nothing; a lost connection is raised. `timeout` is for the whole stream; None: no limit.
        """
        room = threading.Semaphore(in_flight)
        over = threading.Event()
        broken: list[BaseException] = []

        def feed() -> Iterator[v1.PredictRequest]:
            try:
                for item in questions:
                    # Bounded, so that an endless iterable is not read ahead of its answers.
                    while not room.acquire(timeout=POLL_S):
                        if over.is_set():
                            return
                    yield self._streamed(item)
            except Exception as error:  # noqa: BLE001 - raised again where the caller reads the answers
                # gRPC would end the call with a bare "exception iterating requests".
                broken.append(error)

        call = self._stub.PredictStream(feed(), timeout=timeout)
        try:
            for reply in call:
                room.release()
                result = outcome(reply)
                if not isinstance(result, Pending):
                    yield result
            if broken:
                raise broken[0]
        except grpc.RpcError as error:
            raise error_from_call(error, address=self.address) from None
        finally:
            over.set()
            call.cancel()

    def _streamed(self, item: Question) -> v1.PredictRequest:
        message = item if isinstance(item, v1.PredictRequest) else question(**self._named(dict(item)))
        if not message.request_id:
            message.request_id = self._ids.next()
        return message

    def _named(self, form: dict[str, Any]) -> dict[str, Any]:
        """The form with feature names, and the version they belong to, where rows come by name."""
        if not needs_names(form.get("rows")):
            return form
        model = self.model(form["model_id"], form.get("version", ""))
        # Pinned: another version might expect its features in another order.
        return {**form, "columns": feature_names(model), "version": model.version}

    def _ask(
        self, method: Callable[..., Any], model_id: str, version: str, form: dict[str, Any], timeout: float | None
    ) -> Any:
        form = {"model_id": model_id, "version": version, **form}
        if needs_names(form.get("rows")) and not version:
            try:
                return self._call(method, question(**self._named(form)), timeout, form["request_id"])
            except NotFound as error:
                if error.reason != "VERSION_UNKNOWN":
                    raise
            # The version was taken out of service between reading its names and asking it: once more.
        return self._call(method, question(**self._named(form)), timeout, form["request_id"])

    def _call(self, method: Callable[..., Any], request: Any, timeout: float | None, request_id: str = "") -> Any:
        try:
            return method(request, timeout=self.timeout if timeout is None else timeout)
        except grpc.RpcError as error:
            raise error_from_call(error, request_id, self.address) from None
