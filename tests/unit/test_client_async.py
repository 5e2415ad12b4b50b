"""The client on an event loop, against the same real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pandas as pd
import pytest

from millstream.client import (
    AsyncClient,
    DeadlineExceeded,
    InvalidInput,
    NotFound,
    Pending,
    PredictionError,
    Unavailable,
)
from tests.small_gateway import SmallGateway

pytestmark = pytest.mark.anyio


@pytest.fixture
def gateway() -> Iterator[SmallGateway]:
    with SmallGateway() as gateway:
        yield gateway


@pytest.fixture
async def client(gateway: SmallGateway) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(gateway.address, timeout=10) as client:
        yield client


async def test_many_at_once_are_all_answered(client: AsyncClient) -> None:
    answers = await asyncio.gather(*(client.predict("credit_risk", [0.5, 20 + n]) for n in range(50)))
    assert [answer.outputs["total"] for answer in answers] == [20.5 + n for n in range(50)]


async def test_a_frame_is_put_in_order(client: AsyncClient) -> None:
    frame = pd.DataFrame({"age_years": [20, 30], "debt_to_income_ratio": [0.5, 0.25]})
    answer = await client.predict("credit_risk", rows=frame)
    assert answer.columns["total"].tolist() == [20.5, 30.25]


async def test_errors_are_the_same_as_the_other_client_raises(client: AsyncClient) -> None:
    with pytest.raises(InvalidInput) as caught:
        await client.predict("credit_risk", [0.6, 3])
    assert [violation.field for violation in caught.value.violations] == ["age_years"]
    with pytest.raises(DeadlineExceeded):
        await client.predict("slow", [1.0], timeout=0.2)
    with pytest.raises(NotFound):
        await client.model("unheard_of")


async def test_submit_and_result(client: AsyncClient) -> None:
    request_id = await client.submit("credit_risk", [0.6, 45], request_id="later")
    answer = await client.result("credit_risk", request_id)
    assert not isinstance(answer, Pending)
    assert answer.outputs == {"total": 45.6}
    assert await client.result("credit_risk", "pending") == Pending("pending", "credit_risk")


async def test_a_stream_takes_an_asynchronous_iterable_and_goes_on_after_a_refusal(client: AsyncClient) -> None:
    async def questions() -> AsyncIterator[dict[str, object]]:
        for n in range(20):
            yield {"model_id": "credit_risk", "inputs": [0.5, 10 + n], "request_id": f"q{n}"}

    found = {outcome.request_id: outcome async for outcome in client.predict_stream(questions(), in_flight=3)}
    assert len(found) == 20
    assert {name for name, outcome in found.items() if isinstance(outcome, PredictionError)} == {
        f"q{n}" for n in range(8)
    }


async def test_models_are_listed(client: AsyncClient) -> None:
    assert [model.model_id for model in await client.models()] == ["credit_risk", "churn", "loan_approval"]


async def test_wait_ready_follows_health(client: AsyncClient, gateway: SmallGateway) -> None:
    await client.wait_ready(5)
    gateway.serve(serving=False)
    with pytest.raises(Unavailable, match="NOT_SERVING"):
        await client.wait_ready(0.3)
