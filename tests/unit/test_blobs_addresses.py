"""Where stores are, what may name a blob, and what must never be shown."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry.blobs import BlobNameError, Retry, StoreUrlError, check_blob_name, is_blob_name, open_store, redact
from registry.blobs.address import AzureAddress
from registry.blobs.directory import directory_path

REPOSITORY = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("url", "account_url", "expected"),
    [
        ("azure://ai-models", None, AzureAddress(None, "ai-models")),
        ("azure://ai-models/team/a/", None, AzureAddress(None, "ai-models", "team/a")),
        (
            "azure://ai-models",
            "https://acme.blob.core.windows.net/?sv=1&sig=s",
            AzureAddress("https://acme.blob.core.windows.net", "ai-models", "", "sv=1&sig=s"),
        ),
        (
            "https://acme.blob.core.windows.net/ai-models?sv=1&sig=s",
            None,
            AzureAddress("https://acme.blob.core.windows.net", "ai-models", "", "sv=1&sig=s"),
        ),
        (
            "https://acme.blob.core.windows.net/ai-models/team%20a/b",
            None,
            AzureAddress("https://acme.blob.core.windows.net", "ai-models", "team a/b"),
        ),
        (
            "http://127.0.0.1:10000/devstoreaccount1/ai-models/x",
            None,
            AzureAddress("http://127.0.0.1:10000/devstoreaccount1", "ai-models", "x"),
        ),
        (
            "http://azurite:10000/devstoreaccount1/ai-models",
            None,
            AzureAddress("http://azurite:10000/devstoreaccount1", "ai-models"),
        ),
    ],
)
def test_every_written_form_of_a_container_is_understood(
    url: str, account_url: str | None, expected: AzureAddress
) -> None:
    assert AzureAddress.parse(url, account_url) == expected


@pytest.mark.parametrize(
    ("account", "name"),
    [("https://acme.blob.core.windows.net", "acme"), ("http://127.0.0.1:10000/devstoreaccount1", "devstoreaccount1")],
)
def test_the_account_name_is_in_the_host_or_in_an_emulators_path(account: str, name: str) -> None:
    assert AzureAddress(account, "ai-models").account_name == name


@pytest.mark.parametrize(
    "url",
    [
        "azure://",
        "azure://AI-Models",
        "azure://ai--models",
        "azure://ab",
        "azure://ai-models/../other",
        "azure://ai-models?sig=topsecret",
        "https://user:topsecret@acme.blob.core.windows.net/ai-models",
        "https://acme.blob.core.windows.net/?sv=1&sig=topsecret",
        "http://127.0.0.1:10000/devstoreaccount1",
        "s3://bucket/models",
        "",
        "file://elsewhere/models",
        "azure://ai-models",
    ],
)
def test_an_unusable_address_is_refused_in_a_sentence_without_its_secret(url: str) -> None:
    with pytest.raises(StoreUrlError) as refused:
        open_store(url)
    assert "topsecret" not in str(refused.value)
    assert len(str(refused.value)) > 40


def test_a_malformed_connection_string_is_refused_without_being_shown() -> None:
    with pytest.raises(StoreUrlError) as refused:
        open_store("azure://ai-models", connection_string="AccountKey=topsecret")
    assert "topsecret" not in str(refused.value)
    assert refused.value.__context__ is None


def test_a_connection_string_beside_another_account_is_refused() -> None:
    with pytest.raises(StoreUrlError, match="both https://acme"):
        open_store(
            "https://acme.blob.core.windows.net/ai-models",
            connection_string="AccountName=b;AccountKey=a2V5;EndpointSuffix=core.windows.net",
        )


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("/var/models", "/var/models"),
        ("models", "models"),
        ("file:///var/my%20models", "/var/my models"),
        ("file://localhost/var/models", "/var/models"),
    ],
)
def test_a_directory_is_given_as_a_path_or_a_file_url(url: str, path: str) -> None:
    assert directory_path(url) == Path(path)


@pytest.mark.parametrize("name", ["model.joblib", "churn/1.0.0/signature.json", "modèle v1/a b+c=d.pkl", "a/b..c"])
def test_plain_relative_paths_name_blobs(name: str) -> None:
    assert check_blob_name(name) == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "/etc/passwd", "a//b", "a/", "..", "a/../b", "./a", ".git/config", "a/.hidden", "a\\b", "a\nb", "a\0b"),
        *("model.tmp", "\ud800", "a\u202eb", "x" * 1025),
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(BlobNameError):
        check_blob_name(name)


@given(st.text(max_size=40))
def test_a_blob_name_never_leaves_its_root(name: str) -> None:
    if is_blob_name(name):
        assert not Path(name).is_absolute()
        assert Path("/root", name).resolve().is_relative_to("/root")
        assert Path(name).as_posix() == name


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://a/c?sv=1&sig=ab%2Fc&se=2", "https://a/c?sv=1&sig=[redacted]&se=2"),
        ("AccountName=a;AccountKey=Zm9v==;X=1", "AccountName=a;AccountKey=[redacted];X=1"),
        ("nothing secret", "nothing secret"),
    ],
)
def test_signatures_and_keys_are_struck_out(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_delays_double_up_to_the_longest() -> None:
    assert list(Retry(attempts=6, first_delay=0.5, longest_delay=3.0).delays()) == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_a_directory_store_never_loads_the_azure_libraries() -> None:
    script = "import sys; from registry.blobs import open_store; open_store('x'); print('azure' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "False"
