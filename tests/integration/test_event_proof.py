"""The log against those who change it: every kind of edit is found, and what was erased on purpose is told apart."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from hashlib import sha256
from itertools import islice
from pathlib import Path

import pytest

from consumers.audit.erasure import entity_mark
from consumers.audit.log_files import parquet
from consumers.audit.reading import open_stopped
from consumers.audit.verify import verify
from consumers.sink.database import EventDatabase
from consumers.sink.intake import EventIntake
from consumers.sink.position import Seen
from consumers.sink.rows import no_names
from consumers.sink.schema import COLUMNS
from consumers.sink.sealing import Sealing, Unsound
from consumers.sink.upkeep import Upkeep
from contract.settings import Settings
from protos import millstream_wire_v1_pb2 as wire
from tests.event_entries import header, ok
from tests.event_logs import MODEL, OTHER, PERSON, Log, links_of
from tests.servers import ROOT

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """Two segments and live rows of one model, live rows of another, and heads of them all; nobody changes it."""
    log = Log(tmp_path_factory.mktemp("recorded"))
    log.record(entries=3)
    log.seal()
    log.sign()
    log.record(entries=3)
    log.seal()
    log.record(entries=4)
    log.record(OTHER, entries=2)
    log.sign()
    return log


@pytest.fixture
def log(recorded: Log, tmp_path: Path) -> Log:
    return recorded.copied_to(tmp_path / "state")


# Running numbers: each third entry has four events, the others three.
FIRST_LIVE, LAST = 21, 33
"""Of the live rows of the log above."""


@pytest.fixture(scope="module")
def recorded_live(tmp_path_factory: pytest.TempPathFactory) -> Log:
    """Live rows of one model alone, ten of them in three entries; nobody changes it."""
    log = Log(tmp_path_factory.mktemp("recorded_live"))
    log.record(entries=3)
    return log


@pytest.fixture
def live(recorded_live: Log, tmp_path: Path) -> Log:
    return recorded_live.copied_to(tmp_path / "state")


def test_a_log_that_nobody_changed_is_as_it_was_recorded(log: Log) -> None:
    found = log.verified()
    assert found.findings == []
    assert (found.events, found.segments, found.uncovered) == (33, 2, 0)
    # One at each time of signing, and one for each segment.
    assert (found.heads, found.vouched_number) == (4, LAST)
    assert log.verified(OTHER).sound


# ---------------------------------------------------------------- rows


def _other_value(name: str, kind: str) -> str:
    """SQL for another value of the same kind."""
    if name == "origins":
        return """'{"1":"file"}'"""
    if name == "hydrated":
        return r"'\x62\x04\x08\x01\x10\x02'::BLOB"
    if name == "model_id":
        return "'churn'"
    if kind == "JSON":
        return "'[[0.5,45.0]]'" if name == "inputs" else """'[{"roi_pct":0.2}]'"""
    if kind == "TIMESTAMPTZ":
        return f"coalesce({name} + INTERVAL 1 MICROSECOND, TIMESTAMPTZ '2026-01-01 00:00:00+00')"
    if kind == "BLOB":
        return rf"coalesce({name} || '\x00'::BLOB, '\x00'::BLOB)"
    if kind == "BOOLEAN":
        return f"NOT {name}"
    if kind == "VARCHAR":
        return f"coalesce({name}, '') || '0'"
    return f"coalesce({name}, 0) + 1"


FIRST, TEN = 4, 10
"""Of the second entry, and of the last."""


def test_another_value_in_any_column_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One column in each second entry, so that what is found of one is not found because of another.

    In its first row, which has something in nearly every column; `chain` stands in the last.
    """
    monkeypatch.setattr("consumers.audit.findings.MOST", 1000)
    log = Log(tmp_path / "state")
    log.record(entries=2 * len(COLUMNS))
    numbers = {}
    made = list(islice(links_of(MODEL), 2 * len(COLUMNS)))
    with log.opened() as connection:
        for column, (_, last, batch) in zip(COLUMNS, made[1::2], strict=True):
            number = last if column.name == "chain" else last - len(batch.events) + 1
            numbers[column.name] = range(last - len(batch.events) + 1, last + 1)
            connection.execute(
                f"UPDATE events SET {column.name} = {_other_value(column.name, column.kind)} "
                f"WHERE model_id = '{MODEL}' AND number = {number}"
            )
    found = {finding.number for finding in log.verified(heads=False).findings}
    assert [name for name, own in numbers.items() if found.isdisjoint(own)] == []


