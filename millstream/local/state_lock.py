"""Who owns a state directory: a lock that every child inherits, so it is free exactly when the last one is gone."""

from __future__ import annotations

import fcntl
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

from millstream.local.alive import start_mark
from millstream.local.state_dir import Running, StateDir, StateDirError, replace_file

# sun_path holds 108 bytes on Linux and 104 on macOS, its final NUL included.
_LONGEST_SOCKET_PATH = 100
_SOCKET_DIR = re.compile(r"millstream-[A-Za-z0-9_]{8}")


class StateDirInUse(StateDirError):
    """Somebody else owns the state directory; pid is the living owner's, or None where only its children are left."""

    def __init__(self, message: str, pid: int | None) -> None:
        super().__init__(message)
        self.pid = pid


@dataclass(frozen=True, slots=True)
class Sockets:
    """The unix sockets of one running Millstream, in a folder that only its user may enter."""

    folder: Path

    @property
    def redis(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def sink(self) -> Path:
        return self.folder / "sink.sock"

    @property
    def registry(self) -> Path:
        return self.folder / "registry.sock"

    @classmethod
    def choose(cls, state: StateDir) -> Sockets:
        """In the state directory, or in a new short folder where its path is too long for a socket.

        Raises StateDirError where no path is short enough.
        """
        for folder in (state.path, Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108
            inside = folder if folder == state.path else folder / "millstream-12345678"
            if len(os.fsencode(cls(inside).registry)) > _LONGEST_SOCKET_PATH:
                continue
            return cls(folder if folder == state.path else Path(tempfile.mkdtemp(prefix="millstream-", dir=folder)))
        raise StateDirError(
            f"a unix socket's path may have {_LONGEST_SOCKET_PATH} bytes, and {state.path} and the temporary folder "
            f"{tempfile.gettempdir()} are both longer: choose a shorter --state-dir or set TMPDIR to a short folder"
        )

    def remove(self, state: StateDir) -> None:
        """Remove the sockets and, where it was made for them, their folder."""
        for socket in (self.redis, self.sink, self.registry):
            with suppress(OSError):
                socket.unlink()
        if self.folder != state.path and _SOCKET_DIR.fullmatch(self.folder.name):
            with suppress(OSError):
                self.folder.rmdir()


@dataclass(frozen=True, slots=True)
class _Owner:
    pid: int
    mark: str
    sockets: str = ""

    def alive(self) -> bool:
        return start_mark(self.pid) == self.mark


class StateLock:
    """A state directory that is ours; close() gives it up once the last child that inherited `fd` is gone too."""

    def __init__(self, state: StateDir, fd: int, sockets: Sockets) -> None:
        self.state = state
        self.fd = fd
        self.sockets = sockets

    @classmethod
    def take(cls, state: StateDir, *, wait: float = 15.0, on_wait: Callable[[str], None] | None = None) -> StateLock:
        """Own the directory, which create() has made.

        Where a living `up` owns it: refused at once. Where only children of an ended one are left: they are on
        their way out, so it waits for them up to `wait` seconds and tells `on_wait` once.
        Raises StateDirInUse, or StateDirError where the file system can't lock.
        """
        try:
            fd = os.open(state.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StateDirError(f"{state.lock_file} can't be opened: {error.strerror}") from None
        try:
            _acquire(state, fd, wait, on_wait)
            before = _read_owner(fd)
            if before is not None and before.sockets:
                Sockets(Path(before.sockets)).remove(state)
            sockets = Sockets.choose(state)
            owner = _Owner(os.getpid(), start_mark(os.getpid()) or "", os.fspath(sockets.folder))
            _write_owner(fd, owner)
            state.running_file.unlink(missing_ok=True)
        except BaseException:
            os.close(fd)
            raise
        return cls(state, fd, sockets)

    def announce(self, addresses: Mapping[str, str]) -> Running:
        """Write running.json, so that other commands find this one. Raises StateDirError."""
        found = Running(
            pid=os.getpid(),
            mark=start_mark(os.getpid()) or "",
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            addresses=addresses,
        )
        try:
            replace_file(self.state.running_file, found.encode())
        except OSError as error:
            raise StateDirError(f"{self.state.running_file} can't be written: {error.strerror}") from None
        return found

    def close(self) -> None:
        """Take back what was announced and give up the lock; a second call does nothing."""
        if self.fd < 0:
            return
        with suppress(OSError):
            self.state.running_file.unlink(missing_ok=True)
        self.sockets.remove(self.state)
        os.close(self.fd)
        self.fd = -1

    def __enter__(self) -> StateLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _acquire(state: StateDir, fd: int, wait: float, on_wait: Callable[[str], None] | None) -> None:
    give_up = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        except OSError as error:
            raise StateDirError(
                f"{state.path} is on a file system that can't lock files ({error.strerror}): "
                "choose a folder on a local disk with --state-dir"
            ) from None
        else:
            return
        owner = _read_owner(fd)
        if owner is not None and owner.alive():
            raise StateDirInUse(
                f"{state.path} is in use by a running `millstream up` (pid {owner.pid}): "
                f"stop it with `kill {owner.pid}`, or choose another folder with --state-dir",
                owner.pid,
            )
        if time.monotonic() >= give_up:
            raise StateDirInUse(
                f"processes of an earlier `millstream up` still hold {state.path} after {wait:g} s: "
                f"`fuser {state.lock_file}` names them; end them, or choose another folder with --state-dir",
                None,
            )
        if on_wait is not None:
            on_wait(f"waiting for the last processes of an earlier `millstream up` in {state.path} to end")
            on_wait = None
        time.sleep(0.05)


def _read_owner(fd: int) -> _Owner | None:
    # A new owner writes after it has locked: until then the words are its forerunner's, or half written.
    try:
        found = json.loads(os.pread(fd, 8192, 0))
        return _Owner(int(found["pid"]), str(found["mark"]), str(found["sockets"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_owner(fd: int, owner: _Owner) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps({"pid": owner.pid, "mark": owner.mark, "sockets": owner.sockets}).encode(), 0)
