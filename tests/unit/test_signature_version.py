"""A version's identity: what changes it and what does not; which file is what; which version is higher."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from contract.signature import Signature, parse_signature
from contract.version import ArtifactsError, Roles, version_digest, version_order

SIGNATURE, _ = parse_signature(
    json.dumps(
        {
            "model_id": "credit_risk",
            "version": "1.0.0",
            "trained_date": "2023-10-25",
            "status": "production",
            "azure_location": "ai-models",
            "expected_features": [{"index": 0, "name": "debt", "type": "float", "min": 0}],
            "transforms": ["scaler.joblib"],
            "golden": [{"inputs": [1], "outputs": {"prediction": 1}}],
        }
    ).encode()
)
DIGESTS = {"model.production.joblib": "aa" * 32, "scaler.joblib": "bb" * 32, "config.json": "cc" * 32}


def test_a_digest_is_hex_sha256_and_always_the_same() -> None:
    """Written down once: a digest that changes with a release would make every version a new one."""
    expected = "125dd4b186d840bdbd11c2382cdac179a8539338fd5cc7134159046ed559a13c"
    assert version_digest(SIGNATURE, DIGESTS) == expected
    assert version_digest(SIGNATURE, dict(reversed(DIGESTS.items()))) == expected


@pytest.mark.parametrize(
    "signature",
    [
        replace(SIGNATURE, status="retired"),
        replace(SIGNATURE, azure_location="elsewhere/entirely"),
        replace(SIGNATURE, model_file="model.production.joblib"),
    ],
)
def test_status_location_and_file_names_are_not_part_of_the_identity(signature: Signature) -> None:
    assert version_digest(signature, DIGESTS) == version_digest(SIGNATURE, DIGESTS)


def test_renaming_the_model_or_a_transform_keeps_the_identity() -> None:
    renamed = {"model.joblib": "aa" * 32, "scaling.pkl": "bb" * 32, "config.json": "cc" * 32}
    signature = replace(SIGNATURE, transforms=("scaling.pkl",))
    assert version_digest(signature, renamed) == version_digest(SIGNATURE, DIGESTS)


@pytest.mark.parametrize(
    "digests",
    [
        DIGESTS | {"model.production.joblib": "dd" * 32},
        DIGESTS | {"scaler.joblib": "dd" * 32},
        DIGESTS | {"config.json": "dd" * 32},
        DIGESTS | {"model.production.joblib": "bb" * 32, "scaler.joblib": "aa" * 32},
        {name: digest for name, digest in DIGESTS.items() if name != "config.json"},
    ],
)
def test_other_contents_are_another_version(digests: dict[str, str]) -> None:
    assert version_digest(SIGNATURE, digests) != version_digest(SIGNATURE, DIGESTS)


def test_another_signature_is_another_version() -> None:
    others = [
        replace(SIGNATURE, version="1.0.1"),
        replace(SIGNATURE, trained_date="2023-10-26"),
        replace(SIGNATURE, features=(replace(SIGNATURE.features[0], min=1.0),)),
        replace(SIGNATURE, golden=()),
    ]
    digests = {version_digest(signature, DIGESTS) for signature in [SIGNATURE, *others]}
    assert len(digests) == 5


def test_the_order_of_transforms_is_part_of_the_identity() -> None:
    digests = {"a.pkl": "aa" * 32, "b.pkl": "bb" * 32, "m.pkl": "cc" * 32}
    one, two = (replace(SIGNATURE, transforms=order) for order in (("a.pkl", "b.pkl"), ("b.pkl", "a.pkl")))
    assert version_digest(one, digests) != version_digest(two, digests)


def test_canonical_text_is_read_back_as_the_same_signature() -> None:
    assert parse_signature(SIGNATURE.canonical()) == (SIGNATURE, ())


def test_the_order_of_fields_in_the_file_does_not_matter() -> None:
    content = json.loads(SIGNATURE.canonical())
    again, _ = parse_signature(json.dumps(dict(reversed(content.items())), indent=3).encode())
    assert again.canonical() == SIGNATURE.canonical()


def test_roles_leave_signature_files_out() -> None:
    files = [*DIGESTS, "signature.json", "signature.json.sig", "churn_v1.signature.json"]
    assert Roles.assign(SIGNATURE, files) == Roles(("scaler.joblib",), "model.production.joblib", ("config.json",))


def test_the_only_file_is_the_model_whatever_its_format() -> None:
    assert Roles.assign(replace(SIGNATURE, transforms=()), ["net.onnx"]).model == "net.onnx"


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["scaler.joblib"], "expected a model file"),
        (["model.joblib"], "scaler.joblib is named in the signature and missing"),
        (["scaler.joblib", "a.pkl", "b.pkl"], "expected model_file in the signature to say which is the model"),
    ],
)
def test_files_that_make_no_version_are_refused(files: list[str], says: str) -> None:
    with pytest.raises(ArtifactsError, match=says):
        Roles.assign(SIGNATURE, files)


def test_versions_are_ordered_by_pep_440_and_what_does_not_parse_comes_lowest() -> None:
    versions = ["1.10.0", "zeta", "1.9.0", "2.0rc1", "alpha", "1.10.0+gpu", "v1"]
    assert sorted(versions, key=version_order) == ["alpha", "zeta", "v1", "1.9.0", "1.10.0", "1.10.0+gpu", "2.0rc1"]
    assert version_order("1.0") == version_order("1.0.0")
