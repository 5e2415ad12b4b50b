"""From the rows of the log back to every byte that stood in the stream."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import duckdb
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumers.audit.chain import BEGINNING
from consumers.audit.rebuild import (
    HEADER_COLUMNS,
    IN_ORDER,
    SELECT_ROWS,
    RebuiltLink,
    Row,
    altered_columns,
    links,
    read_rows,
)
from consumers.model.model import OutputColumn
from consumers.sink.pieces import cut
from consumers.sink.rows import Link, chained, joined
from consumers.sink.schema import COLUMNS, CREATE_EVENTS, GATHERED, NAMES, insert_events
from consumers.worker.answers import Answers
from contract.completion import BULK, INTERACTIVE, event, header
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.event_entries import T0, failed, matrix, ok
from tests.event_entries import header as head
from tests.event_shapes import MODEL, batches


class Table:
    """The table `events`, filled by the sink's own statements."""

    def __init__(self) -> None:
        self.connection = duckdb.connect(config={"threads": 1})
        self.connection.execute("SET TimeZone = 'UTC'")
        self.connection.execute(CREATE_EVENTS)
        self.chain = BEGINNING

    def insert(self, *batches: bytes, names: Any = None) -> None:
        """As entries 1-0, 2-0, … of one stream."""
        self.connection.execute("DELETE FROM events")
        number, decoded = 0, []
        for place, raw in enumerate(batches, start=1):
            number += len(cut(raw).events)
            fields = {b"n": str(number).encode(), b"pb": raw}
            decoded.append(Link.decode(MODEL, f"{place}-0", fields, names or (lambda _model, _digest: ())))
        chains, after = chained(decoded, {})
        gathered = joined(decoded, 1, chains)
        self.connection.register(GATHERED, gathered)
        self.connection.execute(insert_events(frozenset(gathered)))
        self.connection.unregister(GATHERED)
        self.chain = after[MODEL]

    def links(self) -> list[RebuiltLink]:
        return list(links(map(Row._make, self.connection.execute(SELECT_ROWS + IN_ORDER).fetchall())))

    def change(self, sql: str) -> None:
        self.connection.execute(f"UPDATE events SET {sql}")

    def column(self, name: str) -> list[Any]:
        return [
            value for (value,) in self.connection.execute(f"SELECT {name} FROM events ORDER BY sequence").fetchall()
        ]

    def altered(self) -> list[tuple[int, tuple[str, ...]]]:
        return [(each.row.number, each.columns) for each in altered_columns(self.links())]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    table = Table()
    yield table
    table.connection.close()


def batch(*events: wire.Event, **fields: Any) -> bytes:
    return wire.EventBatch(header=head(**fields), events=events).SerializeToString(deterministic=True)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(batches(), min_size=1, max_size=4))
def test_every_byte_comes_back(table: Table, raws: list[bytes]) -> None:
    table.insert(*raws)
    found = table.links()
    assert [(each.header, each.problem) for each in found] == [(cut(raw).header, "") for raw in raws]
    assert [[event.raw for event in each.events] for each in found] == [cut(raw).events for raw in raws]
    value = BEGINNING
    for each in found:
        value = each.after(value)
        assert value == each.chain
    assert value == table.chain
    assert table.altered() == []


KINDS: list[tuple[Any, Any]] = [
    ("float", np.array([0.0, -0.0, np.pi])),
    ("int", np.array([0, -(2**63), 2**63 - 1])),
    ("bool", np.array([False, True, False])),
    ("string", ["", "é", "a" * 200]),
]


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lane", [INTERACTIVE, BULK])
def test_what_workers_write_is_given_by_columns_alone(table: Table, packed: bool, lane: wire.Lane) -> None:
    """Even the first, which is at position 0, and though the names of the outputs are not in their order."""
    columns = [OutputColumn("abcd"[: 4 - place], kind, values) for place, (kind, values) in enumerate(KINDS)]
    answers = Answers(MODEL, "1.0.0", columns, head().predicted_us)
    parts = []
    for row in range(3):
        entry = ok(f"r{row}", packed=packed, degraded=row == 1, reply_ttl_s=row).entry
        response = answers.response(
            entry.request_id.encode(), row, 1, entry.user_request_us, packed=packed, degraded=row == 1
        )
        parts.append(event(entry.SerializeToString(), response, wire.OK, lane, b"5-0", T0 + 7, 1, row))
    raw = header(head()) + b"".join(parts)
    assert wire.EventBatch.FromString(raw).SerializeToString(deterministic=True) == raw
    table.insert(raw)
    assert (table.column("exact"), table.column("exact_header")) == ([None] * 3, [None] * 3)
    assert [event.raw for link in table.links() for event in link.events] == cut(raw).events


def _stamp(stamp: Any, seconds: int, nanos: int) -> None:
    stamp.seconds, stamp.nanos = seconds, nanos


