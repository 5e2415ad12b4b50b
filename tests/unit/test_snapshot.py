"""The snapshot file: what it holds comes out as it would from Redis, and what can't be used counts as nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import duckdb
import pytest
import structlog

from ingest.snapshot import AsyncSnapshot, Pair, Snapshot
from tests.conditions import eventually
from tests.snapshots import NOW, publish_snapshot

FORMS = ("parquet", "duckdb")


def looked_up(path: Path, *pairs: Pair) -> tuple[list[bytes | None], str]:
    """The values, and why the file is not used."""
    snapshot = Snapshot(path)
    with structlog.testing.capture_logs() as logs:
        values = snapshot.look_up(pairs)
        snapshot.close()
    return values, " ".join(entry.get("why", "") for entry in logs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        ("VARCHAR", "0.10", b"0.10"),
        ("VARCHAR", "Zoë", "Zoë".encode()),
        ("VARCHAR", "", b""),
        ("VARCHAR", None, None),
        ("DOUBLE", 0.1 + 0.2, b"0.30000000000000004"),
        ("DOUBLE", 5e-324, b"5e-324"),
        ("DOUBLE", 1.7976931348623157e308, b"1.7976931348623157e+308"),
        ("DOUBLE", -0.0, b"-0.0"),
        ("DOUBLE", 9007199254740991.0, b"9007199254740991.0"),
        ("FLOAT", 0.1, b"0.10000000149011612"),
        ("BIGINT", -(2**53), b"-9007199254740992"),
        ("UBIGINT", 2**53, b"9007199254740992"),
        ("BOOLEAN", True, b"true"),
        ("BOOLEAN", False, b"false"),
        ("DECIMAL(18,4)", "0.0001", b"0.0001"),
        ("BLOB", b"\xff\x00", b"\xff\x00"),
    ],
)
def test_a_value_comes_out_as_it_would_stand_in_redis(
    tmp_path: Path, form: str, kind: str, value: Any, expected: bytes | None
) -> None:
    path = tmp_path / "snapshot"
    publish_snapshot(path, [("101", "x", value, NOW)], value=kind, form=form)
    assert looked_up(path, ("101", "x")) == ([expected], "")


@pytest.mark.parametrize("form", FORMS)
def test_of_several_rows_the_newest_counts_and_others_are_not_mixed_in(tmp_path: Path, form: str) -> None:
    path = tmp_path / "it's a snapshot"
    rows = [
        ("101", "age", "30", "2026-01-02 00:00:00"),
        ("101", "age", "29", "2026-01-01 00:00:00"),
        ("101", "clicks", "5", NOW),
        ("101", "gone", "1", "2026-01-01 00:00:00"),
        ("101", "gone", None, "2026-01-02 00:00:00"),
        ("102", "age", "50", NOW),
    ]
    publish_snapshot(path, rows, form=form)
    pairs = [("102", "age"), ("101", "age"), ("102", "clicks"), ("101", "gone"), ("é\0", "age"), ("102", "age")]
    assert looked_up(path, *pairs) == ([b"50", b"30", None, None, None, b"50"], "")


@pytest.mark.parametrize("form", FORMS)
def test_ids_may_be_integers(tmp_path: Path, form: str) -> None:
    path = tmp_path / "snapshot"
    publish_snapshot(path, [(101, "age", "30", NOW)], entity="BIGINT", form=form)
    assert looked_up(path, ("101", "age"), ("0101", "age"), ("none", "age")) == ([b"30", None, None], "")


def test_one_table_of_several_is_the_one_called_features(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    publish_snapshot(path, [("101", "age", "30", NOW)], form="duckdb")
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE before AS FROM features WHERE false")
        connection.execute("CREATE TABLE notes (text VARCHAR)")
    assert looked_up(path, ("101", "age")) == ([b"30"], "")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ("'1' AS entity_id, 'x' AS feature, 1 AS value", "updated_at is missing"),
        (
            "1.5::DOUBLE AS entity_id, 'x' AS feature, 1 AS value, now() AS updated_at",
            "column entity_id: expected text",
        ),
        ("'1' AS entity_id, 'x' AS feature, [1] AS value, now() AS updated_at", "column value: expected text, numbers"),
    ],
)
def test_a_parquet_file_of_other_columns_is_not_used_and_told_which(
    tmp_path: Path, columns: str, expected: str
) -> None:
    path = tmp_path / "snapshot"
    duckdb.connect().execute(f"COPY (SELECT {columns}) TO '{path}' (FORMAT parquet)")
    values, why = looked_up(path, ("1", "x"))
    assert values == [None]
    assert expected in why


def test_what_is_no_snapshot_is_not_used_and_told_why(tmp_path: Path) -> None:
    absent, text, cut, other = (tmp_path / name for name in ("absent", "text", "cut", "other"))
    text.write_text("entity_id,feature,value,updated_at\n")
    publish_snapshot(cut, [("1", "x", "1", NOW)])
    cut.write_bytes(cut.read_bytes()[:-5])
    with duckdb.connect(str(other)) as connection:
        connection.execute("CREATE TABLE notes (text VARCHAR)")
    told = [looked_up(path, ("1", "x")) for path in (absent, tmp_path, text, cut, other)]
    assert [values for values, _ in told] == [[None]] * 5
    expected = ["no such file", "Is a directory", "Parquet or DuckDB", "can't be opened", "tables: notes"]
    assert [reason in why for reason, (_, why) in zip(expected, told, strict=True)] == [True] * 5, told


def test_a_database_that_somebody_writes_to_is_never_opened(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    publish_snapshot(path, [("1", "x", "1", NOW)], form="duckdb")
    wal = path.with_name("snapshot.wal")
    wal.touch()
    values, why = looked_up(path, ("1", "x"))
    assert values == [None]
    assert "somebody writes to it, snapshot.wal stands beside it" in why
    wal.unlink()
    assert looked_up(path, ("1", "x")) == ([b"1"], "")


def test_what_is_wrong_is_said_once_and_a_file_that_appears_is_used(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    snapshot = Snapshot(path)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            snapshot._next_check = 0.0
            assert snapshot.look_up([("1", "x")]) == [None]
        publish_snapshot(path, [("1", "x", "1", NOW)])
        eventually(lambda: snapshot.look_up([("1", "x")]) == [b"1"])
        path.unlink()
        eventually(lambda: snapshot.look_up([("1", "x")]) == [None])
    assert [entry["log_level"] for entry in logs] == ["warning", "info", "warning"]


@pytest.mark.parametrize("form", FORMS)
def test_every_answer_while_files_are_published_comes_from_one_of_them_and_the_last_one_wins(
    tmp_path: Path, form: str
) -> None:
    path = tmp_path / "snapshot"
    publish_snapshot(path, [("1", "x", "0", NOW)], form=form)
    snapshot = Snapshot(path)
    seen: set[bytes | None] = set()
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            snapshot._next_check = 0.0  # as if a second had passed
            seen.update(snapshot.look_up([("1", "x")]))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for number in range(8):
            if number:
                publish_snapshot(path, [("1", "x", str(number), NOW)], form=form)
            eventually(lambda number=number: str(number).encode() in seen, within=20)  # type: ignore[misc]
    finally:
        stop.set()
        asking.join()
        snapshot.close()
    assert seen == {str(number).encode() for number in range(8)}


class _Counted(Snapshot):
    """Counts its queries, and holds them while its gate is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.queries: list[int] = []
        self.asked = threading.Event()
        self.gate = threading.Event()

    def look_up(self, wanted: Sequence[Pair]) -> list[bytes | None]:
        self.queries.append(len(wanted))
        self.asked.set()
        self.gate.wait(20)
        return super().look_up(wanted)


