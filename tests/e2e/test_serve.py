"""`millstream serve FILE`: somebody's own model, and the printed lines, which work as they stand."""

from __future__ import annotations

import csv
import json
import pickle
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
from sklearn.compose import make_column_transformer
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from millstream.draft import DraftFailed, draft
from tests.conditions import eventually
from tests.e2e.front_door import COMMAND, FrontDoor, processes_of, run

ROWS = 60


def write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def classifier_on_arrays(folder: Path) -> tuple[Path, list[str | Path]]:
    """Trained on numpy arrays, so that only the CSV knows names and types."""
    noise = np.random.default_rng(7)
    rows = np.column_stack([noise.integers(18, 90, ROWS), noise.uniform(0, 2, ROWS)])
    model = LogisticRegression().fit(rows, rows[:, 1] > 1)
    joblib.dump(model, folder / "late payer.joblib")
    table = [[int(age), repr(float(ratio)), int(ratio > 1)] for age, ratio in rows]
    return folder / "late payer.joblib", ["--csv", write_csv(folder / "t.csv", ["age", "debt ratio", "label"], table)]


def pipeline_on_a_frame(folder: Path) -> tuple[Path, list[str | Path]]:
    """Strings, booleans, and values that a shell or Python would take for something else."""
    towns = ["St. John's", "a $HOME; true", 'the "true" one']
    frame = pd.DataFrame(
        {
            "town": [towns[n % 3] for n in range(ROWS)],
            "is_true_owner": [n % 2 == 0 for n in range(ROWS)],
            "price": [100.5 + n for n in range(ROWS)],
        }
    )
    columns = make_column_transformer((OneHotEncoder(), ["town"]), (StandardScaler(), ["price", "is_true_owner"]))
    model = make_pipeline(columns, LogisticRegression()).fit(frame, ["yes" if n % 2 else "no" for n in range(ROWS)])
    with (folder / "owner.pkl").open("wb") as file:
        pickle.dump(model, file)
    frame.to_csv(folder / "t.csv", index=False)
    return folder / "owner.pkl", ["--csv", folder / "t.csv", "--model", "owners", "--version", "2.1"]


def regressor_alone(folder: Path) -> tuple[Path, list[str | Path]]:
    """Nothing but the estimator knows anything."""
    noise = np.random.default_rng(7)
    rows = noise.uniform(0, 1, (ROWS, 3))
    joblib.dump(RandomForestRegressor(n_estimators=5).fit(rows, rows.sum(axis=1)), folder / "sum.joblib")
    return folder / "sum.joblib", []


@pytest.mark.parametrize(
    ("make", "model_id", "outputs"),
    [
        (classifier_on_arrays, "late_payer", {"probability": float, "prediction": bool}),
        (pipeline_on_a_frame, "owners", {"probability": float, "prediction": str}),
        (regressor_alone, "sum", {"prediction": float}),
    ],
    ids=["arrays", "frame", "regressor"],
)
def test_the_printed_lines_work(make: Any, model_id: str, outputs: dict[str, type], tmp_path: Path) -> None:
    file, options = make(tmp_path)
    with FrontDoor(tmp_path, file, *options, "--yes", command="serve") as served:
        eventually(lambda: "What was asked and answered:" in served.said and served.said.endswith("\n\n"), within=10)
        asked, in_python, queried = printed(served.said)

        by_hand = subprocess.run(
            [COMMAND, *shlex.split(asked)[1:], "--json"], capture_output=True, text=True, timeout=30, check=False
        )
        assert by_hand.returncode == 0, by_hand.stderr
        answer = json.loads(by_hand.stdout)
        [prediction] = answer["predictions"]
        assert {name: type(value) for name, value in prediction.items()} == outputs

        program = subprocess.run(
            [sys.executable, "-c", in_python], capture_output=True, text=True, timeout=30, check=False
        )
        assert program.returncode == 0, program.stderr
        assert program.stdout == f"{prediction}\n"

        def events() -> list[dict[str, Any]]:
            words = [*shlex.split(queried)[1:], "--json"]
            done = subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=30, check=False)
            return [json.loads(line) for line in done.stdout.splitlines()]

        found = eventually(lambda: events() if len(events()) == 2 else [], within=20)
        assert answer["request_id"] in {event["request_id"] for event in found}
        assert {event["model_id"] for event in found} == {model_id}
        assert served.end(signal.SIGINT) == 0
        assert processes_of(served.state) == []


