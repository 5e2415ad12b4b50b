"""Admission: what fits a signature passes unchanged, everything else is refused with every violation named."""

from __future__ import annotations

import math
import struct
from typing import Any

import pytest

from contract.admission import Admission, Admitted, Draft
from contract.errors import Code, Reason, Refused
from contract.request import Native, Request
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.records import AGE, CHURN, CLICKS, LOAN, USER, admission

FLOAT = {"name": "x", "type": "float"}
INT = {"name": "n", "type": "int"}
BOOL = {"name": "yes", "type": "bool"}
TEXT = {"name": "word", "type": "string"}
NULLABLE = {"name": "x", "type": "float", "nullable": True}
CAPPED = {"name": "x", "type": "float", "max": 3.0, "default": 1.0}


def ask(**form: Any) -> Request:
    return Request("churn", **form)


def doubles(admitted: Admitted | Draft) -> tuple[float, ...]:
    """What a matrix holds, bit by bit as it was put in."""
    assert isinstance(admitted, Admitted)
    assert isinstance(admitted.rows, v1.Matrix)
    return struct.unpack(f"<{len(admitted.rows.float64) // 8}d", admitted.rows.float64)


def field(**rows: Any) -> bytes:
    """Rows as an entry holds them."""
    return wire.Entry(**rows).SerializeToString()


def matrix(rows: int, *values: float) -> v1.Rows:
    return v1.Rows(matrix=v1.Matrix(rows=rows, float64=struct.pack(f"<{len(values)}d", *values)))


def columns(rows: int, *parts: v1.Column) -> v1.Rows:
    return v1.Rows(columns=v1.Columns(rows=rows, columns=parts))


def refusal(checked: Admission, request: Request) -> Refused:
    with pytest.raises(Refused) as caught:
        whole(checked, request)
    return caught.value


def whole(checked: Admission, request: Request) -> Admitted:
    answer = checked.draft(request)
    return answer.complete({}) if isinstance(answer, Draft) else answer


def violations(checked: Admission, request: Request) -> dict[str, str]:
    refused = refusal(checked, request)
    assert refused.reason is Reason.INPUT_INVALID
    assert len({v.field for v in refused.violations}) == len(refused.violations)
    return {v.field: v.description for v in refused.violations}


# ---------------------------------------------------------------- one row by position


def test_a_row_by_position_becomes_one_row_of_a_matrix() -> None:
    admitted = admission().draft(ask(inputs=[25, 120]))
    assert admitted == Admitted(field(matrix=v1.Matrix(rows=1, float64=struct.pack("<2d", 25, 120))), 1)


def test_a_row_with_a_string_becomes_columns() -> None:
    admitted = admission(*LOAN).draft(ask(inputs=[12000, "student", True, None]))
    assert admitted == Admitted(
        field(
            columns=v1.Columns(
                rows=1,
                columns=[
                    v1.Column(doubles=v1.Doubles(values=[12000.0])),
                    v1.Column(strings=v1.Strings(values=["student"])),
                    v1.Column(booleans=v1.Booleans(values=[True])),
                    v1.Column(strings=v1.Strings(values=[""]), nulls=[0]),
                ],
            )
        ),
        1,
    )


@pytest.mark.parametrize("number", [-0.0, 1e308, -1.7976931348623157e308, 5e-324, 0.1, 2.0**53, -(2.0**53)])
def test_a_float_keeps_every_bit(number: float) -> None:
    (came,) = doubles(admission(FLOAT).draft(ask(inputs=[number])))
    assert struct.pack("<d", came) == struct.pack("<d", number)


@pytest.mark.parametrize(("sent", "kept"), [(3.0, 3), (2**53, 2**53), (-(2**53), -(2**53)), (-0.0, 0), (0, 0)])
def test_an_int_takes_whole_numbers_up_to_two_to_the_53(sent: Native, kept: int) -> None:
    assert doubles(admission(INT).draft(ask(inputs=[sent]))) == (float(kept),)


