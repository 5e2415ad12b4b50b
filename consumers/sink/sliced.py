"""Events that are laid out alike, as columns: their bytes beside one another, and each value's bytes of all at once.

    pieces  ->  a block of uint8, a row for each event  ->  its columns of bytes  ->  numbers, texts, JSON

What the template of a layout can't tell is looked at here: that numbers are canonical, that an answer has the id and
the time of its request, that it was predicted when the header says, and that JSON has all its floats.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from consumers.sink.layout import (
    ANSWERED_ID,
    ASKED,
    ASKED_NANOS,
    ASKED_S,
    BLOBS,
    BOOLEAN,
    INTEGER,
    MATRIX,
    NUMBER,
    NUMBERS,
    PREDICTED_NANOS,
    PREDICTED_S,
    REQUEST_ID,
    TEXTS,
    Layout,
    Leaf,
    Path,
)
from consumers.sink.parsed import Column, Columns, texts

Block = NDArray[np.uint8]

_SECOND_US = 1_000_000
_FLAGS = ("false", "true")


class Sliced:
    """Events of one layout, beside one another."""

    def __init__(self, layout: Layout, pieces: Sequence[bytes]) -> None:
        block = np.frombuffer(b"".join(pieces), dtype=np.uint8).reshape(len(pieces), layout.size)
        digits = (block[:, layout.digits.places] & 127) << layout.digits.shifts
        self._layout = layout
        self._block = block
        self._numbers: NDArray[np.int64] = np.add.reduceat(digits, layout.digits.begins, axis=1)

    def sound(self, predicted_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these events columns say everything of; `predicted_us` is what the header of each says."""
        layout, block, leaves = self._layout, self._block, self._layout.leaves
        same_id = np.equal(_bytes(block, leaves[REQUEST_ID]), _bytes(block, leaves[ANSWERED_ID]))
        good: NDArray[np.bool_] = np.logical_and.reduce(same_id, axis=1)
        good &= np.logical_and.reduce(block[:, layout.ends], axis=1)
        good &= self._is_at(ASKED_S, ASKED_NANOS, self._varints(leaves[ASKED]))
        good &= self._is_at(PREDICTED_S, PREDICTED_NANOS, predicted_us)
        good &= np.logical_and.reduce(np.isfinite(_doubles(block, leaves[MATRIX])), axis=1)
        for cell in layout.answer.cells:
            if cell.path == NUMBER:
                good &= np.isfinite(_doubles(block, cell)[:, 0])
        return good

    def columns(self) -> Columns:
        """The `parsed_columns` of these events, all of them sound, but for `origins` and when it was predicted."""
        layout, block = self._layout, self._block
        columns: Columns = dict(layout.constants)
        for path, leaf in layout.leaves.items():
            if path in TEXTS:
                columns[TEXTS[path]] = _texts(block, leaf)
            elif path in NUMBERS:
                columns[NUMBERS[path]] = self._varints(leaf)
            elif path in BLOBS:
                columns[BLOBS[path]] = texts(_cut(_bytes(block, leaf).tobytes(), leaf.size))
        columns["inputs"] = texts(self._inputs())
        columns["outputs"] = texts(self._outputs())
        return columns

    def _varints(self, leaf: Leaf) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self._numbers[:, self._layout.digits.order[leaf]]
        return found

    def _is_at(self, seconds: Path, nanos: Path, expected_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a timestamp says this time and nothing more."""
        leaves = self._layout.leaves
        rest: NDArray[np.int64] = expected_us - self._varints(leaves[seconds]) * _SECOND_US
        found = self._varints(leaves[nanos]) if nanos in leaves else np.zeros_like(rest)
        good: NDArray[np.bool_] = (rest * 1000 == found) & (rest >= 0) & (rest < _SECOND_US)
        return good

    def _inputs(self) -> list[str]:
        rows = self._layout.constants["rows"]
        values = _doubles(self._block, self._layout.leaves[MATRIX]).reshape(len(self._block), int(rows or 0), -1)
        text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY).decode()
        # Numbers alone, so that what separates two events is nothing else.
        return [f"[[{row}]]" for row in text[3:-3].split("]],[[")]

    def _outputs(self) -> list[str]:
        template, cells = self._layout.answer
        if not cells:
            return [template % ()] * len(self._block)
        written = [self._written(cell) for cell in cells]
        if len(written) == 1:
            before, after = (template % "\0").split("\0")
            return [f"{before}{value}{after}" for value in written[0]]
        return [template % values for values in zip(*written, strict=True)]

    def _written(self, cell: Leaf) -> Sequence[str]:
        """One output of each event, as JSON."""
        if cell.path == BOOLEAN:
            return [_FLAGS[value] for value in self._block[:, cell.start].tolist()]
        if cell.path == INTEGER:
            zigzag = self._varints(cell)
            return list(map(str, ((zigzag >> 1) ^ -(zigzag & 1)).tolist()))
        values = _doubles(self._block, cell)[:, 0]
        return orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode().split(",")


def _bytes(block: Block, leaf: Leaf) -> Block:
    return block[:, leaf.start : leaf.stop]


def _doubles(block: Block, leaf: Leaf) -> NDArray[np.float64]:
    return np.ascontiguousarray(_bytes(block, leaf)).view("<f8")


def _texts(block: Block, leaf: Leaf) -> Column | str:
    """One text where all have the same."""
    found = _bytes(block, leaf)
    if leaf.path != REQUEST_ID and (found == found[0]).all():
        return str(found[0].tobytes(), "ascii")
    return texts(_cut(found.tobytes().decode("ascii"), leaf.size))


def _cut(joined: Any, size: int) -> list[Any]:
    return [joined[at : at + size] for at in range(0, len(joined), size)]
