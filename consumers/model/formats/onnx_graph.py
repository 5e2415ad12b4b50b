"""ONNX graphs, run by onnxruntime on the CPU; a graph is made of known operators and holds no code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from consumers.model.formats.program import Input, Program, position
from consumers.model.formats.refusal import UnloadableModel
from consumers.model.formats.stored import Stored
from contract.signature import Output

DTYPES: Mapping[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint64)": np.dtype(np.uint64),
    "tensor(uint32)": np.dtype(np.uint32),
    "tensor(uint16)": np.dtype(np.uint16),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(bool)": np.dtype(np.bool_),
    "tensor(string)": np.dtype(object),
}
"""Types of inputs and outputs, by onnxruntime's names for them."""

_LABELS = ("tensor(int64)", "tensor(string)", "tensor(int32)", "tensor(bool)")
_FLOATS = ("tensor(float)", "tensor(double)", "tensor(float16)")
_PROBABILITIES = ("probabilities", "probability", "output_probability")
_QUIET = 4
"""Fatal alone: what fails is told by an exception."""
_NO_FOLDER = "/dev/null"


class Onnx:
    """Graphs; weights that are stored in files of their own are taken from the version's other files, by name."""

    suffixes = (".onnx",)
    distributions = ("onnxruntime",)

    def load(self, file: Stored) -> OnnxGraph:
        """The graph; raises UnloadableModel where an input takes no rows."""
        return OnnxGraph(file.name, opened(file.content, file.threads, file.beside))


def opened(content: bytes, threads: int = 1, beside: Mapping[str, bytes] | None = None) -> Any:
    """A session for a serialized graph, computing with so many threads; `beside` has its weights by name of file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that wait for the next call in a loop would take the cores from the other workers.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = _QUIET
    # No graph may name a file of this machine: what it names comes from the version, or from nowhere.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", _NO_FOLDER)
    if beside:
        names = list(beside)
        buffers = [beside[name] for name in names]
        options.add_external_initializers_from_files_in_memory(names, buffers, [len(each) for each in buffers])
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


class OnnxGraph(Program):
    """A graph with its session."""

    library: ClassVar[str] = "onnxruntime"

    def __init__(self, name: str, session: Any) -> None:
        outputs = session.get_outputs()
        given = session.get_inputs()
        super().__init__([_input(name, each, len(given)) for each in given], [each.name for each in outputs])
        self._session = session
        self._types: dict[str, str] = {each.name: each.type for each in outputs}

    @property
    def calls(self) -> tuple[str, ...]:
        return ("predict", "predict_proba") if self._probabilities() else ("predict",)

    def source_of(self, output: Output) -> str:
        if output.call == "predict_proba":
            source = output.name if output.name in self._types else self._probabilities()
        else:
            source = self.output_names[position(output.name, self.output_names)] if output.call == "predict" else None
        if source is None:
            raise UnloadableModel(
                f"an output asks for {output.call}, and the graph offers {' and '.join(self.calls)}; predict also "
                f"answers any of its outputs where the signature's is called alike: {', '.join(self.output_names)}"
            )
        return source

    def _probabilities(self) -> str | None:
        """The output that `predict_proba` means: of a ZipMap, of a usual name, or what follows the label."""
        for name, kind in self._types.items():
            if kind.startswith("seq(map(") or (name in _PROBABILITIES and kind in _FLOATS):
                return name
        kinds = tuple(self._types.values())
        label_first = len(kinds) == 2 and kinds[0] in _LABELS and kinds[1] in _FLOATS
        return self.output_names[1] if label_first else None

    def _run(self, fed: Mapping[str, npt.NDArray[Any]], sources: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
        answers = self._session.run(list(sources), dict(fed))
        return {source: self._array(answer) for source, answer in zip(sources, answers, strict=True)}

    def _array(self, answer: Any) -> npt.NDArray[Any]:
        if not isinstance(answer, list):
            return np.asarray(answer)
        # A ZipMap answers a dictionary per row; its labels are the same for every one.
        labels = list(answer[0]) if answer and isinstance(answer[0], dict) else None
        if labels is None:
            raise ValueError("a sequence came where a tensor or a ZipMap was expected")
        self.classes_ = labels
        return np.array([[row[label] for label in labels] for row in answer], dtype=np.float32)


def _input(name: str, given: Any, count: int) -> Input:
    """One of `count` inputs of a graph; raises UnloadableModel for one that a batch of rows does not fit."""
    if given.type not in DTYPES:
        raise UnloadableModel(
            f"{name}: the input {given.name} is a {given.type}; expected a tensor of numbers or strings"
        )
    shape = list(given.shape)
    if len(shape) not in (1, 2):
        raise UnloadableModel(f"{name}: the input {given.name} has {len(shape)} dimensions; expected rows x features")
    if isinstance(shape[0], int):
        raise UnloadableModel(
            f"{name}: the input {given.name} takes {shape[0]} rows and no other number; export it with a dynamic first "
            "dimension"
        )
    width = 1 if len(shape) == 1 else shape[1] if isinstance(shape[1], int) else None
    if width is None and count > 1:
        raise UnloadableModel(f"{name}: how many columns the input {given.name} takes is open; expected a number")
    return Input(given.name, DTYPES[given.type], width, flat=len(shape) == 1)
