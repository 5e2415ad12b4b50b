"""How far a bulk file got: a small file beside it, `FILE.millstream-progress`, there while it is not through."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

SUFFIX = ".millstream-progress"


class ProgressUnusable(Exception):
    """What stands beside the file does not belong to this run; the message says why and what to do."""


@dataclass(slots=True)
class Progress:
    """Where a run stands; changed by the run as it goes, written now and then."""

    digest: str
    """Of the file's content."""
    model_id: str
    appended_to: int = 0
    """Line up to which everything was appended, or skipped."""
    collected_to: int = 0
    """The same for what was answered."""
    appended: int = 0
    skipped: int = 0
    answered: int = 0
    lost: int = 0
    """Left the lane without a reply that could still be read."""
    failed: Counter[str] = field(default_factory=Counter)
    """Reason -> requests that ended with it."""
    results: str = ""
    """Where the results go."""
    results_bytes: int = 0

    @property
    def collected(self) -> int:
        """Requests whose end is known."""
        return self.answered + self.lost + self.failed.total()

    @classmethod
    def read(cls, path: Path, digest: str, model_id: str) -> Progress | None:
        """What an earlier run of this file left, None where it left nothing. Raises ProgressUnusable."""
        beside = _beside(path)
        try:
            content: Any = json.loads(beside.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise ProgressUnusable(f"{beside} can't be read: {error}; remove it to start anew") from None
        kinds = {each.name: str if each.type == "str" else int for each in fields(cls) if each.name != "failed"}
        if (
            not isinstance(content, dict)
            or content.keys() != {*kinds, "failed"}
            or not all(isinstance(content[name], kind) for name, kind in kinds.items())
            or not isinstance(content["failed"], dict)
        ):
            raise ProgressUnusable(f"{beside} is not what a run leaves; remove it to start anew")
        found = cls(**{**content, "failed": Counter(content["failed"])})
        if found.digest != digest:
            raise ProgressUnusable(f"{path} has changed since it was interrupted; remove {beside} to start anew")
        if found.model_id != model_id:
            raise ProgressUnusable(f"{path} was interrupted on its way to {found.model_id}, not {model_id}")
        return found

    def write(self, path: Path) -> None:
        """All of it or nothing, by rename. Raises OSError."""
        beside = _beside(path)
        new = beside.with_name(f".{beside.name}-{os.getpid()}")
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        try:
            new.write_text(json.dumps(content))
            new.replace(beside)
        finally:
            new.unlink(missing_ok=True)

    def remove(self, path: Path) -> None:
        """Raises OSError."""
        _beside(path).unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)
