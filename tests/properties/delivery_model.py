"""The delivery of requests as a pure state machine: no server, no clock, no threads; the same seed is the same run.

A `Server` has the scripts' effects, each in one step. Actors are generators that stop wherever something else may
happen; a seeded scheduler decides who goes on, who is paused, who dies, and when time passes. `Faults` plants a mistake
that the checks must find.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Generator
from dataclasses import dataclass, field

LEASE, BEAT, LIMIT = 30, 5, 2
REQUESTS, STEPS, LONGEST = 8, 250, 4000
ORPHANS = "orphans"

Actor = Generator[int, None, None]
"""Yields for how long it sleeps at least; every yield is a place where it may be paused or die."""


class Violated(Exception):
    """A promise that was not kept; the message says by what."""


@dataclass(frozen=True, slots=True)
class Faults:
    """Mistakes to plant."""

    naive_exit: bool = False
    """Reply, event and acknowledgement are three commands."""
    position_first: bool = False
    """The sink commits how far it is before it commits its rows."""
    greedy_heartbeat: bool = False
    """The heartbeat renews what it once read, whoever has it now."""
    survivors_count: bool = False
    """An attempt alone is a crash though its process lives."""


@dataclass(frozen=True, slots=True)
class Lease:
    """Who holds an entry, and since when without a sign of life."""

    owner: str
    since: int


@dataclass(slots=True)
class Server:
    """Redis with one lane of one model; each method is one script."""

    faults: Faults
    now: int = 0
    entries: dict[int, str] = field(default_factory=dict)
    """Entry id -> request id, of what was not completed."""
    unread: int = 1
    last: int = 0
    held: dict[int, Lease] = field(default_factory=dict)
    replies: dict[str, str] = field(default_factory=dict)
    """Request id -> `pending` or how it ended."""
    events: dict[int, int] = field(default_factory=dict)
    """Number -> entry id, until trimmed."""
    completed: int = 0
    tried: dict[int, list[str]] = field(default_factory=dict)
    """Entry -> who tried it alone and was not seen to live on."""
    lone: int = 0
    lone_until: int = 0

    def append(self, request_id: str) -> int | None:
        """The entrance; None where the request came before."""
        if request_id in self.replies:
            return None
        self.last += 1
        self.entries[self.last] = request_id
        self.replies[request_id] = "pending"
        return self.last

    def read(self, worker: str, count: int) -> list[int]:
        ids = [entry for entry in self.entries if entry >= self.unread][:count]
        for entry in ids:
            self.held[entry] = Lease(worker, self.now)
            self.unread = entry + 1
        return ids

    def retry(self, worker: str) -> tuple[int, list[str]] | None:
        """One whose lease is over, for an attempt alone, and who tried it before."""
        if self.lone and self.now < self.lone_until:
            return None
        over = [entry for entry, lease in sorted(self.held.items()) if self.now - lease.since >= LEASE]
        if not over:
            return None
        entry = over[0]
        before = [name for name in self.tried.get(entry, []) if name != worker]
        self.held[entry] = Lease(worker, self.now)
        self.tried[entry] = [*before, worker] if len(before) < LIMIT else before
        self.lone, self.lone_until = entry, self.now + LEASE
        return entry, before

    def give_back(self, worker: str) -> None:
        for entry, names in list(self.tried.items()):
            if worker in names:
                names.remove(worker)
                if not names:
                    del self.tried[entry]
                if self.lone == entry and entry in self.held and self.held[entry].owner == worker:
                    self.lone = 0

    def renew(self, worker: str, ids: list[int]) -> None:
        for entry in ids:
            lease = self.held.get(entry)
            if lease is not None and (lease.owner == worker or self.faults.greedy_heartbeat):
                self.held[entry] = Lease(worker, self.now)
                if self.lone == entry:
                    self.lone_until = self.now + LEASE

    def hand_over(self, worker: str) -> None:
        for entry, lease in self.held.items():
            if lease.owner == worker:
                self.held[entry] = Lease(ORPHANS, self.now - LEASE)
                if self.lone == entry:
                    self.lone = 0

    def finish(self, entry: int, how: str) -> bool:
        """The exit's `finish`; whether this call completed it."""
        if self.held.pop(entry, None) is None:
            return False
        self.complete(entry, how)
        return True

    def withdraw(self, entry: int) -> bool:
        """The exit's `withdraw`."""
        if entry in self.held or entry not in self.entries:
            return False
        request_id = self.entries[entry]
        self.complete(entry, "CANCELLED")
        del self.replies[request_id]
        return True

    def complete(self, entry: int, how: str) -> None:
        """What is behind the gate."""
        self.completed += 1
        self.events[self.completed] = entry
        request_id = self.entries.pop(entry, None)
        if request_id is not None:
            self.replies[request_id] = how
        self.tried.pop(entry, None)
        if self.lone == entry:
            self.lone = 0


