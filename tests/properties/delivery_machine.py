"""Any order of what gateways, producers, workers, their supervisor and the sink can do to one model, on a real server.

    append, submit, push -> read -> claim -> finish        the way of a request
    crash, expire, bury, retry, renew, leave, withdraw     what may happen to it on the way
    outlive, shift                                         an attempt comes to nothing; routing changes
    record                                                 the sink, which may die before it has kept what it read

The machine keeps books of what was promised and compares them with the server after every step, and at the end, when
everything that was accepted has been drained.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import orjson
import redis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from contract.completion import BULK, INTERACTIVE, NO_SHA256, Item, Way, done_state, event, pending_state, routed
from contract.keys import GROUP
from protos import millstream_wire_v1_pb2 as wire
from tests.lanes import ModelLanes, response

BOUND = 24
MOST_CRASHES = 2
SLOTS = 3
SHADOW = b"shadow"
"""Digest of the version that computes copies."""
LANES = (INTERACTIVE, BULK)

slots = st.integers(0, SLOTS - 1)
few = st.integers(1, 4)
whose = st.integers(0, 4)
"""0 and 1: the gateway makes the id; else one of three that callers use over and over."""

busy = precondition(lambda self: any(worker.units for worker in self.workers))
unread = precondition(lambda self: self._unread())
"""Rules that would do nothing are not chosen, or most steps would be such."""


class Place(NamedTuple):
    """An entry: ids are unique within a lane."""

    lane: wire.Lane
    entry_id: bytes


@dataclass(slots=True)
class Asked:
    """What one entry asks for."""

    request_id: str
    body: bytes
    rows: int
    digest: bytes = field(compare=False)
    """Of the version it is pinned to; in the bulk lane from its first read on."""
    discard: bool


@dataclass(slots=True)
class Unit:
    """An entry in a worker's hands."""

    place: Place
    asked: Asked
    entry: bytes
    crashes: int = 0
    claimed: bool = False


@dataclass(slots=True)
class Worker:
    name: str
    units: list[Unit] = field(default_factory=list)


