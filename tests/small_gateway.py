"""A small Predictor on a real gRPC server in this process: real admission and statuses, and models that answer sums.

What a test needs a gateway to do wrong has a model of its own: busy, broken, away, reused and slow.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from contract.admission import Admission, Admitted
from contract.errors import Reason, Refused
from contract.request import Native, Request, native, value_of
from contract.signature import parse_signature
from gateway.status import status_of
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from protos import millstream_wire_v1_pb2 as wire

MODELS: dict[str, list[dict[str, Any]]] = {
    "credit_risk": [
        {"name": "debt_to_income_ratio", "type": "float", "min": 0, "example": 0.6, "unit": "share"},
        {"name": "age_years", "type": "int", "min": 18, "max": 120, "example": 45},
    ],
    "churn": [
        {"name": "age", "type": "int", "min": 0, "example": 25},
        {"name": "clicks", "type": "int", "min": 0, "default": 0},
    ],
    "loan_approval": [
        {"name": "amount_eur", "type": "float", "min": 0},
        {"name": "employment", "type": "string", "categories": ["salaried", "student"]},
        {"name": "has_guarantor", "type": "bool", "default": False},
        {"name": "remark", "type": "string", "nullable": True, "default": None},
    ],
    **{name: [{"name": "x", "type": "float"}] for name in ("busy", "broken", "away", "reused", "slow")},
}
ENTITIES = {"churn": {"name": "user_id", "key": "user:{id}:{feature}"}}
STORED: dict[str, Native] = {"age": 25, "clicks": 120}
"""What the feature store of this gateway says of everybody."""

_REFUSALS = {
    "busy": Refused(Reason.QUEUE_FULL, "too many rows wait", retry_after_s=2.0),
    "broken": Refused(Reason.MODEL_FAILED, "the model raised ValueError: no"),
    "away": Refused(Reason.STORE_UNAVAILABLE, "Redis does not answer"),
    "reused": Refused(Reason.REQUEST_ID_REUSED, "this id was used for another request"),
}


class SmallGateway(v1_grpc.PredictorServicer):
    """A gateway for one test; `address` is where it listens."""

    def __init__(self) -> None:
        self._models = {name: _model(name, features) for name, features in MODELS.items()}
        self._admissions = {
            name: Admission(parse_signature(model.signature_json.encode())[0]) for name, model in self._models.items()
        }
        self.seen: list[v1.PredictRequest] = []
        """Every request that came in, in order."""
        self.released = threading.Event()
        """What `slow` waits for."""
        self.results: dict[str, v1.PredictResponse] = {}
        self._health = health.HealthServicer()
        self._server = grpc.server(ThreadPoolExecutor(max_workers=8))
        v1_grpc.add_PredictorServicer_to_server(self, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"

    def __enter__(self) -> Self:
        self.serve(serving=True)
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self.released.set()
        self._server.stop(None).wait(10)

    def serve(self, *, serving: bool) -> None:
        """What the health service says."""
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        self._health.set("", status)

    def ListModels(self, request: v1.ListModelsRequest, context: Any) -> v1.ListModelsResponse:
        return v1.ListModelsResponse(models=[self._models[name] for name in ("credit_risk", "churn", "loan_approval")])

    def GetModel(self, request: v1.GetModelRequest, context: Any) -> v1.Model:
        if request.model_id not in self._models:
            refused = Refused(Reason.MODEL_UNKNOWN, f"no model {request.model_id!r}")
            context.abort_with_status(status_of(refused))
        return self._models[request.model_id]

    def Predict(self, request: v1.PredictRequest, context: Any) -> v1.PredictResponse:
        try:
            return self._answer(request, context)
        except Refused as refused:
            context.abort_with_status(status_of(refused, request.request_id or "made-by-gateway"))
            raise

    def PredictStream(self, requests: Iterator[v1.PredictRequest], context: Any) -> Iterator[v1.PredictResponse]:
        for request in requests:
            try:
                yield self._answer(request, context)
            except Refused as refused:
                yield v1.PredictResponse(request_id=request.request_id, error=refused.to_error())

    def Submit(self, request: v1.PredictRequest, context: Any) -> v1.SubmitResponse:
        response = self.Predict(request, context)
        self.results[response.request_id] = response
        return v1.SubmitResponse(request_id=response.request_id, model_id=request.model_id)

    def GetResult(self, request: v1.GetResultRequest, context: Any) -> v1.PredictResponse:
        if request.request_id == "pending":
            return v1.PredictResponse(request_id="pending", model_id=request.model_id, pending=True)
        if request.request_id not in self.results:
            context.abort_with_status(status_of(Refused(Reason.RESULT_UNKNOWN, "no such result")))
        return self.results[request.request_id]

    def _answer(self, request: v1.PredictRequest, context: Any) -> v1.PredictResponse:
        kept = v1.PredictRequest()
        kept.CopyFrom(request)
        self.seen.append(kept)
        if request.model_id in _REFUSALS:
            raise _REFUSALS[request.model_id]
        if request.model_id not in self._models:
            raise Refused(Reason.MODEL_UNKNOWN, f"no model {request.model_id!r}")
        if request.model_id == "slow":
            context.add_callback(self.released.set)
            self.released.wait(30)
        if request.version not in ("", "1.0.0"):
            raise Refused(Reason.VERSION_UNKNOWN, f"no version {request.version!r}")
        checked = self._admissions[request.model_id].draft(Request.from_bytes(request.SerializeToString()))
        if not isinstance(checked, Admitted):
            names = [checked.admission.features[wanted.place].name for wanted in checked.wanted]
            stored = {
                w.place: (str(STORED[n]).encode(), wire.REDIS) for w, n in zip(checked.wanted, names, strict=True)
            }
            checked = checked.complete(stored)
        totals = _totals(checked)
        response = v1.PredictResponse(
            request_id=request.request_id or "made-by-gateway", model_id=request.model_id, version="1.0.0"
        )
        response.user_request_timestamp.FromMicroseconds(1_700_000_000_123_456)
        response.predicted_at_timestamp.FromMicroseconds(1_700_000_000_223_456)
        if checked.packed:
            column = v1.Column(doubles=v1.Doubles(values=totals))
            response.columns.append(v1.OutputColumn(name="total", column=column))
        else:
            response.predictions.append(v1.Prediction(outputs={"total": value_of(totals[0])}))
        return response


def _totals(admitted: Admitted) -> list[float]:
    """The sum of each row's numbers; a string counts its letters."""
    rows = admitted.rows
    if isinstance(rows, v1.Matrix):
        totals: list[float] = np.frombuffer(rows.float64).reshape(admitted.n, -1).sum(axis=1).tolist()
        return totals
    table = [list(getattr(column, str(column.WhichOneof("kind"))).values) for column in rows.columns]
    return [float(sum(len(c) if isinstance(c, str) else c for c in row)) for row in zip(*table, strict=True)]


