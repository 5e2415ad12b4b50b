"""events and registry against a real gRPC server that answers from fixed rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from typer.testing import CliRunner, Result

from millstream.cli import app
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc

runner = CliRunner()


def _event(request_id: str, **fields: Any) -> v1.ModelEvent:
    event = v1.ModelEvent(
        model_id="churn",
        request_id=request_id,
        version="1.0.0",
        status="OK",
        inputs_json="[[25.0,-0.0]]",
        outputs_json='[{"churn_probability":0.85}]',
    )
    event.user_request_timestamp.FromMicroseconds(1_700_000_000_123_456)
    for name, value in fields.items():
        setattr(event, name, value)
    return event


class Records(v1_grpc.EventLogServicer, v1_grpc.RegistryServicer):
    """An event log and a registry in one; `asked` is the last request."""

    def __init__(self) -> None:
        self.asked: Any = None
        self.problems: list[str] = []
        self._server = grpc.server(ThreadPoolExecutor(max_workers=4))
        v1_grpc.add_EventLogServicer_to_server(self, self._server)
        v1_grpc.add_RegistryServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None).wait(10)

    def Query(self, request: v1.EventQuery, context: Any) -> Iterator[v1.ModelEvent]:
        self.asked = request
        if request.HasField("until") and request.until.seconds < request.since.seconds:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "until: expected a time after since")
        yield _event("first")
        yield _event("second", status="FAILED", outputs_json="", error_reason="MODEL_FAILED", error_message="no")

    def Follow(self, request: v1.EventQuery, context: Any) -> Iterator[v1.ModelEvent]:
        self.asked = request
        yield _event("new")

    def Count(self, request: v1.EventQuery, context: Any) -> v1.EventCount:
        self.asked = request
        alarms = {"churn": "its stream is another one"}
        return v1.EventCount(events=3, distinct_requests=2, by_status={"OK": 3}, by_model={"churn": 3}, alarms=alarms)

    def ListVersions(self, request: v1.ListVersionsRequest, context: Any) -> v1.ListVersionsResponse:
        self.asked = request
        broken = v1.VersionInfo(model_id="churn", version="2.0.0", state="refused", problem="line 3, column 7: a comma")
        return v1.ListVersionsResponse(
            versions=[
                v1.VersionInfo(model_id="churn", version="1.0.0", state="live", warnings=["odd: unknown"]),
                broken,
            ],
            store="models/",
            store_problem="not reachable since noon",
            models=[
                v1.ModelRouting(
                    model_id="churn",
                    production="1.0.0",
                    statement="promoted by alice@desk, 2026-01-02 10:00:00 UTC",
                    canary="2.0.0",
                    canary_percent=5.0,
                    abort_over=0.02,
                    canary_finished=200,
                    canary_failed=3,
                )
            ],
        )

    def Sync(self, request: v1.SyncRequest, context: Any) -> v1.SyncResponse:
        return v1.SyncResponse(listed=12, downloaded=1, changes=["churn 1.1.0 found"], problems=self.problems)

    def _done(self, request: Any, context: Any) -> v1.ActResponse:
        self.asked = request
        if request.model_id != "churn":
            context.abort(grpc.StatusCode.NOT_FOUND, f"no model {request.model_id!r} was ever found; there are: churn")
        detail = "it answers once every worker has loaded it"
        return v1.ActResponse(model_id="churn", version="1.1.0", digest="ab", detail=detail)

    Promote = SetCanary = SetShadow = Rollback = Pin = Unpin = _done

    def Retire(self, request: v1.RetireRequest, context: Any) -> v1.ActResponse:
        if not request.force:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "churn 1.0.0 answers now; say --yes to retire it")
        return self._done(request, context)

    def History(self, request: v1.HistoryRequest, context: Any) -> v1.HistoryResponse:
        self.asked = request
        entry = v1.HistoryEntry(model_id="churn", version="1.0.0", act="live", detail="all workers have it")
        entry.at.FromMicroseconds(1_700_000_000_000_000)
        return v1.HistoryResponse(entries=[entry])


@pytest.fixture
def records() -> Iterator[Records]:
    records = Records()
    yield records
    records.stop()


def _run(records: Records, *arguments: str) -> Result:
    option = "--event-log" if arguments[0] == "events" else "--registry"
    return runner.invoke(app, [*arguments, option, records.address])


def _lines(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_events_are_whole_rows_as_json(records: Records) -> None:
    first, second = _lines(_run(records, "events", "query", "--json"))
    assert first["inputs"] == [[25.0, -0.0]]
    assert str(first["inputs"][0][1]) == "-0.0"
    assert first["outputs"] == [{"churn_probability": 0.85}]
    assert first["user_request_timestamp"] == "2023-11-14T22:13:20.123456+00:00"
    assert first["predicted_at_timestamp"] is None
    assert (second["status"], second["outputs"], second["error_reason"]) == ("FAILED", None, "MODEL_FAILED")
    assert set(first) == {field.name.removesuffix("_json") for field in v1.ModelEvent.DESCRIPTOR.fields}


def test_events_are_a_table_for_people(records: Records) -> None:
    result = _run(records, "events", "query")
    assert "churn_probability" in result.stdout
    assert "MODEL_FAILED: no" in result.stdout
    assert "2 events" in result.stderr


def test_every_filter_reaches_the_log(records: Records) -> None:
    _run(
        records, "events", "query", "--model", "churn", "--version", "1.0.0", "--status", "failed", "--entity", "101",
        "--request-id", "mine", "--lane", "bulk", "--since", "2026-01-31T09:30:00Z", "--until", "2026-02-01",
        "--limit", "7", "--oldest-first",
    )  # fmt: skip
    asked = records.asked
    assert (asked.model_id, asked.version, asked.status, asked.entity_id) == ("churn", "1.0.0", "FAILED", "101")
    assert (asked.request_id, asked.lane, asked.limit, asked.oldest_first) == ("mine", "bulk", 7, True)
    assert asked.since.ToJsonString() == "2026-01-31T09:30:00Z"
    assert asked.until.ToJsonString() == "2026-02-01T00:00:00Z"


def test_what_the_log_refuses_ends_with_3(records: Records) -> None:
    result = _run(records, "events", "query", "--since", "2026-02-01", "--until", "2026-01-01")
    assert result.exit_code == 3
    assert "expected a time after since" in result.stderr


def test_events_are_counted(records: Records) -> None:
    (counted,) = _lines(_run(records, "events", "count", "--json"))
    alarms = {"churn": "its stream is another one"}
    numbers = {"events": 3, "distinct_requests": 2, "by_model": {"churn": 3}, "by_status": {"OK": 3}}
    assert counted == {**numbers, "alarms": alarms}
    shown = _run(records, "events", "count")
    assert "different requests" in shown.stdout
    assert "churn is not recorded: its stream is another one" in shown.stderr


def test_following_shows_events_as_they_come(records: Records) -> None:
    (event,) = _lines(_run(records, "events", "follow", "--json"))
    assert event["request_id"] == "new"


def test_versions_are_listed_with_what_is_wrong(records: Records) -> None:
    live, refused = _lines(_run(records, "registry", "list", "churn", "--json"))
    assert records.asked.model_id == "churn"
    assert (live["state"], live["warnings"]) == ("live", ["odd: unknown"])
    assert refused["problem"] == "line 3, column 7: a comma"
    shown = _run(records, "registry", "list")
    assert "line 3, column 7: a comma" in shown.stdout
    assert "the store has a problem: not reachable since noon" in shown.stderr


def test_sync_says_what_changed_and_ends_with_1_where_something_is_wrong(records: Records) -> None:
    well = _run(records, "registry", "sync")
    assert well.exit_code == 0
    assert "churn 1.1.0 found" in well.stdout
    records.problems = ["churn 2.0.0: line 3"]
    assert _run(records, "registry", "sync").exit_code == 1


def test_history_is_shown(records: Records) -> None:
    (entry,) = _lines(_run(records, "registry", "history", "churn", "--json"))
    assert entry == {
        "at": "2023-11-14T22:13:20.000000+00:00",
        "model_id": "churn",
        "version": "1.0.0",
        "digest": "",
        "act": "live",
        "detail": "all workers have it",
        "by": "",
    }


def test_a_model_is_shown_with_its_roles_and_statements(records: Records) -> None:
    (shown,) = _lines(_run(records, "registry", "show", "churn", "--json"))
    assert (shown["production"], shown["canary_percent"], shown["abort_over"]) == ("1.0.0", 5.0, 0.02)
    assert [each["version"] for each in shown["versions"]] == ["1.0.0", "2.0.0"]
    text = _run(records, "registry", "show", "churn").stdout
    assert "promoted by alice@desk" in text
    assert "5 % of the requests; aborted over 2 % failures, 3 of 200 so far" in text


@pytest.mark.parametrize(
    ("words", "name", "fields"),
    [
        (("promote", "churn", "1.1.0"), "PromoteRequest", {"version": "1.1.0"}),
        (
            ("canary", "churn", "1.1.0", "--percent", "2.5", "--abort-over", "5%"),
            "SetCanaryRequest",
            {"percent": 2.5, "abort_over": 0.05, "off": False},
        ),
        (("canary", "churn", "1.1.0", "--percent", "0"), "SetCanaryRequest", {"percent": 0.0, "abort_over": 0.0}),
        (("canary", "churn", "1.1.0", "--off"), "SetCanaryRequest", {"off": True}),
        (("shadow", "churn", "1.1.0", "--off"), "SetShadowRequest", {"off": True}),
        (("rollback", "churn"), "RollbackRequest", {}),
        (("retire", "churn", "1.1.0", "--yes"), "RetireRequest", {"force": True}),
        (("pin", "churn"), "PinRequest", {"version": ""}),
        (("unpin", "churn"), "UnpinRequest", {}),
    ],
)
def test_an_act_says_who_does_it_and_what_follows(
    records: Records, words: tuple[str, ...], name: str, fields: dict[str, Any]
) -> None:
    (done,) = _lines(_run(records, "registry", *words, "--json"))
    asked = records.asked
    assert (type(asked).__name__, asked.model_id) == (name, "churn")
    assert {field: getattr(asked, field) for field in fields} == fields
    assert asked.by.count("@") == 1
    assert done == {
        "act": words[0],
        "model_id": "churn",
        "version": "1.1.0",
        "digest": "ab",
        "detail": "it answers once every worker has loaded it",
        "by": asked.by,
    }
    assert "it answers once every worker has loaded it" in _run(records, "registry", *words).stdout


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("retire", "churn", "1.0.0"), 3, "churn 1.0.0 answers now; say --yes"),
        (("promote", "chrun", "1.0.0"), 4, "no model 'chrun' was ever found; there are: churn"),
        (("canary", "churn", "1.1.0"), 2, "expected --percent P, or --off"),
        (("canary", "churn", "1.1.0", "--percent", "5", "--off"), 2, "expected --percent P, or --off"),
        (("canary", "churn", "1.1.0", "--percent", "5", "--abort-over", "lots"), 2, "--abort-over: expected a rate"),
        (("canary", "churn", "1.1.0", "--percent", "5", "--abort-over", "500%"), 2, "--abort-over: expected a rate"),
    ],
)
def test_an_act_that_is_refused_says_why_and_ends_with_its_code(
    records: Records, words: tuple[str, ...], code: int, said: str
) -> None:
    result = _run(records, "registry", *words)
    assert (result.exit_code, result.stdout) == (code, "")
    assert said in result.stderr
