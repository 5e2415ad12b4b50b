"""Bulk files: what each way of writing a request becomes, and what is said of lines that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pytest

from contract.admission import Admission
from contract.errors import Reason, Refused
from contract.request import Request
from contract.signature import parse_signature
from ingest import bulk_rows
from ingest.bulk_file import BulkFile, Line
from ingest.bulk_progress import Progress, ProgressUnusable
from ingest.bulk_rows import BulkFileUnusable

SIGNATURE: dict[str, Any] = {
    "model_id": "m",
    "version": "1.0.0",
    "trained_date": "2026-01-31",
    "status": "production",
    "azure_location": "tests",
    "expected_features": [
        {"index": 0, "name": "age", "type": "int", "min": 0},
        {"index": 1, "name": "share", "type": "float", "default": 0.5},
        {"index": 2, "name": "plan", "type": "string", "nullable": True},
        {"index": 3, "name": "paid", "type": "bool", "default": False},
    ],
}
ENTITY = {"entity": {"name": "user_id", "key": "user:{id}:{feature}"}}


def admission_of(version: str) -> Admission:
    if version not in ("", "1.0.0"):
        raise Refused(Reason.VERSION_UNKNOWN, f"no version {version}")
    return Admission(parse_signature(json.dumps(SIGNATURE).encode())[0])


def hydrated(_version: str) -> Admission:
    return Admission(parse_signature(json.dumps(SIGNATURE | ENTITY).encode())[0])


def written(folder: Path, content: str | bytes) -> Path:
    path = folder / "file"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, after: int = 0, *, stored: bool = False, **more: Any) -> list[Line]:
    with BulkFile(path, "m", hydrated if stored else admission_of, **more) as file:
        return list(file.lines(after))


def bodies(lines: list[Line]) -> list[dict[str, Any]]:
    assert [line.problems for line in lines] == [()] * len(lines)
    return [json.loads(line.body) for line in lines]


def test_cells_are_typed_by_the_signature_and_empty_ones_take_default_or_null(tmp_path: Path) -> None:
    text = '\ufeffplan, age ,share,paid\r\n"a, ""b""\nc",25,1e-3,yes\r\n,3.0,,\r\n'
    lines = read(written(tmp_path, text))
    assert [body["features"] for body in bodies(lines)] == [
        {"plan": 'a, "b"\nc', "age": 25, "share": 0.001, "paid": True},
        {"plan": None, "age": 3},
    ]
    assert [line.number for line in lines] == [2, 4]


def test_an_id_is_the_files_content_and_the_line_whatever_the_file_is_called(tmp_path: Path) -> None:
    path = written(tmp_path, "age,plan\n1,a\n\n2,b\n")
    first = read(path)
    again = read(path.rename(tmp_path / "other.csv"), after=2)
    assert [line.request_id.partition("-")[2] for line in first] == ["2", "4"]
    assert again == first[1:]
    changed = read(written(tmp_path, "age,plan\n1,a\n\n3,b\n"))
    assert {line.request_id for line in changed}.isdisjoint(line.request_id for line in first)
    for line in first:
        assert Request.from_json(line.body, "m").check_ids() == []
        assert json.loads(line.body)["request_id"] == line.request_id


def test_own_ids_and_entities_stand_beside_the_features_and_what_is_stored_may_be_left_out(tmp_path: Path) -> None:
    lines = read(written(tmp_path, "request_id,entity_id,plan\nmine,101,a\n,102,\nthird,,a\n"), stored=True)
    assert bodies(lines[:2]) == [
        {"request_id": "mine", "entity_id": "101", "features": {"plan": "a"}},
        {"request_id": lines[1].request_id, "entity_id": "102", "features": {}},
    ]
    assert lines[2].problems == (
        "age: not sent and has no default; send it, or an entity_id (user_id) to have it fetched",
    )
    assert lines[0].body_sha256 == Request.from_json(lines[0].body, "m").body_sha256()


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("age,plan,colour", "column 'colour' is no feature of m"),
        ("age,plan,age", "column age stands twice"),
        ("plan", "column age is missing, and the feature has no default"),
        ("age;plan", "column 'age;plan' is no feature of m"),
        ("age,plan,entity_id", "column entity_id: m fetches no features"),
    ],
)
def test_wrong_columns_are_all_named_before_any_row_is_read(tmp_path: Path, header: str, expected: str) -> None:
    with pytest.raises(BulkFileUnusable) as caught:
        read(written(tmp_path, f"{header}\n1,2,3\n"))
    assert expected in str(caught.value)
    assert "m takes age, share, plan, paid; request_id may stand beside them" in str(caught.value)


def test_each_line_says_everything_that_is_wrong_with_it_and_the_next_one_is_read_on(tmp_path: Path) -> None:
    content = b'plan,age,share\n,old,much\n,-1,0.5\n,1\n,1,"x"y\n,2,\xff\n,,1\n,1,1e400\n,7,0.25\n'
    lines = read(written(tmp_path, content))
    assert [(line.number, line.problems) for line in lines[:-1]] == [
        (2, ("age: expected an int of at least 0, got 'old'", "share: expected a finite number, got 'much'")),
        (3, ("age: expected an int of at least 0, got -1",)),
        (4, ("expected 3 cells as in the header, got 2",)),
        (5, ("it is no CSV: ',' expected after '\"'",)),
        (6, ("it is not UTF-8",)),
        (7, ("age: the cell is empty",)),
        (8, ("share: expected a finite number, got inf",)),
    ]
    assert bodies([Line(9, body=lines[-1].body)])[0]["features"] == {"plan": None, "age": 7, "share": 0.25}


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b"", "is empty"), (b" \n", "is empty"), ("age,plan\n1,a\n".encode("utf-16"), "UTF-16"), (b'"', "line 1")],
)
def test_what_is_no_file_of_requests_is_refused_plainly(tmp_path: Path, content: bytes, expected: str) -> None:
    with pytest.raises(BulkFileUnusable, match=expected):
        read(written(tmp_path, content))
    with pytest.raises(BulkFileUnusable, match="can't be read"):
        read(tmp_path / "absent")


def test_a_json_line_stays_as_it_is_but_for_the_id_it_lacks(tmp_path: Path) -> None:
    texts = [
        '\ufeff{"inputs": [1, 0.10, "a", true], "model_id": "m"}',
        "",
        '  {"request_id":"mine","rows":[[1,0.5,null,false],[2,0.5,"b",true]],"version":"1.0.0"}',
        '{"features":{"age":1,"plan":"a"}}',
    ]
    lines = read(written(tmp_path, "\n".join(texts)))
    assert [line.number for line in lines] == [1, 3, 4]
    own = lines[0].request_id
    assert lines[0].body == f'{{"request_id":"{own}","inputs": [1, 0.10, "a", true], "model_id": "m"}}'.encode()
    assert lines[1][1:3] == ("mine", texts[2].strip().encode())
    assert bodies(lines)[2] == {"request_id": lines[2].request_id, "features": {"age": 1, "plan": "a"}}


def test_json_lines_that_no_worker_would_take_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk_rows, "LONGEST_LINE", 200)
    texts = [
        '{"inputs":[1,0.5,"a"]}',
        "[1,0.5]",
        '{"inputs":[1,0.5,"a",true],"inputs":[1]}',
        '{"inputs":[1,0.5,"a",true],"version":"9"}',
        '{"inputs":[1,0.5,"a",true],"request_id":""}',
        '{"inputs":[1,0.5,"' + "a" * 1000 + '",true]}',
        '{"features":{"plan":"a"}}',
        '{"inputs":[1,0.5,"a",true],"request_id":"1-1"}',
    ]
    problems = [line.problems[0] for line in read(written(tmp_path, "\n".join(texts)))]
    expected = [
        "inputs: expected 4 values",
        "the entry is a list, an object is expected",
        "stands twice",
        "no version 9",
        "it is empty; leave it out",
        "longer than",
        "age: not sent and has no default",
        "request_id: ids of the form 123-4",
    ]
    assert [text in problem for text, problem in zip(expected, problems, strict=True)] == [True] * 8, problems


def test_a_parquet_file_is_read_by_its_columns_and_from_any_row(tmp_path: Path) -> None:
    path = tmp_path / "it's.parquet"
    duckdb.connect().execute(
        "COPY (SELECT * FROM (VALUES (1::DOUBLE, 0.1::FLOAT, 'a', true), (2, 'nan'::FLOAT, '', NULL), "
        "(NULL, 0.25, NULL, false), (2.5, 0.25, NULL, false)) AS rows(age, share, plan, paid)) TO ? (FORMAT parquet)",
        [str(path)],
    )
    lines = read(path)
    assert [body["features"] for body in bodies(lines[:2])] == [
        {"age": 1, "share": 0.10000000149011612, "plan": "a", "paid": True},
        {"age": 2, "plan": ""},
    ]
    assert [line.problems for line in lines[2:]] == [
        ("age: the cell is empty",),
        ("age: expected an int of at least 0, got 2.5",),
    ]
    assert read(path, after=2) == lines[2:]


def test_replies_may_be_discarded(tmp_path: Path) -> None:
    table = read(written(tmp_path, "age,plan\n1,a\n"), discard_reply=True)
    text = read(written(tmp_path, '{"inputs":[1,0.5,"a",true]}\n'), discard_reply=True)
    assert [body["discard_reply"] for body in bodies(table + text)] == [True, True]


@pytest.mark.parametrize("rows", [0, 1, 50_000])
def test_done_ends_at_one(tmp_path: Path, rows: int) -> None:
    path = written(tmp_path, "age,plan\n" + "1,a\n" * rows)
    with BulkFile(path, "m", admission_of) as file:
        assert (sum(1 for _ in file.lines()), file.done) == (rows, 1.0)


def test_progress_comes_back_as_it_was_written_and_belongs_to_one_file_and_model(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert Progress.read(path, "abc", "m") is None
    progress = Progress("abc", "m", appended_to=7, collected_to=3, appended=6, skipped=1, answered=2)
    progress.failed["MODEL_FAILED"] += 1
    progress.write(path)
    assert Progress.read(path, "abc", "m") == progress
    assert [child.name for child in tmp_path.iterdir()] == ["rows.csv.millstream-progress"]
    with pytest.raises(ProgressUnusable, match="has changed since"):
        Progress.read(path, "abd", "m")
    with pytest.raises(ProgressUnusable, match="on its way to m, not n"):
        Progress.read(path, "abc", "n")
    for content in ("", "[]", '{"digest":"abc"}'):
        (tmp_path / "rows.csv.millstream-progress").write_text(content)
        with pytest.raises(ProgressUnusable, match="remove it to start anew"):
            Progress.read(path, "abc", "m")
    progress.remove(path)
    assert list(tmp_path.iterdir()) == []
