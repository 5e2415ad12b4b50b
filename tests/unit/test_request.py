"""Requests: read from gRPC bytes and from JSON entries, and the digest that tells whether two ask the same."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.errors import Reason, Refused
from contract.request import Native, Request, RequestIds, native, value_of
from protos import millstream_v1_pb2 as v1


def from_json(body: object) -> Request:
    return Request.from_json(body if isinstance(body, bytes) else json.dumps(body).encode(), "churn")


def refused(body: object) -> Refused:
    with pytest.raises(Refused) as caught:
        from_json(body)
    return caught.value


def fields(body: object) -> list[str]:
    return [v.field for v in refused(body).violations]


def digest(**form: Any) -> bytes:
    return Request("churn", **form).body_sha256()


# ---------------------------------------------------------------- gRPC


@pytest.mark.parametrize(
    "item", [0, -1, 2**53, -(2**63), 2**63 - 1, 0.5, -0.0, 1e308, 5e-324, True, False, "", "é", None]
)
def test_a_value_comes_back_as_the_very_same(item: Native) -> None:
    came = native(v1.Value.FromString(value_of(item).SerializeToString()))
    assert (type(came), repr(came)) == (type(item), repr(item))


def test_an_integer_beyond_64_bits_and_other_types_are_no_values() -> None:
    with pytest.raises(ValueError):
        value_of(2**63)
    with pytest.raises(TypeError, match="not list"):
        value_of([1])  # type: ignore[arg-type]


def test_an_empty_message_asks_for_nothing() -> None:
    assert Request.from_bytes(b"") == Request("")


def test_every_field_of_a_message_is_read() -> None:
    message = v1.PredictRequest(
        model_id="churn",
        version="1.0.0",
        inputs=[v1.Value(integer=25), v1.Value()],
        features={"age": v1.Value(number=25.5)},
        rows=v1.Rows(matrix=v1.Matrix(rows=1, float64=bytes(16))),
        entity_id="101",
        request_id="r1",
        discard_reply=True,
    )
    assert Request.from_bytes(message.SerializeToString()) == Request(
        "churn", "1.0.0", [25, None], {"age": 25.5}, message.rows, None, "101", "r1", True
    )


NUMBER_LIKE = b"\x1a\x09\x09" + struct.pack("<d", 7.0)
"""An input that is a number, as it stands in a request: here inside of a text, where it is none."""
VALUES = st.one_of(st.floats(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.text(max_size=3), st.none())
TEXTS = st.one_of(st.text(max_size=5), st.just(NUMBER_LIKE.decode()), st.just(NUMBER_LIKE.decode() * 20))
MESSAGES = st.builds(
    lambda model_id, version, inputs, request_id: v1.PredictRequest(
        model_id=model_id, version=version, inputs=[value_of(item) for item in inputs], request_id=request_id
    ).SerializeToString(),
    TEXTS,
    TEXTS,
    st.one_of(st.lists(st.floats(), max_size=6), st.lists(VALUES, max_size=6)),
    TEXTS,
)


@given(st.lists(MESSAGES, min_size=1, max_size=2))
def test_inputs_are_the_same_however_they_are_read(parts: list[bytes]) -> None:
    """Numbers are read where they stand, bit by bit; serialized messages may follow one another."""
    raw = b"".join(parts)
    expected = [native(value) for value in v1.PredictRequest.FromString(raw).inputs]
    actual = list(Request.from_bytes(raw).inputs or ())
    assert [_bits(item) for item in expected] == [_bits(item) for item in actual]


@pytest.mark.parametrize("size", [0, 116, 127, 128, 129, 255, 256, 257, 300])
@pytest.mark.parametrize("field", ["model_id", "version", "request_id"])
def test_what_looks_like_an_input_within_a_name_is_none(field: str, size: int) -> None:
    """Wherever it stands in it: also where a length of two bytes, taken for one, would lead to."""
    for place in range(max(1, size - len(NUMBER_LIKE))):
        text = ("a" * place + NUMBER_LIKE.decode()).ljust(size, "a")
        message = v1.PredictRequest(inputs=[v1.Value(number=0.5)])
        setattr(message, field, text)
        assert Request.from_bytes(message.SerializeToString()).inputs == [0.5]


def _bits(item: Native) -> tuple[type, Native | bytes]:
    return type(item), struct.pack("<d", item) if isinstance(item, float) else item


def test_rows_of_no_form_are_still_rows() -> None:
    assert Request.from_bytes(v1.PredictRequest(rows=v1.Rows()).SerializeToString()).packed is not None


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff",
        b"not a message at all",
        v1.PredictRequest(model_id="churn", inputs=[v1.Value(number=1)]).SerializeToString()[:-3],
        b"\x0a\x02\xff\xfe",  # model_id that is no UTF-8
        b"\x0a\xff\xff\xff\xff\x7f",  # a length of 34 GB
    ],
)
def test_bytes_that_are_no_request_are_malformed(raw: bytes) -> None:
    with pytest.raises(Refused) as caught:
        Request.from_bytes(raw)
    assert caught.value.reason is Reason.MALFORMED
    assert caught.value.message == "the bytes are no millstream.v1.PredictRequest"


def test_a_message_made_of_a_request_asks_the_same() -> None:
    asked = Request("churn", "1.0.0", None, {"age": 25, "clicks": None}, None, None, "101", "r1", True)
    assert Request.from_bytes(asked.to_message().SerializeToString()) == asked


# ---------------------------------------------------------------- JSON


def test_every_field_of_an_entry_is_read() -> None:
    body = {
        "model_id": "churn", "version": "1.0.0", "inputs": [25, 1.5, True, "x", None], "features": {"age": 25},
        "rows": [[1], []], "entity_id": "101", "request_id": "r1", "discard_reply": True,
    }  # fmt: skip
    assert from_json(body) == Request(
        "churn", "1.0.0", [25, 1.5, True, "x", None], {"age": 25}, None, [[1], []], "101", "r1", True
    )


def test_the_model_may_be_left_out_and_is_the_streams_own() -> None:
    assert from_json({"inputs": [1]}).model_id == "churn"
    assert from_json({"inputs": [1], "model_id": ""}).model_id == "churn"


@pytest.mark.parametrize("item", [9007199254740993, -0.0, 1e308, 5e-324, 0.1, 2**100])
def test_numbers_in_json_are_exact(item: Native) -> None:
    (came,) = from_json({"inputs": [item]}).inputs or ()
    assert (type(came), repr(came)) == (type(item), repr(item))


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"", "the text ends here"),
        (b"{", "key in double quotes"),
        (b"not json", "expected a value"),
        (b"[1, 2]", "the entry is a list, an object is expected"),
        (b'"churn"', "an object is expected"),
        (b"12", "an object is expected"),
        (b"null", "an object is expected"),
        (b'{"inputs":[NaN]}', "NaN is not JSON"),
        (b'{"inputs":[Infinity]}', "Infinity is not JSON"),
        (b'{"inputs":[1e999]}', "too large for a float64"),
        (b'{"inputs":[' + b"9" * 400 + b"]}", "400 digits is too large"),
        (b'{"inputs":[1],"inputs":[2]}', 'the key "inputs" stands twice'),
        (b'{"features":{"age":1,"age":2}}', 'the key "age" stands twice'),
        (b'{"inputs":' + b"[" * 10_000, "nested deeper than 64 levels"),
        (b'\xef\xbb\xbf{"inputs":[1]}', "byte order mark"),
        (b'{"request_id":"\xff"}', "is not UTF-8"),
        (b'{"request_id":"\\ud800"}', "surrogate"),
        (b'{"inputs":[1]}{"inputs":[2]}', "expected the end"),
    ],
)
def test_what_is_no_strict_json_object_is_malformed(raw: bytes, said: str) -> None:
    caught = refused(raw)
    assert caught.reason is Reason.MALFORMED
    assert said in caught.message


def test_everything_wrong_with_the_form_is_named_at_once() -> None:
    body = {
        "model_id": 7, "version": 1, "entity_id": 101, "request_id": None, "inputs": {"age": 1}, "features": [1],
        "rows": [1, 2], "discard_reply": "yes", "reply_to": "gateway-1", "deadline": "tomorrow",
    }  # fmt: skip
    assert fields(body) == [
        "reply_to", "deadline", "model_id", "version", "entity_id", "request_id", "inputs", "features", "rows",
        "discard_reply",
    ]  # fmt: skip
    assert refused(body).reason is Reason.INPUT_INVALID


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"inputs": [[1]]}, "inputs"),
        ({"inputs": [{"age": 1}]}, "inputs"),
        ({"inputs": "12"}, "inputs"),
        ({"inputs": 5}, "inputs"),
        ({"features": {"age": [1]}}, "features"),
        ({"features": {"age": {}}}, "features"),
        ({"features": "age"}, "features"),
        ({"rows": [[1], {"age": 1}]}, "rows"),
        ({"rows": {}}, "rows"),
        ({"discard_reply": 1}, "discard_reply"),
        ({"gateway": "g1"}, "gateway"),
    ],
)
def test_a_field_of_another_type_is_named(body: dict[str, object], field: str) -> None:
    assert fields(body) == [field]


def test_an_entry_of_another_model_is_refused() -> None:
    caught = refused({"model_id": "credit_risk", "inputs": [1]})
    assert [v.field for v in caught.violations] == ["model_id"]
    assert "this is the stream of 'churn', the entry says 'credit_risk'" in caught.message


def test_names_of_any_length_do_not_make_the_refusal_endless() -> None:
    caught = refused({"x" * 100_000: 1, "model_id": "m" * 100_000})
    assert all(len(v.field) <= 200 and len(v.description) < 500 for v in caught.violations)


# ---------------------------------------------------------------- how many rows


@pytest.mark.parametrize(
    ("form", "count"),
    [
        ({"inputs": [1]}, 1),
        ({"features": {}}, 1),
        ({}, 1),
        ({"rows": [[1], [2], [3]]}, 3),
        ({"packed": v1.Rows(matrix=v1.Matrix(rows=7))}, 7),
        ({"packed": v1.Rows(columns=v1.Columns(rows=8))}, 8),
        ({"packed": v1.Rows()}, 0),
    ],
)
def test_rows_are_counted_in_every_form(form: dict[str, Any], count: int) -> None:
    assert Request("churn", **form).row_count == count


# ---------------------------------------------------------------- the digest of what was asked


def test_the_digest_is_the_same_however_a_number_is_written() -> None:
    assert digest(inputs=[45, 3]) == digest(inputs=[45.0, 3.0])
    assert digest(features={"a": 1, "b": 2}) == digest(features={"b": 2.0, "a": 1})
    assert digest(inputs=[2**53]) == digest(inputs=[2.0**53])
    assert digest(inputs=[10**16]) == digest(inputs=[1e16])


def test_no_features_by_name_are_the_same_as_an_empty_object() -> None:
    assert digest(features={}, entity_id="101") == digest(entity_id="101")


def test_ids_and_what_becomes_of_the_reply_are_no_part_of_the_digest() -> None:
    assert digest(inputs=[1], request_id="a", discard_reply=True) == digest(inputs=[1], request_id="b")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"inputs": [1]}, {"inputs": [2]}),
        ({"inputs": [1]}, {"inputs": [True]}),
        ({"inputs": [1]}, {"inputs": ["1"]}),
        ({"inputs": [0.0]}, {"inputs": [-0.0]}),
        ({"inputs": [None]}, {"inputs": [0]}),
        ({"inputs": [None]}, {"inputs": [math.nan]}),
        ({"inputs": [math.inf]}, {"inputs": [-math.inf]}),
        ({"inputs": [2**53 + 1]}, {"inputs": [2**53]}),
        ({"inputs": [2**53 + 1]}, {"inputs": [2**53 + 2]}),
        ({"inputs": [10**400]}, {"inputs": [10**400 + 1]}),
        ({"inputs": [5e-324]}, {"inputs": [0.0]}),
        ({"inputs": [1, 2]}, {"inputs": [2, 1]}),
        ({"inputs": [1]}, {"rows": [[1]]}),
        ({"inputs": [1]}, {"features": {"age": 1}}),
        ({"inputs": [1]}, {"inputs": [1], "version": "1.0.0"}),
        ({"inputs": [1]}, {"inputs": [1], "entity_id": "101"}),
        ({"version": "101"}, {"entity_id": "101"}),
        (
            {"packed": v1.Rows(matrix=v1.Matrix(rows=1, float64=bytes(8)))},
            {"packed": v1.Rows(matrix=v1.Matrix(rows=1, float64=bytes(7) + b"\x80"))},
        ),
    ],
)
def test_the_digest_tells_apart_what_a_model_could_tell_apart(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert digest(**one) != digest(**other)


def test_the_digest_has_32_bytes_and_another_model_has_another() -> None:
    assert len(digest(inputs=[1])) == 32
    assert Request("churn", inputs=[1]).body_sha256() != Request("credit_risk", inputs=[1]).body_sha256()


def test_json_and_grpc_asking_the_same_have_the_same_digest() -> None:
    message = v1.PredictRequest(
        model_id="churn", features={"age": v1.Value(number=25), "x": v1.Value(number=1e16)}, entity_id="101"
    )
    entry = b'{"entity_id":"101","features":{"x":10000000000000000,"age":25}}'
    assert from_json(entry).body_sha256() == Request.from_bytes(message.SerializeToString()).body_sha256()


# ---------------------------------------------------------------- ids


def test_ids_are_checked_together() -> None:
    wrong = Request("churn", request_id="a b", entity_id="é" * 200).check_ids()
    assert [v.field for v in wrong] == ["request_id", "entity_id"]


def test_ids_made_here_are_valid_and_differ() -> None:
    ids = RequestIds()
    made = [ids.next() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(not Request("churn", request_id=each).check_ids() for each in made)
    assert not any(each.startswith("-") for each in made)  # `millstream result MODEL ID` takes it as it is
