"""A virtual environment for each peer, since no two of them agree on what they depend on."""

from __future__ import annotations

import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

INSTALL_S = 900.0
# pip would take ten times as long, and names what came from a file by its path.
_LIST = "from importlib.metadata import distributions as all; [print(f'{d.name}=={d.version}') for d in all()]"


class NotInstallable(Exception):
    """A peer's packages can't be installed here; the message says which and why."""


def environment(folder: Path, requirements: Sequence[str]) -> Path:
    """The Python of a virtual environment with these packages, made where it is not there already.

    Raises NotInstallable.
    """
    python = folder / "bin" / "python"
    stamp = folder / "requirements.txt"
    wanted = "".join(f"{requirement}\n" for requirement in requirements)
    if stamp.is_file() and stamp.read_text() == wanted and python.exists():
        return python
    # Symlinks, or a Python that is one itself would not find its library. Our pip serves them all.
    venv.EnvBuilder(clear=True, symlinks=True).create(folder)
    _pip(python, "install", "--progress-bar", "off", *requirements)
    stamp.write_text(wanted)
    return python


def versions(python: Path) -> list[str]:
    """Everything that is installed there, as `name==version`."""
    done = subprocess.run([python, "-c", _LIST], capture_output=True, text=True, timeout=60, check=True)
    return sorted(set(done.stdout.split()), key=str.lower)


def own_python() -> Path:
    """The Python that runs this: Millstream's own."""
    return Path(sys.executable)


def _pip(python: Path, *words: str) -> str:
    argv = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "--quiet", *words]
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=INSTALL_S, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise NotInstallable(f"pip {words[0]} did not end within {INSTALL_S:g} s") from None
    if done.returncode:
        # The last error is the reason; what stands before it are tries.
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise NotInstallable(errors[-1] if errors else done.stderr.strip()[-300:])
    return done.stdout
