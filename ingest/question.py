"""From what a Python caller has at hand - lists, dicts, numpy, pandas - to one PredictRequest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from contract.errors import Violation
from contract.request import Native, Request, value_of
from ingest.answer import InvalidInput
from protos import millstream_v1_pb2 as v1

_EXACT = 2**53


def question(
    model_id: str,
    *,
    inputs: Any = None,
    features: Any = None,
    rows: Any = None,
    entity_id: str = "",
    version: str = "",
    request_id: str = "",
    discard_reply: bool = False,
    columns: Sequence[str] = (),
) -> v1.PredictRequest:
    """One request: one row as `inputs` (by position) or `features` (by name), or many as `rows`.

    `inputs` is a list or a one-dimensional array; `features` a dict or a Series. `rows` is a two-dimensional array,
    a list of lists, a list of dicts, a DataFrame, or `Rows` packed already; rows by name need `columns`, the feature
    names in index order. Raises InvalidInput naming everything that can't be sent.
    """
    wrong: list[Violation] = []
    forms = [name for name, form in (("inputs", inputs), ("features", features), ("rows", rows)) if form is not None]
    if len(forms) > 1:
        wrong.append(Violation(forms[1], f"send one of inputs, features and rows; {' and '.join(forms)} came"))
        raise refusal(wrong, request_id)
    message = v1.PredictRequest(
        model_id=model_id, version=version, entity_id=entity_id, request_id=request_id, discard_reply=discard_reply
    )
    wrong += Request(model_id, entity_id=entity_id, request_id=request_id).check_ids()
    if inputs is not None:
        for place, item in enumerate(by_position(inputs, request_id)):
            _put(message.inputs.add(), item, f"inputs[{place}]", wrong)
    if features is not None:
        for name, item in by_name(features, request_id).items():
            _put(message.features[name], item, name, wrong)
    if wrong:
        raise refusal(wrong, request_id)
    if rows is not None:
        message.rows.CopyFrom(rows if isinstance(rows, v1.Rows) else pack(rows, columns, request_id))
    return message


def by_position(inputs: Any, request_id: str = "") -> list[Any]:
    """One row by position as plain Python values. Raises InvalidInput."""
    plain = inputs.tolist() if hasattr(inputs, "tolist") else inputs
    if isinstance(plain, str | bytes | Mapping) or not hasattr(plain, "__iter__"):
        raise refusal([Violation("inputs", f"expected a list of values, got {_kind(inputs)}")], request_id)
    return list(plain)


def by_name(features: Any, request_id: str = "") -> dict[str, Any]:
    """One row by name. Raises InvalidInput."""
    plain = features.to_dict() if not isinstance(features, Mapping) and hasattr(features, "to_dict") else features
    if not isinstance(plain, Mapping) or not all(isinstance(name, str) for name in plain):
        raise refusal([Violation("features", f"expected a dict by feature name, got {_kind(features)}")], request_id)
    return dict(plain)


def refusal(violations: Sequence[Violation], request_id: str = "") -> InvalidInput:
    """All that is wrong as one error, raised before anything was sent."""
    first = violations[0]
    more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
    text = f"{first.field}: {first.description}{more}"
    return InvalidInput(text, reason="INPUT_INVALID", request_id=request_id, violations=violations)


def pack(rows: Any, columns: Sequence[str] = (), request_id: str = "") -> v1.Rows:
    """Many rows, packed: a matrix where every value is a number or a boolean, columns otherwise. Raises InvalidInput.

    Rows by name are put in the order of `columns`; what is missing or too much is named.
    """
    if needs_names(rows):
        rows = _in_order(rows, columns, request_id)
    if isinstance(rows, _Table):
        return _pack_columns(rows.columns, rows.n, request_id)
    if hasattr(rows, "dtype"):
        return _pack_array(rows, request_id)
    if isinstance(rows, str | bytes | Mapping) or not hasattr(rows, "__iter__"):
        raise refusal(
            [Violation("rows", f"expected an array, a DataFrame or a list of rows, got {_kind(rows)}")], request_id
        )
    table = [by_position(row, request_id) for row in rows]
    return _pack_lists(table, request_id)


def needs_names(rows: Any) -> bool:
    """Whether rows are given by name, so that the model's order of features must be known."""
    if _is_frame(rows):
        return True
    return isinstance(rows, Sequence) and len(rows) > 0 and isinstance(rows[0], Mapping)


class _Table:
    """Rows as one list per feature, in index order."""

    def __init__(self, n: int, columns: list[list[Any]]) -> None:
        self.n = n
        self.columns = columns


def _is_frame(rows: Any) -> bool:
    return hasattr(rows, "columns") and hasattr(rows, "iloc")


