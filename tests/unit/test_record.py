"""The model record: its bytes, and which version a request goes to."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import Code, Reason, Refused
from contract.record import BUCKETS, LIVE, LOADING, RETIRING, ModelRecord, bucket, route
from protos import millstream_wire_v1_pb2 as wire
from tests.records import record, version

ONE, TWO = version("1.0.0"), version("2.0.0")
LOADING_THREE, RETIRING_ZERO = version("3.0.0", LOADING), version("0.9.0", RETIRING)
CALLERS = [str(number) for number in range(20_000)]


# ---------------------------------------------------------------- bytes


def test_a_record_reads_back_as_the_same() -> None:
    given_ = record(
        ONE, TWO, LOADING_THREE, revision=7, canary="2.0.0", canary_basis_points=250, salt="s", shadow="3.0.0"
    )
    assert ModelRecord.decode(given_.encode()) == given_
    decided = replace(given_, decided_us=1_767_225_600_123_456)
    assert ModelRecord.decode(decided.encode()) == decided


def test_the_bytes_of_a_record_are_always_the_same() -> None:
    given_ = record(ONE, TWO)
    assert given_.encode() == ModelRecord.decode(given_.encode()).encode()


def test_a_version_known_before_is_not_compiled_again() -> None:
    before = record(ONE, TWO)
    now = ModelRecord.decode(record(ONE, version("2.0.0", RETIRING), revision=2).encode(), before)
    assert now.versions["1.0.0"].admission is ONE.admission
    assert now.versions["2.0.0"].admission is TWO.admission
    assert now.versions["2.0.0"].state == RETIRING


def test_a_version_with_another_signature_is_compiled_anew() -> None:
    now = ModelRecord.decode(record(version("1.0.0", trained_date="2025-01-01")).encode(), record(ONE))
    assert now.versions["1.0.0"].signature.trained_date == "2025-01-01"
    assert now.versions["1.0.0"].admission.signature.trained_date == "2025-01-01"


def test_only_a_live_version_is_the_one_that_answers() -> None:
    assert record(ONE).live == ONE
    assert record(LOADING_THREE).live is None
    assert record(ONE, production="").live is None
    assert record(ONE, production="9.9.9").live is None


def test_a_version_is_named_for_people() -> None:
    assert ONE.name == "churn 1.0.0"


# ---------------------------------------------------------------- buckets


@given(st.text(max_size=50), st.text(max_size=20), st.text(max_size=100))
def test_a_bucket_follows_from_model_salt_and_key_alone(model_id: str, salt: str, key: str) -> None:
    digest = hashlib.sha256(f"{model_id}:{salt}:{key}".encode()).digest()
    assert bucket(model_id, salt, key) == int.from_bytes(digest[:8], "big") % 10_000


def test_buckets_are_the_same_in_every_release() -> None:
    found = [bucket("churn", "s1", "101"), bucket("churn", "s2", "101"), bucket("credit_risk", "s1", "101")]
    assert found == [1980, 8082, 9310]


def test_callers_spread_evenly_over_the_buckets() -> None:
    found = [bucket("churn", "salt", caller) for caller in CALLERS]
    assert min(found) >= 0
    assert max(found) < BUCKETS
    tenths = [sum(1 for each in found if each // 1000 == tenth) for tenth in range(10)]
    # Five standard deviations of a binomial around 2,000.
    assert all(abs(count - 2000) < 5 * (20_000 * 0.1 * 0.9) ** 0.5 for count in tenths)


# ---------------------------------------------------------------- routing


def asked(model: ModelRecord, *, named: str = "", entity_id: str = "", request_id: str = "r1") -> str:
    return route(model, named, entity_id, request_id).version


def refusal(model: ModelRecord, named: str = "") -> Refused:
    with pytest.raises(Refused) as caught:
        route(model, named, "", "r1")
    return caught.value


ALL_CANARY = record(ONE, TWO, canary="2.0.0", canary_basis_points=BUCKETS)


@pytest.mark.parametrize(
    ("model", "named", "answers"),
    [
        (record(ONE), "", "1.0.0"),
        (record(ONE, TWO), "", "1.0.0"),
        (record(ONE, TWO), "2.0.0", "2.0.0"),
        (record(ONE, TWO, production="2.0.0"), "", "2.0.0"),
        (ALL_CANARY, "", "2.0.0"),
        (ALL_CANARY, "1.0.0", "1.0.0"),
        (ALL_CANARY, "2.0.0", "2.0.0"),
        (record(ONE, TWO, canary="2.0.0", canary_basis_points=0), "", "1.0.0"),
        (record(ONE, LOADING_THREE, canary="3.0.0", canary_basis_points=BUCKETS), "", "1.0.0"),
        (record(ONE, RETIRING_ZERO, canary="0.9.0", canary_basis_points=BUCKETS), "", "1.0.0"),
        (record(ONE, canary="9.9.9", canary_basis_points=BUCKETS), "", "1.0.0"),
        (record(ONE, TWO, shadow="2.0.0"), "", "1.0.0"),
        (record(LOADING_THREE, TWO, canary="2.0.0", canary_basis_points=BUCKETS), "", "2.0.0"),
    ],
)
def test_a_request_goes_to(model: ModelRecord, named: str, answers: str) -> None:
    assert asked(model, named=named) == answers


@pytest.mark.parametrize("named", ["9.9.9", "3.0.0", "0.9.0", "x" * 10_000, "1.0.0\n"])
def test_a_named_version_that_is_not_live_is_unknown_and_those_there_are_named(named: str) -> None:
    refused = refusal(record(ONE, TWO, LOADING_THREE, RETIRING_ZERO), named)
    assert refused.reason is Reason.VERSION_UNKNOWN
    assert refused.reason.code is Code.NOT_FOUND
    assert refused.message.endswith("there is: 1.0.0, 2.0.0")
    assert len(refused.message) < 200


@pytest.mark.parametrize("model", [record(LOADING_THREE), record(RETIRING_ZERO), record(ONE, production="")])
def test_a_model_without_a_live_version_is_unavailable_for_now(model: ModelRecord) -> None:
    refused = refusal(model)
    assert refused.reason is Reason.VERSION_UNAVAILABLE
    assert refused.reason.code is Code.UNAVAILABLE
    assert refused.retry_after_s is not None


def test_an_entity_stays_with_its_version_whatever_the_request_id() -> None:
    model = record(ONE, TWO, canary="2.0.0", canary_basis_points=5000, salt="s")
    for entity in CALLERS[:50]:
        answers = {asked(model, entity_id=entity, request_id=f"r{number}") for number in range(5)}
        assert len(answers) == 1


def test_without_an_entity_the_request_id_decides() -> None:
    model = record(ONE, TWO, canary="2.0.0", canary_basis_points=5000, salt="s")
    assert {asked(model, request_id=f"r{number}") for number in range(50)} == {"1.0.0", "2.0.0"}


@pytest.mark.parametrize("basis_points", [1, 100, 2500, 9999])
def test_a_canary_gets_its_share(basis_points: int) -> None:
    model = record(ONE, TWO, canary="2.0.0", canary_basis_points=basis_points, salt="s")
    share = basis_points / BUCKETS
    count = sum(1 for caller in CALLERS if asked(model, entity_id=caller) == "2.0.0")
    assert abs(count - share * len(CALLERS)) <= 5 * (len(CALLERS) * share * (1 - share)) ** 0.5 + 1


def test_raising_the_share_only_adds_callers() -> None:
    def canaries(basis_points: int) -> set[str]:
        model = record(ONE, TWO, canary="2.0.0", canary_basis_points=basis_points, salt="s")
        return {caller for caller in CALLERS[:2000] if asked(model, entity_id=caller) == "2.0.0"}

    assert canaries(100) < canaries(1000) < canaries(5000) < canaries(BUCKETS) == set(CALLERS[:2000])


def test_another_salt_chooses_others() -> None:
    def canaries(salt: str) -> set[str]:
        model = record(ONE, TWO, canary="2.0.0", canary_basis_points=1000, salt=salt)
        return {caller for caller in CALLERS[:5000] if asked(model, entity_id=caller) == "2.0.0"}

    first, second = canaries("first"), canaries("second")
    assert len(first & second) < len(first) / 2


def test_states_are_the_wires_own() -> None:
    assert (LOADING, LIVE, RETIRING) == (wire.LOADING, wire.LIVE, wire.RETIRING)
