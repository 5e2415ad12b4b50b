"""How much memory each process takes, measured: `python -m tests.memory` writes the tables of docs/memory.md.

A page that several processes share counts in each by its part (PSS, the proportional set size), so the numbers of a
table may be added up. What a process had at most is its peak of resident pages, shared ones counted whole.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import anyio
import joblib
import numpy as np
from sklearn.ensemble import ExtraTreesClassifier

from contract.settings import Settings
from millstream.up import House, running

MB = 1e6
ROWS, FEATURES, TREES = 40_000, 20, 20
"""Of the forest: about 100 MB of it."""
REST_S = 5.0
"""How long everything is left alone before it is measured."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One process, in bytes."""

    name: str
    pss: int
    own: int
    """Of these, pages that no other process has."""
    peak: int


def reading(name: str, pid: int) -> Reading:
    """What the kernel says now."""
    rollup = _kilobytes(Path(f"/proc/{pid}/smaps_rollup"))
    own = rollup["Private_Clean"] + rollup["Private_Dirty"]
    return Reading(name, rollup["Pss"], own, _kilobytes(Path(f"/proc/{pid}/status"))["VmHWM"])


def _kilobytes(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text(encoding="utf-8").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in lines if len(words) == 3 and words[2] == "kB"}


def write_forest(store: Path) -> int:
    """A forest that learnt noise by heart, as a version to serve; the bytes of its file."""
    source = np.random.default_rng(0)
    rows, labels = source.normal(size=(ROWS, FEATURES)), source.integers(0, 2, ROWS)
    forest = ExtraTreesClassifier(TREES, max_features=1, random_state=0).fit(rows, labels)
    folder = store / "forest" / "1.0.0"
    folder.mkdir(parents=True)
    joblib.dump(forest, folder / "model.joblib")
    signature = {
        "model_id": "forest",
        "version": "1.0.0",
        "trained_date": "2026-01-31",
        "status": "production",
        "azure_location": "local",
        "expected_features": [{"index": n, "name": f"f{n}", "type": "float"} for n in range(FEATURES)],
        "outputs": [{"name": "p", "call": "predict_proba", "class": 1}],
    }
    (folder / "signature.json").write_text(json.dumps(signature), encoding="utf-8")
    return (folder / "model.joblib").stat().st_size


async def measured(folder: Path, **settings: object) -> list[Reading]:
    """Everything up, serving and at rest: each of its processes."""
    state = Path(tempfile.mkdtemp(dir=folder))
    told = Settings.read(state_dir=state, listen="127.0.0.1:0", **settings)
    async with running(told, lambda _line: None) as house:
        if not await house.serving(within_s=120):
            raise SystemExit("it did not come to serve")
        await anyio.sleep(REST_S)
        return _readings(house)


def _readings(house: House) -> list[Reading]:
    found = []
    for each in house.supervisor.standings():
        if each.pid is not None:
            found.append(reading(each.name, each.pid))
            found += [reading(f"{each.name}: {_name(pid)}", pid) for pid in _children(each.pid)]
    return found


def _children(pid: int) -> list[int]:
    """Processes that a process started: the server that its keeper keeps, the registry's trial of versions."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(word) for task in tasks for word in (task / "children").read_text().split()]
    return [each for child in children for each in (child, *_children(child))]


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()


def show(title: str, readings: list[Reading]) -> None:
    """One table."""
    lines = [f"### {title}", "", "| process | PSS | of these its own alone | most it had |", "|---|---|---|---|"]
    for each in readings:
        lines.append(f"| {each.name} | {each.pss / MB:.0f} MB | {each.own / MB:.0f} MB | {each.peak / MB:.0f} MB |")
    lines += [f"| all | {sum(each.pss for each in readings) / MB:.0f} MB | | |", "", ""]
    sys.stdout.write("\n".join(lines))
    sys.stdout.flush()


async def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="memory-"))
    try:
        show("Everything at rest, with the stock models", await measured(folder, workers=1))
        store = folder / "store"
        size = write_forest(store)
        forest = f"A forest of {size / MB:.0f} MB"
        for workers in (1, 2, 4):
            names = f"{workers} worker" + "s" * (workers > 1)
            show(f"{forest}, {names}", await measured(folder, store_url=str(store), workers=workers))
        plain = await measured(folder, store_url=str(store), workers=1, compile_models=False)
        show(f"{forest}, 1 worker, not compiled", plain)
        left = await measured(folder, store_url=str(store), workers=4, big_model_bytes=size // 2)
        show(f"{forest}, 4 workers, above `big_model_bytes`", left)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    anyio.run(main)
