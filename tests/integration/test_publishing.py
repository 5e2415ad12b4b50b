"""Publishing into a real store: in which order, what is refused, and what an interrupted run costs."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from azure.storage.blob.aio import ContainerClient

from contract.trust import check_endorsed, new_publisher_key, publisher_key
from registry.blobs import Blob, BlobStore, StoreUnavailable, open_store
from registry.publishing.local_version import LocalVersion, PublishRefused, files_of
from registry.publishing.upload import Published, publish, published_versions
from registry.watch.layout import find_versions
from tests.servers import Azurite

pytestmark = [pytest.mark.integration, pytest.mark.anyio]

MODEL = b"a model" * 1000
SCALER = b"a scaler" * 10


def signature(**other: Any) -> dict[str, Any]:
    return {
        "model_id": "churn",
        "version": "1.0.0",
        "trained_date": "2023-10-25",
        "status": "staging",
        "azure_location": "ai-models",
        "expected_features": [{"index": 0, "name": "age", "type": "int"}],
        "transforms": ["scaler.joblib"],
        **other,
    }


def folder(path: Path, model: bytes = MODEL, **other: Any) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "model.joblib").write_bytes(model)
    (path / "scaler.joblib").write_bytes(SCALER)
    (path / "signature.json").write_text(json.dumps(signature(**other)))
    return path


def local(path: Path) -> LocalVersion:
    return LocalVersion.of((path / "signature.json").read_bytes(), files_of(path)[0])


@pytest.fixture(params=["directory", "azure"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlobStore]:
    if request.param == "directory":
        (tmp_path / "store").mkdir()
        async with open_store(str(tmp_path / "store")) as opened:
            yield opened
    else:
        azurite: Azurite = request.getfixturevalue("azurite")
        name = f"models-{uuid.uuid4().hex}"
        async with ContainerClient.from_connection_string(azurite.connection_string, name) as container:
            await container.create_container()
            async with open_store(f"azure://{name}", connection_string=azurite.connection_string) as opened:
                yield opened


async def listed(store: BlobStore) -> dict[str, Blob]:
    return {blob.name: blob for blob in await store.list()}


class Watched:
    """A store whose writes are seen, and which fails before the write of a chosen file."""

    def __init__(self, store: BlobStore, fails_at: str = "") -> None:
        self._store = store
        self._fails_at = fails_at
        self.written: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def write(self, name: str, content: Any, **options: Any) -> Blob:
        if self._fails_at and name.endswith(self._fails_at):
            raise StoreUnavailable("the line broke")
        blob = await self._store.write(name, content, **options)
        self.written.append(name.rpartition("/")[2])
        return blob


async def test_the_signature_goes_last_and_every_look_before_it_sees_no_version(
    store: BlobStore, tmp_path: Path
) -> None:
    watched = Watched(store)
    new_publisher_key(tmp_path / "key.pem")
    version = local(folder(tmp_path / "v"))
    done = await publish(watched, version, key=publisher_key(tmp_path / "key.pem"))
    assert watched.written == ["model.joblib", "scaler.joblib", "signature.json.sig", "signature.json"]
    location = f"{store.url}/churn/1.0.0"
    assert done == Published(location, "new", tuple(watched.written), ())
    blobs = await store.list()
    (found,) = find_versions(blobs)
    assert (found.place, sorted(found.files)) == ("churn/1.0.0", ["model.joblib", "scaler.joblib"])
    for count in range(len(watched.written)):
        seen = [blob for blob in blobs if blob.name.rpartition("/")[2] in watched.written[:count]]
        assert all(each.signature is None for each in find_versions(seen))
    assert await published_versions(store, "churn") == ["1.0.0"]


async def test_an_interrupted_run_is_repeated_and_sends_only_the_rest(store: BlobStore, tmp_path: Path) -> None:
    version = local(folder(tmp_path / "v"))
    with pytest.raises(StoreUnavailable):
        await publish(Watched(store, "scaler.joblib"), version)
    before = (await listed(store))["churn/1.0.0/model.joblib"]
    done = await publish(store, version)
    assert (done.state, done.sent, done.kept) == ("new", ("scaler.joblib", "signature.json"), ("model.joblib",))
    assert (await listed(store))["churn/1.0.0/model.joblib"].etag == before.etag
    again = await publish(store, version)
    assert (again.state, again.sent) == ("unchanged", ())


async def test_other_contents_under_a_version_are_refused_and_nothing_is_written(
    store: BlobStore, tmp_path: Path
) -> None:
    await publish(store, local(folder(tmp_path / "a")))
    before = await store.list()
    for other in (folder(tmp_path / "b", model=b"another"), folder(tmp_path / "c", trained_date="2024-01-01")):
        with pytest.raises(PublishRefused, match="versions do not change, so publish under a new version"):
            await publish(store, local(other))
    assert await store.list() == before


async def test_another_status_is_the_same_version_and_replaces_the_signature_alone(
    store: BlobStore, tmp_path: Path
) -> None:
    await publish(store, local(folder(tmp_path / "v")))
    done = await publish(store, local(folder(tmp_path / "v", status="production")))
    assert (done.state, done.sent) == ("changed", ("signature.json",))
    raw = await store.read_small("churn/1.0.0/signature.json", 10_000)
    assert json.loads(raw)["status"] == "production"


async def test_a_folder_that_holds_something_else_is_left_alone(store: BlobStore, tmp_path: Path) -> None:
    version = local(folder(tmp_path / "v"))
    await store.write("churn/1.0.0/tokenizer.json", b"{}")
    with pytest.raises(PublishRefused, match=r"holds tokenizer\.json, which churn 1\.0\.0 here does not"):
        await publish(store, version)
    await store.write("churn/1.0.1/model.joblib", b"somebody else's")
    with pytest.raises(PublishRefused, match="unfinished publication"):
        await publish(store, local(folder(tmp_path / "w", version="1.0.1")))
    assert sorted(await listed(store)) == ["churn/1.0.0/tokenizer.json", "churn/1.0.1/model.joblib"]


async def test_of_two_publishers_at_once_the_second_is_refused(store: BlobStore, tmp_path: Path) -> None:
    mine, theirs = local(folder(tmp_path / "a")), local(folder(tmp_path / "b", model=b"theirs"))

    class Slow(Watched):
        async def write(self, name: str, content: Any, **options: Any) -> Blob:
            if name.endswith("/model.joblib"):
                await publish(store, theirs)  # between our look and our write
            return await super().write(name, content, **options)

    with pytest.raises(PublishRefused, match="just been written by somebody else"):
        await publish(Slow(store), mine)
    assert await store.read_small("churn/1.0.0/model.joblib", 10_000) == b"theirs"


async def test_a_write_whose_answer_was_lost_counts_as_done(store: BlobStore, tmp_path: Path) -> None:
    """The repetition of such a write finds its own blob and is refused as a replacement."""

    class Forgetful(Watched):
        async def write(self, name: str, content: Any, **options: Any) -> Blob:
            pieces = content if isinstance(content, bytes) else b"".join([piece async for piece in content])
            await self._store.write(name, pieces, **options)
            return await self._store.write(name, pieces, **options)

    done = await publish(Forgetful(store), local(folder(tmp_path / "v")))
    assert done.sent == ("model.joblib", "scaler.joblib", "signature.json")


async def test_a_file_that_changes_under_the_upload_is_never_shown(store: BlobStore, tmp_path: Path) -> None:
    version = local(folder(tmp_path / "v"))
    (tmp_path / "v/model.joblib").write_bytes(MODEL[:-1] + b"!")
    with pytest.raises(PublishRefused, match="changed while it was published"):
        await publish(store, version)
    assert await store.list() == ()


async def test_publishers_sign_one_after_another_and_each_signature_holds(store: BlobStore, tmp_path: Path) -> None:
    version = local(folder(tmp_path / "v"))
    keys = []
    for name in ("a.pem", "b.pem"):
        new_publisher_key(tmp_path / name)
        keys.append(publisher_key(tmp_path / name))
        await publish(store, version, key=keys[-1])
    raw = await store.read_small("churn/1.0.0/signature.json.sig", 10_000)
    for key in keys:
        assert check_endorsed(raw, version.digest, [key.public_key()])
    assert (await publish(store, version, key=keys[0])).sent in ((), ("signature.json.sig",))
    assert len((await store.read_small("churn/1.0.0/signature.json.sig", 10_000)).splitlines()) == 2


async def test_azure_keeps_the_digest_beside_the_blob_and_saves_reading_it(azurite: Azurite, tmp_path: Path) -> None:
    name = f"models-{uuid.uuid4().hex}"
    async with ContainerClient.from_connection_string(azurite.connection_string, name) as container:
        await container.create_container()
        async with open_store(f"azure://{name}", connection_string=azurite.connection_string) as store:
            await publish(store, local(folder(tmp_path / "v")))
            blobs = await listed(store)
            assert blobs["churn/1.0.0/model.joblib"].sha256 == sha256(MODEL).hexdigest()
            # Without it the blob is read: somebody else's tool wrote it.
            await container.upload_blob("churn/1.0.0/model.joblib", MODEL, overwrite=True)
            assert (await listed(store))["churn/1.0.0/model.joblib"].sha256 == ""
            assert (await publish(store, local(tmp_path / "v"))).state == "unchanged"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ({"expcted_features": []}, "expcted_features: no such field"),
        ({"expected_features": [{"index": 0, "name": "age", "type": "int", "typ": 1}]}, r"expected_features\[0\]\.typ"),
        ({"model_id": "../churn"}, "model_id"),
        ({"model_file": "absent.joblib"}, r"absent\.joblib is named in the signature and missing"),
        ({"trained_date": "2023-02-30"}, "trained_date"),
    ],
)
def test_a_signature_is_checked_strictly(spoil: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(PublishRefused, match=says):
        local(folder(tmp_path, **spoil))


def test_fields_of_ones_own_are_allowed(tmp_path: Path) -> None:
    own: dict[str, Any] = {"x-team": "risk"}
    assert local(folder(tmp_path, **own)).name == "churn 1.0.0"


def test_an_empty_model_and_a_folder_of_versions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PublishRefused, match="is empty"):
        local(folder(tmp_path / "v", model=b""))
    with pytest.raises(PublishRefused, match="publish one version's folder"):
        files_of(tmp_path)


def test_what_no_store_would_list_is_left_out(tmp_path: Path) -> None:
    folder(tmp_path)
    (tmp_path / ".DS_Store").write_bytes(b"x")
    (tmp_path / "notes.tmp").write_bytes(b"x")
    (tmp_path / "other.signature.json").write_bytes(b"{}")
    files, left_out = files_of(tmp_path)
    assert sorted(files) == ["model.joblib", "scaler.joblib"]
    assert left_out == (".DS_Store", "notes.tmp", "other.signature.json")
