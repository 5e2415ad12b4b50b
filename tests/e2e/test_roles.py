"""A role started by hand that can't do its part: one plain sentence, exit code 5, and no traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from millstream.local.allocator import library
from tests.e2e.front_door import START_S, has_mimalloc, run
from tests.servers import LOOPBACK, ROOT, free_port

NOWHERE = f"redis://{LOOPBACK}:1"
"""Of no interest to what fails before Redis is asked; nobody listens on port 1."""


def spoil(state: Path, name: str) -> Path:
    """A file that is not what its name says."""
    path = state / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"this is something else\n" * 400)
    return path


def refused(*words: str | Path) -> str:
    """What the command says; it must end with 5 and without a traceback."""
    done = run(*words, "--redis-url", NOWHERE)
    assert "Traceback" not in done.stderr
    assert done.returncode == 5, done.stderr
    return done.stderr.splitlines()[-1]


def test_a_gateway_without_redis_says_so_when_its_patience_ends() -> None:
    """Half a minute of it, in which a Redis in a container next door may come up; here it is shortened."""
    shortened = "import gateway.app; gateway.app.CONNECT_S = 0.3; from millstream.cli import main; main()"
    url = f"redis://:secret@{LOOPBACK}:{free_port()}"
    done = subprocess.run(
        [sys.executable, "-c", shortened, "gateway", "--redis-url", url, "--listen", f"{LOOPBACK}:0"],
        capture_output=True,
        text=True,
        timeout=START_S,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 5
    expected = f"Redis at {url.replace('secret', '***')} could not be reached within 0.3 s"
    assert done.stderr.splitlines()[-1] == expected
    assert "waiting for Redis" in done.stderr
    assert "secret" not in done.stderr


@pytest.mark.skipif(library() is None, reason="mimalloc comes with the extra `fast`, on Linux")
@pytest.mark.parametrize(
    ("told", "has_it"),
    [({}, True), ({"MILLSTREAM_ALLOCATOR": "system"}, False), ({"LD_PRELOAD": "libm.so.6"}, False)],
    ids=["not told", "switched off", "with a library of the user's"],
)
@pytest.mark.parametrize("words", [("gateway",), ("gateway", "--state-dir", ".")], ids=["by command", "as a child"])
def test_a_role_that_is_started_alone_begins_anew_with_the_faster_allocator(
    words: tuple[str, ...], told: dict[str, str], has_it: bool, tmp_path: Path
) -> None:
    """It is looked at while it waits for a Redis that never comes."""
    with subprocess.Popen(
        [sys.executable, "-m", "millstream", *words],
        env={**os.environ, "PYTHONPATH": str(ROOT), "MILLSTREAM_REDIS_URL": NOWHERE, **told},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
    ) as role:
        try:
            assert role.stderr is not None
            assert any("waiting for Redis" in line for line in role.stderr)
            assert has_mimalloc(role.pid) == has_it
        finally:
            role.kill()


def test_a_worker_without_the_registry_s_key_says_where_it_looked(tmp_path: Path) -> None:
    said = refused("worker", "--state-dir", tmp_path)
    assert said.startswith(f"{tmp_path / 'keys/registry.pub'} holds no Ed25519 public key")


@pytest.mark.parametrize(
    ("role", "name"),
    [(("sink",), "events.duckdb"), (("registry", "run", "--store", "."), "registry.duckdb")],
    ids=["sink", "registry"],
)
def test_a_database_that_is_none_is_named(role: tuple[str, ...], name: str, tmp_path: Path) -> None:
    path = spoil(tmp_path, name)
    said = refused(*role, "--state-dir", tmp_path)
    assert str(path) in said
    assert path.read_bytes().startswith(b"this is something else")


def test_a_registry_with_a_spoilt_key_names_it(tmp_path: Path) -> None:
    path = spoil(tmp_path, "keys/registry.key")
    said = refused("registry", "run", "--store", tmp_path, "--state-dir", tmp_path)
    assert said.startswith(f"{path} holds no Ed25519 private key")


def test_a_registry_with_a_store_of_no_known_kind_says_which_there_are(tmp_path: Path) -> None:
    said = refused("registry", "run", "--store", "s3://models", "--state-dir", tmp_path)
    assert "s3://models" in said
    assert "azure://" in said


def test_a_registry_without_a_store_says_how_to_name_one(tmp_path: Path) -> None:
    assert "--store DIR" in refused("registry", "run", "--state-dir", tmp_path)


@pytest.mark.parametrize("role", [("sink",), ("registry", "run", "--store", ".")], ids=["sink", "registry"])
def test_an_address_that_is_taken_is_named(role: tuple[str, ...], tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        address = f"{LOOPBACK}:{taken.getsockname()[1]}"
        said = refused(*role, "--state-dir", tmp_path, "--listen", address)
    assert f"listen on {address}" in said


def test_without_redis_and_without_a_running_up_every_role_says_what_to_start(tmp_path: Path) -> None:
    done = run("sink", "--state-dir", tmp_path)
    assert done.returncode == 5
    assert done.stderr.splitlines()[-1].startswith(f"nothing is running in {tmp_path}")


def test_a_trial_without_a_place_to_listen_says_what_is_expected() -> None:
    for words, expected in (
        ((), "--listen unix:/path"),
        (("--listen", "127.0.0.1:7000"), "expected unix:/path"),
        (("--listen", "unix:/no/such/folder/trial.sock"), "expected a folder that exists"),
    ):
        done = run("trial", *words)
        assert (done.returncode, "Traceback" in done.stderr) == (5, False), done.stderr
        assert expected in done.stderr
