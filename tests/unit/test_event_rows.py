"""An entry of the events stream as columns."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.audit import chain
from consumers.sink.database import Batch, EventDatabase
from consumers.sink.position import Position
from consumers.sink.rows import Link, MalformedLink, chained, joined
from consumers.sink.schema import COLUMNS
from contract.wire import length_delimited
from protos import millstream_wire_v1_pb2 as wire
from tests.event_entries import DIGEST, T0, copied, failed, header, ok


def link(
    *events: wire.Event, number: int | None = None, entry_id: str = "5-0", head: wire.Header | None = None
) -> Link:
    batch = wire.EventBatch(header=head or header(), events=events)
    fields = {b"n": str(len(events) if number is None else number).encode(), b"pb": batch.SerializeToString()}
    return Link.decode("roi_prediction", entry_id, fields)


def gathered(*links: Link, first_sequence: int = 1) -> dict[str, Any]:
    """As they are inserted."""
    chains, _ = chained(links, {})
    return joined(links, first_sequence, chains)


def column(of: Link, name: str) -> list[Any]:
    return list(of.column(name))


def test_every_column_is_gathered_where_an_event_has_it() -> None:
    everything = failed("all")
    everything.entry.CopyFrom(
        ok(
            "all",
            entity_id="101",
            caller="bob",
            trace="t",
            body_sha256=b"2" * 32,
            replay="monday",
            hydrated=[wire.Hydrated(index=0, origin=wire.FILE)],
        ).entry
    )
    everything.refused_body = b"{"
    other_version = ok("b", version="2.0.0")
    columns = gathered(link(ok("r1")), link(everything, other_version, number=3))
    assert columns.keys() == {c.name for c in COLUMNS if c.form not in ("computed", "later")}
    assert {len(values) for values in columns.values()} == {3}


def test_numbers_end_at_the_links_own() -> None:
    assert column(link(ok("a"), ok("b"), ok("c"), number=10), "number") == [8, 9, 10]


def test_rows_of_several_links_follow_one_another() -> None:
    columns = gathered(link(ok("a"), ok("b")), link(ok("c"), number=3), first_sequence=7)
    assert list(columns["request_id"]) == ["a", "b", "c"]
    assert list(columns["sequence"]) == [7, 8, 9]


@given(
    st.lists(
        st.sampled_from(["plain", "failed", "bulk", "entity", "hydrated", "packed", "copy", "refused"]), min_size=1
    )
)
def test_events_together_are_the_same_as_each_alone(kinds: list[str]) -> None:
    """Fields that few events have are looked for in all of them at once."""
    made = {
        "plain": lambda: ok("plain"),
        "failed": lambda: failed("failed"),
        "bulk": lambda: _with(ok("bulk"), lane=wire.BULK, batch_position=4),
        "entity": lambda: ok("entity", entity_id="101", caller="bob", trace="t", deadline_us=T0, degraded=True),
        "hydrated": lambda: ok("hydrated", hydrated=[wire.Hydrated(index=0, origin=wire.FILE)]),
        "packed": lambda: ok("packed", packed=True, discard_reply=True, reply_ttl_s=9, body_sha256=b"2" * 32),
        "copy": lambda: copied(ok("copy", replay="monday")),
        "refused": lambda: _with(ok("refused", version="", digest=b""), refused_body=b"{", status=wire.INVALID),
    }
    events = [made[kind]() for kind in kinds]
    together = link(*events)
    alone = [link(event) for event in events]
    of_a_link = {"sequence", "number", "chain", "exact_header"}
    for name in (c.name for c in COLUMNS if c.name not in of_a_link and c.form != "computed"):
        assert [column(one, name)[0] for one in alone] == column(together, name), name


def _with(event: wire.Event, **fields: Any) -> wire.Event:
    for name, value in fields.items():
        setattr(event, name, value)
    return event


def test_only_computed_events_have_the_time_of_the_predict_call() -> None:
    expired = failed("late", "DEADLINE_PASSED")
    expired.status = wire.EXPIRED
    predicted = column(link(ok("r1"), expired), "predicted_at_timestamp")
    assert predicted == [T0 + 5_000_001, 0]


def test_an_event_that_its_columns_cannot_rebuild_is_kept_as_it_came() -> None:
    plain, other_version, no_time = ok("a"), ok("b", version="2.0.0", digest=b"2" * 32), ok("c", user_request_us=0)
    no_version, other_answer = ok("d", version=""), ok("d")
    other_answer.response.request_id = "e"
    of = link(plain, other_version, no_time, no_version, other_answer)
    kept = [event.SerializeToString(deterministic=True) for event in (other_version, no_time, no_version, other_answer)]
    assert [None, *kept] == column(of, "exact")
    assert column(of, "version") == ["1.0.0", "2.0.0", "1.0.0", "1.0.0", "1.0.0"]
    assert [DIGEST.hex(), (b"2" * 32).hex(), *[DIGEST.hex()] * 3] == column(of, "digest")


def test_an_event_in_another_encoding_is_kept_as_it_came() -> None:
    """Fields that only a later version knows too: here they are in no column."""
    plain, explicit, unknown = (ok(name).SerializeToString(deterministic=True) for name in "abc")
    explicit += bytes.fromhex("4000")
    unknown += bytes.fromhex("f83e05")
    parts = [length_delimited(b"\x12", each) for each in (plain, explicit, unknown)]
    raw = length_delimited(b"\x0a", header().SerializeToString()) + b"".join(parts)
    of = Link.decode("roi_prediction", "5-0", {b"n": b"3", b"pb": raw})
    assert column(of, "exact") == [None, explicit, unknown]


def test_a_field_that_is_said_to_be_nothing_hides_no_other_ones() -> None:
    """Each event is looked at, though the last one says outright that it was on the first lane."""
    bulk, other = _with(ok("a"), lane=wire.BULK), ok("b").SerializeToString() + bytes.fromhex("2000")
    parts = [length_delimited(b"\x12", each) for each in (bulk.SerializeToString(), other)]
    of = Link.decode("roi_prediction", "5-0", {b"n": b"2", b"pb": b"".join(parts)})
    assert column(of, "lane") == ["bulk", "requests"]


@pytest.mark.parametrize("micros", [-(2**63), 2**62, -62_135_596_800_000_000])
def test_times_of_an_answer_that_no_calendar_has_are_none(micros: int) -> None:
    event = failed("a")
    event.response.predicted_at_timestamp.seconds, event.response.predicted_at_timestamp.nanos = micros, 5
    of = link(event)
    assert (column(of, "predicted_at_timestamp"), column(of, "exact")[0] is None) == ([0], False)


def test_a_status_and_a_lane_of_a_later_protocol_are_kept_as_numbers() -> None:
    event = wire.Event.FromString(ok("a").SerializeToString() + b"\x18\x63\x20\x07")
    of = link(event)
    assert (column(of, "status"), column(of, "lane")) == (["99"], ["7"])


@pytest.mark.parametrize(
    "fields", [{}, {b"n": b"1"}, {b"n": b"1", b"pb": b"\xff"}, {b"n": b"\xb2", b"pb": b""}], ids=repr
)
def test_what_is_no_link_says_what_was_expected(fields: dict[bytes, bytes]) -> None:
    with pytest.raises(MalformedLink, match="expected "):
        Link.decode("m", "1-0", fields)


@given(st.binary(max_size=200))
def test_bytes_that_are_no_batch_raise_nothing_else(raw: bytes) -> None:
    with contextlib.suppress(MalformedLink):
        assert Link.decode("m", "1-0", {b"n": b"1", b"pb": raw}).events > 0


def test_rows_can_be_left_out() -> None:
    of = link(ok("a"), ok("b"), ok("c")).without(frozenset({1}))
    assert (of.events, column(of, "request_id"), column(of, "number")) == (2, ["a", "c"], [1, 3])
    whole = link(ok("a"), ok("b"), ok("c"))
    assert of.digests == (whole.digests[0], whole.digests[2])
    assert column(of.numbered(7), "number") == [7, 8]


def test_the_chain_of_a_model_goes_on_from_what_it_was() -> None:
    first, second = link(ok("a"), ok("b")), link(ok("c"), number=3, entry_id="6-0")
    before = bytes(range(32))
    expected = chain.link(before, "5-0", first.header, zip([1, 2], first.digests, strict=True))
    assert chained([first, second], {"roi_prediction": before}) == (
        [expected, second.after(expected)],
        {"roi_prediction": second.after(expected)},
    )
    columns = joined([first, second], 1, [b"1", b"2"])
    assert list(columns["chain"]) == [None, b"1", b"2"]


@pytest.fixture
def database(tmp_path: Path) -> Any:
    database = EventDatabase(tmp_path / "events.duckdb")
    yield database
    database.close()


def test_times_no_calendar_has_become_null(database: EventDatabase) -> None:
    event = ok("a", deadline_us=2**63 - 1, admitted_us=-(2**63))
    event.entry_id = "18446744073709551615-0"
    database.commit(Batch((link(event),), (), {"m": Position("5-0", 1)}))
    sql = "SELECT deadline_timestamp, appended_timestamp, epoch_us(user_request_timestamp) FROM events"
    assert database.cursor().execute(sql).fetchall() == [(None, None, T0)]


def test_a_request_without_a_time_has_that_of_its_append(database: EventDatabase) -> None:
    appended, neither = ok("a", user_request_us=0), ok("b", user_request_us=0)
    appended.entry_id, neither.entry_id = "1700000000001-0", ""
    database.commit(Batch((link(appended, neither, entry_id="1700000000002-0"),), (), {"m": Position("5-0", 1)}))
    sql = "SELECT epoch_us(user_request_timestamp) FROM events ORDER BY sequence"
    assert database.cursor().execute(sql).fetchall() == [(1700000000001000,), (1700000000002000,)]


def test_a_batch_is_committed_when_all_that_it_reaches_is() -> None:
    batch = Batch((link(ok("a"), entry_id="5-0"),), (), {"m": Position("5-0", 1, "e"), "n": Position("3-0", 7)})
    assert batch.is_in({"m": Position("5-0", 1, "e"), "n": Position("3-0", 7), "o": Position()})
    assert not batch.is_in({"m": Position("4-0", 0, "e"), "n": Position("3-0", 6)})
    assert not batch.is_in({"m": Position("5-0", 1, "e")})


def test_the_first_id_behind_a_position_is_the_next_one() -> None:
    assert (Position("5-9", 1).after, Position("5", 1).after) == ("5-10", "5-1")
