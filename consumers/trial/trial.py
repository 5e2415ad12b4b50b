"""A version on trial: loaded and asked as a worker would, gate by gate, in a process that may die of it.

digests -> loads -> features as it was fitted on -> declared outputs, no NaN -> golden examples
                                                 -> or, where rows are sent: what it answers to them
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256

import numpy as np

from consumers.model.formats import UnloadableModel, said
from consumers.model.model import LoadedModel, PredictFailed, load_model, rows_of
from consumers.trial.recorded import answered
from contract.signature import SignatureError, parse_signature
from contract.trial import TrialFile, Verdict

STARTING, LOADING, PREDICTING = "before loading", "while loading", "while answering its examples"
ANSWERING = "while answering recorded requests"
"""Where a trial stands."""

_LIBRARIES = ("sklearn", "numpy", "scipy", "pandas", "joblib", "xgboost", "lightgbm", "skops", "onnxruntime", "torch")


def try_version(
    signature_json: bytes,
    files: Sequence[TrialFile],
    contents: Mapping[str, bytes],
    rows: bytes = b"",
    *,
    on_stage: Callable[[str], None],
    memory: str,
) -> tuple[Verdict, bytes]:
    """The verdict on a version, and its answers where there are rows, a serialized Rows.

    `on_stage` hears where it stands, `memory` is the limit in words.
    """
    stage = LOADING
    started = time.monotonic()
    verdict, answers = Verdict(), b""
    try:
        _check_digests(files, contents)
        signature, _ = parse_signature(signature_json)
        on_stage(stage)
        model = load_model(signature, contents)
        verdict = replace(verdict, load_s=round(time.monotonic() - started, 3), warnings=model.warnings)
        stage = ANSWERING if rows else PREDICTING
        on_stage(stage)
        if rows:
            answers = answered(model, rows).encode()
        else:
            model.warm()
            check_examples(model)
    except BaseException as error:  # noqa: BLE001 - a model may raise anything, SystemExit too
        verdict = replace(verdict, reason=_reason(error, stage, memory))
    libraries = {name: sys.modules[name].__version__ for name in _LIBRARIES if name in sys.modules}
    return replace(verdict, libraries={"python": sys.version.split()[0], **libraries}), answers


def check_examples(model: LoadedModel) -> None:
    """One call with all examples, two rows at least, gives every output for each row, and none is NaN.

    An output may be NaN where a golden example says that it can be. Raises UnloadableModel.
    """
    signature = model.signature
    examples = [golden.inputs for golden in signature.golden] or [tuple(f.sample() for f in signature.features)]
    rows = examples * 2 if len(examples) == 1 else examples
    try:
        columns = model.predict(rows_of(signature, rows))
    except PredictFailed as error:
        raise UnloadableModel(f"asked for its {len(rows)} example rows in one call: {error}") from error
    may_be_nan = {name for golden in signature.golden for name, value in golden.outputs if value is None}
    for column in columns:
        if column.kind != "float" or column.name in may_be_nan:
            continue
        is_nan = np.isnan(np.asarray(column.values, dtype=np.float64))
        if is_nan.any():
            hint = "" if signature.golden else "; if it takes other values only, give its features an example"
            row = list(rows[int(is_nan.argmax())])
            raise UnloadableModel(f"the output {column.name} is NaN for the example row {row}{hint}")


def _check_digests(files: Sequence[TrialFile], contents: Mapping[str, bytes]) -> None:
    for file in files:
        if sha256(contents[file.name]).hexdigest() != file.sha256:
            raise UnloadableModel(f"{file.name} is not the file that was recorded: its SHA-256 differs")


def _reason(error: BaseException, stage: str, memory: str) -> str:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, MemoryError):
            return f"it takes more than {memory} of memory {stage}"
        cause = cause.__cause__
    if isinstance(error, UnloadableModel):
        return str(error)
    if isinstance(error, SignatureError):
        return f"signature.json: {'; '.join(map(str, error.problems[:10]))}"
    return f"it raised {said(error)} {stage}"
