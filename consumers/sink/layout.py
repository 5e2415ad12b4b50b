"""Which events are laid out alike: the same fields of the same lengths, so that each value has the same place in all.

    an event, parsed once and found ordinary  ->  Layout: its bytes, those of its values blanked out
    any other event  &  mask  ==  template    ->  the values of its columns are those bytes of it (sliced.py)

Nearly all that a model records has one of a few layouts. Tags, lengths, and all that hardly ever differs (model,
version, digest, names of outputs, status, lane) are in the template; of a varint it has the bits that tell how long it
is, and of a text those that tell that it is ASCII. So who matches is a valid message of the same meaning.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import orjson
from numpy.typing import NDArray

from protos import millstream_wire_v1_pb2 as wire

Path = tuple[int, ...]
"""Numbers of the fields from the event down to a value."""

_VARINT, _FIXED64, _BYTES = 0, 1, 2
_INSIDE = frozenset({(1,), (1, 5), (2,), (2, 4), (2, 4, 1), (2, 4, 1, 2), (2, 5), (2, 6)})
"""Messages in which there are values."""

REQUEST_ID, ANSWERED_ID, MATRIX = (1, 1), (2, 1), (1, 5, 2)
ASKED = (1, 9)
ASKED_S, ASKED_NANOS, PREDICTED_S, PREDICTED_NANOS = (2, 5, 1), (2, 5, 2), (2, 6, 1), (2, 6, 2)
_STAMPS = (ASKED_S, ASKED_NANOS, PREDICTED_S, PREDICTED_NANOS)
_NAME, NUMBER, INTEGER, BOOLEAN, _TEXT = (
    (2, 4, 1, 1),
    (2, 4, 1, 2, 1),
    (2, 4, 1, 2, 2),
    (2, 4, 1, 2, 3),
    (2, 4, 1, 2, 4),
)

TEXTS: Mapping[Path, str] = {
    REQUEST_ID: "request_id",
    (1, 7): "entity_id",
    (1, 11): "gateway",
    (1, 18): "caller",
    (1, 19): "trace",
    (5,): "entry_id",
}
BLOBS: Mapping[Path, str] = {(1, 16): "body_sha256"}
NUMBERS: Mapping[Path, str] = {
    (1, 8): "deadline_timestamp",
    ASKED: "user_request_timestamp",
    (1, 10): "admitted_timestamp",
    (6,): "delivered_timestamp",
    (7,): "deliveries",
    (8,): "batch_position",
}

_LONGEST_SECONDS, _LONGEST_COUNT, _LONGEST_NUMBER = 6, 4, 8
"""Bytes of varints that no column's bounds are reached with."""
_LARGEST = 16_384
"""Bytes of an event; what is larger costs most elsewhere."""


class Leaf(NamedTuple):
    """A value of an event, and where its bytes are."""

    path: Path
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Answer(NamedTuple):
    """How the values of an answer become its text."""

    template: str
    """With a place for each of `cells`."""
    cells: tuple[Leaf, ...]


class Digits(NamedTuple):
    """Where the bytes of all varints are, what each is shifted by, and with which of them each number begins."""

    places: NDArray[np.intp]
    shifts: NDArray[np.int64]
    begins: NDArray[np.intp]
    order: Mapping[Leaf, int]

    @classmethod
    def of(cls, numbers: Sequence[Leaf]) -> Digits:
        places = np.concatenate([np.arange(leaf.start, leaf.stop) for leaf in numbers])
        shifts = np.concatenate([np.arange(0, 7 * leaf.size, 7) for leaf in numbers])
        begins = np.cumsum([0, *(leaf.size for leaf in numbers[:-1])])
        return cls(places, shifts, begins, {leaf: at for at, leaf in enumerate(numbers)})


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """Where the values of an event are, and what all events that are laid out like it have in common."""

    size: int
    mask: int
    template: int
    """Those bits of the event's bytes that `mask` has: both are numbers, of the bytes from the first to the last."""
    example: wire.Event
    constants: Mapping[str, str | bytes | int | None]
    """Values of columns that are the same in all of them."""
    leaves: Mapping[Path, Leaf]
    """But those of the answer."""
    answer: Answer
    digits: Digits
    ends: tuple[int, ...]
    """The last byte of each number that is not canonical where that is zero."""
    kin: Hashable
    """Layouts in which it is equal have the same values in all, and only lengths of numbers and of texts differ."""

    @classmethod
    def of(cls, piece: bytes, event: wire.Event, said: Mapping[str, str | bytes | int | None]) -> Layout | None:
        """Of an event that its columns say everything of, in canonical bytes; None where it has none.

        `said` has the values of its columns.
        """
        if len(piece) > _LARGEST or not _is_ordinary(event, said):
            return None
        leaves: dict[Path, Leaf] = {}
        mask, ends = bytearray(b"\xff" * len(piece)), []
        rows: list[list[tuple[str, Leaf]]] = []
        name = ""
        for leaf in _leaves(piece, 0, len(piece), ()):
            path, start, stop = leaf
            if path == (2, 4):
                rows.append([])
            elif path == _NAME:
                name = piece[start:stop].decode()
            elif path[:4] == _VALUES:
                rows[-1].append((name, leaf))
            elif path in _VARYING:
                leaves[path] = leaf
                if path in TEXTS and not piece[start:stop].isascii():
                    return None
            bits = _MASKS.get(path)
            if bits is not None:
                mask[start:stop] = bytes((bits,)) * leaf.size
            if (path in NUMBERS or path in _STAMPS) or (path == INTEGER and leaf.size > 1):
                ends.append(stop - 1)
        integers = [cell for row in rows for _, cell in row if cell.path == INTEGER]
        if not _are_within_bounds(leaves) or any(cell.size > _LONGEST_NUMBER for cell in integers):
            return None
        whole, compared = int.from_bytes(piece, "big"), int.from_bytes(mask, "big")
        varying = {_COLUMNS[path] for path in leaves if path in _COLUMNS} | _DERIVED
        constants = {column: value for column, value in said.items() if column not in varying}
        answer = _answer(piece, rows)
        numbers = [*(leaf for leaf in leaves.values() if leaf.path in NUMBERS or leaf.path in _STAMPS), *integers]
        digits = Digits.of(numbers)
        cells = tuple(cell.path for cell in answer.cells)
        kin = (tuple(sorted(constants.items())), tuple(leaves), leaves[MATRIX].size, answer.template, cells)
        return cls(len(piece), compared, whole & compared, event, constants, leaves, answer, digits, tuple(ends), kin)


