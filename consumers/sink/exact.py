"""Which events are not given by the columns of their rows: those are kept as they stood in the stream.

`canonical.join_event` is what is made of a row. It takes a model id, a version and a digest, an id and times of the
answer from where the request has them, which is how every process of ours writes them; whoever writes otherwise, or in
another encoding, is found here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

FIRST_US, LAST_US = -62_135_596_800_000_000, 253_402_300_800_000_000
"""The years 1 to 9999; a time outside of them is none."""

COMPUTED = frozenset((wire.OK, wire.SHADOW))
"""Events of the header's predict call."""

_SECOND_US = 1_000_000


def micros(stamp: Timestamp) -> int:
    """Microseconds since the Unix epoch; 0 for what no calendar has."""
    at = stamp.seconds * _SECOND_US + stamp.nanos // 1000
    return at if FIRST_US < at < LAST_US else 0


def _is(stamp: Timestamp, at: int) -> bool:
    """Whether it says this time and nothing more."""
    seconds, rest = divmod(at, _SECOND_US)
    return stamp.seconds == seconds and stamp.nanos == rest * 1000


@dataclass(slots=True)
class Gathered:
    """What was read of each event of a link already. (Not frozen: one is made for each link.)"""

    model_id: str
    header: wire.Header
    events: Sequence[wire.Event]
    entries: Sequence[wire.Entry]
    responses: Sequence[v1.PredictResponse]
    statuses: Sequence[int]
    request_ids: Sequence[str]
    versions: Sequence[str]
    digests: Sequence[bytes]
    asked: Sequence[int]
    some: wire.Event
    """All of them merged into one: a field that is unset in it is unset in each."""

    def odd(self, lossy: Sequence[Sequence[bool]], times: Iterable[NDArray[Any]]) -> set[int]:
        """Places of those whose columns do not say everything, though their encoding is canonical."""
        found: set[int] = set()
        count, responses, some = len(self.events), self.responses, self.some
        for flags in lossy:
            if True in flags:
                found.update(_places(flags))
        own = [self.model_id] * count
        _differ(found, [entry.model_id for entry in self.entries], own)
        _differ(found, [response.model_id for response in responses], own)
        _differ(found, self.request_ids, [response.request_id for response in responses])
        _differ(found, self.versions, [response.version for response in responses])
        if self.header.version and "" in self.versions:
            found.update(_places(not version for version in self.versions))
        if self.header.digest and b"" in self.digests:
            found.update(_places(not digest for digest in self.digests))
        if some.entry.degraded or some.response.degraded:
            answered = [response.degraded for response in responses]
            _differ(found, answered, [entry.degraded for entry in self.entries])
        if some.response.pending:
            found.update(_places(response.pending for response in responses))
        if some.response.predictions and some.response.columns:
            found.update(_places(response.predictions and response.columns for response in responses))
        self._odd_times(found, times)
        return found

    def _odd_times(self, found: set[int], times: Iterable[NDArray[Any]]) -> None:
        every = np.concatenate(list(times))
        if every.min() <= FIRST_US or every.max() >= LAST_US:
            wrong = ((every <= FIRST_US) | (every >= LAST_US)).reshape(-1, len(self.events))
            found.update(np.flatnonzero(wrong.any(axis=0)).tolist())
        # What has no time of its own gets that of its append.
        if 0 in self.asked:
            found.update(_places(not asked for asked in self.asked))
        stamps = [response.user_request_timestamp for response in self.responses]
        _differ(found, [stamp.seconds for stamp in stamps], [asked // _SECOND_US for asked in self.asked])
        _differ(found, [stamp.nanos for stamp in stamps], [asked % _SECOND_US * 1000 for asked in self.asked])
        found.update(_places(self._odd_prediction_times()))

    def _odd_prediction_times(self) -> list[bool]:
        computed_us = self.header.predicted_us
        if computed_us and COMPUTED.issuperset(self.statuses):
            seconds, rest = divmod(computed_us, _SECOND_US)
            try:
                expected = Timestamp(seconds=seconds, nanos=rest * 1000)
            except ValueError:
                return [True] * len(self.events)
            return [response.predicted_at_timestamp != expected for response in self.responses]
        return [
            not _is(response.predicted_at_timestamp, at) or (not at and response.HasField("predicted_at_timestamp"))
            for response, at in zip(self.responses, self.predicted(), strict=True)
        ]

    def predicted(self) -> list[int]:
        """When the predict call of each ended; the header's time is not that of one which was never computed."""
        return [
            self.header.predicted_us if status in COMPUTED else micros(response.predicted_at_timestamp)
            for status, response in zip(self.statuses, self.responses, strict=True)
        ]


def exact_column(odd: set[int], serialized: Sequence[bytes], pieces: Sequence[bytes]) -> NDArray[Any] | None:
    """The column `exact`: the bytes of those that are odd or in another encoding; None where there are none.

    `serialized` are the events in the canonical one.
    """
    _differ(odd, serialized, pieces)
    if not odd:
        return None
    column = np.full(len(pieces), None, dtype=object)
    for row in odd:
        column[row] = pieces[row]
    return column


def _places(flags: Iterable[object]) -> list[int]:
    return [row for row, flag in enumerate(flags) if flag]


def _differ(found: set[int], left: Sequence[object], right: Sequence[object]) -> None:
    """Adds the places at which they differ."""
    if left != right:
        found.update(row for row, (one, other) in enumerate(zip(left, right, strict=True)) if one != other)