@pytest.mark.parametrize("sent", [3, 0, 2**53])
def test_a_float_takes_an_int(sent: int) -> None:
    assert doubles(admission(FLOAT).draft(ask(inputs=[sent]))) == (float(sent),)


@pytest.mark.parametrize(
    "item", [3.5, 2**53 + 1, 2**63, -(2**53) - 1, 1e300, "3", "", True, None, math.nan, math.inf, -math.inf]
)
def test_an_int_refuses_what_is_none(item: Native) -> None:
    found = violations(admission(INT), ask(inputs=[item]))
    assert list(found) == ["n"]
    assert found["n"].startswith("expected an int, got ")


@pytest.mark.parametrize("item", [math.nan, math.inf, -math.inf, "1e400", "0.5", True, False, None, 10**400])
def test_a_float_refuses_what_is_none(item: Native) -> None:
    found = violations(admission(FLOAT), ask(inputs=[item]))
    assert list(found) == ["x"]
    assert found["x"].startswith("expected a finite number, got ")


@pytest.mark.parametrize("item", [2, 1, 0, 0.0, 1.0, "true", "", None])
def test_a_bool_refuses_everything_but_true_and_false(item: Native) -> None:
    found = violations(admission(BOOL), ask(inputs=[item]))
    assert list(found) == ["yes"]
    assert found["yes"].startswith("expected true or false, got ")


def test_a_bool_travels_as_zero_or_one() -> None:
    checked = admission(BOOL)
    assert doubles(checked.draft(ask(inputs=[True]))) == (1.0,)
    assert doubles(checked.draft(ask(inputs=[False]))) == (0.0,)


@pytest.mark.parametrize("item", [1, 1.5, True, None, "x" * 1025, "é" * 513])
def test_a_string_refuses_numbers_null_and_more_than_1024_bytes(item: Native) -> None:
    found = violations(admission(TEXT), ask(inputs=[item]))
    assert list(found) == ["word"]
    assert found["word"].startswith("expected a string of at most 1024 bytes, got ")


@pytest.mark.parametrize("item", ["", "x" * 1024, "é" * 512, "\x00", "‮", "😀", "{}*:\n"])
def test_a_string_of_any_characters_is_taken_as_it_is(item: str) -> None:
    admitted = admission(TEXT).draft(ask(inputs=[item]))
    assert isinstance(admitted, Admitted)
    assert isinstance(admitted.rows, v1.Columns)
    assert list(admitted.rows.columns[0].strings.values) == [item]


def test_null_in_a_nullable_float_is_nan_and_nan_itself_is_refused() -> None:
    checked = admission(NULLABLE)
    (came,) = doubles(checked.draft(ask(inputs=[None])))
    assert math.isnan(came)
    assert list(violations(checked, ask(inputs=[math.nan]))) == ["x"]


def test_bounds_are_part_of_what_is_expected() -> None:
    assert doubles(admission(AGE).draft(ask(inputs=[130]))) == (130.0,)
    assert violations(admission(AGE), ask(inputs=[131])) == {"age": "expected an int from 0 to 130, got 131"}


def test_a_value_outside_the_categories_is_refused_naming_them() -> None:
    found = violations(admission(*LOAN), ask(inputs=[1.0, "retired", False, None]))
    assert found == {"employment": 'expected one of "salaried", "student", got "retired"'}


@pytest.mark.parametrize("inputs", [[], [25], [25, 120, 1]])
def test_too_few_and_too_many_inputs_are_counted(inputs: list[Native]) -> None:
    assert violations(admission(), ask(inputs=inputs)) == {
        "inputs": f"expected 2 values (age, clicks), got {len(inputs)}"
    }


def test_every_wrong_input_is_named_at_once() -> None:
    found = violations(admission(*LOAN), ask(inputs=[-1, "x", 2, 7]))
    assert found == {
        "amount_eur": "expected a finite number of at least 0.0, got -1",
        "employment": 'expected one of "salaried", "student", got "x"',
        "has_guarantor": "expected true or false, got 2",
        "remark": "expected a string of at most 1024 bytes, got 7",
    }


