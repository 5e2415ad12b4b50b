"""The closed loop and the echo against real gRPC servers; the push against a real Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import grpc.aio
import pytest
import redis

from contract.keys import Keys
from ingest.producer import Producer
from loadgen.asking import PREDICT
from loadgen.closed_loop import closed_loop
from loadgen.echo import start_echo
from loadgen.idle import measure
from loadgen.open_loop import NOT_ASKED, arrivals, open_loop
from loadgen.push import push
from loadgen.report import Tally
from loadgen.samples import samples
from protos import millstream_v1_pb2 as v1
from tests.servers import free_port
from tests.small_gateway import SmallGateway, sent_inputs


@pytest.fixture
def gateway() -> Iterator[SmallGateway]:
    with SmallGateway() as gateway:
        yield gateway


def _model(gateway: SmallGateway, model_id: str) -> v1.Model:
    return gateway.GetModel(v1.GetModelRequest(model_id=model_id), None)


def test_samples_fit_the_signature_and_repeat_with_the_seed(gateway: SmallGateway) -> None:
    model = _model(gateway, "loan_approval")
    made = samples(model, 200, seed=7)
    assert made == samples(model, 200, seed=7)
    assert made != samples(model, 200, seed=8)
    for amount, employment, guarantor, remark in map(sent_inputs, made):
        assert isinstance(amount, float)
        assert amount >= 0
        assert employment in ("salaried", "student")
        assert isinstance(guarantor, bool)
        assert isinstance(remark, str)


@pytest.mark.anyio
async def test_a_closed_loop_asks_as_often_as_it_was_told_and_reports_it(gateway: SmallGateway) -> None:
    requests = samples(_model(gateway, "credit_risk"), 10)
    report = await closed_loop(gateway.address, 5, requests, count=40)
    assert (report.requests, report.answered, report.errors) == (40, 40, {})
    assert len(gateway.seen) == 40
    assert 0 < report.p50_ms <= report.p95_ms <= report.p99_ms <= report.max_ms
    assert report.rate > 0


@pytest.mark.anyio
async def test_a_closed_loop_leaves_out_request_ids_that_would_make_repeats(gateway: SmallGateway) -> None:
    await closed_loop(gateway.address, 1, [v1.PredictRequest(model_id="busy", request_id="mine")], count=1)
    assert gateway.seen[0].request_id == ""


@pytest.mark.anyio
async def test_failures_are_counted_by_status(gateway: SmallGateway) -> None:
    requests = [v1.PredictRequest(model_id=name, inputs=[v1.Value(number=1)]) for name in ("busy", "broken")]
    report = await closed_loop(gateway.address, 1, requests, count=4)
    assert report.errors == {"RESOURCE_EXHAUSTED": 2, "INTERNAL": 2}
    assert report.answered == 0
    assert report.to_json()["p99_ms"] == 0.0


@pytest.mark.anyio
async def test_a_run_without_an_end_is_refused(gateway: SmallGateway) -> None:
    with pytest.raises(ValueError, match="seconds or count"):
        await closed_loop(gateway.address, 1, [v1.PredictRequest()])


def test_arrivals_come_at_their_rate_and_repeat_with_the_seed() -> None:
    due = list(arrivals(1000.0, 10.0, seed=3))
    assert due == list(arrivals(1000.0, 10.0, seed=3))
    assert due == sorted(due)
    assert due[0] > 0
    assert due[-1] < 10.0
    # Six standard deviations of a Poisson count.
    assert abs(len(due) - 10_000) < 600


@pytest.mark.parametrize(("first", "last", "share"), [(0.0, 1000.0, 0.25), (1000.0, 0.0, 0.75), (500.0, 500.0, 0.5)])
def test_a_ramp_changes_the_rate_evenly(first: float, last: float, share: float) -> None:
    due = list(arrivals(first, 20.0, last))
    assert sum(at < 10.0 for at in due) / len(due) == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("rate", "seconds", "end"), [(0.0, 1.0, None), (-1.0, 1.0, None), (1.0, 0.0, None), (0.0, 1.0, 0.0)]
)
def test_arrivals_that_never_come_are_refused(rate: float, seconds: float, end: float | None) -> None:
    with pytest.raises(ValueError, match="above 0"):
        next(arrivals(rate, seconds, end))


@pytest.mark.anyio
async def test_an_open_loop_asks_what_is_due_and_counts_how_it_ended(gateway: SmallGateway) -> None:
    requests = [*samples(_model(gateway, "credit_risk"), 1), v1.PredictRequest(model_id="busy")]
    report = await open_loop(gateway.address, 200.0, requests, seconds=0.5, seed=1)
    due = len(list(arrivals(200.0, 0.5, seed=1)))
    assert report.requests == due
    assert report.errors == {"RESOURCE_EXHAUSTED": due // 2}
    assert report.offered_per_s == due / 0.5
    assert report.users == 0
    assert report.p99_ms > 0
    assert {"offered_per_s", "lag_ms"} <= report.to_json().keys()


@pytest.mark.anyio
async def test_an_open_loop_leaves_out_what_nobody_could_ask_any_more(gateway: SmallGateway) -> None:
    report = await open_loop(
        gateway.address, 500.0, samples(_model(gateway, "credit_risk"), 1), seconds=0.2, most_under_way=0
    )
    assert set(report.errors) == {NOT_ASKED}


@pytest.mark.anyio
async def test_nobody_there_is_counted_and_ends_in_time() -> None:
    report = await closed_loop(f"127.0.0.1:{free_port()}", 2, [v1.PredictRequest()], seconds=0.3)
    assert set(report.errors) == {"UNAVAILABLE"}


@pytest.mark.anyio
async def test_the_echo_answers_the_bytes_it_got() -> None:
    server, address = await start_echo()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            ask: Any = channel.unary_unary(PREDICT)
            assert await ask(b"any bytes \x00\xff") == b"any bytes \x00\xff"
    finally:
        await server.stop(None)


@pytest.mark.anyio
async def test_idle_measures_both_sides_in_every_round(gateway: SmallGateway) -> None:
    seen = await measure(gateway.address, "credit_risk", rounds=3, each=5)
    assert (len(seen.predict_us), len(seen.echo_us)) == (3, 3)
    assert seen.ratio > 0


def test_a_tally_reports_percentiles_within_its_three_digits() -> None:
    tally = Tally()
    for milliseconds in range(1, 1001):
        tally.answer(milliseconds / 1000)
    tally.error("UNAVAILABLE")
    report = tally.report(seconds=2.0, users=1)
    assert report.requests == 1001
    assert report.rate == 500.0
    assert report.p50_ms == pytest.approx(500, rel=2e-3)
    assert report.p99_ms == pytest.approx(990, rel=2e-3)
    assert report.max_ms == pytest.approx(1000, rel=2e-3)


@pytest.mark.integration
def test_push_appends_the_rows_in_turn_and_keeps_no_reply(
    redis_url: str, redis_client: redis.Redis, prefix: str
) -> None:
    redis_client.hset(Keys(prefix).catalog, "churn", b"signed")
    with Producer(redis_url, prefix) as producer:
        pushed = push(producer, "churn", [[1, 2], [3, 4]], 5, batch=2)
    entries = redis_client.xrange(Keys(prefix).model("churn").bulk)
    bodies = [json.loads(fields[b"json"]) for _, fields in entries]  # type: ignore[union-attr,index]
    assert pushed.requests == 5
    assert [body["inputs"] for body in bodies] == [[1, 2], [3, 4], [1, 2], [3, 4], [1, 2]]
    assert all(body["discard_reply"] for body in bodies)
