"""What the demo shows of the event log: nothing is missing, nothing was changed, and all of it can be computed again.

The commands that it names are run as a person would run them, with --json; so their exit codes are checked too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import anyio
import duckdb
import grpc

from consumers.audit.log_files import LogFiles, SegmentFile, quoted
from consumers.audit.reading import fetch
from consumers.audit.verify import verify as verified
from contract.connection import connect
from contract.keys import Keys
from millstream.calls import channel_options
from millstream.demo.questions import USER_AGE, USER_CLICKS
from millstream.demo.run import Run, within
from millstream.up import House
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc

RECORDED_S = 20.0
_COUNTED = ("predict_calls", "different", "runtime_differs", "not_reproducible", "not_predicted")


async def count_events(run: Run, house: House) -> int:
    """How many there are."""
    run.step("The event log: as many events as requests were accepted")
    accepted = _accepted(house.addresses["redis"], Keys(house.settings.prefix))
    address = house.addresses["event_log"]
    async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
        stub: Any = v1_grpc.EventLogStub(channel)
        everything = v1.EventQuery(replay="*")

        async def all_there() -> bool:
            return int((await stub.Count(everything)).events) >= accepted

        await within(RECORDED_S, all_there)
        count = await stub.Count(everything)
    for model, events in sorted(count.by_model.items()):
        run.show(f"{model:<16}{events:>8,} events")
    run.check(
        count.events == accepted == count.distinct_requests,
        f"{accepted:,} accepted, {count.events:,} events, {count.distinct_requests:,} distinct requests",
        by_status=dict(count.by_status),
    )
    return int(count.events)


async def find_event(run: Run, house: House, request_id: str) -> None:
    run.step(f"One request, found by its id: {request_id}")
    address = house.addresses["event_log"]
    async with grpc.aio.insecure_channel(address, options=channel_options(address)) as channel:
        stub: Any = v1_grpc.EventLogStub(channel)
        found = [event async for event in stub.Query(v1.EventQuery(request_id=request_id))]
    run.check(len(found) == 1, "it is there once")
    if not found:
        return
    event = found[0]
    for name, text in (
        ("model", f"{event.model_id} {event.version}, digest {event.digest[:16]}…"),
        ("inputs", f"{event.inputs_json} for entity {event.entity_id}"),
        ("came from", event.origins_json),
        ("outputs", event.outputs_json),
        ("worker", f"{event.worker}, batch of {event.batch_rows}, {event.engine}"),
    ):
        run.say(f"{name:<10} {text}")
    start = event.user_request_timestamp.ToMicroseconds()
    for stage in ("admitted", "appended", "delivered", "predicted_at"):
        moment = getattr(event, f"{stage}_timestamp").ToMicroseconds()
        run.show(f"{stage:<14}+{(moment - start) / 1000:.2f} ms")
    run.show("(appended is Redis's own clock, in whole milliseconds)")
    inputs, origins = json.loads(event.inputs_json), json.loads(event.origins_json)
    run.check(inputs == [[USER_AGE, USER_CLICKS]], "its inputs are the stored features", inputs=inputs)
    run.check(set(origins.values()) == {"redis"}, "and where each came from is recorded", origins=origins)


async def reconcile(run: Run, house: House) -> None:
    run.step("Is anything missing? The log against what Redis counted")
    done = await _command(run, house, "events", "reconcile")
    for each in done.lines:
        rows = each["live"] + each["sealed"]
        run.show(
            f"{each['model_id']:<16}{each['accepted']:>8,} accepted, {each['completed']:,} completed, {rows:,} recorded"
        )
        for problem in each["problems"]:
            run.say(problem)
    run.check(
        done.code == 0 and bool(done.lines) and all(each["adds_up"] for each in done.lines),
        "what was accepted was completed, and what was completed is in the log, once",
        missing=sum(len(each["holes"]) for each in done.lines),
    )


async def seal(run: Run, house: House, events: int) -> None:
    run.step("Rows are sealed: Parquet files that never change, which any tool may read while everything runs")
    done = await _command(run, house, "events", "seal")
    for each in done.lines:
        size = f"{each['rows']:,} events, {each['size'] / 1000:,.0f} kB"
        run.show(f"events/{each['model_id']}/{each['file']}   {size}")
    rows = _rows_of(house.settings.state_dir / "events")
    run.check(
        done.code == 0 and rows == events > 0,
        f"DuckDB counts all {rows:,} events in them",
        segments=len(done.lines),
    )


async def verify(run: Run, house: House) -> None:
    run.step("Was anything changed? The chain of hashes, computed again from every row")
    heads = house.settings.state_dir / "heads"

    async def signed() -> bool:
        sealed = {path.name for path in (house.settings.state_dir / "events").iterdir()}
        return sealed <= {path.parent.name for path in heads.glob("*/*.json")}

    if not house.settings.heads_url:
        await within(RECORDED_S, signed)  # the sink signs at once what was sealed
    done = await _command(run, house, "events", "verify")
    for each in done.lines:
        run.show(f"{each['model_id']:<16}{each['events']:>8,} events, {each['heads']} signed heads agree")
        for finding in each["findings"]:
            run.say(finding["text"])
    run.check(
        done.code == 0 and bool(done.lines) and all(each["sound"] for each in done.lines),
        "every event is as it was recorded, and where the sink signed the chain it agrees",
        events=sum(each["events"] for each in done.lines),
        heads=sum(each["heads"] for each in done.lines),
    )


def alter_a_copy(run: Run, house: House, request_id: str) -> None:
    """One answer of one event is another in a copy of the log; that copy is verified."""
    run.step(f"And if somebody had? In a copy of the log, {request_id} gets another answer")
    with tempfile.TemporaryDirectory(prefix="millstream-demo-copy-") as folder:
        files, altered = _altered(house.addresses["event_log"], Path(folder), request_id)
        found = [finding for each in verified(files, model_id=altered.model_id) for finding in each.findings]
    run.say(f"event {altered.number}: outputs {altered.before} become {altered.after}")
    for finding in found:
        run.say(finding.text)
    run.check(
        any(finding.number == altered.number for finding in found),
        "it is found, and the event is named",
        findings=[finding.text for finding in found],
    )


async def replay(run: Run, house: House) -> None:
    run.step("Would it answer so again? Every predict call is made once more")
    done = await _command(run, house, "replay", "verify")
    summary = done.lines[-1].get("summary", {}) if done.lines else {}
    for each in summary.get("by_version", ()):
        run.show(f"{each['model']:<16}{each['version']:<8}{each['reproduced']:>8,} of {each['events']:,} REPRODUCED")
    for why, count in {**summary.get("reasons", {}), **summary.get("runtime", {})}.items():
        run.say(f"{why} ({count:,})")
    events, reproduced = summary.get("events", 0), summary.get("reproduced", 0)
    run.check(
        done.code == 0 and events == reproduced > 0,
        f"{reproduced:,} of {events:,} answers are the same to the last bit",
        **{name: summary.get(name) for name in _COUNTED},
    )


# ---------------------------------------------------------------- commands, and what they read


@dataclass(frozen=True, slots=True)
class _Done:
    """A command that has ended."""

    code: int
    lines: list[dict[str, Any]]


async def _command(run: Run, house: House, *words: str) -> _Done:
    run.show(f"[cyan]$ millstream {' '.join(words)}[/cyan]")
    state = ("--json", "--state-dir", str(house.settings.state_dir))
    done = await anyio.run_process(
        (sys.executable, "-m", "millstream", *words, *state),
        stdin=subprocess.DEVNULL,
        check=False,
        env={**os.environ, **house.settings.environment()},
    )
    if done.returncode:
        run.say(f"ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()}")
    return _Done(done.returncode, [json.loads(line) for line in done.stdout.splitlines()])


def _accepted(url: str, keys: Keys) -> int:
    with connect(url) as client:
        models: Any = client.hkeys(keys.catalog)
        return sum(int(client.hget(keys.model(name.decode()).count, "accepted") or 0) for name in models)


def _rows_of(folder: Path) -> int:
    if not any(folder.glob("*/*.parquet")):
        return 0
    with duckdb.connect() as connection:
        files = quoted(str(folder / "*" / "*.parquet"))
        [(rows,)] = connection.execute(f"SELECT count(*) FROM {files}").fetchall()  # noqa: S608 - quoted
    return int(rows)


@dataclass(frozen=True, slots=True)
class _Altered:
    """The event that another answer stands for in a copy."""

    model_id: str
    number: int
    before: str
    after: str


def _altered(address: str, folder: Path, request_id: str) -> tuple[LogFiles, _Altered]:
    """The log with one file of its in `folder`, where the answer to that request is another."""
    with grpc.insecure_channel(address, options=channel_options(address)) as channel:
        files = fetch(v1_grpc.EventLogStub(channel), folder)
    with files.connect() as connection:
        [(model_id, number, before)] = connection.execute(
            "SELECT model_id, number, outputs FROM events WHERE request_id = ?", [request_id]
        ).fetchall()
        place, there = next(
            (place, each)
            for place, each in enumerate(files.segments)
            if each.segment.model_id == model_id and each.segment.first_number <= number <= each.segment.last_number
        )
        outputs = [
            {name: 0.01 if isinstance(value, float) else value for name, value in row.items()}
            for row in json.loads(before)
        ]
        after = json.dumps(outputs, separators=(",", ":"))
        copy = folder / f"altered-{there.segment.file}"
        connection.execute(
            f"COPY (SELECT * REPLACE (CASE WHEN number = {number:d} THEN {quoted(after)} ELSE outputs END AS outputs) "  # noqa: S608 - quoted
            f"FROM {quoted(str(there.path))}) TO {quoted(str(copy))} (FORMAT parquet)"
        )
    segments = (*files.segments[:place], SegmentFile(there.segment, copy), *files.segments[place + 1 :])
    return replace(files, segments=segments), _Altered(model_id, number, before, after)