def test_the_message_names_the_first_violation_and_counts_the_others() -> None:
    refused = refusal(admission(*LOAN), ask(inputs=[-1, "x", 2, 7]))
    assert refused.message == "amount_eur: expected a finite number of at least 0.0, got -1 (and 3 more)"
    assert refused.reason.code is Code.INVALID_ARGUMENT


# ---------------------------------------------------------------- one row by name


def test_a_row_by_name_is_put_in_index_order() -> None:
    assert doubles(admission().draft(ask(features={"clicks": 120, "age": 25}))) == (25.0, 120.0)


def test_unknown_wrong_and_missing_features_are_all_named_at_once() -> None:
    found = violations(admission(AGE, {"name": "income", "type": "float"}, FLOAT), ask(features={"ages": 1, "x": "1"}))
    assert found == {
        "ages": "unknown feature; churn has age, income, x",
        "x": 'expected a finite number, got "1"',
        "age": "not sent and has no default",
        "income": "not sent and has no default",
    }


def test_a_missing_feature_takes_its_default_and_the_origin_says_so() -> None:
    draft = admission().draft(ask(features={"age": 25}))
    assert isinstance(draft, Draft)
    assert draft.wanted == ()
    admitted = draft.complete({})
    assert doubles(admitted) == (25.0, 0.0)
    assert list(admitted.hydrated) == [(1, wire.DEFAULT)]
    assert not admitted.degraded


def test_a_default_of_null_is_null() -> None:
    draft = admission(*LOAN).draft(ask(features={"amount_eur": 1, "employment": "student"}))
    assert isinstance(draft, Draft)
    rows = draft.complete({}).rows
    assert isinstance(rows, v1.Columns)
    assert list(rows.columns[3].nulls) == [0]


def test_a_missing_feature_of_a_model_with_an_entity_says_that_an_id_would_do() -> None:
    found = violations(admission(entity=USER), ask(features={"clicks": 1}))
    assert found == {"age": "not sent and has no default; send it, or an entity_id (user_id) to have it fetched"}


def test_names_are_matched_exactly() -> None:
    assert list(violations(admission(), ask(features={"Age": 1, "clicks ": 1}))) == ["Age", "clicks ", "age"]


@pytest.mark.parametrize("form", [{}, {"features": {}}])
def test_a_request_for_nothing_says_what_is_expected(form: dict[str, Any]) -> None:
    found = violations(admission(), ask(**form))
    assert len(found) == 1
    assert "age" in str(found)


@pytest.mark.parametrize(
    ("form", "field"),
    [
        ({"inputs": [1, 2], "features": {"age": 1}}, "features"),
        ({"inputs": [1, 2], "packed": matrix(1, 1, 2)}, "rows"),
        ({"features": {"age": 1}, "rows": [[1, 2]]}, "rows"),
    ],
)
def test_two_forms_of_a_row_at_once_are_refused(form: dict[str, Any], field: str) -> None:
    found = violations(admission(), ask(**form))
    assert list(found) == [field]
    assert found[field].startswith("send one of inputs, features and rows; ")


# ---------------------------------------------------------------- many rows


