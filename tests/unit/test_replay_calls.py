"""Predict calls put together again from rows of a log."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import duckdb
import numpy as np
import pytest

from consumers.replay import calls as module
from consumers.replay.calls import NEAR, Call, Selection, calls, read_calls, wanted_events
from consumers.replay.recorded import Unreadable
from consumers.sink.schema import CREATE
from tests.unit.test_replay_recorded import recorded


class Log:
    """A log in memory, one row after the other."""

    def __init__(self) -> None:
        self.connection = duckdb.connect()
        self.connection.execute("SET TimeZone = 'UTC'")
        self.connection.execute(CREATE[0])
        self._sequence = 0

    def add(self, batch: str, position: int, *, of: int, **changes: Any) -> int:
        """The number of the row; `sequence` goes on by itself unless it is given."""
        self._sequence = int(changes.pop("sequence", self._sequence + 1))
        asked = changes.pop("asked", 0)
        row: dict[str, Any] = {
            "sequence": self._sequence,
            "number": self._sequence,
            "model_id": "m",
            "status": "OK",
            "version": "1.0.0",
            "digest": "d1",
            "request_id": f"r{self._sequence}",
            "batch_id": batch,
            "batch_rows": of,
            "batch_position": position,
            "rows": 1,
            "inputs": f"[[{float(self._sequence)}]]",
            "inputs_form": "matrix",
            "outputs": '[{"out":1.0}]',
            **changes,
        }
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        sql = f"INSERT INTO events ({names}, user_request_timestamp) VALUES ({marks}, make_timestamptz(?))"
        self.connection.execute(sql, [*row.values(), asked])
        return self._sequence

    def calls(self, limit: int = 0, **selection: Any) -> list[tuple[list[int], list[int]]]:
        """Numbers of each call's events, and of those that were asked for."""
        found = read_calls(self.connection, Selection(**selection), limit)
        return [([e.number for e in call.events], [e.number for e in call.wanted]) for call in found]


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    yield log
    log.connection.close()


def test_rows_of_several_calls_that_stand_mixed_are_taken_apart_and_ordered_by_position(log: Log) -> None:
    log.add("w1-1", 1, of=3)
    log.add("w2-1", 0, of=1)
    log.add("w1-1", 0, of=3)
    log.add("w1-1", 2, of=3)
    log.add("w1-2", 0, of=2)
    assert log.calls() == [([2], [2]), ([3, 1, 4], [3, 1, 4]), ([5], [5])]


def test_who_shared_a_call_comes_along_whatever_was_asked_for(log: Log) -> None:
    log.add("w1-1", 0, of=3, asked=1_000_000, entity_id="7")
    log.add("w1-1", 1, of=3, asked=9_000_000, entity_id="8", replay="again")
    log.add("w1-1", 2, of=3, asked=3_000_000, request_id="mine")
    log.add("w1-2", 0, of=1, asked=2_000_000)
    whole = [1, 2, 3]
    assert log.calls(entity_id="7") == [(whole, [1])]
    assert log.calls(request_id="mine") == [(whole, [3])]
    assert log.calls(since_us=1_500_000, until_us=3_000_001) == [(whole, [3]), ([4], [4])]
    assert log.calls(since_us=1_000_000, until_us=1_000_000) == []
    assert log.calls(model_id="m") == [(whole, [1, 3]), ([4], [4])]
    assert log.calls(replay="again") == [(whole, [2])]
    assert log.calls(replay="*") == [(whole, whole), ([4], [4])]
    assert log.calls(model_id="another") == []
    assert wanted_events(log.connection, Selection()) == {"m": 3}


def test_what_was_never_predicted_stands_alone_and_only_where_it_was_asked_for(log: Log) -> None:
    log.add("w1-1", 0, of=0, status="INVALID")
    log.add("w1-2", 0, of=2)
    log.add("w1-2", 0, of=2, status="FAILED")
    log.add("w1-2", 1, of=2)
    log.add("w1-3", 0, of=1, status="SHADOW", error_reason="MODEL_FAILED")
    log.add("", 0, of=0, status="CANCELLED")
    assert log.calls() == [([1], [1]), ([3], [3]), ([2, 4], [2, 4]), ([5], [5]), ([6], [6])]
    assert log.calls(request_id="r4") == [([2, 4], [4])]


def test_a_long_log_is_read_in_pieces_that_tear_no_call(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE_ROWS", 7)
    expected = []
    for number in range(40):
        mates = [log.add(f"w1-{number}", position, of=3) for position in range(3)]
        expected.append((mates, mates))
    assert sorted(log.calls()) == expected
    some = sorted(log.calls(limit=10))
    assert [asked for _, asked in some] == [asked for _, asked in expected[:3]] + [[10]]
    assert [mates for mates, _ in some] == [mates for mates, _ in expected[:4]]


def test_a_limit_counts_events_of_all_models_together(log: Log) -> None:
    for number in range(6):
        log.add(f"w1-{number}", 0, of=1, model_id="ab"[number // 3])
    assert [asked for _, asked in log.calls(limit=4)] == [[1], [2], [3], [4]]


def test_running_numbers_that_begin_again_are_told_apart_by_their_place_in_the_log(log: Log) -> None:
    for sequence in (1, 2):
        log.add(f"w{sequence}-1", 0, of=1, number=1, sequence=sequence)
    assert log.calls() == [([1], [1]), ([1], [1])]


def test_a_call_that_stays_incomplete_is_not_waited_for_to_the_end() -> None:
    torn = recorded(sequence=1, batch_id="torn", batch_rows=2)
    later = [recorded(sequence=NEAR + place, batch_id=f"w-{place}") for place in range(1, 5)]
    found = list(calls(iter([torn, *later])))
    assert [(call.events[0].batch_id, call.is_whole) for call in found[:3]] == [
        ("w-1", True),
        ("torn", False),
        ("w-2", True),
    ]


def test_rows_that_are_missing_are_filled_in_so_that_all_others_stand_in_their_places() -> None:
    events = [
        recorded(position=1, inputs_text="[[2.0],[3.0]]", rows=2),
        recorded(position=4, is_erased=True, inputs_text=None),
        recorded(position=5, inputs_text="[[6.0]]"),
    ]
    rows = Call(tuple(events), 8).inputs()
    assert isinstance(rows, np.ndarray)
    assert rows[:, 0].tolist() == [2.0, 2.0, 3.0, 2.0, 2.0, 6.0, 2.0, 2.0]


def test_records_that_fit_together_in_no_way_are_said_to() -> None:
    first, second = recorded(position=0), recorded(position=1)
    cases = {
        "another's": Call((first, recorded(position=0)), 2),
        "it had not": Call((first, second), 1),
        "different versions": Call((first, recorded(position=1, digest="d2")), 2),
        "numbers of rows": Call((first, recorded(position=1, batch_rows=7)), 2),
        "same features": Call((first, recorded(position=1, inputs_text="[[1.0,2.0]]")), 2),
        "none of the rows": Call((recorded(is_erased=True),), 1),
        "few of them": Call((first,), 2_000_000_000),
    }
    for says, call in cases.items():
        with pytest.raises(Unreadable, match=says):
            call.inputs()
