"""Refusals: stable codes that belong to one status each, and the same after a reply was stored."""

from __future__ import annotations

import grpc
import pytest

from contract.errors import REASONS, Code, Reason, Refused, Violation, invalid
from protos import millstream_v1_pb2 as v1


@pytest.mark.parametrize("code", list(Code))
def test_codes_have_grpcs_own_numbers(code: Code) -> None:
    assert grpc.StatusCode[code.name].value[0] == code.value


def test_every_reason_is_found_by_its_text() -> None:
    assert {reason.name: reason for reason in Reason} == REASONS
    assert all(reason.text == reason.name for reason in Reason)


@pytest.mark.parametrize("reason", list(Reason))
def test_a_refusal_survives_being_stored(reason: Reason) -> None:
    refused = Refused(reason, "why", (Violation("age", "expected an int, got 'x'"), Violation("clicks", "not sent")))
    came = Refused.from_error(v1.Error.FromString(refused.to_error().SerializeToString()))
    assert (came.reason, came.message, came.violations) == (refused.reason, refused.message, refused.violations)
    assert refused.to_error().code == reason.code.value


def test_a_reason_of_a_later_release_is_internal() -> None:
    assert Refused.from_error(v1.Error(reason="SOMETHING_NEW", message="why")).reason is Reason.INTERNAL


def test_a_refusal_says_its_message() -> None:
    assert str(Refused(Reason.INTERNAL, "why")) == "why"


def test_one_violation_is_the_message_and_several_are_counted() -> None:
    one, other = Violation("age", "not sent"), Violation("clicks", "not sent")
    assert invalid([one]).message == "age: not sent"
    assert invalid([one, other]).message == "age: not sent (and 1 more)"
    assert invalid([one, other]).violations == (one, other)