def test_a_matrix_passes_as_the_very_bytes_that_came() -> None:
    packed = matrix(2, 25, 120, 130, 0)
    assert admission().draft(ask(packed=packed)) == Admitted(field(matrix=packed.matrix), 2, packed=True)


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        (matrix(0), {"rows": "expected at least one row, got none"}),
        (v1.Rows(), {"rows": "expected a matrix or columns, got neither"}),
        (
            matrix(2, 1, 2, 3),
            {"rows.matrix.float64": "expected 2 rows of 2 float64, 32 bytes, got 24"},
        ),
        (
            v1.Rows(matrix=v1.Matrix(rows=1, float64=bytes(15))),
            {"rows.matrix.float64": "expected 1 rows of 2 float64, 16 bytes, got 15"},
        ),
        (
            v1.Rows(matrix=v1.Matrix(rows=2**32 - 1)),
            {"rows": "expected at most 1000 rows in one request, got 4294967295"},
        ),
        (matrix(1001, *[1.0] * 2002), {"rows": "expected at most 1000 rows in one request, got 1001"}),
        (v1.Rows(columns=v1.Columns()), {"rows": "expected at least one row, got none"}),
        (
            columns(1, v1.Column(integers=v1.Integers(values=[1]))),
            {"rows.columns": "expected 2 columns (age, clicks), got 1"},
        ),
    ],
)
def test_rows_of_another_size_are_refused(packed: v1.Rows, expected: dict[str, str]) -> None:
    assert violations(admission(max_rows=1000), ask(packed=packed)) == expected


def test_a_matrix_names_the_first_bad_row_of_every_feature_and_counts_the_others() -> None:
    checked = admission(AGE, BOOL, NULLABLE)
    rows = [
        (25, 1, math.nan),
        (math.nan, 0, 1),
        (200, 2, math.inf),
        (0.5, 0, 1),
        (2.0**54, 1, 0),
    ]
    packed = matrix(len(rows), *[value for row in rows for value in row])
    assert violations(checked, ask(packed=packed)) == {
        "rows[1].age": "expected an int from 0 to 130, got nan (4 rows in all)",
        "rows[2].yes": "expected true or false, got 2.0",
        "rows[2].x": "expected a finite number, got inf",
    }


def test_a_matrix_keeps_two_to_the_53_and_refuses_what_float64_can_not_tell_apart() -> None:
    packed = matrix(2, 2.0**53, -(2.0**53))
    assert doubles(admission(INT).draft(ask(packed=packed))) == (2.0**53, -(2.0**53))
    assert list(violations(admission(INT), ask(packed=matrix(1, 2.0**53 + 2)))) == ["rows[0].n"]


def test_a_matrix_checks_categories_of_numbers() -> None:
    checked = admission({"name": "grade", "type": "int", "categories": [1, 2, 5]})
    assert doubles(checked.draft(ask(packed=matrix(3, 1, 2, 5)))) == (1.0, 2.0, 5.0)
    assert list(violations(checked, ask(packed=matrix(3, 1, 3, 4)))) == ["rows[1].grade"]


def test_a_matrix_for_a_model_with_strings_says_to_send_columns() -> None:
    found = violations(admission(*LOAN), ask(packed=matrix(1, 1, 2, 3, 4)))
    assert found == {"rows": "this model has string features: send columns, one per feature"}


@pytest.mark.parametrize("spec", [FLOAT, INT, BOOL, NULLABLE, CAPPED], ids=str)
@pytest.mark.parametrize(
    "odd", [0, 3, -0.0, 0.5, 3.5, True, None, "x", 2**53, 2**53 + 1, -(2**53) - 1, 10**400, math.nan, math.inf, 1e308]
)
def test_a_value_among_many_rows_is_decided_as_it_is_alone(spec: dict[str, Any], odd: Native) -> None:
    model = admission(spec)
    usual: Native = False if spec is BOOL else 1
    rows = [[usual]] * 40 + [[odd]]
    try:
        alone = doubles(model.draft(ask(inputs=[odd])))
    except Refused as refused:
        expected = {f"rows[40].{violation.field}": violation.description for violation in refused.violations}
        assert violations(model, ask(rows=rows)) == expected
    else:
        assert struct.pack("<d", doubles(model.draft(ask(rows=rows)))[40]) == struct.pack("<d", *alone)


