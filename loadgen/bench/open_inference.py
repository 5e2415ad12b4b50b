"""What the benchmark says in the Open Inference Protocol (v2): one request for probabilities, and its answer.

The fields and their numbers are those of the protocol's published definition; it is kept out of protobuf's default
pool, where a whole definition of the same names may stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

INFER = "/inference.GRPCInferenceService/ModelInfer"

_Field = descriptor_pb2.FieldDescriptorProto
_TENSOR = (
    ("name", 1, _Field.TYPE_STRING, False, ""),
    ("datatype", 2, _Field.TYPE_STRING, False, ""),
    ("shape", 3, _Field.TYPE_INT64, True, ""),
    ("contents", 5, _Field.TYPE_MESSAGE, False, "Contents"),
)
_MESSAGES = {
    "Contents": (("fp64_contents", 7, _Field.TYPE_DOUBLE, True, ""),),
    "Tensor": _TENSOR,
    "Wanted": (("name", 1, _Field.TYPE_STRING, False, ""),),
    "Request": (
        ("model_name", 1, _Field.TYPE_STRING, False, ""),
        ("inputs", 5, _Field.TYPE_MESSAGE, True, "Tensor"),
        ("outputs", 6, _Field.TYPE_MESSAGE, True, "Wanted"),
    ),
    "Response": (
        ("outputs", 5, _Field.TYPE_MESSAGE, True, "Tensor"),
        ("raw_output_contents", 6, _Field.TYPE_BYTES, True, ""),
    ),
}


def infer_request(model: str, row: Sequence[float]) -> bytes:
    """A ModelInferRequest of one row of float64, which asks for `predict_proba`."""
    request = _message("Request")
    request.model_name = model
    tensor = request.inputs.add(name="predict", datatype="FP64", shape=[1, len(row)])
    tensor.contents.fp64_contents.extend(row)
    request.outputs.add(name="predict_proba")
    encoded: bytes = request.SerializeToString()
    return encoded


def first_row(reply: bytes) -> list[float]:
    """The first row of a ModelInferResponse's first output. Raises ValueError where it has none of float64."""
    response = _message("Response")
    response.ParseFromString(reply)
    if not response.outputs or not response.outputs[0].contents.fp64_contents:
        raise ValueError("expected an output of float64 in the answer, got none")
    output = response.outputs[0]
    width = output.shape[-1] if output.shape else len(output.contents.fp64_contents)
    return [float(value) for value in output.contents.fp64_contents[:width]]


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(name="bench.proto", package="bench", syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field, number, kind, repeated, of in fields:
            label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
            type_name = f".bench.{of}" if of else None
            message.field.add(name=field, number=number, type=kind, label=label, type_name=type_name)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"bench.{name}"))()
