"""What keeps `millstream up` from its work is said in a sentence, at once where it can be known at once."""

from __future__ import annotations

import shutil
import signal
import socket
from pathlib import Path

import pytest

from tests.conditions import eventually
from tests.e2e.front_door import FrontDoor, processes_of, run
from tests.servers import LOOPBACK, RedisServer, free_port


def test_a_port_in_use_is_named_before_anything_is_started(stock: Path, tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        address = f"{LOOPBACK}:{taken.getsockname()[1]}"
        done = run("up", "--state-dir", tmp_path, "--listen", address, "--store", stock)
    assert done.returncode == 5
    assert done.stderr == (
        f"{address} can't be listened on: another program listens there; end it, or choose another with --listen\n"
    )
    assert not (tmp_path / "logs/redis.log").exists()


@pytest.mark.parametrize("listen", ["50051", "127.0.0.1:http", "127.0.0.1:99999", "no-such-host.invalid:50051"])
def test_an_address_that_is_none_is_refused(listen: str, tmp_path: Path) -> None:
    done = run("up", "--state-dir", tmp_path, "--listen", listen)
    assert done.returncode == 5
    assert listen in done.stderr
    assert "choose another with --listen" in done.stderr


def test_a_file_in_place_of_the_state_directory_is_named(tmp_path: Path) -> None:
    place = tmp_path / "state"
    place.write_text("mine")
    done = run("up", "--state-dir", place)
    assert done.returncode == 3
    assert f"the state directory {place} needs to be a folder, and there is a file in its place" in done.stderr
    assert place.read_text() == "mine"


@pytest.mark.skipif(not Path("/sys/kernel").exists(), reason="needs a folder where not even root may write")
def test_a_state_directory_that_can_not_be_written_to_is_named() -> None:
    done = run("up", "--state-dir", "/sys/millstream-state")
    assert done.returncode == 3
    assert "/sys/millstream-state can't be written to by this user" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_redis_that_does_not_answer_is_named_at_once_without_its_password(tmp_path: Path, stock: Path) -> None:
    url = f"redis://:secret@{LOOPBACK}:{free_port()}"
    done = run("up", "--state-dir", tmp_path, "--listen", "127.0.0.1:0", "--store", stock, "--redis-url", url)
    assert done.returncode == 5
    assert done.stderr.startswith(f"Redis at {url.replace('secret', '***')} can't be used: ")
    assert "secret" not in done.stderr


def test_a_redis_that_evicts_is_refused_with_the_reason_on_the_console(tmp_path: Path, stock: Path) -> None:
    """The gateway is the one to find out, in its preflight: what it says must not stay in its log."""
    with RedisServer(tmp_path / "redis", config={"maxmemory-policy": "allkeys-lru"}) as server:
        words = ("--state-dir", tmp_path / "state", "--listen", "127.0.0.1:0", "--store", stock)
        done = run("up", *words, "--redis-url", server.url)
        assert done.returncode == 5
        assert "gateway did not start: Redis: " in done.stderr
        assert "maxmemory-policy allkeys-lru evicts accepted work; set noeviction" in done.stderr
        assert "Traceback" not in done.stderr
        assert processes_of(tmp_path / "state") == []


def test_a_store_that_comes_later_is_served_when_it_comes(stock: Path, tmp_path: Path) -> None:
    store = tmp_path / "models"
    with FrontDoor(tmp_path, "--store", store) as up:
        [problem] = [line for line in up.lines("registry") if "there is no directory" in line]
        assert f"cannot list {store}" in problem
        assert "there is no model to serve yet" in up.lines("waiting")[0]
        done = up.cli("predict", "credit_risk", "0.6", "45")
        assert done.returncode == 4
        assert "Traceback" not in done.stderr
        listed = up.cli("registry", "list")
        assert listed.returncode == 0
        assert f"the store has a problem: cannot list {store}" in listed.stderr

        store.mkdir()
        assert up.cli("registry", "sync").returncode == 0
        assert up.lines("serving") == []
        shutil.copytree(stock / "credit_risk/1.0.0", store / "credit_risk/1.0.0")
        assert up.cli("registry", "sync").returncode == 0
        eventually(lambda: up.lines("serving"), within=30)
        assert up.rows("predict", "credit_risk", "0.6", "45")[0]["version"] == "1.0.0"
        assert up.end(signal.SIGTERM) == 0


def test_ctrl_c_during_the_start_ends_it_and_leaves_nothing_behind(stock: Path, tmp_path: Path) -> None:
    up = FrontDoor(tmp_path, "--store", stock)
    try:
        up.start(until="registry")
        assert up.end(signal.SIGINT) == 0
        assert up.lines("serving") == []
        assert processes_of(up.state) == []
    finally:
        up.stop()
