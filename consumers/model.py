"""A model in memory, as a worker runs it: rows -> transforms -> the estimator's calls -> named outputs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.formats import UnloadableModel, load_artifact, said
from consumers.model_outputs import OutputColumn, OutputPlan, PredictFailed, check_golden, plan_outputs
from consumers.model_rows import Rows, rows_of, to_frame, to_matrix
from contract.signature import Signature, Value, ValueType
from contract.version import ArtifactsError, Roles

__all__ = ["LoadedModel", "OutputColumn", "PredictFailed", "Rows", "UnloadableModel", "load_model", "rows_of"]


class LoadedModel:
    """One version of a model, ready to predict. Not for several threads at once."""

    def __init__(self, signature: Signature, transforms: Sequence[Any], model: Any, warnings: tuple[str, ...]) -> None:
        self.signature = signature
        self.warnings = warnings
        """What its libraries said while it was loaded, such as a version that differs."""
        library = type(model).__module__.split(".")[0]
        self.engine = f"{library} {getattr(sys.modules.get(library), '__version__', '')}".rstrip()
        """The library that predicts, by its import name, and its version: `sklearn 1.9.1`."""
        self._transforms = tuple(transforms)
        self._model = model
        first = self._transforms[0] if self._transforms else model
        self._knows_names = getattr(first, "feature_names_in_", None) is not None
        _check_features(signature, first)
        example = signature.golden[0].inputs if signature.golden else _sample(signature)
        calls: list[str] = list(dict.fromkeys(output.call for output in signature.outputs))
        answers = self._example_answers(example, calls)
        self._shapes: dict[str, tuple[int, ...]] = {call: answer.shape[1:] for call, answer in answers.items()}
        """The shape of each call's answer, but for the number of rows."""
        self._plans: tuple[OutputPlan, ...] = plan_outputs(signature, model, answers)

    @property
    def outputs(self) -> tuple[tuple[str, ValueType], ...]:
        """Name and type of each output, in the order they are answered."""
        return tuple((plan.name, plan.kind) for plan in self._plans)

    def predict(self, rows: Rows) -> list[OutputColumn]:
        """The outputs of all rows, computed as one batch; NaN stays NaN. Raises PredictFailed."""
        count, answers = self._call(rows, self._shapes)
        for call, answer in answers.items():
            if answer.shape != (count, *self._shapes[call]):
                raise PredictFailed(
                    f"{call} answered the shape {answer.shape}; expected {(count, *self._shapes[call])}"
                )
        return [plan.of(answers) for plan in self._plans]

    def warm(self) -> None:
        """Run the golden examples, or one made-up row where there are none; raises UnloadableModel on a mismatch."""
        try:
            if not self.signature.golden:
                self.predict(rows_of(self.signature, [_sample(self.signature)]))
            for number, golden in enumerate(self.signature.golden):
                columns = self.predict(rows_of(self.signature, [golden.inputs]))
                check_golden(number, golden, {column.name: column for column in columns})
        except PredictFailed as error:
            raise UnloadableModel(f"the model fails on its own example: {error}") from error

    def _call(self, rows: Rows, calls: Iterable[str]) -> tuple[int, dict[str, npt.NDArray[Any]]]:
        """The number of rows and what each call answers."""
        try:
            inputs = to_frame(self.signature, rows) if self.signature.takes_dataframe else to_matrix(rows)
            count = len(inputs)
            # A matrix in place of the DataFrame it was fitted on is what `input` asks for; the names were compared.
            silence = warnings.catch_warnings() if self._knows_names else nullcontext()
            with silence:
                if self._knows_names:
                    warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
                for transform in self._transforms:
                    inputs = transform.transform(inputs)
                return count, {call: np.asarray(getattr(self._model, call)(inputs)) for call in calls}
        except Exception as error:
            raise PredictFailed(f"the model raised {said(error)}") from error

    def _example_answers(self, example: Sequence[Value], calls: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        for call in calls:
            if not callable(getattr(self._model, call, None)):
                raise UnloadableModel(f"an output asks for {call}, which {type(self._model).__name__} does not have")
        try:
            _, answers = self._call(rows_of(self.signature, [example]), calls)
        except PredictFailed as error:
            hint = "" if self.signature.golden else "; if it takes other values only, give its features an example"
            if self._knows_names and not self.signature.takes_dataframe:
                hint = '; if it needs a DataFrame, say "input": "dataframe"'
            raise UnloadableModel(f"on the example row {list(example)}, {error}{hint}") from error
        for call, answer in answers.items():
            if answer.ndim not in (1, 2) or len(answer) != 1:
                raise UnloadableModel(f"{call} answered the shape {answer.shape} for one row; expected (1,) or (1, n)")
        return answers


def load_model(signature: Signature, artifacts: Mapping[str, bytes | memoryview]) -> LoadedModel:
    """A version from its artifacts by file name, their digests checked by the caller; raises UnloadableModel."""
    try:
        roles = Roles.assign(signature, artifacts)
    except ArtifactsError as error:
        raise UnloadableModel(str(error)) from error
    told: list[str] = []
    loaded: dict[str, Any] = {}
    for name in (*roles.transforms, roles.model):
        if name not in loaded:
            loaded[name], warned = load_artifact(name, artifacts[name])
            told += warned
    for name in roles.transforms:
        if not callable(getattr(loaded[name], "transform", None)):
            raise UnloadableModel(f"{name} is a {type(loaded[name]).__name__}; expected something with .transform")
    return LoadedModel(signature, [loaded[name] for name in roles.transforms], loaded[roles.model], tuple(told))


def _sample(signature: Signature) -> tuple[Value, ...]:
    return tuple(feature.sample() for feature in signature.features)


def _check_features(signature: Signature, first: Any) -> None:
    """Refuse names, their order or their number where they are not those the first step was fitted on."""
    step = type(first).__name__
    names = getattr(first, "feature_names_in_", None)
    if names is not None:
        for place, (feature, name) in enumerate(zip(signature.features, names, strict=False)):
            if feature.name != name:
                raise UnloadableModel(
                    f"feature {place} is {feature.name!r} in the signature and {str(name)!r} in the {step}"
                )
    count = len(names) if names is not None else getattr(first, "n_features_in_", None)
    if isinstance(count, int | np.integer) and count != len(signature.features):
        raise UnloadableModel(f"the signature has {len(signature.features)} features; {step} was fitted on {count}")
