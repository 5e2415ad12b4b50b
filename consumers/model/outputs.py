"""What a model answers: which column of which call each named output is, and of what type."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from consumers.model.formats import UnloadableModel
from consumers.model.rows import DTYPES
from contract.signature import Golden, Output, Signature, Value, ValueType

OutputValues: TypeAlias = npt.NDArray[np.float64] | npt.NDArray[np.int64] | npt.NDArray[np.bool_] | list[str]


class PredictFailed(Exception):
    """The model raised, or answered something that is not what its signature says; one sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class OutputColumn:
    """One named output of all rows of a call: float64, int64 or bool arrays, or a list of strings."""

    name: str
    kind: ValueType
    values: OutputValues


@dataclass(frozen=True, slots=True)
class OutputPlan:
    """Where one output comes from."""

    name: str
    source: str
    """A call of an estimator, or an output of a program."""
    column: int | None
    kind: ValueType

    def of(self, answers: Mapping[str, npt.NDArray[Any]]) -> OutputColumn:
        """This output, from what each source answered; raises PredictFailed where it is not of its type."""
        return OutputColumn(self.name, self.kind, _typed(self, _pick(answers[self.source], self.column)))


def plan_outputs(
    signature: Signature, sources: Sequence[str], answers: Mapping[str, npt.NDArray[Any]], classes: Any
) -> tuple[OutputPlan, ...]:
    """Where each output of the signature comes from, by what its source answered for one row.

    `classes` are the labels of a classifier, or None. Raises UnloadableModel.
    """
    labels: list[Any] = [] if classes is None else np.asarray(classes).tolist()
    plans: dict[str, OutputPlan] = {}
    for output, source in zip(signature.outputs, sources, strict=True):
        answer = answers[source]
        for name, column in _columns(output, answer.shape[1] if answer.ndim == 2 else 0, labels):
            values = _pick(answer, column)
            kind = output.type or _kind(values)
            if kind is None:
                raise UnloadableModel(f"the output {name} is {values[0]!r}; expected a number, a boolean or a string")
            if name in plans:
                raise UnloadableModel(f"two outputs are called {name}")
            plans[name] = OutputPlan(name, source, column, kind)
            try:
                plans[name].of(answers)
            except PredictFailed as error:
                raise UnloadableModel(str(error)) from error
    return tuple(plans.values())


def _columns(output: Output, width: int, labels: list[Any]) -> list[tuple[str, int | None]]:
    """Name and column of each output that one output of the signature stands for."""
    if output.class_label is not None:
        found = next((place for place, label in enumerate(labels) if _same(label, output.class_label)), None)
        if not labels:
            raise UnloadableModel(f"the output {output.name} names a class, and the model has no classes_: use column")
        if found is None or found >= max(width, 1):
            raise UnloadableModel(
                f"the output {output.name} is for the class {output.class_label!r}; the model has "
                + ", ".join(map(repr, labels[:20]))
            )
        return [(output.name, found)]
    if output.column is not None:
        if output.column >= max(width, 1):
            raise UnloadableModel(
                f"the output {output.name} is column {output.column}; {output.call} answers {max(width, 1)}, from 0"
            )
        return [(output.name, output.column)]
    if width <= 1:
        return [(output.name, 0)]
    by_label = output.call != "predict" and len(labels) == width
    return [(f"{output.name}.{_label_text(labels[place]) if by_label else place}", place) for place in range(width)]


def _same(label: object, wanted: Value) -> bool:
    """1 and 1.0 are the same label; 1, true and "1" are three."""
    kinds = {isinstance(label, bool), isinstance(wanted, bool)}
    return len(kinds) == 1 and label == wanted


def _label_text(label: object) -> str:
    return str(label).lower() if isinstance(label, bool) else str(label)


def _pick(answer: npt.NDArray[Any], column: int | None) -> npt.NDArray[Any]:
    return answer if answer.ndim == 1 else answer[:, column or 0]


def _kind(answer: npt.NDArray[Any]) -> ValueType | None:
    """The type of an answer, from its dtype, or of its first value where that says nothing."""
    match answer.dtype.kind:
        case "f":
            return "float"
        case "i" | "u":
            return "int"
        case "b":
            return "bool"
        case "U":
            return "string"
        case "O":
            first = np.asarray(answer[0])
            return _kind(first.reshape(1)) if first.ndim == 0 and first.dtype.kind != "O" else None
        case _:
            return None


def _typed(plan: OutputPlan, answer: npt.NDArray[Any]) -> OutputValues:
    """One output's values as its type; raises PredictFailed where they are not of it."""
    try:
        if plan.kind == "string":
            if answer.dtype.kind == "U" or all(isinstance(value, str) for value in answer):
                return cast("list[str]", answer.tolist())
        elif plan.kind == "float":
            if answer.dtype.kind in "fiub" or (
                answer.dtype.kind == "O" and not any(isinstance(v, str) for v in answer)
            ):
                return answer.astype(np.float64)
        else:
            dtype = DTYPES[plan.kind]
            with np.errstate(invalid="ignore"):  # what does not fit is told by the comparison
                exact = answer.astype(dtype)
            if answer.dtype == dtype or (answer.dtype.kind != "U" and bool(np.all(exact == answer))):
                return cast("OutputValues", exact)
    except (TypeError, ValueError, OverflowError):
        pass
    first = next(iter(answer.tolist()), None)
    raise PredictFailed(f"the output {plan.name} is of type {plan.kind}; the model answered values such as {first!r}")


def check_golden(number: int, golden: Golden, columns: Mapping[str, OutputColumn]) -> None:
    """Compare the answers for one golden example with what it expects; raises UnloadableModel."""
    for name, expected in golden.outputs:
        if name not in columns:
            raise UnloadableModel(f"golden[{number}] expects the output {name}; there are {', '.join(columns)}")
        values = columns[name].values
        got: Value = values[0] if isinstance(values, list) else values[0].item()
        if not _agree(expected, got, golden.tolerance):
            within = f" within {golden.tolerance}" if golden.tolerance else " to the last bit"
            raise UnloadableModel(f"golden[{number}].outputs.{name}: expected {expected!r}{within}, got {got!r}")


def _agree(expected: Value, got: Value, tolerance: float) -> bool:
    if isinstance(expected, bool | str) or isinstance(got, bool | str) or got is None:
        return type(expected) is type(got) and expected == got
    if expected is None or isnan(got):
        return expected is None and isnan(got)
    if tolerance:
        return expected == got or abs(expected - got) <= tolerance
    return expected == got if isinstance(got, int) else struct.pack("<d", expected) == struct.pack("<d", got)
