"""A log of 50,000 events in many segments: questions open those files alone that can hold an answer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from consumers.audit.segment import Segment
from consumers.sink.segments import Segments
from tests.scale import InProcess, Opened, at, opened
from tests.scale_events import KINDS, entries
from tests.scale_log import HOURS, Filling, committed

pytestmark = pytest.mark.integration

EVENTS = 50_000
ROWS = {"churn": 3000, "credit": 1500, "basket": 800}
"""Of a segment; the rest of each model stays live, and all of roi_prediction."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scale")
    with opened(folder) as log:
        for _ in committed(log.database, EVENTS, Filling()):
            pass
        sealing = InProcess(log.database)
        for model_id, rows in ROWS.items():
            sealing.seal(model_id, most_rows=rows, least_rows=rows)
    return folder


@pytest.fixture
def log(folder: Path) -> Iterator[Opened]:
    with opened(folder) as log:
        yield log


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The segments whose files were named to the database."""
    found: set[str] = set()
    source = Segments.source

    def watched(self: Segments, segments: list[Segment], *, live: bool) -> str:
        found.update(f"{segment.model_id}/{segment.file}" for segment in segments)
        return source(self, segments, live=live)

    monkeypatch.setattr(Segments, "source", watched)
    return found


def listed(log: Opened) -> list[Segment]:
    with log.database.cursor() as cursor:
        return log.database.segments.listed(cursor)


def test_a_models_hour_opens_the_segments_of_that_hour(log: Opened, read: set[str]) -> None:
    segments = listed(log)
    since, until = at(HOURS / 2), at(HOURS / 2 + 1)
    hour: dict[str, Any] = {"model_id": "churn", "since": since, "until": until}
    expected = {
        f"churn/{each.file}"
        for each in segments
        if each.model_id == "churn"
        and each.last_request_us >= since.ToMicroseconds()
        and each.first_request_us < until.ToMicroseconds()
    }
    events = log.query(limit=100_000, **hour)
    assert read == expected
    assert 0 < len(expected) < len(segments) / 4
    assert len(events) == log.count(**hour).events > 0
    asked = [event.user_request_timestamp.ToMicroseconds() for event in events]
    assert asked == sorted(asked, reverse=True)
    assert since.ToMicroseconds() <= asked[-1] <= asked[0] < until.ToMicroseconds()


def test_the_newest_come_from_few_files_and_the_oldest_too(log: Opened, read: set[str]) -> None:
    assert [event.model_id for event in log.query(model_id="roi_prediction", limit=5)] == ["roi_prediction"] * 5
    assert read == set()  # it has no segment
    newest = log.query(model_id="churn", limit=20)
    assert read == set()  # those that are in none are newer than all segments
    oldest = log.query(model_id="churn", limit=20, oldest_first=True)
    first = next(each for each in listed(log) if each.model_id == "churn")
    assert read == {f"churn/{first.file}"}
    assert newest[0].user_request_timestamp.seconds > oldest[0].user_request_timestamp.seconds


def test_every_request_is_found_by_its_id_and_one_that_nobody_has_is_not(log: Opened, read: set[str]) -> None:
    credit = next(kind for kind in KINDS if kind.own_ids)
    of_credit = log.count(model_id="credit").events
    for number in (1, of_credit // 2, of_credit):
        [event] = log.query(request_id=credit.own_id(number), model_id="credit")
        assert (event.model_id, event.request_id) == ("credit", credit.own_id(number))
    assert all(name.startswith("credit/") for name in read)
    assert log.query(request_id=credit.own_id(of_credit + 1)) == []
    assert len(read) == len(listed(log))  # none of them says by its manifest that it has not


def test_all_are_counted_once_and_their_requests_too(log: Opened) -> None:
    events, failed = Counter[str](), 0
    calls = Counter[str]()
    for some in entries(EVENTS, HOURS):
        for each in some:
            events[each.model_id] += each.events
            calls[each.model_id] += 1
            failed += each.events if calls[each.model_id] % 60 == 0 else 0
    counted = log.count()
    assert dict(counted.by_model) == dict(events)
    assert counted.by_status["FAILED"] == failed > 0
    assert counted.distinct_requests == counted.events == sum(events.values())
