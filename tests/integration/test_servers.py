"""The servers that the tests start: restarted where they were, gone with whoever started them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import redis

from tests.conditions import eventually
from tests.servers import ROOT, Azurite, RedisServer, ServerError, redis_binary, valkey_binary

pytestmark = pytest.mark.integration


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # An orphan that nobody has reaped yet is gone for all purposes but its entry.
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z"


@pytest.mark.parametrize("binary", [valkey_binary, redis_binary])
@pytest.mark.parametrize("port", [None, 0])
def test_what_was_written_is_there_after_a_kill_under_always(
    binary: Callable[[], Path], port: int | None, tmp_path: Path
) -> None:
    with RedisServer(tmp_path, config={"appendfsync": "always"}, port=port, binary=binary()) as server:
        before = server.url
        with server.client() as client:
            client.set("key", "value")
        server.kill()
        assert not server.running
        server.start()
        assert before == server.url
        with server.client(decode_responses=True) as client:
            assert client.get("key") == "value"


def test_a_paused_server_keeps_its_connections_and_answers_after_resume(tmp_path: Path) -> None:
    with RedisServer(tmp_path) as server, server.client(socket_timeout=0.2) as client:
        client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert eventually(server.answers)


def test_a_server_that_can_not_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="no-such-setting"):
        RedisServer(tmp_path, config={"no-such-setting": "1"}).start()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's own")
def test_a_server_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from tests.servers import RedisServer\n"
        "server = RedisServer(Path(sys.argv[1])); server.start()\n"
        "print(server.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    pid = int(ended.stdout)
    assert eventually(lambda: gone(pid))


def test_azurite_answers_at_its_blob_endpoint(azurite: Azurite) -> None:
    assert azurite.answers()
    assert azurite.url in azurite.connection_string
