"""The allocator of whatever a request passes through: mimalloc, where the extra `fast` has brought it.

Which malloc a process has is settled before its program begins, by LD_PRELOAD. So children of `up` get the variable in
their environment and hand it on, to the embedded server too; a role that was started alone becomes itself again, once,
with the variable set. The registry does nothing for a request, and stays with the C library's malloc, which takes less
memory. What is confined starts with a bare environment and so stays with it too: trials, and SQL over the event log.
Their limits are on address space, of which mimalloc reserves more than it takes.
"""

from __future__ import annotations

import os
import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from contract.settings import Settings

PRELOAD = "LD_PRELOAD"
_PACKAGE = "cmeel-mimalloc"
_FILE = "cmeel.prefix/lib/libmimalloc.so"
_OPTIONS = {
    # No huge pages for heaps of a few megabytes: they took a third more memory at rest, for nothing that stood out.
    "MIMALLOC_ARENA_EAGER_COMMIT": "0",
}


@cache
def library() -> Path | None:
    """mimalloc in this Python's packages; None where it is not installed, or LD_PRELOAD can't name its place."""
    if sys.platform != "linux":
        return None
    try:
        path = Path(str(distribution(_PACKAGE).locate_file(_FILE))).absolute()
    except PackageNotFoundError:
        return None
    return path if path.is_file() and not re.search(r"[\s:$]", str(path)) else None


def preloading(settings: Settings) -> dict[str, str]:
    """What a child's environment takes to have it, beside its parent's; nothing where there is nothing to add.

    An LD_PRELOAD that is there already stays as it is: it is its owner's choice, or this one, handed on.
    """
    if settings.allocator == "system" or PRELOAD in os.environ or (path := library()) is None:
        return {}
    options = {name: value for name, value in _OPTIONS.items() if name not in os.environ}
    return {PRELOAD: str(path), **options}


def preloaded(settings: Settings) -> Settings:
    """The same settings, in a process that has it: this one begins anew where it does not.

    Pid, parent and open descriptors stay, so whoever started it sees nothing of that.
    """
    if added := preloading(settings):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, **added})  # noqa: S606 - the program that runs
    return settings


def in_words(settings: Settings) -> str:
    """Which allocator processes that are started here have."""
    if set_already := os.environ.get(PRELOAD):
        return f"as LD_PRELOAD says: {set_already}"
    if settings.allocator == "system":
        return "the C library's, as set"
    if library() is None:
        return "the C library's"
    return f"mimalloc {distribution(_PACKAGE).version}"
