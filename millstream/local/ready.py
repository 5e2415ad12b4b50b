"""How a child tells its supervisor that it serves: lines on a pipe whose number stands in the environment.

progress: <text>    still coming up; starts the supervisor's patience anew
ready               serving
failed: <reason>    will not serve; the process ends next
beat: <seconds>     alive, and to be heard of again within so long; who serves and is not, hangs
"""

from __future__ import annotations

import os
from contextlib import suppress

READY_FD = "MILLSTREAM_READY_FD"


def notify_ready() -> None:
    """Say that this process serves, once; does nothing without a supervisor."""
    _say("ready", last=True)


def notify_ready_to_beat() -> None:
    """The same for a process that goes on to say that it lives."""
    _say("ready", last=False)


def notify_beat(within_s: float) -> None:
    """Say that this process lives and will say so again within `within_s` seconds, or hangs and is to be ended."""
    _say(f"beat: {within_s:g}", last=False)


def notify_failed(reason: str) -> None:
    """Say, once and instead of ready, why this process will not serve; does nothing without a supervisor."""
    _say(f"failed: {reason}", last=True)


def notify_progress(text: str) -> None:
    """Say how far the start has come; does nothing without a supervisor or after ready."""
    _say(f"progress: {text}", last=False)


def _say(text: str, *, last: bool) -> None:
    number = os.environ.get(READY_FD, "")
    if not number.isdigit():
        return
    fd = int(number)
    if last:
        del os.environ[READY_FD]
    # A supervisor that is gone or gave up has closed its end; that is not this process's trouble.
    with suppress(OSError):
        # Nor is one that is too busy to read: a beat that does not fit is one of many.
        os.set_blocking(fd, False)
        os.write(fd, " ".join(text.split()).encode("utf-8", "replace")[:4000] + b"\n")
    if last:
        with suppress(OSError):
            os.close(fd)
