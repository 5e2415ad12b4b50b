"""`registry publish` and `registry keygen` as they are typed: a model drafted, tried, signed and sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
from azure.storage.blob import ContainerClient
from sklearn.linear_model import LogisticRegression
from typer.testing import CliRunner, Result

from contract.signature import parse_signature
from contract.trust import check_endorsed, publisher_keys
from millstream.cli import app
from tests.servers import Azurite

pytestmark = pytest.mark.integration


def registry(*words: str | Path) -> Result:
    return CliRunner().invoke(app, ["registry", *map(str, words)])


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    noise = np.random.default_rng(7)
    rows = np.column_stack([noise.integers(18, 90, 60), noise.uniform(0, 2, 60)])
    joblib.dump(LogisticRegression().fit(rows, rows[:, 1] > 1), tmp_path / "late payer_v2.1.joblib")
    lines = [f"{int(age)},{ratio!r}" for age, ratio in rows.tolist()]
    (tmp_path / "rows.csv").write_text("\n".join(["age,debt ratio", *lines]))
    return tmp_path / "late payer_v2.1.joblib"


def folder(at: Path, model: Path, **other: Any) -> Path:
    """A version's folder with the model of above."""
    at.mkdir()
    (at / "model.joblib").write_bytes(model.read_bytes())
    content = {
        "model_id": "late_payer",
        "version": "1.0.0",
        "trained_date": "2023-10-25",
        "status": "staging",
        "azure_location": "ai-models",
        "expected_features": [
            {"index": 0, "name": "age", "type": "int", "example": 30},
            {"index": 1, "name": "debt ratio", "type": "float", "example": 0.5},
        ],
        **other,
    }
    (at / "signature.json").write_text(json.dumps(content))
    return at


def test_a_model_file_is_drafted_tried_signed_and_sent_and_a_second_time_nothing_is(
    model: Path, store: Path, tmp_path: Path
) -> None:
    key = registry("keygen", tmp_path / "me.pem")
    assert key.exit_code == 0
    words = ("publish", model, "--csv", tmp_path / "rows.csv", "--store", store, "--key", tmp_path / "me.pem")
    done = registry(*words, "--status", "production", "--yes", "--json")
    assert done.exit_code == 0, done.stderr
    told = json.loads(done.stdout)
    files = ["model.joblib", "signature.json.sig", "signature.json"]
    assert (told["model_id"], told["version"], told["state"], told["sent"]) == ("late_payer", "2.1", "new", files)
    assert told["publisher"] == key.stdout.strip()
    assert "answers its 1 golden example\n" in done.stderr
    assert "millstream registry sync" in done.stderr
    place = store / "late_payer/2.1"
    signature, _ = parse_signature((place / "signature.json").read_bytes())
    assert [(each.name, each.type) for each in signature.features] == [("age", "int"), ("debt ratio", "float")]
    endorsement = (place / "signature.json.sig").read_bytes()
    assert check_endorsed(endorsement, told["digest"], publisher_keys([str(tmp_path / "me.pem.pub")]))
    again = registry(*words, "--status", "production", "--yes", "--no-try", "--json")
    assert (json.loads(again.stdout)["state"], json.loads(again.stdout)["sent"]) == ("unchanged", [])


def test_a_draft_is_printed_or_confirmed_and_never_taken_unseen(model: Path, store: Path) -> None:
    shown = registry("publish", model, "--store", store, "--draft")
    assert (shown.exit_code, json.loads(shown.stdout)["status"]) == (0, "staging")
    unseen = registry("publish", model, "--store", store)
    assert (unseen.exit_code, "take it with --yes" in unseen.stderr) == (3, True)
    assert names(store) == []
    beside = model.with_name("late payer_v2.1.signature.json")
    beside.write_text(json.dumps({**json.loads(shown.stdout), "version": "2.2"}))
    done = registry("publish", model, "--store", store, "--no-try")
    assert done.exit_code == 0, done.stderr
    assert names(store) == ["late_payer/2.2/late payer_v2.1.joblib", "late_payer/2.2/signature.json"]