@pytest.mark.parametrize("name", ["appended_timestamp", "rows", "deliveries"])
def test_a_column_is_named_where_the_event_itself_says_otherwise(live: Log, name: str) -> None:
    """What no event is built from is held against it; of what events are built from any may be the one."""
    number = FIRST + 2  # keeps its bytes in `exact`, since no JSON holds its values
    other = "appended_timestamp + INTERVAL 1 SECOND" if name == "appended_timestamp" else f"{name} + 1"
    live.sql(f"UPDATE events SET {name} = {other} WHERE model_id = '{MODEL}' AND number = {number}")
    [finding] = live.verified(heads=False).findings
    assert (MODEL, number, f"{MODEL}-2-c", (name,)) == (
        finding.model_id,
        finding.number,
        finding.request_id,
        finding.columns,
    )


def test_a_row_that_was_deleted_is_found(live: Log) -> None:
    live.sql(f"DELETE FROM events WHERE model_id = '{MODEL}' AND number = {FIRST + 1}")
    assert any(f"comes after event {FIRST}" in text for text in live.texts(heads=False))


def test_an_entry_that_was_deleted_is_found(live: Log) -> None:
    live.sql(f"DELETE FROM events WHERE model_id = '{MODEL}' AND number BETWEEN {FIRST} AND {FIRST + 2}")
    missing = f"events {FIRST} to {FIRST + 2} are missing"
    assert any(missing in text for text in live.texts(heads=False))


def test_a_row_that_was_added_is_found(live: Log) -> None:
    live.sql(
        f"INSERT INTO events SELECT * REPLACE (sequence + 100000 AS sequence, number + 1 AS number, "
        f"'made-up' AS request_id) FROM events WHERE model_id = '{MODEL}' AND number = {TEN}"
    )
    assert not live.verified(heads=False).sound


@pytest.mark.parametrize("name", ["sequence", "number", "model_id", "event_entry_id", "request_id", "status", "chain"])
def test_a_row_that_has_nothing_where_every_row_has_something_is_found(live: Log, name: str) -> None:
    live.sql(f"UPDATE events SET {name} = NULL WHERE number = {FIRST + 2}")
    assert not live.verified(heads=False).sound


def test_a_row_that_was_added_before_what_is_sealed_is_found(log: Log) -> None:
    """Whoever reads segments and live rows together would take it for one that is sealed by now."""
    log.sql(
        f"INSERT INTO events SELECT * REPLACE (0 AS sequence, 'made-up' AS request_id) FROM events "
        f"WHERE model_id = '{MODEL}' AND number = {LAST}"
    )
    assert [finding.request_id for finding in log.verified(heads=False).findings] == ["made-up"]


def test_rows_that_changed_places_are_found(live: Log) -> None:
    live.sql(
        f"UPDATE events SET number = {FIRST + 4 + FIRST} - number WHERE model_id = '{MODEL}' "
        f"AND number IN ({FIRST}, {FIRST + 4})"
    )
    assert not live.verified(heads=False).sound


def test_an_end_that_was_cut_off_without_more_is_found_by_the_position(live: Log) -> None:
    live.sql(f"DELETE FROM events WHERE model_id = '{MODEL}' AND number > {TEN - 4}")
    assert any("the last events are missing" in text for text in live.texts(heads=False))


def test_a_finding_does_not_hide_the_next_one(log: Log) -> None:
    log.sql(
        f"UPDATE events SET outputs = '[{{\"roi_pct\":9.5}}]' WHERE model_id = '{MODEL}' "
        f"AND number IN ({FIRST_LIVE}, {LAST - 3})"
    )
    found = log.verified(heads=False)
    assert len(found.findings) == 2
    assert log.verified(OTHER, heads=False).sound


def test_events_that_were_recorded_before_there_was_a_chain_are_told(log: Log) -> None:
    log.sql(f"UPDATE events SET chain = NULL WHERE model_id = '{OTHER}'", "UPDATE positions SET chain = NULL")
    found = log.verified(OTHER, heads=False)
    assert found.findings == []
    assert found.notes == ["6 events were recorded before there was a chain: they are not covered"]


