"""The synchronous client against a real gRPC server."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from millstream.client import (
    AlreadyExists,
    Client,
    DeadlineExceeded,
    InvalidInput,
    ModelFailed,
    NotFound,
    Overloaded,
    Pending,
    PredictionError,
    Unavailable,
)
from tests.servers import free_port
from tests.small_gateway import SmallGateway, sent_inputs


@pytest.fixture
def gateway() -> Iterator[SmallGateway]:
    with SmallGateway() as gateway:
        yield gateway


@pytest.fixture
def client(gateway: SmallGateway) -> Iterator[Client]:
    with Client(gateway.address, timeout=10) as client:
        yield client


def test_one_row_by_position_is_answered_with_named_outputs(client: Client) -> None:
    answer = client.predict("credit_risk", [0.6, 45])
    assert answer.outputs == {"total": 45.6}
    assert answer.predictions == [{"total": 45.6}]
    assert (answer.model_id, answer.version) == ("credit_risk", "1.0.0")
    assert answer.user_request_timestamp == datetime(2023, 11, 14, 22, 13, 20, 123456, tzinfo=UTC)
    assert answer.predicted_at_timestamp == datetime(2023, 11, 14, 22, 13, 20, 223456, tzinfo=UTC)


def test_one_row_by_name_from_a_dict_or_a_series(client: Client) -> None:
    row = {"age_years": 45, "debt_to_income_ratio": 0.6}
    assert client.predict("credit_risk", features=row).outputs == {"total": 45.6}
    assert client.predict("credit_risk", features=pd.Series(row)).outputs == {"total": 45.6}


def test_numpy_scalars_and_arrays_are_plain_values(client: Client, gateway: SmallGateway) -> None:
    client.predict("credit_risk", np.array([0.6, 45.0]))
    client.predict("credit_risk", [np.float64(0.6), np.int64(45)])
    client.predict(
        "loan_approval", features={"amount_eur": np.float32(1.5), "employment": "student", "has_guarantor": np.True_}
    )
    assert sent_inputs(gateway.seen[0]) == [0.6, 45.0]
    assert sent_inputs(gateway.seen[1]) == [0.6, 45]
    assert gateway.seen[2].features["has_guarantor"].boolean is True


def test_an_entity_id_alone_is_enough_where_features_are_fetched(client: Client) -> None:
    assert client.predict("churn", entity_id="101").outputs == {"total": 145.0}
    assert client.predict("churn", features={"clicks": 5}, entity_id="101").outputs == {"total": 30.0}


@pytest.mark.parametrize(
    "rows",
    [
        np.array([[0.5, 20], [0.25, 30]]),
        np.array([[1, 20], [2, 30]]) * 1,
        [[0.5, 20], [0.25, 30]],
        [{"age_years": 20, "debt_to_income_ratio": 0.5}, {"debt_to_income_ratio": 0.25, "age_years": 30}],
        pd.DataFrame({"age_years": [20, 30], "debt_to_income_ratio": [0.5, 0.25]}),
    ],
    ids=["array", "integers", "lists", "dicts", "frame"],
)
def test_many_rows_are_packed_and_answered_in_columns(client: Client, gateway: SmallGateway, rows: object) -> None:
    answer = client.predict("credit_risk", rows=rows)
    assert gateway.seen[0].rows.WhichOneof("form") == "matrix"
    sent = np.frombuffer(gateway.seen[0].rows.matrix.float64).reshape(2, 2)
    assert sent[:, 1].tolist() == [20, 30], "columns stand in the model's order"
    assert answer.columns["total"].tolist() == sent.sum(axis=1).tolist()
    assert answer.predictions == [{"total": total} for total in sent.sum(axis=1)]


def test_a_frame_with_texts_and_missing_values_goes_as_columns(client: Client, gateway: SmallGateway) -> None:
    frame = pd.DataFrame(
        {
            "remark": ["ok", None],
            "has_guarantor": [True, False],
            "employment": ["student", "salaried"],
            "amount_eur": [10.0, 20.0],
        }
    )
    answer = client.predict("loan_approval", rows=frame)
    columns = gateway.seen[0].rows.columns
    assert list(columns.columns[3].nulls) == [1]
    assert list(columns.columns[1].strings.values) == ["student", "salaried"]
    assert answer.columns["total"].tolist() == [10 + 7 + 1 + 2, 20 + 8 + 0 + 0]


def test_a_large_integer_is_refused_and_not_rounded(client: Client) -> None:
    with pytest.raises(InvalidInput, match="got 9007199254740993"):
        client.predict("credit_risk", rows=np.array([[1, 2**53 + 1]]))


def test_a_frame_with_other_columns_is_refused_before_it_is_sent(client: Client, gateway: SmallGateway) -> None:
    with pytest.raises(InvalidInput, match="missing: age_years; unknown: years"):
        client.predict("credit_risk", rows=pd.DataFrame({"years": [1], "debt_to_income_ratio": [0.1]}))
    assert gateway.seen == []


def test_rows_by_name_are_asked_of_the_version_whose_order_was_used(client: Client, gateway: SmallGateway) -> None:
    client.predict("credit_risk", rows=[{"age_years": 20, "debt_to_income_ratio": 0.5}])
    assert gateway.seen[0].version == "1.0.0"


def test_outputs_of_several_rows_say_what_to_use_instead(client: Client) -> None:
    answer = client.predict("credit_risk", rows=[[0.5, 20], [0.25, 30]])
    with pytest.raises(ValueError, match="2: use `predictions`"):
        _ = answer.outputs


def test_all_violations_are_on_the_error(client: Client) -> None:
    with pytest.raises(InvalidInput) as caught:
        client.predict("credit_risk", ["high", 3], request_id="mine")
    assert [violation.field for violation in caught.value.violations] == ["debt_to_income_ratio", "age_years"]
    assert caught.value.reason == "INPUT_INVALID"
    assert caught.value.request_id == "mine"


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"inputs": [1], "features": {"a": 1}}, "features"),
        ({"inputs": "0.6"}, "inputs"),
        ({"inputs": [object()]}, "inputs[0]"),
        ({"inputs": [2**70]}, "inputs[0]"),
        ({"features": [1, 2]}, "features"),
        ({"rows": [1, 2]}, "inputs"),
        ({"rows": [[1, 2], [1]]}, "rows[1]"),
        ({"rows": np.array([1.0])}, "rows"),
        ({"inputs": [1], "request_id": "a b"}, "request_id"),
        ({"inputs": [1], "request_id": "12-3"}, "request_id"),
    ],
)
def test_what_cannot_be_sent_is_named_before_it_is_sent(
    client: Client, gateway: SmallGateway, form: dict[str, object], field: str
) -> None:
    with pytest.raises(InvalidInput) as caught:
        client.predict("credit_risk", **form)  # type: ignore[arg-type]
    assert caught.value.violations[0].field == field
    assert gateway.seen == []


@pytest.mark.parametrize(
    ("model_id", "kind", "reason"),
    [
        ("busy", Overloaded, "QUEUE_FULL"),
        ("broken", ModelFailed, "MODEL_FAILED"),
        ("away", Unavailable, "STORE_UNAVAILABLE"),
        ("reused", AlreadyExists, "REQUEST_ID_REUSED"),
        ("unheard_of", NotFound, "MODEL_UNKNOWN"),
    ],
)
def test_each_status_is_an_error_of_its_own(
    client: Client, model_id: str, kind: type[PredictionError], reason: str
) -> None:
    with pytest.raises(kind) as caught:
        client.predict(model_id, [1.0])
    assert caught.value.reason == reason
    assert caught.value.request_id == "made-by-gateway"


def test_an_overloaded_gateway_says_when_to_come_back(client: Client) -> None:
    with pytest.raises(Overloaded) as caught:
        client.predict("busy", [1.0])
    assert caught.value.retry_after == 2.0


def test_an_answer_that_does_not_come_in_time_is_a_deadline(client: Client) -> None:
    with pytest.raises(DeadlineExceeded):
        client.predict("slow", [1.0], timeout=0.2)


def test_nobody_at_the_address_is_unavailable_and_names_it() -> None:
    address = f"127.0.0.1:{free_port()}"
    with Client(address, timeout=5) as client, pytest.raises(Unavailable, match=f"nothing answers at {address}"):
        client.models()


def test_models_and_one_model(client: Client) -> None:
    assert [model.model_id for model in client.models()] == ["credit_risk", "churn", "loan_approval"]
    assert [spec.name for spec in client.model("churn").features] == ["age", "clicks"]
    with pytest.raises(NotFound):
        client.model("unheard_of")


def test_a_submitted_request_is_read_later(client: Client) -> None:
    request_id = client.submit("credit_risk", [0.6, 45], request_id="later")
    assert request_id == "later"
    answer = client.result("credit_risk", "later", wait=1)
    assert not isinstance(answer, Pending)
    assert answer.outputs == {"total": 45.6}
    assert client.result("credit_risk", "pending") == Pending("pending", "credit_risk")
    with pytest.raises(NotFound):
        client.result("credit_risk", "never")


def test_a_stream_answers_every_question_and_goes_on_after_a_refusal(client: Client) -> None:
    questions = [{"model_id": "credit_risk", "inputs": [0.5, 20 + n], "request_id": f"q{n}"} for n in range(50)]
    questions[7]["inputs"] = [0.5, 3]
    found = {outcome.request_id: outcome for outcome in client.predict_stream(questions, in_flight=4)}
    assert len(found) == 50
    assert isinstance(found["q7"], InvalidInput)
    answer = found["q8"]
    assert not isinstance(answer, PredictionError)
    assert answer.outputs == {"total": 28.5}


def test_a_stream_does_not_read_an_endless_iterable_ahead(client: Client, gateway: SmallGateway) -> None:
    def endless() -> Iterator[dict[str, object]]:
        while True:
            yield {"model_id": "credit_risk", "inputs": [0.5, 20]}

    stream = client.predict_stream(endless(), in_flight=8)
    for _ in range(20):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert len(gateway.seen) <= 20 + 8


def test_a_question_that_cannot_be_sent_raises_where_the_stream_is_read(client: Client) -> None:
    questions = [{"model_id": "credit_risk", "inputs": [0.5, 20]}, {"model_id": "credit_risk", "inputs": [object()]}]
    stream = client.predict_stream(questions)
    assert not isinstance(next(stream), PredictionError)
    with pytest.raises(InvalidInput):
        list(stream)


def test_wait_ready_returns_when_it_serves_and_raises_when_it_does_not(client: Client, gateway: SmallGateway) -> None:
    client.wait_ready(5)
    gateway.serve(serving=False)
    with pytest.raises(Unavailable, match="NOT_SERVING"):
        client.wait_ready(0.3)
