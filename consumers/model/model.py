"""A model in memory, as a worker runs it: rows -> transforms -> the estimator's calls -> named outputs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import numpy as np
import numpy.typing as npt

from consumers.model.compiled import Form, NotTaken, difference, forms, named, sample_rows, timed
from consumers.model.formats import Lent, UnloadableModel, load_artifact, said
from consumers.model.formats.estimator import Estimator, fitted_names
from consumers.model.formats.program import Program
from consumers.model.outputs import OutputColumn, OutputPlan, PredictFailed, check_golden, plan_outputs
from consumers.model.rows import Rows, rows_of, to_frame, to_matrix
from contract.signature import Signature, Value, ValueType
from contract.version import ArtifactsError, Roles

__all__ = ["LoadedModel", "OutputColumn", "PredictFailed", "Rows", "UnloadableModel", "load_model", "rows_of"]

COMPILE_ROWS = 2000
"""Rows that a compiled form is tried on."""

_TAKEN: Mapping[ValueType, tuple[ValueType, ...]] = {
    "float": ("float", "int", "bool"),
    "int": ("int", "bool"),
    "bool": ("bool",),
    "string": ("string",),
}
"""Types of features that an input of each type can hold without a change."""


class LoadedModel:
    """One version of a model, ready to predict. Not for several threads at once."""

    def __init__(
        self,
        signature: Signature,
        transforms: Sequence[Any],
        model: Any,
        warnings: tuple[str, ...],
        threads: int = 1,
    ) -> None:
        self.signature = signature
        self.warnings = warnings
        """What its libraries said while it was loaded, such as a version that differs."""
        self.threads = threads
        """How many threads `predict` takes; what is done while it is loaded takes one."""
        self._lent: Lent | None = None
        self._model = model if isinstance(model, Program) else Estimator(model)
        library = self._model.library
        self._library = f"{library} {getattr(sys.modules.get(library), '__version__', '')}".rstrip()
        self.engine = self._library
        """What computed the last answer: the model's own library, `sklearn 1.9.1`, or that of its compiled form."""
        self._transforms = tuple(transforms)
        self._last = model
        self.form: Form | None = None
        """The compiled form that it computes in; None: as it was loaded."""
        first = self._transforms[0] if self._transforms else model
        self._knows_names = fitted_names(first) is not None
        _check_features(signature, first)
        example = signature.golden[0].inputs if signature.golden else _sample(signature)
        sources = [self._model.source_of(output) for output in signature.outputs]
        answers = self._example_answers(example, list(dict.fromkeys(sources)))
        self._shapes: dict[str, tuple[int, ...]] = {source: answer.shape[1:] for source, answer in answers.items()}
        """The shape of what each source (a call, or an output of a program) answers, but for the number of rows."""
        labels = self._model.classes_
        self._plans: tuple[OutputPlan, ...] = plan_outputs(signature, sources, answers, labels)

    @property
    def outputs(self) -> tuple[tuple[str, ValueType], ...]:
        """Name and type of each output, in the order they are answered."""
        return tuple((plan.name, plan.kind) for plan in self._plans)

    def predict(self, rows: Rows) -> list[OutputColumn]:
        """The outputs of all rows, computed as one batch; NaN stays NaN. Raises PredictFailed."""
        if self.threads == 1:
            return self._predict(rows)
        self._lent = self._lent or Lent(self.threads)  # by now all its libraries are loaded
        with self._lent.lent():
            return self._predict(rows)

    def is_own(self, engine: str) -> bool:
        """Whether `engine` is the model's own library, in whatever version, and no compiled form."""
        return engine.partition(" ")[0] == self._library.partition(" ")[0]

    def _predict(self, rows: Rows) -> list[OutputColumn]:
        count, answers = self._call(rows, self._shapes)
        for source, answer in answers.items():
            if answer.shape != (count, *self._shapes[source]):
                raise PredictFailed(
                    f"{source} answered the shape {answer.shape}; expected {(count, *self._shapes[source])}"
                )
        return [plan.of(answers) for plan in self._plans]

    def compile(self, tolerance: float = 0.0) -> str:
        """Computes in a compiled form from now on where one differs in no bit; else says why not, in a few words.

        With a tolerance it may differ in the last bits of numbers: by no more than so much and this part of them.
        """
        if not self._has_forms:
            return "only models of scikit-learn's API that take a matrix have a compiled form"
        why = "no compiled form is known for its steps"
        try:
            samples = self._samples()
            for form in forms(*self._steps, tolerated=tolerance > 0):
                why = self._tried(form, samples, 0.0 if form.is_exact else tolerance)
                if not why:
                    return ""
        except Exception as error:  # noqa: BLE001 - whatever it is, the original answers
            why = f"trying it raised {said(error)}"
        return why

    def _tried(self, form: Form, samples: npt.NDArray[np.float64], tolerance: float) -> str:
        """Takes the form where it answers alike, and as the golden examples expect; else says why not."""
        labels = [] if self._model.classes_ is None else ["predict"]
        try:
            if why := difference(form, self._answer, samples, tolerance, labels):
                return why
            self.form = timed(form, self._answer, samples).within(tolerance)
            self.warm()
        except Exception as error:  # noqa: BLE001 - whatever it is, another form answers, or the original
            self.form = None
            return f"trying it raised {said(error)}"
        return ""

    def form_named(self, engine: str) -> Form | None:
        """The compiled form that `engine` names, as it stands in the log, untried; None where there is none here."""
        return named(engine, *self._steps) if self._has_forms else None

    @property
    def _has_forms(self) -> bool:
        return isinstance(self._model, Estimator) and not self.signature.takes_dataframe

    @property
    def _steps(self) -> tuple[Sequence[Any], Any, Sequence[str], int]:
        """What its compiled forms are made from."""
        return self._transforms, self._last, list(self._shapes), self.threads

    def _answer(self, rows: npt.NDArray[Any], source: str) -> npt.NDArray[Any]:
        return self._original(rows, [source])[source]

    def _samples(self) -> npt.NDArray[np.float64]:
        examples = [_sample(self.signature), *(golden.inputs for golden in self.signature.golden)]
        special = to_matrix(rows_of(self.signature, examples))
        return sample_rows([feature.usual for feature in self.signature.features], special, COMPILE_ROWS)

    def warm(self) -> None:
        """Run the golden examples, or one made-up row where there are none; raises UnloadableModel on a mismatch."""
        try:
            if not self.signature.golden:
                self._predict(rows_of(self.signature, [_sample(self.signature)]))
            for number, golden in enumerate(self.signature.golden):
                columns = self._predict(rows_of(self.signature, [golden.inputs]))
                check_golden(number, golden, {column.name: column for column in columns})
        except PredictFailed as error:
            raise UnloadableModel(f"the model fails on its own example: {error}") from error

    def _call(self, rows: Rows, sources: Iterable[str]) -> tuple[int, dict[str, npt.NDArray[Any]]]:
        """The number of rows and what each source answers."""
        try:
            inputs = to_frame(self.signature, rows) if self.signature.takes_dataframe else to_matrix(rows)
            count = len(inputs)
            form = self.form
            if form is not None and count <= form.most_rows:
                with suppress(NotTaken):
                    answers = {source: form.calls[source](inputs) for source in sources}
                    self.engine = form.engine
                    return count, answers
            self.engine = self._library
            return count, self._original(inputs, sources)
        except Exception as error:
            raise PredictFailed(f"the model raised {said(error)}") from error

    def _original(self, inputs: Any, sources: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        """What the steps answer as they were loaded; raises whatever they do."""
        # A matrix in place of the DataFrame it was fitted on is what `input` asks for; the names were compared.
        silence = warnings.catch_warnings() if self._knows_names else nullcontext()
        with silence:
            if self._knows_names:
                warnings.filterwarnings("ignore", "X does not have valid feature names", UserWarning)
            for transform in self._transforms:
                inputs = transform.transform(inputs)
            return self._model.run(inputs, sources)

    def _example_answers(self, example: Sequence[Value], sources: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
        try:
            _, answers = self._call(rows_of(self.signature, [example]), sources)
        except PredictFailed as error:
            hint = "" if self.signature.golden else "; if it takes other values only, give its features an example"
            if self._knows_names and not self.signature.takes_dataframe:
                hint = '; if it needs a DataFrame, say "input": "dataframe"'
            raise UnloadableModel(f"on the example row {list(example)}, {error}{hint}") from error
        for source, answer in answers.items():
            if answer.ndim not in (1, 2) or len(answer) != 1:
                raise UnloadableModel(
                    f"{source} answered the shape {answer.shape} for one row; expected (1,) or (1, n)"
                )
        return answers


def load_model(signature: Signature, artifacts: Mapping[str, bytes | memoryview], threads: int = 1) -> LoadedModel:
    """A version from its artifacts by file name, their digests checked by the caller; raises UnloadableModel.

    Bytes are read where they are, without a copy; it predicts with so many threads.
    """
    try:
        roles = Roles.assign(signature, artifacts)
    except ArtifactsError as error:
        raise UnloadableModel(str(error)) from error
    beside = {name: artifacts[name] for name in roles.others}
    told: list[str] = []
    loaded: dict[str, Any] = {}
    for name in (*roles.transforms, roles.model):
        if name not in loaded:
            loaded[name], warned = load_artifact(name, artifacts[name], beside, threads)
            told += warned
    for name in roles.transforms:
        if not callable(getattr(loaded[name], "transform", None)):
            raise UnloadableModel(f"{name} is a {type(loaded[name]).__name__}; expected something with .transform")
    steps = [loaded[name] for name in roles.transforms]
    return LoadedModel(signature, steps, loaded[roles.model], tuple(told), threads)


def _sample(signature: Signature) -> tuple[Value, ...]:
    return tuple(feature.sample() for feature in signature.features)


def _check_features(signature: Signature, first: Any) -> None:
    """Refuse names, their order, number or types where they are not those the first step was fitted on."""
    step = type(first).__name__
    names = fitted_names(first)
    if names is not None:
        for place, (feature, name) in enumerate(zip(signature.features, names, strict=False)):
            if feature.name != name:
                raise UnloadableModel(
                    f"feature {place} is {feature.name!r} in the signature and {name!r} in the {step}"
                )
    count = len(names) if names is not None else getattr(first, "n_features_in_", None)
    if isinstance(count, int | np.integer) and count != len(signature.features):
        raise UnloadableModel(f"the signature has {len(signature.features)} features; {step} was fitted on {count}")
    kinds = first.feature_types if isinstance(first, Program) else ()
    for feature, kind in zip(signature.features, kinds, strict=False):
        if feature.type not in _TAKEN[kind]:
            raise UnloadableModel(
                f"feature {feature.index}, {feature.name}, is of type {feature.type} in the signature; "
                f"the {step} takes {kind} there"
            )
