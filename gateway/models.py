"""Model records as callers see them: what a person needs to choose a model and fill in its features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from contract.presence import Presence
from contract.record import LIVE, LOADING, RETIRING, ModelRecord, Version
from contract.request import value_of
from protos import millstream_v1_pb2 as v1

_STATES = {LOADING: "loading", LIVE: "live", RETIRING: "retiring"}


def engines_of(workers: Iterable[Presence]) -> dict[str, str]:
    """Hex version digest -> what the workers that have loaded it compute it with, all of it where they differ."""
    found: dict[str, set[str]] = {}
    for worker in workers:
        for digest, engine in worker.engines.items():
            found.setdefault(digest, set()).add(engine)
    return {digest: "; ".join(sorted(engines)) for digest, engines in found.items()}


def model_message(record: ModelRecord, version: Version, engines: Mapping[str, str], *, whole: bool) -> v1.Model:
    """One model by the signature of one of its versions; `whole` adds the signature's own JSON.

    `engines` is what computes each version, by hex digest; one that no worker has loaded yet is not in it.
    """
    signature = version.signature
    entity = signature.entity
    features = []
    for feature in signature.features:
        spec = v1.FeatureSpec(
            index=feature.index,
            name=feature.name,
            type=feature.type,
            required=not feature.has_default,
            nullable=feature.nullable,
            unit=feature.unit,
            description=feature.description,
            hydrated=entity is not None,
            categories=[value_of(category) for category in feature.categories or ()],
        )
        if feature.has_default:
            spec.default.CopyFrom(value_of(feature.default))
        if feature.example is not None:
            spec.example.CopyFrom(value_of(feature.example))
        if feature.min is not None:
            spec.min = feature.min
        if feature.max is not None:
            spec.max = feature.max
        features.append(spec)
    return v1.Model(
        model_id=record.model_id,
        version=version.version,
        digest=version.digest.hex(),
        location=version.location,
        trained_date=signature.trained_date,
        features=features,
        outputs=[v1.OutputSpec(name=o.name, type=o.type or "", call=o.call) for o in signature.outputs],
        entity=entity.name if entity else "",
        versions=[_version_message(record, each, engines) for each in record.versions.values()],
        signature_json=version.signature_json.decode() if whole else "",
    )


def _version_message(record: ModelRecord, version: Version, engines: Mapping[str, str]) -> v1.ModelVersion:
    routing = record.routing
    canary = routing.canary_basis_points / 100 if routing.canary in record.versions else 0.0
    state, share = _STATES.get(version.state, "unknown"), 0.0
    if version.version == routing.production:
        share = 100.0 - canary
    elif version.version == routing.canary:
        state, share = "canary", canary
    elif version.version == routing.shadow:
        state = "shadow"
    return v1.ModelVersion(
        version=version.version,
        state=state,
        digest=version.digest.hex(),
        trained_date=version.signature.trained_date,
        location=version.location,
        traffic_percent=share,
        artifacts=[v1.Artifact(name=a.name, sha256=a.sha256, size=a.size) for a in version.artifacts],
        engine=engines.get(version.digest.hex(), ""),
    )
