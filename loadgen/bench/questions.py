"""The one request that a server is asked over and over, in the bytes of its protocol, and how its answer is read."""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import grpc

from loadgen.asking import PREDICT
from loadgen.bench import open_inference
from loadgen.bench.models import OUTPUT, BenchModel
from protos import millstream_v1_pb2 as v1

TOLERANCE = 1e-9
"""Another batch or BLAS changes the last bits of a linear model."""


class WrongAnswer(Exception):
    """A server answered, and not with what the model says; the message says what came."""


class NoAnswer(Exception):
    """A server did not answer, or refused; the message says how."""


@dataclass(frozen=True, slots=True)
class Question:
    """A request: `body` as one gRPC message, or as what is POSTed."""

    protocol: Literal["gRPC", "HTTP"]
    path: str
    body: bytes
    read: Callable[[bytes], float]
    expected: float
    varies: int = 0
    """Bytes by which one right answer may be shorter than another."""

    @property
    def framed(self) -> bytes:
        """The body as it goes into a HTTP/2 or HTTP/1.1 request: a gRPC message has five bytes before it."""
        return b"\0" + len(self.body).to_bytes(4, "big") + self.body if self.protocol == "gRPC" else self.body

    def ask(self, address: str, timeout_s: float = 5.0) -> int:
        """The length of the right answer, framed. Raises NoAnswer, WrongAnswer."""
        reply = self._grpc(address, timeout_s) if self.protocol == "gRPC" else self._http(address, timeout_s)
        try:
            came = self.read(reply)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise WrongAnswer(f"expected a probability, got {reply[:200]!r} ({error})") from None
        if not math.isclose(came, self.expected, rel_tol=TOLERANCE):
            raise WrongAnswer(f"expected {self.expected!r}, which the model answers, got {came!r}")
        return len(reply) + (5 if self.protocol == "gRPC" else 0)

    def _grpc(self, address: str, timeout_s: float) -> bytes:
        # A pool of its own, or a channel that failed a moment ago would be waited for.
        with grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            call: Any = channel.unary_unary(self.path)
            try:
                reply: bytes = call(self.body, timeout=timeout_s)
            except grpc.RpcError as error:
                told: Any = error
                raise NoAnswer(f"{told.code().name}: {told.details()}") from None
        return reply

    def _http(self, address: str, timeout_s: float) -> bytes:
        host, _, port = address.rpartition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
        try:
            connection.request("POST", self.path, self.body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            reply = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise NoAnswer(str(error) or type(error).__name__) from None
        finally:
            connection.close()
        if not 200 <= response.status < 300:
            raise NoAnswer(f"HTTP {response.status}: {reply[:200]!r}")
        return reply


def predict(model: BenchModel) -> Question:
    """Millstream's Predict, one row by position."""

    def read(reply: bytes) -> float:
        response = v1.PredictResponse.FromString(reply)
        return float(response.predictions[0].outputs[OUTPUT].number)

    # Its two times take a byte or two less in the first part of every second, the request's id is always as long.
    return Question("gRPC", PREDICT, _predict_request(model), read, model.expected, varies=4)


def echo(model: BenchModel) -> Question:
    """The same request to a server that sends it back."""

    def read(reply: bytes) -> float:
        return float(v1.PredictRequest.FromString(reply).inputs[0].number)

    return Question("gRPC", PREDICT, _predict_request(model), read, model.row[0])


def infer(model: BenchModel) -> Question:
    """ModelInfer of the Open Inference Protocol."""

    def read(reply: bytes) -> float:
        return open_inference.first_row(reply)[1]

    return Question(
        "gRPC", open_inference.INFER, open_inference.infer_request(model.name, model.row), read, model.expected
    )


def json_object(model: BenchModel, path: str) -> Question:
    """`{"inputs": [...]}`, answered by `{"probability": p}`."""

    def read(reply: bytes) -> float:
        return float(json.loads(reply)["probability"])

    return Question("HTTP", path, json.dumps({"inputs": model.row}).encode(), read, model.expected)


def json_rows(model: BenchModel, path: str) -> Question:
    """`{"inputs": [[...]]}`, answered by `[p]`."""

    def read(reply: bytes) -> float:
        return float(json.loads(reply)[0])

    return Question("HTTP", path, json.dumps({"inputs": [model.row]}).encode(), read, model.expected)


def _predict_request(model: BenchModel) -> bytes:
    inputs = [v1.Value(number=value) for value in model.row]
    return v1.PredictRequest(model_id=model.name, inputs=inputs).SerializeToString()
