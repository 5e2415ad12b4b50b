"""The shadow: copies of live work in idle room, which nobody waits for and which take nothing from anybody."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from contract.connection import living
from contract.presence import Presence
from millstream.local.state_dir import StateDir
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.faults.test_registry import Registry
from tests.odd_models import CRASHES, HANGS, RAISES
from tests.servers import RedisServer
from tests.stage import ODD, GatewayProcess, Odd, Stage, Worker, ask, outputs

pytestmark = pytest.mark.integration

SHADOW = "2.0.0"
QUEUE_ROWS = 8
LIVE_FEATURE = {"name": "x", "type": "float", "example": 1.0}


@dataclass(frozen=True, slots=True)
class Trial:
    """A stage whose model answers by 1.0.0, which takes everything, with 2.0.0 as its shadow, which does not."""

    stage: Stage
    shadow: Odd
    """The strings of the shadow."""

    @property
    def digest(self) -> str:
        return self.stage.records[ODD].versions[SHADOW].digest.hex()

    def copies(self, prefix: str) -> list[tuple[wire.Header, wire.Event]]:
        """The events of copies of certain requests, with the header they share."""
        return [
            (header, event)
            for header, event in self.stage.batches(ODD)
            if event.status == wire.SHADOW and event.entry.request_id.startswith(prefix)
        ]

    def copied(self, prefix: str, count: int) -> dict[str, wire.Event]:
        """The copies of these requests by their ids, once there are so many."""
        eventually(lambda: len(self.copies(prefix)) >= count, within=20)
        return {event.entry.request_id: event for _, event in self.copies(prefix)}

    def statuses(self, prefix: str) -> list[int]:
        """Of these requests' events, in their order."""
        return [event.status for event in self.stage.events(ODD) if event.entry.request_id.startswith(prefix)]

    def workers(self) -> list[Presence]:
        return living(self.stage.redis, self.stage.keys, "worker")

    def counts(self) -> tuple[int, int]:
        """Copies done and dropped, as the workers show it."""
        shown = [worker.shadowed.get(ODD, (0, 0)) for worker in self.workers()]
        return sum(done for done, _ in shown), sum(dropped for _, dropped in shown)

    def counted(self, done: int, dropped: int) -> None:
        eventually(lambda: self.counts() == (done, dropped), within=5)

    def living(self) -> list[str]:
        """Those of the names whose process is there."""
        alive = {each.name for each in self.workers()}
        return [name for name in self.names() if name.partition(" ")[2] in alive]

    def names(self) -> list[str]:
        """Digest and worker of attempts that were not seen to end well."""
        fields: Any = self.stage.redis.hkeys(self.stage.keys.model(ODD).shadow)
        return [field.decode() for field in fields]


@contextmanager
def on_trial(valkey: RedisServer, folder: Path, **settings: object) -> Iterator[Trial]:
    prefix = f"w{uuid.uuid4().hex[:12]}"
    with Stage(folder, valkey.url, prefix, heartbeat_s=0.1, shadow_queue_rows=QUEUE_ROWS, **settings) as stage:
        shadow = Odd(folder / "shadow")
        stage.publish_odd(tame=True)
        stage.publish_odd(odd=shadow, version=SHADOW)
        stage.route(ODD, production="1.0.0", shadow=SHADOW)
        yield Trial(stage, shadow)
        shadow.open()


@pytest.fixture(scope="module")
def trial(valkey: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trial]:
    """With one worker; calls that a test holds back must not teach it to read one row at a time."""
    with on_trial(valkey, tmp_path_factory.mktemp("shadow"), batch_target_ms=60_000, lease_s=60) as trial:
        trial.stage.worker()
        yield trial


@pytest.fixture(scope="module")
def gateway(trial: Trial) -> GatewayProcess:
    return trial.stage.gateway(ODD)


