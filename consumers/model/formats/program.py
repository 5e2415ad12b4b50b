"""Programs: models that are no Python estimators but a computation with inputs and outputs, such as an ONNX graph.

rows -> one array per input, in the input's own type -> the library -> one array per output
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from contract.signature import Output, ValueType

_KINDS: Mapping[str, ValueType] = {"f": "float", "i": "int", "u": "int", "b": "bool", "O": "string"}
_POSITION = re.compile(r"output_([0-9]{1,4})")


@dataclass(frozen=True, slots=True)
class Input:
    """One input of a program, and how many of the features' columns it takes, in their order."""

    name: str
    dtype: np.dtype[Any]
    """What values are converted to; object for strings."""
    width: int | None
    """None: all that are left."""
    flat: bool = False
    """Of shape (rows,) instead of (rows, width)."""
    keeps_ints: bool = False
    """Whether whole numbers and booleans of a DataFrame stay what they are."""

    @property
    def kind(self) -> ValueType:
        return _KINDS[self.dtype.kind]


class Program(ABC):
    """A loaded program. It says of itself what a fitted estimator would: how many features, and their names."""

    library: ClassVar[str]
    """Import name of what runs it."""

    def __init__(self, inputs: Sequence[Input], outputs: Sequence[str]) -> None:
        self.inputs = tuple(inputs)
        self.output_names = tuple(outputs)
        """Empty where only running it tells them."""
        self.classes_: list[Any] | None = None
        """Labels of its probabilities, once it ran."""

    @property
    def calls(self) -> tuple[str, ...]:
        """The calls that an output of a signature may ask for."""
        return ("predict",)

    @property
    def n_features_in_(self) -> int | None:
        """None where it does not say."""
        widths = [each.width for each in self.inputs]
        return None if None in widths else sum(width for width in widths if width is not None)

    @property
    def feature_names_in_(self) -> tuple[str, ...] | None:
        """The inputs' names where there is one per feature; None where one input takes several."""
        by_column = len(self.inputs) > 1 and all(each.width == 1 for each in self.inputs)
        return tuple(each.name for each in self.inputs) if by_column else None

    @property
    def feature_types(self) -> tuple[ValueType, ...]:
        """The type of each feature, in order; empty where it does not say how many there are."""
        if self.n_features_in_ is None:
            return ()
        return tuple(each.kind for each in self.inputs for _ in range(each.width or 0))

    def run(self, rows: Any, sources: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """What the named sources answer; raises whatever its library does, and ValueError for values that don't fit."""
        return self._run(feed(self.inputs, rows), tuple(sources))

    def transform(self, rows: Any) -> npt.NDArray[Any]:
        """Its first output, where it stands before another model."""
        source = self.output_names[0] if self.output_names else "output_0"
        return self.run(rows, (source,))[source]

    @abstractmethod
    def source_of(self, output: Output) -> str:
        """Where an output of a signature comes from, as `run` takes it; raises UnloadableModel."""

    @abstractmethod
    def _run(self, fed: Mapping[str, npt.NDArray[Any]], sources: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
        """What the named sources answer to one array per input."""


def position(wanted: str, names: Sequence[str]) -> int:
    """Which output is meant: the one of that name, `output_1` by its place from 0, and the first otherwise."""
    if wanted in names:
        return names.index(wanted)
    by_place = _POSITION.fullmatch(wanted)
    return int(by_place[1]) if by_place and int(by_place[1]) < len(names) else 0


def feed(inputs: Sequence[Input], rows: Any) -> dict[str, npt.NDArray[Any]]:
    """Rows (a matrix, sparse or not, or a DataFrame) as one array per input; raises ValueError where they don't fit."""
    if hasattr(rows, "toarray"):  # a sparse matrix, as a one-hot encoding answers
        rows = rows.toarray()
    if not hasattr(rows, "iloc"):
        rows = np.asarray(rows)
    width, start = rows.shape[1] if rows.ndim == 2 else 0, 0
    fed: dict[str, npt.NDArray[Any]] = {}
    for each in inputs:
        end = width if each.width is None else start + each.width
        fed[each.name] = _cast(
            rows.iloc[:, start:end].to_numpy() if hasattr(rows, "iloc") else rows[:, start:end], each
        )
        start = end
    if start != width:
        raise ValueError(f"got {width} columns; its inputs take {start}")
    return fed


def _cast(block: npt.NDArray[Any], given: Input) -> npt.NDArray[Any]:
    """A new contiguous array of the input's type. Fractions are rounded to it; nothing else may change."""
    dtype = block.dtype if given.keeps_ints and block.dtype.kind in "ib" else given.dtype
    if dtype.kind == "O":
        wrong = next((value for value in block.flat if not isinstance(value, str)), None)
        if wrong is not None or None in block:
            raise ValueError(f"the input {given.name} takes strings, got {wrong!r}")
    with np.errstate(over="raise", invalid="raise"):
        try:
            cast = block.astype(dtype, order="C")
        except FloatingPointError:
            raise ValueError(f"the input {given.name} is {dtype}, which can't hold a value that came") from None
    if dtype.kind in "iub" and not np.array_equal(cast, block):
        raise ValueError(f"the input {given.name} is {dtype}, which can't hold a value that came")
    return cast.reshape(len(cast)) if given.flat else cast
