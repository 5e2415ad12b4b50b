"""Model files by format: bytes whose digest was checked -> a model in memory, on as many threads as it is told.

.joblib .pkl   pickles: scikit-learn, XGBoost, LightGBM, whatever has their API
.skops         the same estimators without a pickle
.onnx          graphs for onnxruntime
.pt .pt2       TorchScript and torch.export
.ubj .json     XGBoost's own files

A library is imported when the first of its files is loaded, and never otherwise.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, Protocol

from consumers.model.formats.late_pandas import late_pandas
from consumers.model.formats.onnx_graph import Onnx
from consumers.model.formats.pickle_file import Pickle
from consumers.model.formats.refusal import UnloadableModel, hint, missing_library, said
from consumers.model.formats.skops_archive import Skops
from consumers.model.formats.stored import Stored
from consumers.model.formats.threads import Lent, pin_threads
from consumers.model.formats.torch_program import Torch
from consumers.model.formats.xgboost_booster import XgboostFile

__all__ = ["FORMATS", "Lent", "ModelFormat", "UnloadableModel", "load_artifact", "pin_threads", "said"]


class ModelFormat(Protocol):
    """One way models are stored in files."""

    @property
    def suffixes(self) -> tuple[str, ...]: ...

    @property
    def distributions(self) -> tuple[str, ...]:
        """Installed packages whose versions can change what such a model answers."""

    def load(self, file: Stored) -> Any:
        """An estimator with scikit-learn's API, or a Program, on the threads of the file.

        Raises UnloadableModel, or whatever its library raises.
        """


FORMATS: Mapping[str, ModelFormat] = {
    suffix: form for form in (Pickle(), Skops(), Onnx(), Torch(), XgboostFile()) for suffix in form.suffixes
}
"""Formats by file suffix."""


def load_artifact(
    name: str, content: bytes | memoryview, beside: Mapping[str, bytes | memoryview] | None = None, threads: int = 1
) -> tuple[Any, tuple[str, ...]]:
    """What a model or transform file holds, and warnings of a library version that differs; raises UnloadableModel.

    Bytes are read where they are; a view is copied first. `threads` is for libraries that keep their own number.
    """
    suffix = next((suffix for suffix in FORMATS if name.endswith(suffix)), None)
    if suffix is None:
        raise UnloadableModel(f"{name} is of no format that can be loaded; expected {', '.join(FORMATS)}")
    try:
        with late_pandas(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            others = {each: bytes(held) for each, held in (beside or {}).items()}
            loaded = FORMATS[suffix].load(Stored(name, bytes(content), others, threads))
    except UnloadableModel:
        raise
    except ModuleNotFoundError as error:
        raise UnloadableModel(missing_library(name, error)) from error
    except Exception as error:
        reason = f"{said(error)}{hint(name, content, error)}"
        raise UnloadableModel(f"{name} ({len(content):,} bytes) can't be loaded: {reason}") from error
    told = {str(each.message).split("\n")[0] for each in caught if "Version" in each.category.__name__}
    return loaded, tuple(f"{name}: {text}" for text in sorted(told))
