"""Signatures, admissions, versions and model records made in one line, for tests that need no model file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from contract.admission import Admission
from contract.record import LIVE, Artifact, ModelRecord, Routing, Version
from contract.signature import parse_signature
from protos import millstream_wire_v1_pb2 as wire

Feature = Mapping[str, Any]

AGE: Feature = {"name": "age", "type": "int", "min": 0, "max": 130}
CLICKS: Feature = {"name": "clicks", "type": "int", "min": 0, "default": 0}
CHURN: tuple[Feature, ...] = (AGE, CLICKS)
USER: Mapping[str, Any] = {"name": "user_id", "key": "user:{id}:{feature}"}

LOAN: tuple[Feature, ...] = (
    {"name": "amount_eur", "type": "float", "min": 0},
    {"name": "employment", "type": "string", "categories": ["salaried", "student"]},
    {"name": "has_guarantor", "type": "bool", "default": False},
    {"name": "remark", "type": "string", "nullable": True, "default": None},
)


def signature_json(
    features: Sequence[Feature] = CHURN, *, model_id: str = "churn", version: str = "1.0.0", **fields: Any
) -> bytes:
    """A signature.json; `fields` are further ones, such as `entity`."""
    content = {
        "model_id": model_id,
        "version": version,
        "trained_date": "2024-03-05",
        "status": "production",
        "azure_location": "ai-models",
        "expected_features": [{"index": index, **feature} for index, feature in enumerate(features)],
    }
    return json.dumps(content | fields).encode()


def admission(*features: Feature, max_rows: int = 100_000, **fields: Any) -> Admission:
    """What requests to a model with these features are checked against."""
    signature, _ = parse_signature(signature_json(features or CHURN, **fields))
    return Admission(signature, max_rows=max_rows)


def version(number: str = "1.0.0", state: wire.VersionState = LIVE, **fields: Any) -> Version:
    """A version with one artifact that is nowhere; its digest follows from its number."""
    content = f"model {number}".encode()
    artifact = Artifact("model.joblib", hashlib.sha256(content).hexdigest(), len(content), 1)
    digest = hashlib.sha256(b"version " + content).digest()
    return Version.make(digest, state, signature_json(version=number, **fields), (artifact,), "ai-models")


def record(*versions: Version, revision: int = 1, **routing: Any) -> ModelRecord:
    """A model's record; without routing the first version answers."""
    there = versions or (version(),)
    routing = {"production": there[0].version, **routing}
    model_id = there[0].signature.model_id
    return ModelRecord(model_id, revision, {each.version: each for each in there}, Routing(**routing))
