"""Whatever is asked of whatever model: rows that fit come out as they went in, all else is Refused, nothing breaks."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract import admission
from contract.admission import Admission, Admitted
from contract.errors import Reason, Refused
from contract.request import Native, Request
from contract.signature import Feature, SignatureError, parse_signature
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire
from tests.records import signature_json

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=12)
SMALL = st.integers(min_value=-20, max_value=20)
EXACT = st.integers(min_value=-(2**53), max_value=2**53)
FINITE = st.floats(allow_nan=False, allow_infinity=False)

ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    SMALL,
    st.integers(),
    st.integers(min_value=10**300, max_value=10**310),
    st.floats(),
    st.text(max_size=20),
    st.just("x" * 2000),
    st.sampled_from(["1", "true", "NaN", "1e400", -0.0, 1e308, 5e-324, 2**53, 2**53 + 1, 2.0**53, 3.0, 3.5]),
)


@st.composite
def features(draw: st.DrawFn) -> dict[str, Any]:
    """One feature as signature.json has it; bounds and categories where they fit."""
    kind = draw(st.sampled_from(["float", "int", "bool", "string"]))
    feature: dict[str, Any] = {"name": draw(NAMES), "type": kind}
    if kind in ("float", "int") and draw(st.booleans()):
        number = SMALL if kind == "int" else st.one_of(SMALL, FINITE)
        low, high = sorted([draw(number), draw(number)])
        feature |= draw(st.sampled_from([{"min": low}, {"max": high}, {"min": low, "max": high}]))
    elif kind == "string" and draw(st.booleans()):
        feature["categories"] = draw(st.lists(st.text(max_size=5), min_size=1, max_size=3, unique=True))
    elif kind == "int" and draw(st.booleans()):
        feature["categories"] = draw(st.lists(SMALL, min_size=1, max_size=3, unique=True))
    if kind in ("float", "string") and draw(st.booleans()):
        feature["nullable"] = True
    if draw(st.booleans()):
        feature["default"] = draw(fitting(feature))
    return feature


def fitting(feature: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that one feature takes."""
    kind, categories = feature["type"], feature.get("categories")
    low, high = feature.get("min"), feature.get("max")
    if categories:
        taken: st.SearchStrategy[Any] = st.sampled_from(categories)
    elif kind == "float":
        taken = st.floats(min_value=low, max_value=high, allow_nan=False, allow_infinity=False)
    elif kind == "int":
        taken = st.integers(-(2**53) if low is None else low, 2**53 if high is None else high)
    elif kind == "bool":
        taken = st.booleans()
    else:
        taken = st.text(max_size=20)
    return st.none() | taken if feature.get("nullable") else taken


@st.composite
def models(draw: st.DrawFn) -> Admission:
    """A model of one to six features of any types, some with an entity."""
    found = draw(st.lists(features(), min_size=1, max_size=6, unique_by=lambda feature: str(feature["name"])))
    more: dict[str, Any] = {}
    if draw(st.booleans()):
        more["entity"] = {
            "key": draw(st.sampled_from(["user:{id}:{feature}", "{{x}}:{id}", "{feature}{id}{id}"])),
            "on_store_error": draw(st.sampled_from(["default", "refuse"])),
        }
    raw = signature_json(found, **more)
    return Admission(parse_signature(raw)[0], max_rows=draw(st.sampled_from([1, 3, 100_000])))


@st.composite
def columns(draw: st.DrawFn) -> v1.Column:
    column = v1.Column(nulls=draw(st.lists(st.integers(0, 5), max_size=2)))
    kind = draw(st.sampled_from(["doubles", "integers", "booleans", "strings", None]))
    items: dict[str, st.SearchStrategy[Any]] = {
        "doubles": st.floats(),
        "integers": st.integers(-(2**63), 2**63 - 1),
        "booleans": st.booleans(),
        "strings": st.text(max_size=5),
    }
    if kind is not None:
        getattr(column, kind).values.extend(draw(st.lists(items[kind], max_size=4)))
    return column


