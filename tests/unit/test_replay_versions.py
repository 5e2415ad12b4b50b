"""Where replays take versions from, and what is never loaded."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from threadpoolctl import threadpool_limits

from consumers.model.model import load_model
from consumers.replay.versions import KEPT, Artifacts, VersionGone, Versions, VersionUnloadable
from contract.settings import Settings
from contract.signature import Signature, parse_signature
from contract.version import version_digest
from millstream.stored_versions import in_catalogue, in_store
from registry.catalogue.catalogue import Catalogue
from registry.catalogue.known import KnownVersion
from tests.unit.test_model import dumped


@pytest.fixture(autouse=True)
def _threads_are_as_before_afterwards() -> Iterator[None]:
    """Loading a version leaves BLAS one thread, as a worker has it."""
    with threadpool_limits(limits=1):
        yield


def signature(version: str = "1.0.0") -> Signature:
    content: dict[str, Any] = {
        "model_id": "m",
        "version": version,
        "trained_date": "2024-01-01",
        "status": "staging",
        "azure_location": "tests",
        "expected_features": [{"index": 0, "name": "a", "type": "float", "example": 0.5}],
    }
    return parse_signature(json.dumps(content).encode())[0]


def files(slope: float = 2.0) -> dict[str, bytes]:
    rows = np.arange(4.0).reshape(-1, 1)
    return {"model.joblib": dumped(LinearRegression().fit(rows, slope * rows[:, 0]))}


def digest_of(artifacts: Artifacts) -> str:
    return version_digest(artifacts.signature, {n: hashlib.sha256(c).hexdigest() for n, c in artifacts.files.items()})


def gone(_model_id: str, _version: str, _digest: str) -> Artifacts:
    raise VersionGone("it is not here")


def anybody(_model_id: str, _digest: str) -> str:
    return ""


class Place:
    """Answers one version, whatever is asked for, and counts how often."""

    def __init__(self, artifacts: Artifacts) -> None:
        self.artifacts = artifacts
        self.asked = 0

    def __call__(self, _model_id: str, _version: str, _digest: str) -> Artifacts:
        self.asked += 1
        return self.artifacts


@pytest.fixture(scope="module")
def artifacts() -> Artifacts:
    return Artifacts(signature(), files())


def write(store: Path, folder: str, artifacts: Artifacts) -> None:
    place = store / folder
    place.mkdir(parents=True)
    for name, content in artifacts.files.items():
        (place / name).write_bytes(content)
    (place / "signature.json").write_bytes(artifacts.signature.canonical())


def test_the_first_place_that_has_a_version_is_enough_and_it_stays_in_memory(artifacts: Artifacts) -> None:
    place, digest = Place(artifacts), digest_of(artifacts)
    versions = Versions(gone, place, gone)
    loaded = versions.load("m", "1.0.0", digest)
    assert loaded is versions.load("m", "1.0.0", digest)
    assert loaded is not versions.load("m", "1.0.0", digest, threads=2)
    assert place.asked == 2
    (column,) = loaded.predict(np.array([[3.0]]))
    assert column.values[0] == pytest.approx(6.0)


def test_what_has_another_digest_is_never_loaded(artifacts: Artifacts, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("it was unpickled")

    monkeypatch.setattr(joblib, "load", load)
    other = Place(Artifacts(signature(), files(3.0)))
    versions = Versions(other)
    for _ in range(2):
        with pytest.raises(VersionGone, match=r"m 1\.0\.0 with the digest .* what is there has another digest"):
            versions.load("m", "1.0.0", digest_of(artifacts))
    assert other.asked == 1


def test_a_version_that_does_not_load_says_so_each_time(artifacts: Artifacts) -> None:
    broken = Artifacts(artifacts.signature, {"model.joblib": b"no model"})
    versions = Versions(Place(broken))
    for _ in range(2):
        with pytest.raises(VersionUnloadable, match=r"model\.joblib .* can't be loaded"):
            versions.load("m", "1.0.0", digest_of(broken))


def test_few_versions_are_in_memory_at_once() -> None:
    places = [Artifacts(signature(f"{number}"), files()) for number in range(KEPT + 1)]
    asked = []

    def place(_model_id: str, version: str, _digest: str) -> Artifacts:
        asked.append(version)
        return places[int(version)]

    versions = Versions(place)
    for number in (*range(KEPT + 1), KEPT, 0):
        versions.load("m", str(number), digest_of(places[number]))
    assert asked == [*(str(number) for number in range(KEPT + 1)), "0"]


def test_the_engine_that_answered_is_the_one_that_is_asked(artifacts: Artifacts) -> None:
    loaded = Versions(Place(artifacts)).load("m", "1.0.0", digest_of(artifacts))
    engines = []
    for engine in ("sklearn 0.1", "numpy 0.1 (LinearRegression)", "sklearn 1.9", ""):
        loaded.predict(np.array([[3.0]]), engine)
        engines.append(loaded.model.engine.partition(" ")[0])
    assert engines == ["sklearn", "numpy", "sklearn", "sklearn"]


def test_a_form_that_a_tolerance_let_in_is_asked_again_and_so_is_each_other_that_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, noise = np.random.default_rng(0).normal(size=(2, 200, 1))
    forest = RandomForestClassifier(20, min_samples_leaf=20, random_state=0).fit(rows, (rows > noise)[:, 0])
    share = {"outputs": [{"name": "p", "call": "predict_proba", "class": True}]}
    shares, _ = parse_signature(json.dumps({**json.loads(signature().canonical()), **share}).encode())
    artifacts = Artifacts(shares, {"model.joblib": dumped(forest)})
    live = load_model(artifacts.signature, artifacts.files)
    assert live.compile(1e-6) == ""
    loaded = Versions(Place(artifacts)).load("m", "1.0.0", digest_of(artifacts))
    for _ in range(2):
        answers, engines = [], []
        live.predict(rows)
        for engine in (live.engine, "treelite 4.8 (RandomForestClassifier)", "sklearn 1.9"):
            answers.append(loaded.predict(rows, engine)[0].values)
            engines.append(loaded.model.engine)
        assert engines[0] == live.engine
        assert engines[0].endswith(" within 1e-06")
        assert [each.partition(" ")[0] for each in engines] == ["onnxruntime", "treelite", "sklearn"]
        np.testing.assert_array_equal(answers[0], live.predict(rows)[0].values, strict=True)
        assert not np.array_equal(answers[0], answers[2])
    # Another version of the library is no other form, and its name says what computed here.
    loaded.predict(rows, "onnxruntime 1.0 (RandomForestClassifier) within 1e-06")
    assert loaded.model.engine == live.engine.partition(" within")[0]
    # Where there is no such form here the model's own library answers, and verify tells the engines apart.
    monkeypatch.setitem(sys.modules, "onnx", None)
    without = Versions(Place(artifacts)).load("m", "1.0.0", digest_of(artifacts))
    without.predict(rows, live.engine)
    assert without.model.engine.startswith("sklearn ")


def test_a_store_has_a_version_by_its_contents_wherever_they_stand(artifacts: Artifacts, tmp_path: Path) -> None:
    write(tmp_path, "m/1.0.0", Artifacts(signature(), files(3.0)))
    write(tmp_path, "moved/away", artifacts)
    place = in_store(Settings.read(store_url=str(tmp_path)), anybody)
    assert place("m", "1.0.0", digest_of(artifacts)).files == artifacts.files
    with pytest.raises(VersionGone, match=r"holds no m 1\.0\.0 with this digest, but 2 with another"):
        place("m", "1.0.0", "00" * 32)
    with pytest.raises(VersionGone, match=r"holds no m 2\.0\.0 any more"):
        place("m", "2.0.0", "00" * 32)
    with pytest.raises(VersionGone, match="nowhere"):
        in_store(Settings.read(store_url=str(tmp_path / "nowhere")), anybody)("m", "1.0.0", "00" * 32)


def test_what_the_registry_never_recorded_is_not_taken_from_a_store(artifacts: Artifacts, tmp_path: Path) -> None:
    write(tmp_path / "store", "m/1.0.0", artifacts)
    digest, database = digest_of(artifacts), tmp_path / "registry.duckdb"
    catalogue = Catalogue(database)
    seen = datetime(2026, 1, 31, tzinfo=UTC)
    raw = artifacts.signature.canonical()
    known = KnownVersion("m", "1.0.0", digest, raw, "2024-01-01", "m/1.0.0", "retired", "", "", seen, ())
    catalogue.put_version(known)
    settings = Settings.read(store_url=str(tmp_path / "store"))
    with pytest.raises(VersionGone, match=r"registry\.duckdb can't be read .* --registry HOST:PORT"):
        in_store(settings, in_catalogue(tmp_path / "absent" / "registry.duckdb"))("m", "1.0.0", digest)
    catalogue.close()
    place = in_store(settings, in_catalogue(database))
    assert place("m", "1.0.0", digest).is_of(digest)
    with pytest.raises(VersionGone, match="has no version with this digest"):
        place("m", "1.0.0", "11" * 32)