_VALUES = (2, 4, 1, 2)
_COLUMNS: Mapping[Path, str] = {**TEXTS, **BLOBS, **NUMBERS}
_VARYING = frozenset({*_COLUMNS, *_STAMPS, ANSWERED_ID, MATRIX})
_DERIVED = frozenset({"inputs", "outputs", "predicted_at_timestamp", "origins"})
_MASKS: Mapping[Path, int] = {
    **dict.fromkeys((*TEXTS, *NUMBERS, *_STAMPS, ANSWERED_ID, INTEGER), 0x80),
    **dict.fromkeys((*BLOBS, MATRIX, NUMBER), 0),
    BOOLEAN: 0xFE,
}


def _is_ordinary(event: wire.Event, said: Mapping[str, str | bytes | int | None]) -> bool:
    """Whether a model answered it in numbers, and nothing of that is elsewhere than where it nearly always is."""
    entry, response = event.entry, event.response
    return (
        said["status"] in ("OK", "SHADOW")
        and said["inputs_form"] == "matrix"
        and said["outputs_form"] == "rows"
        and bool(entry.version and entry.digest and entry.request_id)
        and not response.HasField("error")
        and not event.refused_body
    )


def _are_within_bounds(leaves: Mapping[Path, Leaf]) -> bool:
    if not leaves.keys() >= {REQUEST_ID, ANSWERED_ID, MATRIX, ASKED, ASKED_S, PREDICTED_S}:
        return False
    for path, leaf in leaves.items():
        if path in _STAMPS:
            longest = _LONGEST_SECONDS
        elif path in ((7,), (8,)):
            longest = _LONGEST_COUNT
        elif path in NUMBERS:
            longest = _LONGEST_NUMBER
        else:
            continue
        if leaf.size > longest:
            return False
    return True


def _answer(piece: bytes, rows: list[list[tuple[str, Leaf]]]) -> Answer:
    """In the order of its text, in which outputs are sorted by name; a text is the same in all answers of a layout."""
    cells, parts = [], []
    for row in rows:
        written = []
        for name, leaf in sorted(row):
            key = orjson.dumps(name).decode().replace("%", "%%")
            if leaf.path == _TEXT:
                value = orjson.dumps(piece[leaf.start : leaf.stop].decode()).decode().replace("%", "%%")
            else:
                value = "%s"
                cells.append(leaf)
            written.append(f"{key}:{value}")
        parts.append(f"{{{','.join(written)}}}")
    return Answer(f"[{','.join(parts)}]", tuple(cells))


def _leaves(raw: bytes, at: int, end: int, path: Path) -> Iterator[Leaf]:
    """The values of a message that is canonical and of known fields alone, in order; of rows that they begin, too."""
    while at < end:
        tag, at = _number(raw, at)
        inner = (*path, tag >> 3)
        if tag & 7 == _BYTES:
            size, at = _number(raw, at)
            if inner in _INSIDE:
                if inner == (2, 4):
                    yield Leaf(inner, at, at)
                yield from _leaves(raw, at, at + size, inner)
            else:
                yield Leaf(inner, at, at + size)
            at += size
        else:
            start = at
            at = at + 8 if tag & 7 == _FIXED64 else _number(raw, at)[1]
            yield Leaf(inner, start, at)


def _number(raw: bytes, at: int) -> tuple[int, int]:
    """A varint, and where what follows it begins."""
    number = shift = 0
    while raw[at] > 127:
        number |= (raw[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return number | raw[at] << shift, at + 1


class Layouts:
    """Those of one model that were seen, by length. Learning one costs as much as parsing some events does."""

    _MOST_BYTES = 4 * 2**20
    _MOST_OF_A_SIZE = 16
    """Each is compared with until one matches."""
    _AT_FIRST = 64
    """How many are learned before it has to have paid."""
    _PAYS = 8
    """Events that were found, for each that is learned."""
    _STRAYS = 64
    """Events that were not, for each that is learned all the same: what a model is asked may change."""

    def __init__(self) -> None:
        self.by_size: dict[int, list[Layout]] = {}
        self._found = 0
        self._strays = 0
        self._learned = 0
        self._bytes = 0

    @property
    def may_learn(self) -> bool:
        """Whether one more is worth it."""
        return self._learned < self._AT_FIRST + self._found // self._PAYS + self._strays // self._STRAYS

    def count(self, found: int, strays: int) -> None:
        """How many events had a layout that was known, and how many had not."""
        self._found += found
        self._strays += strays

    def learn(self, layout: Layout | None) -> None:
        """One more, or that an event had none. All of them go where there are too many: gateways come and go."""
        self._learned += 1
        if layout is None:
            return
        self._bytes += 4 * layout.size
        if self._bytes > self._MOST_BYTES:
            self.by_size = {}
            self._bytes = 4 * layout.size
        alike = self.by_size.setdefault(layout.size, [])
        alike.append(layout)
        if len(alike) > self._MOST_OF_A_SIZE:
            del alike[0]
