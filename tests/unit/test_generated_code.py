"""The generated code that is committed is what the protos say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROTOS = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "protos").glob("*.proto"))
GENERATED = ("protos/*_pb2.py", "protos/*_pb2.pyi", "protos/*_pb2_grpc.py")


def generated_in(root: Path) -> dict[str, str]:
    """Each generated file's text, by its path under `root`."""
    paths = [path for pattern in GENERATED for path in root.glob(pattern)]
    return {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in paths}


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What `make proto` writes now, in a folder of its own."""
    out = tmp_path_factory.mktemp("generated")
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I."),
            *(f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")),
            *PROTOS,
        ],
        cwd=ROOT,
        check=True,
    )
    return generated_in(out)


def test_every_proto_has_its_generated_code_committed_and_no_other(fresh: dict[str, str]) -> None:
    assert sorted(fresh) == sorted(generated_in(ROOT))


@pytest.mark.parametrize("proto", PROTOS)
def test_generated_code_equals_what_the_proto_generates_now(proto: str, fresh: dict[str, str]) -> None:
    """A difference means: run `make proto` and commit what it wrote."""
    stem = proto.removesuffix(".proto")
    names = [f"{stem}_pb2.py", f"{stem}_pb2.pyi", f"{stem}_pb2_grpc.py"]
    committed = generated_in(ROOT)
    assert {name: fresh[name] for name in names} == {name: committed.get(name) for name in names}
