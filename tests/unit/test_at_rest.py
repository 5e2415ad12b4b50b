"""What a process has imported when nobody asks anything: memory that it holds for as long as it lives."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from millstream.cli.errors import UNAVAILABLE
from tests.servers import ROOT

pytestmark = pytest.mark.slow  # each starts processes that import much

_START = """
import runpy, sys
asked = []
class Asked:
    @staticmethod
    def find_spec(name, path=None, target=None):
        asked.append(name)
sys.meta_path.insert(0, Asked)
sys.argv[0] = "millstream"
try:
    runpy.run_module("millstream", run_name="__main__")
except SystemExit as end:
    code = end.code
first = asked.index("millstream.cli")  # which tells why it ended
print(code, *sorted({name.partition(".")[0] for name in asked[:first]}))
"""
MODEL_LIBRARIES = {"joblib", "lightgbm", "onnxruntime", "pandas", "scipy", "sklearn", "torch", "treelite", "xgboost"}
SCREEN = {"matplotlib", "pygments", "rich", "typer"}


def ran(code: str, *words: str, **env: str) -> str:
    """stdout of a Python program."""
    command = [sys.executable, "-c", code, *words]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env={**os.environ, **env})
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("words", "needed", "never"),
    [
        (["gateway"], {"grpc", "redis"}, MODEL_LIBRARIES | {"azure", "duckdb"}),
        (["worker"], {"numpy", "redis"}, MODEL_LIBRARIES | {"azure", "duckdb", "grpc"}),
        (["sink"], {"duckdb", "grpc", "redis"}, MODEL_LIBRARIES | {"azure"}),
        (["registry", "run"], {"duckdb", "grpc", "redis"}, MODEL_LIBRARIES | {"azure"}),
    ],
    ids=lambda each: " ".join(each) if isinstance(each, list) else "",
)
def test_a_child_of_up_imports_what_its_role_needs_and_no_command_line(
    words: list[str], needed: set[str], never: set[str], tmp_path: Path
) -> None:
    """It gets as far as looking for Redis, and the command line explains that there is none."""
    env = {"MILLSTREAM_LOG_FORMAT": "json", "MILLSTREAM_STORE_URL": str(tmp_path)}
    code, *imported = ran(_START, *words, "--state-dir", str(tmp_path), **env).split()
    assert int(code) == UNAVAILABLE
    assert needed <= set(imported)
    assert set(imported) & (never | SCREEN) == set()


def test_a_worker_has_pandas_once_a_model_takes_a_dataframe(stock: Path) -> None:
    """scikit-learn would bring it into every worker otherwise; a model that wants it is answered as ever."""
    code = """
import sys
from pathlib import Path
from consumers.model.model import load_model
from contract.signature import parse_signature

def load(folder):
    signature, _ = parse_signature((folder / "signature.json").read_bytes())
    files = {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix == ".joblib"}
    load_model(signature, files).warm()  # checks its golden examples

before = list(sys.meta_path)
load(Path(sys.argv[1]) / "credit_risk" / "1.0.0")
print("sklearn" in sys.modules, "pandas" in sys.modules, sys.meta_path == before)
import sklearn.utils.fixes as fixes
load(Path(sys.argv[1]) / "loan_approval" / "1.0.0")
import pandas
print(fixes.pd.DataFrame is pandas.DataFrame)
"""
    assert ran(code, str(stock)).split() == ["True", "False", "True", "True"]


_STOCK = """
import sys
from pathlib import Path
import anyio
from millstream.local.state_dir import StateDir
from millstream.up import _stock
lines = []
anyio.run(_stock, StateDir(Path(sys.argv[1])), lines.append)
for line in lines:
    print(line)
assert not {"joblib", "numpy", "sklearn", "duckdb"} & set(sys.modules)
"""


def test_stock_models_are_trained_by_another_process_than_up(stock: Path, tmp_path: Path) -> None:
    (tmp_path / "models").symlink_to(stock)
    lines = ran(_STOCK, str(tmp_path)).splitlines()
    assert lines[0] == "models    credit_risk/1.0.0: there already"
    assert len(lines) == 5


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries free as they like")
def test_freed_chunks_leave_the_registry_at_once() -> None:
    """glibc keeps them once it has seen large ones come and go: a hole below what was allocated meanwhile."""
    code = """
import sys
from pathlib import Path
from consumers.worker.memory import give_back_each
if sys.argv[1] == "registry":
    give_back_each(2**20)
def held():
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) // 1024 for line in rollup.splitlines() if line.startswith("Private_Dirty:"))
before = held()
bytearray(b"x") * (24 * 2**20)
chunks = [bytearray(b"x") * (8 * 2**20) for _ in range(4)]
above = bytearray(b"x") * 200_000
del chunks
print(held() - before)
"""
    assert (int(ran(code, "registry")) < 8, int(ran(code, "other")) > 24) == (True, True)
