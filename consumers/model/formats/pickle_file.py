"""Pickles: scikit-learn, and whatever speaks its API, such as XGBoost and LightGBM.

A pickle runs code while it loads; where its bytes came from is settled before they come here.
"""

from __future__ import annotations

from io import BytesIO
from typing import Any

from consumers.model.formats.stored import Stored
from consumers.model.formats.threads import pin_threads


class Pickle:
    """Pickles, written by joblib (compressed or not) or by pickle itself."""

    suffixes = (".joblib", ".pkl")
    distributions = ("joblib", "scikit-learn", "scipy", "pandas", "lightgbm", "xgboost", "xgboost-cpu")

    def load(self, file: Stored) -> Any:
        """The object that was pickled."""
        import joblib  # takes a while, and a worker without such models never needs it

        loaded = joblib.load(BytesIO(file.content))
        pin_threads(loaded, file.threads)
        return loaded
