"""skops: scikit-learn estimators without a pickle, so that loading one builds known types and runs nothing else."""

from __future__ import annotations

from typing import Any

from consumers.model.formats.archive import check_archive
from consumers.model.formats.refusal import UnloadableModel
from consumers.model.formats.stored import Stored
from consumers.model.formats.threads import pin_threads

MOST_NAMED = 10
"""Types named in a refusal."""


class Skops:
    """Archives that `skops.io.dump` wrote; only types that skops trusts by itself are built."""

    suffixes = (".skops",)
    distributions = ("skops", "scikit-learn", "scipy")

    def load(self, file: Stored) -> Any:
        """The estimator; raises UnloadableModel where a type in it is not trusted."""
        from skops import io

        archive = file.content
        if "schema.json" not in check_archive(file.name, archive):
            raise UnloadableModel(f"{file.name} has no schema.json in it; expected an archive that skops.io.dump wrote")
        untrusted = io.get_untrusted_types(data=archive)
        if untrusted:
            shown = ", ".join(untrusted[:MOST_NAMED]) + (", …" if len(untrusted) > MOST_NAMED else "")
            raise UnloadableModel(f"{file.name} holds types that skops does not trust, so none was loaded: {shown}")
        loaded = io.loads(archive)
        pin_threads(loaded, file.threads)
        return loaded
