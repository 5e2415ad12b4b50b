"""What a stream that does not go on from the log's position is taken for."""

from __future__ import annotations

import pytest

from consumers.sink.position import Finding, Position, Seen, another_alarm, judge_entry, judge_stream, missing_alarm

AT = Position("50-0", 100, "e1")


@pytest.mark.parametrize(
    ("at", "seen", "expected"),
    [
        pytest.param(Position(), Seen("", 0, "0-0", 0), Finding.ON, id="nothing anywhere"),
        pytest.param(Position(), Seen("e1", 7, "50-0", 3), Finding.ON, id="first start: its first entry decides"),
        pytest.param(Position(), Seen("e1", 7, "50-0", 0), Finding.MISSING, id="deleted database, all of it trimmed"),
        pytest.param(Position(epoch="e0"), Seen("e1", 0, "0-0", 0), Finding.ON, id="nothing recorded, nothing lost"),
        pytest.param(AT, Seen("e1", 100, "50-0", 0), Finding.ON, id="all of it recorded and trimmed"),
        pytest.param(AT, Seen("e1", 100, "50-0", 2), Finding.ON, id="all of it recorded, not yet trimmed"),
        pytest.param(AT, Seen("e1", 130, "60-0", 2), Finding.ON, id="more to read"),
        pytest.param(AT, Seen("e1", 130, "60-0", 0), Finding.MISSING, id="older database, the rest trimmed"),
        pytest.param(AT, Seen("e1", 90, "45-3", 1), Finding.BEHIND, id="it lost its last entries"),
        pytest.param(AT, Seen("e1", 90, "45-3", 0), Finding.BEHIND, id="it lost them, and the rest is trimmed"),
        pytest.param(AT, Seen("e1", 120, "49-9", 4), Finding.BEHIND, id="lower ids again: the clock was set back"),
        pytest.param(AT, Seen("e2", 130, "60-0", 2), Finding.ANOTHER, id="another server"),
        pytest.param(AT, Seen("", 0, "0-0", 0), Finding.ANOTHER, id="emptied"),
        pytest.param(AT, Seen("", 100, "50-0", 0), Finding.ANOTHER, id="only its epoch is gone"),
        pytest.param(Position("50-0", 100), Seen("e1", 100, "50-0", 0), Finding.ON, id="a log that knows no epoch yet"),
    ],
)
def test_a_stream_is_judged_by_its_epoch_its_number_and_its_ids(at: Position, seen: Seen, expected: Finding) -> None:
    assert judge_stream(at, seen) == expected


@pytest.mark.parametrize(
    ("at", "number", "events", "expected"),
    [
        pytest.param(Position(), 1, 1, Finding.ON, id="the first event of all"),
        pytest.param(Position(), 512, 512, Finding.ON, id="the first entry of all"),
        pytest.param(Position(), 513, 512, Finding.MISSING, id="one was before it"),
        pytest.param(AT, 103, 3, Finding.ON, id="the next ones"),
        pytest.param(AT, 104, 3, Finding.MISSING, id="one is gone between"),
        pytest.param(AT, 102, 3, Finding.BEHIND, id="one of them again"),
        pytest.param(AT, 3, 3, Finding.BEHIND, id="from the beginning"),
    ],
)
def test_an_entry_is_judged_by_its_number(at: Position, number: int, events: int, expected: Finding) -> None:
    assert judge_entry(at, number, events) == expected


@pytest.mark.parametrize(
    ("text", "says"), [(missing_alarm(AT, 130), "events 101 to 130 are gone"), (another_alarm(), "Redis was emptied")]
)
def test_an_alarm_says_what_is_wrong_and_what_to_do(text: str, says: str) -> None:
    assert says in text
    assert "recording of this model is stopped" in text
    assert "once with --accept-gap" in text
