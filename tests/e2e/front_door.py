"""The installed command, driven as people drive it: `millstream up` and `serve` as processes, the rest as commands."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

from contract.connection import connect
from millstream.client import Client
from tests.conditions import eventually
from tests.servers import ROOT, Server

COMMAND = Path(sys.executable).with_name("millstream")
START_S = 60.0
STOP_S = 30.0
"""`up` drains for at most 10 seconds by default, and each of its groups of children takes its turn."""


def run(*words: str | Path, within: float = 60.0) -> subprocess.CompletedProcess[str]:
    """A command that ends by itself."""
    return subprocess.run(
        [COMMAND, *words],
        capture_output=True,
        text=True,
        timeout=within,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def processes_of(folder: Path) -> list[int]:
    """Whatever runs with that folder in its command line or its settings."""
    found = []
    for proc in Path("/proc").glob("[0-9]*"):
        try:
            words = (proc / "cmdline").read_bytes() + (proc / "environ").read_bytes()
            state = (proc / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:  # it has ended meanwhile
            continue
        if os.fsencode(folder) in words and state not in "ZX" and int(proc.name) != os.getpid():
            found.append(int(proc.name))
    return found


def has_mimalloc(pid: int) -> bool:
    """Whether that process allocates by it, or could."""
    return "/libmimalloc.so" in Path(f"/proc/{pid}/maps").read_text()


class FrontDoor(Server):
    """`millstream up`, or another command that serves until it is stopped; what it says stands in `log`."""

    name: ClassVar[str] = "console"

    def __init__(self, folder: Path, *words: str | Path, command: str = "up") -> None:
        super().__init__(folder)
        self.state = folder / "state"
        self.words = [command, *map(str, words), "--state-dir", str(self.state), "--listen", "127.0.0.1:0"]
        self._from = 0
        self._until: tuple[str, ...] = ()

    def command(self) -> list[str]:
        self._from = self.log.stat().st_size if self.log.exists() else 0
        return [str(COMMAND), *self.words]

    @property
    def said(self) -> str:
        """What this life of it has said on its console."""
        return self.log.read_bytes()[self._from :].decode()

    def lines(self, about: str) -> list[str]:
        """Of what it said, the lines that begin with that word."""
        return [line for line in self.said.splitlines() if line.split(maxsplit=1)[:1] == [about]]

    def answers(self) -> bool:
        return any(self.lines(word) for word in self._until)

    def start(self, within: float = START_S, *, until: str = "") -> None:
        """Returns once it says that it serves, or waits for models; or once it says a line about `until`."""
        self._until = (until,) if until else ("serving", "waiting")
        super().start(within)

    def _end(self, by: signal.Signals) -> None:
        # A folder that goes while its processes write into it would fail the next test, not this one.
        if self._child is not None and by is signal.SIGTERM and self._child.poll() is None:
            self._child.send_signal(by)
            try:
                self._child.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._child.kill()
        super()._end(signal.SIGKILL)
        eventually(lambda: not processes_of(self.state), within=STOP_S)

    def end(self, by: signal.Signals, within: float = STOP_S) -> int:
        """Sends it the signal; its exit code. Raises TimeoutExpired."""
        child = self._child
        assert child is not None
        child.send_signal(by)
        return child.wait(within)

    def cli(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return run(*words, "--state-dir", self.state)

    def rows(self, *words: str | Path) -> list[dict[str, Any]]:
        """What a command prints with --json; it must end well."""
        done = self.cli(*words, "--json")
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    @property
    def addresses(self) -> dict[str, str]:
        found: dict[str, str] = json.loads((self.state / "running.json").read_text())["addresses"]
        return found

    def client(self, timeout: float = 20.0) -> Client:
        return Client(self.addresses["gateway"], timeout=timeout)

    def pid_of(self, role: str) -> int:
        """A living process of that role."""
        pids = [pid for pid in processes_of(self.state) if f"\0millstream\0{role}\0" in _cmdline(pid)]
        assert pids, f"no {role} runs"
        return pids[0]

    def server_pid(self) -> int:
        """The embedded server itself, not its keeper."""
        with connect(self.addresses["redis"]) as client:
            server: Any = client.info("server")
        return int(server["process_id"])

    def keeper_pid(self) -> int:
        """The server's parent."""
        stat = Path(f"/proc/{self.server_pid()}/stat").read_text()
        return int(stat.rpartition(")")[2].split()[1])

    def events(self) -> int:
        return int(self.rows("events", "count")[0]["events"])


def _cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def until_gone(folder: Path, within: float) -> float:
    """Waits until no process of the folder is left; how long that took, in seconds."""
    began = time.monotonic()
    eventually(lambda: not processes_of(folder), within)
    return time.monotonic() - began
