"""Fixtures for all tests: a real server for the run, and a key prefix for each test."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import redis

from tests.servers import Azurite, RedisServer

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile(
    "millstream", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("millstream")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _settings_of_the_shell_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """A developer's own MILLSTREAM_* variables would change what the tests see."""
    for name in [name for name in os.environ if name.startswith("MILLSTREAM_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """The embedded server, shared by the whole run: a test that stops or fills a server starts its own."""
    with RedisServer(tmp_path_factory.mktemp("valkey")) as server:
        yield server


@pytest.fixture
def redis_url(valkey: RedisServer) -> str:
    return valkey.url


@pytest.fixture
def prefix() -> str:
    """First part of every key of this test, so that tests share a server without seeing one another."""
    return f"t{uuid.uuid4().hex[:12]}"


@pytest.fixture
def redis_client(valkey: RedisServer) -> Iterator[redis.Redis]:
    with valkey.client() as client:
        yield client


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azurite]:
    """Azurite, shared by the whole run: each test makes a container of its own."""
    with Azurite(tmp_path_factory.mktemp("azurite")) as server:
        yield server


@pytest.fixture(scope="session")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the stock models, `<model>/<version>/`; read only."""
    from millstream.stock import write_stock  # trains: only where a test asks for it

    folder = tmp_path_factory.mktemp("stock")
    write_stock(folder)
    return folder
