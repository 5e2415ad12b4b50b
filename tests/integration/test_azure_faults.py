"""What Azure says when it will not: throttling, clocks, permissions, cut connections; each with what to do about it."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.client import HTTPConnection
from pathlib import Path

import pytest
from azure.storage.blob import ContainerSasPermissions, generate_container_sas
from azure.storage.blob.aio import ContainerClient

from contract.signature import parse_signature
from registry.blobs import (
    BlobNotFound,
    BlobStore,
    ContainerMissing,
    Retry,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    StoreUrlError,
    open_store,
)
from registry.publishing.local_version import LocalVersion
from registry.publishing.upload import publish
from tests.azure_proxy import Answer, AzureProxy
from tests.servers import LOOPBACK, Azurite, free_port

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

HASTY = Retry(attempts=4, first_delay=0.02, longest_delay=0.05)
SIGNATURE = (
    b'{"model_id": "churn", "version": "1.0.0", "trained_date": "2023-10-25", "status": "production",'
    b' "azure_location": "models", "expected_features": [{"index": 0, "name": "age", "type": "int"}]}'
)


@pytest.fixture
async def proxy(azurite: Azurite) -> AsyncIterator[AzureProxy]:
    async with AzureProxy(azurite).running() as proxy:
        yield proxy


@pytest.fixture
async def store(azurite: Azurite, proxy: AzureProxy) -> AsyncIterator[BlobStore]:
    """A container behind the proxy, with one blob."""
    name = f"models-{uuid.uuid4().hex}"
    async with ContainerClient.from_connection_string(azurite.connection_string, name) as container:
        await container.create_container()
        await container.upload_blob("a", b"content")
    async with open_store(f"azure://{name}", connection_string=proxy.connection_string, retry=HASTY) as store:
        yield store


async def test_a_throttled_request_is_repeated_after_the_pause_it_was_asked_for(
    proxy: AzureProxy, store: BlobStore
) -> None:
    answers = iter([Answer(503, "ServerBusy", {"Retry-After": "1"}), Answer(429, "TooManyRequests"), Answer(0)])
    proxy.answer = lambda _request: next(answers, None)
    started = time.monotonic()
    assert await store.read_small("a", 100) == b"content"
    assert len(proxy.requests) == 4
    assert time.monotonic() - started >= 1.0


async def test_a_store_that_asks_for_a_long_pause_is_given_up_at_once(proxy: AzureProxy, store: BlobStore) -> None:
    proxy.answer = lambda _request: Answer(503, "ServerBusy", {"Retry-After": "3600"})
    with pytest.raises(StoreUnavailable, match="asks for a pause of 3600 s") as refused:
        await store.list()
    assert (len(proxy.requests), refused.value.retry_after) == (1, 3600.0)


@pytest.mark.parametrize("asked", ["soon", "-1", "1e9", "", "Wed, 21 Oct 2015 07:28:00 GMT", "９"])
async def test_a_pause_that_is_no_number_of_seconds_is_the_usual_one(
    asked: str, proxy: AzureProxy, store: BlobStore
) -> None:
    answers = iter([Answer(503, "ServerBusy", {"Retry-After": asked})])
    proxy.answer = lambda _request: next(answers, None)
    assert len(await store.list()) == 1


@pytest.mark.parametrize(
    ("minutes", "says"),
    [
        (-23, "this machine's clock is 23 minutes ahead of the store's"),
        (40, "this machine's clock is 40 minutes behind the store's"),
        (0, "check that the key is the account's current one"),
    ],
)
async def test_a_failed_authentication_says_how_far_the_clocks_are_apart(
    minutes: int, says: str, proxy: AzureProxy, store: BlobStore
) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(minutes=minutes), usegmt=True)
    proxy.answer = lambda _request: Answer(403, "AuthenticationFailed", {"Date": date})
    with pytest.raises(StoreDenied, match=says):
        await store.list()
    assert len(proxy.requests) == 1


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("AuthorizationPermissionMismatch", "Storage Blob Data Reader"),
        ("AuthorizationFailure", "firewall"),
        ("KeyBasedAuthenticationNotPermitted", "check the key"),
    ],
)
async def test_what_is_not_allowed_says_what_would_allow_it(
    code: str, says: str, proxy: AzureProxy, store: BlobStore
) -> None:
    proxy.answer = lambda _request: Answer(403, code)
    with pytest.raises(StoreDenied, match=says):
        await store.write("b", b"x")


@pytest.mark.parametrize(
    ("status", "code"),
    [(404, "ResourceNotFound"), (401, "NoAuthenticationInformation"), (409, "PublicAccessNotPermitted")],
)
async def test_without_credentials_a_refusal_says_which_there_could_be(
    status: int, code: str, proxy: AzureProxy
) -> None:
    proxy.answer = lambda _request: Answer(status, code)
    async with open_store(f"{proxy.account_url}/models", retry=HASTY) as store:
        with pytest.raises(StoreDenied, match=r"no credentials are set: .*millstream\[identity\]"):
            await store.list()


async def test_with_credentials_an_absent_blob_is_just_that(store: BlobStore) -> None:
    with pytest.raises(BlobNotFound, match="no such blob"):
        await store.read_small("absent", 10)


async def test_a_publication_into_a_container_that_is_not_there_or_not_reached_says_so(
    azurite: Azurite, tmp_path: Path
) -> None:
    (tmp_path / "model.joblib").write_bytes(b"model")
    version = LocalVersion.of(SIGNATURE, {"model.joblib": tmp_path / "model.joblib"})
    async with open_store("azure://absent-container", connection_string=azurite.connection_string) as store:
        with pytest.raises(ContainerMissing, match="there is no such container; create it or correct the address"):
            await publish(store, version)
    far = f"http://{LOOPBACK}:{free_port()}/account"
    async with open_store("azure://models", account_url=far, account_key=Azurite.KEY, retry=HASTY) as store:
        with pytest.raises(StoreUnavailable, match="Cannot connect"):
            await publish(store, version)


async def test_a_publication_goes_on_over_throttling_and_cut_connections(
    proxy: AzureProxy, store: BlobStore, tmp_path: Path
) -> None:
    """Every request is refused or cut at first, an answer to a write among them."""
    (tmp_path / "model.joblib").write_bytes(b"model" * 1000)
    version = LocalVersion.of(SIGNATURE, {"model.joblib": tmp_path / "model.joblib"})
    seen: set[str] = set()

    def answer(request: str) -> Answer | None:
        if request in seen:
            return None
        seen.add(request)
        return Answer(503, "ServerBusy") if len(seen) % 2 else Answer(0)

    proxy.answer = answer
    done = await publish(store, version)
    assert done.sent == ("model.joblib", "signature.json")
    found = {blob.name: blob.size for blob in await store.list("churn/")}
    assert found == {"churn/1.0.0/model.joblib": 5000, "churn/1.0.0/signature.json": len(SIGNATURE)}
    assert parse_signature(await store.read_small("churn/1.0.0/signature.json", 1000))[0].model_id == "churn"


async def test_a_wrong_key_and_a_malformed_one_are_told_before_anything_is_sent(azurite: Azurite) -> None:
    wrong = "d3JvbmcgYnV0IHZhbGlkIGJhc2U2NA=="
    async with open_store("azure://models", account_url=azurite.url, account_key=wrong, retry=HASTY) as store:
        with pytest.raises(StoreDenied, match="check the key"):
            await store.list()
    with pytest.raises(StoreUrlError, match="connection string cannot be read"):
        open_store("azure://models", connection_string="AccountKey=only")


async def test_blobs_whose_names_climb_out_are_not_there(azurite: Azurite, store: BlobStore) -> None:
    """Put there by hand: no library of Azure's would write such a name."""
    container = store.url.rpartition("/")[2]
    token = generate_container_sas(
        Azurite.ACCOUNT,
        container,
        account_key=Azurite.KEY,
        permission=ContainerSasPermissions(create=True, write=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    line = HTTPConnection(LOOPBACK, azurite.port, timeout=30)
    for name in ("churn/1.0.0/%2E%2E/%2E%2E/evil.pkl", "%2E%2E/evil.pkl", "churn/%5C..%5Cevil.pkl", "%2Fetc/evil.pkl"):
        line.request("PUT", f"/{Azurite.ACCOUNT}/{container}/{name}?{token}", b"x", {"x-ms-blob-type": "BlockBlob"})
        answer = line.getresponse()
        answer.read()
        assert answer.status == 201
    line.close()
    async with ContainerClient.from_connection_string(azurite.connection_string, container) as client:
        there = [blob.name async for blob in client.list_blobs()]
    assert "churn/1.0.0/../../evil.pkl" in there
    assert [blob.name for blob in await store.list()] == ["a"]
    with pytest.raises(StoreError, match="cannot name a blob"):
        await store.read_small("churn/1.0.0/../../evil.pkl", 10)
