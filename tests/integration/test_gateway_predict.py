"""Predict, ListModels and GetModel on the stock models: every way to ask, answered by a real worker."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest

from contract.request import native
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.stage import TEXT, TEXT_LENGTH, GatewayProcess, Stage, ask, named, outputs

pytestmark = pytest.mark.integration


def golden(stock: Path, model_id: str) -> list[dict[str, object]]:
    """What training computed."""
    examples: list[dict[str, object]] = json.loads((stock / model_id / "1.0.0/signature.json").read_text())["golden"]
    return examples


def test_list_models_names_every_model_with_what_a_person_needs_to_ask_it(gateway: GatewayProcess) -> None:
    models = {model.model_id: model for model in gateway.stub.ListModels(v1.ListModelsRequest(), timeout=5).models}
    # Other files of the same run may have published more on this stage.
    assert models.keys() >= {"churn", "credit_risk", "loan_approval", "odd", "roi_prediction", "text"}
    loan = models["loan_approval"]
    assert [(f.index, f.name, f.type, f.required) for f in loan.features] == [
        (0, "amount_eur", "float", True),
        (1, "employment", "string", True),
        (2, "has_guarantor", "bool", False),
    ]
    employments = ["salaried", "self_employed", "student", "unemployed"]
    assert [native(category) for category in loan.features[1].categories] == employments
    assert native(loan.features[2].default) is False
    assert (loan.features[0].min, loan.features[0].HasField("max")) == (0.0, False)
    assert [(o.name, o.call) for o in loan.outputs] == [
        ("decision", "predict"),
        ("approve_probability", "predict_proba"),
    ]
    assert (models["churn"].entity, [f.hydrated for f in models["churn"].features]) == ("user_id", [True, True])
    assert (models["credit_risk"].entity, models["credit_risk"].features[0].hydrated) == ("", False)
    assert models["roi_prediction"].features[0].unit == "percent"
    assert {model.signature_json for model in models.values()} == {""}


def test_get_model_tells_the_live_version_its_digest_artifacts_and_signature(
    gateway: GatewayProcess, stage: Stage
) -> None:
    model = gateway.stub.GetModel(v1.GetModelRequest(model_id="credit_risk"), timeout=5)
    live = stage.records["credit_risk"].live
    assert live is not None
    assert (model.version, model.digest, model.trained_date) == ("1.0.0", live.digest.hex(), "2023-10-25")
    assert model.location == live.location
    [version] = model.versions
    assert (version.version, version.state, version.traffic_percent) == ("1.0.0", "live", 100.0)
    assert {(a.name, a.sha256, a.size) for a in version.artifacts} == {
        (a.name, a.sha256, a.size) for a in live.artifacts
    }
    signature = json.loads(model.signature_json)
    assert [f["name"] for f in signature["expected_features"]] == ["debt_to_income_ratio", "age_years"]


def test_each_version_shows_what_computes_it_once_a_worker_has_loaded_it(gateway: GatewayProcess) -> None:
    """A logistic regression is computed in its compiled form, a pipeline on a DataFrame has none."""

    def engines() -> dict[str, str]:
        models = gateway.stub.ListModels(v1.ListModelsRequest(), timeout=5).models
        return {model.model_id: model.versions[0].engine for model in models}

    eventually(lambda: engines()["loan_approval"] and engines()["credit_risk"], within=10)
    assert engines()["loan_approval"] == f"sklearn {version('scikit-learn')}"
    model = gateway.stub.GetModel(v1.GetModelRequest(model_id="credit_risk"), timeout=5)
    assert model.versions[0].engine == f"numpy {version('numpy')} (LogisticRegression)"


@pytest.mark.parametrize("model_id", ["churn", "credit_risk", "loan_approval", "roi_prediction"])
def test_inputs_by_position_answer_what_training_computed(gateway: GatewayProcess, stock: Path, model_id: str) -> None:
    for example in golden(stock, model_id):
        response = gateway.predict(ask(model_id, *example["inputs"]))  # type: ignore[misc]
        [row] = outputs(response)
        assert row == pytest.approx(example["outputs"], abs=1e-5)
        assert (response.model_id, response.version, response.degraded) == (model_id, "1.0.0", False)
        assert response.request_id
        assert response.user_request_timestamp.ToMicroseconds() <= response.predicted_at_timestamp.ToMicroseconds()


def test_features_by_name_answer_the_same_and_defaults_fill_in(gateway: GatewayProcess) -> None:
    by_position = outputs(gateway.predict(ask("loan_approval", 12000.0, "salaried", False)))
    by_name = outputs(gateway.predict(named("loan_approval", {"employment": "salaried", "amount_eur": 12000})))
    assert by_name == by_position
    assert sorted(by_name[0]) == ["approve_probability", "decision"]
    assert by_name[0]["decision"] in ("approve", "decline")


def test_an_entity_brings_its_stored_features_and_what_is_sent_wins(gateway: GatewayProcess, stage: Stage) -> None:
    stage.redis.mset({"user:t101:age": "25", "user:t101:clicks": "120"})
    expected = outputs(gateway.predict(ask("churn", 25, 120)))
    assert outputs(gateway.predict(v1.PredictRequest(model_id="churn", entity_id="t101"))) == expected
    other = outputs(gateway.predict(named("churn", {"clicks": 0}, entity_id="t101")))
    assert other == outputs(gateway.predict(ask("churn", 25, 0)))


def test_the_event_of_a_hydrated_request_says_where_each_value_came_from(gateway: GatewayProcess, stage: Stage) -> None:
    stage.redis.set("user:t102:age", "40")
    gateway.predict(v1.PredictRequest(model_id="churn", entity_id="t102", request_id="hydrated-1"))
    event = stage.ended("churn", "hydrated-1")
    assert [(h.index, h.origin) for h in event.entry.hydrated] == [(0, wire.REDIS), (1, wire.DEFAULT)]
    assert np.frombuffer(event.entry.matrix.float64).tolist() == [40.0, 0.0]
    assert (event.status, event.entry.entity_id) == (wire.OK, "t102")


def test_a_matrix_of_rows_is_answered_in_columns_row_by_row(gateway: GatewayProcess) -> None:
    rows = np.array([[0.6, 45], [0.05, 70], [1.4, 22]])
    matrix = v1.Matrix(rows=3, float64=rows.astype("<f8").tobytes())
    response = gateway.predict(v1.PredictRequest(model_id="credit_risk", rows=v1.Rows(matrix=matrix)))
    [column] = response.columns
    one_by_one = [
        outputs(gateway.predict(ask("credit_risk", debt, int(age))))[0]["default_probability"] for debt, age in rows
    ]
    assert column.name == "default_probability"
    assert list(column.column.doubles.values) == pytest.approx(one_by_one, abs=1e-12)
    assert not response.predictions


def test_columns_of_mixed_types_are_answered_in_columns(gateway: GatewayProcess) -> None:
    columns = v1.Columns(
        rows=2,
        columns=[
            v1.Column(doubles=v1.Doubles(values=[12000.0, 30000.0])),
            v1.Column(strings=v1.Strings(values=["salaried", "student"])),
            v1.Column(booleans=v1.Booleans(values=[False, True])),
        ],
    )
    response = gateway.predict(v1.PredictRequest(model_id="loan_approval", rows=v1.Rows(columns=columns)))
    found = {column.name: column.column for column in response.columns}
    one_by_one = [
        outputs(gateway.predict(ask("loan_approval", *row)))[0]
        for row in ((12000.0, "salaried", False), (30000.0, "student", True))
    ]
    assert list(found["decision"].strings.values) == [row["decision"] for row in one_by_one]
    assert list(found["approve_probability"].doubles.values) == pytest.approx(
        [row["approve_probability"] for row in one_by_one], abs=1e-12
    )


def test_a_reply_too_large_to_push_is_read_from_its_key(gateway: GatewayProcess, stage: Stage) -> None:
    rows = 5000
    matrix = v1.Matrix(rows=rows, float64=np.ones(rows).tobytes())
    request = v1.PredictRequest(model_id=TEXT, rows=v1.Rows(matrix=matrix), request_id="large-1")
    response = gateway.predict(request)
    assert list(response.columns[0].column.strings.values) == ["x" * TEXT_LENGTH] * rows
    assert response.ByteSize() > 200_000
    assert gateway.result(TEXT, "large-1") == response


def test_a_version_can_be_named(gateway: GatewayProcess) -> None:
    request = ask("credit_risk", 0.6, 45, version="1.0.0")
    assert gateway.predict(request).version == "1.0.0"


def test_numbers_keep_every_bit_on_their_way(gateway: GatewayProcess) -> None:
    for value in (-0.0, 5e-324, 8e307, 0.1 + 0.2, float(2**53)):
        [row] = outputs(gateway.predict(ask("odd", value)))
        assert np.float64(row["out"]).tobytes() == np.float64(value * 2).tobytes()
