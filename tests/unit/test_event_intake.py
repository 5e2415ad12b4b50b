"""Entries on their way into the log: the log's own running number, and its chain, whatever becomes of the stream."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest

from consumers.audit.chain import BEGINNING
from consumers.audit.rebuild import links, read_rows
from consumers.sink.database import EventDatabase
from consumers.sink.intake import EventIntake
from consumers.sink.position import Position, Seen
from consumers.sink.rows import no_names
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.event_entries import header, ok

MODEL = "roi_prediction"


class Log:
    """A database and its intake, without a Redis."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.database = EventDatabase(path)
        self.intake = EventIntake(self.database, accept_gap=True)

    def take(self, entry_id: str, number: int, *names: str) -> bool:
        events = [ok(name) for name in names]
        raw = wire.EventBatch(header=header(), events=events).SerializeToString(deterministic=True)
        return self.intake.take(MODEL, entry_id, {b"n": str(number).encode(), b"pb": raw}, no_names)

    def commit(self) -> None:
        self.database.commit(self.intake.batch())

    def again(self) -> None:
        """Ends and starts once more."""
        self.database.close()
        self.__init__(self.path)  # type: ignore[misc]

    @property
    def numbers(self) -> dict[str, int]:
        """Request id -> running number, in the order of commit."""
        with self.database.cursor() as cursor:
            return dict(cursor.execute("SELECT request_id, number FROM events ORDER BY sequence").fetchall())

    @property
    def chain(self) -> bytes:
        """Of the rows, link by link; raises AssertionError where it is not what stands there."""
        value = BEGINNING
        with self.database.cursor() as cursor:
            for link in links(read_rows(cursor)):
                value = link.after(value)
                assert value == link.chain
        return value

    @property
    def position(self) -> Position:
        return self.database.positions()[MODEL]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    log = Log(tmp_path / "events.duckdb")
    yield log
    log.database.close()


def test_a_stream_that_counts_again_gives_numbers_that_go_on(log: Log) -> None:
    """Of what comes again only the new takes a number, so that there are no holes either."""
    log.take("5-0", 3, "a", "b", "c")
    log.commit()
    log.intake.look(MODEL, Seen("e1", 1, "4-0", 0))
    log.commit()
    assert log.take("6-0", 3, "c", "d")
    assert log.take("7-0", 4, "e")
    log.commit()
    assert log.numbers == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5}
    assert (log.position.number, log.position.ahead) == (4, 1)
    assert log.position.chain == log.chain
    log.again()
    assert log.take("8-0", 5, "f")
    log.commit()
    assert log.numbers["f"] == 6
    assert log.position.chain == log.chain


def test_another_stream_goes_on_behind_the_one_before(log: Log) -> None:
    log.take("5-0", 2, "a", "b")
    log.commit()
    log.again()
    log.intake.look(MODEL, Seen("e1", 2, "5-0", 1))
    log.take("6-0", 3, "c")
    log.commit()
    log.again()
    log.intake.look(MODEL, Seen("e2", 1, "1-0", 1))
    log.take("1-0", 1, "d")
    log.commit()
    assert log.numbers == {"a": 1, "b": 2, "c": 3, "d": 4}
    assert log.position.chain == log.chain


def test_events_that_are_gone_leave_a_hole_of_their_size(log: Log) -> None:
    log.take("5-0", 2, "a", "b")
    log.commit()
    log.again()
    log.take("9-0", 8, "h")
    log.commit()
    assert log.numbers == {"a": 1, "b": 2, "h": 8}
    with log.database.cursor() as cursor:
        assert cursor.execute("SELECT expected, found FROM gaps").fetchall() == [(3, 8)]


def test_what_the_database_refused_is_not_in_the_chain(log: Log) -> None:
    """Each entry by itself, and each reaches its own position."""
    for number, name in enumerate("abc", start=1):
        log.take(f"{number}-0", number, name)
    parts = list(log.intake.batch().apart())
    assert [part.positions[MODEL].number for part in parts] == [1, 2, 3, 3]
    for part in parts:
        refused = "b" in [name for link in part.links for name in link.column("request_id")]
        log.database.commit(part.refused("it is odd") if refused else part)
        assert log.position.chain == log.chain
    assert log.numbers == {"a": 1, "c": 3}
    log.take("4-0", 4, "d")
    log.commit()
    assert log.position.chain == log.chain


def test_a_commit_that_nobody_knows_of_is_known_by_its_position(log: Log) -> None:
    log.take("5-0", 1, "a")
    batch = log.intake.batch()
    log.database.commit(batch)
    assert batch.is_in(log.database.positions())
    assert not replace(batch, positions={MODEL: Position("6-0", 2)}).is_in(log.database.positions())


def test_a_commit_that_raised_is_not_in_the_chain_of_the_next(log: Log) -> None:
    log.take("1-0", 1, "a")
    log.commit()
    log.take("2-0", 2, "b")
    batch = log.intake.batch()
    with pytest.raises(duckdb.Error):
        log.database.commit(replace(batch, positions={MODEL: replace(batch.positions[MODEL], number=2**64)}))
    assert log.numbers == {"a": 1}
    log.database.commit(batch)
    log.take("3-0", 3, "c")
    log.commit()
    assert log.numbers == {"a": 1, "b": 2, "c": 3}
    assert log.position.chain == log.chain


def test_who_waits_for_the_next_commit_is_known(log: Log) -> None:
    assert not log.database.followed
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(log.database.wait_beyond, 0, 20.0)
        eventually(lambda: log.database.followed)
        log.take("1-0", 1, "a")
        log.commit()
        assert waiting.result(20) == 1
    assert not log.database.followed


def test_a_log_of_an_earlier_version_goes_on_with_the_beginning(log: Log) -> None:
    log.take("5-0", 2, "a", "b")
    log.commit()
    with log.database.cursor() as cursor:
        cursor.execute("UPDATE events SET chain = NULL, number = number + 10")
        cursor.execute("UPDATE positions SET chain = NULL, ahead = NULL")
    log.again()
    log.take("6-0", 3, "c")
    log.commit()
    with log.database.cursor() as cursor:
        *_, last = links(read_rows(cursor))
    assert last.after(BEGINNING) == last.chain == log.position.chain
    assert log.numbers["c"] == 13
