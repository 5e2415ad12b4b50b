"""One model's lanes in a real Redis, and every script called as the processes call it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import redis

from contract.completion import BULK, INTERACTIVE, Item, Way, done_state, event, exit_calls, header, pending_state, wake
from contract.connection import Argument, ensure_groups, run
from contract.keys import GROUP, ORPHANS, Keys
from contract.scripts import CLAIM_IDS, ENTRANCE, EXIT, FORGET, GIVE_BACK, HAND_OVER, RENEW, RETRY
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

BODY = bytes(range(32))
OTHER_BODY = bytes(range(32, 64))
LEASE_MS = 60_000
"""Never over while a test runs, unless an entry was abandoned."""


class ModelLanes:
    """Both lanes of one model, with their consumer groups."""

    def __init__(self, client: redis.Redis, prefix: str, model_id: str = "churn") -> None:
        self.client = client
        self.model_id = model_id
        self.keys = Keys(prefix).model(model_id)
        ensure_groups(client, Keys(prefix), model_id)

    # ------------------------------------------------------------------ what the processes do

    def enter(
        self,
        *items: tuple[bytes, int, bytes, str],
        lane: wire.Lane = INTERACTIVE,
        bound: int = 10_000,
        ttl_s: int = 100,
    ) -> Any:
        """The entrance for (payload, rows, state, request id) each; `bound` is every item's own."""
        names = [self.stream(lane), self.rows_key(lane), self.keys.count]
        alike = len({rows for _, rows, _, _ in items}) == 1 and not any(state for _, _, state, _ in items)
        arguments: list[Argument] = [ttl_s, *((items[0][1], bound) if alike else ("", ""))]
        for payload, rows, state, request_id in items:
            arguments += [payload] if alike else [payload, rows, state, bound]
            if state:
                names.append(self.keys.reply(request_id))
        answers = run(self.client, ENTRANCE, names, arguments)
        return answers.split() if isinstance(answers, bytes) else answers

    def append(self, *request_ids: str, lane: wire.Lane = INTERACTIVE) -> list[bytes]:
        """Admitted requests of one row under ids that a gateway made; their entry ids."""
        ids: list[bytes] = self.enter(*[(entry(each), 1, b"", each) for each in request_ids], lane=lane)
        return ids

    def claim(self, *items: tuple[bytes, int, bytes, str], ttl_s: int = 100, routing: bytes = b"") -> list[int | bytes]:
        """claim_ids for (entry id, rows, body digest, request id) each, all of them routed alike."""
        names = [
            *(self.keys.bulk, self.keys.rows_bulk, self.keys.count, self.keys.dead, self.keys.crashes, self.keys.lone)
        ]
        arguments: list[Argument] = [GROUP, ttl_s]
        for entry_id, rows, body, request_id in items:
            names.append(self.keys.reply(request_id))
            arguments += [entry_id, rows, pending_state(body, BULK), routing]
        answers: list[int | bytes] = run(self.client, CLAIM_IDS, names, arguments)
        return answers

    def leave(self, *items: Item, head: wire.Header | None = None) -> list[int]:
        """The exit, in as many calls as it takes."""
        raw = header(head or wire.Header(model_id=self.model_id))
        answers: list[int] = []
        for call in exit_calls(self.keys, raw, items):
            answers += call.completed(run(self.client, EXIT, call.keys, call.arguments))
        return answers

    def abandon(self, *ids: bytes, consumer: str = "w1", lane: wire.Lane = INTERACTIVE) -> None:
        """Makes the leases of a consumer's entries run out now; not a delivery."""
        self.client.xclaim(self.stream(lane), GROUP, consumer, 0, list(ids), idle=2 * LEASE_MS, justid=True)

    def retry(
        self, consumer: str = "w2", *, lane: wire.Lane = INTERACTIVE, lease_ms: int = LEASE_MS, most: int = 2
    ) -> Any:
        """What retry answers, with the number of crashes in place of the names."""
        names = [self.stream(lane), self.keys.crashes, self.keys.lone]
        answer = run(self.client, RETRY, names, [GROUP, consumer, lease_ms, most])
        return answer if answer is None or len(answer) == 1 else [*answer[:2], len(answer[2].split()), answer[3]]

    def give_back(self, consumer: str) -> int:
        names = [self.keys.requests, self.keys.bulk, self.keys.crashes, self.keys.lone]
        answer: int = run(self.client, GIVE_BACK, names, [GROUP, consumer])
        return answer

    def forget(self, silence_ms: int, *, lane: wire.Lane = INTERACTIVE) -> int:
        answer: int = run(self.client, FORGET, [self.stream(lane)], [GROUP, silence_ms])
        return answer

    def renew(self, consumer: str, *ids: bytes, lane: wire.Lane = INTERACTIVE, lease_ms: int = LEASE_MS) -> int:
        answer: int = run(self.client, RENEW, [self.stream(lane), self.keys.lone], [GROUP, consumer, lease_ms, *ids])
        return answer

    def hand_over(self, consumer: str, *, lane: wire.Lane = INTERACTIVE, most: int = 512) -> int:
        answer: int = run(self.client, HAND_OVER, [self.stream(lane), self.keys.lone], [GROUP, consumer, ORPHANS, most])
        return answer

    def read(self, consumer: str = "w1", count: int = 1000, *, lane: wire.Lane = INTERACTIVE) -> list[bytes]:
        """The ids of what a worker reads."""
        answer: Any = self.client.xreadgroup(GROUP, consumer, {self.stream(lane): ">"}, count=count)
        streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer]
        return [entry_id for entries in streams for entry_id, _ in _flat(entries)]

    # ------------------------------------------------------------------ what is there

    def stream(self, lane: wire.Lane) -> str:
        return self.keys.bulk if lane == BULK else self.keys.requests

    def rows_key(self, lane: wire.Lane) -> str:
        return self.keys.rows_bulk if lane == BULK else self.keys.rows_requests

    def rows(self, lane: wire.Lane = INTERACTIVE) -> int:
        return int(self.client.get(self.rows_key(lane)) or 0)

    def counts(self) -> dict[str, int]:
        found: Mapping[bytes, bytes] = self.client.hgetall(self.keys.count)  # type: ignore[assignment]
        return {name.decode(): int(value) for name, value in found.items()}

    def state(self, request_id: str) -> wire.ReplyState | None:
        raw: Any = self.client.get(self.keys.reply(request_id))
        return None if raw is None else wire.ReplyState.FromString(raw)

    def batches(self) -> list[tuple[int, wire.EventBatch]]:
        """(running number, events) of each entry of the events stream."""
        entries: Any = self.client.xrange(self.keys.events)
        return [(int(fields[b"n"]), wire.EventBatch.FromString(fields[b"pb"])) for _, fields in entries]

    def events(self) -> list[str]:
        """The request ids that have an event, one for each event."""
        return [event.entry.request_id for _, batch in self.batches() for event in batch.events]

    def dead(self) -> list[dict[bytes, bytes]]:
        entries: Any = self.client.xrange(self.keys.dead)
        return [fields for _, fields in entries]

    def held(self, lane: wire.Lane = INTERACTIVE) -> dict[str, str]:
        """Entry id -> who holds it."""
        found: Any = self.client.xpending_range(self.stream(lane), GROUP, "-", "+", 1000)
        return {each["message_id"].decode(): each["consumer"].decode() for each in found}

    def deliveries(self, lane: wire.Lane = INTERACTIVE) -> dict[str, int]:
        found: Any = self.client.xpending_range(self.stream(lane), GROUP, "-", "+", 1000)
        return {each["message_id"].decode(): each["times_delivered"] for each in found}

    def tried(self, entry_id: bytes, lane: wire.Lane = INTERACTIVE) -> list[str]:
        """Who tried an entry alone and was not seen to live on."""
        mark = b"bulk " + entry_id if lane == BULK else entry_id
        names: Any = self.client.hget(self.keys.crashes, mark.decode())
        return (names or b"").decode().split()

    def consumers(self, lane: wire.Lane = INTERACTIVE) -> set[str]:
        found: Any = self.client.xinfo_consumers(self.stream(lane), GROUP)
        return {each["name"].decode() for each in found}

    def snapshot(self) -> dict[bytes, Any]:
        """Every key of the model with its value as the server would dump it, to see that nothing was written."""
        found: dict[bytes, Any] = {name: self.client.dump(name) for name in self.client.scan_iter(f"{self.keys.base}*")}
        for lane in (INTERACTIVE, BULK):
            if self.client.type(self.stream(lane)) == b"stream":
                # Times of reads and claims are part of a dump; who holds what is not.
                del found[self.stream(lane).encode()]
                found[self.stream(lane).encode()] = (self.client.xrange(self.stream(lane)), self.held(lane))
        return found


