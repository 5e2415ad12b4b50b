"""Refusals: a stable reason, a status code and every violation at once."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from protos import millstream_v1_pb2 as v1


class Code(Enum):
    """The google.rpc.Code values in use; the numbers are gRPC's own."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    INTERNAL = 13
    UNAVAILABLE = 14


class Reason(Enum):
    """Stable codes for programs; each belongs to one status code."""

    MALFORMED = ("MALFORMED", Code.INVALID_ARGUMENT)
    INPUT_INVALID = ("INPUT_INVALID", Code.INVALID_ARGUMENT)
    FEATURES_UNAVAILABLE = ("FEATURES_UNAVAILABLE", Code.UNAVAILABLE)
    MODEL_UNKNOWN = ("MODEL_UNKNOWN", Code.NOT_FOUND)
    VERSION_UNKNOWN = ("VERSION_UNKNOWN", Code.NOT_FOUND)
    VERSION_UNAVAILABLE = ("VERSION_UNAVAILABLE", Code.UNAVAILABLE)
    RESULT_UNKNOWN = ("RESULT_UNKNOWN", Code.NOT_FOUND)
    REQUEST_ID_REUSED = ("REQUEST_ID_REUSED", Code.ALREADY_EXISTS)
    QUEUE_FULL = ("QUEUE_FULL", Code.RESOURCE_EXHAUSTED)
    STORE_FULL = ("STORE_FULL", Code.RESOURCE_EXHAUSTED)
    EVENTS_BACKLOG = ("EVENTS_BACKLOG", Code.RESOURCE_EXHAUSTED)
    STORE_UNAVAILABLE = ("STORE_UNAVAILABLE", Code.UNAVAILABLE)
    DRAINING = ("DRAINING", Code.UNAVAILABLE)
    DEADLINE_PASSED = ("DEADLINE_PASSED", Code.DEADLINE_EXCEEDED)
    WITHDRAWN = ("WITHDRAWN", Code.CANCELLED)
    MODEL_FAILED = ("MODEL_FAILED", Code.INTERNAL)
    MODEL_CRASHED = ("MODEL_CRASHED", Code.INTERNAL)
    INTERNAL = ("INTERNAL", Code.INTERNAL)

    def __init__(self, text: str, code: Code) -> None:
        self.text = text
        self.code = code


REASONS = {reason.text: reason for reason in Reason}
"""Reasons by their stable code."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One thing wrong with a request: the feature or field, what was expected and what came."""

    field: str
    description: str


class Refused(Exception):
    """A request that is answered with an error instead of a prediction."""

    def __init__(
        self,
        reason: Reason,
        message: str,
        violations: tuple[Violation, ...] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = violations
        self.retry_after_s = retry_after_s

    def to_error(self) -> v1.Error:
        """The same as a message, where a reply is streamed or stored."""
        return v1.Error(
            reason=self.reason.text,
            message=self.message,
            code=self.reason.code.value,
            violations=[v1.Violation(field=v.field, description=v.description) for v in self.violations],
        )

    @classmethod
    def from_error(cls, error: v1.Error) -> Refused:
        """The refusal that a stored reply holds."""
        violations = tuple(Violation(v.field, v.description) for v in error.violations)
        return cls(REASONS.get(error.reason, Reason.INTERNAL), error.message, violations)


class StoreFailed(Exception):
    """The feature store was late, gone, or refused; the message says which."""


def invalid(violations: list[Violation]) -> Refused:
    """All violations of one request as one refusal; the message names the first and counts the rest."""
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    return Refused(Reason.INPUT_INVALID, f"{first.field}: {first.description}{more}", tuple(violations))