@dataclass(slots=True)
class Database:
    """What a sink's crash leaves: rows and position, each as it was committed."""

    position: int = 0
    rows: list[int] = field(default_factory=list)


class World:
    """Everything of one run."""

    def __init__(self, seed: int, faults: Faults) -> None:
        self.faults = faults
        self.quiet = False
        """Nothing breaks any more: what is left is drained."""
        self.random = random.Random(seed)
        self.server = Server(faults)
        self.database = Database()
        self.accepted: dict[int, str] = {}
        self.poison = frozenset(f"r{n}" for n in range(REQUESTS) if self.random.random() < 0.05)
        self.actors: dict[str, Actor] = {}
        self.wakes: dict[str, int] = {}
        self.hands: dict[str, list[int]] = {}
        """Worker -> what it read and did not complete; its heartbeat is another thread, so they share it."""
        self.alone: dict[str, int] = {}
        """Worker -> what it tries alone."""
        self.deaths: Counter[int] = Counter()
        """Entry -> processes that died while they tried it alone."""
        self.boots = 0
        self.owners: dict[int, Lease] = {}
        self.checked = (0, 0, 0, 0)
        for number in range(2):
            self._start(f"gateway-{number}", self.gateway(range(number, REQUESTS, 2)))
        for _ in range(3):
            self._boot()
        self._start("sink", self.sink())

    # ------------------------------------------------------------------ actors

    def gateway(self, numbers: range) -> Actor:
        """Appends each request, some of them again, and takes some of them back."""
        for number in numbers:
            for _ in range(self.random.choice((1, 1, 2))):
                entry = self.server.append(f"r{number}")
                if entry is not None:
                    self.accepted[entry] = f"r{number}"
                yield self.random.randrange(6)
                if entry is not None and self.random.random() < 0.1:
                    self.server.withdraw(entry)
                    yield 0

    def worker(self, name: str) -> Actor:
        turn = 0
        while True:
            turn += 1
            if not self.faults.survivors_count:
                self.server.give_back(name)
                self.alone.pop(name, None)
            alone = self.server.retry(name) if turn % 2 else None
            doomed = alone is not None and len(alone[1]) >= LIMIT
            if alone and doomed and not self.faults.survivors_count and any(each in self.hands for each in alone[1]):
                yield 3  # one of those lives: its lease may show more
                continue
            ids = [alone[0]] if alone else self.server.read(name, self.random.randint(1, 3))
            if alone and not doomed:
                self.alone[name] = alone[0]
            # Another thread renews these from now on.
            self.hands[name] += ids
            yield self.random.choice((1, 1, 2, LEASE // 2)) if ids else 3  # the predict call
            if alone and not self.quiet and self.random.random() < 0.2:
                # The connection is lost, or the server refuses: nothing comes of it. Who dies before it could say so
                # can't be told from who died of it.
                self.hands[name].clear()
                yield self.random.randrange(LEASE)
                continue
            if not doomed and any(self.accepted[entry] in self.poison for entry in ids):
                self._die(name)
                return
            for entry in ids:
                how = "POISON" if doomed else "OK"
                if doomed and self.deaths[entry] < LIMIT:
                    raise Violated(f"entry {entry} is given up after {self.deaths[entry]} deaths")
                if not self.faults.naive_exit:
                    self.server.finish(entry, how)
                else:
                    yield 0
                    self.server.complete(entry, how)
                    yield 0
                    self.server.held.pop(entry, None)
                self.hands[name].remove(entry)
                self.alone.pop(name, None)
                yield 0

    def heartbeat(self, name: str) -> Actor:
        while True:
            ids = list(self.hands[name])
            yield 0
            self.server.renew(name, ids)
            yield BEAT

    def sink(self) -> Actor:
        """Reads on, commits rows and position together, and trims what is behind the position."""
        database, server = self.database, self.server
        while True:
            found = {n: entry for n, entry in sorted(server.events.items()) if n > database.position}
            yield 1
            if found:
                if self.faults.position_first:
                    database.position = max(found)
                    yield 0
                    database.rows += found.values()
                else:
                    database.position, database.rows = max(found), [*database.rows, *found.values()]
            yield 0
            for number in [n for n in server.events if n <= database.position]:
                del server.events[number]
            yield 2

    def supervisor(self, dead: str) -> Actor:
        """Sees one death, hands over and starts another one."""
        yield self.random.choice((0, 1, 2 * LEASE))
        self.server.hand_over(dead)
        yield 0
        self._boot()

    # ------------------------------------------------------------------ the scheduler

    def _start(self, name: str, actor: Actor) -> None:
        self.actors[name], self.wakes[name] = actor, self.server.now

    def _boot(self) -> None:
        self.boots += 1
        name = f"worker-{self.boots}"
        self.hands[name] = []
        self._start(name, self.worker(name))
        self._start(f"{name} beat", self.heartbeat(name))

    def _die(self, name: str) -> None:
        for part in (name, f"{name} beat"):
            del self.actors[part], self.wakes[part]
        del self.hands[name]
        self.deaths[self.alone.pop(name, 0)] += 1
        self._start(f"supervisor of {name}", self.supervisor(name))

    def _break(self) -> None:
        """Something dies, or is paused for longer than its lease."""
        name = self.random.choice(list(self.hands) + ["sink"] * 2)
        if self.random.random() < 0.5:
            for part in (name, f"{name} beat"):
                if part in self.wakes:
                    self.wakes[part] = self.server.now + self.random.randrange(LEASE, 3 * LEASE)
        elif name == "sink":
            self._start("sink", self.sink())
        else:
            self._die(name)

    def step(self) -> None:
        """One actor goes on to its next yield; time passes only where all of them sleep."""
        if not self.quiet and self.random.random() < 0.04:
            self._break()
        awake = [name for name, wake in self.wakes.items() if wake <= self.server.now]
        if not awake:
            self.server.now = min(self.wakes.values())
            return
        name = self.random.choice(awake)
        actor = self.actors[name]
        try:
            sleeps = next(actor)
        except StopIteration:
            if self.actors.get(name) is actor:
                del self.actors[name], self.wakes[name]
            sleeps = 0
        if name in self.wakes:
            self.wakes[name] = self.server.now + sleeps
        self.check(name)

    # ------------------------------------------------------------------ what must hold

    def check(self, actor: str) -> None:
        """After every step."""
        server = self.server
        for entry, before in self.owners.items():
            now = server.held.get(entry)
            moved = now is not None and now.owner not in (before.owner, ORPHANS) and before.owner in self.hands
            if moved and server.now - before.since < LEASE:
                raise Violated(f"{actor} took entry {entry} from {before.owner}, which kept its lease")
        self.owners = dict(server.held)  # a lease is replaced, never changed
        state = (server.completed, len(server.events), self.database.position, len(self.database.rows))
        if state == self.checked:
            return
        self.checked = state
        recorded = Counter(self.database.rows) + Counter(
            entry for number, entry in server.events.items() if number > self.database.position
        )
        for entry in self.accepted:
            if recorded[entry] > 1:
                raise Violated(f"entry {entry} has {recorded[entry]} events after a step of {actor}")
            if entry not in server.entries and not recorded[entry]:
                raise Violated(f"entry {entry} is gone and has no event after a step of {actor}")

    def drained(self) -> None:
        """At the end: everything that was accepted is answered, and in the database once."""
        rows = Counter(self.database.rows)
        for entry, request_id in self.accepted.items():
            if rows[entry] != 1:
                raise Violated(f"entry {entry} has {rows[entry]} rows")
            if self.server.replies.get(request_id, "CANCELLED") == "pending":
                raise Violated(f"{request_id} was never answered")
        if self.server.held or self.server.tried or self.server.lone:
            raise Violated("something is left: a lease, a name that counts as a crash or an attempt alone")

    def done(self) -> bool:
        return not self.server.entries and not self.server.events and not any(self.hands.values())


def run(seed: int, faults: Faults = Faults()) -> None:
    """One run. Raises Violated, which names the seed."""
    world = World(seed, faults)
    try:
        for _ in range(STEPS):
            world.step()
        world.quiet = True
        for _ in range(LONGEST):
            if world.done() and not any(name.startswith("gateway") for name in world.actors):
                break
            world.step()
        world.drained()
    except Violated as violated:
        raise Violated(f"seed {seed}: {violated}") from None
