"""Settings: where they come from, which are refused and how, and what a child process is given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr, ValidationError

from contract.settings import Settings, SettingsError, tolerances


def refused(**flags: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        Settings.read(**flags)
    return str(caught.value)


@pytest.fixture
def toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that MILLSTREAM_CONFIG names; a test writes it."""
    path = tmp_path / "millstream.toml"
    monkeypatch.setenv("MILLSTREAM_CONFIG", str(path))
    return path


def test_nothing_has_to_be_set() -> None:
    settings = Settings.read()
    assert (settings.prefix, settings.workers, settings.models) == ("ms", 1, ())


def test_flags_win_over_variables_and_variables_over_the_file(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text('workers = 2\nbatch_rows = 32\nprefix = "file"\nmodels = ["a", "b"]\n')
    monkeypatch.setenv("MILLSTREAM_WORKERS", "3")
    monkeypatch.setenv("MILLSTREAM_PREFIX", "variable")
    settings = Settings.read(workers=4, batch_rows=None)
    assert settings.workers == 4
    assert settings.prefix == "variable"
    assert settings.batch_rows == 32
    assert settings.models == ("a", "b")


def test_an_unknown_variable_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_WORKER", "3")
    monkeypatch.setenv("MILLSTREAM_COLOUR", "red")
    assert refused().startswith("unknown setting MILLSTREAM_COLOUR, MILLSTREAM_WORKER; ")


def test_variables_of_others_are_nobodys_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAMER", "1")
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    assert Settings.read().redis_url == ""


def test_an_unknown_name_in_the_file_or_a_flag_is_refused(toml: Path) -> None:
    toml.write_text("wrokers = 3\n")
    assert refused() == "unknown setting wrokers; `millstream settings` lists them all"
    toml.write_text("")
    assert refused(colour="red") == "unknown setting colour; `millstream settings` lists them all"


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("workers", "0", "workers: should be greater than or equal to 1, got '0'"),
        ("workers", "", "workers: should be a valid integer, unable to parse string as an integer, got ''"),
        ("workers", "2.5", "workers: should be a valid integer"),
        ("lease_s", "0", "lease_s: should be greater than 0, got '0'"),
        ("lease_s", "nan", "lease_s: should be a finite number, got 'nan'"),
        ("lease_s", "inf", "lease_s: should be a finite number, got 'inf'"),
        ("lease_s", "-1", "lease_s: should be greater than 0, got '-1'"),
        ("engine", "fast", "engine: should be 'auto', 'grpcio' or 'native', got 'fast'"),
        ("log_level", "LOUD", "log_level: should be 'debug', 'info', 'warning' or 'error', got 'LOUD'"),
        ("prefix", "a{b", "prefix: String should match pattern '^[A-Za-z0-9_.-]{1,64}$', got 'a{b'"),
        ("prefix", "ms\n", "prefix: String should match"),
        ("prefix", "", "prefix: String should match"),
        ("memory_limit_share", "1.1", "memory_limit_share: should be less than or equal to 1, got '1.1'"),
        ("chunk_bytes", str(2**30), "chunk_bytes: should be less than or equal to 268435456"),
    ],
)
def test_a_wrong_value_is_refused_saying_what_is_expected_and_what_came(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"MILLSTREAM_{name.upper()}", value)
    assert refused().startswith(said)


def test_every_wrong_setting_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_WORKERS", "x")
    monkeypatch.setenv("MILLSTREAM_ENGINE", "y")
    text = refused(lease_s=-1)
    assert {line.split(":")[0] for line in text.split("; ")} == {"workers", "engine", "lease_s"}


@pytest.mark.parametrize(
    ("value", "models"),
    [("", ()), ("churn", ("churn",)), ("churn,credit_risk", ("churn", "credit_risk")), (" a , b ,", ("a", "b"))],
)
def test_models_are_listed_with_commas(value: str, models: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_MODELS", value)
    assert Settings.read().models == models


def test_a_tolerance_is_a_models_own_and_none_has_one_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tolerances(Settings.read().compile_tolerance) == {}
    monkeypatch.setenv("MILLSTREAM_COMPILE_TOLERANCE", "churn=1e-7, fraud = 0.001")
    settings = Settings.read()
    assert tolerances(settings.compile_tolerance) == {"churn": 1e-7, "fraud": 0.001}
    monkeypatch.setenv("MILLSTREAM_COMPILE_TOLERANCE", settings.environment()["MILLSTREAM_COMPILE_TOLERANCE"])
    assert Settings.read() == settings


@pytest.mark.parametrize("value", ["1e-7", "churn", "churn=", "churn=x", "churn=-1", "churn=1", "churn=nan", "=1e-7"])
def test_a_tolerance_without_a_model_or_a_small_number_is_refused(value: str) -> None:
    assert f"got '{value}'" in refused(compile_tolerance=value)


def test_a_file_that_is_not_there_is_named(toml: Path) -> None:
    assert refused() == f"MILLSTREAM_CONFIG names {toml}, which is not a file"


def test_a_folder_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_CONFIG", str(tmp_path))
    assert "which is not a file" in refused()


@pytest.mark.parametrize("content", [b"workers = ", b"[[", b"\xff\xfe", b"workers = 1\nworkers = 2\n"])
def test_a_file_that_is_no_toml_is_refused_with_its_name(content: bytes, toml: Path) -> None:
    toml.write_bytes(content)
    assert refused().startswith(f"{toml}: ")


def test_secrets_stand_in_no_representation() -> None:
    settings = Settings.read(
        azure_connection_string="AccountKey=geheim",
        azure_sas_token="geheim",
        azure_account_key="geheim",
        redis_url="redis://:geheim@localhost",
        features_url="redis://user:geheim@localhost",
    )
    assert "geheim" not in repr(settings)
    assert "geheim" not in str(settings)


def test_a_secret_of_the_wrong_type_is_not_shown(toml: Path) -> None:
    toml.write_text('azure_account_key = ["geheim"]\nredis_url = ["geheim"]\n')
    text = refused()
    assert "azure_account_key" in text
    assert "redis_url" in text
    assert "geheim" not in text


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError):
        Settings.read().workers = 2


def test_a_child_gets_the_same_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = Settings.read(
        state_dir=tmp_path / "with space",
        redis_url="unix:///tmp/x y.sock?db=0",
        models=("churn", "credit_risk"),
        azure_sas_token="sv=2024&sig=%2F",
        features_file=tmp_path / "features.parquet",
        lease_s=1.6,
        poll_s=0.1,
        memory_limit_share=0.75,
        workers=3,
        engine="grpcio",
    )
    for name, value in given.environment().items():
        monkeypatch.setenv(name, value)
    there = Settings.read()
    assert there == given
    assert there.azure_sas_token == SecretStr("sv=2024&sig=%2F")


def test_a_flag_that_says_the_default_wins_in_the_child_too(toml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml.write_text("batch_rows = 32\n")
    monkeypatch.setenv("MILLSTREAM_PREFIX", "variable")
    given = Settings.read(prefix="ms", batch_rows=256)
    for name, value in given.environment().items():
        monkeypatch.setenv(name, value)
    there = Settings.read()
    assert (there.prefix, there.batch_rows) == ("ms", 256)


def test_a_lease_that_one_late_heartbeat_would_lose_is_refused() -> None:
    with pytest.raises(SettingsError, match="expected more than 3 x heartbeat_s"):
        Settings.read(lease_s=1.0, heartbeat_s=0.5)
