"""The state directory: made for its owner alone, owned once, and found by others only while its owner lives."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from millstream.local.alive import start_mark
from millstream.local.state_dir import NotRunning, Running, StateDir, StateDirError, replace_file
from millstream.local.state_lock import Sockets, StateDirInUse, StateLock

ROOT = Path(__file__).parents[2]

# An owner that hands its lock to a child, says the child's pid, and ends as it is told to.
OWNER = """
import subprocess, sys
from pathlib import Path
from millstream.local.state_dir import StateDir
from millstream.local.state_lock import StateLock
lock = StateLock.take(StateDir(Path(sys.argv[1])).create())
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], pass_fds=[lock.fd], stdin=0)
print(child.pid, lock.sockets.folder, flush=True)
if sys.argv[2] == "stay":
    child.wait()
import os; os._exit(0)
"""


def owner(path: Path, how: str) -> tuple[subprocess.Popen[str], int, Path]:
    """An owner in another process: itself, its child's pid, its sockets' folder; both end with its stdin."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, os.fspath(path), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.fspath(ROOT)},
    )
    assert process.stdout is not None
    pid, _, folder = process.stdout.readline().strip().partition(" ")
    return process, int(pid), Path(folder)


def let_go(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    process.stdout.close()
    process.wait(10)


@pytest.fixture
def state(tmp_path: Path) -> StateDir:
    return StateDir(tmp_path / "state")


def test_create_makes_folders_for_their_owner_alone(state: StateDir) -> None:
    state.create()
    modes = {at.name: stat.S_IMODE(at.stat().st_mode) for at in (state.path, state.redis, state.keys, state.logs)}
    assert modes == {"state": 0o700, "redis": 0o700, "keys": 0o700, "logs": 0o700}


def test_create_leaves_what_is_there(state: StateDir) -> None:
    state.create()
    (state.keys / "key").write_text("kept")
    state.create()
    assert (state.keys / "key").read_text() == "kept"
    assert sorted(at.name for at in state.path.iterdir()) == ["keys", "logs", "redis"]


def test_a_relative_path_means_the_folder_where_it_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = StateDir(Path("here"))
    monkeypatch.chdir("/")
    assert state.path == tmp_path / "here"


def test_a_file_in_its_place_is_refused_by_name(state: StateDir) -> None:
    state.path.write_text("not a folder")
    with pytest.raises(StateDirError, match=r"state needs to be a folder.*--state-dir"):
        state.create()


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateDirError, match="needs to be a folder"):
        StateDir(tmp_path / "file" / "state").create()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_of_somebody_else_is_refused(state: StateDir) -> None:
    state.create()
    state.path.chmod(0o500)
    with pytest.raises(StateDirError, match="can't be written to by this user"):
        state.create()


def test_a_living_owner_refuses_the_second_at_once_and_is_named(state: StateDir) -> None:
    """The wait is an hour: only a refusal at once lets this test end."""
    first, _, _ = owner(state.path, "stay")
    try:
        with pytest.raises(StateDirInUse, match=rf"in use by a running `millstream up` \(pid {first.pid}\)") as refusal:
            StateLock.take(state, wait=3600)
        assert refusal.value.pid == first.pid
    finally:
        let_go(first)


def test_children_of_a_dead_owner_are_waited_for_and_then_refuse(state: StateDir) -> None:
    first, _, _ = owner(state.path, "leave")
    first.wait(10)
    told: list[str] = []
    try:
        with pytest.raises(
            StateDirInUse, match=r"processes of an earlier `millstream up` still hold .*fuser"
        ) as refusal:
            StateLock.take(state, wait=0.2, on_wait=told.append)
        assert refusal.value.pid is None
        assert len(told) == 1
    finally:
        let_go(first)


def test_the_lock_is_free_once_the_last_child_is_gone(state: StateDir) -> None:
    first, _, _ = owner(state.path, "leave")
    first.wait(10)
    # The end of the child comes from inside the wait, so it is this very wait that sees it.
    with StateLock.take(state, wait=30, on_wait=lambda _: let_go(first)) as lock:
        assert json.loads(state.lock_file.read_text())["pid"] == os.getpid()
        assert lock.fd >= 0