def test_many_rows_with_a_string_become_columns_of_each_features_own_type() -> None:
    rows: list[list[Native]] = [[number, "student", True, "no"] for number in range(40)]
    answer = admission(*LOAN).draft(ask(rows=rows))
    assert isinstance(answer, Admitted)
    assert isinstance(answer.rows, v1.Columns)
    assert [column.WhichOneof("kind") for column in answer.rows.columns] == [
        "doubles",
        "strings",
        "booleans",
        "strings",
    ]
    assert list(answer.rows.columns[0].doubles.values) == [float(number) for number in range(40)]
    assert list(answer.rows.columns[1].strings.values) == ["student"] * 40
    rows[39][1] = "king"
    assert list(violations(admission(*LOAN), ask(rows=rows))) == ["rows[39].employment"]


def test_columns_of_numbers_become_a_matrix() -> None:
    packed = columns(
        2, v1.Column(integers=v1.Integers(values=[25, 26])), v1.Column(doubles=v1.Doubles(values=[120.0, 0.0]))
    )
    admitted = admission().draft(ask(packed=packed))
    assert doubles(admitted) == (25.0, 120.0, 26.0, 0.0)
    assert isinstance(admitted, Admitted)
    assert (admitted.n, admitted.packed) == (2, True)


def test_nulls_in_columns_are_null_whatever_stands_at_their_place() -> None:
    packed = columns(
        2,
        v1.Column(doubles=v1.Doubles(values=[1, 2])),
        v1.Column(strings=v1.Strings(values=["student", "salaried"])),
        v1.Column(booleans=v1.Booleans(values=[True, False])),
        v1.Column(strings=v1.Strings(values=["kept", "dropped"]), nulls=[1, 99]),
    )
    admitted = admission(*LOAN).draft(ask(packed=packed))
    assert isinstance(admitted, Admitted)
    assert isinstance(admitted.rows, v1.Columns)
    assert admitted.rows.columns[3] == v1.Column(strings=v1.Strings(values=["kept", ""]), nulls=[1])


def test_a_column_of_no_kind_is_all_null() -> None:
    (first, second) = doubles(admission(NULLABLE).draft(ask(packed=columns(2, v1.Column()))))
    assert math.isnan(first)
    assert math.isnan(second)
    assert violations(admission(FLOAT), ask(packed=columns(1, v1.Column()))) == {
        "rows[0].x": "expected a finite number, got null"
    }


def test_columns_of_differing_length_are_each_named() -> None:
    packed = columns(2, v1.Column(integers=v1.Integers(values=[1])), v1.Column(integers=v1.Integers(values=[1, 2, 3])))
    assert violations(admission(), ask(packed=packed)) == {
        "age": "expected 2 values, got 1",
        "clicks": "expected 2 values, got 3",
    }


def test_wrong_values_in_columns_are_named_by_row() -> None:
    packed = columns(
        2, v1.Column(booleans=v1.Booleans(values=[True, False])), v1.Column(strings=v1.Strings(values=["1", "2"]))
    )
    assert list(violations(admission(), ask(packed=packed))) == [
        "rows[0].age",
        "rows[0].clicks",
        "rows[1].age",
        "rows[1].clicks",
    ]


def test_rows_of_differing_width_are_each_named() -> None:
    assert violations(admission(), ask(rows=[[1, 2], [1], [1, 2, 3]])) == {
        "rows[1]": "expected 2 values (age, clicks), got 1",
        "rows[2]": "expected 2 values (age, clicks), got 3",
    }


def test_violations_of_many_rows_end_after_a_hundred() -> None:
    refused = refusal(admission(), ask(rows=[["x", "y"]] * 1000))
    assert len(refused.violations) == 100


def test_ids_and_rows_are_refused_together() -> None:
    checked = admission(entity=USER)
    for form, row in (
        ({"inputs": [-1, 1]}, "age"),
        ({"features": {"age": -1}}, "age"),
        ({"packed": matrix(1, -1, 1)}, "rows[0].age"),
        ({"packed": matrix(3, -1, 1)}, "rows.matrix.float64"),
        ({"packed": matrix(0)}, "rows"),
        ({"packed": columns(1, v1.Column(integers=v1.Integers(values=[1])))}, "rows.columns"),
        ({"rows": [[-1, 1]]}, "rows[0].age"),
        ({"rows": [[1]]}, "rows[0]"),
        ({"rows": []}, "rows"),
    ):
        found = violations(checked, ask(request_id="two words", entity_id="a b", **form))
        assert list(found) == ["request_id", "entity_id", row]