def printed(said: str) -> tuple[str, str, str]:
    """What stands below the three headings: a command, a program, a command."""
    _, _, rest = said.partition("Ask it:\n")
    asked, _, rest = rest.partition("From Python:\n")
    in_python, _, rest = rest.partition("What was asked and answered:\n")
    return asked.strip(), in_python, rest.split("\n\n")[0].strip()


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.joblib").write_text("just text")
    assert "m.joblib (9 bytes) can't be loaded" in refused(tmp_path, "m.joblib")
    assert not (tmp_path / "state").exists()


def test_a_csv_with_other_columns_is_refused_and_the_missing_ones_are_named(tmp_path: Path) -> None:
    file, _ = pipeline_on_a_frame(tmp_path)
    other = write_csv(tmp_path / "o.csv", ["town", "size"], [["x", 1]])
    said = refused(tmp_path, file.name, "--csv", other)
    assert "features that the CSV does not have: is_true_owner, price" in said


def test_other_contents_under_a_published_version_are_refused(tmp_path: Path) -> None:
    file, _ = regressor_alone(tmp_path)
    folder = tmp_path / "state/models/sum/1.0.0"
    folder.mkdir(parents=True)
    (folder / "model.production.joblib").write_bytes(b"another")
    assert "holds another model already: versions do not change, so give a new --version" in refused(
        tmp_path, file.name
    )
    assert (folder / "model.production.joblib").read_bytes() == b"another"


def drafted(folder: Path, name: str, rows: Path | None = None, model_id: str = "m") -> str:
    """What is said of a file that no signature can be drafted for."""
    with pytest.raises(DraftFailed) as failed:
        draft(folder / name, model_id=model_id, version="1", rows=rows, output=None)
    return str(failed.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert (
        drafted(tmp_path, "absent.joblib") == f"{tmp_path / 'absent.joblib'} can't be read: No such file or directory"
    )


def test_a_file_of_another_kind_is_told_which_kinds_there_are(tmp_path: Path) -> None:
    (tmp_path / "m.h5").write_text("just text")
    told = drafted(tmp_path, "m.h5")
    assert told.startswith("m.h5 is of no format that can be loaded; expected .joblib, .pkl, .skops")


def test_something_without_predict_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"not": "a model"}))
    assert drafted(tmp_path, "m.pkl") == "m.pkl holds a dict, which has no predict"


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([["a"], [1]], "the model takes 3 features, the CSV has 1 columns"),
        ([["a", "b", "c"], ["x", "y", "z"]], "the model does not answer a row like ['x', 'y', 'z']"),
        ([["a", "b", "c"]], "has a header and no rows; expected both"),
        ([], "has no header; expected both"),
        ([["a", "b", "c"], [1, 2, 3], [1, 2]], "line 3: expected 3 values as in the header, got 2"),
        ([["a", "a", "a"], [1, 2, 3]], "the drafted signature is refused"),
    ],
    ids=["too few columns", "strings for numbers", "no rows", "empty", "ragged", "names twice"],
)
def test_a_csv_that_does_not_fit_is_refused(lines: list[list[Any]], said: str, tmp_path: Path) -> None:
    file, _ = regressor_alone(tmp_path)
    rows = tmp_path / "o.csv"
    rows.write_text("".join(",".join(map(str, line)) + "\n" for line in lines))
    assert said in drafted(tmp_path, file.name, rows)


@pytest.mark.parametrize("name", ["a b", "../../m"])
def test_a_name_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    file, _ = regressor_alone(tmp_path)
    assert "model_id" in drafted(tmp_path, file.name, model_id=name)


def refused(folder: Path, name: str, *options: str | Path) -> str:
    """What is said of a file that can't be served; it must end with 3, and without a traceback."""
    done = run("serve", folder / name, *options, "--yes", "--state-dir", folder / "state", "--listen", "127.0.0.1:0")
    assert "Traceback" not in done.stderr
    assert done.returncode == 3, done.stderr
    return done.stderr
