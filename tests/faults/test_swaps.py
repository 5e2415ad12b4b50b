"""Versions change places under load: no request fails, each is answered by the version that it was pinned to, and what
is replaced leaves memory and Redis once nobody waits for it any more."""

from __future__ import annotations

import itertools
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from contract import trust
from contract.connection import living
from contract.record import ModelRecord, Routing
from millstream.local.state_dir import StateDir
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.faults import TIMEOUT_S
from tests.faults.crowd import Crowd, Pushing, Told
from tests.faults.ledger import closed
from tests.faults.test_registry import Registry
from tests.multiplying import factor, write
from tests.servers import RedisServer
from tests.stage import Stage, ask, outputs

pytestmark = [pytest.mark.faults, pytest.mark.e2e, pytest.mark.timeout(TIMEOUT_S)]

ONE, TWO = "1.0.0", "3.0.0"
MODELS = ("left", "right")
SWAPS = 50
"""Of each model."""


class Swapper:
    """A stage, and a registry over a store of versions."""

    def __init__(self, folder: Path, server: RedisServer, stage: Stage) -> None:
        self.stage = stage
        self.store = folder / "store"
        self.store.mkdir()
        settings = {**stage.environment, "store_url": self.store, "chunk_bytes": 500, "retire_after_s": 0}
        self.registry = Registry(folder / "registry", settings)
        keys = StateDir(self.registry.folder).create().keys
        for key in stage.folder.glob("registry.*"):
            shutil.copy(key, keys)
        self._public_key = trust.public_key(stage.folder / "registry.pub")
        self._closing = ExitStack()
        self.digests: dict[tuple[str, str], bytes] = {}
        self.chunk_keys: dict[tuple[str, str], list[str]] = {}

    def start(self) -> None:
        """The registry runs and has looked into the store."""
        self.registry.start()
        self._closing.callback(self.registry.stop)
        channel = grpc.insecure_channel(str(self.registry.settings["registry_listen"]))
        self._closing.callback(channel.close)
        self.calls: Any = v1_grpc.RegistryStub(channel)
        self.calls.Sync(v1.SyncRequest(), timeout=30)

    def promote(self, versions: Mapping[str, str]) -> None:
        """Model -> the version to promote; returns once these answer."""
        for model_id, version in versions.items():
            self.calls.Promote(v1.PromoteRequest(model_id=model_id, version=version, by="tests"), timeout=20)
        for model_id, version in versions.items():
            eventually(lambda model_id=model_id, version=version: self.live(model_id) == version, within=30)  # type: ignore[misc]

    def live(self, model_id: str) -> str:
        live = self.record(model_id).live
        return live.version if live else ""

    def record(self, model_id: str) -> ModelRecord:
        raw: Any = self.stage.redis.hget(self.stage.keys.catalog, model_id)
        return trust.unseal(raw, model_id, self._public_key) if raw else ModelRecord(model_id, 0, {}, Routing())

    def know(self, model_id: str) -> None:
        """Keeps in mind what the record says of its versions: later it may not."""
        for version in self.record(model_id).versions.values():
            key = model_id, version.version
            self.digests[key] = version.digest
            self.chunk_keys[key] = [
                self.stage.keys.chunk(artifact.sha256, number)
                for artifact in version.artifacts
                for number in range(artifact.chunks)
            ]

    def is_loaded(self, model_id: str, version: str) -> bool:
        """Whether any worker has it."""
        digest = self.digests[model_id, version].hex()
        return any(digest in worker.loaded for worker in living(self.stage.redis, self.stage.keys, "worker"))

    def chunks(self, model_id: str, version: str) -> int:
        """How many of its chunks are in Redis."""
        return sum(1 for key in self.chunk_keys[model_id, version] if self.stage.redis.exists(key))

    def gone(self, model_id: str, version: str, within: float = 20.0) -> None:
        """Waits until it has left the record, the workers' memory and Redis."""
        eventually(lambda: version not in self.record(model_id).versions, within)
        eventually(lambda: not self.is_loaded(model_id, version), within)
        eventually(lambda: self.chunks(model_id, version) == 0, within)

    def checked(self, model_id: str, told: Iterable[Told]) -> Counter[str]:
        """Asserts that each answer and each event is that of the version it names; how many each version answered."""
        counted: Counter[str] = Counter()
        for each in told:
            assert (each.ended, each.message) == ("OK", "")
            assert each.response is not None
            assert outputs(each.response) == [{"out": factor(each.response.version) * each.x}]
            counted[each.response.version] += 1
        for header, event in self.stage.batches(model_id):
            version = event.entry.version
            assert (event.status, event.response.version) == (wire.OK, version)
            assert event.entry.digest == header.digest == self.digests[model_id, version]
            [x] = np.frombuffer(event.entry.matrix.float64)
            assert outputs(event.response) == [{"out": factor(version) * x}]
        return counted

    def close(self) -> None:
        self._closing.close()


