"""A trial by another user, without network: what a hostile version reaches there, and what it reaches without that."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from contract import trust
from contract.settings import Settings
from millstream.roles import THREAD_LIMITS
from millstream.trial import trials
from tests.conditions import eventually
from tests.servers import ROOT
from tests.trial_models import dumped, linear, on_trial, runs, signature

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

SOMEBODY = 65533
"""A user that owns nothing."""
SECRET = "the-key-of-the-account"


class Apart:
    """`millstream trial` as it is deployed: a user of its own, no network; and one key, in its environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.socket = folder / "trial.sock"
        self.python = sys.executable

    def command(self, *words: str) -> list[str]:
        user = ["setpriv", f"--reuid={SOMEBODY}", f"--regid={SOMEBODY}", "--clear-groups", "--no-new-privs"]
        modules = f"{ROOT}:{sysconfig.get_path('purelib')}"
        variables = [f"PYTHONPATH={modules}", f"MILLSTREAM_AZURE_ACCOUNT_KEY={SECRET}", f"PATH={os.environ['PATH']}"]
        return ["unshare", "--net", *user, "env", "-i", *variables, self.python, "-B", *words]

    def can_run(self) -> bool:
        """Whether that user may read the interpreter and the packages: both may stand in somebody's home."""
        probe = self.command("-c", "import consumers.trial.warden, millstream.trial, millstream.cli")
        return subprocess.run(probe, capture_output=True, check=False, cwd="/").returncode == 0

    def start(self) -> subprocess.Popen[bytes]:
        words = ["-m", "millstream", "trial", "--listen", f"unix:{self.socket}"]
        with (self.folder / "log").open("wb") as log:
            return subprocess.Popen(self.command(*words), stderr=log, cwd="/")


@pytest.fixture(scope="module")
def apart() -> Iterator[Apart]:
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can start a process as another user and without network")
    for program in ("unshare", "setpriv"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed: apt-get install util-linux")
    folder = Path(tempfile.mkdtemp(prefix="trial-"))  # pytest's own folders are closed to other users
    try:
        folder.chmod(0o755)
        os.chown(folder, SOMEBODY, SOMEBODY)
        apart = Apart(folder)
        if not apart.can_run():
            apart.python = "/usr/bin/python{}.{}".format(*sys.version_info)
            if not apart.can_run():
                pytest.skip(f"another user may run neither {sys.executable} nor {apart.python} in this checkout")
        server = apart.start()
        try:
            eventually(apart.socket.exists, within=30)
            yield apart
        finally:
            server.kill()
            server.wait()
    finally:
        shutil.rmtree(folder)


def looking(key: Path, state: Path, port: int, other: Path) -> bytes:
    """A version that tries whatever it might find, and tells by its error what it reached."""
    return runs(f"""
import os, signal, socket

def reaches(what):
    try:
        return bool(what())
    except BaseException:
        return False

def read(path):
    return open(path, "rb").read()

def dialled(family, address):
    with socket.socket(family) as line:
        line.settimeout(2)
        line.connect(address)
        return True

attempts = dict(
    key=lambda: read({str(key)!r}),
    state=lambda: os.listdir({str(state)!r}),
    secret=lambda: {SECRET!r} in os.environ.values() or {SECRET!r}.encode() in read("/proc/self/environ"),
    parent=lambda: {SECRET!r}.encode() in read(f"/proc/{{os.getppid()}}/environ"),
    memory=lambda: open(f"/proc/{{os.getppid()}}/mem", "rb"),
    registry=lambda: read("/proc/{os.getpid()}/environ"),
    loopback=lambda: dialled(socket.AF_INET, ("127.0.0.1", {port})),
    outside=lambda: dialled(socket.AF_INET, ("192.0.2.1", 53)),
    unix=lambda: dialled(socket.AF_UNIX, {str(other)!r}),
    write=lambda: os.write(os.open({str(state)!r} + "/left", os.O_CREAT | os.O_WRONLY), b"x"),
    signal=lambda: os.kill({os.getpid()}, 0) or True,
)
raise ValueError("reached " + " ".join(name for name, attempt in attempts.items() if reaches(attempt)) + ".")
""")


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[bytes]:
    """What stands around is a registry's: a state directory, its key, its socket, a server on loopback."""
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    trust.private_key(state / "registry.key")
    folder = Path(tempfile.mkdtemp(prefix="state-"))  # a socket's path must be short
    try:
        path = folder / "registry.sock"
        with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as line:
            line.bind(str(path))
            line.listen()
            yield looking(state / "registry.key", state, server.getsockname()[1], path)
    finally:
        shutil.rmtree(folder)


async def test_a_hostile_version_reaches_nothing_from_there(apart: Apart, hostile: bytes) -> None:
    async with trials(Settings.read(trial_address=f"unix:{apart.socket}"), THREAD_LIMITS) as far:
        verdict = await far(signature(), on_trial({"model.joblib": hostile}))
        assert verdict.reason.endswith("ValueError: reached .")
        assert (await far(signature(), on_trial({"model.joblib": dumped(linear())}))).reason == ""


async def test_a_version_that_forks_without_end_comes_to_an_end_and_nothing_of_it_is_left(apart: Apart) -> None:
    forks = """
import os, time
made = 0
try:
    while made < 1000:
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
        made += 1
except OSError:
    raise ValueError(f"made {made // 100}xx processes")
"""
    async with trials(Settings.read(trial_address=f"unix:{apart.socket}"), THREAD_LIMITS) as far:
        verdict = await far(signature(), on_trial({"model.joblib": runs(forks)}))
    assert verdict.reason.endswith("ValueError: made 1xx processes")
    assert len(processes_of(SOMEBODY)) == 1


def processes_of(user: int) -> list[str]:
    found = []
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):  # it has gone meanwhile
            if f"Uid:\t{user}\t" in status.read_text():
                found.append(status.parent.name)
    return found


async def test_the_same_version_reaches_what_the_registry_s_own_user_may(hostile: bytes) -> None:
    """What the documentation says that `up` does not protect from; and that the test above can fail."""
    async with trials(Settings.read(), THREAD_LIMITS) as own:
        verdict = await own(signature(), on_trial({"model.joblib": hostile}))
    reached = verdict.reason.rpartition("reached ")[2].rstrip(".").split()
    assert {"key", "state", "loopback", "unix", "signal"} <= set(reached)
    assert not {"secret", "write"} & set(reached)


async def test_the_socket_of_a_killed_one_is_taken_over_and_that_of_a_living_one_is_not(apart: Apart) -> None:
    second = apart.start()
    assert second.wait(30) == 5
    assert "no other warden listens" in (apart.folder / "log").read_text()
    address = apart.socket
    other = Apart(apart.folder)
    other.python = apart.python
    other.socket = address.with_name("other.sock")
    first = other.start()
    eventually(other.socket.exists, within=30)
    first.kill()
    first.wait()
    third = other.start()
    try:
        async with trials(Settings.read(trial_address=f"unix:{other.socket}"), THREAD_LIMITS) as far:
            eventually(lambda: "trials at" in (other.folder / "log").read_text(), within=30)
            assert (await far(signature(), on_trial({"model.joblib": dumped(linear())}))).reason == ""
    finally:
        third.kill()
        third.wait()