# ---------------------------------------------------------------- segments


def test_a_segment_that_is_missing_is_named_and_the_rest_is_verified(log: Log) -> None:
    segment = log.segment(0)
    log.path(segment).unlink()
    found = log.verified()
    assert [finding.what for finding in found.findings] == ["segment"]
    assert segment.file == found.findings[0].file
    assert (LAST, 33 - segment.rows) == (found.number, found.events)
    assert found.vouched_number == LAST


def test_a_segment_that_was_cut_short_is_named_and_the_rest_is_verified(log: Log) -> None:
    segment = log.segment(1)
    path = log.path(segment)
    path.write_bytes(path.read_bytes()[:-1000])
    found = log.verified()
    assert [segment.file] == [finding.file for finding in found.findings]
    assert found.vouched_number == LAST


def test_a_byte_of_a_segment_that_is_another_is_found(log: Log) -> None:
    path = log.path(log.segment(0))
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    assert any("SHA-256" in text for text in log.texts(heads=False))


def test_segments_that_changed_places_are_found(log: Log) -> None:
    one, other = log.path(log.segment(0)), log.path(log.segment(1))
    middle = one.with_suffix(".between")
    one.rename(middle)
    other.rename(one)
    middle.rename(other)
    assert {log.segment(0).file, log.segment(1).file} == {f.file for f in log.verified(heads=False).findings}


def test_a_segment_that_is_listed_no_more_is_found(log: Log) -> None:
    segment = log.segment(1)
    log.path(segment).unlink()
    log.sql(f"DELETE FROM segments WHERE first_sequence = {segment.first_sequence}")
    missing = f"events {segment.first_number} to {segment.last_number} are missing"
    assert any(missing in text for text in log.texts(heads=False))


def test_a_row_of_a_segment_that_was_written_anew_with_its_manifest_is_found(log: Log) -> None:
    segment = log.segment(0)
    log.rewrite(segment, "UPDATE events SET request_id = 'another' WHERE number = 4")
    content = log.path(segment).read_bytes()
    log.list_as(replace(segment, size=len(content), sha256=sha256(content).hexdigest()))
    found = log.verified(heads=False)
    assert any(finding.number in (4, 5, 6) for finding in found.findings)


@pytest.mark.parametrize(
    "other",
    [
        {"rows": 7},
        {"last_number": 99},
        {"chain_before": "11" * 32},
        {"chain_after": "22" * 32},
        {"chain_after": "no value"},
        {"sha256": "33" * 32},
        {"size": 77},
        {"erased": 1},
        {"first_entry": "1-1"},
        {"last_entry": "9-9"},
        {"last_request_us": 5},
        {"last_sequence": 1000},
    ],
    ids=lambda other: next(iter(other)),
)
def test_a_manifest_that_was_changed_is_found(log: Log, other: dict[str, int | str]) -> None:
    log.list_as(replace(log.segment(1), **other))  # type: ignore[arg-type]
    assert "segment" in {finding.what for finding in log.verified(heads=False).findings}


def test_a_manifest_that_is_another_beside_the_file_is_found(log: Log) -> None:
    """The sink goes by its own list; whoever reads the folder goes by this."""
    segment = log.segment(0)
    path = log.path(segment).with_name(segment.manifest)
    path.write_text(replace(segment, last_request_us=5).encode())
    assert [path.name] == [finding.file for finding in log.verified(heads=False).findings]


# ---------------------------------------------------------------- what the sink itself noted


def test_what_came_again_after_redis_lost_its_last_writes_is_no_finding(live: Log) -> None:
    """Running numbers fall, and an entry has an event that is left out since it is recorded already."""
    made = list(islice(links_of(MODEL), 6))
    again = wire.EventBatch(header=header(batch_id="w2-1"), events=[made[2][2].events[0], ok("new-1"), ok("new-2")])
    later = [("1700000009000-0", 9, again), ("1700000009001-0", 13, made[2][2])]
    later += [(f"1700000009{number:03}-0", number, batch) for _, number, batch in made[4:]]
    database = EventDatabase(live.database)
    intake = EventIntake(database)
    intake.look(MODEL, Seen("", 6, made[1][0], 2))
    for entry_id, number, batch in (*made[:2], *later):
        fields = {b"n": str(number).encode(), b"pb": batch.SerializeToString(deterministic=True)}
        assert intake.take(MODEL, entry_id, fields, no_names)
        database.commit(intake.batch())
        if number == 16:
            Sealing(database).seal(MODEL, most_rows=100)
    database.close()
    live.sign()
    found = live.verified()
    # Ten, then two that are new, then two entries more.
    assert (found.findings, len(live.rows("SELECT why FROM gaps")), found.events) == ([], 1, 12 + 3 + 4)


