"""Rows of a request and of its answer as exact JSON.

    Matrix | Columns         ->  [[feature, …], …]          features in index order
    predictions | columns    ->  [{"output": value, …}, …]  one object for each row

What a batch is nearly always made of, one-row matrices answered by one number, is written for all its events at once.

Floats are written with the shortest digits that read back as the same bits. JSON knows no NaN and no infinity, so those
are null there, and `lossy` says so, as of all else that can't be told from the text and its form.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Self

import numpy as np
import orjson

from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

_LETTERS = {"doubles": "d", "integers": "i", "booleans": "b", "strings": "s"}
_NOTHING = {"doubles": "0.0", "integers": "0", "booleans": "False", "strings": ""}
"""What stands at the place of a null."""


class Written(NamedTuple):
    """Rows as JSON text, what they were made of, how many there are, and whether JSON could hold them."""

    text: str | None
    form: str | None
    rows: int
    lossy: bool


class WrittenRows(NamedTuple):
    """The same for many events, field by field."""

    texts: Sequence[str | None]
    forms: Sequence[str | None]
    rows: Sequence[int]
    lossy: Sequence[bool]

    @classmethod
    def of(cls, each: Iterable[Written]) -> Self:
        return cls(*zip(*each, strict=True))


NOTHING = Written(None, None, 0, False)
UNREADABLE = Written(None, None, 0, True)


@lru_cache(maxsize=256)
def _doubles(size: int) -> Callable[[bytes], tuple[float, ...]]:
    """Unpacks `size` bytes of little-endian float64; raises struct.error where that is no whole number of them."""
    if size % 8:
        raise struct.error(f"{size} bytes are not a whole number of float64")
    return struct.Struct(f"<{size // 8}d").unpack


def write_all_inputs(entries: Sequence[wire.Entry]) -> WrittenRows:
    """`write_inputs` of each, in order; at least one."""
    matrices = [entry.matrix for entry in entries]
    raws = [matrix.float64 for matrix in matrices]
    size, count = len(raws[0]), len(raws)
    if not size or size % 8 or len(set(map(len, raws))) > 1 or {matrix.rows for matrix in matrices} != {1}:
        return WrittenRows.of(map(write_inputs, entries))
    values = np.frombuffer(b"".join(raws), dtype="<f8").reshape(count, 1, -1)
    text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY).decode()
    # Numbers alone, so that what separates two rows of it is nothing else.
    texts = [f"[[{row}]]" for row in text[3:-3].split("]],[[")]
    lossy = ["null" in row for row in texts] if "null" in text else [False] * count
    return WrittenRows(texts, ["matrix"] * count, [1] * count, lossy)


def write_inputs(entry: wire.Entry) -> Written:
    """The rows of an admitted request; UNREADABLE where its parts do not fit together."""
    raw = entry.matrix.float64
    try:
        if raw:
            return _matrix(entry.matrix.rows, raw)
        form = entry.WhichOneof("rows")
        if form is None:
            return NOTHING
        if form == "matrix":
            return UNREADABLE
        columns = [_column(column, entry.columns.rows) for column in entry.columns.columns]
    except (ValueError, IndexError, struct.error):
        return UNREADABLE
    letters = "columns:" + "".join(letter for letter, _, _ in columns)
    listed = [values for _, values, _ in columns]
    text = orjson.dumps(list(zip(*listed, strict=True))).decode()
    lossy = any(lossy for _, _, lossy in columns) or not columns
    return Written(text, letters, entry.columns.rows, lossy)


def _matrix(rows: int, raw: bytes) -> Written:
    values = _doubles(len(raw))(raw)
    if rows == 1:
        text = orjson.dumps((values,)).decode()
    else:
        width, rest = divmod(len(values), rows) if rows else (0, 1)
        if rest:
            return UNREADABLE
        text = orjson.dumps([values[at : at + width] for at in range(0, len(values), width)]).decode()
    return Written(text, "matrix", rows, "null" in text)


def _column(column: v1.Column, rows: int) -> tuple[str, list[Any], bool]:
    """Letter, values with None where null, and whether a float has no JSON. Raises ValueError."""
    kind = column.WhichOneof("kind")
    if kind is None:
        raise ValueError("a column without values")
    values: list[Any] = list(getattr(column, kind).values)
    if len(values) != rows:
        raise ValueError(f"{len(values)} values for {rows} rows")
    lossy = kind == "doubles" and b"null" in orjson.dumps(values)
    before = -1
    for row in column.nulls:
        # A null is read back with nothing at its place, and each once, in order.
        lossy = lossy or row <= before or str(values[row]) != _NOTHING[kind]
        before = row
        values[row] = None
    return _LETTERS[kind], values, lossy


def write_all_outputs(responses: Sequence[v1.PredictResponse]) -> WrittenRows:
    """`write_outputs` of each, in order; at least one."""
    return _single_numbers(responses) or WrittenRows.of(map(write_outputs, responses))


def _single_numbers(responses: Sequence[v1.PredictResponse]) -> WrittenRows | None:
    """Answers of one row with one number each, all of the same name; None where they are anything else."""
    answers = [response.predictions for response in responses]
    if set(map(len, answers)) != {1}:
        return None
    outputs = [answer[0].outputs for answer in answers]
    if set(map(len, outputs)) != {1}:
        return None
    name = next(iter(outputs[0]))
    values = [named.get(name) for named in outputs]
    if None in values:
        return None
    numbers = [value.number for value in values if value is not None]
    # 0 is also what an integer or a text answers here.
    if 0 in numbers and {value.WhichOneof("kind") for value in values if value is not None} != {"number"}:
        return None
    start, text = f"[{{{orjson.dumps(name).decode()}:", orjson.dumps(numbers).decode()
    texts = [f"{start}{number}}}]" for number in text[1:-1].split(",")]
    lossy = ["null" in row for row in texts] if "null" in text else [False] * len(texts)
    return WrittenRows(texts, ["rows"] * len(texts), [1] * len(texts), lossy)


def write_outputs(response: v1.PredictResponse) -> Written:
    """The answer; NOTHING where there is none, UNREADABLE where its parts do not fit together."""
    predictions = response.predictions
    if predictions:
        listed = [_prediction(prediction) for prediction in predictions]
        text = orjson.dumps(listed).decode()
        return Written(text, "rows", len(listed), "null" in text)
    if not response.columns:
        return NOTHING
    rows = max(
        (len(getattr(c.column, kind).values) for c in response.columns if (kind := c.column.WhichOneof("kind"))),
        default=0,
    )
    try:
        columns = [_column(output.column, rows) for output in response.columns]
    except (ValueError, IndexError):
        return UNREADABLE
    names = [output.name for output in response.columns]
    values = zip(*(values for _, values, _ in columns), strict=True)
    text = orjson.dumps([dict(zip(names, row, strict=True)) for row in values]).decode()
    form = "columns:" + "".join(letter for letter, _, _ in columns)
    lossy = any(lossy for _, _, lossy in columns) or len(set(names)) < len(names) or not rows
    return Written(text, form, rows, lossy)


def _prediction(prediction: v1.Prediction) -> dict[str, Any]:
    outputs = prediction.outputs
    if len(outputs) == 1:
        for name, value in outputs.items():
            kind = value.WhichOneof("kind")
            return {name: getattr(value, kind) if kind else None}
    return {name: _value(outputs[name]) for name in sorted(outputs)}


def _value(value: v1.Value) -> Any:
    kind = value.WhichOneof("kind")
    return getattr(value, kind) if kind else None