PACKED = st.one_of(
    st.just(v1.Rows()),
    st.builds(
        lambda rows, raw: v1.Rows(matrix=v1.Matrix(rows=rows, float64=raw)),
        st.sampled_from([0, 1, 2, 3, 100_001, 2**32 - 1]),
        st.one_of(
            st.binary(max_size=60), st.lists(st.floats(), max_size=18).map(lambda v: struct.pack(f"<{len(v)}d", *v))
        ),
    ),
    st.builds(
        lambda rows, parts: v1.Rows(columns=v1.Columns(rows=rows, columns=parts)),
        st.sampled_from([0, 1, 2, 100_001, 2**32 - 1]),
        st.lists(columns(), max_size=7),
    ),
)


@st.composite
def requests(draw: st.DrawFn, model: Admission) -> Request:
    """Anything that could be asked, in any mixture of forms."""
    names = st.one_of(st.sampled_from([feature.name for feature in model.features]), st.text(max_size=12))
    form: dict[str, Any] = {}
    for name, made in (
        ("inputs", st.lists(ANYTHING, max_size=7)),
        ("features", st.dictionaries(names, ANYTHING, max_size=7)),
        ("packed", PACKED),
        ("rows", st.lists(st.lists(ANYTHING, max_size=7), max_size=4)),
        ("entity_id", st.one_of(st.text(max_size=300), st.sampled_from(["101", "{id}", "*", "a\n", "‮"]))),
        ("request_id", st.one_of(st.text(max_size=150), st.just("1-1"))),
    ):
        if draw(st.integers(0, 2)) == 0:
            form[name] = draw(made)
    return Request("churn", **form)


STORED = st.one_of(
    st.binary(max_size=20),
    st.just(b"7" * 5000),
    st.sampled_from(
        [b"1", b"0", b"true", b"false", b"0.5", b"-0.0", b"1e400", b"nan", b" 1", b"", b"9007199254740993"]
    ),
)


@given(st.data())
def test_admission_raises_nothing_but_refused_with_reasons_for_a_caller(data: st.DataObject) -> None:
    model = data.draw(models())
    answer = admitted_or_refused(model, data.draw(requests(model)), data)
    if isinstance(answer, Admitted):
        check_rows(model, answer)
    else:
        assert answer.reason in (Reason.INPUT_INVALID, Reason.FEATURES_UNAVAILABLE)
        assert answer.message
        assert (answer.reason is Reason.INPUT_INVALID) == bool(answer.violations)
        assert all(v.description for v in answer.violations)
        assert len(answer.violations) <= 120
        answer.to_error().SerializeToString()


def admitted_or_refused(model: Admission, request: Request, data: st.DataObject) -> Admitted | Refused:
    try:
        answer = model.draft(request)
        if isinstance(answer, Admitted):
            return answer
        places = [want.place for want in answer.wanted]
        assert set(answer.absent).isdisjoint(places)
        values = st.tuples(STORED, st.sampled_from([wire.REDIS, wire.FILE]))
        stored = data.draw(st.dictionaries(st.sampled_from(places), values)) if places else {}
        return answer.complete(stored, store_failed=data.draw(st.sampled_from(["", "gone"])))
    except Refused as refused:
        return refused


def check_rows(model: Admission, admitted: Admitted) -> None:
    """What is let in holds as many rows as it says, every value one that its feature takes."""
    table = rows_of(admitted)
    assert 1 <= len(table) == admitted.n <= model.max_rows
    for row in table:
        for feature, item in zip(model.features, row, strict=True):
            # A matrix holds a bool as 0.0 or 1.0.
            value = bool(item) if feature.type == "bool" and item in (0.0, 1.0) else item
            assert feature.accept(value) == item


def rows_of(admitted: Admitted) -> list[list[Native]]:
    """Admitted rows as Python values, null as None; a matrix holds bools and ints as floats."""
    rows = admitted.rows
    if isinstance(rows, v1.Matrix):
        values = struct.unpack(f"<{len(rows.float64) // 8}d", rows.float64)
        width = len(values) // rows.rows
        return [
            [None if math.isnan(item) else item for item in values[start : start + width]]
            for start in range(0, len(values), width)
        ]
    table: list[list[Native]] = []
    for column in rows.columns:
        kind = column.WhichOneof("kind")
        items: list[Any] = list(getattr(column, kind).values) if kind else []
        assert len(items) == rows.rows
        for place in column.nulls:
            items[place] = None
        table.append([None if isinstance(item, float) and math.isnan(item) else item for item in items])
    return [list(row) for row in zip(*table, strict=True)]


