"""Copies that wait for a shadow: bounded in rows, the oldest first, and joined where they fit together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from consumers.worker.copies import MOST_BYTES, Copies, Copy, form_of
from consumers.worker.work import Work
from contract.completion import INTERACTIVE
from contract.signature import parse_signature
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.records import AGE, CLICKS, signature_json

FORM = form_of(parse_signature(signature_json())[0])


def copy(number: int, rows: int = 1, model_id: str = "churn", raw: bytes = b"") -> Copy:
    return Copy(model_id, FORM, INTERACTIVE, b"%d-0" % number, raw, rows, 0, 1)


def numbers(copies: list[Copy]) -> list[int]:
    return [int(each.entry_id.partition(b"-")[0]) for each in copies]


def test_the_oldest_are_dropped_where_there_is_no_room_and_counted_by_model() -> None:
    copies = Copies(5)
    copies.add([copy(0, 2, "other"), copy(1, 2), copy(2, 2), copy(3)])
    assert numbers(copies.take(5)) == [1, 2, 3]
    assert copies.dropped == {"other": 1}


def test_one_that_is_larger_than_the_queue_drives_nobody_out() -> None:
    copies = Copies(5)
    copies.add([copy(0, 5), copy(1, 6)])
    assert numbers(copies.take(1)) == [0]
    assert copies.dropped == {"churn": 1}


def test_bytes_are_bounded_too() -> None:
    copies, half = Copies(5), bytes(MOST_BYTES // 2)
    copies.add([copy(number, raw=half) for number in range(3)])
    assert numbers(copies.take(5)) == [1, 2]


def test_no_room_at_all_keeps_nothing() -> None:
    copies = Copies(0)
    copies.add([copy(0)])
    assert (len(copies), copies.first, copies.take(1), copies.dropped) == (0, None, [], {"churn": 1})


def test_what_is_taken_is_of_one_model_and_as_many_rows_as_fit_but_one_entry_at_least() -> None:
    copies = Copies(100)
    copies.add([copy(0, 3), copy(1, 3), copy(2, 3), copy(3, 9), copy(4, model_id="other"), copy(5)])
    assert [numbers(copies.take(6)) for _ in range(5)] == [[0, 1], [2], [3], [4], [5]]


def test_a_model_whose_copies_nobody_computes_lets_go_of_them_alone() -> None:
    copies = Copies(3)
    copies.add([copy(0), copy(1, model_id="other"), copy(2)])
    copies.drop("churn")
    assert copies.dropped == {"churn": 2}
    copies.add([copy(3), copy(4)])
    assert [numbers(copies.take(3)) for _ in range(2)] == [[1], [3, 4]]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 8))))
def test_nothing_is_lost_uncounted_whatever_is_added_and_taken(turns: list[tuple[int, int]]) -> None:
    """The rows that are kept never exceed the bound; a copy is taken, dropped or still there, in its order."""
    copies, taken, added = Copies(10), list[int](), 0
    for rows, room in turns:
        copies.add([copy(added, rows)])
        added += 1
        taken += numbers(copies.take(room)) if room else []
    left = numbers(copies.take(10))
    assert len(copies) == 0
    assert sorted(taken + left) == taken + left
    assert added == len(taken) + len(left) + copies.dropped["churn"]


def test_a_copy_is_the_entry_pinned_to_another_version() -> None:
    entry = wire.Entry(
        request_id="r", model_id="churn", version="1.0.0", digest=b"a", entity_id="u", matrix=v1.Matrix(rows=1)
    )
    work = Work(wire.BULK, b"7-0", entry, entry.SerializeToString(), 1, 123, 2)
    again = Copy.of(work, FORM).work("2.0.0", b"b")
    entry.version, entry.digest = "2.0.0", b"b"
    assert (again.entry, again.raw) == (entry, entry.SerializeToString())
    assert (again.lane, again.entry_id, again.rows, again.delivered_us, again.deliveries) == (
        *(wire.BULK, b"7-0", 1, 123, 2),
    )


def test_a_form_is_names_types_and_order_and_not_what_values_are_allowed() -> None:
    def form(*features: dict[str, object]) -> object:
        return form_of(parse_signature(signature_json(features))[0])

    age, clicks = dict(AGE), dict(CLICKS)
    assert form(age, clicks) == form(age | {"max": 7}, clicks | {"default": 3})
    different = [form(clicks, age), form(age), form(age | {"type": "float"}, clicks), form(age, clicks | {"name": "k"})]
    assert form(age, clicks) not in different