def test_close_gives_the_directory_up(state: StateDir) -> None:
    lock = StateLock.take(state.create())
    lock.announce({"gateway": "127.0.0.1:1"})
    lock.close()
    lock.close()
    assert state.running() is None
    StateLock.take(state, wait=0).close()


def test_what_was_announced_is_found(state: StateDir) -> None:
    addresses = {"gateway": "127.0.0.1:50051", "redis": "unix:///x"}
    with StateLock.take(state.create()) as lock:
        announced = lock.announce(addresses)
        assert state.running() == announced
        assert state.require_running().addresses == addresses
        assert state.require_running().pid == os.getpid()
        assert stat.S_IMODE(state.running_file.stat().st_mode) == 0o600


def test_nothing_is_running_where_nothing_ever_was(state: StateDir) -> None:
    assert state.running() is None
    with pytest.raises(NotRunning, match=r"nothing is running in .*millstream up --state-dir"):
        state.require_running()


def test_a_dead_owner_is_not_running_and_named(state: StateDir) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    state.create().running_file.write_bytes(Running(ended.pid, "tick 1", "", {}).encode())
    with pytest.raises(NotRunning, match=rf"\(pid {ended.pid}\) has ended"):
        state.require_running()


def test_another_process_with_the_owners_number_is_not_the_owner(state: StateDir) -> None:
    """Numbers are used again: here our own stands with the start of somebody else."""
    state.create().running_file.write_bytes(Running(os.getpid(), "tick 1", "", {}).encode())
    assert state.running() is None


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"pid": "x"}', b"\xff", b'{"pid":1,"mark":"","addresses":[]}']
)
def test_a_running_file_that_is_none_is_said_to_be_none(state: StateDir, content: bytes) -> None:
    state.create().running_file.write_bytes(content)
    with pytest.raises(NotRunning, match="is not what `millstream up` writes"):
        state.require_running()


def test_sockets_stand_in_the_state_directory_where_the_path_is_short(tmp_path_factory: pytest.TempPathFactory) -> None:
    with tempfile.TemporaryDirectory(prefix="ms", dir="/tmp") as short:
        state = StateDir(Path(short)).create()
        with StateLock.take(state) as lock:
            assert lock.sockets.redis == state.path / "redis.sock"


def test_a_deep_state_directory_gets_short_sockets_that_go_with_it(tmp_path: Path) -> None:
    state = StateDir(tmp_path / ("d" * 120)).create()
    with StateLock.take(state) as lock:
        folder = lock.sockets.folder
        assert max(len(os.fsencode(at)) for at in (lock.sockets.redis, lock.sockets.sink, lock.sockets.registry)) <= 100
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        lock.sockets.redis.touch()
    assert not folder.exists()


def test_short_sockets_of_a_killed_owner_are_cleared_away_by_the_next(tmp_path: Path) -> None:
    state = StateDir(tmp_path / ("d" * 120))
    first, _, folder = owner(state.path, "leave")
    first.wait(10)
    assert folder.is_dir()
    let_go(first)
    with StateLock.take(state) as lock:
        assert not folder.exists()
        assert lock.sockets.folder != folder


def test_a_folder_that_was_not_made_for_sockets_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    Sockets(tmp_path / "precious").remove(StateDir(tmp_path / "state"))
    assert (tmp_path / "precious").is_dir()


def test_replace_file_leaves_the_old_whole_where_it_fails(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(OSError, match="target"):
        replace_file(target, b"new")
    assert [at.name for at in tmp_path.iterdir()] == ["target"]


def test_a_start_mark_names_one_process_and_ends_with_it() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    mark = start_mark(process.pid)
    assert mark is not None
    assert start_mark(process.pid) == mark
    assert process.stdin is not None
    process.stdin.close()
    # Not reaped yet: a zombie runs nothing any more.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert start_mark(process.pid) is None
    process.wait()
    assert start_mark(process.pid) is None
    assert start_mark(0) is None
