"""The ledger: the whole history of a model, read afterwards and held against what was promised.

Three books have to agree: what callers were told, what Redis counted and kept, and the events, as they stand in the
stream or in the event log. Every line in which they do not is told, not the first.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import orjson
import redis

from contract.connection import living
from contract.keys import GROUP, ORPHANS, Keys
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.faults.crowd import Told
from tests.stage import Stage, outputs

COMPUTED = ("OK", "FAILED", "INVALID", "POISON")
"""Statuses with a reply that is kept; what expired or was withdrawn was never computed, and may be asked again."""
LATE = ("DEADLINE_PASSED", "DEADLINE_EXCEEDED")
MOST_TOLD = 50


@dataclass(frozen=True, slots=True)
class Recorded:
    """One event."""

    request_id: str
    lane: str
    entry_id: str
    status: str
    reason: str
    out: float | None
    """The answer, where there is one."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """One model's books in Redis."""

    client: redis.Redis
    keys: Keys
    model_id: str

    def closed(
        self,
        events: Sequence[Recorded],
        told: Mapping[str, Told] | None = None,
        *,
        pushed: Collection[str] = (),
        reasons: Collection[str] = (),
        supervised: bool = True,
    ) -> None:
        """Asserts that the books agree, once nothing waits any more; prints every violation.

        `told` is what callers were told, `pushed` the ids that were acknowledged on the bulk lane. `reasons` are those
        that a caller may have been given instead of an answer, beside a deadline that did pass. Where workers died that
        were not `supervised`, or their supervisor with them, their names are left to be forgotten some time later.
        """
        found = [*self.left_over(), *self.miscounted(events), *_twice(events)]
        found += self.strangers() if supervised else []
        found += _untrue(events, told or {}, reasons)
        recorded = {event.request_id for event in events if event.status in COMPUTED}
        found += [f"{each}: acknowledged on the bulk lane and not recorded" for each in pushed if each not in recorded]
        for line in found[:MOST_TOLD]:
            print("violation:", line)
        assert found == [], f"{len(found)} violations, the first: {found[0]}"

    def drained(self, within: float = 60.0) -> None:
        """Waits until both lanes are empty."""
        names = self.keys.model(self.model_id)
        eventually(lambda: sum(int(self.client.xlen(n)) for n in (names.requests, names.bulk)) == 0, within)

    def left_over(self) -> list[str]:
        """What stays behind in Redis of requests that are done: nothing may."""
        names, client = self.keys.model(self.model_id), self.client
        found = []
        for stream, counter in ((names.requests, names.rows_requests), (names.bulk, names.rows_bulk)):
            if waiting := client.xlen(stream):
                found.append(f"{stream}: {waiting} entries wait")
            if rows := int(client.get(counter) or 0):
                found.append(f"{counter}: says {rows}, expected 0")
            pending: Any = client.xpending(stream, GROUP)
            if pending["pending"]:
                found.append(f"{stream}: {pending['pending']} entries are pending")
        for name in (names.lone, names.crashes):
            if client.exists(name):
                found.append(f"{name}: is still there")
        keys = list(client.scan_iter(names.reply("*"), count=1000))
        states: Any = client.mget(keys) if keys else []
        for key, raw in zip(keys, states, strict=True):
            if raw is not None and not wire.ReplyState.FromString(raw).response:
                found.append(f"{key.decode()}: pending, and no entry waits")
        return found

    def strangers(self) -> list[str]:
        """Consumers of processes that are gone."""
        names = self.keys.model(self.model_id)
        alive = {presence.name for presence in living(self.client, self.keys, "worker")} | {ORPHANS}
        found = []
        for stream in (names.requests, names.bulk):
            consumers: Any = self.client.xinfo_consumers(stream, GROUP)
            gone = {each["name"].decode() for each in consumers} - alive
            found += [f"{stream}: consumer {name} is of no living worker" for name in sorted(gone)]
        return found

    def miscounted(self, events: Sequence[Recorded]) -> list[str]:
        """accepted + copies = completed = events."""
        counts: Any = self.client.hgetall(self.keys.model(self.model_id).count)
        accepted, copies, completed = (int(counts.get(name, 0)) for name in (b"accepted", b"copies", b"completed"))
        if accepted + copies == completed == len(events):
            return []
        return [f"{accepted} accepted, {copies} copies, {completed} completed, {len(events)} events"]