def _columns(event: wire.Event, *columns: v1.Column) -> None:
    event.entry.columns.CopyFrom(v1.Columns(rows=2, columns=columns))


def _nanos(stamp: Any) -> None:
    stamp.nanos += 1


def _carry(stamp: Any) -> None:
    stamp.seconds, stamp.nanos = stamp.seconds - 1, stamp.nanos + 1_000_000_000


def _no_version(event: wire.Event) -> None:
    event.entry.ClearField("version")
    event.response.ClearField("version")


def _never_asked(event: wire.Event) -> None:
    event.entry.ClearField("user_request_us")
    event.response.ClearField("user_request_timestamp")


def _failed_at_once(event: wire.Event) -> None:
    event.status = wire.FAILED
    event.response.predicted_at_timestamp.Clear()


def _failed_in_nanoseconds(event: wire.Event) -> None:
    event.status = wire.FAILED
    event.response.predicted_at_timestamp.nanos += 1


DOUBLES = v1.Doubles(values=[-0.0, 1.0])
ODDITIES: dict[str, Callable[[wire.Event], Any]] = {
    "no entry": lambda e: e.ClearField("entry"),
    "no response": lambda e: e.ClearField("response"),
    "another model": lambda e: setattr(e.entry, "model_id", "churn"),
    "an answer of another model": lambda e: setattr(e.response, "model_id", "churn"),
    "an answer of another version": lambda e: setattr(e.response, "version", "2.0.0"),
    "an answer to another request": lambda e: setattr(e.response, "request_id", "other"),
    "no version": _no_version,
    "no digest": lambda e: e.entry.ClearField("digest"),
    "never asked": _never_asked,
    "asked at no time": lambda e: setattr(e.entry, "user_request_us", 2**63 - 1),
    "admitted at no time": lambda e: setattr(e.entry, "admitted_us", -(2**63)),
    "a deadline at no time": lambda e: setattr(e.entry, "deadline_us", 2**62),
    "delivered at no time": lambda e: setattr(e, "delivered_us", 2**62),
    "another time asked": lambda e: _stamp(e.response.user_request_timestamp, 1, 0),
    "no time asked": lambda e: e.response.ClearField("user_request_timestamp"),
    "nanoseconds asked": lambda e: _nanos(e.response.user_request_timestamp),
    "a second in nanoseconds": lambda e: _carry(e.response.user_request_timestamp),
    "predicted at another time": lambda e: _stamp(e.response.predicted_at_timestamp, 1, 0),
    "predicted at no time": lambda e: e.response.ClearField("predicted_at_timestamp"),
    "failed at an empty time": _failed_at_once,
    "failed in nanoseconds": _failed_in_nanoseconds,
    "degraded, and not said": lambda e: setattr(e.entry, "degraded", True),
    "not degraded, and said": lambda e: setattr(e.response, "degraded", True),
    "pending": lambda e: setattr(e.response, "pending", True),
    "answered twice": lambda e: e.response.columns.add(name="x").column.booleans.values.append(True),
    "nothing in an output": lambda e: e.response.predictions[0].outputs.get_or_create("x"),
    "not a number": lambda e: e.response.predictions[0].outputs.__getitem__("roi_pct").__setattr__("number", np.nan),
    "-0.0 at a null": lambda e: _columns(e, v1.Column(doubles=DOUBLES, nulls=[0])),
    "nulls in no order": lambda e: _columns(e, v1.Column(strings=v1.Strings(values=["", ""]), nulls=[1, 0])),
    "a null twice": lambda e: _columns(e, v1.Column(integers=v1.Integers(values=[0, 1]), nulls=[0, 0])),
    "a text at a null": lambda e: _columns(e, v1.Column(strings=v1.Strings(values=["0", ""]), nulls=[0])),
}


@pytest.mark.parametrize("odd", ODDITIES)
def test_what_columns_do_not_say_is_kept_as_it_was(table: Table, odd: str) -> None:
    usual, event, last = ok("usual"), ok("odd"), ok("last")
    ODDITIES[odd](event)
    raw = batch(usual, event, last)
    table.insert(raw)
    assert [value is not None for value in table.column("exact")] == [False, True, False]
    assert [each.raw for link in table.links() for each in link.events] == cut(raw).events
    assert table.altered() == []


def test_times_near_the_beginning_of_time_are_canonical_too() -> None:
    answers = Answers(MODEL, "1", [OutputColumn("p", "float", np.array([0.5]))], 999_999)
    for asked in (0, 1, 1_000_000):
        raw = event(
            b"", answers.response(b"r", 0, 1, asked, packed=False, degraded=False), wire.OK, INTERACTIVE, b"1-0"
        )
        assert wire.EventBatch.FromString(raw).SerializeToString(deterministic=True) == raw


