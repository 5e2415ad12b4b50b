"""Reading `signature.json`: what is taken, and that every problem is told at once, with its place."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.signature import Entity, Feature, Golden, KeyTemplate, Output, Signature, SignatureError, parse_signature

AGE = {"index": 0, "name": "age", "type": "int", "min": 0, "max": 130, "example": 25}
CLICKS = {"index": 1, "name": "clicks", "type": "int", "min": 0, "default": 0, "example": 120}


def content(**changes: Any) -> dict[str, Any]:
    """A good signature with some fields changed; None takes a field away."""
    base: dict[str, Any] = {
        "model_id": "churn",
        "version": "1.0.0",
        "trained_date": "2024-03-05",
        "status": "production",
        "azure_location": "ai-models",
        "expected_features": [AGE, CLICKS],
    }
    return {name: value for name, value in (base | changes).items() if value is not None}


def parsed(**changes: Any) -> Signature:
    return parse_signature(json.dumps(content(**changes)).encode())[0]


def problems(**changes: Any) -> dict[str, str]:
    with pytest.raises(SignatureError) as caught:
        parsed(**changes)
    return {problem.path: problem.message for problem in caught.value.problems}


def feature(**changes: Any) -> dict[str, Any]:
    return {"index": 0, "name": "x", "type": "float"} | changes


def test_six_fields_are_enough_and_the_output_is_prediction() -> None:
    assert parsed() == Signature(
        model_id="churn",
        version="1.0.0",
        trained_date="2024-03-05",
        status="production",
        azure_location="ai-models",
        features=(
            Feature(0, "age", "int", min=0, max=130, example=25),
            Feature(1, "clicks", "int", min=0, has_default=True, default=0, example=120),
        ),
        outputs=(Output("prediction", "predict"),),
    )


def test_features_are_put_in_index_order() -> None:
    signature = parsed(expected_features=[CLICKS, AGE])
    assert [each.name for each in signature.features] == ["age", "clicks"]


def test_a_full_signature_is_read_whole() -> None:
    signature = parsed(
        expected_features=[
            feature(nullable=True, default=None, unit="EUR", description="what it costs", store_key="f:{id}:x"),
            feature(index=1, name="kind", type="string", categories=["a", "b"]),
        ],
        model_file="m.joblib",
        transforms=["scaler.joblib", "sub/pca.pkl"],
        input="dataframe",
        outputs=[
            {"name": "label", "call": "predict", "type": "string"},
            {"name": "p", "call": "predict_proba", "class": "yes"},
            {"name": "score", "call": "decision_function", "column": 2},
        ],
        entity={"name": "user_id", "key": "u:{id}:{feature}", "pattern": "[0-9]{1,9}", "on_store_error": "refuse"},
        golden=[
            {"inputs": [None, "a"], "outputs": {"label": "yes", "p": 0.5}, "tolerance": 1e-6},
            {"inputs": {"kind": "b"}, "outputs": {"p": None}},
        ],
    )
    assert signature.features == (
        Feature(
            0,
            "x",
            "float",
            has_default=True,
            nullable=True,
            store_key=KeyTemplate("f:{id}:x", ("f:", "id", ":x")),
            unit="EUR",
            description="what it costs",
        ),
        Feature(1, "kind", "string", categories=("a", "b")),
    )
    assert (signature.model_file, signature.transforms) == ("m.joblib", ("scaler.joblib", "sub/pca.pkl"))
    assert signature.outputs == (
        Output("label", "predict", type="string"),
        Output("p", "predict_proba", class_label="yes"),
        Output("score", "decision_function", column=2),
    )
    assert signature.entity == Entity(KeyTemplate.parse("u:{id}:{feature}"), "user_id", "[0-9]{1,9}", "refuse")
    assert signature.golden == (
        Golden((None, "a"), (("label", "yes"), ("p", 0.5)), 1e-6),
        Golden((None, "b"), (("p", None),), 0.0),
    )
    assert (signature.matrix, signature.takes_dataframe) == (False, True)


def test_a_missing_comma_is_refused_with_line_and_column() -> None:
    """A list of features as people type it by hand."""
    raw = b"""{
  "model_id": "roi_prediction",
  "version": "1.0.0",
  "trained_date": "2023-10-25",
  "status": "production",
  "azure_location": "azure://ai-models/roi_prediction_v1.pkl",
  "expected_features": [
    {"index": 0, "name": "volatility", "type": "float"}
    {"index": 1, "name": "minutes", "type": "int"}
  ]
}"""
    with pytest.raises(SignatureError) as caught:
        parse_signature(raw)
    assert str(caught.value).startswith("line 9, column 5: expected a comma")
    assert parse_signature(raw.replace(b'"float"}\n', b'"float"},\n'))[0].model_id == "roi_prediction"


def test_all_problems_are_told_at_once_with_their_paths() -> None:
    assert problems(
        model_id="-churn",
        version=None,
        status="live",
        expected_features=[feature(type="double", min=1), feature(index=2, name="")],
        outputs=[{"name": "p", "class": 1}],
    ).keys() == {
        "model_id",
        "version",
        "status",
        "expected_features[0].type",
        "expected_features[1].index",
        "expected_features[1].name",
        "outputs[0].class",
    }


def test_an_empty_object_lacks_each_required_field() -> None:
    with pytest.raises(SignatureError) as caught:
        parse_signature(b"{}")
    assert [problem.path for problem in caught.value.problems] == [
        "model_id",
        "version",
        "trained_date",
        "status",
        "azure_location",
        "expected_features",
    ]


@pytest.mark.parametrize("raw", [b"[]", b'"text"', b"null", b"7"])
def test_what_is_no_object_is_refused_with_one_problem(raw: bytes) -> None:
    with pytest.raises(SignatureError, match="expected an object") as caught:
        parse_signature(raw)
    assert len(caught.value.problems) == 1


def test_more_than_a_mebibyte_is_refused() -> None:
    with pytest.raises(SignatureError, match="at most 1,048,576 bytes"):
        parse_signature(b" " * (2**20 + 1))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_id", ""),
        ("model_id", "a" * 129),
        ("model_id", "a b"),
        ("model_id", "a\n"),
        ("model_id", "é"),
        ("model_id", 7),
        ("version", "1.0 0"),
        ("version", "+1"),
        ("version", "1" * 65),
        ("trained_date", "25.10.2023"),
        ("trained_date", "2023-02-30"),
        ("trained_date", "2023-10-25T10:00:00"),
        ("trained_date", 20231025),
        ("status", "Production"),
        ("azure_location", ""),
        ("azure_location", "https://account.blob.core.windows.net/x"),
        ("azure_location", "AI"),
        ("expected_features", []),
        ("expected_features", {}),
        ("model_file", "../m.pkl"),
        ("model_file", "/m.pkl"),
        ("input", "matrix"),
        ("outputs", []),
        ("entity", "user_id"),
        ("golden", {}),
    ],
)
def test_a_field_of_another_form_is_refused(field: str, value: object) -> None:
    assert list(problems(**{field: value})) == [field]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_id", "A.b-c_9"),
        ("version", "2024.1+gpu"),
        ("trained_date", "2023-10-25T10:00:00Z"),
        ("trained_date", "2023-10-25t10:00:00.123+02:00"),
        ("azure_location", "ai-models/credit_risk/1.0.0"),
        ("azure_location", "azure://ai-models/credit risk.pkl"),
    ],
)
def test_a_field_at_its_limits_is_taken(field: str, value: str) -> None:
    assert getattr(parsed(**{field: value}), field) == value


def test_a_trained_date_is_a_time_with_a_zone() -> None:
    assert parsed().trained_at == datetime(2024, 3, 5, tzinfo=UTC)
    at_two = parsed(trained_date="2024-03-05T02:00:00+02:00").trained_at
    assert at_two == datetime(2024, 3, 5, 2, tzinfo=timezone(timedelta(hours=2)))


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"type": "number"}, "type"),
        ({"index": -1}, "index"),
        ({"index": True}, "index"),
        ({"index": 1}, "index"),
        ({"name": "a\x00b"}, "name"),
        ({"name": "n" * 201}, "name"),
        ({"default": "0.5"}, "default"),
        ({"default": None}, "default"),
        ({"default": True}, "default"),
        ({"default": 2, "max": 1}, "default"),
        ({"type": "int", "default": 3.5}, "default"),
        ({"type": "int", "default": 2**53 + 1}, "default"),
        ({"type": "int", "default": False}, "default"),
        ({"type": "int", "nullable": True}, "nullable"),
        ({"type": "bool", "nullable": True}, "nullable"),
        ({"nullable": 1}, "nullable"),
        ({"type": "bool", "default": 1}, "default"),
        ({"type": "string", "default": "é" * 513}, "default"),
        ({"type": "string", "categories": ["a"], "default": "b"}, "default"),
        ({"type": "string", "min": 1}, "min"),
        ({"min": 2, "max": 1}, "min"),
        ({"min": "0"}, "min"),
        ({"type": "int", "min": 0.5}, "min"),
        ({"categories": []}, "categories"),
        ({"type": "string", "categories": ["a", 1]}, "categories[1]"),
        ({"type": "string", "categories": ["a", "a"]}, "categories[1]"),
        ({"categories": [1, 5], "max": 4}, "categories[1]"),
        ({"example": "much"}, "example"),
        ({"store_key": "user:{feature}"}, "store_key"),
        ({"unit": 5}, "unit"),
    ],
)
def test_a_feature_that_contradicts_itself_is_refused(changes: dict[str, Any], path: str) -> None:
    entity = {"key": "user:{id}:{feature}"}
    assert list(problems(expected_features=[feature(**changes)], entity=entity)) == [f"expected_features[0].{path}"]


def test_names_and_indices_are_unique() -> None:
    told = problems(expected_features=[feature(), feature()])
    assert told == {
        "expected_features[1].index": "expected each index once; 0 is taken by expected_features[0]",
        "expected_features[1].name": 'expected unique names; "x" is taken by expected_features[0]',
    }


def test_a_whole_float_is_an_int_and_an_int_is_a_float() -> None:
    """JSON and JavaScript do not tell them apart."""
    signature = parsed(expected_features=[feature(default=1), feature(index=1, name="y", type="int", default=3.0)])
    assert [type(each.default) for each in signature.features] == [float, int]


def test_an_array_can_not_hold_strings() -> None:
    features = [feature(type="string")]
    assert list(problems(expected_features=features, input="array")) == ["input"]
    assert parsed(expected_features=features).takes_dataframe is True


@pytest.mark.parametrize(
    ("output", "path"),
    [
        ({}, "outputs[0].name"),
        ({"name": "p", "call": "score"}, "outputs[0].call"),
        ({"name": "p", "call": "predict_proba", "class": None}, "outputs[0].class"),
        ({"name": "p", "call": "predict_proba", "class": [1]}, "outputs[0].class"),
        ({"name": "p", "call": "predict_proba", "class": 1, "column": 1}, "outputs[0].column"),
        ({"name": "p", "column": -1}, "outputs[0].column"),
        ({"name": "p", "call": "predict_proba", "type": "int"}, "outputs[0].type"),
        ({"name": "p", "type": "number"}, "outputs[0].type"),
        ("p", "outputs[0]"),
    ],
)
def test_an_output_that_can_not_be_is_refused(output: object, path: str) -> None:
    assert list(problems(outputs=[output])) == [path]


@pytest.mark.parametrize(
    ("golden", "path"),
    [
        ({"inputs": [25], "outputs": {"prediction": 1}}, "golden[0].inputs"),
        ({"inputs": [25, -1], "outputs": {"prediction": 1}}, "golden[0].inputs.clicks"),
        ({"inputs": {"clicks": 1}, "outputs": {"prediction": 1}}, "golden[0].inputs.age"),
        ({"inputs": {"age": 1, "shoe": 2}, "outputs": {"prediction": 1}}, "golden[0].inputs"),
        ({"inputs": [25, 1], "outputs": {}}, "golden[0].outputs"),
        ({"inputs": [25, 1], "outputs": {"other": 1}}, "golden[0].outputs"),
        ({"inputs": [25, 1], "outputs": {"prediction": [1]}}, "golden[0].outputs.prediction"),
        ({"inputs": [25, 1], "outputs": {"prediction": 1}, "tolerance": -1}, "golden[0].tolerance"),
        ({"outputs": {"prediction": 1}}, "golden[0].inputs"),
        (7, "golden[0]"),
    ],
)
def test_a_golden_example_that_does_not_fit_is_refused(golden: object, path: str) -> None:
    assert list(problems(golden=[golden])) == [path]


def test_a_golden_example_by_name_takes_defaults() -> None:
    signature = parsed(golden=[{"inputs": {"age": 30}, "outputs": {"prediction": 1}}])
    assert signature.golden[0].inputs == (30, 0)


@pytest.mark.parametrize(
    "key", ["user", "user:{id", "user:id}", "user:{id}:{name}", "user:{}", "{{id}}", "{feature}", "{ id }"]
)
def test_a_key_template_that_can_not_be_used_is_refused(key: str) -> None:
    assert list(problems(entity={"key": key})) == ["entity.key"]


@pytest.mark.parametrize(
    "pattern",
    ["(", "(a+)+", "(?:a|b|ab)*", r"(a)\1", ".*.*.*.*.*", "(?:[a-z]+-)*", "((a{0,99}){0,99}){0,99}", "a" * 513],
)
def test_a_pattern_that_does_not_compile_or_could_hang_is_refused(pattern: str) -> None:
    assert list(problems(entity={"key": "u:{id}:{feature}", "pattern": pattern})) == ["entity.pattern"]


@pytest.mark.parametrize(
    "pattern", ["[0-9]+", "user-\\d{1,12}", "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", "a+-b+-c+"]
)
def test_an_ordinary_pattern_is_taken(pattern: str) -> None:
    entity = parsed(entity={"key": "u:{id}:{feature}", "pattern": pattern}).entity
    assert entity is not None
    assert entity.pattern == pattern


def test_an_entity_needs_a_key_and_a_store_key_needs_an_entity() -> None:
    assert list(problems(entity={"name": "user_id"})) == ["entity.key"]
    assert list(problems(expected_features=[feature(store_key="f:{id}")])) == ["entity"]


def test_keys_are_rendered_without_looking_into_the_id() -> None:
    key = KeyTemplate.parse("{{u}}:{id}:{feature}:{id}")
    assert key.render("{feature}", "{id}") == "{u}:{feature}:{id}:{feature}"
    entity = Entity(KeyTemplate.parse("user:{id}:{feature}"))
    assert entity.store_key("101", Feature(0, "age", "int")) == "user:101:age"
    own = Feature(0, "age", "int", store_key=KeyTemplate.parse("ages:{id}"))
    assert entity.store_key("101", own) == "ages:101"


@pytest.mark.parametrize(
    ("entity_id", "fits"),
    [
        ("101", True),
        ("a@b.example", True),
        ("a" * 128, True),
        ("a" * 129, False),
        ("", False),
        ("101\n", False),
        ("1:2", False),
        ("*", False),
        ("{id}", False),
        ("é", False),
        ("a\x00", False),
    ],
)
def test_the_whole_id_has_to_match(entity_id: str, fits: bool) -> None:
    assert Entity(KeyTemplate.parse("u:{id}")).matches(entity_id) is fits


def test_an_endless_id_is_refused_before_it_is_matched() -> None:
    assert Entity(KeyTemplate.parse("u:{id}"), pattern="a+").matches("a" * 257) is False


def test_unknown_fields_are_warned_of_with_their_paths_and_own_fields_are_not() -> None:
    raw = content(owner="me", **{"x-owner": "me"})
    raw["expected_features"] = [AGE | {"dtype": "i8", "x-note": 1}, CLICKS]
    _, warnings = parse_signature(json.dumps(raw).encode())
    assert [warning.split(":")[0] for warning in warnings] == ["expected_features[0].dtype", "owner"]


def test_a_duplicate_key_is_refused() -> None:
    with pytest.raises(SignatureError, match=r'line 2, column 2: the key "status" stands twice'):
        parse_signature(b'{"status": "production",\n "status": "staging"}')


def test_a_sample_of_each_feature_is_one_it_takes() -> None:
    features = [
        Feature(0, "a", "float", min=2.5),
        Feature(0, "b", "int", max=-3),
        Feature(0, "c", "string", categories=("x", "y")),
        Feature(0, "d", "bool"),
        Feature(0, "e", "int", has_default=True, default=7, min=1),
        Feature(0, "f", "int", example=9, has_default=True, default=7),
        Feature(0, "g", "string"),
    ]
    samples = [each.sample() for each in features]
    assert samples == [2.5, -3, "x", False, 7, 9, ""]
    assert [each.accept(sample) for each, sample in zip(features, samples, strict=True)] == samples


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)
)


@given(st.sampled_from([*content(), "entity", "outputs", "golden", "transforms", "input", "model_file"]), _JSON)
def test_whatever_stands_in_a_field_nothing_but_a_signature_error_is_raised(field: str, value: object) -> None:
    try:
        signature, _ = parse_signature(json.dumps(content(**{field: value})).encode())
    except SignatureError as error:
        said = bool(error.problems)
    else:
        said = parse_signature(signature.canonical()) == (signature, ())
    assert said


@given(st.sampled_from([*AGE, "default", "categories", "nullable", "store_key"]), _JSON)
def test_whatever_stands_in_a_feature_nothing_but_a_signature_error_is_raised(field: str, value: object) -> None:
    try:
        signature = parsed(expected_features=[AGE | {field: value}])
    except SignatureError as error:
        said = bool(error.problems)
    else:
        said = parse_signature(signature.canonical()) == (signature, ())
    assert said
