"""PyTorch without the classes a model was written in: TorchScript and torch.export, on the CPU."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from typing import Any, ClassVar
from zipfile import ZipFile

import numpy as np
import numpy.typing as npt

from consumers.model.formats.archive import check_archive
from consumers.model.formats.program import Input, Program, position
from consumers.model.formats.refusal import UnloadableModel
from consumers.model.formats.stored import Stored
from contract.signature import Output


class Torch:
    """Archives that `torch.jit.save` or `torch.export.save` wrote."""

    suffixes = (".pt", ".pt2")
    distributions = ("torch",)

    def load(self, file: Stored) -> TorchProgram:
        """The program; raises UnloadableModel for what `torch.save` wrote, which is a pickle of somebody's class."""
        archive = file.content
        # Members stand in one folder, whose name differs.
        members = {member.partition("/")[2]: member for member in check_archive(file.name, archive)}
        import torch

        torch.set_num_threads(1)
        if torch.get_num_interop_threads() != 1:
            with suppress(RuntimeError):  # it can be set once, before the first parallel work
                torch.set_num_interop_threads(1)
        if "constants.pkl" in members:
            return _script(file.name, archive)
        if "archive_format" in members:
            _check_export(file.name, archive, members)
            return _export(file.name, archive)
        raise UnloadableModel(
            f"{file.name} holds no TorchScript and no exported program: what torch.save writes needs the class it was "
            "written from; expected torch.jit.save or torch.export.save"
        )


class TorchProgram(Program):
    """A module that takes tensors of rows, and answers one tensor, several, or a dictionary of them."""

    library: ClassVar[str] = "torch"

    def __init__(self, inputs: list[Input], module: Any) -> None:
        super().__init__(inputs, ())
        self._module = module

    def source_of(self, output: Output) -> str:
        if output.call != "predict":
            raise UnloadableModel(
                f"an output asks for {output.call}, and a PyTorch program offers predict alone; choose one of its "
                "outputs by name or as output_1, and one of its columns by column"
            )
        return output.name

    def _run(self, fed: Mapping[str, npt.NDArray[Any]], sources: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
        import torch

        # What a profile of earlier calls would fuse can round otherwise than the first call did.
        with torch.inference_mode(), torch.jit.optimized_execution(False):
            answer = self._module(*(torch.from_numpy(values) for values in fed.values()))
        named = _named(answer)
        names = list(named)
        return {source: _array(named[names[position(source, names)]]) for source in sources}


def _named(answer: Any) -> dict[str, Any]:
    if isinstance(answer, dict) and answer:
        return {str(name): each for name, each in answer.items()}
    fields = getattr(answer, "_fields", None)
    several = list(answer) if isinstance(answer, tuple | list) else [answer]
    return dict(zip(fields or (f"output_{n}" for n in range(len(several))), several, strict=True))


def _array(tensor: Any) -> npt.NDArray[Any]:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise ValueError(f"it answered a {type(tensor).__name__}; expected a tensor")
    tensor = tensor.detach().cpu()
    answer: npt.NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return answer


def _script(name: str, archive: bytes) -> TorchProgram:
    """A TorchScript module; it does not say how wide its inputs are."""
    import torch

    module = torch.jit.load(BytesIO(archive), map_location="cpu").eval()
    arguments = [each for each in module.forward.schema.arguments[1:] if not each.has_default_value()]
    wrong = next((each for each in arguments if str(each.type) != "Tensor"), None)
    if wrong is not None or not arguments:
        got = f"{wrong.name} is a {wrong.type}" if wrong is not None else "none"
        raise UnloadableModel(f"{name}: expected arguments that are tensors, got: {got}")
    parameters = (each.dtype for each in module.parameters() if each.is_floating_point())
    dtype = _dtype(name, "its weights", next(parameters, torch.float32))
    if len(arguments) == 1:
        return TorchProgram([Input(arguments[0].name, dtype, None)], module)
    return TorchProgram([Input(each.name, dtype, 1, keeps_ints=True) for each in arguments], module)


def _export(name: str, archive: bytes) -> TorchProgram:
    """An exported program, which knows the shape and the type of every input."""
    import torch

    _name_a_folder()
    program = torch.export.load(BytesIO(archive))
    wanted = set(program.graph_signature.user_inputs)
    inputs: list[Input] = []
    for node in program.graph.nodes:
        if node.op != "placeholder" or node.name not in wanted:
            continue
        example = node.meta.get("val")
        if not isinstance(example, torch.Tensor) or example.ndim not in (1, 2):
            raise UnloadableModel(f"{name}: the input {node.name} is no tensor of rows x features")
        if isinstance(example.shape[0], int):
            raise UnloadableModel(
                f"{name}: the input {node.name} takes {example.shape[0]} rows and no other number; export it with a "
                "dynamic first dimension"
            )
        width = 1 if example.ndim == 1 else example.shape[1]
        dtype = _dtype(name, f"the input {node.name}", example.dtype)
        inputs.append(Input(node.name, dtype, width if isinstance(width, int) else None, flat=example.ndim == 1))
    if not inputs or (len(inputs) > 1 and any(each.width is None for each in inputs)):
        raise UnloadableModel(
            f"{name}: expected inputs of known width, got {', '.join(i.name for i in inputs) or 'none'}"
        )
    return TorchProgram(inputs, program.module())


def _name_a_folder() -> None:
    """Let PyTorch's import name a folder for what it compiles also where no file can be written, as on trial.

    It compiles nothing here; without a name it does not load.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        tempfile.tempdir = os.environ.get("TMPDIR") or "/tmp"  # noqa: S108 - nothing is written there


def _dtype(name: str, what: str, dtype: Any) -> np.dtype[Any]:
    import torch

    try:
        empty: npt.NDArray[Any] = torch.empty(0, dtype=dtype).numpy()
    except TypeError:
        raise UnloadableModel(
            f"{name}: {what} has the type {dtype}; convert it to float32 before it is saved"
        ) from None
    return empty.dtype


def _check_export(name: str, archive: bytes, members: Mapping[str, str]) -> None:
    """Refuse an export with pickles or compiled code in it, which PyTorch would load, before it is asked to."""
    import torch

    legacy = ("data/weights/model.pt", "data/constants/model.pt")
    found = next((each for each in members if each in legacy or each.startswith("data/aotinductor/")), None)
    with ZipFile(BytesIO(archive)) as opened:
        for member, whole in members.items():
            if found is None and member.endswith("_config.json") and member.startswith("data/"):
                pieces = json.loads(opened.read(whole)).get("config", {})
                pickled = (
                    each
                    for each, piece in pieces.items()
                    if piece.get("use_pickle") or not str(piece.get("path_name")).startswith(("weight_", "tensor_"))
                )
                found = next(pickled, None)
            if found is None and member.startswith("data/sample_inputs/"):
                try:
                    torch.load(BytesIO(opened.read(whole)), weights_only=True)
                except Exception:  # noqa: BLE001 - PyTorch would unpickle it without restriction next
                    found = member
    if found is not None:
        raise UnloadableModel(
            f"{name} holds a pickle or compiled code, {found}; export it again with torch.export.save, of plain tensors"
        )
