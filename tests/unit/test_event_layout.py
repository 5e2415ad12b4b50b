"""Events that are laid out alike come to the same columns as each of them parsed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from consumers.sink import rows
from consumers.sink.layout import Layout
from consumers.sink.pieces import cut
from consumers.sink.rows import Link, chained, joined
from contract.wire import length_delimited, map_order
from protos import millstream_wire_v1_pb2 as wire
from tests.event_entries import T0, header, matrix, ok
from tests.event_shapes import MODEL, UNKNOWN, batches

COUNT = 12
"""Events that are laid out alike, so that they are worth a block."""
ROWS = tuple(row for pair in zip(range(1, COUNT + 1), range(200, 200 + COUNT), strict=True) for row in pair)
"""Of two layouts in turn, that are kin: positions above 127 are longer."""


@pytest.fixture(autouse=True)
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    """No layout is known, whatever this process has read before: it learns only so many."""
    monkeypatch.setattr(rows, "_LAYOUTS", {})


def names(_model_id: str, _digest: bytes) -> tuple[str, ...]:
    return ("income", "age")


def decoded(raws: Sequence[bytes]) -> list[Link]:
    links, number = [], 0
    for place, raw in enumerate(raws, start=1):
        number += len(cut(raw).events)
        links.append(Link.decode(MODEL, f"{place}-0", {b"n": str(number).encode(), b"pb": raw}, names))
    return links


def parsed(link: Link) -> Link:
    """The same with each of its events parsed."""
    return replace(link, parsed=tuple(map(wire.Event.FromString, link.pieces)), _columns={})


def gathered(links: Sequence[Link]) -> dict[str, Any]:
    """All columns as lists, those that no event has left out, with the kind of their values."""
    chains, _ = chained(links, {})
    columns = joined(links, 1, chains)
    assert {len(column) for column in columns.values()} == {sum(link.events for link in links)}
    return {
        name: (column.dtype, column.tolist())
        for name, column in columns.items()
        if not (column.dtype == np.object_ and all(value is None for value in column))
    }


def laid_out(links: Sequence[Link]) -> int:
    """How many events have a layout."""
    return sum(isinstance(each, Layout) for link in links for each in link.parsed)


def batch(pieces: Sequence[bytes], **fields: Any) -> bytes:
    head = header(**fields).SerializeToString(deterministic=True)
    return length_delimited(b"\x0a", head) + b"".join([length_delimited(b"\x12", piece) for piece in pieces])


def usual(row: int, **fields: Any) -> wire.Event:
    """As workers write them: all of one layout, but for the position of the first."""
    event = ok(f"{row:032x}", row / 7, at_us=T0 + row, deadline_us=T0 + 5_000_000, **fields)
    event.entry_id, event.batch_position, event.delivered_us = f"{T0 // 1000}-{row % 10}", row, T0 + 300 + row
    return event


def taught(*events: wire.Event) -> None:
    """Their layouts are known from now on."""
    decoded([batch([each.SerializeToString(deterministic=True)]) for each in events])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(batches(), min_size=1, max_size=3), st.integers(0, 8))
def test_whatever_stands_among_them_columns_are_those_of_parsed_events(raws: list[bytes], copies: int) -> None:
    """Each batch comes several times, so that its layouts are known and there is enough of them."""
    links = decoded(raws * (1 + copies))
    assert gathered(links) == gathered([parsed(link) for link in links])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_byte_that_is_another_one_never_makes_other_columns(data: st.DataObject) -> None:
    """Of events that have a layout: what still is a batch says the same whichever way it is read."""
    pieces = [usual(row).SerializeToString(deterministic=True) for row in ROWS]
    taught(usual(1), usual(200))
    for _ in range(8):
        row, byte = data.draw(st.integers(0, len(ROWS) - 1)), data.draw(st.integers(0, 255))
        changed = bytearray(pieces[row])
        changed[data.draw(st.integers(0, len(changed) - 1))] = byte
        try:
            wire.Event.FromString(bytes(changed))
        except DecodeError:
            continue
        pieces[row] = bytes(changed)
    links = decoded([batch(pieces)])
    assert gathered(links) == gathered([parsed(link) for link in links])


def test_what_workers_write_is_not_parsed() -> None:
    """Whatever the length of a position or of an id, in links of one model and of several events or one."""
    rows = [*range(200), *range(0, 200, 40)]
    raws = [batch([usual(row).SerializeToString(deterministic=True) for row in rows])] * 2
    raws += [batch([usual(row).SerializeToString(deterministic=True)]) for row in rows[:COUNT]]
    decoded(raws)
    links = decoded(raws)
    assert laid_out(links) == sum(link.events for link in links)
    columns = gathered(links)
    assert columns == gathered([parsed(link) for link in links])
    assert columns["request_id"][1][:2] == [f"{0:032x}", f"{1:032x}"]
    assert "exact" not in columns


def _outputs(event: wire.Event, **values: Any) -> None:
    outputs = event.response.predictions[0].outputs
    for name, value in values.items():
        kind = {float: "number", int: "integer", bool: "boolean", str: "text"}[type(value)]
        setattr(outputs[name], kind, value)


def _rows(event: wire.Event) -> None:
    event.entry.matrix.CopyFrom(matrix((1.0, -0.0), (1e300, 5e-324)))
    event.response.predictions.add().outputs["roi_pct"].number = -0.0


KINDS: dict[str, Callable[[wire.Event], Any]] = {
    "numbers": lambda e: _outputs(e, a=1.5, ab=-0.0),
    "integers": lambda e: _outputs(e, a=-7, ab=2 ** (40 + e.batch_position // 25)),
    "booleans": lambda e: _outputs(e, a=True, ab=False),
    "texts": lambda e: _outputs(e, **{"a": "100 % sûr", 'q"%s': "approved, at once"}),
    "several rows": _rows,
    "hydrated": lambda e: e.entry.hydrated.add(index=1, origin=wire.FILE),
    "a shadow's": lambda e: setattr(e, "status", wire.SHADOW),
    "bulk": lambda e: setattr(e, "lane", wire.BULK),
    "an idempotency key": lambda e: e.entry.MergeFrom(wire.Entry(body_sha256=bytes(32), reply_ttl_s=300)),
    "a replay's": lambda e: e.entry.MergeFrom(wire.Entry(replay="monday", caller="bob", trace="0", entity_id="a\0")),
}


@pytest.mark.parametrize("kind", KINDS)
def test_events_of_a_kind_have_a_layout(kind: str) -> None:
    events = [usual(row) for row in ROWS]
    for event in events:
        KINDS[kind](event)
    taught(*events[:2])
    links = decoded([batch([event.SerializeToString(deterministic=True) for event in events])])
    assert laid_out(links) == len(ROWS)
    assert len({each.kin for link in links for each in link.parsed if isinstance(each, Layout)}) == 1
    columns = gathered(links)
    assert "exact" not in columns
    assert columns == gathered([parsed(link) for link in links])


def _tail(raw: str) -> Callable[[bytes], bytes]:
    return lambda piece: piece + bytes.fromhex(raw)


def _edited(change: Callable[[wire.Event], Any]) -> Callable[[bytes], bytes]:
    def edit(piece: bytes) -> bytes:
        event = wire.Event.FromString(piece)
        change(event)
        return event.SerializeToString(deterministic=True)

    return edit


def _swapped(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    assert len(old) == len(new)
    return lambda piece: piece.replace(old, new)


NEAR: dict[str, Callable[[bytes], bytes]] = {
    "another version": _swapped(b"1.0.0", b"1.0.1"),
    "another version of the answer": _edited(lambda e: setattr(e.response, "version", "1.0.1")),
    "another model": _edited(lambda e: setattr(e.entry, "model_id", "roi_predictioN")),
    "an answer to another request": _edited(lambda e: setattr(e.response, "request_id", "f" * 32)),
    "another output": _swapped(b"roi_pct", b"roi_pcs"),
    "another digest": _edited(lambda e: setattr(e.entry, "digest", bytes(32))),
    "not a number": _edited(lambda e: setattr(e.response.predictions[0].outputs["roi_pct"], "number", np.nan)),
    "-0.0": _edited(lambda e: setattr(e.response.predictions[0].outputs["roi_pct"], "number", -0.0)),
    "an infinite feature": _edited(lambda e: e.entry.matrix.CopyFrom(matrix((np.inf, 1.0)))),
    "predicted at another time": _edited(
        lambda e: setattr(e.response.predicted_at_timestamp, "seconds", 1_700_000_006)
    ),
    "predicted in nanoseconds": _edited(lambda e: setattr(e.response.predicted_at_timestamp, "nanos", 1_001)),
    "asked at another time": _edited(lambda e: setattr(e.entry, "user_request_us", T0 + 7_777)),
    "delivered 0 times, said outright": _swapped(b"\x38\x01\x40", b"\x38\x00\x40"),
    "a number in more bytes than it needs": lambda piece: piece[:-1] + bytes((piece[-1] | 128, 0)),
    "nothing said outright": _tail("2000"),
    "an unknown field": lambda piece: piece + UNKNOWN,
    "an id that is not ASCII": _edited(lambda e: setattr(e, "entry_id", e.entry_id[:-2] + "é")),
}


@pytest.mark.parametrize("near", NEAR)
def test_what_is_nearly_laid_out_like_them_is_read_as_it_is(near: str) -> None:
    """In the middle of a link, and alone as a link of many."""
    pieces = [usual(row).SerializeToString(deterministic=True) for row in range(1, COUNT + 1)]
    taught(usual(1))
    other = NEAR[near](pieces[5])
    assert other != pieces[5]
    pieces[5] = other
    links = decoded([batch(pieces), batch([other] * COUNT)])
    assert laid_out(links) >= COUNT - 1
    assert gathered(links) == gathered([parsed(link) for link in links])


def test_the_answer_of_another_call_is_kept_as_it_came() -> None:
    """The time of its predict call is in the header, which is read for each link."""
    pieces = [usual(row).SerializeToString(deterministic=True) for row in range(1, COUNT + 1)]
    taught(usual(1))
    links = decoded([batch(pieces), batch(pieces, predicted_us=T0 + 5_000_002), batch(pieces, predicted_us=-1)])
    _, exact = gathered(links)["exact"]
    assert exact == [None] * COUNT + pieces + pieces


def test_a_cut_off_event_is_no_link() -> None:
    piece = usual(1).SerializeToString(deterministic=True)
    taught(usual(1))
    for raw in (batch([piece])[:-1], batch([piece[:-1]])):
        with pytest.raises(ValueError, match="that are none"):
            decoded_raw(raw)


def decoded_raw(raw: bytes) -> Link:
    return Link.decode(MODEL, "1-0", {b"n": b"1", b"pb": raw}, names)


def test_outputs_stand_in_the_order_of_their_names() -> None:
    """Not in that of the bytes, in which the beginning of a name comes behind it."""
    events = [usual(row) for row in range(1, COUNT + 1)]
    for row, event in enumerate(events):
        event.response.predictions[0].ClearField("outputs")
        _outputs(event, a=row + 0.5, ab=row + 0.25)
    assert sorted(("a", "ab"), key=map_order) == ["ab", "a"]
    taught(events[0])
    links = decoded([batch([event.SerializeToString(deterministic=True) for event in events])])
    assert laid_out(links) == COUNT
    assert gathered(links)["outputs"][1][1] == '[{"a":1.5,"ab":1.25}]'


def test_events_can_be_left_out_and_numbered_on() -> None:
    pieces = [usual(row).SerializeToString(deterministic=True) for row in range(1, COUNT + 1)]
    taught(usual(1))
    [link] = decoded([batch(pieces)])
    assert link.column("number").tolist() == list(range(1, COUNT + 1))
    some = link.without(frozenset({0, 4})).numbered(7)
    assert some.column("number").tolist() == list(range(7, 7 + COUNT - 2))
    assert gathered([some]) == gathered([parsed(some)])
    assert some.column("request_id").tolist() == [f"{row:032x}" for row in range(1, COUNT + 1) if row not in (1, 5)]
