"""Where versions stand in a listing, and what their names say."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from contract.signature import Signature, parse_signature
from registry.blobs import Blob
from registry.watch.layout import FoundVersion, find_versions, tag_of


def found(*names: str) -> dict[str, FoundVersion]:
    blobs = [Blob(name, f"etag-{name}", 1, datetime(2026, 1, 1, tzinfo=UTC)) for name in names]
    return {each.place: each for each in find_versions(blobs)}


def signature(**other: object) -> Signature:
    import json

    content = {
        "model_id": "churn",
        "version": "1.0.0",
        "trained_date": "2023-10-25",
        "status": "staging",
        "azure_location": "ai-models",
        "expected_features": [{"index": 0, "name": "age", "type": "int"}],
        **other,
    }
    return parse_signature(json.dumps(content).encode())[0]


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("model.production.joblib", "production"),
        ("churn_v1_PRODUCTION.pkl", "production"),
        ("churn-production-2.pkl", "production"),
        ("churn production.pkl", "production"),
        ("a/b/model.canary.joblib", "canary"),
        ("model.shadow.pkl", "shadow"),
        ("model.canary.production.pkl", "production"),
        ("model.pre-production.pkl", ""),
        ("model.not_production.pkl", ""),
        ("model.non production.pkl", ""),
        ("ex-production.pkl", ""),
        ("old_production.pkl", ""),
        ("not_for_production.pkl", ""),
        ("old_model.production.pkl", "production"),
        ("nonproduction.pkl", ""),
        ("reproductions.pkl", ""),
        ("production/model.pkl", ""),
        ("model.pkl", ""),
    ],
)
def test_a_tag_is_a_whole_word_of_the_base_name_that_nothing_negates(name: str, tag: str) -> None:
    assert tag_of(name) == tag


def test_a_folder_with_a_signature_is_a_version_with_all_that_is_below_it() -> None:
    versions = found(
        "credit_risk/1.0.0/signature.json",
        "credit_risk/1.0.0/signature.json.sig",
        "credit_risk/1.0.0/model.production.joblib",
        "credit_risk/1.0.0/tokenizer/vocab.json",
    )
    assert list(versions) == ["credit_risk/1.0.0"]
    version = versions["credit_risk/1.0.0"]
    assert sorted(version.files) == ["model.production.joblib", "tokenizer/vocab.json"]
    assert version.tag == "production"
    assert version.guess == ("credit_risk", "1.0.0")


def test_a_version_below_another_keeps_its_files() -> None:
    versions = found("a/signature.json", "a/model.pkl", "a/2/signature.json", "a/2/model.pkl")
    assert {place: sorted(version.files) for place, version in versions.items()} == {
        "a": ["model.pkl"],
        "a/2": ["model.pkl"],
    }


def test_the_root_owns_only_what_stands_in_it_directly() -> None:
    versions = found("signature.json", "model.pkl", "other/v1.pkl")
    assert {place: sorted(version.files) for place, version in versions.items()} == {
        "": ["model.pkl"],
        "other/v1.pkl": ["v1.pkl"],
    }


@pytest.mark.parametrize("model", ["churn_v1.pkl", "churn_v1.production.pkl", "production_churn_v1.joblib"])
def test_a_flat_model_has_its_signature_beside_it_also_after_a_rename_that_tags_it(model: str) -> None:
    versions = found(model, "churn_v1.signature.json")
    assert list(versions) == ["churn_v1.signature.json"]
    assert list(versions["churn_v1.signature.json"].files) == [model]
    assert versions["churn_v1.signature.json"].location == model


def test_the_same_stem_wins_over_a_renamed_one() -> None:
    versions = found("m.pkl", "m.production.pkl", "m.signature.json")
    assert list(versions["m.signature.json"].files) == ["m.pkl"]
    assert versions["m.production.pkl"].signature is None


def test_flat_models_in_a_folder_are_versions_of_their_own() -> None:
    versions = found("churn/v1.pkl", "churn/v1.signature.json", "churn/v2.pkl", "churn/v2.signature.json")
    assert [version.location for version in versions.values()] == ["churn/v1.pkl", "churn/v2.pkl"]


def test_a_flat_signature_takes_the_transforms_it_names_from_beside_it() -> None:
    versions = found("m.pkl", "m.signature.json", "scaler.pkl", "readme.md")
    chosen = versions["m.signature.json"].chosen(signature(transforms=["scaler.pkl"]))
    assert sorted(chosen) == ["m.pkl", "scaler.pkl"]


def test_a_model_file_without_a_signature_is_found_and_other_files_are_not() -> None:
    versions = found("churn_v1.production.pkl", "notes.txt", "churn/v1.joblib")
    assert {place: version.signature for place, version in versions.items()} == {
        "churn_v1.production.pkl": None,
        "churn/v1.joblib": None,
    }
    assert versions["churn/v1.joblib"].guess == ("churn", "")


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("churn/1.0.0", ""),
        ("churn/v1.0.0", ""),
        ("models/churn/1.0.0", ""),
        ("1.0.0", ""),
        ("churn/2.0.0", "the folder churn/2.0.0 holds churn 1.0.0; the signature counts"),
        ("other/1.0.0", "the folder other/1.0.0 holds churn 1.0.0; the signature counts"),
    ],
)
def test_a_folder_named_otherwise_than_its_version_is_a_warning(place: str, says: str) -> None:
    version = found(f"{place}/signature.json", f"{place}/model.pkl")[place]
    assert version.mismatch(signature()) == says


def test_a_fingerprint_changes_with_any_blob_and_with_nothing_else() -> None:
    base = found("a/signature.json", "a/model.pkl", "b/model.pkl")["a"].fingerprint
    assert found("a/signature.json", "a/model.pkl", "c/other.pkl")["a"].fingerprint == base
    assert found("a/signature.json", "a/model.pkl", "a/scaler.pkl")["a"].fingerprint != base
    assert found("a/signature.json", "a/model.production.pkl")["a"].fingerprint != base
