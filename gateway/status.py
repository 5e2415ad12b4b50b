"""Refusals as gRPC statuses with google.rpc details."""

from __future__ import annotations

import secrets

import grpc
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from contract.errors import Reason, Refused

DOMAIN = "millstream"
MOST_VIOLATIONS_BYTES = 3200
MOST_MESSAGE_BYTES = 1000
"""Status and details travel in headers, of which a gRPC peer takes 8 kB in all: the message once percent-encoded, and
once more with the details in base64."""
MOST_TEXT = 300

log = structlog.get_logger()


def status_of(refused: Refused, request_id: str = "") -> grpc.Status:
    """The status a unary call ends with: ErrorInfo always, BadRequest and RetryInfo where they apply."""
    info = error_details_pb2.ErrorInfo(reason=refused.reason.text, domain=DOMAIN)
    if request_id:
        info.metadata["request_id"] = request_id[:MOST_TEXT]
    details = [_packed(info)]
    if refused.violations:
        bad = error_details_pb2.BadRequest()
        for v in refused.violations:
            bad.field_violations.add(field=_short(v.field, MOST_TEXT), description=_short(v.description, MOST_TEXT))
            if bad.ByteSize() > MOST_VIOLATIONS_BYTES:
                # The message says how many there are.
                del bad.field_violations[-1]
                break
        details.append(_packed(bad))
    if refused.retry_after_s is not None:
        delay = Duration()
        delay.FromMilliseconds(int(refused.retry_after_s * 1000))
        details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
    message = _short(refused.message, MOST_MESSAGE_BYTES)
    status = status_pb2.Status(code=refused.reason.code.value, message=message, details=details)
    return rpc_status.to_status(status)  # type: ignore[no-any-return]


def internal(error: BaseException, call: str) -> Refused:
    """What a caller is told of a fault of ours: an id to name; the rest is logged, since it may hold secrets."""
    mark = secrets.token_hex(4)
    log.error("a call failed", call=call, error_id=mark, exc_info=error)
    return Refused(Reason.INTERNAL, f"internal error {mark}; the server's log has the rest")


def _short(text: str, most: int) -> str:
    """As much of a text as takes `most` bytes when it is percent-encoded."""
    if len(text) * 12 <= most:
        return text
    size = 0
    for place, character in enumerate(text):
        size += 1 if " " <= character <= "~" and character != "%" else 3 * len(character.encode(errors="replace"))
        if size > most:
            return text[:place]
    return text


def _packed(
    message: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> AnyMessage:
    out = AnyMessage()
    out.Pack(message)
    return out
