"""How much memory an artifact takes on its way to a loader: its own size once, whichever way it came."""

from __future__ import annotations

import hashlib
import io
import socket
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import joblib
import numpy as np
import pytest
import redis

from consumers.model.formats import load_artifact
from consumers.trial.attempt import Gone
from consumers.trial.warden import receive
from consumers.worker.artifacts import ArtifactOutOfReach, ArtifactRefused, fetch
from consumers.worker.assembly import Assembly
from contract.keys import Keys
from contract.record import Artifact
from tests.servers import RedisServer

pytestmark = pytest.mark.integration

MB = 1 << 20
ROOT = Path(__file__).parents[2]

FETCHES = """
import sys
from io import BytesIO
from consumers.worker.artifacts import fetch
from contract.connection import connect
from contract.keys import Keys
from contract.record import Artifact

def most():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024

url, prefix, sha256, size, chunks = sys.argv[1:]
client = connect(url)
client.ping()
before = most()
content = fetch(client, Keys(prefix), Artifact("a", sha256, int(size), int(chunks)))
reader = BytesIO(content)
assert len(reader.read()) == int(size)
print(most() - before)
"""


@pytest.fixture
def keys(redis_client: redis.Redis, prefix: str) -> Iterator[Keys]:
    yield Keys(prefix)
    for key in redis_client.scan_iter(f"{prefix}:*"):
        redis_client.delete(key)


def put(client: redis.Redis, keys: Keys, *chunks: bytes) -> Artifact:
    """An artifact of these chunks."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    for number, chunk in enumerate(chunks):
        client.set(keys.chunk(digest.hexdigest(), number), chunk)
    return Artifact("model.joblib", digest.hexdigest(), sum(map(len, chunks)), len(chunks))


@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak is read from /proc")
def test_fetching_takes_the_memory_of_the_artifact_once(
    valkey: RedisServer, redis_client: redis.Redis, keys: Keys
) -> None:
    """200 MB in chunks of 8 MB, by the peak of a process that does nothing else; a few chunks are on their way."""
    chunk, count = bytes(8 * MB), 25
    digest = hashlib.sha256()
    for _ in range(count):
        digest.update(chunk)
    for number in range(count):
        redis_client.setrange(keys.chunk(digest.hexdigest(), number), len(chunk) - 1, b"\0")
    artifact = Artifact("model.joblib", digest.hexdigest(), count * len(chunk), count)
    words = [valkey.url, keys.prefix, artifact.sha256, str(artifact.size), str(artifact.chunks)]
    done = subprocess.run([sys.executable, "-c", FETCHES, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert 1.0 <= int(done.stdout) / artifact.size < 1.25


def test_what_was_fetched_is_what_was_put(redis_client: redis.Redis, keys: Keys) -> None:
    for chunks in ([b"first", b"second", b"th"], [b""], [b"x"]):
        assert fetch(redis_client, keys, put(redis_client, keys, *chunks)) == b"".join(chunks)


@pytest.mark.parametrize("size", [10, 12])
def test_an_artifact_of_another_size_than_recorded_is_refused(redis_client: redis.Redis, keys: Keys, size: int) -> None:
    """Though its digest is right: of a buffer that is not full nobody has checked the rest."""
    artifact = put(redis_client, keys, b"elevenbytes")
    with pytest.raises(ArtifactRefused, match="not the file that was recorded"):
        fetch(redis_client, keys, Artifact(artifact.name, artifact.sha256, size, 1))


def test_an_artifact_that_no_memory_holds_is_refused(redis_client: redis.Redis, keys: Keys) -> None:
    artifact = put(redis_client, keys, b"small")
    with pytest.raises(ArtifactRefused, match="there is no memory for them"):
        fetch(redis_client, keys, Artifact(artifact.name, artifact.sha256, 1 << 60, 1))


def test_a_missing_chunk_may_come_yet(redis_client: redis.Redis, keys: Keys) -> None:
    artifact = put(redis_client, keys, b"one", b"two")
    redis_client.delete(keys.chunk(artifact.sha256, 1))
    with pytest.raises(ArtifactOutOfReach, match="chunk 1 of model"):
        fetch(redis_client, keys, artifact)


def peak(size: int) -> float:
    """The most that Python's allocator held since it is traced, in sizes."""
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return most / size


def test_a_trial_takes_a_request_in_one_buffer() -> None:
    size = 32 * MB
    ours, theirs = socket.socketpair()
    with ours, theirs:
        content = bytes(size)
        sends = threading.Thread(target=theirs.sendall, args=(content,))
        tracemalloc.start()
        sends.start()
        received = receive(ours, size)
        sends.join()
        assert peak(size) < 1.1
        assert received == content
        theirs.close()
        with pytest.raises(Gone):
            receive(ours, 1)


def test_a_buffer_that_was_written_in_place_is_handed_out_whole() -> None:
    assembly = Assembly(6)
    with assembly.space() as space:
        space[:3] = b"abc"
    assert assembly.whole() == b"abc\0\0\0"


def test_a_pickle_is_read_where_its_bytes_are() -> None:
    """What loading takes is the array in it, and no other copy of the file."""
    file = io.BytesIO()
    joblib.dump(np.ones(4 * MB), file)
    content = file.getvalue()
    load_artifact("warm.joblib", b"cbuiltins\nlist\n.")  # what is imported first is not counted
    tracemalloc.start()
    loaded, _ = load_artifact("model.joblib", content)
    assert peak(len(content)) < 1.3
    assert loaded.sum() == 4 * MB
