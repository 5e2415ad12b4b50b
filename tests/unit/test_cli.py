"""The command line: usage, help, exit codes, and how values become what a model takes."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from contract.settings import Settings
from contract.signature_parts import Feature
from millstream.cli import app
from millstream.cli.errors import CommandFailed, explained
from millstream.cli.moments import moment
from millstream.cli.values import inputs_of, named_of, read_rows, typed
from tests.servers import free_port

run = CliRunner()

COMMANDS = [
    ["predict"], ["submit"], ["result"], ["models"], ["up"], ["demo"], ["serve"], ["stock"], ["gateway"], ["worker"],
    ["sink"], ["doctor"], ["status"], ["load"], ["settings"], ["events", "query"], ["events", "count"],
    ["events", "follow"],
    ["dead", "list"], ["dead", "show"], ["dead", "retry"], ["dead", "drop"],
    ["registry", "run"], ["registry", "list"], ["registry", "show"], ["registry", "sync"], ["registry", "history"],
    ["registry", "publish"], ["registry", "keygen"], ["registry", "promote"], ["registry", "rollback"],
    ["registry", "canary"], ["registry", "shadow"], ["registry", "retire"], ["registry", "pin"], ["registry", "unpin"],
    ["trial"],
]  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_every_command_teaches_by_example(command: list[str]) -> None:
    shown = run.invoke(app, [*command, "--help"])
    assert shown.exit_code == 0
    assert "Example" in shown.stdout
    assert f"millstream {' '.join(command)}" in shown.stdout or "MILLSTREAM_" in shown.stdout


def test_help_loads_nothing_heavy() -> None:
    """`--help` is there at once, and a client command never opens what only servers need."""
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from millstream.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print([name for name in ('grpc', 'redis', 'duckdb', 'sklearn', 'azure', 'numpy', 'pydantic_settings')\n"
        "       if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_client_command_loads_neither_duckdb_nor_scikit_learn() -> None:
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from millstream.cli import app\n"
        f"CliRunner().invoke(app, ['predict', 'm', '1', '--address', '127.0.0.1:{free_port()}'])\n"
        "assert 'grpc' in sys.modules\n"
        "print([name for name in ('duckdb', 'sklearn', 'azure', 'joblib') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["models", "--nonsense"],
        ["predict", "churn", "--versoin", "1"],
        ["predict", "churn", "1", "-f", "age=2"],
        ["predict", "churn", "--rows", "x.csv", "--entity", "101"],
        ["predict", "churn", "--timeout", "soon", "1"],
        ["result", "churn"],
        ["events", "query", "--status", "GOOD"],
        ["events", "query", "--since", "yesterday"],
        ["events", "query", "--lane", "fast"],
        ["events", "query", "--limit", "0"],
        ["models", "--address", "no-port"],
    ],
    ids=" ".join,
)
def test_wrong_usage_ends_with_2_and_says_so_on_stderr(arguments: list[str], tmp_path: Path) -> None:
    shown = run.invoke(app, arguments, env={"MILLSTREAM_STATE_DIR": str(tmp_path)})
    assert shown.exit_code == 2
    assert shown.stdout == ""
    assert shown.stderr
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize(
    "command", [["models"], ["predict", "churn", "1"], ["events", "count"], ["registry", "list"], ["status"]]
)
def test_a_state_directory_where_nothing_runs_ends_with_5_and_says_how_to_start(
    command: list[str], tmp_path: Path
) -> None:
    shown = run.invoke(app, [*command, "--state-dir", str(tmp_path)])
    assert shown.exit_code == 5
    assert f"millstream up --state-dir {tmp_path}" in shown.stderr
    assert shown.stdout == ""


@pytest.mark.parametrize(
    "command",
    [["models", "--address"], ["events", "count", "--event-log"], ["registry", "list", "--registry"]],
    ids=" ".join,
)
def test_nobody_at_the_address_ends_with_5_and_names_it(command: list[str]) -> None:
    address = f"127.0.0.1:{free_port()}"
    shown = run.invoke(app, [*command, address])
    assert shown.exit_code == 5
    assert address in shown.stderr


def test_a_bad_setting_ends_with_2_and_names_it(tmp_path: Path) -> None:
    shown = run.invoke(app, ["gateway", "--engine", "steam", "--state-dir", str(tmp_path)])
    assert shown.exit_code == 2
    assert "engine" in shown.stderr


def test_an_unknown_variable_ends_with_2_and_names_it(tmp_path: Path) -> None:
    shown = run.invoke(app, ["worker", "--state-dir", str(tmp_path)], env={"MILLSTREAM_WROKERS": "2"})
    assert shown.exit_code == 2
    assert "MILLSTREAM_WROKERS" in shown.stderr


def test_settings_lists_every_setting_with_its_meaning() -> None:
    lines = [json.loads(line) for line in run.invoke(app, ["settings", "--json"]).stdout.splitlines()]
    assert {line["name"] for line in lines} == set(Settings.model_fields)
    assert all(line["description"] for line in lines)
    table = run.invoke(app, ["settings"]).stdout
    assert all(f"MILLSTREAM_{name.upper()}" in table for name in Settings.model_fields)


def test_version_is_shown() -> None:
    assert run.invoke(app, ["--version"]).stdout.startswith("millstream 0.")


def test_an_unexpected_error_is_one_line_with_a_hint() -> None:
    message, code = explained(TypeError("no such thing"))
    assert message == "unexpected TypeError: no such thing; `millstream --debug …` shows where"
    assert code == 1


FLOAT = Feature(0, "ratio", "float")
INT = Feature(1, "age", "int")
BOOL = Feature(2, "member", "bool")
TEXT = Feature(3, "name", "string")
MAYBE = Feature(4, "score", "float", nullable=True)


@pytest.mark.parametrize(
    ("text", "feature", "value"),
    [
        ("0.6", FLOAT, 0.6), ("-1e-5", FLOAT, -1e-5), ("45", FLOAT, 45.0), (" 7 ", FLOAT, 7.0), (".5", FLOAT, 0.5),
        ("45", INT, 45), ("-3", INT, -3), ("45.0", INT, 45), ("9007199254740993", INT, 9007199254740993),
        ("true", BOOL, True), ("No", BOOL, False), ("1", BOOL, True),
        ("45", TEXT, "45"), (" a b ", TEXT, " a b "), ("null", TEXT, "null"),
        ("null", MAYBE, None), ("", MAYBE, None),
    ],
)  # fmt: skip
def test_a_text_is_typed_by_its_feature(text: str, feature: Feature, value: object) -> None:
    found = typed(text, feature)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("text", "feature"),
    [
        ("abc", FLOAT), ("nan", FLOAT), ("inf", FLOAT), ("1_0", FLOAT), ("", FLOAT), ("0x10", FLOAT), ("１", FLOAT),
        ("4.5", INT), ("1e3", INT), ("null", INT), ("2", BOOL), ("", BOOL), ("None", MAYBE),
    ],
)  # fmt: skip
def test_a_text_that_is_not_of_the_type_is_refused(text: str, feature: Feature) -> None:
    with pytest.raises(ValueError, match="expected"):
        typed(text, feature)


def test_all_that_is_wrong_with_positional_values_is_said_at_once() -> None:
    with pytest.raises(CommandFailed) as caught:
        inputs_of(["high", "old"], [FLOAT, INT])
    assert caught.value.message.splitlines() == [
        "ratio: expected a finite number, got 'high'",
        "age: expected an int, got 'old'",
    ]
    with pytest.raises(CommandFailed, match=r"expected 2 values \(RATIO AGE\), got 1"):
        inputs_of(["1"], [FLOAT, INT])


def test_named_values_may_hold_an_equals_sign() -> None:
    odd = Feature(0, "a=b", "string")
    assert named_of(["name=x=y", "a=b=z"], [TEXT, odd]) == {"name": "x=y", "a=b": "z"}


def test_all_that_is_wrong_with_named_values_is_said_at_once() -> None:
    with pytest.raises(CommandFailed) as caught:
        named_of(["ratio", "years=3", "age=x", "ratio=1", "ratio=2"], [FLOAT, INT])
    assert [line.split(":")[0] for line in caught.value.message.splitlines()] == ["'ratio'", "years", "age", "ratio"]


def _read(path: Path, features: list[Feature]) -> list[list[object]]:
    return [list(row) for _, rows, _ in read_rows(path, features, 100) for row in rows]


def test_a_csv_is_read_by_header_with_a_byte_order_mark_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "people.csv"
    path.write_bytes('\ufeffage,id,ratio,name\n45,1,0.6,"a,b"\n\n46,2,,c\n'.encode())
    features = [Feature(0, "ratio", "float", has_default=True, default=0.5), INT, TEXT]
    assert _read(path, features) == [[0.6, 45, "a,b"], [0.5, 46, "c"]]
    assert next(read_rows(path, features, 100))[2] == ["id"]


def test_json_lines_are_read_by_name_or_position(tmp_path: Path) -> None:
    path = tmp_path / "people.jsonl"
    path.write_text('{"age": 45, "ratio": 0.6}\n[0.7, 46]\n')
    assert _read(path, [FLOAT, INT]) == [[0.6, 45], [0.7, 46]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"age,ratio\n", "has no rows"),
        (b"age,age\n1,2\n", "names age twice"),
        (b"age,ratio\n1\n", "line 2: expected 2 cells"),
        (b"age,ratio\n45,high\n", "line 2, ratio: expected a finite number, got 'high'"),
        (b"age\n45\n", "line 2, ratio: missing"),
        (b"age,ratio\n\xff,1\n", "is not UTF-8"),
        (b"{nonsense\n", "line 1: expected one JSON object or list"),
        (b"[1]\n", "line 1: expected 2 values, got 1"),
        (b'{"age": 1, "ratio": 1}\n3\n', "line 2: expected a JSON object or list, got 3"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content)
    with pytest.raises(CommandFailed) as caught:
        _read(path, [FLOAT, INT])
    assert message in caught.value.message
    assert caught.value.exit_code == 3


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="can't be read: No such file"):
        _read(tmp_path / "nowhere.csv", [FLOAT])


def test_rows_come_in_chunks_that_know_their_first_row(tmp_path: Path) -> None:
    path = tmp_path / "many.csv"
    path.write_text("age\n" + "".join(f"{n}\n" for n in range(25)))
    assert [(first, len(rows)) for first, rows, _ in read_rows(path, [INT], 10)] == [(1, 10), (11, 10), (21, 5)]


NOW = datetime(2026, 1, 31, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("10m", datetime(2026, 1, 31, 11, 50, tzinfo=UTC)),
        ("2h", datetime(2026, 1, 31, 10, 0, tzinfo=UTC)),
        ("2026-01-30", datetime(2026, 1, 30, tzinfo=UTC)),
        ("2026-01-31T09:30:00Z", datetime(2026, 1, 31, 9, 30, tzinfo=UTC)),
        ("2026-01-31T09:30:00+02:00", datetime(2026, 1, 31, 7, 30, tzinfo=UTC)),
    ],
)
def test_a_time_is_a_moment_or_how_long_ago(text: str, meant: datetime) -> None:
    assert moment(text, "--since", NOW) == meant


@pytest.fixture
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("_in_an_empty_folder")
def test_without_any_option_the_default_state_directory_is_looked_at(tmp_path: Path) -> None:
    shown = run.invoke(app, ["models"])
    assert shown.exit_code == 5
    assert str(tmp_path / "millstream-state") in shown.stderr


def test_doctor_says_what_is_well_and_what_is_not(tmp_path: Path) -> None:
    listen = f"127.0.0.1:{free_port()}"
    found = run.invoke(app, ["doctor", "--state-dir", str(tmp_path / "new"), "--listen", listen, "--json"])
    assert found.exit_code == 0, found.stdout
    verdicts = {line["subject"]: line["verdict"] for line in map(json.loads, found.stdout.splitlines())}
    assert verdicts["server"] == "ok"
    assert verdicts["gateway"] == "ok"
    assert not (tmp_path / "new").exists(), "nothing is changed"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        found = run.invoke(app, ["doctor", "--state-dir", str(tmp_path), "--listen", listen])
    assert found.exit_code == 1
    assert f"{listen} can't be listened on" in found.stdout


def test_doctor_of_a_redis_that_is_gone_ends_with_1(tmp_path: Path) -> None:
    url = f"redis://:secret@127.0.0.1:{free_port()}"
    found = run.invoke(app, ["doctor", "--state-dir", str(tmp_path), "--redis-url", url, "--listen", "127.0.0.1:0"])
    assert found.exit_code == 1
    assert "fail Redis" in found.stdout
    assert "secret" not in found.stdout


def test_up_refuses_a_size_that_is_none(tmp_path: Path) -> None:
    shown = run.invoke(app, ["up", "--state-dir", str(tmp_path), "--maxmemory", "lots"])
    assert shown.exit_code == 2
    assert "--maxmemory" in shown.stderr