def test_a_gap_that_was_accepted_is_no_finding_and_one_that_was_not_noted_is(live: Log) -> None:
    """Redis was emptied and numbers begin again, and then an entry could not be read."""
    database = EventDatabase(live.database)
    intake = EventIntake(database, accept_gap=True)
    intake.look(MODEL, Seen("first", 10, "1800000000000-0", 1))
    intake.look(MODEL, Seen("another", 3, "1800000000000-0", 1))
    batch = wire.EventBatch(header=header(), events=[ok("n1"), ok("n2"), ok("n3")])
    raw = batch.SerializeToString(deterministic=True)
    assert intake.take(MODEL, "1800000000000-0", {b"n": b"3", b"pb": raw}, no_names)
    assert intake.take(MODEL, "1800000000001-0", {b"n": b"7", b"pb": b"no batch"}, no_names)
    assert intake.take(MODEL, "1800000000002-0", {b"n": b"10", b"pb": raw}, no_names)
    database.commit(intake.batch())
    database.close()
    live.sign()
    found = live.verified()
    assert (found.findings, found.events) == ([], 16)
    live.sql("DELETE FROM gaps WHERE why LIKE '%can''t be read%'")
    assert any("events 14 to 17 are missing" in text for text in live.texts())


def test_what_is_recorded_sealed_and_erased_while_the_log_is_read_is_no_finding(live: Log, tmp_path: Path) -> None:
    """The live rows are read first, and then the list of segments, which may hold all of them by then, and more."""
    places = [tmp_path / "first", tmp_path / "then"]
    for place in places:
        place.mkdir()
    before = time.time_ns() // 1000
    first = open_stopped(live.database, places[0])
    live.record(entries=2)
    live.seal()
    live.sign()
    then = open_stopped(live.database, places[1])
    read = replace(then, live=first.live, positions=first.positions)
    [found] = verify(read, live.heads(), read_us=before)
    assert (found.findings, found.events, found.heads) == ([], 16, 2)
    live.record(entries=1)
    first = open_stopped(live.database, places[0])
    live.erase()
    then = open_stopped(live.database, places[1])
    [found] = verify(replace(then, live=first.live, positions=first.positions), live.heads(), read_us=before)
    assert found.findings == []


# ---------------------------------------------------------------- heads


def test_a_chain_that_was_computed_anew_is_found_by_heads_alone(log: Log) -> None:
    log.sql(f"UPDATE events SET outputs = '[{{\"roi_pct\":9.5}}]' WHERE model_id = '{MODEL}' AND number = {FIRST_LIVE}")
    log.recompute()
    assert log.verified(heads=False).sound
    [text] = log.texts()
    assert "heads were signed for another chain than this log has" in text
    # The head of the second segment agrees: what stands before the live rows is as it was.
    assert f"after event {FIRST_LIVE - 1}" in text


def test_an_end_that_was_cut_off_with_its_traces_is_found_by_heads_alone(log: Log) -> None:
    gone = f"model_id = '{MODEL}' AND number > {LAST - 4}"
    log.sql(f"DELETE FROM events WHERE {gone}", f"UPDATE positions SET number = {LAST - 4} WHERE model_id = '{MODEL}'")
    log.recompute()
    assert log.verified(heads=False).sound
    [text] = log.texts()
    assert f"the log ends at event {LAST - 4}" in text
    assert f"event {LAST} was recorded" in text


def test_a_model_that_was_removed_altogether_is_found_by_heads_alone(log: Log) -> None:
    log.sql(*(f"DELETE FROM {table} WHERE model_id = '{OTHER}'" for table in ("events", "positions")))
    [text] = log.texts(OTHER)
    assert "the log ends at event 0" in text


