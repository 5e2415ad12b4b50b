"""A registry that is killed while it brings a version in: the next one completes it, and serving never notices."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import pytest

from contract import trust
from contract.record import LIVE, ModelRecord
from millstream.local.state_dir import StateDir
from tests.conditions import eventually
from tests.faults import TIMEOUT_S
from tests.faults.crowd import Crowd
from tests.faults.doubling import MODEL, draft, release
from tests.faults.ledger import closed
from tests.servers import LOOPBACK, RedisServer, free_port
from tests.stage import RoleProcess, Stage

pytestmark = [pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(TIMEOUT_S)]

CHUNK_BYTES = 1000
RECORD = rb"HSET\r\n\$\d+\r\nms:catalog\r\n"
"""A record on its way to Redis."""


class Wire:
    """What stands between a registry and Redis; armed, it kills the registry where a pattern comes by, and passes on
    only what came before it."""

    def __init__(self, server: RedisServer) -> None:
        self._path = str(server.socket_path)
        self._listener = socket.create_server((LOOPBACK, 0))
        self._pattern: re.Pattern[bytes] | None = None
        self._count = 0
        self._pid = 0
        self.url = f"redis://{LOOPBACK}:{self._listener.getsockname()[1]}/0"
        threading.Thread(target=self._accept, daemon=True).start()

    def arm(self, pattern: bytes, pid: int, count: int = 1) -> None:
        """The count-th time it comes by, the process is killed; once."""
        self._pid, self._count, self._pattern = pid, count, re.compile(pattern)

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                far.connect(self._path)
                for source, target, look in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._pass_on, args=(source, target, look), daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, look: bool) -> None:
        kept = b""
        with suppress(OSError), source, target:
            while raw := source.recv(1 << 16):
                if not look or self._pattern is None:
                    kept = b""
                    target.sendall(raw)
                    continue
                # The pattern may come in pieces: what could be its beginning is looked at again.
                seen, kept = kept + raw, raw[-200:]
                for hit in self._pattern.finditer(seen):
                    self._count -= 1
                    if self._count == 0:
                        self._pattern = None
                        os.kill(self._pid, signal.SIGKILL)
                        target.sendall(raw[: max(0, hit.start() - (len(seen) - len(raw)))])
                        return
                    kept = b""
                target.sendall(raw)


class Registry(RoleProcess):
    """`millstream registry run`, which reaches Redis over a wire."""

    def __init__(self, folder: Path, settings: Mapping[str, object]) -> None:
        self._port = free_port()
        super().__init__(folder, "registry", {**settings, "registry_listen": f"{LOOPBACK}:{self._port}"})

    def command(self) -> list[str]:
        return [*super().command(), "run"]

    def answers(self) -> bool:
        with suppress(OSError):
            socket.create_connection((LOOPBACK, self._port), timeout=1.0).close()
            return True
        return False


class Library:
    """A stage with a worker and a gateway, a store, and a registry that looks into it."""

    def __init__(self, folder: Path, server: RedisServer, stage: Stage) -> None:
        self.stage = stage
        self.store = folder / "store"
        self.store.mkdir()
        self.wire = Wire(server)
        settings = {**stage.environment, "redis_url": self.wire.url, "store_url": self.store}
        self.registry = Registry(folder / "registry", {**settings, "chunk_bytes": CHUNK_BYTES, "poll_s": 0.2})
        keys = StateDir(self.registry.folder).create().keys
        for key in stage.folder.glob("registry.*"):
            shutil.copy(key, keys)
        self.public_key = trust.public_key(stage.folder / "registry.pub")

    def record(self) -> ModelRecord | None:
        raw = self.stage.redis.hget(self.stage.keys.catalog, MODEL)
        assert raw is None or isinstance(raw, bytes)
        return trust.unseal(raw, MODEL, self.public_key) if raw else None

    def is_live(self, version: str) -> bool:
        """Looks at what is offered too, each time it is asked."""
        self.check_whole()
        record = self.record()
        return record is not None and record.routing.production == version and record.versions[version].state == LIVE

    def chunks(self, sha256: str) -> int:
        """How many of an artifact's chunks are in Redis."""
        return sum(1 for _ in self.stage.redis.scan_iter(self.stage.keys.chunk(sha256, 0)[:-1] + "*", count=1000))

    def check_whole(self) -> None:
        """Asserts that each version that is offered is there to its last byte."""
        record = self.record()
        for version in record.versions.values() if record is not None else ():
            for artifact in version.artifacts:
                keys = [self.stage.keys.chunk(artifact.sha256, number) for number in range(artifact.chunks)]
                chunks = self.stage.redis.mget(keys)
                whole = b"".join(chunk for chunk in chunks if isinstance(chunk, bytes))
                assert hashlib.sha256(whole).hexdigest() == artifact.sha256, f"{version.name} is offered in part"


@pytest.fixture
def library(tmp_path: Path) -> Iterator[Library]:
    with RedisServer(tmp_path / "redis") as server, Stage(tmp_path / "stage", server.url, "ms") as stage:
        library = Library(tmp_path, server, stage)
        try:
            yield library
        finally:
            library.registry.stop()
            library.wire.close()


def test_a_registry_killed_on_the_way_of_a_version_is_followed_by_one_that_completes_it(library: Library) -> None:
    """In the middle of its chunks, between chunks and record, and between the offer and the switch."""
    stage, registry = library.stage, library.registry
    stage.worker()
    draft(library.store, "1.0.0")
    release(library.store, "1.0.0")
    registry.start()
    eventually(lambda: library.is_live("1.0.0"), within=30)
    gateway = stage.gateway(MODEL)
    before = "1.0.0"
    with Crowd([gateway.address], 20, "caller", model_id=MODEL) as crowd:
        for version, pattern, count in (
            ("1.1.0", rb"SET\r\n\$\d+\r\nms:\{SHA256\}:20\r\n", 1),
            ("1.2.0", RECORD, 1),
            ("1.3.0", RECORD, 2),
        ):
            crowd.under_way(20)
            sha256 = draft(library.store, version, 30 * CHUNK_BYTES)
            library.wire.arm(pattern.replace(b"SHA256", sha256.encode()), registry.pid, count)
            release(library.store, version)
            assert registry.wait(within=20) == -signal.SIGKILL
            library.check_whole()
            assert library.is_live(before)
            offered = library.record()
            assert offered is not None
            if version == "1.1.0":
                assert library.chunks(sha256) == 20
            else:
                assert library.chunks(sha256) > 30
            assert (version in offered.versions) == (version == "1.3.0")
            crowd.under_way(20)
            registry.kill()
            registry.start()
            eventually(lambda version=version: library.is_live(version), within=30)  # type: ignore[misc]
            before = version
        # A gateway looks at the catalogue ten times a second, and answers many times between two looks.
        versions = {"1.0.0", "1.1.0", "1.2.0", "1.3.0"}
        eventually(lambda: {event.entry.version for event in stage.events(MODEL)} == versions, within=10)
    assert {each.ended for each in crowd.told.values()} == {"OK"}
    closed(stage, MODEL, crowd.told)