def test_all_that_is_asked_in_one_turn_of_the_loop_is_one_query_and_so_is_what_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "snapshot"
    publish_snapshot(path, [(str(n), "x", str(n), NOW) for n in range(20)])
    counted = _Counted(path)

    async def ask() -> list[list[bytes | None]]:
        snapshot = AsyncSnapshot(counted)
        try:
            first = [asyncio.create_task(snapshot.look_up([(str(n), "x")])) for n in range(10)]
            await asyncio.to_thread(counted.asked.wait, 20)
            first[0].cancel()
            second = [asyncio.create_task(snapshot.look_up([(str(n), "x"), ("0", "y")])) for n in range(10, 20)]
            await asyncio.sleep(0)
            counted.gate.set()
            return await asyncio.gather(*first[1:], *second)
        finally:
            snapshot.close()

    answers = asyncio.run(ask())
    assert counted.queries == [10, 20]
    assert answers == [[str(n).encode()] for n in range(1, 10)] + [[str(n).encode(), None] for n in range(10, 20)]


def test_a_slow_file_does_not_hold_up_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.snapshot.LOOK_UP_S", 0.05)
    counted = _Counted(tmp_path / "snapshot")

    async def ask() -> list[bytes | None]:
        snapshot = AsyncSnapshot(counted)
        try:
            return await snapshot.look_up([("1", "x")])
        finally:
            counted.gate.set()
            snapshot.close()

    assert asyncio.run(ask()) == [None]
