"""Where versions are tried: the registry's own warden, or one that listens for a registry, with nothing of its own.

A warden starts as a fresh interpreter with an empty environment, and finds the same modules as the process that
started it: what a worker can import it can import, whether Millstream is installed or run from a checkout.
"""

from __future__ import annotations

import json
import os
import socket
import stat
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from contract.settings import Settings
from contract.trial import in_words

if TYPE_CHECKING:
    from registry.trial import Trials

UNIX = "unix:"
_BACKLOG = 4
# -I alone would leave out the folder of a checkout and what PYTHONPATH names, or take another checkout's.
_BOOT = (
    "import json, sys; sys.path = json.loads(sys.argv[1]); from consumers.trial.warden import main; main(sys.argv[2:])"
)


class NoPlaceToListen(Exception):
    """The socket can't be had; the message says why."""


def warden_command(how: str, fd: str, settings: Settings) -> list[str]:
    """What starts a warden: `answer` or `serve`, on the socket `fd`."""
    places = [str(Path(each).absolute()) for each in sys.path]
    limits = [str(settings.trial_seconds), str(int(settings.trial_memory))]
    return [sys.executable, "-I", "-B", "-X", "utf8", "-c", _BOOT, json.dumps(places), how, fd, *limits]


def trials(settings: Settings, ones: Sequence[str]) -> AbstractAsyncContextManager[Trials]:
    """A registry's trials, as the settings say; `ones` are the variables that a warden of its own has, each set to 1.

    Raises NoPlaceToListen where `trial_address` is none.
    """
    from registry.trial import FarTrials, OwnTrials  # with Redis and more, which a warden's beginning can do without

    if settings.trial_address:
        return nullcontext(FarTrials(unix_path(settings.trial_address), settings.trial_seconds))
    command = warden_command("answer", "{fd}", settings)
    return OwnTrials(command, dict.fromkeys(ones, "1"), settings.trial_seconds)


def replays(settings: Settings, ones: Sequence[str], trial: Trials) -> AbstractAsyncContextManager[Trials]:
    """Where recorded requests are replayed: beside `trial`, so that no trial waits for them.

    A warden that listens elsewhere does one thing at a time in any case, so it is that one.
    """
    return nullcontext(trial) if settings.trial_address else trials(settings, ones)


def serve(settings: Settings, ones: Sequence[str], on_ready: Callable[[], None]) -> NoReturn:
    """Becomes a warden that listens at `trial_address`, with `ones` as above; raises NoPlaceToListen."""
    line = _listen(unix_path(settings.trial_address))
    line.set_inheritable(True)
    on_ready()
    sys.stderr.write(
        f"trials at {settings.trial_address}, each of {settings.trial_seconds:g} s "
        f"and {in_words(settings.trial_memory)} of memory at most\n"
    )
    sys.stderr.flush()
    command = warden_command("serve", str(line.fileno()), settings)
    os.execve(command[0], command, dict.fromkeys(ones, "1"))  # noqa: S606 - this process becomes it


def unix_path(address: str) -> str:
    """The path in `unix:/path`; raises NoPlaceToListen."""
    path = address.removeprefix(UNIX)
    if not address.startswith(UNIX) or not path.startswith("/") or len(os.fsencode(path)) > 100:
        raise NoPlaceToListen(f"expected unix:/path of at most 100 characters for trials, got {address[:120]!r}")
    return path


def _listen(path: str) -> socket.socket:
    """A socket there, that whoever may enter its folder may use: the registry is another user."""
    line = socket.socket(socket.AF_UNIX)
    place = Path(path)
    try:
        if place.exists() and stat.S_ISSOCK(place.stat().st_mode) and not _answers(path):
            place.unlink()  # of a warden that was killed
        line.bind(path)
        place.chmod(0o666)
        line.listen(_BACKLOG)
    except OSError as error:
        line.close()
        raise NoPlaceToListen(
            f"cannot listen on unix:{path}: {error.strerror}; expected a folder that exists, that this user may write "
            "to, and where no other warden listens"
        ) from None
    return line


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(path) == 0
