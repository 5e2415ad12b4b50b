"""What both clients do with a call: its options, its messages, and the error it ended with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from contract.errors import Violation
from ingest.answer import Answer, DeadlineExceeded, Pending, PredictionError, Unavailable, error_class, outcome
from protos import millstream_v1_pb2 as v1

Question = v1.PredictRequest | Mapping[str, Any]
"""A request for a stream: a message, or the arguments of `predict` as a dict."""

_DETAILS = "grpc-status-details-bin"
POLL_S = 0.1
GRACE_S = 0.25
"""How much longer than the server a caller of `result` waits, so that "pending" arrives instead of a deadline."""


def channel_options(address: str) -> list[tuple[str, Any]]:
    """Options for a gRPC channel to that address."""
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", 256 * 2**20),
        ("grpc.max_send_message_length", 256 * 2**20),
    ]
    if address.startswith(("unix:", "localhost:", "127.", "[::1]")):
        options.append(("grpc.enable_http_proxy", 0))
    return options


def error_from_call(
    error: grpc.RpcError | grpc.aio.AioRpcError, request_id: str = "", address: str = ""
) -> PredictionError:
    """The PredictionError of a failed call, with what its google.rpc details say.

    `address` is named where nothing answered there.
    """
    code = error.code()
    number: int = code.value[0]
    message = error.details() or code.name
    reason, violations, retry_after, known_id = "", [], None, request_id
    metadata: Iterable[tuple[str, Any]] = error.trailing_metadata() or ()  # type: ignore[assignment]
    for key, value in metadata:
        if key != _DETAILS:
            continue
        for detail in status_pb2.Status.FromString(value).details:
            named, bad, retry = (
                error_details_pb2.ErrorInfo(),
                error_details_pb2.BadRequest(),
                error_details_pb2.RetryInfo(),
            )
            if detail.Unpack(named):
                reason = named.reason
                known_id = request_id or named.metadata.get("request_id", "")
            elif detail.Unpack(bad):
                violations += [Violation(each.field, each.description) for each in bad.field_violations]
            elif detail.Unpack(retry):
                retry_after = retry.retry_delay.ToMicroseconds() / 1e6
    if not reason and code == grpc.StatusCode.UNAVAILABLE:
        message = f"nothing answers at {address or 'the address'} ({message})"
    if not reason and code == grpc.StatusCode.DEADLINE_EXCEEDED:
        message = f"no answer from {address or 'the server'} in time"
    return error_class(number, reason)(
        message, reason=reason, request_id=known_id, violations=violations, retry_after=retry_after
    )


def raised(message: v1.PredictResponse) -> Answer | Pending:
    result = outcome(message)
    if isinstance(result, PredictionError):
        raise result
    return result


def answered(message: v1.PredictResponse) -> Answer:
    result = raised(message)
    if isinstance(result, Pending):
        raise DeadlineExceeded(
            "the request is accepted and not answered yet; read it with `result`", request_id=result.request_id
        )
    return result


def result_request(model_id: str, request_id: str, wait: float) -> v1.GetResultRequest:
    span = Duration()
    span.FromMicroseconds(int(max(wait, 0.0) * 1e6))
    return v1.GetResultRequest(model_id=model_id, request_id=request_id, wait=span)


def feature_names(model: v1.Model) -> list[str]:
    return [feature.name for feature in model.features]


def not_ready(address: str, timeout: float, last: str) -> Unavailable:
    return Unavailable(f"{address} was not ready within {timeout:g} s; last it was: {last}")


def health_service(model_id: str) -> str:
    """What the health service calls a model; empty is the gateway as a whole."""
    return f"millstream.v1.Predictor/{model_id}" if model_id else ""
