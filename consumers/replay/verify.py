"""Verification: would the same version answer the same again, to the last bit?

A call is made again with the rows that it had, in their order, since a linear model answers a row otherwise in its last
bits in another batch; by the engine and with the threads that it was made with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from consumers.model.model import PredictFailed
from consumers.replay.calls import Call
from consumers.replay.recorded import RecordedEvent, Unreadable
from consumers.replay.runtimes import differences, threads_of
from consumers.replay.verdict import Compared, Outcome, Verdict, Why, compare
from consumers.replay.versions import Loaded, VersionGone, Versions, VersionUnloadable


class Verifier:
    """Makes recorded calls again, by versions of `versions`; `runtimes` are the records by runtime_id, JSON."""

    def __init__(self, versions: Versions, runtimes: Mapping[str, str | bytes]) -> None:
        self._versions = versions
        self._runtimes = runtimes
        self._told: dict[tuple[str, str, str, int], tuple[str, ...]] = {}
        self.calls = 0
        """Predict calls that were made again."""

    def verify(self, call: Call) -> Iterator[Verdict]:
        """A verdict for each event of it that was asked for."""
        open_events: list[RecordedEvent] = []
        for event in call.wanted:
            if not event.was_predicted:
                yield Verdict(event, Outcome.NOT_PREDICTED, _never(event))
            elif why := _lacking(event, call):
                yield Verdict(event, Outcome.NOT_REPRODUCIBLE, why)
            else:
                open_events.append(event)
        if open_events:
            yield from self._again(call, open_events)

    def _again(self, call: Call, events: list[RecordedEvent]) -> Iterator[Verdict]:
        record = self._runtimes.get(call.runtime_id)
        try:
            loaded = self._versions.load(call.model_id, call.version, call.digest, threads_of(record))
            rows = call.inputs()
        except VersionGone as error:
            why = Why.UNLOADABLE if isinstance(error, VersionUnloadable) else Why.GONE
            yield from _all(events, why, str(error))
            return
        except Unreadable as error:
            yield from _all(events, Why.BROKEN, str(error))
            return
        self.calls += 1
        failed, columns = "", []
        try:
            columns = loaded.predict(rows, call.engine)
        except (PredictFailed, ValueError) as error:
            failed = f"the model fails on it now: {error}"
        differs = self._differing(call, record, loaded)
        for event in events:
            try:
                compared = (
                    Compared((), event.rows, 0.0) if failed else compare(event.outputs(), columns, event.position)
                )
            except Unreadable as error:
                yield Verdict(event, Outcome.NOT_REPRODUCIBLE, Why.BROKEN, str(error))
                continue
            yield _judged(call, event, compared, differs, failed)

    def _differing(self, call: Call, record: str | bytes | None, loaded: Loaded) -> tuple[str, ...]:
        """What differs between what predicted then and what predicted now."""
        here, engine = loaded.runtime, loaded.model.engine
        key = call.digest, call.runtime_id, f"{call.engine}\0{engine}\0{here.runtime_id}", loaded.model.threads
        if key not in self._told:
            found: tuple[str, ...] = ()
            if call.runtime_id != here.runtime_id:
                found = differences(record, here.body, loaded.libraries)
            if engine != call.engine:
                found += (f"engine: {call.engine or 'unknown'} then, {engine} here",)
            self._told[key] = found
        return self._told[key]


def _never(event: RecordedEvent) -> str:
    return event.status if not event.error else f"{event.status}: {event.error}"


def _lacking(event: RecordedEvent, call: Call) -> str:
    """What of a predicted event is not on record, so that nothing can be made again; empty where all is."""
    if event.is_erased:
        return Why.ERASED
    if not event.outputs_text and not event.exact:
        return Why.NO_ANSWER
    if not event.batch_id or not call.rows or not event.digest:
        return Why.NO_CALL
    return ""


def _judged(call: Call, event: RecordedEvent, compared: Compared, differs: tuple[str, ...], failed: str) -> Verdict:
    if differs:
        return Verdict(event, Outcome.RUNTIME_DIFFERS, "", failed, compared, differs)
    if not compared.count:
        return Verdict(event, Outcome.REPRODUCED)
    if not call.is_whole:
        detail = "some rows of its predict call are not in the log with it, and without them the answer is another"
        return Verdict(event, Outcome.NOT_REPRODUCIBLE, Why.INCOMPLETE, failed or detail, compared)
    return Verdict(event, Outcome.DIFFERENT, "", failed, compared)


def _all(events: list[RecordedEvent], why: Why, detail: str) -> Iterator[Verdict]:
    for event in events:
        yield Verdict(event, Outcome.NOT_REPRODUCIBLE, why, detail)
