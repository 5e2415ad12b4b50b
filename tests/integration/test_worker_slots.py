"""A pool and a big model: one worker alone has it in memory, and whoever takes that one's place."""

from __future__ import annotations

import json
import os
import signal
import threading
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import redis
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sklearn.linear_model import LinearRegression

from consumers.worker.shelf import Shelf
from consumers.worker.slot import Slot
from contract.catalog import Catalog
from contract.connection import living
from contract.keys import Keys
from contract.presence import Presence
from contract.record import LIVE, LOADING, RETIRING
from contract.trust import private_key
from tests.conditions import eventually
from tests.publishing import publish_files, put
from tests.servers import RedisServer
from tests.stage import GatewayProcess, Stage, ask, outputs
from tests.trial_models import dumped, linear, signature

pytestmark = [pytest.mark.integration, pytest.mark.faults]

WIDTH = 900
"""Features of the big model: as many numbers are in its file."""
LIMIT = 8 * WIDTH
"""Bytes: its numbers alone are more than the limit together with what stands around them."""
THREADS = 2
MODEL = "tried"


def width_of(model_id: str) -> int:
    return WIDTH if model_id == "big" else 1


def content(model_id: str) -> bytes:
    width = width_of(model_id)
    return dumped(LinearRegression().fit(np.eye(5, width), np.arange(5.0)))


def signature_of(model_id: str, version: str) -> bytes:
    features = [{"index": n, "name": f"f{n}", "type": "float"} for n in range(width_of(model_id))]
    return signature(version=version, model_id=model_id, expected_features=features)