def closed(stage: Stage, model_id: str, told: Mapping[str, Told] | None = None, **more: Any) -> None:
    """The books of a model on a stage, where nobody takes events out of their stream."""
    book = Ledger(stage.redis, stage.keys, model_id)
    book.drained()
    book.closed(streamed(stage.redis, stage.keys, model_id), told, **more)


def streamed(client: redis.Redis, keys: Keys, model_id: str) -> list[Recorded]:
    """A model's events that stand in their stream; asserts that none of them is missing between two others."""
    entries: Any = client.xrange(keys.model(model_id).events)
    found: list[Recorded] = []
    before = None
    for _, fields in entries:
        events = wire.EventBatch.FromString(fields[b"pb"]).events
        number = int(fields[b"n"])
        assert before is None or before + len(events) == number, f"{before} events, {len(events)} more make {number}"
        found += [_in_stream(event) for event in events]
        before = number
    return found


def logged(address: str, model_id: str) -> list[Recorded]:
    """A model's events as a sink has them in its log."""
    query = v1.EventQuery(model_id=model_id, oldest_first=True, limit=100_000)
    with grpc.insecure_channel(address) as channel:
        stub: Any = v1_grpc.EventLogStub(channel)
        return [_in_log(event) for event in stub.Query(query, timeout=60)]


def _in_log(event: v1.ModelEvent) -> Recorded:
    rows = orjson.loads(event.outputs_json or "null") or [{}]
    return Recorded(
        event.request_id, event.lane, event.entry_id, event.status, event.error_reason, (rows[0] or {}).get("out")
    )


def _in_stream(event: wire.Event) -> Recorded:
    rows = outputs(event.response)
    out = rows[0].get("out") if rows else None
    return Recorded(
        event.entry.request_id,
        wire.Lane.Name(event.lane),
        event.entry_id,
        wire.Status.Name(event.status),
        event.response.error.reason,
        out if isinstance(out, float) else None,
    )


def _twice(events: Iterable[Recorded]) -> list[str]:
    """Entries with two events, and ids that were computed twice."""
    entries = Counter((event.lane, event.entry_id, event.status == "SHADOW") for event in events)
    computed = Counter(event.request_id for event in events if event.status in COMPUTED)
    found = [f"{lane} {entry_id}: {count} events" for (lane, entry_id, _), count in entries.items() if count > 1]
    return [*found, *(f"{each}: computed {count} times" for each, count in computed.items() if count > 1)]


def _untrue(events: Iterable[Recorded], told: Mapping[str, Told], reasons: Collection[str]) -> list[str]:
    """Callers who were told something that is not so."""
    by_id: dict[str, list[Recorded]] = defaultdict(list)
    for event in events:
        by_id[event.request_id].append(event)
    found = []
    for request_id, said in told.items():
        computed = [event for event in by_id[request_id] if event.status in COMPUTED]
        if said.ended == "OK":
            if said.response is None or outputs(said.response) != [{"out": 2 * said.x}]:
                found.append(f"{request_id}: asked with {said.x}, answered {said.response}")
            if [event.status for event in computed] != ["OK"]:
                found.append(f"{request_id}: answered, and recorded as {computed}")
            elif computed[0].out not in (None, 2 * said.x):
                found.append(f"{request_id}: asked with {said.x}, recorded as {computed[0].out}")
        elif said.ended in LATE:
            if said.seconds < said.deadline_s - 0.1:
                found.append(f"{request_id}: {said.ended} after {said.seconds:.2f} of {said.deadline_s:g} s")
        elif said.ended not in reasons:
            why = f"{said.ended} ({said.message}) after {said.seconds:.2f} s"
            found.append(f"{request_id}: told {why}; recorded as {by_id[request_id]}")
    return found