def same(feature: Feature, sent: Native, came: Native) -> bool:
    if sent is None:
        return came is None
    if isinstance(sent, str):
        return came == sent
    assert came is not None
    # As bits: -0.0 is not 0.0 for a float.
    return struct.pack("<d", float(came)) == struct.pack("<d", float(sent))


@given(st.data())
def test_rows_that_fit_are_let_in_unchanged_in_every_form(data: st.DataObject) -> None:
    model = data.draw(models())
    known = [json_of(feature) for feature in model.features]
    rows = data.draw(
        st.lists(st.tuples(*[fitting(each) for each in known]), min_size=1, max_size=min(model.max_rows, 5))
    )
    forms = [Request("churn", rows=rows)]
    if len(rows) == 1:
        names = [feature.name for feature in model.features]
        forms += [
            Request("churn", inputs=rows[0]),
            Request("churn", features=dict(zip(names, rows[0], strict=True))),
        ]
    if model.matrix:
        flat = [math.nan if item is None else float(item) for row in rows for item in row]
        forms.append(
            Request(
                "churn",
                packed=v1.Rows(matrix=v1.Matrix(rows=len(rows), float64=struct.pack(f"<{len(flat)}d", *flat))),
            )
        )
    for form in forms:
        answer = model.draft(form)
        assert isinstance(answer, Admitted)
        table = rows_of(answer)
        assert len(table) == len(rows)
        for row, came in zip(rows, table, strict=True):
            assert all(
                same(feature, item, there) for feature, item, there in zip(model.features, row, came, strict=True)
            )


@given(st.data())
def test_many_rows_are_decided_as_few_are(data: st.DataObject) -> None:
    """Column by column or value by value: the same rows, bit by bit, or the same violations."""
    model = data.draw(models())
    known = [json_of(feature) for feature in model.features]
    rows = data.draw(
        st.lists(st.tuples(*[fitting(each) for each in known]).map(list), min_size=1, max_size=min(model.max_rows, 4))
    )
    if data.draw(st.booleans()):
        place = data.draw(st.integers(0, model.width - 1))
        rows[0][place] = data.draw(ANYTHING)
    request = Request("churn", rows=rows)
    few = decided(model, request, len(rows) + 1)
    assert few == decided(model, request, 0)
    if data.draw(st.booleans()):
        sent = [column_of(list(items)) for items in zip(*rows, strict=True)]
        if None not in sent:
            packed = v1.Rows(columns=v1.Columns(rows=len(rows), columns=sent))  # type: ignore[arg-type]
            request = Request("churn", packed=packed)
            assert decided(model, request, len(rows) + 1) == decided(model, request, 0)


def decided(model: Admission, request: Request, few: int) -> Admitted | tuple[object, ...]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(admission, "FEW_ROWS", few)
        try:
            answer = model.draft(request)
            assert isinstance(answer, Admitted)
        except Refused as refused:
            return refused.violations
    return answer


def column_of(items: list[Native]) -> v1.Column | None:
    """As a caller packs it; None for what no column holds."""
    for name, kind in (("doubles", float), ("integers", int), ("booleans", bool), ("strings", str)):
        if all(type(item) is kind for item in items):
            column = v1.Column()
            try:
                getattr(column, name).values.extend(items)
            except (ValueError, UnicodeEncodeError):
                return None
            return column
    return None


def json_of(feature: Feature) -> dict[str, Any]:
    found: dict[str, Any] = {"type": feature.type, "min": feature.min, "max": feature.max}
    return found | {"categories": feature.categories, "nullable": feature.nullable}


@given(st.binary(max_size=400))
def test_any_bytes_are_a_signature_or_refused_as_none(raw: bytes) -> None:
    with pytest.raises(SignatureError):
        parse_signature(raw)


@given(models())
def test_a_sample_of_every_model_is_let_in_as_json(model: Admission) -> None:
    """What is shown to people as an example is accepted when they send it."""
    sample = [feature.sample() for feature in model.features]
    body = json.dumps({"inputs": sample}).encode()
    assert isinstance(model.draft(Request.from_json(body, "churn")), Admitted)
