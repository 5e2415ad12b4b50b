"""Redis loses its last writes, and the event log does not.

Under `appendfsync everysec` a server that loses its power keeps a beginning of its append-only file, as it does when it
is killed while fsync is slow. Here that is made exactly so: each write goes to the file at once, the server is killed,
and the file is cut anywhere behind a byte that is known to be older.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.event_entries import EventStream, RunningSink, ok
from tests.faults import REPEATS
from tests.lanes import ModelLanes, finish
from tests.servers import RedisServer, redis_binary, valkey_binary
from tests.sink_lives import Sinks, closed, emptied, gaps, select

pytestmark = [pytest.mark.integration, pytest.mark.faults]

MODEL = "churn"


class Shop:
    """A model's lanes on a server of its own, with somebody who asks and somebody who answers."""

    def __init__(self, server: RedisServer, prefix: str, *, torn: bool = True) -> None:
        self.server = server
        self.torn = torn
        """Whether the file may be cut within a transaction; else it is between the calls of a script."""
        self.cuts: list[int] = []
        self.random = random.Random(5)
        self.lanes = ModelLanes(server.client(), prefix, MODEL)
        self.stream = EventStream(server.url, prefix, MODEL)
        self.stream.announce()
        self.accepted: set[str] = set()

    def ask(self, most: int = 8) -> None:
        ids = [f"r{len(self.accepted) + at}" for at in range(self.random.randint(1, most))]
        self.lanes.append(*ids)
        self.accepted.update(ids)
        self.cuts.append(self.written)

    def waiting(self) -> dict[bytes, str]:
        """Entry id -> request id, of what is not completed."""
        found: Any = self.lanes.client.xrange(self.lanes.keys.requests)
        return {entry_id: wire.Entry.FromString(fields[b"pb"]).request_id for entry_id, fields in found}

    def answer(self) -> None:
        """Completes all that waits, what was read before the server died among it, in a few calls of the exit."""
        self.lanes.read()
        items = [finish(entry_id, request_id) for entry_id, request_id in self.waiting().items()]
        while items:
            size = self.random.randint(1, 5)
            self.lanes.leave(*items[:size])
            del items[:size]
            self.cuts.append(self.written)

    @property
    def file(self) -> Path:
        [written] = self.server.folder.glob("appendonlydir/*.incr.aof")
        return written

    @property
    def written(self) -> int:
        """Bytes of the append-only file."""
        return self.file.stat().st_size

    def power_loss(self, at_least: int, below: int) -> None:
        """The server is gone, and with it what it wrote behind some byte between these; then it is back."""
        self.server.kill()
        cuts = [cut for cut in self.cuts if at_least <= cut < below]
        with self.file.open("r+b") as file:
            file.truncate(self.random.randrange(at_least, below) if self.torn else self.random.choice(cuts))
        self.cuts.clear()
        self.server.start()

    def forget_lost(self) -> None:
        """What is in no stream any more was lost with the server, before the sink ever saw it."""
        there = set(self.waiting().values()) | set(self.lanes.events())
        self.accepted = {each for each in self.accepted if each in there or each in self.recorded}

    recorded: frozenset[str] = frozenset()


@contextmanager
def open_shop(
    folder: Path, prefix: str, binary: Path | None = None, *, torn: bool = True
) -> Iterator[tuple[Shop, Sinks]]:
    # Under `everysec` a write may wait for a busy disk up to two seconds: nobody knows then what the file holds.
    config = {"appendfsync": "no"}
    with (
        RedisServer(folder / "redis", binary=binary, config=config) as server,
        Sinks(server.url, prefix, folder) as sinks,
    ):
        yield Shop(server, prefix, torn=torn), sinks


def behind(shop: Shop, sinks: Sinks) -> int:
    """Everything is in the log when the server loses at least one call of the exit; the gaps that this makes."""
    shop.ask()
    shop.answer()
    emptied(shop.stream)
    start = shop.written
    for _ in range(4):
        shop.ask()
        shop.answer()
    emptied(shop.stream)
    completed = shop.lanes.counts()["completed"]
    shop.recorded = frozenset(shop.accepted)
    shop.power_loss(start, shop.written)
    return int(shop.lanes.counts().get("completed", 0) < completed)


def ahead(shop: Shop, sinks: Sinks) -> int:
    """The sink stands still while the server writes and loses what nobody else saw."""
    emptied(shop.stream)
    shop.recorded = frozenset(shop.accepted)
    sinks.send(signal.SIGSTOP)
    start = shop.written
    for _ in range(4):
        shop.ask()
        shop.answer()
    shop.power_loss(start, shop.written)
    shop.forget_lost()
    sinks.send(signal.SIGCONT)
    return 0


