"""Whose versions the registry takes, and which contents it does not take from anybody."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from contract.trial import Verdict
from contract.trust import KeyUnusable, endorse, new_publisher_key, publisher_key
from protos import millstream_v1_pb2 as v1
from registry.blobs.directory import DirectoryStore
from registry.publishing.local_version import LocalVersion, files_of
from registry.publishing.upload import publish
from registry.trial import OnTrial
from tests.registry_run import RegistryRun

pytestmark = [pytest.mark.integration, pytest.mark.anyio]


def signature(model_id: str = "churn", version: str = "1.0.0", **other: Any) -> dict[str, Any]:
    return {
        "model_id": model_id,
        "version": version,
        "trained_date": "2023-10-25",
        "status": "production",
        "azure_location": "ai-models",
        "expected_features": [{"index": 0, "name": "age", "type": "int"}],
        **other,
    }


class House(RegistryRun):
    """A registry on a folder, and two publishers of whom it may trust the first."""

    def __init__(self, folder: Path, redis_url: str, prefix: str, client: redis.Redis) -> None:
        super().__init__(folder, redis_url, prefix, client, store_url=str(folder / "store"))
        self.store = folder / "store"
        self.store.mkdir()
        self.trusted = new_publisher_key(folder / "trusted.pem")
        new_publisher_key(folder / "other.pem")
        self.tried: list[str] = []

    async def trial(self, signature_json: bytes, _artifacts: Sequence[OnTrial]) -> Verdict:
        """Takes everything, and writes down what it was given."""
        self.tried.append(json.loads(signature_json)["version"])
        return Verdict()

    def local(self, version: str, content: bytes = b"", **other: Any) -> LocalVersion:
        folder = self.folder / "local" / version
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.joblib").write_bytes(content or version.encode() * 500)
        (folder / "signature.json").write_text(json.dumps(signature(version=version, **other)))
        return LocalVersion.of((folder / "signature.json").read_bytes(), files_of(folder)[0])

    async def publish(self, version: LocalVersion, key: str = "") -> None:
        signer = publisher_key(self.folder / f"{key}.pem") if key else None
        await publish(DirectoryStore(self.store), version, key=signer)

    def chunks(self) -> int:
        return sum(1 for _ in self.client.scan_iter(f"{self.keys.prefix}:{{{'?' * 64}}}:*"))


@pytest.fixture
def house(
    tmp_path: Path, redis_url: str, prefix: str, redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> Iterator[House]:
    monkeypatch.chdir(tmp_path)  # the socket's path is relative: pytest's folders are too deep for one
    house = House(tmp_path, redis_url, prefix, redis_client)
    yield house
    house.erase()


async def test_without_trusted_publishers_anybodys_version_is_taken(house: House) -> None:
    await house.publish(house.local("1.0.0"))
    async with house.running(house.trial):
        await house.until_live({"churn": "1.0.0"})


async def test_a_version_without_a_good_signature_is_not_even_tried_and_the_list_says_why(house: House) -> None:
    house.settings["trusted_publishers"] = (house.trusted,)
    await house.publish(house.local("1.0.0"), "trusted")
    async with house.running(house.trial):
        await house.until_live({"churn": "1.0.0"})
        chunks = house.chunks()
        await house.publish(house.local("1.1.0"))
        await house.publish(house.local("1.2.0"), "other")
        await house.publish(house.local("1.3.0"), "trusted")
        (house.store / "churn/1.3.0/model.joblib").write_bytes(b"slipped in" * 100)
        copied = (house.store / "churn/1.0.0/signature.json.sig").read_bytes()
        await house.publish(house.local("1.4.0"))
        (house.store / "churn/1.4.0/signature.json.sig").write_bytes(copied)
        problems = "\n".join((await house.sync()).problems)
        shown = await house.shown()
        reasons = {name: problem for name, (state, problem) in shown.items() if state == "refused"}
        assert sorted(reasons) == ["churn 1.1.0", "churn 1.2.0", "churn 1.3.0", "churn 1.4.0"]
        assert all(reason in problems for reason in reasons.values())
        assert "no publisher signed it" in reasons["churn 1.1.0"]
        assert "by nobody in trusted_publishers" in reasons["churn 1.2.0"]
        assert "not the one that was signed" in reasons["churn 1.3.0"]
        assert "not the one that was signed" in reasons["churn 1.4.0"]
        assert (house.tried, house.chunks(), house.live()) == (["1.0.0"], chunks, {"churn": "1.0.0"})


async def test_a_signature_that_comes_later_is_noticed_at_the_next_look(house: House) -> None:
    house.settings["trusted_publishers"] = (house.trusted,)
    version = house.local("1.0.0")
    await house.publish(version)
    async with house.running(house.trial):
        assert (await house.shown())["churn 1.0.0"][0] == "refused"
        await house.publish(version, "trusted")
        await house.sync()
        await house.until_live({"churn": "1.0.0"})


async def test_a_version_number_is_not_taken_by_who_may_not_publish(house: House) -> None:
    """Otherwise the publisher's own would be refused as other contents under a version on record."""
    house.settings["trusted_publishers"] = (house.trusted,)
    await house.publish(house.local("1.0.0", b"a squatter's"))
    async with house.running(house.trial):
        assert (await house.shown())["churn 1.0.0"][0] == "refused"
        for path in (house.store / "churn/1.0.0").iterdir():
            path.unlink()
        await house.publish(house.local("1.0.0", b"the publisher's"), "trusted")
        await house.sync()
        await house.until_live({"churn": "1.0.0"})