def test_a_copy_is_an_event_of_the_shadow_and_nothing_else(trial: Trial, gateway: GatewayProcess) -> None:
    stage = trial.stage
    answer = gateway.predict(ask(ODD, 3.0, request_id="alike-r"))
    entry_id = stage.push(ODD, {"inputs": [4.0], "request_id": "alike-b"})
    copies = trial.copied("alike", 2)
    live = {event.entry.request_id: event for event in stage.events(ODD) if event.status == wire.OK}
    assert live.keys() == copies.keys() == {"alike-r", "alike-b"}
    for request_id, copy in copies.items():
        own = live[request_id]
        assert (copy.entry.version, copy.entry.digest.hex()) == (SHADOW, trial.digest)
        assert (own.entry.version, own.response.version) == ("1.0.0", "1.0.0")
        assert (copy.lane, copy.entry_id, copy.deliveries) == (own.lane, own.entry_id, own.deliveries)
        assert copy.entry.matrix == own.entry.matrix
        assert (copy.response.version, outputs(copy.response)) == (SHADOW, outputs(own.response))
    assert copies["alike-b"].entry_id == entry_id
    assert {(header.version, header.digest.hex()) for header, _ in trial.copies("alike")} == {(SHADOW, trial.digest)}
    # The caller's answer is the live version's, and stays it.
    assert gateway.result(ODD, "alike-r") == answer
    assert stage.count(ODD) == {"accepted": 2, "completed": 4, "copies": 2}
    stage.drained(ODD)
    trial.counted(2, 0)
    assert trial.names() == []


def test_copies_wait_for_idle_room_and_the_oldest_are_dropped(trial: Trial, gateway: GatewayProcess) -> None:
    """The worker is held in a live call while more requests come than it can keep copies of."""
    stage = trial.stage
    done, dropped = trial.counts()
    trial.shadow.forget()
    with stage.odd.closed():
        calls = [gateway.start_predict(ask(ODD, 1.0, request_id="idle-first"))]
        eventually(lambda: stage.odd.saw(1.0) == 1)
        calls += [gateway.start_predict(ask(ODD, 10.0 + n, request_id=f"idle-{n}")) for n in range(20)]
        eventually(lambda: stage.waiting(ODD) == 21)
        stage.push(ODD, {"inputs": [99.0], "request_id": "idle-bulk"})
    assert [outputs(call.result())[0]["out"] for call in calls] == [2.0, *(20.0 + 2 * n for n in range(20))]
    copies = trial.copied("idle", QUEUE_ROWS)
    # All that waited was served before the first copy was computed.
    assert trial.statuses("idle") == [wire.OK] * 22 + [wire.SHADOW] * QUEUE_ROWS
    assert copies.keys() == {"idle-bulk", *(f"idle-{n}" for n in range(13, 20))}
    trial.counted(done + QUEUE_ROWS, dropped + 22 - QUEUE_ROWS)
    # Never both in one call.
    values = [10.0 + n for n in range(20)]
    assert stage.odd.calls == [[1.0], values, [99.0]]
    assert trial.shadow.calls == [[*values[13:], 99.0]]


def test_who_comes_while_a_copy_is_computed_waits_for_that_call_only(trial: Trial, gateway: GatewayProcess) -> None:
    with trial.shadow.closed():
        gateway.predict(ask(ODD, 1.0, request_id="first-0"))
        eventually(lambda: trial.shadow.saw(1.0) == 1)
        calls = [gateway.start_predict(ask(ODD, 2.0, request_id=f"first-{n}")) for n in range(1, 5)]
        eventually(lambda: trial.stage.waiting(ODD) == 4)
    for call in calls:
        call.result()
    trial.copied("first", 5)
    assert trial.statuses("first") == [wire.OK, wire.SHADOW, *[wire.OK] * 4, *[wire.SHADOW] * 4]


def test_a_shadow_that_raises_has_its_error_recorded_and_costs_nobody_else_a_copy(
    trial: Trial, gateway: GatewayProcess
) -> None:
    with trial.stage.odd.closed():
        calls = [gateway.start_predict(ask(ODD, 1.0, request_id="raises-0"))]
        eventually(lambda: trial.stage.odd.saw(1.0) == 1)
        values = (2.0, RAISES, 4.0)
        calls += [gateway.start_predict(ask(ODD, x, request_id=f"raises-{n}")) for n, x in enumerate(values, start=1)]
        eventually(lambda: trial.stage.waiting(ODD) == 4)
    assert [outputs(call.result())[0]["out"] for call in calls] == [2.0, 4.0, 2 * RAISES, 8.0]
    copies = trial.copied("raises", 4)
    error = copies["raises-2"].response.error
    assert (error.reason, "minus thirteen" in error.message) == ("MODEL_FAILED", True)
    assert {request_id for request_id, copy in copies.items() if outputs(copy.response)} == {
        "raises-0", "raises-1", "raises-3"
    }  # fmt: skip
    assert trial.names() == []


