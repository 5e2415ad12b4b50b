"""What a load run saw, as numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from hdrh.histogram import HdrHistogram

LONGEST_US = 600_000_000
DIGITS = 3
PERCENTILES = (50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 99.99, 100.0)
"""Those that a table shows."""
_TICKS = 5
"""Points of the curve for each halving of what is above."""


@dataclass(frozen=True, slots=True)
class Moment:
    """What ended during about a second of a run; latencies in milliseconds, 0 where nothing was answered."""

    at: float
    """Its end, in seconds since the start."""
    seconds: float
    answered: int = 0
    failed: int = 0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds if self.seconds else 0.0


@dataclass(frozen=True, slots=True)
class ModelReport:
    """One model's part of a run; milliseconds."""

    answered: int
    p50_ms: float
    p99_ms: float
    max_ms: float


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
    mean_ms: float = 0.0
    percentiles: tuple[tuple[float, float], ...] = ()
    """(percent, milliseconds that so many of the answers did not exceed), those of PERCENTILES."""
    curve: tuple[tuple[float, float], ...] = ()
    """The same in fine steps, closer together towards the slowest."""
    moments: tuple[Moment, ...] = ()
    """The run second by second, by when requests ended."""
    models: Mapping[str, ModelReport] = field(default_factory=dict)
    """By model; empty where nothing was answered."""
    stopped: bool = False
    """It was ended early; what was under way then is not counted."""

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
            "stopped": self.stopped,
            **({"users": self.users} if self.users else {}),
            **({"offered_per_s": round(self.offered_per_s, 1), "lag_ms": self.lag_ms} if self.offered_per_s else {}),
            "answers_per_s": round(self.rate, 1),
            "mean_ms": round(self.mean_ms, 3),
            "p50_ms": self.p50_ms,
            "p95_ms": self.p95_ms,
            "p99_ms": self.p99_ms,
            "max_ms": self.max_ms,
            "percentiles_ms": {f"{percent:g}": ms for percent, ms in self.percentiles},
            "by_model": {name: asdict(each) for name, each in self.models.items()},
            "over_time": [asdict(each) for each in self.moments],
        }


class Tally:
    """Counts while a run goes on; latencies go into an HDR histogram: three digits, one microsecond to ten minutes."""

    def __init__(self) -> None:
        self._latencies: dict[str, HdrHistogram] = {}
        self._lags = _histogram()
        self._recent: list[float] = []
        self._moments: list[Moment] = []
        self._failed_before = 0
        self.errors: Counter[str] = Counter()
        self.answered = 0
        self.under_way = 0
        """Requests that were asked and have not ended yet."""

    @property
    def ended(self) -> int:
        """Requests that ended, whichever way."""
        return self.answered + sum(self.errors.values())

    @property
    def now(self) -> Moment:
        """The last whole second or so."""
        return self._moments[-1] if self._moments else Moment(0.0, 0.0)

    def answer(self, seconds: float, model_id: str = "") -> None:
        """One request to that model was answered after that time."""
        self.answered += 1
        self._recent.append(seconds)
        latencies = self._latencies.get(model_id)
        if latencies is None:
            latencies = self._latencies[model_id] = _histogram()
        latencies.record_value(_us(seconds))

    def lag(self, seconds: float) -> None:
        """One request was asked so long after it should have been."""
        self._lags.record_value(_us(seconds))

    def error(self, status: str) -> None:
        """One request ended with that gRPC status."""
        self.errors[status] += 1

    def tick(self, at: float) -> None:
        """Ends a moment, that many seconds after the start."""
        recent, self._recent = sorted(self._recent), []
        failed = sum(self.errors.values())
        before = self._moments[-1].at if self._moments else 0.0
        p50, p99, most = (recent[int((len(recent) - 1) * share)] * 1e3 if recent else 0.0 for share in (0.5, 0.99, 1))
        moment = Moment(at, at - before, len(recent), failed - self._failed_before, p50, p99, most)
        self._failed_before = failed
        self._moments.append(moment)

    def percentile_ms(self, percent: float) -> float:
        """The latency that this share of the answers did not exceed, in milliseconds; 0 without answers."""
        return _ms(self._whole(), percent)

    def report(self, seconds: float, users: int = 0, offered_per_s: float = 0.0, *, stopped: bool = False) -> Report:
        """What was counted so far."""
        if self._recent or sum(self.errors.values()) > self._failed_before:
            self.tick(seconds)
        whole = self._whole()
        return Report(
            requests=self.ended,
            seconds=seconds,
            users=users,
            errors=dict(self.errors),
            p50_ms=_ms(whole, 50),
            p95_ms=_ms(whole, 95),
            p99_ms=_ms(whole, 99),
            max_ms=_ms(whole, 100),
            offered_per_s=offered_per_s,
            lag_ms=_ms(self._lags, 99) if offered_per_s else 0.0,
            mean_ms=float(whole.get_mean_value()) / 1e3 if self.answered else 0.0,
            percentiles=tuple((percent, _ms(whole, percent)) for percent in PERCENTILES) if self.answered else (),
            curve=_curve(whole),
            moments=tuple(self._moments),
            models={
                name: ModelReport(each.total_count, _ms(each, 50), _ms(each, 99), _ms(each, 100))
                for name, each in sorted(self._latencies.items())
                if name
            },
            stopped=stopped,
        )

    def _whole(self) -> HdrHistogram:
        whole = _histogram()
        for each in self._latencies.values():
            whole.add(each)
        return whole


def _histogram() -> HdrHistogram:
    return HdrHistogram(1, LONGEST_US, DIGITS)


def _ms(histogram: HdrHistogram, percent: float) -> float:
    return float(histogram.get_value_at_percentile(percent)) / 1e3 if histogram.total_count else 0.0


def _curve(histogram: HdrHistogram) -> tuple[tuple[float, float], ...]:
    if not histogram.total_count:
        return ()
    steps = histogram.get_percentile_iterator(_TICKS)
    return tuple((float(step.percentile_level_iterated_to), float(step.value_iterated_to) / 1e3) for step in steps)


def _us(seconds: float) -> int:
    return min(max(int(seconds * 1e6), 1), LONGEST_US)