def test_a_file_is_all_there_is_before_the_chain_and_a_row_of_it_is_missed_by_heads(log: Log) -> None:
    """What is older than the chain has no digest; that it is fewer than before shows."""
    log.sql("UPDATE positions SET chain = NULL", f"UPDATE events SET chain = NULL WHERE model_id = '{OTHER}'")
    shutil.rmtree(log.folder / "heads")
    log.sign()
    log.sql(f"DELETE FROM events WHERE model_id = '{OTHER}' AND number = 6")
    assert not log.verified(OTHER).sound


def test_retention_that_nobody_vouches_for_is_found(log: Log) -> None:
    segment = log.segment(0)
    log.path(segment).unlink()
    log.sql(
        f"DELETE FROM segments WHERE first_sequence = {segment.first_sequence}",
        f"INSERT INTO anchors (model_id, number, chain, removed_at) VALUES ('{MODEL}', {segment.last_number}, "
        f"unhex('{segment.chain_after}'), now())",
    )
    found = log.verified()
    assert found.findings == []
    assert (LAST, 33 - segment.rows) == (found.vouched_number, found.events)
    log.sql(f"UPDATE anchors SET chain = unhex('{'44' * 32}')")
    texts = log.texts()
    assert any("in a value of the chain that no head has" in text for text in texts)


# ---------------------------------------------------------------- erasing


def _rows_about(log: Log) -> list[tuple[object, ...]]:
    """Every row of every file that still names the person, or a request about the person."""
    found = []
    with log.opened() as connection:
        sources = ["events", *(parquet([path]) for path in sorted(log.segments.glob("*/*.parquet")))]
        for source in sources:
            sql = f"SELECT model_id, number FROM {source} AS e WHERE CAST(e AS VARCHAR) LIKE '%{PERSON}%'"
            found += connection.execute(sql).fetchall()
    return found


def test_what_is_erased_is_gone_and_the_log_still_proves_itself(log: Log) -> None:
    """In live rows, in segments, and of all models; entries with an odd number are about that person."""
    before = log.verified()
    erased = log.erase(reason="asked to by letter")
    assert (erased.events, erased.segments) == (8, 2)
    assert _rows_about(log) == []
    # The old files are gone, and each manifest stands beside its file.
    segments = [log.segment(place) for place in (0, 1)]
    there = sorted(path.name for path in (log.segments / MODEL).iterdir())
    assert sorted(name for segment in segments for name in (segment.file, segment.manifest)) == there
    found = log.verified()
    assert found.findings == []
    assert (before.chain, before.heads, 7) == (found.chain, found.heads, found.erased)
    assert len(found.erasures) == 1
    assert "7 events were erased at" in found.erasures[0]
    assert "asked to by letter" in found.erasures[0]
    assert ((other := log.verified(OTHER)).erased, other.findings) == (1, [])


def test_what_is_not_about_the_entity_is_left_as_it_was(log: Log) -> None:
    sql = f"SELECT * EXCLUDE (exact_header) FROM events WHERE entity_id IS DISTINCT FROM '{PERSON}' ORDER BY sequence"
    with log.opened() as connection:
        before = connection.execute(f"SELECT CAST(e AS VARCHAR) FROM ({sql}) AS e").fetchall()
    log.erase()
    with log.opened() as connection:
        kept = f"SELECT CAST(e AS VARCHAR) FROM ({sql}) AS e WHERE erased_at IS NULL"
        assert before == connection.execute(kept).fetchall()


def test_an_erased_row_keeps_its_place_its_times_and_its_digest(log: Log) -> None:
    log.erase()
    with log.opened() as connection:
        sql = (
            "SELECT status, version, worker, epoch_us(user_request_timestamp), octet_length(erased_sha256), inputs, "
            f"outputs, request_id, caller, body_sha256 FROM events WHERE model_id = '{MODEL}' AND number = {FIRST_LIVE}"
        )
        expected = ("OK", "1.0.0", "w1", 1_700_000_007_000_000, 32, None, None, None, None, None)
        assert [expected] == connection.execute(sql).fetchall()