@pytest.fixture
def pool(valkey: RedisServer, tmp_path: Path) -> Iterator[tuple[Trial, Worker]]:
    """Two workers under their supervisor."""
    with on_trial(valkey, tmp_path, batch_limit_s=3) as trial:
        yield trial, trial.stage.worker(workers=2)


@pytest.mark.faults
def test_a_shadow_that_ended_two_workers_is_computed_by_nobody_until_it_is_one_anew(
    pool: tuple[Trial, Worker], tmp_path: Path
) -> None:
    """One was killed, the other hung. Live work is answered all the while: what the dead workers held was copies."""
    trial, worker = pool
    stage, gateway = trial.stage, trial.stage.gateway(ODD)
    trial.shadow.forget()
    for number, value in enumerate((CRASHES, HANGS), start=1):
        assert outputs(gateway.predict(ask(ODD, value, request_id=f"ends-{number}"))) == [{"out": 2 * value}]
        eventually(lambda number=number: len(trial.names()) == number and not trial.living(), within=20)  # type: ignore[misc]

    def stopped() -> bool:
        gateway.predict(ask(ODD, CRASHES))
        return any(trial.digest in each.failed for each in trial.workers())

    eventually(stopped, within=20)
    assert [name.partition(" ")[0] for name in trial.names()] == [trial.digest] * 2
    [why] = {each.failed[trial.digest] for each in trial.workers() if each.failed}
    assert why == "it ended 2 worker processes while it computed copies of requests"
    logs = worker.folder.glob("logs/worker-*.log")
    assert any("a shadow is not computed any more" in log.read_text() for log in logs)
    stage.drained(ODD)
    # But for the example, on which workers that come up try what they load.
    assert [call for call in trial.shadow.calls if call != [1.0]] == [[CRASHES], [HANGS]]
    assert {event.status for event in stage.events(ODD)} == {wire.OK}
    with registry(stage, tmp_path) as calls:

        def row() -> tuple[str, str]:
            listed = calls.ListVersions(v1.ListVersionsRequest()).versions
            return next(((each.state, each.problem) for each in listed if each.version == SHADOW), ("", ""))

        eventually(lambda: row() == ("refused", why), within=20)
        eventually(lambda: not trial.names() and not any(each.failed for each in trial.workers()), within=5)
        calls.SetShadow(v1.SetShadowRequest(model_id=ODD, version=SHADOW, by="tests"))
        eventually(lambda: gateway.predict(ask(ODD, 5.0)) and trial.copies(""), within=20)
        eventually(lambda: row() == ("shadow", ""))


@contextmanager
def registry(stage: Stage, folder: Path) -> Iterator[Any]:
    """A registry that takes the stage's records over; what its service answers."""
    (folder / "store").mkdir()
    process = Registry(folder / "registry", {**stage.environment, "store_url": folder / "store"})
    keys = StateDir(process.folder).create().keys
    for key in stage.folder.glob("registry.*"):
        shutil.copy(key, keys)
    process.start()
    try:
        with grpc.insecure_channel(str(process.settings["registry_listen"])) as channel:
            yield v1_grpc.RegistryStub(channel)
    finally:
        process.stop()


def test_a_shadow_that_takes_other_features_gets_no_copies(trial: Trial, gateway: GatewayProcess) -> None:
    stage = trial.stage
    other = Odd(stage.folder / "other")
    features = [LIVE_FEATURE, {"name": "y", "type": "float", "example": 1.0}]
    stage.publish_odd(odd=other, version="3.0.0", expected_features=[{"index": i, **f} for i, f in enumerate(features)])
    stage.route(ODD, production="1.0.0", shadow="3.0.0")
    digest = stage.records[ODD].versions["3.0.0"].digest.hex()
    eventually(lambda: all(digest in each.loaded for each in trial.workers()), within=10)
    other.forget()
    before = trial.counts()[1]
    gateway.predict(ask(ODD, 1.0, request_id="unfit"))
    eventually(lambda: trial.counts()[1] == before + 1)
    assert (other.calls, trial.statuses("unfit")) == ([], [wire.OK])