async def test_a_copy_without_a_signature_takes_nothing_from_the_version_it_copies(house: House) -> None:
    house.settings["trusted_publishers"] = (house.trusted,)
    await house.publish(house.local("1.0.0"), "trusted")
    async with house.running(house.trial):
        await house.until_live({"churn": "1.0.0"})
        for place in ("a-copy", "z-copy"):
            (house.store / place).mkdir()
            for name in ("model.joblib", "signature.json"):
                (house.store / place / name).write_bytes((house.store / "churn/1.0.0" / name).read_bytes())
        await house.sync()
        rows = {row.location.rpartition("/")[2]: row.state for row in (await house.listed()).versions}
        assert rows == {"1.0.0": "live", "a-copy": "refused", "z-copy": "refused"}


@pytest.mark.parametrize("restarted", [False, True])
async def test_versions_on_record_are_judged_anew_when_the_publishers_change(house: House, restarted: bool) -> None:
    await house.publish(house.local("1.0.0"), "trusted")
    await house.publish(house.local("1.1.0"), "other")
    await house.publish(house.local("1.2.0", status="staging"), "other")
    async with house.running(house.trial):
        await house.until_live({"churn": "1.1.0"})
    house.settings["trusted_publishers"] = (house.trusted,)
    for _ in range(2 if restarted else 1):
        async with house.running(house.trial):
            await house.until_live({"churn": "1.0.0"})
            shown = await house.shown()
            assert shown["churn 1.2.0"][0] == "refused"
            assert "by nobody in trusted_publishers" in shown["churn 1.2.0"][1]
            before = (await house.sync()).downloaded
            assert before == 0
    (house.store / "churn/1.1.0/signature.json.sig").write_bytes(
        endorse(house.local("1.1.0").digest, publisher_key(house.folder / "trusted.pem"))
    )
    async with house.running(house.trial):
        await house.until_live({"churn": "1.1.0"})


async def test_what_is_live_stays_live_and_says_so_where_nothing_else_may_take_its_place(house: House) -> None:
    await house.publish(house.local("1.0.0"))
    async with house.running(house.trial):
        await house.until_live({"churn": "1.0.0"})
    house.settings["trusted_publishers"] = (house.trusted,)
    async with house.running(house.trial):
        await house.sync()
        (row,) = (await house.listed()).versions
        assert (row.state, house.live()) == ("live", {"churn": "1.0.0"})
        assert any("no publisher signed it" in each for each in (row.problem, *row.warnings))
        for key in list(house.client.scan_iter(f"{house.keys.prefix}:{{{'?' * 64}}}:*")):
            house.client.delete(key)
        for _ in range(3):  # what Redis loses of it is not fetched again
            assert (await house.sync()).downloaded == 0
        assert house.chunks() == 0
        await house.publish(house.local("1.0.1"), "trusted")
        await house.sync()
        await house.until_live({"churn": "1.0.1"})


