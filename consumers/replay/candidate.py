"""The candidate: a version that is asked what others were asked, on the code that workers run.

a recorded call  ->  its rows as the candidate takes them  ->  one predict call of as many rows  ->  a Comparison
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from threadpoolctl import threadpool_limits

from consumers.model.model import PredictFailed
from consumers.model.outputs import OutputColumn, OutputValues
from consumers.model.rows import Column, Rows
from consumers.replay.calls import Call
from consumers.replay.comparison import Comparison, Pair
from consumers.replay.fit import Fit, Fitted, Misfit
from consumers.replay.outputs import Terms
from consumers.replay.recorded import RecordedEvent, Unreadable
from consumers.replay.runtimes import differences
from consumers.replay.verdict import Why
from consumers.replay.versions import Loaded, VersionGone, Versions
from contract.signature import Feature

AT_ONCE = 4096
"""Answers that are added up together."""
ITS_OWN = "it was answered by the candidate itself"
UNLIKE = "none of the candidate's outputs was answered then"


class Candidate:
    """Asks `loaded`, whose hex digest is `digest`, again and again, and compares.

    `versions` tells what features the versions that answered have; `runtimes` are the records by runtime_id, JSON.
    What the candidate answered itself counts only with `own`.
    """

    def __init__(
        self,
        loaded: Loaded,
        digest: str,
        versions: Versions,
        runtimes: Mapping[str, str | bytes],
        terms: Terms,
        *,
        own: bool = False,
    ) -> None:
        self.loaded = loaded
        self.digest = digest
        self.comparison = Comparison(loaded.model.signature, loaded.model.outputs, terms)
        loaded.model.compile()
        threadpool_limits(limits=1)  # a library that came with it starts with as many threads as there are cores
        self.engines: Counter[str] = Counter()
        """What the candidate answered with -> predict calls."""
        self.unknown: dict[str, str] = {}
        """Versions that are not to be had, by name and digest, and why: their inputs count by position."""
        self._versions = versions
        self._runtimes = runtimes
        self._runtime_ids: Counter[str] = Counter()
        self._own = own
        self._fits: dict[str, Fit] = {}
        self._pairs: list[Pair] = []
        self._inputs: list[list[Column]] = [[] for _ in loaded.model.signature.features]
        self._now: list[list[OutputValues]] = [[] for _ in loaded.model.outputs]

    def take(self, call: Call) -> None:
        """Asks again what was asked for of a call. Whoever shared it is asked too, so that it is as large."""
        comparison = self.comparison
        events: list[RecordedEvent] = []
        for event in call.wanted:
            comparison.saw(event)
            if why := self._lacking(event):
                comparison.left_out.add(why)
            else:
                events.append(event)
        if not events:
            return
        try:
            rows = call.inputs() if call.rows else events[0].inputs()
            fitted = self._fit(call).of(rows)
        except Unreadable as error:
            for _ in events:
                comparison.left_out.add(Why.BROKEN, str(error))
            return
        fitting = [event for event in events if not self._misfits(event, fitted, _start(call, event))]
        if not fitting:
            return
        taken = fitted.taken()
        try:
            self._pair(call, fitting, fitted, self._asked(taken), 0)
        except PredictFailed:
            # As a worker does: whoever shares a call with a row that can't be answered is asked alone.
            for event in fitting:
                start = _start(call, event)
                try:
                    answer = self._asked(_cut(taken, start, event.rows))
                except PredictFailed as failed:
                    comparison.failed.add(str(failed), event.request_id)
                else:
                    self._pair(call, [event], fitted, answer, start)
        if len(self._pairs) >= AT_ONCE:
            self.settle()

    def settle(self) -> Comparison:
        """Adds up what came in so far."""
        if self._pairs:
            outputs = self.loaded.model.outputs
            now = [
                OutputColumn(name, kind, _values(parts)) for (name, kind), parts in zip(outputs, self._now, strict=True)
            ]
            self.comparison.add(self._pairs, [_column(parts) for parts in self._inputs], now)
            self._pairs, self._inputs, self._now = [], [[] for _ in self._inputs], [[] for _ in self._now]
        return self.comparison

    def runtime_differences(self) -> Counter[str]:
        """In what the runtimes that answered differ from this one -> requests."""
        found: Counter[str] = Counter()
        here = self.loaded.runtime
        for runtime_id, events in self._runtime_ids.items():
            if runtime_id != here.runtime_id:
                for each in differences(self._runtimes.get(runtime_id), here.body, self.loaded.libraries):
                    found[each] += events
        return found

    def _lacking(self, event: RecordedEvent) -> str:
        """Why an event is not compared; empty where it is."""
        if event.digest == self.digest and not self._own:
            return ITS_OWN
        if event.is_erased:
            return Why.ERASED
        if not event.was_predicted or (not event.outputs_text and not event.exact):
            return Why.NO_ANSWER
        return ""

    def _fit(self, call: Call) -> Fit:
        if call.digest not in self._fits:
            features: Sequence[Feature] | None = None
            try:
                loaded = self._versions.load(call.model_id, call.version, call.digest)
                features = loaded.model.signature.features
            except VersionGone as error:
                self.unknown[f"{call.version} ({call.digest[:12]})"] = str(error)
            self._fits[call.digest] = Fit(features, self.loaded.model.signature)
        return self._fits[call.digest]

    def _misfits(self, event: RecordedEvent, fitted: Fitted, start: int) -> bool:
        wrong: dict[Misfit, str] = {}
        for row in range(start, start + event.rows) if fitted.wrong else ():
            for misfit, came in fitted.wrong.get(row, {}).items():
                wrong.setdefault(misfit, came)
        if wrong:
            self.comparison.misfit(wrong)
        return bool(wrong)

    def _asked(self, rows: Rows) -> list[OutputColumn]:
        """Raises PredictFailed."""
        answer = self.loaded.model.predict(rows)
        self.engines[self.loaded.model.engine] += 1
        return answer

    def _pair(
        self, call: Call, events: Sequence[RecordedEvent], fitted: Fitted, answer: Sequence[OutputColumn], first: int
    ) -> None:
        """Recorded answers beside new ones; `first` is the row of the call that `answer` begins with."""
        names = {column.name for column in answer}
        for event in events:
            try:
                then = event.outputs()
            except Unreadable as error:
                self.comparison.left_out.add(Why.BROKEN, str(error))
                continue
            if not names & then[0].keys():
                self.comparison.left_out.add(UNLIKE, f"then: {', '.join(sorted(then[0]))}")
                continue
            start = _start(call, event)
            self._pairs += [Pair(event, row, each) for row, each in enumerate(then)]
            for kept, column in zip(self._inputs, fitted.columns, strict=True):
                kept.append(column[start : start + event.rows])
            for values, output in zip(self._now, answer, strict=True):
                values.append(output.values[start - first : start - first + event.rows])
            self._runtime_ids[event.runtime_id] += 1
            for name in self._fits[call.digest].defaulted:
                self.comparison.defaulted[name] += 1


def _start(call: Call, event: RecordedEvent) -> int:
    """Its first row among those that are asked together."""
    return event.position if call.rows else 0


def _cut(rows: Rows, start: int, number: int) -> Rows:
    if isinstance(rows, np.ndarray):
        return rows[start : start + number]
    return [column[start : start + number] for column in rows]


def _column(parts: Sequence[Column]) -> Column:
    if isinstance(parts[0], np.ndarray):
        return np.concatenate([np.asarray(part) for part in parts])
    return [value for part in parts for value in part]


def _values(parts: Sequence[OutputValues]) -> OutputValues:
    if isinstance(parts[0], list):
        return [value for part in parts for value in part]
    joined: OutputValues = np.concatenate(parts)
    return joined
