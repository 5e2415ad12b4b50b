"""The registry on Azure Blob Storage (a real Azurite): what it asks for, what it notices, and while it is away."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
import redis
from azure.storage.blob.aio import ContainerClient

from contract.version import MODEL_SUFFIXES
from registry.blobs import Blob, open_store
from registry.publishing.local_version import LocalVersion
from registry.publishing.upload import publish
from tests.azure_proxy import Answer, AzureProxy
from tests.conditions import eventually_async
from tests.registry_run import RegistryRun
from tests.servers import Azurite

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

MODELS, WRITERS = 50, 16


def signature(model_id: str, version: str, status: str = "production") -> bytes:
    return json.dumps(
        {
            "model_id": model_id,
            "version": version,
            "trained_date": "2023-10-25",
            "status": status,
            "azure_location": f"models/{model_id}",
            "expected_features": [{"index": 0, "name": "age", "type": "int"}],
        }
    ).encode()


class Cloud(RegistryRun):
    """A registry that reaches its container through a proxy, and a client that does not."""

    def __init__(
        self, folder: Path, redis_url: str, client: redis.Redis, proxy: AzureProxy, container: ContainerClient
    ) -> None:
        super().__init__(
            folder,
            redis_url,
            container.container_name,
            client,
            store_url=f"azure://{container.container_name}",
            azure_connection_string=proxy.connection_string,
        )
        self.proxy = proxy
        self.container = container

    async def put(self, name: str, content: bytes) -> None:
        await self.container.upload_blob(name, content, overwrite=True)

    async def publish(self, model_id: str, version: str, status: str = "production") -> None:
        await self.put(f"{model_id}/{version}/model.joblib", f"{model_id} {version}".encode() * 50)
        await self.put(f"{model_id}/{version}/signature.json", signature(model_id, version, status))

    def asked(self) -> Counter[str]:
        """How often which kind of request was made since the last time."""
        asked = Counter(request.split(" ")[0] for request in self.proxy.requests)
        self.proxy.requests.clear()
        return asked


@pytest.fixture
async def cloud(
    azurite: Azurite,
    tmp_path: Path,
    redis_url: str,
    prefix: str,
    redis_client: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Cloud]:
    monkeypatch.chdir(tmp_path)  # the socket's path is relative: pytest's folders are too deep for one
    async with ContainerClient.from_connection_string(azurite.connection_string, prefix) as container:
        await container.create_container()
        async with AzureProxy(azurite).running() as proxy:
            cloud = Cloud(tmp_path, redis_url, redis_client, proxy, container)
            yield cloud
            cloud.erase()


async def test_of_fifty_models_with_three_versions_the_right_ones_answer_and_a_second_look_is_one_listing(
    cloud: Cloud,
) -> None:
    """Of each even model the higher of two production versions, of each odd one the only; a third is in staging."""
    expected = {f"model-{n}": "1.10.0" if n % 2 == 0 else "1.9.0" for n in range(MODELS)}
    versions = [
        (f"model-{n}", version, status)
        for n in range(MODELS)
        for version, status in (
            ("1.9.0", "production"),
            ("1.10.0", "production" if n % 2 == 0 else "staging"),
            ("2.0.0", "staging"),
        )
    ]

    async def write(share: list[tuple[str, str, str]]) -> None:
        for each in share:
            await cloud.publish(*each)

    async with anyio.create_task_group() as tasks:
        for first in range(WRITERS):
            tasks.start_soon(write, versions[first::WRITERS])
    async with cloud.running():
        await cloud.until_live(expected)
        assert cloud.asked() == {"LIST": 1, "GET": 2 * len(versions)}
        again = await cloud.sync()
        assert (again.listed, again.downloaded, cloud.asked()) == (2 * len(versions), 0, {"LIST": 1})
        # Another status is another signature, and the artifact is known by its ETag.
        await cloud.put("model-1/2.0.0/signature.json", signature("model-1", "2.0.0", "retired"))
        assert ((await cloud.sync()).downloaded, cloud.asked()) == (0, {"LIST": 1, "GET": 1})
        # Promoted by its tag, its bytes are fetched, and nobody else's.
        await cloud.put("model-1/1.10.0/signature.json", signature("model-1", "1.10.0"))
        await cloud.sync()
        expected["model-1"] = "1.10.0"
        await cloud.until_live(expected)
        assert cloud.asked()["GET"] == 2
    async with cloud.running():  # a restart costs a listing too
        assert (cloud.live(), cloud.asked()) == (expected, {"LIST": 1})


async def test_bytes_that_changed_after_they_were_recorded_are_refused_and_the_recorded_ones_go_on(
    cloud: Cloud,
) -> None:
    await cloud.publish("churn", "1.0.0")
    async with cloud.running():
        await cloud.until_live({"churn": "1.0.0"})
        live = cloud.records()["churn"].live
        assert live is not None
        (before,) = live.artifacts
        await cloud.put("churn/1.0.0/model.joblib", b"tampered with")
        (problem,) = (await cloud.sync()).problems
        assert "versions are immutable: churn 1.0.0 is on record" in problem
        # What Redis loses then can't be had from the store any more, and is not replaced by what is there now.
        for key in list(cloud.client.scan_iter(f"{cloud.keys.prefix}:{{{before.sha256}}}:*")):
            cloud.client.delete(key)
        await cloud.sync()
        record = cloud.records()["churn"]
        assert record.live is not None
        assert record.live.artifacts == (before,)
        await cloud.put("churn/1.0.0/model.joblib", b"churn 1.0.0" * 50)
        await cloud.sync()

        async def is_whole() -> bool:
            keys = [cloud.keys.chunk(before.sha256, number) for number in range(before.chunks)]
            chunks = cast("list[bytes | None]", cloud.client.mget(keys))
            return b"".join(chunk or b"" for chunk in chunks) == b"churn 1.0.0" * 50

        await eventually_async(is_whole, within=10)


async def test_a_blob_written_again_while_it_is_read_is_taken_at_the_next_look(cloud: Cloud) -> None:
    """Between the listing and the download, and between two ranges: the answer is 412 both times."""
    await cloud.publish("churn", "1.0.0")
    answers = iter([Answer(412, "ConditionNotMet")])
    cloud.proxy.answer = lambda request: next(answers, None) if request.endswith("model.joblib") else None
    async with cloud.running():
        (row,) = (await cloud.listed()).versions
        assert (row.state, "looked at again at the next poll" in row.problem) == ("refused", True)
        await cloud.sync()
        await cloud.until_live({"churn": "1.0.0"})


async def test_truncated_and_empty_artifacts_are_what_they_are_and_a_missing_one_is_named(cloud: Cloud) -> None:
    await cloud.publish("churn", "1.0.0")
    await cloud.put("empty/1.0.0/model.joblib", b"")
    await cloud.put("empty/1.0.0/signature.json", signature("empty", "1.0.0", "staging"))
    await cloud.put("absent/1.0.0/signature.json", signature("absent", "1.0.0"))
    async with cloud.running():
        await cloud.until_live({"churn": "1.0.0"})
        shown = await cloud.shown()
        assert shown["empty 1.0.0"][0] == "staging"
        assert shown["absent 1.0.0"] == (
            "refused",
            f"expected a model file ({', '.join(MODEL_SUFFIXES)}) beside the signature, got none",
        )


async def test_a_store_that_is_away_for_long_is_told_with_its_beginning_and_serving_goes_on(cloud: Cloud) -> None:
    await cloud.publish("churn", "1.0.0")
    async with cloud.running():
        await cloud.until_live({"churn": "1.0.0"})
        await cloud.publish("churn", "1.1.0")
        cloud.proxy.answer = lambda _request: Answer(503, "ServerBusy", {"Retry-After": "900"})
        problems = []
        for _ in range(3):
            await cloud.sync()
            problems.append((await cloud.listed()).store_problem)
        assert "asks for a pause of 900 s (since 20" in problems[0]
        assert set(problems) == {problems[0]}
        assert cloud.live() == {"churn": "1.0.0"}
    async with cloud.running():  # a restart meanwhile serves what Redis holds
        assert cloud.live() == {"churn": "1.0.0"}
        assert "ServerBusy" in (await cloud.listed()).store_problem
        cloud.proxy.answer = lambda _request: None
        await cloud.sync()
        assert (await cloud.listed()).store_problem == ""
        await cloud.until_live({"churn": "1.1.0"})


async def test_a_store_that_asks_for_a_long_pause_is_left_alone_until_the_usual_time(cloud: Cloud) -> None:
    """Otherwise a look that failed is repeated after a second."""
    cloud.settings["poll_s"] = 2.0
    looks: list[float] = []

    def answer(request: str) -> Answer | None:
        looks.append(time.monotonic())
        return Answer(503, "ServerBusy", {"Retry-After": "900"}) if len(looks) == 1 else None

    cloud.proxy.answer = answer
    async with cloud.running():
        assert looks[1] - looks[0] >= 1.9


async def test_a_look_in_the_middle_of_a_publication_sees_no_version(
    cloud: Cloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.joblib").write_bytes(b"churn 1.0.0" * 50)
    version = LocalVersion.of(signature("churn", "1.0.0"), {"model.joblib": tmp_path / "model.joblib"})
    url = f"azure://{cloud.container.container_name}"
    async with cloud.running(), open_store(url, connection_string=cloud.proxy.connection_string) as store:
        looks: list[dict[str, tuple[str, str]]] = []
        write = store.write

        async def look_and_write(*what: Any, **how: Any) -> Blob:
            await cloud.sync()
            looks.append(await cloud.shown())
            return await write(*what, **how)

        monkeypatch.setattr(store, "write", look_and_write)
        await publish(store, version)
        assert [sorted(state for state, _ in shown.values()) for shown in looks] == [[], ["refused"]]
        assert cloud.records() == {}
        await cloud.sync()
        await cloud.until_live({"churn": "1.0.0"})
        assert (await cloud.shown()) == {"churn 1.0.0": ("live", "")}
