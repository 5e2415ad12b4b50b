"""Ties a process to its parent's life, then becomes the program named: shim.py PARENT_PID SIGNAL -- PROGRAM [ARG...]

Run as `python -I -S .../shim.py`, so it uses the standard library alone. SIGNAL 0 ties nothing.

Linux sends the death signal when the *thread* that started this process ends (prctl(2), PR_SET_PDEATHSIG), so
the main thread has to start it. The setting survives exec. Elsewhere there is no such signal and nothing is tied.
"""

from __future__ import annotations

import os
import sys

_PR_SET_PDEATHSIG = 1


def _tie(parent: int, number: int) -> None:
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "PR_SET_PDEATHSIG was refused")
    # The parent may have died before the request was made: then nobody would ever send the signal.
    if os.getppid() != parent:
        raise SystemExit("the process that started this one is gone")


def main(argv: list[str]) -> None:
    """Never returns: execs, or ends with 127 and a line on stderr."""
    if len(argv) < 4 or argv[2] != "--":
        raise SystemExit("expected: shim.py PARENT_PID SIGNAL -- PROGRAM [ARG...]")
    parent, number, program = int(argv[0]), int(argv[1]), argv[3:]
    if number:
        _tie(parent, number)
    try:
        os.execvp(program[0], program)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"can't run {program[0]}: {error.strerror}\n")
        raise SystemExit(127) from None


if __name__ == "__main__":
    main(sys.argv[1:])