def both_die(shop: Shop, sinks: Sinks) -> int:
    """The sink dies before it knows, and the next one finds the server that came back."""
    begun = behind(shop, sinks)
    sinks.kill()
    sinks.begin_ready()
    return begun


@pytest.mark.parametrize(
    ("binary", "torn", "rounds"),
    # Redis 7.0 keeps the beginning of a transaction that was cut, and runs it with the next one at its next start.
    [(valkey_binary, True, 9 * REPEATS), (redis_binary, False, 3 * REPEATS)],
    ids=["valkey", "redis"],
)
@pytest.mark.timeout(300)
def test_what_redis_loses_is_in_the_log_once_and_a_gap_says_where(
    binary: Any, torn: bool, rounds: int, prefix: str, tmp_path: Path
) -> None:
    with open_shop(tmp_path, prefix, binary(), torn=torn) as (shop, sinks):
        expected = 0
        with sinks.running():
            for round_ in range(rounds):
                expected += (behind, ahead, both_die)[round_ % 3](shop, sinks)
                shop.ask()
                shop.answer()
                emptied(shop.stream)
        assert expected >= rounds // 3
        closed(sinks.database, shop.accepted)
        found = gaps(sinks.database)
        assert len(found) == expected
        assert all(
            there < wanted and why.startswith("the stream came back with less than is here")
            for wanted, there, why in found
        )


def test_a_recovery_ends_when_nothing_old_waits_any_more(prefix: str, tmp_path: Path) -> None:
    with open_shop(tmp_path, prefix) as (shop, sinks):
        with sinks.running():
            while not (behind(shop, sinks) and (old := shop.waiting())):
                shop.answer()
            for _ in range(3):
                shop.ask()
                shop.lanes.read()
                shop.lanes.leave(*(finish(*each) for each in shop.waiting().items() if each[0] not in old))
                emptied(shop.stream)
        assert select(sinks.database, "SELECT recover_until_ms > 0 FROM positions") == [(True,)]
        with sinks.running():
            shop.answer()
            emptied(shop.stream)
            eventually(lambda: "every event that came again was matched" in sinks.log, within=10)
        closed(sinks.database, shop.accepted)
        assert select(sinks.database, "SELECT recover_until_ms FROM positions") == [(0,)]


def test_a_clock_that_was_set_back_hides_no_entry(prefix: str, tmp_path: Path) -> None:
    """Ids of a stream go on from its last: after a loss new entries can have ids that are in the log already."""
    with open_shop(tmp_path, prefix) as (shop, sinks):
        stream, later = shop.stream, 4_000_000_000_000
        with sinks.running():
            for number in range(3):
                stream.append(ok(f"a{number}"), entry_id=f"{later}-{number + 1}")
            start = shop.written
            for number in range(3):
                stream.append(ok(f"b{number}"), entry_id=f"{later}-{number + 4}")
            eventually(lambda: stream.length == 0)
            shop.server.kill()
            with shop.file.open("r+b") as file:
                file.truncate(start)
            shop.server.start()
            stream.number = 3
            for number in range(2):
                assert stream.append(ok(f"c{number}")) == f"{later}-{number + 4}"
            emptied(stream)
        closed(sinks.database, [f"{letter}{number}" for letter in "abc" for number in range(2 if letter == "c" else 3)])
        assert [(expected, found) for expected, found, _ in gaps(sinks.database)] == [(7, 4)]


def test_the_wrong_redis_is_not_recorded_and_the_right_one_goes_on(prefix: str, tmp_path: Path) -> None:
    config = {"appendfsync": "always"}
    with (
        RedisServer(tmp_path / "redis", config=config) as server,
        EventStream(server.url, prefix) as stream,
        RunningSink(server.url, prefix, tmp_path) as sink,
    ):
        stream.announce()
        stream.append(ok("r1"))
        eventually(lambda: sink.count() == 1)
        server.kill()
        kept, elsewhere = tmp_path / "redis" / "appendonlydir", tmp_path / "elsewhere"
        kept.rename(elsewhere)
        server.start()
        eventually(lambda: list(sink.counted().alarms) == [stream.model_id])
        stream.number = 0
        stream.append(ok("of another house"))
        server.kill()
        kept.rename(tmp_path / "of-another-house")
        elsewhere.rename(kept)
        server.start()
        stream.number = 1
        stream.append(ok("r2"))
        eventually(lambda: sink.count() == 2)
        assert dict(sink.counted().alarms) == {}
    closed(sink.database, ["r1", "r2"])
    assert gaps(sink.database) == []
