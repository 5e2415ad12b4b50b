"""A server of the race while it runs: started fresh, asked until it answers right, stopped with all its children."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from contract.connection import connect
from loadgen.bench import process_tree
from loadgen.bench.launches import Place, launch_env, one_role, role_of, state_dir
from loadgen.bench.models import BenchModel
from loadgen.bench.peers import Peer
from loadgen.bench.questions import NoAnswer, Question, WrongAnswer
from millstream.client import channel_options
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc

START_S = 60.0
STOP_S = 15.0
RECORDED_S = 10.0
PROBES = 20
IDLE_CORES = 0.1
"""A server that takes less of the machine than this has finished what it was asked."""


# Asks the kernel for a SIGTERM when we die, so that a server is never left behind, and becomes the server.
_SHIM = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(1, 15)
if os.getppid() != int(sys.argv[1]):
    sys.exit(1)
os.execvp(sys.argv[2], sys.argv[2:])
"""


class NotStarted(Exception):
    """A server that did not come up, or answered wrong; the message says what it said."""


@dataclass(slots=True)
class Server:
    """One peer with one model, running."""

    peer: Peer
    model: BenchModel
    question: Question
    place: Place
    child: subprocess.Popen[bytes]
    started_after_s: float = 0.0
    shortest_answer: int = 0
    """Bytes of the shortest right answer there can be."""

    @property
    def address(self) -> str:
        return self.place.address

    def cpu_s(self) -> Counter[str]:
        """CPU seconds so far, by role."""
        return process_tree.cpu_s(self.child.pid, role_of if self.peer.ours else one_role)

    def memory(self) -> process_tree.Memory:
        return process_tree.memory(self.child.pid)

    def settle(self, within: float, look_every: float = 0.2) -> bool:
        """Waits until it rests; whether it came to rest in time."""
        until = time.monotonic() + within
        before, seen = time.monotonic(), process_tree.total(self.cpu_s())
        while time.monotonic() < until:
            time.sleep(look_every)
            now, spent = time.monotonic(), process_tree.total(self.cpu_s())
            if (spent - seen) / (now - before) < IDLE_CORES:
                return True
            before, seen = now, spent
        return False

    def redis_bytes(self) -> int | None:
        """Redis's used_memory; None where the server has no Redis."""
        if not self.peer.ours:
            return None
        with connect(self.addresses()["redis"]) as client:
            memory: Any = client.info("memory")
        return int(memory["used_memory"])

    def recorded(self, expected: int) -> int | None:
        """Events with status OK in the log, which is given a while to hold as many as expected; None without a log."""
        if not self.peer.ours:
            return None
        address = self.addresses()["event_log"]
        until = time.monotonic() + RECORDED_S
        with grpc.insecure_channel(address, options=channel_options(address)) as channel:
            stub: Any = v1_grpc.EventLogStub(channel)
            while True:
                ok = int(stub.Count(v1.EventQuery(), timeout=30.0).by_status["OK"])
                if ok >= expected or time.monotonic() > until:
                    return ok
                time.sleep(0.2)

    def addresses(self) -> dict[str, str]:
        """Millstream's own, by role."""
        found = json.loads((state_dir(self.place.folder) / "running.json").read_text())
        addresses: dict[str, str] = found["addresses"]
        return addresses


@contextmanager
def running(peer: Peer, model: BenchModel, python: Path) -> Iterator[Server]:
    """The peer with that model, once it gives the right answer, until the block is left.

    Raises NotStarted.
    """
    with tempfile.TemporaryDirectory(prefix=f"bench-{peer.name}-", ignore_cleanup_errors=True) as name:
        place = Place(python, Path(name), *free_ports(2))
        launch = peer.launch(place, model)
        log = place.folder / "server.log"
        began = time.monotonic()
        with log.open("wb") as said:
            child = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _SHIM, str(os.getpid()), *map(str, launch.argv)],
                env=launch_env(launch),
                cwd=launch.cwd,
                # Some servers end when it is closed, so that none outlives us; the others never read it.
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=said,
                # Ctrl-C is for us: who is stopped is stopped in order.
                start_new_session=True,
            )
        server = Server(peer, model, peer.question(model), place, child)
        try:
            _until_right(server, log)
            server.started_after_s = time.monotonic() - began
            yield server
        finally:
            _stop(child)


def _until_right(server: Server, log: Path) -> None:
    until = time.monotonic() + START_S
    last = "nothing listens yet"
    while time.monotonic() < until:
        if server.child.poll() is not None:
            raise NotStarted(f"it ended with {server.child.returncode}: {_tail(log)}")
        try:
            server.question.ask(server.address)
        except NoAnswer as error:
            last = str(error)
            time.sleep(0.1)
        except WrongAnswer as error:
            raise NotStarted(str(error)) from None
        else:
            break
    else:
        raise NotStarted(f"no answer within {START_S:g} s; last: {last}; it said: {_tail(log)}")
    try:
        shortest = min(server.question.ask(server.address) for _ in range(PROBES))
        server.shortest_answer = shortest - server.question.varies
    except (NoAnswer, WrongAnswer) as error:
        raise NotStarted(f"of {PROBES} questions more, one failed: {error}") from None


def _tail(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-600:] or "(nothing)"


def _stop(child: subprocess.Popen[bytes]) -> None:
    """SIGTERM to the server, which stops its children; SIGKILL to whatever of its tree is left after a while."""
    tree = {standing.pid: standing.began for standing in process_tree.below(child.pid, process_tree.everybody())}
    if child.stdin:
        child.stdin.close()
    if child.poll() is None:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(STOP_S)
    for standing in process_tree.everybody():
        # By when it began too: the number may be another process's by now.
        if tree.get(standing.pid) == standing.began:
            with suppress(ProcessLookupError):
                os.kill(standing.pid, signal.SIGKILL)
    child.wait()


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nothing listens on just now, each another one."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