def _in_order(rows: Any, columns: Sequence[str], request_id: str) -> Any:
    if _is_frame(rows):
        names = [str(name) for name in rows.columns]
        _check_names("rows", names, columns, request_id)
        ordered = rows[list(columns)]
        if all(kind.kind in "fiub" for kind in (getattr(dtype, "numpy_dtype", dtype) for dtype in ordered.dtypes)) and (
            not ordered.isna().to_numpy().any() or all(str(dtype).startswith("float") for dtype in ordered.dtypes)
        ):
            table = [ordered[name].to_numpy() for name in columns]
            if all(_fits_matrix(column) for column in table):
                import numpy as np

                return np.column_stack([column.astype("<f8") for column in table])
        # A missing value is None whatever the column's type calls it: NaN, NaT or pandas.NA.
        lists = [ordered[name].astype(object).where(ordered[name].notna(), None).tolist() for name in columns]
        return _Table(len(ordered), lists)
    for number, row in enumerate(rows):
        _check_names(f"rows[{number}]", list(by_name(row, request_id)), columns, request_id)
    return [[row[name] for name in columns] for row in rows]


def _check_names(field: str, names: Sequence[str], columns: Sequence[str], request_id: str) -> None:
    missing = [name for name in columns if name not in names]
    unknown = [name for name in names if name not in columns]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    faults = [
        f"{word} {', '.join(each[:10])}"
        for word, each in (("missing:", missing), ("unknown:", unknown), ("twice:", twice))
        if each
    ]
    if faults:
        expected = ", ".join(columns[:20])
        raise refusal([Violation(field, f"expected the columns {expected}; {'; '.join(faults)}")], request_id)


def _fits_matrix(array: Any) -> bool:
    """Whether float64 holds every value exactly."""
    if array.dtype.kind in "fb":
        return True
    if array.dtype.kind not in "iu":
        return False
    return not array.size or (int(array.max()) <= _EXACT and int(array.min()) >= -_EXACT)


def _pack_array(array: Any, request_id: str) -> v1.Rows:
    if array.ndim != 2:
        text = f"expected two dimensions, rows by features, got {array.ndim}; one row is `inputs`"
        raise refusal([Violation("rows", text)], request_id)
    if _fits_matrix(array):
        packed = array.astype("<f8", order="C", copy=False).tobytes()
        return v1.Rows(matrix=v1.Matrix(rows=array.shape[0], float64=packed))
    return _pack_lists(array.tolist(), request_id)


def _pack_lists(table: list[list[Any]], request_id: str) -> v1.Rows:
    widths = {len(row) for row in table}
    if len(widths) > 1:
        odd = next(number for number, row in enumerate(table) if len(row) != len(table[0]))
        text = f"expected {len(table[0])} values as in the first row, got {len(table[odd])}"
        raise refusal([Violation(f"rows[{odd}]", text)], request_id)
    numbers = all(
        item is None or (isinstance(item, float | int) and -_EXACT <= item <= _EXACT) or item != item
        for row in table
        for item in row
    )
    if numbers:
        import numpy as np

        return _pack_array(np.array(table, dtype="<f8").reshape(len(table), widths.pop() if widths else 0), request_id)
    return _pack_columns([list(column) for column in zip(*table, strict=True)], len(table), request_id)


def _pack_columns(columns: list[list[Any]], n: int, request_id: str) -> v1.Rows:
    out = v1.Columns(rows=n)
    wrong: list[Violation] = []
    for place, items in enumerate(columns):
        plain = [item.item() if hasattr(item, "item") else item for item in items]
        nulls = [row for row, item in enumerate(plain) if item is None or (isinstance(item, float) and item != item)]
        absent = set(nulls)
        kinds = {type(item) for row, item in enumerate(plain) if row not in absent}
        try:
            _fill(out.columns.add(nulls=nulls), kinds, plain, absent)
        except (TypeError, ValueError) as error:
            wrong.append(Violation(f"rows, column {place}", str(error)))
    if wrong:
        raise refusal(wrong, request_id)
    return v1.Rows(columns=out)


def _fill(column: v1.Column, kinds: set[type], items: list[Any], absent: set[int]) -> None:
    if kinds <= {str}:
        column.strings.values.extend("" if row in absent else item for row, item in enumerate(items))
    elif kinds == {bool}:
        column.booleans.values.extend(row not in absent and item for row, item in enumerate(items))
    elif kinds == {int}:
        column.integers.values.extend(0 if row in absent else item for row, item in enumerate(items))
    elif kinds <= {int, float}:
        if any(isinstance(item, int) and not -_EXACT <= item <= _EXACT for item in items):
            raise ValueError("an integer beyond 2^53 among floats would be rounded")
        column.doubles.values.extend(0.0 if row in absent else float(item) for row, item in enumerate(items))
    else:
        names = ", ".join(sorted(kind.__name__ for kind in kinds))
        raise TypeError(f"expected numbers, booleans or strings, all of one type; got {names}")


def _put(message: v1.Value, item: Native, field: str, wrong: list[Violation]) -> None:
    try:
        message.CopyFrom(value_of(item))
    except (TypeError, ValueError) as error:
        wrong.append(Violation(field, str(error)))


def _kind(item: object) -> str:
    return f"{type(item).__name__} {str(item)[:40]!r}" if isinstance(item, str | int | float) else type(item).__name__
