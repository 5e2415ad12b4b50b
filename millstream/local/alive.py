"""Telling a living process from another one that was given its number later."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def start_mark(pid: int) -> str | None:
    """When that process started, in its system's own words; None if it is gone or a zombie.

    The pid and the mark together name one process: numbers are used again, and a state directory may be old.
    """
    if pid <= 0:
        return None
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        except OSError:
            return None
        # The name in field 2 may hold spaces and parentheses; what follows the last ")" starts with field 3.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZXx" else f"tick {fields[19]}"
    ps = shutil.which("ps") or "/bin/ps"
    listed = subprocess.run([ps, "-o", "state=,lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    state, _, began = listed.stdout.strip().partition(" ")
    return None if not state or state.startswith("Z") else began.strip()