@pytest.fixture
def swapper(tmp_path: Path) -> Iterator[Swapper]:
    with RedisServer(tmp_path / "redis") as server, Stage(tmp_path / "stage", server.url, "ms") as stage:
        swapper = Swapper(tmp_path, server, stage)
        try:
            yield swapper
        finally:
            swapper.close()


def test_a_hundred_swaps_under_load_fail_nobody_and_each_is_answered_by_the_version_it_was_pinned_to(
    swapper: Swapper,
) -> None:
    stage = swapper.stage
    for model_id in MODELS:
        write(swapper.store, model_id, ONE, "production")
        write(swapper.store, model_id, TWO)
    stage.worker(workers=2)
    swapper.start()
    gateway = stage.gateway(*MODELS)
    with ExitStack() as load:
        crowds = {
            model_id: load.enter_context(Crowd([gateway.address], 10, model_id, model_id=model_id))
            for model_id in MODELS
        }
        producers = {
            model_id: load.enter_context(Pushing(stage.url, f"{model_id}-bulk", model_id=model_id))
            for model_id in MODELS
        }
        for number in range(SWAPS):
            for crowd in crowds.values():
                crowd.under_way(3)
            swapper.promote(dict.fromkeys(MODELS, ONE if number % 2 else TWO))
            if not number:
                for model_id in MODELS:
                    swapper.know(model_id)
        swapper.promote(dict.fromkeys(MODELS, TWO))
        for model_id in MODELS:
            crowds[model_id].under_way()
            producers[model_id].under_way()
    for model_id in MODELS:
        closed(stage, model_id, pushed=producers[model_id].acknowledged)
        counted = swapper.checked(model_id, crowds[model_id].told.values())
        assert counted.keys() == {ONE, TWO}
        assert min(counted.values()) > SWAPS
        swapper.gone(model_id, ONE)
        assert (swapper.is_loaded(model_id, TWO), swapper.chunks(model_id, TWO) > 0) == (True, True)


def test_what_waits_for_a_version_is_answered_by_it_long_after_another_took_over(swapper: Swapper) -> None:
    """The one worker is held in a call of a version, so that what is pinned to it waits; of another model, of which
    nothing waits, what was replaced by the same act is long gone by then."""
    held, free = MODELS
    stage, odd = swapper.stage, swapper.stage.odd
    stage.publish_odd(held)
    write(swapper.store, held, TWO)
    write(swapper.store, free, ONE, "production")
    write(swapper.store, free, TWO)
    stage.worker()
    swapper.start()
    gateway = stage.gateway(*MODELS)
    swapper.know(free)
    calls = []
    with odd.closed():
        calls.append((ONE, 1.0, gateway.start_predict(ask(held, 1.0))))
        eventually(lambda: odd.saw(1.0) == 1)
        numbers = itertools.count(2)

        def wait_for(version: str) -> None:
            before = stage.waiting(held)
            for x in itertools.islice(numbers, 5):
                calls.append((version, float(x), gateway.start_predict(ask(held, float(x)))))
            eventually(lambda: stage.waiting(held) == before + 5)

        wait_for(ONE)
        swapper.promote({held: TWO, free: TWO})
        eventually(lambda: gateway.live(held) == TWO)
        wait_for(TWO)
        swapper.gone(free, ONE)
        swapper.know(held)
        assert swapper.record(held).versions.keys() == {ONE, TWO}
        assert swapper.is_loaded(held, ONE)
        assert swapper.chunks(held, ONE) == len(swapper.chunk_keys[held, ONE]) > 0
    factors = {ONE: 2.0, TWO: factor(TWO)}  # the odd one doubles
    for version, x, call in calls:
        response = call.result()
        assert (response.version, outputs(response)) == (version, [{"out": factors[version] * x}])
    stage.drained(held)
    swapper.gone(held, ONE)
    assert swapper.is_loaded(held, TWO)
