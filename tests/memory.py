"""How much memory each process takes, measured: `python -m tests.memory` writes the tables of docs/memory.md.

A page that several processes share counts in each by its part (PSS, the proportional set size), so the numbers of a
table may be added up. What a process had at most is its peak of resident pages, shared ones counted whole.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import joblib
import numpy as np
from sklearn.ensemble import ExtraTreesClassifier

from loadgen.bench.launches import role_of
from millstream.stock import write_stock

MB = 1e6
ROWS, FEATURES, TREES = 40_000, 20, 20
"""Of the forest: about 100 MB of it."""
REST_S = 10.0
"""How long everything is left alone before it is measured: the process that tried the versions has ended by then."""


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


def measured(folder: Path, **settings: object) -> list[Reading]:
    """Everything up in a process of its own, serving and at rest: each of its processes, `up` first."""
    state = Path(tempfile.mkdtemp(dir=folder))
    told = {"state_dir": state, "listen": "127.0.0.1:0", **settings}
    env = {f"MILLSTREAM_{name.upper()}": str(value) for name, value in told.items()}
    command = [sys.executable, "-m", "millstream", "up"]
    with subprocess.Popen(command, env={**os.environ, **env}, stderr=subprocess.PIPE, text=True) as up:
        assert up.stderr is not None
        try:
            if not any(line.startswith("serving") for line in up.stderr):
                raise SystemExit("it did not come to serve")
            time.sleep(REST_S)
            return [reading("up", up.pid), *_readings(up.pid)]
        finally:
            up.terminate()


def _readings(up: int) -> list[Reading]:
    found = []
    names: Counter[str] = Counter()
    for pid in _children(up):
        role = role_of(Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8").split("\0"))
        name = "redis" if role == "up" else role  # the keeper, which is known by the server below it alone
        names[name] += 1
        name += f"-{names[name]}" if name == "worker" else ""
        found.append(reading(name, pid))
        found += [reading(f"{name}: {_name(each)}", each) for each in _below(pid)]
    return found


def _below(pid: int) -> list[int]:
    """The server that its keeper keeps, the trial of versions while there is one: children, and theirs."""
    return [each for child in _children(pid) for each in (child, *_below(child))]


def _children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sorted(int(word) for task in tasks for word in (task / "children").read_text().split())


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


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="memory-"))
    try:
        show("At rest, with the stock models", measured(folder, workers=1))
        write_stock(folder / "stock")
        one = shutil.copytree(folder / "stock" / "credit_risk" / "1.0.0", folder / "one" / "credit_risk" / "1.0.0")
        show("At rest, with one of them", measured(folder, store_url=str(one.parents[1]), workers=1))
        store = folder / "store"
        size = write_forest(store)
        forest = f"A forest of {size / MB:.0f} MB"
        for workers in (1, 2, 4):
            names = f"{workers} worker" + "s" * (workers > 1)
            show(f"{forest}, {names}", measured(folder, store_url=str(store), workers=workers))
        plain = measured(folder, store_url=str(store), workers=1, compile_models=False)
        show(f"{forest}, 1 worker, not compiled", plain)
        left = measured(folder, store_url=str(store), workers=4, big_model_bytes=size // 2)
        show(f"{forest}, 4 workers, above `big_model_bytes`", left)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