@pytest.fixture(scope="module")
def stage(valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A pool of two workers with a big model and two small ones."""
    settings = {"big_model_bytes": LIMIT, "big_model_threads": THREADS, "heartbeat_s": 0.1}
    prefix = f"p{uuid.uuid4().hex[:12]}"
    with Stage(tmp_path_factory.mktemp("slots"), valkey.url, prefix, **settings) as stage:
        for model_id in ("big", "small", "grows"):
            files = {"model.joblib": content(model_id)}
            signed = signature_of(model_id, "1.0.0")
            stage.records[model_id] = publish_files(stage.redis, stage.keys, key_of(stage), signed, files)
        stage.worker(workers=2)
        yield stage


@pytest.fixture(scope="module")
def gateway(stage: Stage) -> GatewayProcess:
    """It serves all of them, though not every worker has the big one."""
    return stage.gateway("big", "small", "grows")


def key_of(stage: Stage) -> Ed25519PrivateKey:
    return private_key(stage.folder / "registry.key")


def shared(stage: Stage, but: int = 0) -> tuple[Presence, Presence] | None:
    """The worker that has the big model, which is not the process `but`, and the one that has the small one alone."""
    (big,), (small,) = (stage.records[model_id].versions.values() for model_id in ("big", "small"))
    living_now = [p for p in living(stage.redis, stage.keys, "worker") if p.pid in stage.worker_pids()]
    having = [p for p in living_now if small.digest.hex() in p.loaded]
    first = [p for p in having if big.digest.hex() in p.loaded and p.pid != but]
    second = [p for p in having if big.digest.hex() not in p.loaded]
    return (first[0], second[0]) if len(first) == len(second) == 1 else None


def pair(stage: Stage, but: int = 0) -> tuple[Presence, Presence]:
    """The same, once both live and say so."""
    found = eventually(lambda: shared(stage, but), within=20)
    assert found
    return found


def test_one_worker_of_a_pool_has_the_big_model_and_its_successor_too(stage: Stage, gateway: GatewayProcess) -> None:
    first, second = pair(stage)
    assert ("big" in first.left, "big" in second.left) == (False, True)

    def answered_by(model_id: str) -> tuple[str, int]:
        """Who answers, and with how many threads."""
        response = gateway.predict(ask(model_id, *[0.0] * width_of(model_id)))
        assert len(outputs(response)) == 1
        header = next(h for h, e in stage.batches(model_id) if e.entry.request_id == response.request_id)
        body: Any = stage.redis.hget(stage.keys.runtimes, header.runtime_id)
        return header.worker, json.loads(body)["threads"]

    assert [answered_by("big") for _ in range(10)] == [(first.name, THREADS)] * 10
    assert answered_by("small")[1] == 1

    os.kill(first.pid, signal.SIGKILL)
    again, still = pair(stage, but=first.pid)
    assert ("big" in again.left, "big" in still.left, still.name) == (False, True, second.name)
    assert answered_by("big") == (again.name, THREADS)


def test_a_model_that_becomes_big_changes_workers_without_a_failed_request(
    stage: Stage, gateway: GatewayProcess
) -> None:
    """As the registry does it: the switch comes once all who serve the model have the new version."""
    pair(stage)
    before = stage.records["grows"]
    files = {"model.joblib": content("grows") + bytes(LIMIT)}
    signed = signature_of("grows", "2.0.0")
    over, versions, failed = threading.Event(), list[str](), list[object]()

    def calls() -> None:
        while not over.is_set():
            try:
                versions.append(gateway.predict(ask("grows", 0.0)).version)
            except grpc.RpcError as error:
                failed.append(error)

    callers = [threading.Thread(target=calls) for _ in range(4)]
    for caller in callers:
        caller.start()
    try:
        offered = publish_files(stage.redis, stage.keys, key_of(stage), signed, files, LOADING, before=before)
        old, new = offered.versions["1.0.0"], offered.versions["2.0.0"]

        def all_have_it() -> bool:
            serving = [p for p in living(stage.redis, stage.keys, "worker") if p.serves("grows")]
            return bool(serving) and all(new.digest.hex() in p.loaded for p in serving)

        eventually(all_have_it, within=20)
        switched = {"1.0.0": replace(old, state=RETIRING), "2.0.0": replace(new, state=LIVE)}
        routing = replace(offered.routing, production="2.0.0")
        after = replace(offered, revision=offered.revision + 1, versions=switched, routing=routing)
        put(stage.redis, stage.keys, key_of(stage), after)
        eventually(lambda: versions[-1:] == ["2.0.0"], within=20)
        more = len(versions) + 20
        eventually(lambda: len(versions) > more, within=20)
    finally:
        over.set()
        for caller in callers:
            caller.join()
    assert (failed, set(versions)) == ([], {"1.0.0", "2.0.0"})
    headers = [h for h, e in stage.batches("grows") if h.version == "2.0.0"]
    assert {h.worker for h in headers} == {pair(stage)[0].name}


def test_a_model_is_not_read_while_a_version_of_it_is_another_workers(
    redis_client: redis.Redis, prefix: str, tmp_path: Path
) -> None:
    """From the moment in which the big one begins to load: nobody pins a request to it before."""
    keys, key = Keys(prefix), Ed25519PrivateKey.generate()
    small, big = dumped(linear()), dumped(linear()) + bytes(1000)
    shelf = Shelf(redis_client, keys, Catalog(key.public_key()), (), slot=Slot(2, len(small)))
    first = publish_files(redis_client, keys, key, signature(version="1.0.0"), {"model.joblib": small})
    shelf.refresh()
    assert (shelf.ready, shelf.left) == ([MODEL], frozenset())

    files = {"model.joblib": big}
    both = publish_files(redis_client, keys, key, signature(version="2.0.0"), files, LOADING, before=first)
    one, two = both.versions["1.0.0"], both.versions["2.0.0"]
    for states in ((LIVE, LOADING), (RETIRING, LIVE), (LIVE, RETIRING)):
        versions = {v.version: replace(v, state=state) for v, state in zip((one, two), states, strict=True)}
        put(redis_client, keys, key, replace(both, versions=versions, revision=both.revision + 1))
        shelf.refresh()
        assert (shelf.ready, shelf.left) == ([], frozenset({MODEL}))
        assert (shelf.loaded, shelf.failed) == (frozenset({one.digest.hex()}), {})

    put(redis_client, keys, key, replace(both, versions={"1.0.0": one}, revision=both.revision + 2))
    shelf.refresh()
    assert (shelf.ready, shelf.left) == ([MODEL], frozenset())
    for name in redis_client.scan_iter(f"{prefix}:*"):
        redis_client.delete(name)
