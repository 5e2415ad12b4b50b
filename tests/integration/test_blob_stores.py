"""One set of expectations, met by a directory and by a real Azurite; then what only one of them can do."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import os
import random
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import pytest
from azure.storage.blob import ContainerSasPermissions, ContentSettings, generate_container_sas
from azure.storage.blob.aio import ContainerClient

from registry.blobs import (
    CHUNK,
    BlobChanged,
    BlobExists,
    BlobNameError,
    BlobNotFound,
    BlobStore,
    BlobTooLarge,
    ContainerMissing,
    Retry,
    StoreDenied,
    StoreError,
    StoreUnavailable,
    open_store,
)
from registry.blobs.azure import AzureStore

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

REPOSITORY = Path(__file__).parents[2]
AZURITE = REPOSITORY / ".tools/node_modules/azurite/dist/src/blob/main.js"
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # the emulator's own
WRONG_KEY = "d3JvbmcgYnV0IHZhbGlkIGJhc2U2NA=="
HASTY = Retry(attempts=3, first_delay=0.02, longest_delay=0.05)
LARGE = random.Random(7).randbytes(20 * 1024 * 1024 + 3)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, slots=True)
class Emulator:
    port: int

    @property
    def account_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/{ACCOUNT}"

    def connection_string(self, key: str = KEY, port: int | None = None) -> str:
        endpoint = f"http://127.0.0.1:{port or self.port}/{ACCOUNT}"
        return f"DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={key};BlobEndpoint={endpoint};"

    @asynccontextmanager
    async def container(self) -> AsyncGenerator[ContainerClient, None]:
        name = f"models-{uuid.uuid4().hex}"
        async with ContainerClient.from_connection_string(self.connection_string(), name) as container:
            await container.create_container()
            yield container
            await container.delete_container()


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def azurite() -> Iterator[Emulator]:
    node = shutil.which("node")
    if node is None or not AZURITE.exists():
        reason = "Azurite is not installed: npm --prefix .tools install azurite@3.37.0"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    port = free_port()
    command = [node, str(AZURITE), "--blobHost", "127.0.0.1", "--blobPort", str(port), "--silent", "--disableTelemetry"]
    process = subprocess.Popen([*command, "--skipApiVersionCheck", "--inMemoryPersistence"])
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, "Azurite ended while starting"
                assert time.monotonic() < deadline, "Azurite did not open its port"
                time.sleep(0.05)
        yield Emulator(port)
    finally:
        process.terminate()
        process.wait(timeout=10)


@pytest.fixture
async def container(azurite: Emulator) -> AsyncIterator[ContainerClient]:
    async with azurite.container() as created:
        yield created


@pytest.fixture(params=["directory", "azure"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    if request.param == "directory":
        async with open_store(tmp_path.as_uri()) as opened:
            yield opened
    else:
        azurite: Emulator = request.getfixturevalue("azurite")
        async with azurite.container() as created:
            url = f"azure://{created.container_name}/team/models"
            async with open_store(url, connection_string=azurite.connection_string(), retry=HASTY) as opened:
                yield opened


async def whole(stream: AsyncGenerator[bytes, None]) -> bytes:
    async with aclosing(stream):
        return b"".join([piece async for piece in stream])


async def pieces_of(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def upload_large(azurite: Emulator, container: ContainerClient) -> None:
    url = f"azure://{container.container_name}"
    async with open_store(url, connection_string=azurite.connection_string()) as direct:
        await direct.write("large.bin", LARGE)


# Both stores.


async def test_a_listing_shows_names_sizes_and_times_in_order(store: BlobStore) -> None:
    began = datetime.now(UTC) - timedelta(minutes=1)
    written = [await store.write(name, b"x" * size) for name, size in [("b/2.pkl", 2), ("a.json", 5), ("b/1 é.pkl", 0)]]
    listed = await store.list()
    assert [(blob.name, blob.size) for blob in listed] == [("a.json", 5), ("b/1 é.pkl", 0), ("b/2.pkl", 2)]
    assert {blob.etag for blob in listed} == {blob.etag for blob in written}
    assert all(began < blob.last_modified and blob.last_modified.tzinfo is UTC for blob in listed)


@pytest.mark.parametrize(
    ("prefix", "names"),
    [
        ("", ["churn/1.pkl", "churn/2.pkl", "churn_v1.pkl", "credit/1.pkl"]),
        ("churn", ["churn/1.pkl", "churn/2.pkl", "churn_v1.pkl"]),
        ("churn/", ["churn/1.pkl", "churn/2.pkl"]),
        ("churn/2", ["churn/2.pkl"]),
        ("nothing/here", []),
        ("../", []),
    ],
)
async def test_a_prefix_is_any_leading_text(store: BlobStore, prefix: str, names: list[str]) -> None:
    for name in ("churn/1.pkl", "churn/2.pkl", "churn_v1.pkl", "credit/1.pkl"):
        await store.write(name, b"x")
    assert [blob.name for blob in await store.list(prefix)] == names


async def test_an_unchanged_store_lists_the_same_and_a_write_changes_one_etag(store: BlobStore) -> None:
    await store.write("a", b"one")
    await store.write("b", b"one")
    before = await store.list()
    assert await store.list() == before
    await store.write("b", b"two")
    after = await store.list()
    assert [old == new for old, new in zip(before, after, strict=True)] == [True, False]
    assert before[1].etag != after[1].etag


async def test_a_large_blob_streams_in_pieces_and_tells_how_far_it_is(store: BlobStore) -> None:
    await store.write("large.bin", pieces_of(LARGE, 1_000_003))
    (listed,) = await store.list()
    seen: list[tuple[int, int]] = []
    digest = hashlib.sha256()
    async with aclosing(
        store.read("large.bin", if_match=listed.etag, progress=lambda done, total: seen.append((done, total)))
    ) as stream:
        async for piece in stream:
            assert 0 < len(piece) <= CHUNK
            digest.update(piece)
    assert digest.hexdigest() == hashlib.sha256(LARGE).hexdigest()
    assert seen == [(CHUNK, len(LARGE)), (2 * CHUNK, len(LARGE)), (len(LARGE), len(LARGE))]


async def test_reading_another_version_than_the_one_asked_for_is_refused(store: BlobStore) -> None:
    first = await store.write("a", b"one")
    await store.write("a", b"two, longer")
    with pytest.raises(BlobChanged):
        await whole(store.read("a", if_match=first.etag))
    with pytest.raises(BlobChanged):
        await store.read_small("a", 100, if_match=first.etag)


async def test_a_blob_written_again_while_it_is_read_is_noticed(store: BlobStore) -> None:
    await store.write("large.bin", LARGE)
    async with aclosing(store.read("large.bin")) as stream:
        assert await anext(stream) == LARGE[:CHUNK]
        await store.write("large.bin", LARGE[::-1])
        with pytest.raises(BlobChanged, match=r"large\.bin"):
            await anext(stream)


async def test_a_reader_may_stop_early(store: BlobStore) -> None:
    await store.write("large.bin", LARGE)
    async with aclosing(store.read("large.bin")) as stream:
        assert await anext(stream) == LARGE[:CHUNK]
    assert await store.read_small("large.bin", len(LARGE)) == LARGE


async def test_an_empty_blob_reads_as_nothing(store: BlobStore) -> None:
    written = await store.write("empty", b"")
    assert written.size == 0
    assert await whole(store.read("empty", if_match=written.etag)) == b""
    assert await store.read_small("empty", 0) == b""


@pytest.mark.parametrize("size", [0, 1, 999, 1000])
async def test_a_small_read_returns_what_is_within_its_limit(store: BlobStore, size: int) -> None:
    await store.write("a", b"x" * size)
    assert await store.read_small("a", 1000) == b"x" * size


@pytest.mark.parametrize("limit", [0, 1, 1000])
async def test_a_small_read_refuses_what_is_larger(store: BlobStore, limit: int) -> None:
    await store.write("a", b"x" * 1001)
    with pytest.raises(BlobTooLarge, match="1,001 bytes"):
        await store.read_small("a", limit)


async def test_a_missing_blob_is_named(store: BlobStore) -> None:
    await store.write("there", b"x")
    with pytest.raises(BlobNotFound, match=r"not/there\.pkl"):
        await whole(store.read("not/there.pkl"))
    with pytest.raises(BlobNotFound, match=r"not/there\.pkl"):
        await store.read_small("not/there.pkl", 10)
    with pytest.raises((BlobNotFound, BlobChanged)):
        await whole(store.read("not/there.pkl", if_match="abc"))


async def test_a_write_that_must_not_replace_leaves_what_is_there(store: BlobStore) -> None:
    await store.write("a", b"first", if_none_match=True)
    with pytest.raises(BlobExists, match="there already and was left as it is"):
        await store.write("a", b"second", if_none_match=True)
    assert await store.read_small("a", 10) == b"first"


async def test_of_many_writers_that_must_not_replace_one_wins(store: BlobStore) -> None:
    won: list[bytes] = []

    async def attempt(content: bytes) -> None:
        try:
            await store.write("a", content, if_none_match=True)
        except (BlobExists, BlobChanged):
            return
        won.append(content)

    async with anyio.create_task_group() as tasks:
        for number in range(8):
            tasks.start_soon(attempt, b"%d" % number)
    assert [await store.read_small("a", 10)] == won


async def test_a_write_broken_off_leaves_the_old_contents(store: BlobStore) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield LARGE[: CHUNK + 1]
        raise RuntimeError("the source broke")

    before = await store.write("a", b"old")
    with pytest.raises(RuntimeError, match="the source broke"):
        await store.write("a", broken())
    with pytest.raises(RuntimeError, match="the source broke"):
        await store.write("new", broken())
    assert [(blob.name, blob.etag) for blob in await store.list()] == [("a", before.etag)]
    assert await store.read_small("a", 10) == b"old"


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", ".hidden", "a.tmp", "a\nb", ""])
async def test_names_outside_the_rule_are_refused_before_anything_happens(store: BlobStore, name: str) -> None:
    with pytest.raises(BlobNameError):
        await store.write(name, b"x")
    with pytest.raises(BlobNameError):
        await whole(store.read(name))
    with pytest.raises(BlobNameError):
        await store.read_small(name, 10)
    assert await store.list() == ()


async def test_a_missing_container_is_told_from_a_missing_blob(azurite: Emulator, tmp_path: Path) -> None:
    for url in (str(tmp_path / "absent"), "azure://absent-container"):
        connection = azurite.connection_string() if url.startswith("azure") else None
        async with open_store(url, connection_string=connection, retry=HASTY) as missing:
            with pytest.raises(ContainerMissing):
                await missing.list()
            with pytest.raises(ContainerMissing):
                await whole(missing.read("a"))
            with pytest.raises(ContainerMissing):
                await missing.write("a", b"x")


# Azure alone.


async def test_a_wrong_key_is_denied_and_not_shown(azurite: Emulator, container: ContainerClient) -> None:
    for key in (WRONG_KEY, "not base64 at all"):
        async with open_store(
            f"azure://{container.container_name}", account_url=azurite.account_url, account_key=key, retry=HASTY
        ) as store:
            with pytest.raises(StoreDenied) as denied:
                await store.list()
            assert key not in str(denied.value)
            assert denied.value.__context__ is None


async def test_a_shared_access_signature_reads_and_stays_out_of_every_text(
    azurite: Emulator, container: ContainerClient
) -> None:
    await container.upload_blob("a", b"content")
    token = generate_container_sas(
        ACCOUNT,
        container.container_name,
        account_key=KEY,
        permission=ContainerSasPermissions(read=True, list=True),
        expiry=datetime.now(UTC) + timedelta(hours=1),
    )
    secret = token.rpartition("sig=")[2].partition("&")[0]
    container_url = f"{azurite.account_url}/{container.container_name}"
    async with open_store(f"{container_url}?{token}", retry=HASTY) as store:
        assert store.url == container_url
        assert [blob.name for blob in await store.list()] == ["a"]
        assert await store.read_small("a", 10) == b"content"
        with pytest.raises(StoreDenied) as denied:
            await store.write("b", b"x")
        assert secret not in str(denied.value)
    async with open_store(
        f"azure://{container.container_name}", account_url=azurite.account_url, sas_token=f"?{token}", retry=HASTY
    ) as store:
        assert await store.read_small("a", 10) == b"content"
    async with open_store(container_url, retry=HASTY) as anonymous:
        with pytest.raises((StoreDenied, ContainerMissing)):
            await anonymous.list()


async def test_an_account_key_opens_the_https_form_too(azurite: Emulator, container: ContainerClient) -> None:
    await container.upload_blob("deep/a", b"content")
    url = f"{azurite.account_url}/{container.container_name}/deep"
    async with open_store(url, account_key=KEY, retry=HASTY) as store:
        assert [blob.name for blob in await store.list()] == ["a"]
        assert store.url == url


async def test_a_listing_is_read_page_by_page(azurite: Emulator, container: ContainerClient) -> None:
    names = [f"model-{number}" for number in range(7)]
    for name in names:
        await container.upload_blob(name, b"x")
    async with AzureStore(
        ContainerClient.from_connection_string(azurite.connection_string(), container.container_name), page=3
    ) as store:
        assert [blob.name for blob in await store.list()] == names


async def test_contents_arrive_as_they_are_stored_whatever_their_encoding_header(
    azurite: Emulator, container: ContainerClient
) -> None:
    packed = gzip.compress(b"weights" * 100)
    await container.upload_blob("a.gz", packed, content_settings=ContentSettings(content_encoding="gzip"))
    async with open_store(
        f"azure://{container.container_name}", connection_string=azurite.connection_string()
    ) as store:
        assert await store.read_small("a.gz", 10_000) == packed


async def test_folder_markers_and_names_outside_the_rule_are_not_listed(
    azurite: Emulator, container: ContainerClient
) -> None:
    await container.upload_blob("folder", b"", metadata={"hdi_isfolder": "true"})
    for name in ("folder/a", ".hidden", "b.tmp", "c//d"):
        await container.upload_blob(name, b"x")
    async with open_store(
        f"azure://{container.container_name}", connection_string=azurite.connection_string()
    ) as store:
        assert [blob.name for blob in await store.list()] == ["folder/a"]


async def test_an_unreachable_store_is_given_up_on(azurite: Emulator) -> None:
    port = free_port()
    with anyio.fail_after(60):
        async with open_store("azure://models", connection_string=azurite.connection_string(port=port)) as store:
            for attempt in (store.list(), store.read_small("a", 10)):
                with pytest.raises(StoreUnavailable, match=str(port)) as gone:
                    await attempt
                assert KEY not in str(gone.value)


@dataclass(slots=True)
class CuttingProxy:
    """Passes bytes on to the emulator and cuts the next `cuts` answers after `after` bytes."""

    target: int
    after: int
    cuts: int
    port: int = 0
    carried: int = 0

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[CuttingProxy, None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _serve(self, near_reader: asyncio.StreamReader, near_writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._upward, near_reader, far_writer)
                await self._downward(far_reader, near_writer)
                tasks.cancel_scope.cancel()
        finally:
            near_writer.transport.abort()
            far_writer.transport.abort()

    async def _upward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(65536):
            writer.write(piece)
            await writer.drain()

    async def _downward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        carried = 0
        while piece := await reader.read(65536):
            carried += len(piece)
            self.carried += len(piece)
            if self.cuts and carried > self.after:
                self.cuts -= 1
                return
            writer.write(piece)
            await writer.drain()


async def test_a_connection_cut_in_the_middle_is_taken_up_where_it_broke(
    azurite: Emulator, container: ContainerClient
) -> None:
    await upload_large(azurite, container)
    # The first 8 MiB come through whole, every cut falls in the second.
    async with CuttingProxy(azurite.port, CHUNK + CHUNK // 2, cuts=1).running() as proxy:
        connection = azurite.connection_string(port=proxy.port)
        url = f"azure://{container.container_name}"
        async with open_store(url, connection_string=connection, retry=HASTY) as store:
            assert await whole(store.read("large.bin")) == LARGE
    assert proxy.cuts == 0
    assert proxy.carried < len(LARGE) + CHUNK  # not read again from the start


async def test_a_connection_cut_every_time_ends_as_unavailable(azurite: Emulator, container: ContainerClient) -> None:
    await upload_large(azurite, container)
    async with CuttingProxy(azurite.port, CHUNK // 2, cuts=10_000).running() as proxy:
        connection = azurite.connection_string(port=proxy.port)
        url = f"azure://{container.container_name}"
        async with open_store(url, connection_string=connection, retry=Retry(attempts=2, first_delay=0.02)) as store:
            with anyio.fail_after(60), pytest.raises(StoreUnavailable, match=r"large\.bin"):
                await whole(store.read("large.bin"))


@pytest.mark.parametrize(
    ("status", "code", "expected", "asked"),
    [
        (503, "ServerBusy", StoreUnavailable, 3),
        (500, "InternalError", StoreUnavailable, 3),
        (429, "TooManyRequests", StoreUnavailable, 3),
        (403, "AuthorizationPermissionMismatch", StoreDenied, 1),
        (401, "NoAuthenticationInformation", StoreDenied, 1),
        (404, "ContainerNotFound", ContainerMissing, 1),
        (404, "BlobNotFound", BlobNotFound, 1),
        (409, "ContainerBeingDeleted", ContainerMissing, 1),
        (409, "BlobArchived", StoreError, 1),
        (412, "ConditionNotMet", BlobChanged, 1),
        (400, "InvalidUri", StoreError, 1),
    ],
)
async def test_answers_no_emulator_gives_have_their_meaning(
    status: int, code: str, expected: type[StoreError], asked: int
) -> None:
    requests = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        await reader.readuntil(b"\r\n\r\n")
        requests += 1
        head = f"HTTP/1.1 {status} Refused\r\nx-ms-error-code: {code}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        async with open_store(f"http://127.0.0.1:{port}/account/models?sig=secret", retry=HASTY) as store:
            with pytest.raises(StoreError) as refused:
                await store.read_small("a", 10)
    finally:
        server.close()
    assert type(refused.value) is expected
    assert requests == asked
    assert "secret" not in str(refused.value)


# The directory alone.


async def test_links_are_followed_inside_the_root_and_refused_outside(tmp_path: Path) -> None:
    root = tmp_path / "models"
    (root / "churn").mkdir(parents=True)
    (root / "churn/model").write_bytes(b"model")
    (tmp_path / "secret").write_bytes(b"secret")
    (root / "inside").symlink_to(root / "churn/model")
    (root / "folder").symlink_to(root / "churn")
    (root / "outside").symlink_to(tmp_path / "secret")
    (root / "away").symlink_to(tmp_path)
    (root / "dangling").symlink_to(root / "nothing")
    (root / "loop").symlink_to(root / "loop")
    (root / "churn/up").symlink_to(root)
    async with open_store(str(root)) as store:
        names = [blob.name for blob in await store.list()]
        assert [name for name in names if name.count("/") < 2] == ["churn/model", "folder/model", "inside"] + [
            name for name in names if name.startswith("churn/up/") and name.count("/") < 2
        ]
        assert await store.read_small("folder/model", 10) == b"model"
        for name in ("outside", "away/secret"):
            with pytest.raises(StoreDenied, match="leaves"):
                await store.read_small(name, 10)
        with pytest.raises(StoreDenied, match="leaves"):
            await store.write("away/new", b"x")
        for name in ("dangling", "loop"):
            with pytest.raises(StoreError):
                await store.read_small(name, 10)
    assert not (tmp_path / "new").exists()


async def test_hidden_and_unfinished_files_are_not_there(tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    for name in (".git/config", ".DS_Store", "model.pkl.tmp", "model.pkl"):
        (tmp_path / name).write_bytes(b"x")
    async with open_store(str(tmp_path)) as store:
        assert [blob.name for blob in await store.list()] == ["model.pkl"]


async def test_a_named_pipe_or_a_folder_is_not_a_blob_and_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    async with open_store(str(tmp_path)) as store:
        assert await store.list() == ()
        for name in ("pipe", "folder"):
            with anyio.fail_after(30), pytest.raises(BlobNotFound, match=r"not a file|is a directory"):
                await store.read_small(name, 10)


async def test_a_file_in_the_way_of_a_write_is_told_plainly(tmp_path: Path) -> None:
    async with open_store(str(tmp_path)) as store:
        await store.write("a", b"x")
        with pytest.raises(StoreError, match="in the way"):
            await store.write("a/b", b"x")
        assert names_in(tmp_path) == ["a"]


async def test_a_write_cancelled_leaves_no_file_behind(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1000
            scope.cancel()

    async with open_store(str(tmp_path)) as store:
        with anyio.CancelScope() as scope:
            await store.write("a", endless())
    assert scope.cancelled_caught
    assert names_in(tmp_path) == []


async def test_a_change_in_place_is_noticed_while_reading(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(LARGE)
    async with open_store(str(tmp_path)) as store, aclosing(store.read("large.bin")) as stream:
        await anext(stream)
        path.write_bytes(LARGE[:100])
        with pytest.raises(BlobChanged):
            await anext(stream)


async def test_a_blob_removed_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(LARGE)
    async with open_store(str(tmp_path)) as store, aclosing(store.read("large.bin")) as stream:
        await anext(stream)
        path.unlink()
        with pytest.raises(BlobNotFound):
            await anext(stream)