def test_a_call_that_nobody_was_answered_by_keeps_its_header(table: Table) -> None:
    table.insert(batch(failed("a")), batch(ok("b"), failed("c")), batch(ok("d"), version="2.0.0"))
    kept = [value is not None for value in table.column("exact_header")]
    assert kept == [True, False, False, True]


def test_the_columns_of_a_row_are_those_of_the_table() -> None:
    assert Row._fields == NAMES
    assert set(NAMES) >= HEADER_COLUMNS


def test_a_row_that_no_sink_wrote_is_a_problem_of_its_own(table: Table) -> None:
    table.insert(batch(ok("a"), ok("b"), ok("c")))
    table.change("inputs = '[[\"x\"]]', digest = 'no hex' WHERE number = 2")
    (link,) = table.links()
    assert [bool(event.problem) for event in link.events] == [False, True, False]
    assert link.after(BEGINNING) != link.chain
    assert table.altered() == [], "of an event that is not known only what the header says is compared"


ANOTHER = {"inputs": "'[[0.0]]'", "status": "'FAILED'", "event_entry_id": "'9-0'"}
OF_A_KIND = {
    "text": "'zz'",
    "integer": "77",
    "boolean": "true",
    "bytes": "'\\x62\\x00'::BLOB",
    "time": "make_timestamptz(77)",
}
DERIVED = {"appended_timestamp", "rows", "origins"}
"""From them nothing is rebuilt, so that the chain knows nothing of them."""


@pytest.mark.parametrize(
    "column", [each for each in COLUMNS if each.form != "later" and each.name != "sequence"], ids=lambda each: each.name
)
def test_a_change_of_any_column_shows_in_the_chain_or_beside_it(table: Table, column: Any) -> None:
    """Of an event that is rebuilt from its columns, and of one that was kept as it was."""
    table.insert(*(batch(*(ok(name, roi) for name in "abc")) for roi in (0.5, float("nan"))))
    value = ANOTHER.get(column.name) or OF_A_KIND.get(column.form, "make_timestamptz(77)")
    if column.kind == "JSON":
        value = "'[[7.5]]'" if column.name == "inputs" else "'[{\"roi_pct\":7.5}]'"
    table.change(f"{column.name} = {value} WHERE number IN (2, 5)")
    found = {link.events[0].number: link for link in table.links()}
    altered = dict(table.altered())
    before = BEGINNING
    for first in (1, 4):
        link = found[first]
        whole = len(link.events) == 3 and link.after(before) == link.chain
        assert not whole or column.name in altered.get(first + 1, ()), "nobody would find it"
        before = link.chain or BEGINNING


def test_an_erased_event_keeps_its_digest_and_its_links_header(table: Table) -> None:
    table.insert(batch(ok("a"), ok("b", entity_id="101")))
    (before,) = table.links()
    sha256 = before.events[1].sha256.hex()
    emptied = ", ".join(f"{name} = NULL" for name in ("inputs", "outputs", "entity_id", "request_id", "exact"))
    table.change(f"{emptied}, erased_at = now(), erased_sha256 = unhex('{sha256}') WHERE number = 2")
    (after,) = table.links()
    assert (after.events[1].raw, after.events[1].problem) == (None, "")
    assert after.after(BEGINNING) == after.chain == before.chain
    assert table.altered() == []
    table.change("batch_id = 'w9-9' WHERE number = 2")
    assert [names for _, names in table.altered()] == [("batch_id",)]


def test_names_of_features_are_nobodys_alteration_but_their_origins_are(table: Table) -> None:
    hydrated = [wire.Hydrated(index=0, origin=wire.FILE), wire.Hydrated(index=1, origin=wire.REDIS)]
    table.insert(batch(ok("a", hydrated=hydrated)), names=lambda _model, _digest: ("income", "age"))
    assert table.column("origins") == ['{"income":"file","age":"redis"}']
    assert table.altered() == []
    table.change('origins = \'{"income":"redis","age":"redis"}\'')
    assert table.altered() == [(1, ("origins",))]


def test_rows_are_read_model_by_model_in_the_order_of_their_commit(table: Table) -> None:
    table.insert(batch(ok("a"), ok("b", matrix=matrix((1.0, 2.0)))), batch(ok("c")))
    table.change("model_id = 'another' WHERE number = 3")
    assert [(row.model_id, row.number) for row in read_rows(table.connection)] == [
        ("another", 3),
        (MODEL, 1),
        (MODEL, 2),
    ]
    assert [row.number for row in read_rows(table.connection, "model_id = ?", [MODEL])] == [1, 2]


def test_bytes_that_end_within_a_field_are_no_batch() -> None:
    for raw in (b"\x12\x05abc", b"\x12", b"\x0a\x80", b"\x1b\x08\x01", b"\x19abc"):
        with pytest.raises(ValueError, match="the batch ends within a field"):
            cut(raw)
