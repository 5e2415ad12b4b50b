"""The list of promises names tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent.parent


def test_every_proof_that_is_named_exists() -> None:
    named = re.findall(
        r"`([a-z0-9_]+/test_[a-z0-9_]+\.py)::(test_[a-z0-9_]+)`", (TESTS / "faults/README.md").read_text()
    )
    assert len(named) > 40
    missing = [f"{path}::{name}" for path, name in named if name not in functions(TESTS / path)]
    assert missing == []


def functions(path: Path) -> set[str]:
    """Names of a file's functions; of a file that is gone, none."""
    tree = ast.parse(path.read_text()) if path.exists() else ast.Module([], [])
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
