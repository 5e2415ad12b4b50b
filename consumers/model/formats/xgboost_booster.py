"""XGBoost's own files, JSON and UBJSON: trees and parameters, and no code."""

from __future__ import annotations

import json
import re
from typing import Any

from consumers.model.formats.refusal import UnloadableModel, said
from consumers.model.formats.stored import Stored

_PLACE = re.compile(r"^\s*\[[0-9:]+\] \S+:[0-9]+: ")


class XgboostFile:
    """What `save_model` wrote, as the estimator that goes with its objective; classes are 0, 1, … there."""

    suffixes = (".ubj", ".json")
    distributions = ("xgboost", "xgboost-cpu")

    def load(self, file: Stored) -> Any:
        """An XGBClassifier, XGBRanker or XGBRegressor on the CPU."""
        # A signature or a configuration is JSON too, and is told apart without the library.
        if b"learner" not in file.content:
            raise UnloadableModel(f"{file.name} is no XGBoost model: it has no learner; expected what save_model wrote")
        import xgboost

        model = bytearray(file.content)  # it takes nothing else
        try:
            booster = xgboost.Booster(model_file=model)
            objective = json.loads(booster.save_config())["learner"]["objective"]["name"]
            estimator = _estimator_of(objective)(n_jobs=file.threads)
            estimator.load_model(model)
        except xgboost.core.XGBoostError as error:
            # Its own words alone: neither the time, nor the place in its source, nor the stack.
            text = _PLACE.sub("", str(error).partition("Stack trace")[0])
            reason = said(xgboost.core.XGBoostError(text))
            raise UnloadableModel(f"{file.name} ({len(file.content):,} bytes) can't be loaded: {reason}") from None
        estimator.get_booster().set_param({"nthread": file.threads, "device": "cpu"})
        return estimator


def _estimator_of(objective: str) -> Any:
    import xgboost

    if objective.startswith(("binary:", "multi:")):
        return xgboost.XGBClassifier
    return xgboost.XGBRanker if objective.startswith("rank:") else xgboost.XGBRegressor
