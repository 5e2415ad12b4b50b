"""Times on the command line: RFC 3339, a date, or how long ago."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from millstream.cli.errors import USAGE, CommandFailed

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

_AGO = re.compile(r"([0-9]{1,9})\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(text: str, option: str, now: datetime | None = None) -> datetime:
    """The time a text means; without a zone it is UTC. Raises CommandFailed naming the option."""
    plain = text.strip()
    try:
        if ago := _AGO.fullmatch(plain):
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[ago[2]]: int(ago[1])})
        found = datetime.fromisoformat(plain)
        return found.astimezone(UTC) if found.tzinfo else found.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        expected = "a time such as 2026-01-31T09:30:00Z, a date, or how long ago: 30s, 10m, 2h, 7d"
        raise CommandFailed(f"{option}: expected {expected}; got {text!r}", USAGE) from None


def put(stamp: Timestamp, text: str, option: str) -> None:
    """Sets a message's field where the option was given."""
    if text:
        stamp.FromDatetime(moment(text, option))


def told(stamp: Timestamp) -> str:
    """A message's time as RFC 3339 in UTC, to the microsecond; empty where it is not set."""
    if not stamp.seconds and not stamp.nanos:
        return ""
    return stamp.ToDatetime(tzinfo=UTC).isoformat(timespec="microseconds")
