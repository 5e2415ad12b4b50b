"""`events verify`, `heads` and `erase` as people use them, with a sink process and heads in Azure's emulator."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from azure.storage.blob import ContainerClient
from typer.testing import CliRunner, Result

from millstream.cli import app
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from tests.conditions import eventually
from tests.event_entries import EventStream
from tests.event_logs import MODEL, PERSON, Log, links_of
from tests.servers import ROOT, Azurite, free_port

pytestmark = pytest.mark.integration


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["events", *map(str, words)])


@pytest.fixture
def container(azurite: Azurite) -> ContainerClient:
    container = ContainerClient.from_connection_string(azurite.connection_string, f"c{uuid.uuid4().hex[:12]}")
    container.create_container()
    return container


class SinkProcess:
    """`millstream sink` on a state directory of its own."""

    def __init__(self, redis_url: str, prefix: str, folder: Path, azurite: Azurite, container: str) -> None:
        self.log = Log(folder)
        self.address = f"127.0.0.1:{free_port()}"
        self.place = f"azure://{container}/kept"
        env = {
            "MILLSTREAM_REDIS_URL": redis_url,
            "MILLSTREAM_PREFIX": prefix,
            "MILLSTREAM_STATE_DIR": str(folder),
            "MILLSTREAM_SINK_LISTEN": self.address,
            "MILLSTREAM_HEADS_URL": self.place,
            "MILLSTREAM_EVENTS_URL": self.place,
            "MILLSTREAM_HEADS_EVERY_S": "0.1",
            "MILLSTREAM_AZURE_CONNECTION_STRING": azurite.connection_string,
        }
        self._process = subprocess.Popen([sys.executable, "-m", "millstream", "sink"], cwd=ROOT, env=os.environ | env)
        self._channel = grpc.insecure_channel(self.address)
        self.stub: Any = v1_grpc.EventLogStub(self._channel)

    def count(self) -> int:
        with suppress(grpc.RpcError):
            return int(self.stub.Count(v1.EventQuery(replay="*"), timeout=5).events)
        return -1

    def stop(self) -> int:
        self._process.send_signal(signal.SIGTERM)
        self._channel.close()
        return self._process.wait(20)

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._channel.close()


@pytest.fixture
def sink(
    redis_url: str,
    prefix: str,
    tmp_path: Path,
    azurite: Azurite,
    container: ContainerClient,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[SinkProcess]:
    """With ten events in it, of which three are about one person."""
    monkeypatch.setenv("MILLSTREAM_AZURE_CONNECTION_STRING", azurite.connection_string)
    with EventStream(redis_url, prefix) as stream:
        stream.announce()
        for _, (_, number, batch) in zip(range(3), links_of(MODEL), strict=False):
            stream.number = number - len(batch.events)
            stream.append(*batch.events, head=batch.header)
        sink = SinkProcess(redis_url, prefix, tmp_path / "state", azurite, container.container_name)
        try:
            eventually(lambda: sink.count() == 10, within=30)
            yield sink
        finally:
            sink.end()


def names(container: ContainerClient, start: str) -> list[str]:
    return [name for name in container.list_blob_names() if name.startswith(f"kept/{start}")]


def test_a_log_is_proven_sealed_and_erased_while_its_sink_runs_and_after_it(
    sink: SinkProcess, container: ContainerClient
) -> None:
    eventually(lambda: names(container, f"heads/{MODEL}/00000000000000000010-"), within=20)
    public = sink.log.folder / "keys" / "sink.pub"
    running = ("--event-log", sink.address, "--heads", sink.place, "--key", public)

    proven = run("verify", *running)
    assert (0, f"{MODEL}: 10 events, 0 segments, up to event 10: as they were recorded") == (
        proven.exit_code,
        proven.stdout.splitlines()[0],
    )
    assert "signed heads that agree: 1" in proven.stdout

    sink.stub.Seal(v1.SealRequest())
    eventually(lambda: len(names(container, f"events/{MODEL}/")) == 2, within=20)
    refused = run("erase", "--entity", PERSON, "--reason", "asked to", "--event-log", sink.address)
    assert (refused.exit_code, refused.stderr[:33]) == (2, "3 events will be emptied for good")
    erased = run("erase", "--entity", PERSON, "--reason", "asked to", "--event-log", sink.address, "--yes", "--json")
    assert json.loads(erased.stdout) == {"events": 3, "segments": 1}
    assert run("erase", "--entity", PERSON, "--reason", "x", "--event-log", sink.address, "--yes").exit_code == 4

    # One of the position, one of the segment, one of the erasure.
    eventually(lambda: len(names(container, f"heads/{MODEL}/")) == 3, within=20)
    proven = run("verify", MODEL, "--json", *running)
    found = json.loads(proven.stdout)
    assert (
        proven.exit_code,
        found["sound"],
        found["erased"],
        found["heads"],
        found["vouched_number"],
    ) == (0, True, 3, 3, 10)
    [head] = [json.loads(line) for line in run("heads", "--heads", sink.place, "--json").stdout.splitlines()]
    assert (head["document"]["head"]["number"], head["document"]["head"]["erased"]) == (10, 3)

    assert sink.stop() == 0
    stopped = ("--state-dir", sink.log.folder, "--heads", sink.place)
    assert run("verify", *stopped).exit_code == 0
    sink.log.sql(f"UPDATE erasures SET events = 0 WHERE model_id = '{MODEL}'")
    proven = run("verify", *stopped)
    assert proven.exit_code == 1
    assert "more were emptied than anybody asked for" in proven.stdout


def test_heads_that_are_not_good_are_told_and_do_not_count(tmp_path: Path) -> None:
    log = Log(tmp_path / "state")
    log.record(entries=2)
    log.sign()
    here = ("--state-dir", log.folder)
    assert run("verify", *here).exit_code == 0
    [path] = log.folder.glob("heads/*/*.json")
    document = json.loads(path.read_text())
    document["head"]["number"] = 5
    path.write_text(json.dumps(document))
    proven = run("verify", "--json", *here)
    [finding] = json.loads(proven.stdout)["findings"]
    assert (1, "head", f"heads/{MODEL}/{path.name}") == (proven.exit_code, finding["what"], finding["file"])
    assert run("verify", "--offline", *here).exit_code == 0


def test_it_is_told_what_can_t_be_found_without_heads(tmp_path: Path) -> None:
    log = Log(tmp_path / "state")
    log.record(entries=1)
    for words, said in (((), "no heads are in"), (("--offline",), "without heads:")):
        proven = run("verify", "--state-dir", log.folder, *words)
        assert (proven.exit_code, said in proven.stderr) == (0, True)
        assert "can't be found" in proven.stderr
    log.sign()
    (log.folder / "keys" / "sink.pub").unlink()
    refused = run("verify", "--state-dir", log.folder)
    assert (refused.exit_code, "--key" in refused.stderr) == (3, True)


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (("verify", "--state-dir", "nowhere"), 5, "nothing is running"),
        (("verify", "nobody"), 4, "nothing of a model 'nobody'"),
        (("verify", "--heads", "nowhere"), 4, "there is no directory"),
        (("verify", "--heads", "ftp://a/b"), 2, "--heads"),
        (("heads", "nobody"), 4, "no head of a model 'nobody'"),
        (("erase", "--entity", " ", "--reason", "r"), 2, "--entity"),
        (("erase", "--entity", "e", "--reason", "r"), 5, "nothing is running"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else None,
)
def test_what_can_t_be_asked_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], exit_code: int, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Log(tmp_path / "millstream-state").record(entries=1)
    refused = run(*words)
    assert (exit_code, True) == (refused.exit_code, said in refused.stderr), refused.stderr
    assert "Traceback" not in refused.stderr
