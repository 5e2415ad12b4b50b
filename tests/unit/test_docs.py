"""The documentation against the code: what it names exists, and what exists is named.

Run as a program it writes the table of docs/settings.md anew.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer

from consumers.sink.query import MAX_LIMIT
from consumers.sink.schema import COLUMNS, STATUSES
from contract.errors import Reason
from contract.keys import Keys, ModelKeys
from contract.settings import Settings
from contract.signature import parse_signature
from ingest.answer import error_class
from millstream.cli import app
from millstream.cli import errors as exits
from protos import millstream_v1_pb2 as v1
from tests.servers import Azurite

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
SHIPPED = [*PAGES, ROOT / "docker-compose.yml", ROOT / "Dockerfile"]
PACKAGES = ("contract", "ingest", "gateway", "consumers", "registry", "loadgen", "millstream")
NOT_SETTINGS = {"MILLSTREAM_CONFIG"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return [content for kind, content in _FENCE.findall(text) if kind == language]


def section(text: str, heading: str) -> str:
    """What stands below a heading, up to the next one."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#|\Z)", _FENCE.sub("", text), re.MULTILINE | re.DOTALL)
    assert found, heading
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all table rows whose first cell is code."""
    lines = [line.strip() for line in text.splitlines()]
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|"))] for line in lines if line.startswith("| `")
    ]


def variables(text: str) -> set[str]:
    return set(re.findall(r"\bMILLSTREAM_[A-Z0-9_]*[A-Z0-9]\b", text))


# ---------------------------------------------------------------- the command line


class Line(NamedTuple):
    """One command line of the documentation; `whole` where it could be typed as it is."""

    words: tuple[str, ...]
    whole: bool


def command_lines(text: str) -> Iterator[Line]:
    for content in blocks(text, ""):
        for line in content.splitlines():
            if re.search(r"(^|\s)millstream\s", line):
                words = shlex.split(line, comments=True)
                yield Line(tuple(words[words.index("millstream") + 1 :]), whole=True)
    for span in re.findall(r"`([^`\n]+)`", _FENCE.sub("", text)):
        if span.startswith("millstream "):
            yield Line(tuple(shlex.split(span))[1:], whole=False)


def described(words: tuple[str, ...]) -> tuple[Any, list[str]]:
    """The command that the first words name, and the rest of the words."""
    command: Any = typer.main.get_command(app)
    left = list(words)
    while left and hasattr(command, "commands") and not left[0].startswith("-"):
        assert left[0] in command.commands, f"there is no command {' '.join(words)!r}"
        command = command.commands[left.pop(0)]
    return command, left


def check(line: Line) -> None:
    """Every option exists, none lacks its value, and there are not too many arguments."""
    command, left = described(line.words)
    options = {name: each for each in command.params for name in (*each.opts, *each.secondary_opts)}
    options |= dict.fromkeys(("--help", "-h"), None)
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    values = 0
    while left:
        word = left.pop(0)
        name, equals, _ = word.partition("=")
        if word.startswith("-") and not re.fullmatch(r"-[0-9.]+", word):
            assert name in options, f"{' '.join(line.words)}: there is no option {name}"
            option = options[name]
            if option is not None and not option.is_flag and not equals:
                assert left or not line.whole, f"{' '.join(line.words)}: {name} lacks its value"
                left[:1] = []
        elif word != "…":
            values += 1
    assert values <= len(arguments) or any(each.nargs == -1 for each in arguments), " ".join(line.words)
    if line.whole:
        required = sum(each.required for each in arguments)
        assert values >= required, f"{' '.join(line.words)}: it needs {required} arguments"
        assert not hasattr(command, "commands") or "--help" in line.words, f"{' '.join(line.words)} is not complete"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_every_command_that_is_shown_exists_with_its_options(path: Path) -> None:
    for line in command_lines(path.read_text(encoding="utf-8")):
        check(line)


@pytest.mark.parametrize(
    "words", ["predikt", "predict --verson 2", "registry promote churn", "result churn", "status extra"]
)
def test_a_command_line_that_does_not_exist_is_noticed(words: str) -> None:
    with pytest.raises(AssertionError):
        check(Line(tuple(words.split()), whole=True))


def test_the_documentation_shows_every_command() -> None:
    shown = {line.words[:2] for path in PAGES for line in command_lines(path.read_text(encoding="utf-8"))}
    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        for below in getattr(command, "commands", {"": None}):
            words = (name, below) if below else (name,)
            assert any(each[: len(words)] == words for each in shown), f"no page shows `millstream {' '.join(words)}`"


def test_the_exit_codes_are_the_documented_ones() -> None:
    told = re.findall(r"^\| (\d+) \|", section(page("docs/errors.md"), "Exit codes of the command line"), re.MULTILINE)
    codes = (exits.OK, exits.FALSE, exits.USAGE, exits.REFUSED, exits.NOT_FOUND, exits.UNAVAILABLE, exits.DEADLINE)
    assert [int(code) for code in told] == [*codes, 130]


# ---------------------------------------------------------------- settings


def settings_table() -> str:
    lines = ["| variable | default | what |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        if hasattr(default, "get_secret_value"):
            default = default.get_secret_value()
        text = ",".join(default) if isinstance(default, tuple) else "" if default is None else str(default)
        lines.append(f"| `MILLSTREAM_{name.upper()}` | {f'`{text}`' if text else ''} | {field.description} |")
    return "\n".join(lines)


def with_settings_table(text: str) -> str:
    start, end = "<!-- settings -->\n", "<!-- /settings -->"
    head, _, rest = text.partition(start)
    return f"{head}{start}{settings_table()}\n{end}{rest.partition(end)[2]}"


def test_the_table_of_settings_is_that_of_the_code() -> None:
    text = page("docs/settings.md")
    assert with_settings_table(text) == text, "write it anew: .venv/bin/python -m tests.unit.test_docs"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_variable_that_is_named_is_a_setting(path: Path) -> None:
    known = {f"MILLSTREAM_{name.upper()}" for name in Settings.model_fields} | NOT_SETTINGS
    assert variables(path.read_text(encoding="utf-8")) <= known


def test_every_documented_setting_has_an_effect() -> None:
    source = "\n".join(
        path.read_text(encoding="utf-8")
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if path != ROOT / "contract" / "settings.py"
    )
    assert [name for name in Settings.model_fields if not re.search(rf"\b\w*settings\.{name}\b", source)] == []


# ---------------------------------------------------------------- errors, keys, events


def test_every_reason_is_documented_with_its_code_and_its_exception() -> None:
    told = {row[0].strip("`"): [cell.strip("`") for cell in row[1:3]] for row in rows(page("docs/errors.md"))}
    codes = {reason: (reason.code.name, error_class(reason.code.value, reason.text).__name__) for reason in Reason}
    assert told == {reason.text: list(expected) for reason, expected in codes.items()}


def test_every_key_is_documented() -> None:
    told = [row[0].strip("`") for row in rows(section(page("docs/architecture.md"), "Keys in Redis"))]
    keys = Keys("ms")
    model = keys.model("M")
    names = {name.name for name in fields(ModelKeys)} - {"base", "reply_prefix", "replies_prefix"}
    expected = [getattr(model, name) for name in names] + [model.reply("<request_id>"), model.replies("<gateway>")]
    expected += [keys.catalog, keys.catalog_revision, keys.presence("<role>", "<name>"), keys.roll("<role>")]
    expected += [keys.runtimes, keys.chunk("<sha256>", 0).removesuffix("0") + "<number>"]
    made_here = {"model", "catalog", "catalog_revision", "presence", "roll", "runtimes", "chunk"}
    assert {name for name in vars(Keys) if not name.startswith("_")} - {"prefix"} == made_here
    assert sorted(told) == sorted([*expected, "user:101:age"])


def test_every_status_is_documented() -> None:
    told = [row[0].strip("`") for row in rows(section(page("docs/architecture.md"), "Statuses"))]
    assert tuple(told) == STATUSES[1:]


def test_the_columns_of_the_event_log_are_the_documented_ones() -> None:
    told = rows(section(page("docs/event-log.md"), "Columns of `events`"))
    assert [(row[0].strip("`"), row[1].strip("`")) for row in told] == [
        (column.name, column.kind) for column in COLUMNS
    ]
    shown = {field.name.removesuffix("_json") for field in v1.ModelEvent.DESCRIPTOR.fields}
    assert {row[0].strip("`") for row in told if row[2]} == shown
    assert f"{MAX_LIMIT:,} at most" in page("docs/event-log.md")


def test_the_signatures_that_are_shown_are_good_and_use_every_field() -> None:
    text = page("docs/signature.md")
    examples = blocks(text, "json")
    assert [parse_signature(example.encode())[1] for example in examples] == [()] * len(examples)
    told = {name for row in rows(text) for name in re.findall(r"`(\w+)`", row[0])}
    used = set(re.findall(r'"(\w+)": ', examples[-1]))
    assert told <= used
    missing = {"x", "debt", "decision", "churn_probability", "age", "clicks", "balance", "plan"}
    assert used - told <= missing, "a field is used that no table has"


# ---------------------------------------------------------------- links, code, other files


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_relative_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _FENCE.sub("", path.read_text(encoding="utf-8"))):
        if link.startswith(("https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (path.parent / name).resolve() if name else path
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


def anchors(text: str) -> set[str]:
    """Headings as GitHub links to them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_python_that_is_shown_compiles(path: Path) -> None:
    for code in blocks(path.read_text(encoding="utf-8"), "python"):
        compile(code, path.name, "exec")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_make_targets_that_are_named_exist(path: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", page("Makefile"), re.MULTILINE))
    text = path.read_text(encoding="utf-8")
    named = re.findall(r"^make (\w+)", "\n".join(blocks(text, "")), re.MULTILINE) + re.findall(r"`make (\w+)`", text)
    assert set(named) <= targets


def test_the_readme_links_to_every_page() -> None:
    linked = set(re.findall(r"\]\((docs/[\w./-]+)", page("README.md")))
    pages = {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    assert pages - linked == set()


def test_the_readme_lists_every_package() -> None:
    listed = {row.split("](")[0] for row in re.findall(r"^\| \[(.+?)/\]", page("README.md"), re.MULTILINE)}
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert listed == folders


def test_the_commands_of_the_containers_exist() -> None:
    text = page("docker-compose.yml")
    commands = [json.loads(words) for words in re.findall(r"^    command: (\[.*\])$", text, re.MULTILINE)]
    assert sorted(command[0] for command in commands) == ["gateway", "registry", "sink", "trial", "worker"]
    for command in commands:
        check(Line(tuple(command), whole=True))
    assert 'ENTRYPOINT ["millstream"]' in page("Dockerfile")


def test_the_ports_of_the_containers_are_the_documented_ones() -> None:
    listens = dict(re.findall(r"MILLSTREAM_(\w*LISTEN): 0\.0\.0\.0:(\d+)", page("docker-compose.yml")))
    text = page("docs/operations.md")
    assert f"--address 127.0.0.1:{listens['LISTEN']}" in text
    assert f"--registry 127.0.0.1:{listens['REGISTRY_LISTEN']}" in text
    assert f"--event-log 127.0.0.1:{listens['SINK_LISTEN']}" in text


def test_the_compose_file_is_one() -> None:
    """By docker's own parser, where there is one; the checks above read the file as text."""
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], capture_output=True, check=False).returncode:
        pytest.skip("docker compose is not installed")
    command = [docker, "compose", "--file", str(ROOT / "docker-compose.yml"), "config", "--quiet"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stderr) == (0, "")


@pytest.mark.integration
def test_the_upload_that_is_shown_puts_versions_into_the_container(
    azurite: Azurite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from azure.storage.blob import ContainerClient

    for name in ("churn/1.0.0/signature.json", "churn/1.0.0/model.joblib"):
        (tmp_path / "models" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "models" / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    (code,) = (code for code in blocks(page("docs/operations.md"), "python") if "azure" in code)
    exec(code.replace("127.0.0.1:10000", f"127.0.0.1:{azurite.port}"), {})
    with ContainerClient.from_connection_string(azurite.connection_string, "ai-models") as container:
        found = {blob.name: container.download_blob(blob.name).readall().decode() for blob in container.list_blobs()}
    assert found == {name: name for name in ("churn/1.0.0/model.joblib", "churn/1.0.0/signature.json")}


if __name__ == "__main__":
    path = ROOT / "docs" / "settings.md"
    path.write_text(with_settings_table(path.read_text(encoding="utf-8")), encoding="utf-8")