class Delivery(RuleBasedStateMachine):
    """`url` is the server's; `complete` is what a test replaces to see that the machine notices."""

    url: ClassVar[str]

    @initialize()
    def start(self) -> None:
        self.client = redis.Redis.from_url(self.url, retry=None)
        self.lanes = ModelLanes(self.client, f"d{uuid.uuid4().hex[:12]}")
        self.workers = [Worker(f"w{slot}-0") for slot in range(SLOTS)]
        self.boots = 0
        self.dead: list[str] = []
        self.asked: dict[Place, Asked] = {}
        self.accepted: dict[Place, Asked] = {}
        self.finished: dict[Place, wire.Status] = {}
        self.kept: list[Place] = []
        """Copies of answered entries that wait for a shadow."""
        self.copied: set[Place] = set()
        self.refused: set[Place] = set()
        self.read_once: set[Place] = set()
        self.known: dict[str, Place] = {}
        """Request id -> whose state the reply key holds."""
        self.tried: dict[Place, list[str]] = {}
        """Who tried an entry alone and was not seen to live on."""
        self.routing = b"\0\0\0\0"
        """Digest of the version that new requests of the bulk lane are routed to."""
        self.routed: dict[Place, bytes] = {}
        self.loose = False
        """Whether anything was abandoned yet."""
        self.reused = 0
        self.log: list[tuple[int, wire.EventBatch]] = []
        self.position = b"0-0"

    # ------------------------------------------------------------------ the ways in

    @rule(who=whose, body=st.booleans(), rows=few, discard=st.booleans())
    def append(self, who: int, body: bool, rows: int, discard: bool) -> None:
        """A gateway lets one request in."""
        asked = self._ask(who, body, rows, discard)
        raw = wire.Entry(
            request_id=asked.request_id,
            model_id=self.lanes.model_id,
            digest=asked.digest,
            matrix={"rows": rows},
            discard_reply=discard,
            body_sha256=asked.body if who > 1 else b"",
        ).SerializeToString()
        self._enter(asked, raw, INTERACTIVE, pending_state(asked.body, INTERACTIVE) if who > 1 else b"")

    @rule(who=whose, body=st.booleans(), rows=few, discard=st.booleans())
    def submit(self, who: int, body: bool, rows: int, discard: bool) -> None:
        """A gateway puts one into the bulk lane; its id, whoever made it, is claimed at once."""
        asked = self._ask(who, body, rows, discard)
        self._enter(asked, _text(asked), BULK, pending_state(asked.body, BULK))

    @rule(who=whose, body=st.booleans(), rows=few, discard=st.booleans(), copies=few)
    def push(self, who: int, body: bool, rows: int, discard: bool, copies: int) -> None:
        """A producer writes to the bulk lane, perhaps several times; without an id it gets the entry's."""
        asked = self._ask(who, body, rows, discard)
        for _ in range(copies):
            text = orjson.dumps({**orjson.loads(_text(asked)), "id": asked.request_id if who > 1 else ""})
            entry_id: Any = self.client.xadd(self.lanes.keys.bulk, {"json": text})
            self.asked[Place(BULK, entry_id)] = self._read_text(text, entry_id)

    def _ask(self, who: int, body: bool, rows: int, discard: bool) -> Asked:
        request_id = f"own-{who}" if who > 1 else uuid.uuid4().hex
        digest = hashlib.sha256(request_id.encode()).digest()[:4]
        return Asked(request_id, hashlib.sha256(b"%d %d %d" % (body, rows, discard)).digest(), rows, digest, discard)

    def _enter(self, asked: Asked, payload: bytes, lane: wire.Lane, state: bytes) -> None:
        first = self.known.get(asked.request_id)
        waiting = self._waiting_rows(lane)
        [answer] = self.lanes.enter((payload, asked.rows, state, asked.request_id), lane=lane, bound=BOUND)
        if first is not None:
            same = self.asked[first].body == asked.body
            assert answer[0] == (b"seen" if same else b"reused")
            if same:
                assert wire.ReplyState.FromString(answer[1]).entry_id.encode() == first.entry_id
        elif waiting and waiting + asked.rows > BOUND:
            assert answer == [b"full", waiting]
        else:
            place = Place(lane, answer)
            assert place not in self.asked
            self.asked[place] = self.accepted[place] = asked
            if state:
                self.known[asked.request_id] = place

    # ------------------------------------------------------------------ what workers do

    @unread
    @rule(slot=slots, lane=st.sampled_from(LANES), count=few)
    def read(self, slot: int, lane: wire.Lane, count: int) -> None:
        """A worker reads from a lane, or from the other where this one is empty."""
        unread = self._unread()
        self._read(slot, lane if lane in unread else unread[0], count)

    def _read(self, slot: int, lane: wire.Lane, count: int) -> None:
        worker = self.workers[slot]
        answer: Any = self.client.xreadgroup(GROUP, worker.name, {self.lanes.stream(lane): ">"}, count=count)
        streams = answer.values() if isinstance(answer, dict) else [entries for _, entries in answer]
        for entries in streams:
            for entry_id, fields in entries[0] if entries and isinstance(entries[0], list) else entries:
                self._take(worker, Place(lane, entry_id), fields)

    def _take(self, worker: Worker, place: Place, fields: dict[bytes, bytes], crashes: int = 0) -> Unit:
        [body] = fields.values()
        self.read_once.add(place)
        unit = Unit(place, self.asked[place], body, crashes, claimed=place.lane == INTERACTIVE)
        if place.lane == INTERACTIVE:
            assert wire.Entry.FromString(body).request_id == unit.asked.request_id
        else:
            assert self._read_text(body, place.entry_id) == unit.asked
        worker.units.append(unit)
        return unit

    @busy
    @rule(slot=slots)
    def claim(self, slot: int) -> None:
        """Claims the ids of what a worker has from the bulk lane."""
        self._claim(self.workers[self._holder(slot)])

    def _claim(self, worker: Worker) -> None:
        units = [unit for unit in worker.units if not unit.claimed]
        items = [(u.place.entry_id, u.asked.rows, u.asked.body, u.asked.request_id) for u in units]
        answers = self.lanes.claim(*items, routing=routed(self.routing, "v")) if items else []
        for unit, answer in zip(units, answers, strict=True):
            expected = self._claimed(unit)
            if expected == 2 and unit.place in self.routed and not self._over(unit.place):
                expected = routed(self.routed[unit.place], "v")
            assert answer == expected
            if answer == 1:
                self.accepted[unit.place] = unit.asked
                self.known[unit.asked.request_id] = unit.place
            if answer not in (0, -1):
                unit.claimed = True
                asked = unit.asked
                if not self._over(unit.place):
                    asked.digest = self.routed.setdefault(unit.place, self.routing)
                unit.entry = wire.Entry(
                    request_id=asked.request_id,
                    digest=asked.digest,
                    matrix={"rows": asked.rows},
                    body_sha256=asked.body,
                ).SerializeToString()
                continue
            worker.units.remove(unit)
            if not self._over(unit.place):
                self.refused.add(unit.place)
                self.reused += answer == -1

    def _claimed(self, unit: Unit) -> int | bytes:
        """What claiming it must answer now."""
        first = self.known.get(unit.asked.request_id)
        if first is None:
            # Who was slow may claim what another completed, and whose reply nobody wanted.
            return 0 if self._over(unit.place) else 1
        if first == unit.place:
            return 2
        return 0 if self.asked[first].body == unit.asked.body else -1

    @busy
    @rule(slot=slots, most=few, status=st.sampled_from([wire.OK, wire.FAILED, wire.INVALID, wire.EXPIRED]))
    def finish(self, slot: int, most: int, status: wire.Status) -> None:
        """Completes some of what a worker holds, one call of the exit for each version."""
        self._complete_some(self.workers[self._holder(slot)], most, status)

    def _complete_some(self, worker: Worker, most: int, status: wire.Status) -> None:
        self._claim(worker)
        units, worker.units = worker.units[:most], worker.units[most:]
        for digest in sorted({unit.asked.digest for unit in units}):
            group = [unit for unit in units if unit.asked.digest == digest]
            self._finish(group, status, wire.Header(model_id=self.lanes.model_id, digest=digest))

    def _finish(self, units: list[Unit], status: wire.Status, head: wire.Header) -> None:
        ends = [wire.POISON if unit.crashes >= MOST_CRASHES else status for unit in units]
        items = [self._item(unit, end) for unit, end in zip(units, ends, strict=True)]
        expected = []
        for unit, end in zip(units, ends, strict=True):
            expected.append(0 if self._over(unit.place) else 1)
            if not self._over(unit.place):
                self._end(unit.place, end)
                self.kept += [unit.place] * (end == wire.OK)
        assert self.complete(items, head) == expected

    @precondition(lambda self: self.kept)
    @rule(most=few)
    def copy(self, most: int) -> None:
        """A shadow computed what was answered before, whatever became of its reply since."""
        taken, self.kept = self.kept[:most], self.kept[most:]
        items = []
        for lane, entry_id in taken:
            asked = self.asked[Place(lane, entry_id)]
            one = wire.Entry(request_id=asked.request_id, digest=SHADOW, matrix={"rows": asked.rows})
            made = event(one.SerializeToString(), response(asked.request_id), wire.SHADOW, lane, entry_id)
            place = 2 if lane == BULK else 1
            items.append(Item(Way(b"copy", place, rows=0), entry_id, made, b"", b"", asked.request_id))
        head = wire.Header(model_id=self.lanes.model_id, digest=SHADOW)
        assert self.lanes.leave(*items, head=head) == [1] * len(items)
        self.copied.update(taken)

    def complete(self, items: list[Item], head: wire.Header) -> list[int]:
        return self.lanes.leave(*items, head=head)

    def _item(self, unit: Unit, status: wire.Status) -> Item:
        asked, (lane, entry_id) = unit.asked, unit.place
        answer = response(asked.request_id)
        dead = b"MODEL_CRASHED" if status == wire.POISON else b""
        return Item(
            way=Way(b"finish", 2 if lane == BULK else 1, asked.rows, b"" if asked.discard else 600, dead=dead),
            entry_id=entry_id,
            event=event(unit.entry, answer, status, lane, entry_id),
            state=b"" if asked.discard else done_state(asked.body, lane, entry_id, answer),
            wake=b"",
            request_id=asked.request_id,
        )

    def _end(self, place: Place, status: wire.Status) -> None:
        self.finished[place] = status
        asked = self.accepted[place]
        if asked.discard or status == wire.CANCELLED:
            self.known.pop(asked.request_id, None)
        else:
            self.known[asked.request_id] = place

    # ------------------------------------------------------------------ what may happen to them

    @busy
    @rule(slot=slots, seen=st.booleans())
    def crash(self, slot: int, seen: bool) -> None:
        """A worker dies with everything it holds; another one takes its place. A supervisor may see it at once."""
        self._crash(self._holder(slot))
        if seen:
            self._hand_over(self.dead.pop())

    def _crash(self, slot: int) -> None:
        self.dead.append(self.workers[slot].name)
        self._replace(slot)

    @rule(slot=slots)
    def leave(self, slot: int) -> None:
        """A worker stops in order."""
        self._complete_some(self.workers[slot], 1000, wire.OK)
        self._hand_over(self.workers[slot].name)
        self._replace(slot)

    def _replace(self, slot: int) -> None:
        self.boots += 1
        self.workers[slot] = Worker(f"w{slot}-{self.boots}")

    @precondition(lambda self: self.dead)
    @rule()
    def bury(self) -> None:
        """The supervisor hands over what the longest dead one held."""
        self._hand_over(self.dead.pop(0))

    def _hand_over(self, name: str) -> None:
        self.loose = True
        for lane in LANES:
            while self.lanes.hand_over(name, lane=lane, most=2) == 2:
                pass
            assert name not in self.lanes.held(lane).values()
            assert name not in self.lanes.consumers(lane)

    @busy
    @rule(slot=slots)
    def expire(self, slot: int) -> None:
        """A worker was paused for longer than its lease and does not know it; so were the dead."""
        self._expire(self.workers[self._holder(slot)].name, *self.dead)

    def _expire(self, *names: str) -> None:
        self.loose = True
        for name in names:
            for lane in LANES:
                own = [entry_id for entry_id, holder in self.lanes.held(lane).items() if holder == name]
                if own:
                    self.lanes.abandon(*[entry_id.encode() for entry_id in own], consumer=name, lane=lane)
                    if self._lone() in [Place(lane, entry_id.encode()) for entry_id in own]:
                        self.client.delete(self.lanes.keys.lone)  # its own time is over as well

    @precondition(lambda self: self.loose)
    @rule(slot=slots, lane=st.sampled_from(LANES))
    def retry(self, slot: int, lane: wire.Lane) -> None:
        """A worker takes what was abandoned for an attempt alone."""
        self._retry(self.workers[slot], lane)

    @precondition(lambda self: self.loose)
    @rule(slot=slots, lane=st.sampled_from(LANES), times=few)
    def die_over_it(self, slot: int, lane: wire.Lane, times: int) -> None:
        """An entry ends one worker after the other."""
        for _ in range(times):
            self._retry(self.workers[slot], lane)
            self._crash(slot)
            self._hand_over(self.dead.pop())

    @busy
    @rule(slot=slots)
    def overtake(self, slot: int) -> None:
        """A worker is paused so long that another one completes what it holds, and then goes on."""
        slot = self._holder(slot)
        slow, other = self.workers[slot], self.workers[(slot + 1) % SLOTS]
        self._expire(slow.name)
        for unit in list(slow.units):
            self._retry(other, unit.place.lane)
            self._renew(slow)
            self._complete_some(other, 1000, wire.OK)

    def _retry(self, worker: Worker, lane: wire.Lane) -> None:
        lone = self._lone()
        answer = self.lanes.retry(worker.name, lane=lane, most=MOST_CRASHES)
        if answer is None:
            return
        assert lone is None
        entry_id, flat, crashes, _ = answer
        place = Place(lane, entry_id)
        others = [name for name in self.tried.get(place, []) if name != worker.name]
        assert crashes == len(others)
        self.tried[place] = [*others, worker.name] if crashes < MOST_CRASHES else others
        unit = self._take(worker, place, dict(zip(flat[::2], flat[1::2], strict=True)), crashes)
        assert not self._over(unit.place)

    @busy
    @rule(slot=slots)
    def outlive(self, slot: int) -> None:
        """What a worker does comes to nothing, say for a Redis that refuses, and the worker lives on."""
        worker = self.workers[self._holder(slot)]
        own = [place for place, names in self.tried.items() if worker.name in names and not self._over(place)]
        assert self.lanes.give_back(worker.name) == len(own)
        for place in own:
            self.tried[place].remove(worker.name)
        worker.units.clear()
        self._expire(worker.name)

    @rule()
    def shift(self) -> None:
        """The bulk lane is routed to another version from now on."""
        self.routing = (int.from_bytes(self.routing, "big") + 1).to_bytes(4, "big")

    @busy
    @rule(slot=slots)
    def renew(self, slot: int) -> None:
        """A heartbeat; it keeps what is the worker's own and takes nothing from others."""
        self._renew(self.workers[self._holder(slot)])

    def _renew(self, worker: Worker) -> None:
        for lane in LANES:
            before = self.lanes.held(lane)
            ids = [unit.place.entry_id for unit in worker.units if unit.place.lane == lane]
            own = sum(before.get(entry_id.decode()) == worker.name for entry_id in ids)
            assert self.lanes.renew(worker.name, *ids, lane=lane) == own
            assert self.lanes.held(lane) == before

    @precondition(lambda self: self._waiting_rows(INTERACTIVE) > 0)
    @rule(pick=st.integers(0, 1000))
    def withdraw(self, pick: int) -> None:
        """A caller goes away; its gateway takes back what no worker has."""
        waiting = [place for place in self.accepted if place.lane == INTERACTIVE and place not in self.finished]
        place = waiting[pick % len(waiting)]
        asked = self.accepted[place]
        raw = wire.Entry(request_id=asked.request_id, digest=asked.digest, matrix={"rows": asked.rows})
        answer = response(asked.request_id)
        item = self._item(Unit(place, asked, b""), wire.CANCELLED)._replace(
            way=Way(b"withdraw", 1, asked.rows),
            event=event(raw.SerializeToString(), answer, wire.CANCELLED, INTERACTIVE, place.entry_id),
            state=b"",
        )
        free = place.entry_id.decode() not in self.lanes.held()
        if free:
            self._end(place, wire.CANCELLED)
        assert self.lanes.leave(item, head=wire.Header(digest=asked.digest)) == [int(free)]

    @precondition(lambda self: self.finished)
    @rule(count=few, dies=st.booleans())
    def record(self, count: int, dies: bool) -> None:
        """The sink reads on, keeps rows and position together and trims behind it, or dies before it kept anything."""
        answer: Any = self.client.xrange(self.lanes.keys.events, f"({self.position.decode()}", count=count)
        if dies or not answer:
            return
        self.log += [_batch(fields) for _, fields in answer]
        self.position = answer[-1][0]
        milliseconds, _, number = self.position.decode().partition("-")
        self.client.xtrim(self.lanes.keys.events, minid=f"{milliseconds}-{int(number) + 1}", approximate=False)

    # ------------------------------------------------------------------ what must hold

    @invariant()
    def holds(self) -> None:
        keys = self.lanes.keys
        pipe = self.client.pipeline(transaction=False)
        pipe.hgetall(keys.count)
        for lane in LANES:
            pipe.get(self.lanes.rows_key(lane))
            pipe.xrange(self.lanes.stream(lane))
            pipe.xpending_range(self.lanes.stream(lane), GROUP, "-", "+", 1000)
        pipe.hgetall(keys.crashes)
        pipe.xrange(keys.events, f"({self.position.decode()}")
        counts, *rest, tried, new = pipe.execute()
        self.counting({mark.decode(): names.decode().split() for mark, names in tried.items()})
        self.counted({name.decode(): int(value) for name, value in counts.items()})
        for lane, rows, entries, held in zip(LANES, rest[::3], rest[1::3], rest[2::3], strict=True):
            assert int(rows or 0) == self._waiting_rows(lane)
            self.there({Place(lane, e) for e, _ in entries}, {Place(lane, e["message_id"]) for e in held}, lane)
        self.recorded(self.log + [_batch(fields) for _, fields in new])

    def counted(self, counts: dict[str, int]) -> None:
        """The counters agree with what was answered, so that `accepted + copies = completed + waiting` always."""
        assert counts.get("accepted", 0) == len(self.accepted)
        assert counts.get("completed", 0) == len(self.finished) + len(self.copied)
        assert counts.get("copies", 0) == len(self.copied)
        assert counts.get("duplicates", 0) == len(self.refused)

    def counting(self, tried: dict[str, list[str]]) -> None:
        """An attempt counts until its entry is completed, or its process was seen to live on."""
        assert tried == {
            ("bulk " if place.lane == BULK else "") + place.entry_id.decode(): names
            for place, names in self.tried.items()
            if names and not self._over(place)
        }

    def there(self, entries: set[Place], held: set[Place], lane: wire.Lane) -> None:
        """What was not completed is in its lane, and nobody holds anything else."""
        assert entries == {place for place in self.asked if place.lane == lane and not self._over(place)}
        assert held == entries & self.read_once

    def recorded(self, batches: list[tuple[int, wire.EventBatch]]) -> None:
        """What was completed has one event, of the version it was pinned to, under a number that counts on."""
        total = 0
        found: Counter[tuple[Place, wire.Status]] = Counter()
        for number, batch in batches:
            total += len(batch.events)
            assert number == total
            for each in batch.events:
                place = Place(each.lane, each.entry_id.encode())
                found[(place, each.status)] += 1
                digest = SHADOW if each.status == wire.SHADOW else self.asked[place].digest
                assert each.entry.digest == batch.header.digest == digest
        assert found == Counter([*self.finished.items(), *((place, wire.SHADOW) for place in self.copied)])

    def teardown(self) -> None:
        if not hasattr(self, "client"):
            return
        try:
            self._drain()
            self.holds()
            self._all_answered()
        finally:
            for name in self.client.scan_iter(f"{self.lanes.keys.base}*"):
                self.client.delete(name)
            self.client.close()

    def _drain(self) -> None:
        """Everybody leaves in order, the dead are buried, and one worker does what is left."""
        for slot in range(1, SLOTS):
            self.leave(slot)
        while self.dead:
            self.bury()
        last = self.workers[0]
        self._complete_some(last, 1000, wire.OK)
        for lane in LANES:
            self._read(0, lane, 1000)
            self._complete_some(last, 1000, wire.OK)
            while self.lanes.held(lane):
                self._retry(last, lane)
                assert last.units, "what nobody alive holds must be there for an attempt alone"
                self._complete_some(last, 1000, wire.OK)

    def _all_answered(self) -> None:
        assert set(self.finished) == set(self.accepted)
        assert set(self.asked) == set(self.accepted) | self.refused
        assert self.client.exists(self.lanes.keys.lone, self.lanes.keys.crashes) == 0
        for lane in LANES:
            assert (self.lanes.held(lane), self.lanes.rows(lane)) == ({}, 0)
        poison = sum(status == wire.POISON for status in self.finished.values())
        assert len(self.lanes.dead()) == poison + self.reused
        for place, status in self.finished.items():
            asked = self.accepted[place]
            state = self.lanes.state(asked.request_id)
            if self.known.get(asked.request_id) == place:
                assert state == wire.ReplyState(
                    body_sha256=asked.body or NO_SHA256,
                    lane=place.lane,
                    entry_id=place.entry_id.decode(),
                    response=response(asked.request_id),
                )
            elif asked.request_id not in self.known:
                assert (asked.discard or status == wire.CANCELLED, state) == (True, None)

    # ------------------------------------------------------------------ the books

    def _over(self, place: Place) -> bool:
        return place in self.finished or place in self.refused

    def _unread(self) -> list[wire.Lane]:
        """The lanes that have something nobody read."""
        return sorted({p.lane for p in self.asked if p not in self.read_once and p not in self.finished})

    def _holder(self, slot: int) -> int:
        """The first slot from there on whose worker holds something."""
        return next((s % SLOTS for s in range(slot, slot + SLOTS) if self.workers[s % SLOTS].units), slot)

    def _waiting_rows(self, lane: wire.Lane) -> int:
        return sum(a.rows for p, a in self.accepted.items() if p.lane == lane and p not in self.finished)

    def _lone(self) -> Place | None:
        """Which entry the lone attempt in the pool is on."""
        mark: Any = self.client.get(self.lanes.keys.lone)
        if mark is None:
            return None
        return Place(BULK, mark.removeprefix(b"bulk ")) if mark.startswith(b"bulk ") else Place(INTERACTIVE, mark)

    def _read_text(self, text: bytes, entry_id: bytes) -> Asked:
        """What a bulk entry asks; the version is chosen by its id."""
        body = orjson.loads(text)
        request_id = body["id"] or entry_id.decode()
        digest = hashlib.sha256(request_id.encode()).digest()[:4]
        return Asked(request_id, bytes.fromhex(body["body"]), body["rows"], digest, body["discard"])


def _batch(fields: dict[bytes, bytes]) -> tuple[int, wire.EventBatch]:
    """The running number of an entry of the events stream, and its events."""
    return int(fields[b"n"]), wire.EventBatch.FromString(fields[b"pb"])


def _text(asked: Asked) -> bytes:
    return orjson.dumps(
        {"id": asked.request_id, "body": asked.body.hex(), "rows": asked.rows, "discard": asked.discard}
    )