def test_a_version_that_would_be_refused_is_not_sent(model: Path, store: Path, tmp_path: Path) -> None:
    golden = [{"inputs": [30, 0.5], "outputs": {"prediction": 7}}]
    done = registry("publish", folder(tmp_path / "v", model, golden=golden), "--store", store)
    assert (done.exit_code, done.stdout, names(store)) == (3, "", [])
    assert "late_payer 1.0.0 is not published: " in done.stderr
    assert "golden" in done.stderr


@pytest.mark.parametrize(
    ("words", "exit_code", "says"),
    [
        (["--status", "live"], 2, "expected one of production, canary"),
        (["--version", "9"], 3, "says version '1.0.0'"),
        (["--key", "absent.pem"], 3, "absent.pem can't be read"),
        (["--store", "ftp://models"], 2, "a blob store cannot be at"),
        (["--store", "absent-store"], 4, "there is no directory"),
    ],
)
def test_what_can_not_be_is_said_before_anything_is_sent(
    words: list[str], exit_code: int, says: str, model: Path, store: Path, tmp_path: Path
) -> None:
    version = folder(tmp_path / "v", model)
    done = registry("publish", version, "--store", store, "--no-try", *words)
    assert (done.exit_code, says in done.stderr.replace("\n", " ")) == (exit_code, True), done.stderr
    assert names(store) == []


def test_what_is_no_version_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.joblib").write_bytes(b"not a pickle")
    (tmp_path / "empty").mkdir()
    for path, says in (
        (tmp_path / "absent", "expected a version's folder or a model file"),
        (tmp_path / "empty", "there is no signature.json in"),
        (tmp_path / "notes.joblib", "notes.joblib"),
    ):
        done = registry("publish", path, "--store", store, "--yes")
        assert (done.exit_code, says in done.stderr) == (3, True), done.stderr


def test_other_contents_under_a_version_are_refused_with_what_to_do(model: Path, store: Path, tmp_path: Path) -> None:
    assert registry("publish", folder(tmp_path / "a", model), "--store", store, "--no-try").exit_code == 0
    other = folder(tmp_path / "b", model, trained_date="2024-01-01")
    done = registry("publish", other, "--store", store, "--no-try")
    assert (done.exit_code, "publish under a new version" in done.stderr) == (3, True)
    promoted = registry("publish", tmp_path / "a", "--store", store, "--no-try", "--status", "production")
    assert (promoted.exit_code, "brought up to date" in promoted.stdout) == (0, True)
    assert json.loads((store / "late_payer/1.0.0/signature.json").read_text())["status"] == "production"


def test_it_publishes_into_azure_and_says_where_there_is_no_container(
    model: Path, azurite: Azurite, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLSTREAM_AZURE_CONNECTION_STRING", azurite.connection_string)
    words = ("publish", folder(tmp_path / "v", model), "--store", f"azure://{prefix}/team", "--no-try")
    absent = registry(*words)
    assert (absent.exit_code, "there is no such container" in absent.stderr) == (4, True)
    with ContainerClient.from_connection_string(azurite.connection_string, prefix) as container:
        container.create_container()
        done = registry(*words)
        assert done.exit_code == 0, done.stderr
        there = [blob.name for blob in container.list_blobs()]
    assert there == ["team/late_payer/1.0.0/model.joblib", "team/late_payer/1.0.0/signature.json"]


def test_a_key_is_never_replaced(tmp_path: Path) -> None:
    assert registry("keygen", tmp_path / "me.pem").exit_code == 0
    before = (tmp_path / "me.pem").read_bytes()
    again = registry("keygen", tmp_path / "me.pem")
    assert (again.exit_code, "a key is never replaced" in again.stderr) == (3, True)
    assert (tmp_path / "me.pem").read_bytes() == before


@pytest.mark.parametrize("command", ["publish", "keygen"])
def test_help_teaches_by_example(command: str) -> None:
    shown = registry(command, "--help")
    assert (shown.exit_code, f"millstream registry {command} " in shown.stdout) == (0, True)
