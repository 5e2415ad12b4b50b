"""Events that are laid out alike, as columns: their bytes beside one another, and each value's bytes of all at once.

    pieces  ->  for each layout a block of uint8, a row for each event  ->  its columns of bytes
            ->  of all layouts that are kin: numbers, texts, JSON

What the template of a layout can't tell is looked at here: that numbers are canonical, that an answer has the id and
the time of its request, that it was predicted when the header says, and that JSON has all its floats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    """Events of layouts that are kin, one layout after the other."""

    def __init__(self, alike: Sequence[tuple[Layout, Sequence[bytes]]]) -> None:
        self._blocks = [
            (layout, np.frombuffer(b"".join(pieces), dtype=np.uint8).reshape(len(pieces), layout.size))
            for layout, pieces in alike
        ]
        self._layout = alike[0][0]
        """Stands for all of them in what they have in common."""
        self._numbers: NDArray[np.int64] = _joined([_numbers(layout, block) for layout, block in self._blocks])
        self._matrix: NDArray[np.float64] = _joined(
            [_doubles(_bytes(block, layout.leaves[MATRIX])) for layout, block in self._blocks]
        )

    def sound(self, predicted_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of these events columns say everything of; `predicted_us` is what the header of each says."""
        good: NDArray[np.bool_] = _joined([_is_sound(layout, block) for layout, block in self._blocks])
        good &= self._is_at(ASKED_S, ASKED_NANOS, self._varints(ASKED))
        good &= self._is_at(PREDICTED_S, PREDICTED_NANOS, predicted_us)
        good &= np.logical_and.reduce(np.isfinite(self._matrix), axis=1)
        for which, cell in enumerate(self._layout.answer.cells):
            if cell.path == NUMBER:
                good &= np.isfinite(_doubles(self._cell(which))[:, 0])
        return good

    def columns(self) -> Columns:
        """The `parsed_columns` of these events, all of them sound, but for `origins` and when it was predicted."""
        columns: Columns = dict(self._layout.constants)
        for path in self._layout.leaves:
            if path in TEXTS:
                columns[TEXTS[path]] = self._texts(path)
            elif path in NUMBERS:
                columns[NUMBERS[path]] = self._varints(path)
            elif path in BLOBS:
                columns[BLOBS[path]] = texts(self._values(path))
        columns["inputs"] = texts(self._inputs())
        columns["outputs"] = texts(self._outputs())
        return columns

    def _varints(self, path: Path) -> NDArray[np.int64]:
        return self._number(self._layout.leaves[path])

    def _number(self, leaf: Leaf) -> NDArray[np.int64]:
        found: NDArray[np.int64] = self._numbers[:, self._layout.digits.order[leaf]]
        return found

    def _cell(self, which: int) -> Block:
        """The bytes of one value of the answers, which has as many in all of them."""
        return _joined([_bytes(block, layout.answer.cells[which]) for layout, block in self._blocks])

    def _is_at(self, seconds: Path, nanos: Path, expected_us: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a timestamp says this time and nothing more."""
        rest: NDArray[np.int64] = expected_us - self._varints(seconds) * _SECOND_US
        found = self._varints(nanos) if nanos in self._layout.leaves else np.zeros_like(rest)
        good: NDArray[np.bool_] = (rest * 1000 == found) & (rest >= 0) & (rest < _SECOND_US)
        return good

    def _texts(self, path: Path) -> Column | str:
        """One text where all have the same."""
        if path != REQUEST_ID:
            firsts = {_bytes(block, layout.leaves[path])[0].tobytes() for layout, block in self._blocks}
            if len(firsts) == 1 and all(_is_same(_bytes(block, layout.leaves[path])) for layout, block in self._blocks):
                return str(firsts.pop(), "ascii")
        return texts(self._values(path, lambda found: str(found, "ascii")))

    def _values(self, path: Path, read: Callable[[bytes], Any] = bytes) -> list[Any]:
        """`read` of each value's bytes."""
        values = []
        for layout, block in self._blocks:
            leaf = layout.leaves[path]
            joined, size = read(_bytes(block, leaf).tobytes()), leaf.size
            values += [joined[at : at + size] for at in range(0, len(joined), size)]
        return values

    def _inputs(self) -> list[str]:
        rows = self._layout.constants["rows"]
        values = self._matrix.reshape(len(self._matrix), int(rows or 0), -1)
        text = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY).decode()
        # Numbers alone, so that what separates two events is nothing else.
        return [f"[[{row}]]" for row in text[3:-3].split("]],[[")]

    def _outputs(self) -> list[str]:
        template, cells = self._layout.answer
        if not cells:
            return [template % ()] * len(self._matrix)
        written = [self._written(which, cell) for which, cell in enumerate(cells)]
        if len(written) == 1:
            before, after = (template % "\0").split("\0")
            return [f"{before}{value}{after}" for value in written[0]]
        return [template % values for values in zip(*written, strict=True)]

    def _written(self, which: int, cell: Leaf) -> Sequence[str]:
        """One output of each event, as JSON."""
        if cell.path == INTEGER:
            zigzag = self._number(cell)
            return list(map(str, ((zigzag >> 1) ^ -(zigzag & 1)).tolist()))
        found = self._cell(which)
        if cell.path == BOOLEAN:
            return [_FLAGS[value] for value in found[:, 0].tolist()]
        return orjson.dumps(_doubles(found)[:, 0], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].decode().split(",")


def _joined(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _numbers(layout: Layout, block: Block) -> NDArray[np.int64]:
    digits = (block[:, layout.digits.places] & 127) << layout.digits.shifts
    found: NDArray[np.int64] = np.add.reduceat(digits, layout.digits.begins, axis=1)
    return found


def _is_sound(layout: Layout, block: Block) -> NDArray[np.bool_]:
    """Whether the answer has the request's id, and all numbers are canonical."""
    same_id = np.equal(_bytes(block, layout.leaves[REQUEST_ID]), _bytes(block, layout.leaves[ANSWERED_ID]))
    good: NDArray[np.bool_] = np.logical_and.reduce(same_id, axis=1)
    good &= np.logical_and.reduce(block[:, layout.ends], axis=1)
    return good


def _is_same(found: Block) -> bool:
    return bool((found == found[0]).all())


def _bytes(block: Block, leaf: Leaf) -> Block:
    return block[:, leaf.start : leaf.stop]


def _doubles(found: Block) -> NDArray[np.float64]:
    return np.ascontiguousarray(found).view("<f8")