# ---------------------------------------------------------------- ids


@pytest.mark.parametrize("request_id", ["x", "a" * 128, "{}*:\\\"'", "1700000000000-x", "-"])
def test_a_request_id_is_any_printable_ascii(request_id: str) -> None:
    assert doubles(admission().draft(ask(inputs=[1, 2], request_id=request_id))) == (1.0, 2.0)


@pytest.mark.parametrize("request_id", ["a" * 129, "x" * 10_000, "two words", "é", "\n", "x\n", "\x00", "‮", "\x7f"])
def test_other_request_ids_are_refused(request_id: str) -> None:
    found = violations(admission(), ask(inputs=[1, 2], request_id=request_id))
    assert found == {"request_id": "expected 1 to 128 printable ASCII characters without spaces"}


def test_a_request_id_that_could_be_an_entry_of_a_stream_is_refused() -> None:
    found = violations(admission(), ask(inputs=[1, 2], request_id="1700000000000-0"))
    assert list(found) == ["request_id"]
    assert "add a letter" in found["request_id"]


@pytest.mark.parametrize("entity_id", ["101", "a.b@c-d_e", "x" * 128])
def test_an_entity_id_that_matches_the_pattern_becomes_part_of_the_keys(entity_id: str) -> None:
    draft = admission(entity=USER).draft(ask(entity_id=entity_id))
    assert isinstance(draft, Draft)
    assert [want.key for want in draft.wanted] == [f"user:{entity_id}:age", f"user:{entity_id}:clicks"]


@pytest.mark.parametrize(
    "entity_id", ["x" * 129, "x" * 10_240, "{id}", "*", "a:b", "a\n", "a\x00", "‮abc", "😀", " ", "é", "١٢"]
)
def test_an_entity_id_that_does_not_is_refused(entity_id: str) -> None:
    refused = refusal(admission(entity=USER), ask(entity_id=entity_id))
    assert {v.field for v in refused.violations} == {"entity_id"}


def test_a_pattern_of_the_models_own_is_what_counts() -> None:
    checked = admission(entity={**USER, "pattern": "[0-9]{3}"})
    assert isinstance(checked.draft(ask(entity_id="101")), Draft)
    assert violations(checked, ask(entity_id="1011")) == {"entity_id": "'1011' does not match [0-9]{3}"}


def test_an_entity_id_for_a_model_that_fetches_nothing_is_refused() -> None:
    found = violations(admission(), ask(inputs=[1, 2], entity_id="101"))
    assert found == {"entity_id": "churn fetches no features: send all of them"}


# ---------------------------------------------------------------- hydration


def draft_of(**form: Any) -> Draft:
    entity = {**USER, **form.pop("entity", {})}
    answer = admission(*form.pop("features_of", CHURN), entity=entity).draft(ask(entity_id="101", **form))
    assert isinstance(answer, Draft)
    return answer


def test_only_what_was_not_sent_is_fetched() -> None:
    draft = draft_of(features={"age": 25})
    assert [(want.place, want.key) for want in draft.wanted] == [(1, "user:101:clicks")]


def test_all_sent_needs_no_store() -> None:
    assert doubles(admission(entity=USER).draft(ask(entity_id="101", features={"age": 1, "clicks": 2}))) == (1.0, 2.0)


def test_what_is_sent_beats_what_is_stored_and_what_is_stored_beats_the_default() -> None:
    admitted = draft_of(features={"age": 25}).complete({1: (b"120", wire.REDIS)})
    assert doubles(admitted) == (25.0, 120.0)
    assert list(admitted.hydrated) == [(1, wire.REDIS)]