async def test_an_operator_cannot_promote_what_no_trusted_publisher_signed(house: House) -> None:
    """An act has a version tried again that a gate refused, but this gate it does not open."""
    await house.publish(house.local("1.0.0"), "trusted")
    await house.publish(house.local("1.1.0", status="staging"), "other")
    async with house.running(house.trial):
        await house.until_live({"churn": "1.0.0"})
    house.settings["trusted_publishers"] = (house.trusted,)
    house.tried.clear()
    async with house.running(house.trial):
        await house.calls.Promote(v1.PromoteRequest(model_id="churn", version="1.1.0", by="ann@desk"))
        for _ in range(2):
            await house.sync()
        shown = await house.shown()
        assert "by nobody in trusted_publishers" in shown["churn 1.1.0"][1]
        assert house.live() == {"churn": "1.0.0"}
        assert "1.1.0" not in house.tried
        assert sorted(house.records()["churn"].versions) == ["1.0.0"]


async def test_a_key_that_is_none_stops_the_start(house: House) -> None:
    house.settings["trusted_publishers"] = ("ed25519:AAAA",)
    with pytest.raises((KeyUnusable, ExceptionGroup)) as refused:
        async with house.running():
            pass
    assert "is no publisher's key" in str(getattr(refused.value, "exceptions", [refused.value])[0])


def features(*named: tuple[int, str], type: str = "int") -> list[dict[str, Any]]:
    return [{"index": index, "name": name, "type": type} for index, name in named]


WRONG: dict[str, tuple[Any, str]] = {
    "comma": ('{"model_id": "a" "version": "1"}', "line 1, column"),
    "list": ("[]", "expected an object"),
    "binary": ("\x00\x01", "line 1"),
    "slash": (signature("a/b"), "model_id"),
    "up": (signature(".."), "model_id"),
    "braces": (signature("{}"), "model_id"),
    "spaces": (signature("a b"), "model_id"),
    "long": (signature("a" * 500), "model_id"),
    "version": (signature(version="../1"), "version"),
    "index-twice": (signature(expected_features=features((0, "a"), (0, "b"))), "each index once"),
    "name-twice": (signature(expected_features=features((0, "a"), (1, "a"))), "unique names"),
    "gap": (signature(expected_features=features((0, "a"), (2, "b"))), "expected 0 to 1"),
    "type": (signature(expected_features=features((0, "a"), type="decimal")), "one of float, int, bool"),
    "date": (signature(trained_date="yesterday"), "trained_date"),
    "climb": (signature(model_file="../../etc/passwd"), "model_file"),
}
"""Place -> its signature.json, and what is said of it."""


async def test_one_look_tells_every_bad_version_apart_and_serves_the_good_ones(house: House) -> None:
    wide = features(*((index, f"f{index}") for index in range(1000)), type="float")
    good = {"wide": signature("wide", expected_features=wide), "churn": signature()}
    for place, content in [*good.items(), *((place, content) for place, (content, _) in WRONG.items())]:
        (house.store / place).mkdir()
        (house.store / place / "model.joblib").write_bytes(place.encode())
        text = content if isinstance(content, str) else json.dumps(content)
        (house.store / place / "signature.json").write_text(text)
    (house.store / "twin").mkdir()
    (house.store / "twin/model.joblib").write_bytes(b"another under the same version")
    (house.store / "twin/signature.json").write_text(json.dumps(signature()))
    async with house.running(house.trial):
        await house.until_live({"churn": "1.0.0", "wide": "1.0.0"})
        refused = {
            row.location.rpartition("/")[2]: row.problem
            for row in (await house.listed()).versions
            if row.state == "refused"
        }
        twins = refused.keys() & {"churn", "twin"}
        assert len(twins) == 1
        assert "versions are immutable" in refused.pop(*twins)
        assert sorted(refused) == sorted(WRONG)
        assert {place for place, (_, says) in WRONG.items() if says not in refused[place]} == set()
        assert sorted(house.records()) == ["churn", "wide"]
