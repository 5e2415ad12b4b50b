"""Requests that a model takes, made up from its signature: the same ones for the same seed."""

from __future__ import annotations

import random

from contract.request import Native, native, value_of
from protos import millstream_v1_pb2 as v1


def samples(model: v1.Model, n: int, seed: int = 0) -> list[v1.PredictRequest]:
    """`n` requests of one row each, by position, within the features' categories and bounds."""
    source = random.Random(seed)
    return [
        v1.PredictRequest(model_id=model.model_id, inputs=[value_of(_value(spec, source)) for spec in model.features])
        for _ in range(n)
    ]


def _value(spec: v1.FeatureSpec, source: random.Random) -> Native:
    if spec.categories:
        return native(source.choice(spec.categories))
    if spec.type == "bool":
        return source.random() < 0.5
    if spec.type == "string":
        return native(spec.example) if spec.HasField("example") else f"text {source.randrange(1000)}"
    low, high = _bounds(spec)
    if spec.type == "int":
        return source.randint(round(low), round(high))
    return source.uniform(low, high)


def _bounds(spec: v1.FeatureSpec) -> tuple[float, float]:
    """The feature's own bounds; where one is missing, about the size of the example."""
    example = native(spec.example) if spec.HasField("example") else None
    size = abs(float(example)) if isinstance(example, float | int) and example else 1.0
    low = spec.min if spec.HasField("min") else min(0.0, spec.max if spec.HasField("max") else 0.0)
    high = spec.max if spec.HasField("max") else low + 2 * size
    return low, high
