"""Keeps the embedded server up for exactly as long as anybody uses it.

    up, gateway, workers, sink, registry --- all hold the writing end of the lifeline, a pipe
    keeper -------------------------------- reads it: its end is the end of the last of them
    server -------------------------------- the keeper's child, tied to its life

The server ends after everybody else, even where all of them were killed. SIGINT, SIGTERM and SIGHUP are for those who
hold the lifeline and change nothing here; SIGUSR1 ends the server now. Where the server itself dies, the
keeper ends too, and its supervisor starts both again. The standard library alone, to stay small.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, flock

from millstream.local.ready import notify_failed, notify_progress, notify_ready

# What it has written is the kernel's already: killed after this, it loses no more than a power cut would.
_STOP_WITHIN = 8.0
# An earlier server whose keeper was killed is stopping: its last fsync may take a while.
_FORERUNNER_WITHIN = 15.0
_POLL = 0.02


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())} keeper: {text}", flush=True)


@dataclass(slots=True)
class _Wakeups:
    """Signals and the lifeline's end, as one thing to wait for."""

    lifeline: int
    read: int = field(init=False)
    over: bool = False
    child_ended: bool = False

    def __post_init__(self) -> None:
        self.read, write = os.pipe()
        os.set_blocking(self.read, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        # Handlers and not SIG_IGN: what is ignored stays so in the server.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

    def wait(self, seconds: float | None) -> None:
        """Wait for the next event; `over` and `child_ended` say what has happened up to now."""
        watched = select.poll()
        watched.register(self.read, select.POLLIN)
        if not self.over:
            watched.register(self.lifeline, select.POLLIN)
        # Nobody ever writes to the lifeline: an event there means that it has ended.
        events = watched.poll(None if seconds is None else seconds * 1000)
        self.over = self.over or any(fd == self.lifeline for fd, _ in events)
        with suppress(BlockingIOError):
            came = os.read(self.read, 4096)
            self.over = self.over or signal.SIGUSR1 in came
            self.child_ended = self.child_ended or signal.SIGCHLD in came


@dataclass(slots=True)
class _Server:
    """The server process, in a group of its own with whatever it forks to rewrite its file."""

    pid: int
    status: int | None = None

    @classmethod
    def start(cls, shim: str, argv: list[str]) -> _Server:
        """Raises OSError."""
        me = [sys.executable, "-I", "-S", shim, str(os.getpid()), str(int(signal.SIGTERM)), "--", *argv]
        # Python ignores these two for itself; the server shall not inherit that.
        default = [signal.SIGPIPE, signal.SIGXFSZ]
        return cls(os.posix_spawn(sys.executable, me, os.environ, setpgroup=0, setsigdef=default))

    def ended(self) -> bool:
        if self.status is None:
            if hasattr(os, "waitid"):
                if os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                    return False
                # A fork that rewrites the file must not outlive it: it holds the locks. Its number is not free yet.
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid == 0:
                return False
            self.status = os.waitstatus_to_exitcode(status)
        return True

    def stop(self, wakeups: _Wakeups) -> None:
        """SIGTERM makes it write and sync what it holds; SIGKILL where it takes too long."""
        for number, within in ((signal.SIGTERM, _STOP_WITHIN), (signal.SIGKILL, 5.0)):
            if self.ended():
                return
            os.kill(self.pid, number)
            give_up = time.monotonic() + within
            while not self.ended() and (left := give_up - time.monotonic()) > 0:
                wakeups.wait(min(left, 0.5))


def probe(path: str) -> tuple[bool, str]:
    """Whether the server at that socket answers, and else how far it has read its file, in words ("" unknown)."""
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(1.0)
        try:
            link.connect(path)
            link.sendall(b"PING\r\n")
            answer = link.recv(4096)
            if not answer.startswith(b"-LOADING"):
                return answer.startswith((b"+PONG", b"-NOAUTH")), ""
            link.sendall(b"INFO persistence\r\n")
            facts = dict(line.partition(b":")[::2] for line in link.recv(65536).splitlines())
        except OSError:
            return False, ""
    return False, f"reading the append-only file: {facts.get(b'loading_loaded_perc', b'0').decode()} %"


def _locked(fd: int) -> bool:
    try:
        flock(fd, LOCK_EX | LOCK_NB)
    except BlockingIOError:
        return False
    return True


def keep(lifeline: int, guard_path: str, socket_path: str, shim: str, argv: list[str]) -> int:
    """Run the server until the lifeline ends (0) or the server does (1).

    Every other descriptor that was handed to the keeper, the state directory's lock above all, goes on to the server.
    """
    wakeups = _Wakeups(lifeline)
    # The server inherits this lock: two of them must never write the same file, even where a keeper was killed.
    guard = os.open(guard_path, os.O_RDWR | os.O_CREAT, 0o600)
    give_up = time.monotonic() + _FORERUNNER_WITHIN
    wakeups.wait(0)
    told = ""
    while not _locked(guard):
        if not told:
            told = "waiting for an earlier server to end"
            notify_progress(told)
        if time.monotonic() > give_up:
            notify_failed(f"an earlier server still writes there: `fuser {guard_path}` names it; end it with kill -9")
            return 1
        wakeups.wait(_POLL)
        if wakeups.over:
            break
    if wakeups.over:
        return 0
    os.set_inheritable(guard, True)
    os.set_inheritable(lifeline, False)
    server = _Server.start(shim, argv)
    serving = False
    while not wakeups.over:
        wakeups.wait(None if serving else _POLL)
        if wakeups.child_ended and server.ended():
            how = f"code {server.status}" if (server.status or 0) >= 0 else f"signal {-(server.status or 0)}"
            _say(f"the server (pid {server.pid}) ended with {how}")
            notify_failed(f"the server ended with {how} before it served")
            return 1
        wakeups.child_ended = False
        if not serving:
            serving, progress = probe(socket_path)
            if serving:
                _say(f"the server (pid {server.pid}) serves at {socket_path}")
                notify_ready()
            elif progress and progress != told:
                told = progress
                notify_progress(progress)
    server.stop(wakeups)
    _say(f"the server (pid {server.pid}) was stopped")
    return 0


def main(argv: list[str]) -> int:
    """LIFELINE_FD GUARD_FILE SOCKET SHIM SERVER [ARG...]"""
    lifeline, guard_path, socket_path, shim, *server = argv
    ready_fd = os.environ.get("MILLSTREAM_READY_FD", "")
    if ready_fd:
        os.set_inheritable(int(ready_fd), False)
    try:
        return keep(int(lifeline), guard_path, socket_path, shim, server)
    except OSError as error:
        notify_failed(str(error))
        return 1