def test_what_is_not_stored_takes_its_default() -> None:
    admitted = draft_of().complete({0: (b"30", wire.REDIS)})
    assert doubles(admitted) == (30.0, 0.0)
    assert list(admitted.hydrated) == [(0, wire.REDIS), (1, wire.DEFAULT)]
    assert not admitted.degraded


def test_a_value_from_the_snapshot_file_keeps_its_origin() -> None:
    admitted = draft_of().complete({0: (b"30", wire.FILE), 1: (b"4", wire.REDIS)})
    assert list(admitted.hydrated) == [(0, wire.FILE), (1, wire.REDIS)]


def test_a_feature_with_a_key_of_its_own_is_read_there() -> None:
    own = ({**AGE, "store_key": "profile:{id}"}, CLICKS)
    assert [want.key for want in draft_of(features_of=own).wanted] == ["profile:101", "user:101:clicks"]


def test_what_is_stored_nowhere_and_has_no_default_is_refused_naming_the_key() -> None:
    with pytest.raises(Refused) as caught:
        draft_of().complete({})
    (violation,) = caught.value.violations
    assert violation.field == "age"
    assert violation.description == "not sent, nothing is stored at user:101:age, and there is no default"


@pytest.mark.parametrize(
    ("raw", "value"),
    [(b"25", 25.0), (b"25.0", 25.0), (b"25.", 25.0), (b"+25", 25.0), (b"-0", 0.0), (b"007", 7.0), (b"130", 130.0)],
)
def test_a_stored_int_may_be_written_in_these_ways(raw: bytes, value: float) -> None:
    assert doubles(draft_of().complete({0: (raw, wire.REDIS)}))[0] == value


@pytest.mark.parametrize(
    "raw",
    [
        b"", b" 25", b"25\n", b"25.5", b"2_5", "２５".encode(), b"abc", b"nan", b"1e2", b"0x19", b"true", b"\xff\xfe",
        b"\x00", b"9007199254740993", b"9" * 400, b"5" * 5000, b"x" * 2**20, b"-1", b"131", b"--1", b"None",
    ],
)  # fmt: skip
def test_a_corrupt_stored_int_is_refused_naming_feature_and_key(raw: bytes) -> None:
    with pytest.raises(Refused) as caught:
        draft_of().complete({0: (raw, wire.REDIS)})
    (violation,) = caught.value.violations
    assert violation.field == "age"
    assert violation.description.startswith("the stored value at user:101:age is unusable: ")
    assert len(violation.description) < 250


@pytest.mark.parametrize(("raw", "value"), [(b"0.5", 0.5), (b".5", 0.5), (b"1e-3", 0.001), (b"-7", -7.0), (b"1.", 1.0)])
def test_a_stored_float_is_read_as_the_number_it_is(raw: bytes, value: float) -> None:
    assert doubles(draft_of(features_of=(FLOAT,)).complete({0: (raw, wire.REDIS)})) == (value,)


@pytest.mark.parametrize(
    "raw", [b"nan", b"inf", b"-Infinity", b"1e400", b"1_0.5", b"", b".", b"e5", b"1,5", b"1." + b"0" * 5000]
)
def test_a_stored_float_that_is_no_finite_number_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as caught:
        draft_of(features_of=(FLOAT,)).complete({0: (raw, wire.REDIS)})
    assert [v.field for v in caught.value.violations] == ["x"]


@pytest.mark.parametrize(("raw", "value"), [(b"true", 1.0), (b"false", 0.0)])
def test_a_stored_bool_is_true_or_false(raw: bytes, value: float) -> None:
    assert doubles(draft_of(features_of=(BOOL,)).complete({0: (raw, wire.REDIS)})) == (value,)


@pytest.mark.parametrize("raw", [b"True", b"1", b"0", b"", b"yes", b"true "])
def test_a_stored_bool_that_is_neither_is_refused(raw: bytes) -> None:
    with pytest.raises(Refused) as caught:
        draft_of(features_of=(BOOL,)).complete({0: (raw, wire.REDIS)})
    assert [v.field for v in caught.value.violations] == ["yes"]


