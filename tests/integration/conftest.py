"""Fixtures of the integration tests: a stage with gateways and a worker, shared where nothing is killed."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.registry_world import World, erase
from tests.servers import RedisServer
from tests.stage import ODD, TEXT, GatewayProcess, Stage


@pytest.fixture(scope="session")
def stage(valkey: RedisServer, stock: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The stock models and two odd ones, and one worker that serves them all; tests must leave it running."""
    prefix = f"s{uuid.uuid4().hex[:12]}"
    with Stage(tmp_path_factory.mktemp("stage"), valkey.url, prefix, max_waiting_rows=2000) as stage:
        for model_id in ("churn", "credit_risk", "loan_approval", "roi_prediction"):
            stage.publish(stock / model_id / "1.0.0")
        stage.publish_odd()
        stage.publish_text()
        stage.worker()
        yield stage


@pytest.fixture(scope="session")
def gateway(stage: Stage) -> GatewayProcess:
    """A gateway of that stage; tests must leave it running."""
    return stage.gateway(*stage.records)


@pytest.fixture(scope="session")
def other_gateway(stage: Stage) -> GatewayProcess:
    """A second one."""
    return stage.gateway(ODD, TEXT)


@pytest.fixture
def world(
    tmp_path: Path, redis_url: str, prefix: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    monkeypatch.chdir(tmp_path)  # the socket's path is relative: pytest's folders are too deep for one
    world = World(tmp_path, redis_url, prefix, redis_client)
    yield world
    erase(redis_client, prefix)
