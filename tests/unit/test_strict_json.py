"""What the strict JSON parser takes and what it refuses, and where it says the fault is."""

from __future__ import annotations

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contract.strict_json import MAX_DEPTH, StrictJsonError, parse_json


@pytest.mark.parametrize(
    ("raw", "line", "column", "says"),
    [
        (b'{"a": 1\n "b": 2}', 2, 2, "expected a comma"),
        (b'{"a": 1,\n "b": {"c": 1, "\\u0063": 2}}', 2, 16, 'the key "c" stands twice'),
        (b'{"a": {"b": 1}, "b": [{"a": 1}],\n"a": 2}', 2, 1, 'the key "a" stands twice'),
        (b"[1, NaN]", 1, 5, "NaN is not JSON"),
        (b"[\n-Infinity]", 2, 1, "-Infinity is not JSON"),
        (b'{"a": 1e400}', 1, 7, "1e400 is too large"),
        (b"[1, -1E999]", 1, 5, "-1E999 is too large"),
        (b"[" + b"1" * 5000 + b"]", 1, 2, "an integer of 5000 digits"),
        (b'["NaN", -' + b"1" * 309 + b"]", 1, 9, "an integer of 309 digits"),
        (b"[" * 100_000, 1, 65, "nested deeper than 64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, 1, 64 * 5 + 1, "nested deeper than 64 levels"),
        (b"\xef\xbb\xbf{}", 1, 1, "byte order mark"),
        (b'{"\xc3\xa9\xc3\xa9": "\xff"}', 1, 9, "byte 0xff is not UTF-8"),
        (b'["\xed\xa0\x80"]', 1, 3, "is not UTF-8"),
        (b'[1,\n"\\ud800"]', 2, 1, "half of a surrogate pair"),
        (b"", 1, 1, "expected a value; the text ends here"),
        (b'{"a": 1} x', 1, 10, "expected the end of the text; got 'x'"),
        (b'{"a": 01}', 1, 8, "expected a comma"),
        (b"{'a': 1}", 1, 2, "expected a key in double quotes"),
        (b'"a\nb"', 1, 3, "invalid control character"),
        (b'{"a": tru}', 1, 7, "expected a value"),
    ],
)
def test_a_fault_is_refused_with_its_line_and_column(raw: bytes, line: int, column: int, says: str) -> None:
    with pytest.raises(StrictJsonError) as caught:
        parse_json(raw)
    assert (caught.value.line, caught.value.column) == (line, column)
    assert says in caught.value.message
    assert str(caught.value).startswith(f"line {line}, column {column}: ")


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b'{"a": [1, 2.5, -0.0, true, null, "\\u00e9\\ud83d\\ude00"]}', {"a": [1, 2.5, -0.0, True, None, "é😀"]}),
        (b'["[[[[{{{{", "\\"]]"]' + b" " * 70, ["[[[[{{{{", '"]]']),
        (b'[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        (b"1.7976931348623157e308", 1.7976931348623157e308),
        (b"9" * 308, int("9" * 308)),
        (b" 7\r\n", 7),
    ],
)
def test_strict_json_is_taken_as_it_is(raw: bytes, value: object) -> None:
    assert parse_json(raw) == value
    assert parse_json(memoryview(raw)) == value


def test_brackets_in_strings_are_not_levels() -> None:
    raw = json.dumps(["[" * 1000, "\\[" * 1000, '"[' * 1000]).encode()
    assert parse_json(raw) == json.loads(raw)


def test_the_deepest_level_is_taken() -> None:
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert parse_json(json.dumps(value).encode()) == value


def test_many_rows_are_not_many_levels() -> None:
    raw = json.dumps({"rows": [[1.0, 2.0]] * 1000}).encode()
    assert parse_json(raw) == json.loads(raw)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@given(_VALUES)
def test_whatever_is_written_as_json_is_read_back(value: object) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value
    assert parse_json(json.dumps(value, indent=1).encode()) == value


@given(st.binary() | st.text(alphabet='{}[]",:\\u dD80eE+-.nN\n"').map(str.encode))
@example(b'["\\"]')
@example(b'"' + b'\\"' * 200_000)
@example(b"[1e400,]")
@example(b'{"a":NaN "b"}')
@example(b'["\\ud800", NaN]')
def test_any_other_text_is_refused_and_nothing_else_is_raised(raw: bytes) -> None:
    place = (1, 1)
    try:
        parse_json(raw)
    except StrictJsonError as error:
        place = (error.line, error.column)
    assert min(place) >= 1
