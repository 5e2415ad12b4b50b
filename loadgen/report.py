"""What a load run saw, as numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

LONGEST_US = 600_000_000
DIGITS = 3


@dataclass(frozen=True, slots=True)
class Report:
    """One run: how many requests ended how, and how long the answered ones took (milliseconds)."""

    requests: int
    """All that ended, errors included."""
    seconds: float
    users: int = 0
    """Of a closed loop; 0 for an open one."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """gRPC status name -> count."""
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    offered_per_s: float = 0.0
    """Requests that an open loop asked a second, on average; 0 for a closed one."""
    lag_ms: float = 0.0
    """How late the open loop itself was, at its 99th percentile: latencies shorter than that are not to be trusted."""

    @property
    def answered(self) -> int:
        """Requests that ended with an answer."""
        return self.requests - sum(self.errors.values())

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds if self.seconds else 0.0

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "requests": self.requests,
            "answered": self.answered,
            "errors": dict(self.errors),
            "seconds": round(self.seconds, 3),
            **({"users": self.users} if self.users else {}),
            **({"offered_per_s": round(self.offered_per_s, 1), "lag_ms": self.lag_ms} if self.offered_per_s else {}),
            "answers_per_s": round(self.rate, 1),
            "p50_ms": self.p50_ms,
            "p95_ms": self.p95_ms,
            "p99_ms": self.p99_ms,
            "max_ms": self.max_ms,
        }


class Tally:
    """Counts while a run goes on; latencies go into an HDR histogram: three digits, one microsecond to ten minutes."""

    def __init__(self) -> None:
        self._latencies = HdrHistogram(1, LONGEST_US, DIGITS)
        self._lags = HdrHistogram(1, LONGEST_US, DIGITS)
        self.errors: Counter[str] = Counter()
        self.answered = 0

    @property
    def ended(self) -> int:
        """Requests that ended, whichever way."""
        return self.answered + sum(self.errors.values())

    def answer(self, seconds: float) -> None:
        """One request was answered after that time."""
        self.answered += 1
        self._latencies.record_value(_us(seconds))

    def lag(self, seconds: float) -> None:
        """One request was asked so long after it should have been."""
        self._lags.record_value(_us(seconds))

    def error(self, status: str) -> None:
        """One request ended with that gRPC status."""
        self.errors[status] += 1

    def percentile_ms(self, percent: float) -> float:
        """The latency that this share of the answers did not exceed, in milliseconds; 0 without answers."""
        return float(self._latencies.get_value_at_percentile(percent)) / 1e3 if self.answered else 0.0

    def report(self, seconds: float, users: int = 0, offered_per_s: float = 0.0) -> Report:
        """What was counted so far."""
        return Report(
            requests=self.ended,
            seconds=seconds,
            users=users,
            errors=dict(self.errors),
            p50_ms=self.percentile_ms(50),
            p95_ms=self.percentile_ms(95),
            p99_ms=self.percentile_ms(99),
            max_ms=self.percentile_ms(100),
            offered_per_s=offered_per_s,
            lag_ms=float(self._lags.get_value_at_percentile(99)) / 1e3 if offered_per_s else 0.0,
        )


def _us(seconds: float) -> int:
    return min(max(int(seconds * 1e6), 1), LONGEST_US)
