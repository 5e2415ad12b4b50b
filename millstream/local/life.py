"""One process of a child, from its spawn through what it says of its start until it was reaped.

spawned -> progress ... -> ready (or failed) -> ended
"""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio

from millstream.local.child import Child
from millstream.local.ready import READY_FD

_SHIM = Path(__file__).with_name("shim.py")
_LOG_LIMIT = 16 * 2**20
# How long a child that said "failed" may take to end by itself before it is killed, in seconds.
_LAST_MOMENT = 1.0


@dataclass(frozen=True, slots=True)
class Log:
    """A child's log file and where this life's part of it begins."""

    path: Path
    start: int

    @classmethod
    def open(cls, path: Path) -> tuple[Log, int]:
        """The log and a descriptor to append to it; a large one is put aside as `.1` first. Raises OSError."""
        with suppress(FileNotFoundError):
            if path.stat().st_size > _LOG_LIMIT:
                path.replace(path.with_name(path.name + ".1"))
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return cls(path, os.fstat(fd).st_size), fd

    def tail(self, count: int = 12) -> tuple[str, ...]:
        """The last lines of this life, at most 8 kB of them."""
        try:
            with self.path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self.start, end - 8192))
                return tuple(file.read(8192).decode(errors="replace").splitlines()[-count:])
        except OSError:
            return ()


def spawn(child: Child, fds: tuple[int, ...], ready_fd: int, log_fd: int) -> subprocess.Popen[bytes]:
    """Start the child in a session of its own, so that Ctrl-C reaches only the one who decides the order.

    Raises OSError; RuntimeError outside of the main thread: the death signal fires when the spawning thread ends.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError("children are started from the main thread: their death signal is tied to the thread")
    tie = 0 if child.orphan_signal is None else int(child.orphan_signal)
    return subprocess.Popen(
        [sys.executable, "-I", "-S", os.fspath(_SHIM), str(os.getpid()), str(tie), "--", *child.argv],
        env={**os.environ, **child.env, READY_FD: str(ready_fd)},
        stdin=subprocess.DEVNULL,
        stdout=log_fd,
        stderr=log_fd,
        pass_fds=(*fds, ready_fd),
        start_new_session=True,
    )


class Life:
    """One process of a child; `ready` and `failure` count once `settled`, `returncode` once `ended`."""

    def __init__(self, process: subprocess.Popen[bytes], log: Log, pipe: int) -> None:
        self.process = process
        self.log = log
        self.ready = False
        self.failure = ""
        self.returncode = 0
        self.settled = anyio.Event()
        self.ended = anyio.Event()
        self.silence = 0.0
        """Seconds that the process was not heard of beyond what it had said; it was ended for that."""
        self._within = math.inf
        self._heard = time.monotonic()
        self._pipe = pipe
        self._unfinished = b""
        self._began = time.monotonic()
        self._on_settled: Callable[[], None] = lambda: None

    @classmethod
    def begin(cls, child: Child, fds: tuple[int, ...], log_path: Path) -> Life:
        """Spawn the child. Raises OSError: no such folder, or out of processes, memory or descriptors."""
        log, log_fd = Log.open(log_path)
        try:
            read_fd, write_fd = os.pipe()
            try:
                process = spawn(child, fds, write_fd, log_fd)
            except BaseException:
                os.close(read_fd)
                raise
            finally:
                os.close(write_fd)
        finally:
            os.close(log_fd)
        os.set_blocking(read_fd, False)
        return cls(process, log, read_fd)

    async def run(
        self, patience: float | None, on_settled: Callable[[], None], on_progress: Callable[[str], None]
    ) -> float:
        """Follow the process to its end and reap it; how long it lived, in seconds.

        `patience`: the longest silence before it serves, in seconds; None: it serves at once and says nothing.
        """
        self._on_settled = on_settled
        try:
            async with anyio.create_task_group() as watch:
                watch.start_soon(self._come_up, patience, on_progress)
                self.returncode = await death_of(self.process)
                watch.cancel_scope.cancel()
            # Its last words may still be in the pipe, and they say more than the way it ended.
            self._listen(on_progress)
        finally:
            os.close(self._pipe)
        self._settle(f"it {ending(self.returncode)}")
        self.ended.set()
        return time.monotonic() - self._began

    def send(self, number: int) -> None:
        """Send a signal; nothing happens where the process is gone."""
        with suppress(ProcessLookupError):
            self.process.send_signal(number)

    def _settle(self, failure: str) -> None:
        if not self.settled.is_set():
            self.ready, self.failure = not failure, failure
            self.settled.set()
            self._on_settled()

    async def _come_up(self, patience: float | None, on_progress: Callable[[str], None]) -> None:
        if patience is None:
            self._settle("")
            return
        while not self.settled.is_set():
            with anyio.move_on_after(patience) as silence:
                await anyio.wait_readable(self._pipe)
            if silence.cancelled_caught:
                self._settle(f"it said nothing for {patience:g} s")
                self.send(signal.SIGKILL)
            elif self._listen(on_progress):
                # Most likely it is dying, and then the way it ends is the better reason.
                await anyio.sleep(_LAST_MOMENT)
                self._settle("it closed its pipe without saying that it serves")
        if self.failure:
            await anyio.sleep(_LAST_MOMENT)
            self.send(signal.SIGKILL)
        else:
            await self._watch(on_progress)

    async def _watch(self, on_progress: Callable[[str], None]) -> None:
        """End the process when it said by when it would be heard of again, and was not."""
        while True:
            with anyio.move_on_after(max(0.0, self._heard + self._within - time.monotonic())):
                await anyio.wait_readable(self._pipe)
            # First what stands in the pipe: it may have been this process that slept.
            if self._listen(on_progress):
                return
            silence = time.monotonic() - self._heard
            if silence > self._within:
                self.silence = silence
                self.send(signal.SIGKILL)
                return

    def _listen(self, on_progress: Callable[[str], None]) -> bool:
        """Take in what was said; true when nothing more will come."""
        try:
            got = os.read(self._pipe, 65536)
        except BlockingIOError:
            return False
        *lines, self._unfinished = (self._unfinished + got).split(b"\n")
        for line in lines:
            word, _, text = line.decode(errors="replace").partition(": ")
            self._heard = time.monotonic()
            if word == "progress":
                on_progress(text)
            elif word == "beat":
                with suppress(ValueError):
                    self._within = float(text)
            else:
                self._settle("" if word == "ready" else text or word)
        return not got


async def death_of(process: subprocess.Popen[bytes]) -> int:
    """Wait until the process has ended, end what is left of its group, reap it; its return code (-9: SIGKILL)."""
    await _until_dead(process)
    # While it is a zombie its number can't be given to anybody else, so the group is certainly its own.
    if process.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


async def _until_dead(process: subprocess.Popen[bytes]) -> None:
    if sys.platform.startswith("linux") and hasattr(os, "pidfd_open"):
        try:
            fd = os.pidfd_open(process.pid)
        except OSError:
            pass  # An old kernel, or a sandbox that forbids it: poll.
        else:
            try:
                await anyio.wait_readable(fd)
            finally:
                os.close(fd)
            return
    while process.poll() is None:  # noqa: ASYNC110  (there is nothing to wait on here)
        await anyio.sleep(0.01)


def ending(returncode: int) -> str:
    """A return code in words."""
    if returncode >= 0:
        return f"ended with code {returncode}"
    try:
        return f"was ended by {signal.Signals(-returncode).name}"
    except ValueError:
        return f"was ended by signal {-returncode}"