def test_one_model_alone_can_be_erased_and_the_next_erasure_adds_to_it(log: Log) -> None:
    assert ((first := log.erase(model_id=OTHER)).events, first.segments) == (1, 0)
    assert (log.verified(MODEL).erased, log.verified(OTHER).erased) == (0, 1)
    assert log.erase().events == 7
    second = log.erase("202")
    assert (second.events, second.segments) == (7, 2)
    found = log.verified()
    assert (found.findings, found.erased) == ([], 13)
    assert log.segment(0).file.endswith(".erased-2.parquet")


def test_an_entity_that_is_in_no_event_leaves_no_trace(log: Log) -> None:
    before = log.segment(0)
    assert ((erased := log.erase("nobody")).events, erased.segments) == (0, 0)
    assert (before, []) == (log.segment(0), log.verified().erasures)


def test_the_record_of_an_erasure_can_t_be_searched_without_the_key(log: Log) -> None:
    """Ids are short: a plain digest would be found by trying them."""
    log.erase()
    with log.opened() as connection:
        marks = {mark for (mark,) in connection.execute("SELECT entity_sha256 FROM erasures").fetchall()}
    assert {entity_mark(PERSON, log.key)} == marks
    assert marks.isdisjoint({sha256(PERSON.encode()).digest()})


def test_what_was_emptied_without_an_erasure_is_found(log: Log) -> None:
    """As erasing does it, but nobody asked."""
    log.erase()
    log.sql(f"UPDATE erasures SET events = events - 1 WHERE model_id = '{MODEL}'")
    assert any("more were emptied than anybody asked for" in text for text in log.texts(heads=False))


def test_an_erasure_that_was_invented_for_what_a_head_knew_is_found(log: Log) -> None:
    log.erase()
    log.sign()
    assert log.verified().sound
    log.sql(f"UPDATE erasures SET events = events + 3 WHERE model_id = '{MODEL}'")
    assert any("record of erasures says" in text for text in log.texts())


def test_a_value_that_was_put_into_an_erased_row_is_found(log: Log) -> None:
    log.erase()
    log.sql(f"UPDATE events SET outputs = '[1]' WHERE model_id = '{MODEL}' AND number = {FIRST_LIVE}")
    [finding] = log.verified(heads=False).findings
    assert (finding.number, finding.columns) == (FIRST_LIVE, ("outputs",))


def test_the_digest_of_an_erased_row_is_in_the_chain(log: Log) -> None:
    log.erase()
    log.sql(
        f"UPDATE events SET erased_sha256 = unhex('{'55' * 32}') WHERE model_id = '{MODEL}' AND number = {FIRST_LIVE}"
    )
    assert not log.verified(heads=False).sound


def test_nothing_is_erased_where_a_segment_can_t_be_read(log: Log) -> None:
    """It may hold some of it."""
    path = log.path(log.segment(1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-1000])
    with pytest.raises(Unsound, match=log.segment(1).file):
        log.erase()
    path.write_bytes(whole)
    found = log.verified()
    assert (found.findings, found.erased) == ([], 0)
    assert len(list((log.segments / MODEL).iterdir())) == 4


ENDS = """
import os, signal, sys
from pathlib import Path
from consumers.sink.erasing import Erasing
from tests.event_logs import Log

def end(*_):
    os.kill(os.getpid(), signal.SIGKILL)

setattr(Erasing, sys.argv[2], end)
Log(Path(sys.argv[1])).erase()
"""


@pytest.mark.parametrize(("point", "erased"), [("_commit", 0), ("_remove", 7)])
def test_an_erasure_that_was_killed_is_done_or_not_and_leaves_nothing_behind(log: Log, point: str, erased: int) -> None:
    """Before its transaction, with new files beside the old ones, and after it, with old ones beside the new."""
    ended = subprocess.run([sys.executable, "-c", ENDS, str(log.folder), point], cwd=ROOT, check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    database = EventDatabase(log.database)
    Upkeep(Settings.read(), database).tidy()
    database.close()
    segments = [log.segment(place) for place in (0, 1)]
    there = sorted(path.name for path in (log.segments / MODEL).iterdir())
    assert sorted(name for segment in segments for name in (segment.file, segment.manifest)) == there
    found = log.verified()
    assert ([], erased) == (found.findings, found.erased)
    assert (erased == 0) == bool(_rows_about(log))