def _model(name: str, features: list[dict[str, Any]]) -> v1.Model:
    content: dict[str, Any] = {
        "model_id": name,
        "version": "1.0.0",
        "trained_date": "2026-01-31",
        "status": "production",
        "azure_location": "ai-models",
        "expected_features": [{"index": index, **feature} for index, feature in enumerate(features)],
        "outputs": [{"name": "total", "call": "predict"}],
    }
    if name in ENTITIES:
        content["entity"] = ENTITIES[name]
    return v1.Model(
        model_id=name,
        version="1.0.0",
        digest="ab" * 32,
        location=f"ai-models/{name}/1.0.0",
        trained_date="2026-01-31",
        features=[_spec(index, feature, name in ENTITIES) for index, feature in enumerate(features)],
        outputs=[v1.OutputSpec(name="total", type="float", call="predict")],
        entity=ENTITIES[name]["name"] if name in ENTITIES else "",
        versions=[
            v1.ModelVersion(version="1.0.0", state="live", digest="ab" * 32, traffic_percent=100, engine="sums 1.0")
        ],
        signature_json=json.dumps(content),
    )


def _spec(index: int, feature: dict[str, Any], hydrated: bool) -> v1.FeatureSpec:
    spec = v1.FeatureSpec(
        index=index,
        name=feature["name"],
        type=feature["type"],
        required="default" not in feature,
        nullable=feature.get("nullable", False),
        unit=feature.get("unit", ""),
        categories=[value_of(each) for each in feature.get("categories", ())],
        hydrated=hydrated,
    )
    for name in ("default", "example"):
        if name in feature:
            getattr(spec, name).CopyFrom(value_of(feature[name]))
    for name in ("min", "max"):
        if name in feature:
            setattr(spec, name, feature[name])
    return spec


def sent_inputs(request: v1.PredictRequest) -> list[Native]:
    """The inputs of a request as Python values."""
    return [native(value) for value in request.inputs]