def entry(request_id: str, **fields: Any) -> bytes:
    return wire.Entry(request_id=request_id, model_id="churn", **fields).SerializeToString()


def response(request_id: str) -> bytes:
    return v1.PredictResponse(request_id=request_id, model_id="churn").SerializeToString()


def finish(entry_id: bytes, request_id: str, *, lane: wire.Lane = INTERACTIVE, **changes: Any) -> Item:
    """How a worker completes one row that was answered."""
    answer = response(request_id)
    one = Item(
        way=Way(b"finish", 2 if lane == BULK else 1, 1, 60, "g1"),
        entry_id=entry_id,
        event=event(entry(request_id), answer, wire.OK, lane, entry_id, 1_700_000_000_000_000, 1, 0),
        state=done_state(BODY, lane, entry_id, answer),
        wake=wake(request_id.encode(), answer, failed=False),
        request_id=request_id,
    )
    return _changed(one, changes)


def withdraw(entry_id: bytes, request_id: str, **changes: Any) -> Item:
    """How a gateway takes back what its caller does not wait for any more."""
    one = finish(entry_id, request_id)._replace(
        way=Way(b"withdraw", 1),
        event=event(entry(request_id), response(request_id), wire.CANCELLED, INTERACTIVE, entry_id),
        state=b"",
        wake=b"",
    )
    return _changed(one, changes)


def copy(entry_id: bytes, request_id: str, *, lane: wire.Lane = INTERACTIVE, **changes: Any) -> Item:
    """How a worker lets go of what a shadow made of an entry that left before."""
    answer = response(request_id)
    one = finish(entry_id, request_id, lane=lane)._replace(
        way=Way(b"copy", 2 if lane == BULK else 1, rows=0),
        event=event(entry(request_id), answer, wire.SHADOW, lane, entry_id, 1_700_000_000_000_000, 1, 0),
        state=b"",
        wake=b"",
    )
    return _changed(one, changes)


def _changed(one: Item, changes: dict[str, Any]) -> Item:
    """The same with other values, of its own or of its way."""
    way = {name: value for name, value in changes.items() if name in Way._fields}
    own = {name: value for name, value in changes.items() if name not in way}
    return one._replace(way=one.way._replace(**way), **own)


def _flat(entries: Sequence[Any]) -> Sequence[Any]:
    # RESP3 answers one list deeper than RESP2.
    return entries[0] if entries and entries[0] and isinstance(entries[0][0], list | tuple) else entries
