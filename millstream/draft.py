"""Drafts: a signature for somebody's own model, from the fitted estimator and a CSV of rows it was trained on.

names   feature_names_in_ or a program's inputs, else the CSV's header, else feature_0 and on
types   the CSV's columns: int, float, bool or string; else what the file tells of its inputs
outputs predict_proba where there is one, else predict
input   array, or dataframe where the estimator takes nothing else
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

from consumers.model.formats import UnloadableModel, load_artifact
from consumers.model.formats.estimator import fitted_names
from consumers.model.formats.program import Program
from consumers.model.model import load_model, rows_of
from contract.signature import SignatureError, Value, parse_signature

MOST_ROWS = 10_000
"""Rows of the CSV that are read for types."""
_ZERO: Mapping[str, Value] = {"float": 0.0, "int": 0, "bool": False, "string": ""}
_XGBOOST_TYPES = {"int": "int", "i": "bool"}
_INT = re.compile(r"[+-]?[0-9]{1,15}")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")


class DraftFailed(Exception):
    """No signature can be drafted; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A signature as it will be published, and what was assumed on the way."""

    signature: bytes
    """signature.json, indented for people."""
    artifact: bytes
    model_file: str
    example: Mapping[str, Value]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Column:
    name: str
    type: str
    example: Value


def draft(
    file: Path,
    *,
    model_id: str,
    version: str,
    rows: Path | None,
    output: str | None,
    status: str = "production",
    location: str = "local-models",
) -> Draft:
    """Loads the file, which runs its code, and drafts its signature; the model answers its example row.

    Raises DraftFailed.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DraftFailed(f"{file} can't be read: {error.strerror}") from None
    try:
        estimator, told = load_artifact(file.name, content)
    except UnloadableModel as error:
        raise DraftFailed(str(error)) from None
    notes = list(told)
    if not (isinstance(estimator, Program) or callable(getattr(estimator, "predict", None))):
        raise DraftFailed(f"{file.name} holds a {type(estimator).__name__}, which has no predict")
    columns = _columns(estimator, _table(rows) if rows else None, notes)
    model_file = f"model.production{file.suffix}"
    signature: dict[str, Any] = {
        "model_id": model_id,
        "version": version,
        "trained_date": datetime.fromtimestamp(file.stat().st_mtime, UTC).date().isoformat(),
        "status": status,
        "azure_location": location,
        "expected_features": [
            {"index": index, "name": column.name, "type": column.type, "example": column.example}
            for index, column in enumerate(columns)
        ],
        "outputs": _outputs(estimator, output),
    }
    example = [column.example for column in columns]
    signature = _tried(signature, model_file, content, example)
    packed = json.dumps(signature, indent=2, ensure_ascii=False).encode() + b"\n"
    return Draft(packed, content, model_file, {c.name: c.example for c in columns}, tuple(notes))


def _tried(signature: dict[str, Any], model_file: str, content: bytes, example: Sequence[Value]) -> dict[str, Any]:
    """The signature with the input form the model takes, and its answer to the example as a golden example."""
    failures = []
    for form in ("auto", "dataframe"):
        attempt = {**signature, "input": form} if form != "auto" else signature
        try:
            parsed, _ = parse_signature(json.dumps(attempt).encode())
            model = load_model(parsed, {model_file: content})
            answers = model.predict(rows_of(parsed, [example]))
        except SignatureError as error:
            raise DraftFailed(f"the drafted signature is refused: {error}") from None
        except Exception as error:  # noqa: BLE001 - whatever somebody's model does is its answer to the attempt
            failures.append(str(error))
            continue
        outputs = {
            column.name: column.values[0].item() if hasattr(column.values[0], "item") else column.values[0]
            for column in answers
        }
        golden = {"inputs": list(example), "outputs": outputs, "tolerance": 1e-6}
        finite = all(not isinstance(value, float) or value == value for value in outputs.values())
        return {**attempt, "golden": [golden]} if finite else attempt
    raise DraftFailed(f"the model does not answer a row like {list(example)}: {failures[0]}")


def _table(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            rows = [row for row in islice(lines, MOST_ROWS) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DraftFailed(f"{path} can't be read as CSV: {error}") from None
    if not header or not rows:
        raise DraftFailed(f"{path} has {'no header' if not header else 'a header and no rows'}; expected both")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DraftFailed(f"{path}, line {number}: expected {len(header)} values as in the header, got {len(row)}")
    return header, rows


def _columns(estimator: Any, table: tuple[list[str], list[list[str]]] | None, notes: list[str]) -> list[_Column]:
    names = list(fitted_names(estimator) or ())
    count = len(names) or int(getattr(estimator, "n_features_in_", None) or 0)
    if table is None:
        if not count:
            raise DraftFailed("the model does not say how many features it takes: give a CSV of its rows with --csv")
        if not names:
            names = [f"feature_{index}" for index in range(count)]
            notes.append("names are made up, since neither the model nor a --csv gives them")
        types = _types(estimator)
        if len(types) == len(names):
            return [_Column(name, kind, _ZERO[kind]) for name, kind in zip(names, types, strict=True)]
        notes.append("every feature is taken for a float; a --csv of rows gives the types")
        return [_Column(name, "float", 0.0) for name in names]
    header, rows = table
    if names:
        absent = [name for name in names if name not in header]
        if absent:
            raise DraftFailed(f"the model knows features that the CSV does not have: {', '.join(absent[:10])}")
    else:
        count = count or len(header)
        if count > len(header):
            raise DraftFailed(f"the model takes {count} features, the CSV has {len(header)} columns")
        names = header[:count]
        if count < len(header):
            notes.append(f"the first {count} columns are taken for the features, {', '.join(header[count:])} left out")
    return [_column(name, [row[header.index(name)] for row in rows]) for name in names]


def _types(estimator: Any) -> tuple[str, ...]:
    """The features' types where the file tells them: a program's inputs, or what XGBoost kept of a DataFrame."""
    if isinstance(estimator, Program):
        return estimator.feature_types
    if not hasattr(estimator, "get_booster"):
        return ()
    return tuple(_XGBOOST_TYPES.get(kind, "float") for kind in estimator.get_booster().feature_types or ())


def _column(name: str, texts: list[str]) -> _Column:
    filled = [text for text in texts if text != ""]
    if not filled:
        return _Column(name, "float", 0.0)
    if all(text in ("true", "false", "True", "False") for text in filled):
        return _Column(name, "bool", filled[0].lower() == "true")
    if all(_INT.fullmatch(text) for text in filled) and len(filled) == len(texts):
        return _Column(name, "int", int(filled[0]))
    if all(_INT.fullmatch(text) or _FLOAT.fullmatch(text) for text in filled):
        return _Column(name, "float", float(filled[0]))
    return _Column(name, "string", filled[0])


def _outputs(estimator: Any, name: str | None) -> list[dict[str, Any]]:
    if isinstance(estimator, Program) and "predict_proba" in estimator.calls:
        label = "prediction" if name != "prediction" else "label"
        return [{"name": name or "probability", "call": "predict_proba"}, {"name": label, "call": "predict"}]
    classes = getattr(estimator, "classes_", None)
    if classes is None or not callable(getattr(estimator, "predict_proba", None)):
        return [{"name": name or "prediction", "call": "predict"}]
    labels = [label.item() if hasattr(label, "item") else label for label in classes]
    outputs = [{"name": "prediction" if name != "prediction" else "label", "call": "predict"}]
    if len(labels) == 2:
        return [{"name": name or "probability", "call": "predict_proba", "class": labels[1]}, *outputs]
    return [{"name": name or "probability", "call": "predict_proba"}, *outputs]
