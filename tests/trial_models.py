"""Versions for trials: pickles that do what they are told while they are loaded, and models that answer wrongly."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import struct
from collections.abc import AsyncIterator, Mapping
from functools import partial
from io import BytesIO
from typing import Any

import joblib
import numpy as np
from sklearn.linear_model import LinearRegression

from contract.trial import TrialFile
from registry.trial import OnTrial


class Runs:
    """Pickles as Python code that runs while it is loaded, and then is `value`."""

    def __init__(self, code: str, value: object = None) -> None:
        self.code = code
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("(exec(code), value)[1]", {"code": self.code, "value": self.value})


class Wide:
    """Answers two columns for one row, and three for more."""

    def predict(self, rows: Any) -> Any:
        return np.zeros((len(rows), min(len(rows), 2) + 1))


class NotANumber:
    """NaN below zero."""

    def predict(self, rows: Any) -> Any:
        return np.where(rows[:, 0] < 0, np.nan, 1.0)


class Aborts:
    """Answers once."""

    asked = False

    def predict(self, rows: Any) -> Any:
        if self.asked:
            os.abort()
        self.asked = True
        return rows[:, 0]


def linear(columns: list[str] | None = None, features: int = 2) -> LinearRegression:
    """The sum of its features."""
    x = np.eye(features)
    if columns is None:
        return LinearRegression(fit_intercept=False).fit(x, np.ones(features))
    import pandas as pd

    return LinearRegression(fit_intercept=False).fit(pd.DataFrame(x, columns=columns), np.ones(features))


def runs(code: str, value: object = None) -> bytes:
    return pickle.dumps(Runs(code, value))


def dumped(model: object) -> bytes:
    buffer = BytesIO()
    joblib.dump(model, buffer)
    return buffer.getvalue()


def bomb(size: int) -> bytes:
    """A few kilobytes that unpickle as so many zeros, joblib's way of compressing."""
    piece = 2**24
    head = gzip.compress(pickle.PROTO + b"\x04" + pickle.BINBYTES8 + struct.pack("<Q", size))
    return head + gzip.compress(bytes(piece)) * (size // piece) + gzip.compress(pickle.STOP)


def signature(**changes: Any) -> bytes:
    """Of a model with the features a and b."""
    content = {
        "model_id": "tried",
        "version": "1.0.0",
        "trained_date": "2024-01-01",
        "status": "production",
        "azure_location": "ai-models",
        "expected_features": [
            {"index": 0, "name": "a", "type": "float", "example": 1.0},
            {"index": 1, "name": "b", "type": "float", "example": 2.0},
        ],
    }
    return json.dumps(content | changes).encode()


def on_trial(files: Mapping[str, bytes], recorded: Mapping[str, bytes] | None = None) -> list[OnTrial]:
    """Files for a trial; `recorded` has those that others were on record as."""

    async def chunks(content: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), 1 << 16):
            yield content[start : start + (1 << 16)]

    on_record = {**files, **(recorded or {})}
    return [
        OnTrial(TrialFile(name, hashlib.sha256(on_record[name]).hexdigest(), len(content)), partial(chunks, content))
        for name, content in files.items()
    ]
