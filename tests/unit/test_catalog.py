"""The catalogue of a process: what is not trusted never replaces what is."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from contract.catalog import Catalog
from contract.errors import Reason, Refused
from contract.record import ModelRecord
from contract.request import Request
from contract.trust import seal
from protos import millstream_wire_v1_pb2 as wire
from tests.records import record, version

KEY = Ed25519PrivateKey.generate()
CREDIT = record(version(model_id="credit_risk"))


def catalog(**models: ModelRecord) -> Catalog:
    found = Catalog(KEY.public_key())
    found.update(1, sealed(**models))
    return found


def sealed(**models: ModelRecord) -> dict[bytes, bytes]:
    return {name.encode(): seal(each, KEY) for name, each in models.items()}


def forged(kind: str) -> bytes:
    """The next record of churn, made wrong in one way."""
    good = wire.SignedRecord.FromString(seal(record(revision=6), KEY))
    if kind == "tampered":
        good.record = good.record.replace(b"ai-models", b"evil-host")
    elif kind == "swapped signature":
        good.ed25519 = wire.SignedRecord.FromString(seal(CREDIT, KEY)).ed25519
    elif kind == "other key":
        return seal(record(revision=6), Ed25519PrivateKey.generate())
    elif kind == "old revision":
        return seal(record(revision=4), KEY)
    elif kind == "other model":
        return seal(CREDIT, KEY)
    else:
        return b"nothing at all"
    return good.SerializeToString()


def test_before_the_first_look_there_is_nothing() -> None:
    empty = Catalog(KEY.public_key())
    assert (empty.revision, dict(empty.records)) == (-1, {})


def test_records_are_listed_by_name() -> None:
    found = catalog(credit_risk=CREDIT, churn=record(revision=5))
    assert list(found.records) == ["churn", "credit_risk"]
    assert found.record("churn") == record(revision=5)
    assert found.revision == 1


@pytest.mark.parametrize(
    "kind", ["tampered", "swapped signature", "other key", "old revision", "other model", "no record"]
)
def test_a_record_that_is_not_trusted_leaves_the_one_before_in_force(kind: str) -> None:
    found = catalog(churn=record(revision=5), credit_risk=CREDIT)
    before = found.record("churn")
    for revision in (2, 3):  # looked at again it is still not trusted
        found.update(revision, {b"churn": forged(kind), **sealed(credit_risk=CREDIT)})
        assert found.record("churn") is before
        assert list(found.untrusted) == ["churn"]
        assert found.revision == revision
    found.update(4, sealed(churn=record(revision=7), credit_risk=CREDIT))
    assert found.record("churn").revision == 7
    assert dict(found.untrusted) == {}


def test_a_record_that_is_not_trusted_at_the_first_look_is_no_model() -> None:
    found = Catalog(KEY.public_key())
    found.update(1, {b"churn": forged("other key"), **sealed(credit_risk=CREDIT)})
    assert list(found.records) == ["credit_risk"]
    with pytest.raises(Refused):
        found.record("churn")


def test_a_name_that_is_no_utf_8_is_one_untrusted_entry() -> None:
    found = Catalog(KEY.public_key())
    found.update(1, {b"\xff\xfe": seal(CREDIT, KEY)})
    assert dict(found.records) == {}
    assert len(found.untrusted) == 1


def test_what_has_not_changed_is_not_read_again() -> None:
    found = catalog(churn=record(revision=5))
    before = found.record("churn")
    found.update(2, sealed(churn=record(revision=5), credit_risk=CREDIT))
    assert found.record("churn") is before


def test_a_model_that_was_taken_away_is_gone() -> None:
    found = catalog(churn=record(), credit_risk=CREDIT)
    found.update(2, sealed(credit_risk=CREDIT))
    assert list(found.records) == ["credit_risk"]


def test_models_of_a_server_that_was_emptied_go_on_until_each_is_back() -> None:
    found = catalog(churn=record(revision=5), credit_risk=CREDIT)
    found.update(0, {})
    assert list(found.records) == ["churn", "credit_risk"]
    found.update(100, sealed(churn=record(revision=6)))
    assert [found.record("churn").revision, found.record("credit_risk")] == [6, CREDIT]
    found.update(101, sealed(churn=record(revision=6), credit_risk=CREDIT))
    found.update(102, sealed(credit_risk=CREDIT))
    assert list(found.records) == ["credit_risk"]


def test_an_unknown_model_is_refused_naming_those_there_are() -> None:
    with pytest.raises(Refused) as caught:
        catalog(churn=record(), credit_risk=CREDIT).record("chrun")
    assert caught.value.reason is Reason.MODEL_UNKNOWN
    assert caught.value.message == "there is no model 'chrun'; there are: churn, credit_risk"


def test_no_model_is_a_violation_of_the_field() -> None:
    with pytest.raises(Refused) as caught:
        catalog(churn=record()).record("")
    assert caught.value.reason is Reason.INPUT_INVALID
    assert [(v.field, v.description) for v in caught.value.violations] == [("model_id", "not sent; there are: churn")]


def test_an_endless_name_is_not_repeated_in_full() -> None:
    with pytest.raises(Refused) as caught:
        catalog().record("x" * 100_000)
    assert len(caught.value.message) < 200


def test_the_bound_on_rows_is_a_setting() -> None:
    found = Catalog(KEY.public_key(), max_rows=2)
    found.update(1, sealed(churn=record()))
    checked = found.record("churn").versions["1.0.0"].admission
    checked.draft(Request("churn", rows=[[1, 1]] * 2))
    with pytest.raises(Refused, match="expected at most 2 rows in one request, got 3"):
        checked.draft(Request("churn", rows=[[1, 1]] * 3))
