"""What a caller gets back: an answer, a request that is still pending, or one of the errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

from contract.errors import Code, Violation
from contract.request import Native, native
from protos import millstream_v1_pb2 as v1

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Answer:
    """The named outputs of every row of one request."""

    request_id: str
    model_id: str
    version: str
    user_request_timestamp: datetime | None = None
    """When the request came in, in UTC."""
    predicted_at_timestamp: datetime | None = None
    """When the model had answered, in UTC."""
    degraded: bool = False
    """The feature store was late or gone, and a fallback value was used."""
    columns: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Output name -> one value per row, where packed `rows` were sent; empty otherwise. Null is NaN or None."""
    _rows: Sequence[Mapping[str, Native]] = field(default=(), repr=False)

    @classmethod
    def from_message(cls, message: v1.PredictResponse) -> Answer:
        """From a response that is neither pending nor an error."""
        return cls(
            request_id=message.request_id,
            model_id=message.model_id,
            version=message.version,
            user_request_timestamp=_moment(message, "user_request_timestamp"),
            predicted_at_timestamp=_moment(message, "predicted_at_timestamp"),
            degraded=message.degraded,
            columns={output.name: _array(output.column) for output in message.columns},
            # A map has no order of its own: by name, so that the same answer always reads the same.
            _rows=[{name: native(row.outputs[name]) for name in sorted(row.outputs)} for row in message.predictions],
        )

    @property
    def predictions(self) -> list[dict[str, Native]]:
        """One dict of named outputs per row, in the order of the rows that were sent."""
        if not self.columns:
            return [dict(row) for row in self._rows]
        names = list(self.columns)
        table = zip(*(column.tolist() for column in self.columns.values()), strict=True)
        return [dict(zip(names, row, strict=True)) for row in table]

    @property
    def outputs(self) -> dict[str, Native]:
        """The named outputs of the one row: `{"churn_probability": 0.85}`. Raises ValueError for several rows."""
        rows = self.predictions
        if len(rows) != 1:
            raise ValueError(f"`outputs` is for one row, this answer has {len(rows)}: use `predictions` or `columns`")
        return rows[0]

    def to_json(self) -> dict[str, Any]:
        """Plain values; times are RFC 3339."""
        return {
            "request_id": self.request_id,
            "model_id": self.model_id,
            "version": self.version,
            "predictions": self.predictions,
            "user_request_timestamp": self.user_request_timestamp and self.user_request_timestamp.isoformat(),
            "predicted_at_timestamp": self.predicted_at_timestamp and self.predicted_at_timestamp.isoformat(),
            "degraded": self.degraded,
        }


@dataclass(frozen=True, slots=True)
class Pending:
    """A request that was accepted and is not answered yet."""

    request_id: str
    model_id: str


class PredictionError(Exception):
    """A request that got no prediction; the subclasses say what kind of reason it was."""

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        request_id: str = "",
        violations: Sequence[Violation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        """A stable code such as INPUT_INVALID; empty where the server could not be asked."""
        self.request_id = request_id
        """Of the request this is about, where it is known."""
        self.violations = tuple(violations)
        """Everything that was wrong with the input: (field, description)."""
        self.retry_after = retry_after
        """Seconds after which asking again makes sense, where the server said so."""

    def to_json(self) -> dict[str, Any]:
        """Plain values, those that are known."""
        content: dict[str, Any] = {"error": self.reason or self.code.name, "message": self.message}
        if self.request_id:
            content["request_id"] = self.request_id
        if self.violations:
            content["violations"] = [{"field": v.field, "description": v.description} for v in self.violations]
        if self.retry_after is not None:
            content["retry_after"] = self.retry_after
        return content


class InvalidInput(PredictionError, ValueError):
    """The request does not fit the model's signature; `violations` names everything that is wrong."""

    code = Code.INVALID_ARGUMENT


class NotFound(PredictionError, LookupError):
    """No such model, version or result."""

    code = Code.NOT_FOUND


class AlreadyExists(PredictionError):
    """The request id was used before, for another request."""

    code = Code.ALREADY_EXISTS


class Overloaded(PredictionError):
    """Too much is waiting; `retry_after` says when to ask again."""

    code = Code.RESOURCE_EXHAUSTED


class Unavailable(PredictionError, ConnectionError):
    """Nothing answers at the address, or it can't serve this just now."""

    code = Code.UNAVAILABLE


class DeadlineExceeded(PredictionError, TimeoutError):
    """The answer did not come in time."""

    code = Code.DEADLINE_EXCEEDED


class Cancelled(PredictionError):
    """The request was withdrawn before a model saw it."""

    code = Code.CANCELLED


class ModelFailed(PredictionError):
    """The model raised, or took its process down, on this input."""

    code = Code.INTERNAL


_BY_CODE: dict[int, type[PredictionError]] = {
    kind.code.value: kind
    for kind in (InvalidInput, NotFound, AlreadyExists, Overloaded, Unavailable, DeadlineExceeded, Cancelled)
}
_MODEL_FAILURES = ("MODEL_FAILED", "MODEL_CRASHED")


def error_class(code: int, reason: str) -> type[PredictionError]:
    """The class of an error by its google.rpc.Code and its stable reason."""
    if reason in _MODEL_FAILURES:
        return ModelFailed
    return _BY_CODE.get(code, PredictionError)


def error_of(error: v1.Error, request_id: str = "") -> PredictionError:
    """The error that a streamed or stored reply holds."""
    return error_class(error.code, error.reason)(
        error.message,
        reason=error.reason,
        request_id=request_id,
        violations=[Violation(v.field, v.description) for v in error.violations],
    )


def outcome(message: v1.PredictResponse) -> Answer | Pending | PredictionError:
    """What a response holds, whichever it is; an error is returned, not raised."""
    if message.HasField("error"):
        return error_of(message.error, message.request_id)
    if message.pending:
        return Pending(message.request_id, message.model_id)
    return Answer.from_message(message)


def _moment(message: v1.PredictResponse, name: str) -> datetime | None:
    if not message.HasField(name):
        return None
    stamp: datetime = getattr(message, name).ToDatetime(tzinfo=UTC)
    return stamp


_DTYPES = {"doubles": "float64", "integers": "int64", "booleans": "bool", "strings": "object"}


def _array(column: v1.Column) -> npt.NDArray[Any]:
    # numpy loads in a tenth of a second, which a caller of single rows need not wait for.
    import numpy as np

    kind = column.WhichOneof("kind")
    if kind is None:
        return np.full(len(column.nulls), None, dtype=object)
    array: npt.NDArray[Any] = np.array(getattr(column, kind).values, dtype=_DTYPES[kind])
    if not column.nulls:
        return array
    if kind == "doubles":
        array[list(column.nulls)] = np.nan
        return array
    array = array.astype(object)
    array[list(column.nulls)] = None
    return array
