"""Requests that a model takes, made up from its signature: the same ones for the same seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import cycle

from contract.request import Native, native, value_of
from ingest.question import pack
from protos import millstream_v1_pb2 as v1


def samples(model: v1.Model, n: int, seed: int = 0, rows: int = 1) -> list[v1.PredictRequest]:
    """`n` requests within the features' categories and bounds: of one row by position, or of many rows, packed."""
    source = random.Random(seed)
    return [_sample(model, source, rows) for _ in range(n)]


def mixed(
    shares: Sequence[tuple[Sequence[v1.PredictRequest], float]], n: int, seed: int = 0
) -> list[v1.PredictRequest]:
    """`n` requests drawn from several models' own by their shares, which need not add up to anything.

    Each model's are taken in turn. Raises ValueError where no share is above 0.
    """
    source = random.Random(seed)
    turns = [cycle(requests) for requests, _ in shares]
    weights = [share for _, share in shares]
    if not turns or min(weights) < 0 or sum(weights) <= 0:
        raise ValueError(f"expected shares of which one is above 0, got {weights}")
    return [next(turn) for turn in source.choices(turns, weights, k=n)]


def _sample(model: v1.Model, source: random.Random, rows: int) -> v1.PredictRequest:
    if rows == 1:
        inputs = [value_of(_value(spec, source)) for spec in model.features]
        return v1.PredictRequest(model_id=model.model_id, inputs=inputs)
    table = [[_value(spec, source) for spec in model.features] for _ in range(rows)]
    return v1.PredictRequest(model_id=model.model_id, rows=pack(table))


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