def test_a_stored_string_is_utf_8() -> None:
    rows = draft_of(features_of=(TEXT,)).complete({0: ("naïve 😀".encode(), wire.REDIS)}).rows
    assert isinstance(rows, v1.Columns)
    assert list(rows.columns[0].strings.values) == ["naïve 😀"]
    with pytest.raises(Refused, match="expected UTF-8"):
        draft_of(features_of=(TEXT,)).complete({0: (b"\xff", wire.REDIS)})


def test_corrupt_and_missing_stored_values_are_all_named_at_once() -> None:
    features = (AGE, FLOAT, BOOL, CLICKS)
    with pytest.raises(Refused) as caught:
        draft_of(features_of=features).complete(
            {0: (b"old", wire.REDIS), 1: (b"?", wire.REDIS), 3: (b"-1", wire.REDIS)}
        )
    assert [v.field for v in caught.value.violations] == ["age", "x", "yes", "clicks"]


# ---------------------------------------------------------------- the store failed


def test_a_failed_store_falls_back_on_defaults_and_says_degraded() -> None:
    admitted = draft_of(features={"age": 25}).complete({}, store_failed="no answer within 20 ms")
    assert doubles(admitted) == (25.0, 0.0)
    assert list(admitted.hydrated) == [(1, wire.DEFAULT)]
    assert admitted.degraded


def test_a_failed_store_without_a_default_is_unavailable_and_may_be_asked_again() -> None:
    with pytest.raises(Refused) as caught:
        draft_of().complete({}, store_failed="no answer within 20 ms")
    assert caught.value.reason is Reason.FEATURES_UNAVAILABLE
    assert caught.value.reason.code is Code.UNAVAILABLE
    assert caught.value.retry_after_s is not None
    assert "'age'" in caught.value.message
    assert "no answer within 20 ms" in caught.value.message


def test_a_signature_may_refuse_where_defaults_would_do() -> None:
    draft = draft_of(features={"age": 25}, entity={"on_store_error": "refuse"})
    with pytest.raises(Refused) as caught:
        draft.complete({}, store_failed="gone")
    assert caught.value.reason is Reason.FEATURES_UNAVAILABLE


def test_a_signature_that_refuses_still_takes_defaults_for_what_is_just_not_stored() -> None:
    draft = draft_of(features={"age": 25}, entity={"on_store_error": "refuse"})
    assert doubles(draft.complete({})) == (25.0, 0.0)


def test_what_the_snapshot_file_had_is_used_while_the_store_is_gone() -> None:
    draft = draft_of(entity={"on_store_error": "default"})
    admitted = draft.complete({0: (b"30", wire.FILE)}, store_failed="gone")
    assert doubles(admitted) == (30.0, 0.0)
    assert admitted.degraded


def test_a_signature_that_refuses_takes_nothing_from_the_snapshot_either() -> None:
    draft = draft_of(entity={"on_store_error": "refuse"})
    with pytest.raises(Refused) as caught:
        draft.complete({0: (b"30", wire.FILE), 1: (b"4", wire.FILE)}, store_failed="gone")
    assert caught.value.reason is Reason.FEATURES_UNAVAILABLE


def test_a_corrupt_value_of_the_snapshot_is_named_as_the_snapshots() -> None:
    with pytest.raises(Refused) as caught:
        draft_of().complete({0: (b"old", wire.FILE)})
    (violation,) = caught.value.violations
    assert violation.description == "the stored value of 101 in the snapshot is unusable: expected an int, got 'old'"


def test_default_values_are_not_shared_between_requests() -> None:
    checked = admission(entity=USER)
    first, second = checked.draft(ask(entity_id="1")), checked.draft(ask(entity_id="2"))
    assert isinstance(first, Draft)
    assert isinstance(second, Draft)
    assert doubles(first.complete({0: (b"1", wire.REDIS)})) == (1.0, 0.0)
    assert doubles(second.complete({0: (b"2", wire.REDIS)})) == (2.0, 0.0)
