"""Everything that `millstream up` starts, stopped, killed and emptied under load: what was accepted is recorded."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.connection import connect
from contract.keys import Keys
from tests.conditions import eventually
from tests.e2e.front_door import FrontDoor, processes_of, until_gone
from tests.faults import REPEATS, TIMEOUT_S
from tests.faults.crowd import Crowd, Pushing, Told
from tests.faults.doubling import MODEL, draft, release
from tests.faults.ledger import Ledger, logged, streamed
from tests.servers import LOOPBACK, free_port

pytestmark = [pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(TIMEOUT_S)]

USERS = 30
BACK_S = 60.0
"""Far above what it takes to start a child again, which is mostly the loading of libraries."""
DRAIN_S = 3.0
"""What `up` gives each group of its children."""
NOT_THERE = ("MODEL_UNKNOWN", "VERSION_UNAVAILABLE")
"""What callers are told while the catalogue is empty."""
BOUND_S = 4 * (DRAIN_S + 4.0)
"""A stop ends within the time of all its groups, whatever happens."""


class House(FrontDoor):
    """`millstream up` at one address, whatever becomes of it; it writes to disk before it answers."""

    def __init__(self, folder: Path) -> None:
        store = folder / "store"
        draft(store, "1.0.0")
        release(store, "1.0.0")
        super().__init__(folder, "--store", store, "--workers", "2", "--fsync", "always")
        self.address = f"{LOOPBACK}:{free_port()}"
        self.words[self.words.index("--listen") + 1] = self.address
        self.told: dict[str, Told] = {}
        self.pushed: list[str] = []

    def command(self) -> list[str]:
        return ["/usr/bin/env", f"MILLSTREAM_DRAIN_S={DRAIN_S:g}", *super().command()]

    def crowd(self, name: str) -> Crowd:
        return Crowd([self.address], USERS, name, model_id=MODEL, again=True, think_s=0.2)

    def pushing(self, name: str) -> Pushing:
        return Pushing(self.addresses["redis"], name, model_id=MODEL)

    def remember(self, crowd: Crowd, pushing: Pushing) -> None:
        """What its callers were told counts until the books are closed."""
        assert {each.ended for each in crowd.told.values()} == {"OK"}
        self.told |= crowd.told
        self.pushed += pushing.acknowledged

    def close_books(self, *, supervised: bool = True) -> None:
        """Everything that was ever accepted is in the event log, once."""
        with connect(self.addresses["redis"]) as client:
            book = Ledger(client, Keys(), MODEL)
            book.drained()
            accepted = int(client.hget(Keys().model(MODEL).count, "accepted") or 0)
            eventually(lambda: len(logged(self.addresses["event_log"], MODEL)) >= accepted, within=30)
            book.closed(
                logged(self.addresses["event_log"], MODEL), self.told, pushed=self.pushed, supervised=supervised
            )

    def replaced(self) -> int:
        """How many children have taken the place of another."""
        return self.said.count("is in its place")


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """The tests of this file go on with it in order."""
    with House(tmp_path_factory.mktemp("house")) as house:
        yield house


def test_sigterm_to_one_process_after_another_loses_nothing(house: House) -> None:
    with house.crowd("one") as crowd, house.pushing("one") as pushing:
        for role in ("worker", "gateway", "sink", "registry", "server") * REPEATS:
            crowd.under_way()
            pushing.under_way()
            replaced = house.replaced()
            pid = house.server_pid() if role == "server" else house.pid_of(role)
            os.kill(pid, signal.SIGTERM)
            eventually(lambda pid=pid: pid not in processes_of(house.state), within=BOUND_S)  # type: ignore[misc]
            eventually(lambda replaced=replaced: house.replaced() > replaced, within=BACK_S)  # type: ignore[misc]
        crowd.under_way()
    house.remember(crowd, pushing)
    house.close_books()


def test_sigterm_to_all_processes_at_once_loses_nothing_and_ends_in_bounded_time(house: House) -> None:
    """As a container runtime or a terminal does it; the server outlives those who need it."""
    with house.crowd("all") as crowd, house.pushing("all") as pushing:
        crowd.under_way()
        pushing.under_way()
        for pid in processes_of(house.state):
            os.kill(pid, signal.SIGTERM)
        assert until_gone(house.state, within=BOUND_S) < BOUND_S
        eventually(lambda: crowd.waiting == USERS)
        house.kill()
        house.start()
        crowd.under_way()
    house.remember(crowd, pushing)
    house.close_books(supervised=False)


@pytest.mark.parametrize("who", ["up", "everybody"])
def test_killed_under_load_and_started_again_it_answers_and_records_what_was_accepted(house: House, who: str) -> None:
    with house.crowd(f"killed-{who}") as crowd, house.pushing(f"killed-{who}") as pushing:
        crowd.under_way()
        pushing.under_way()
        for pid in [house.pid] if who == "up" else processes_of(house.state):
            os.kill(pid, signal.SIGKILL)
        until_gone(house.state, within=BOUND_S)
        eventually(lambda: crowd.waiting == USERS)
        house.kill()
        house.start()
        crowd.under_way()
    house.remember(crowd, pushing)
    house.close_books(supervised=False)


def test_a_redis_that_is_emptied_under_load_is_filled_again_by_the_registry_and_serving_goes_on(house: House) -> None:
    """What waited in it is gone, as its operator wanted; who comes afterwards is answered and recorded."""
    with Crowd([house.address], USERS, "emptied", model_id=MODEL, deadline_s=3.0) as crowd:
        crowd.under_way()
        with connect(house.addresses["redis"]) as client:
            client.flushall()
        began = time.monotonic()
        eventually(lambda: _answered_since(crowd, began), within=BACK_S)
        crowd.under_way()
    ended = {each.ended for each in crowd.told.values()}
    assert ended <= {"OK", *NOT_THERE, "STORE_UNAVAILABLE", "DEADLINE_EXCEEDED", "DEADLINE_PASSED"}
    with connect(house.addresses["redis"]) as client:
        book = Ledger(client, Keys(), MODEL)
        book.drained()
        assert book.left_over() == []
    with house.crowd("afterwards") as crowd:
        crowd.under_way()
    assert {each.ended for each in crowd.told.values()} == {"OK"}
    # Where the log takes no events of a stream that is another one, until somebody says so, they are kept in it.
    eventually(lambda: set(crowd.told) <= _recorded_or_kept(house), within=30)


def _recorded_or_kept(house: House) -> set[str]:
    """Request ids of events that are in the log, or stand in their stream."""
    with connect(house.addresses["redis"]) as client:
        kept = streamed(client, Keys(), MODEL)
    return {event.request_id for event in (*kept, *logged(house.addresses["event_log"], MODEL))}


def _answered_since(crowd: Crowd, began: float) -> bool:
    return any(each.ended == "OK" and each.began > began for each in list(crowd.told.values()))
