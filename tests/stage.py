"""A stage for tests of gateway and worker together: their real processes on a real server, without a registry.

Models are sealed and published straight into Redis; events stay in their streams, where tests read them.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import grpc
import joblib
import orjson
import redis
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_status import rpc_status

from contract.connection import living
from contract.keys import GROUP, Keys
from contract.record import ModelRecord
from contract.request import Native, native, value_of
from contract.settings import Settings
from contract.trust import private_key
from millstream.local.allocator import preloading
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from protos import millstream_wire_v1_pb2 as wire
from tests.conditions import eventually
from tests.odd_models import OddModel, TextModel
from tests.publishing import publish, publish_files, put
from tests.servers import LOOPBACK, ROOT, Server, free_port

ODD = "odd"
TEXT = "text"
TEXT_LENGTH = 40
TIMEOUT_S = 20.0
"""Deadline of the tests' calls: far above what any takes, so that a lost reply fails instead of hanging."""

ENGINE = os.environ.get("TEST_ENGINE", "grpcio")
"""The gRPC server that gateways run on: the same tests hold for each."""

_SERVING = health_pb2.HealthCheckResponse.SERVING


class RoleProcess(Server):
    """`millstream worker` or `millstream gateway` with settings of its own."""

    name = "role"

    def __init__(self, folder: Path, role: str, settings: Mapping[str, object]) -> None:
        super().__init__(folder)
        self.role = role
        self.settings = {**settings, "state_dir": folder}

    def command(self) -> list[str]:
        told = {f"MILLSTREAM_{name.upper()}": value for name, value in self.settings.items()}
        env = [f"{name}={value}" for name, value in {**told, **preloading(Settings.read())}.items()]
        program = [sys.executable, "-m", "millstream", self.role]
        return [shutil.which("env") or "/usr/bin/env", f"PYTHONPATH={ROOT}", *env, *program]

    def terminate(self) -> None:
        """SIGTERM; `wait` tells what became of it."""
        os.kill(self.pid, signal.SIGTERM)

    def wait(self, within: float = 10.0) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired where it goes on."""
        if self._child is None:
            raise RuntimeError(f"{self.role} does not run")
        return self._child.wait(within)


class Worker(RoleProcess):
    """One worker process, or a pool of them."""

    def __init__(self, folder: Path, stage: Stage, settings: Mapping[str, object]) -> None:
        super().__init__(folder, "worker", {**stage.environment, **settings})
        self._stage = stage
        self._count = int(str(settings.get("workers", 1)))
        self._before: set[int] = set()

    def start(self, within: float = 30.0) -> None:
        self._before = self._stage.worker_pids()
        super().start(within)

    def answers(self) -> bool:
        return len(self._stage.worker_pids() - self._before) >= self._count

    @property
    def pids(self) -> set[int]:
        """Of the living workers of a pool."""
        return self._stage.worker_pids() - self._before


class GatewayProcess(RoleProcess):
    """One gateway, a channel to it, and stubs."""

    def __init__(self, folder: Path, stage: Stage, settings: Mapping[str, object]) -> None:
        self.address = f"{LOOPBACK}:{free_port()}"
        super().__init__(folder, "gateway", {**stage.environment, "listen": self.address, **settings})

    def answers(self) -> bool:
        host, _, port = self.address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1.0).close()
        except OSError:
            return False
        return True

    def start(self, within: float = 30.0) -> None:
        super().start(within)
        options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        self.channel = grpc.insecure_channel(self.address, options=options)
        self.stub: Any = v1_grpc.PredictorStub(self.channel)
        self.health: Any = health_pb2_grpc.HealthStub(self.channel)

    def _end(self, by: Any) -> None:
        with suppress(AttributeError):
            self.channel.close()
        super()._end(by)

    def serves(self, model_id: str = "") -> bool:
        """Whether health says so, of a model or of the whole."""
        service = f"millstream.v1.Predictor/{model_id}" if model_id else ""
        try:
            answer = self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        except grpc.RpcError:
            return False
        return bool(answer.status == _SERVING)

    def predict(self, request: v1.PredictRequest, timeout: float = TIMEOUT_S) -> v1.PredictResponse:
        """One answer. Raises grpc.RpcError."""
        response: v1.PredictResponse = self.stub.Predict(request, timeout=timeout)
        return response

    def start_predict(self, request: v1.PredictRequest, timeout: float = TIMEOUT_S) -> Any:
        """The same as a future of gRPC's."""
        return self.stub.Predict.future(request, timeout=timeout)

    def submit(self, request: v1.PredictRequest) -> v1.SubmitResponse:
        response: v1.SubmitResponse = self.stub.Submit(request, timeout=TIMEOUT_S)
        return response

    def live(self, model_id: str) -> str:
        """The version that it pins requests to which name none, but for a canary's share."""
        return str(self.stub.GetModel(v1.GetModelRequest(model_id=model_id), timeout=TIMEOUT_S).version)

    def result(self, model_id: str, request_id: str, wait_s: float = 0.0) -> v1.PredictResponse:
        request = v1.GetResultRequest(model_id=model_id, request_id=request_id)
        request.wait.FromMilliseconds(int(wait_s * 1000))
        response: v1.PredictResponse = self.stub.GetResult(request, timeout=TIMEOUT_S)
        return response


class Odd:
    """The strings of an OddModel."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder

    @property
    def calls(self) -> list[list[float]]:
        """The first column of each call so far, those of loading left out."""
        try:
            text = (self.folder / "calls").read_text()
        except FileNotFoundError:
            return []
        return [[float(item) for item in line.split()] for line in text.splitlines()]

    def forget(self) -> None:
        """From here on `calls` begins anew."""
        (self.folder / "calls").unlink(missing_ok=True)

    def saw(self, value: float) -> int:
        """How many rows with this value came in."""
        return sum(call.count(value) for call in self.calls)

    @contextmanager
    def closed(self) -> Iterator[None]:
        """Every call waits until the block is left; `calls` begins anew with it."""
        self.forget()
        gate = self.folder / "closed"
        gate.touch()
        try:
            yield
        finally:
            gate.unlink(missing_ok=True)

    def open(self) -> None:
        (self.folder / "closed").unlink(missing_ok=True)


class Stage:
    """One prefix on one server, with models, and the processes that were started for it."""

    def __init__(self, folder: Path, url: str, prefix: str, **settings: object) -> None:
        self.folder = folder
        self.url = url
        self.keys = Keys(prefix)
        self.redis = redis.Redis.from_url(url, retry=None)
        self._key_file = folder / "registry.key"
        self._key = private_key(self._key_file)
        self._numbers = itertools.count(1)
        self._stack = ExitStack()
        self.records: dict[str, ModelRecord] = {}
        self._events: dict[str, list[tuple[wire.Header, wire.Event]]] = {}
        self._read_to: dict[str, str] = {}
        self.environment: dict[str, object] = {
            "redis_url": url,
            "prefix": prefix,
            "registry_public_key": self._key_file.with_suffix(".pub"),
            "log_format": "json",
            "engine": ENGINE,
            **settings,
        }
        self.odd = Odd(folder / "odd")

    def settings(self, **more: object) -> Settings:
        """The same settings for something that runs in the test's own process."""
        return Settings(**{"state_dir": self.folder, **self.environment, **more})  # type: ignore[arg-type]

    def publish(self, folder: Path) -> None:
        """A version from its folder."""
        before = self.records.get(folder.parent.name)
        record = publish(self.redis, self.keys, self._key, folder, before=before)
        self.records[record.model_id] = record

    def publish_model(self, model_id: str, model: object, features: Sequence[Mapping[str, Any]], **more: Any) -> None:
        """A model object with one output, `out`, under its signature."""
        content = {
            "model_id": model_id,
            "version": "1.0.0",
            "trained_date": "2026-01-31",
            "status": "production",
            "azure_location": "tests",
            "expected_features": [{"index": index, **feature} for index, feature in enumerate(features)],
            "outputs": [{"name": "out", "call": "predict"}],
            **more,
        }
        file = io.BytesIO()
        joblib.dump(model, file)
        files = {"model.joblib": file.getvalue()}
        before = self.records.get(model_id)
        self.records[model_id] = publish_files(
            self.redis, self.keys, self._key, orjson.dumps(content), files, before=before
        )

    def publish_odd(self, model_id: str = ODD, odd: Odd | None = None, *, tame: bool = False, **more: Any) -> None:
        """An OddModel that `self.odd` steers, or another one."""
        model = OddModel((odd or self.odd).folder, tame=tame)
        self.publish_model(model_id, model, [{"name": "x", "type": "float", "example": 1.0}], **more)

    def publish_text(self) -> None:
        self.publish_model(TEXT, TextModel(TEXT_LENGTH), [{"name": "x", "type": "float", "example": 1.0}])

    def route(self, model_id: str, **routing: Any) -> None:
        """Changes the routing of a model, as the registry would."""
        record = self.records[model_id]
        record = replace(record, revision=record.revision + 1, routing=replace(record.routing, **routing))
        put(self.redis, self.keys, self._key, record)
        self.records[model_id] = record

    def worker(self, **settings: object) -> Worker:
        """Starts a worker, or a pool of `workers`; it has loaded everything when this returns."""
        process = Worker(self.folder / f"worker-{next(self._numbers)}", self, settings)
        self._stack.enter_context(process)
        return process

    def gateway(self, *models: str, **settings: object) -> GatewayProcess:
        """Starts a gateway and waits until it serves `models`."""
        process = GatewayProcess(self.folder / f"gateway-{next(self._numbers)}", self, settings)
        self._stack.enter_context(process)
        for model_id in models:
            eventually(lambda model_id=model_id: process.serves(model_id), within=20)  # type: ignore[misc]
        return process

    def worker_pids(self) -> set[int]:
        """Of the workers whose presence stands in Redis and who live."""
        return {p.pid for p in living(self.redis, self.keys, "worker") if _lives(p.pid)}

    def events(self, model_id: str, request_id: str = "") -> list[wire.Event]:
        """The events of a model, oldest first; those of one request where it is named."""
        return [event for _, event in self.batches(model_id) if request_id in ("", event.entry.request_id)]

    def batches(self, model_id: str) -> list[tuple[wire.Header, wire.Event]]:
        """Each event with the header it shares."""
        known = self._events.setdefault(model_id, [])
        entries: Any = self.redis.xrange(self.keys.model(model_id).events, min=self._read_to.get(model_id, "-"))
        for entry_id, fields in entries:
            batch = wire.EventBatch.FromString(fields[b"pb"])
            assert batch.SerializeToString(deterministic=True) == fields[b"pb"], "its encoding is not the canonical one"
            known += [(batch.header, event) for event in batch.events]
            self._read_to[model_id] = f"({entry_id.decode()}"
        return known

    def ended(self, model_id: str, request_id: str, within: float = 10.0) -> wire.Event:
        """The one event of a request, once it is there."""
        events = eventually(lambda: self.events(model_id, request_id), within)
        assert len(events) == 1, events
        return events[0]

    def dead(self, model_id: str) -> list[dict[str, bytes]]:
        """The dead letters of a model, oldest first."""
        entries: Any = self.redis.xrange(self.keys.model(model_id).dead)
        return [{name.decode(): value for name, value in fields.items()} for _, fields in entries]

    def count(self, model_id: str) -> dict[str, int]:
        """accepted, completed, copies, duplicates."""
        counts: Any = self.redis.hgetall(self.keys.model(model_id).count)
        return {name.decode(): int(value) for name, value in counts.items()}

    def waiting(self, model_id: str) -> int:
        """Entries in both lanes."""
        keys = self.keys.model(model_id)
        return int(self.redis.xlen(keys.requests)) + int(self.redis.xlen(keys.bulk))

    def held(self, model_id: str) -> int:
        """Entries of the interactive lane that a worker has."""
        try:
            summary: Any = self.redis.xpending(self.keys.model(model_id).requests, GROUP)
        except redis.ResponseError:  # no worker has made the group yet
            return 0
        return int(summary["pending"])

    def drained(self, model_id: str, within: float = 20.0) -> None:
        """Waits until nothing waits, and checks what is left behind: nothing."""
        eventually(lambda: self.waiting(model_id) == 0, within)
        keys = self.keys.model(model_id)
        assert [int(self.redis.get(name) or 0) for name in (keys.rows_requests, keys.rows_bulk)] == [0, 0]
        assert self.redis.exists(keys.lone, keys.crashes) == 0
        counts = self.count(model_id)
        assert counts.get("accepted", 0) + counts.get("copies", 0) == counts.get("completed", 0)

    def command(self, *words: str | bytes) -> None:
        """Any command to Redis."""
        self.redis.execute_command(*words)  # type: ignore[no-untyped-call]

    def push(self, model_id: str, body: Mapping[str, Any] | bytes) -> str:
        """One entry with XADD, as a producer in any language does; its stream id."""
        raw = body if isinstance(body, bytes) else orjson.dumps(body)
        return self.add(model_id, {"json": raw})

    def add(self, model_id: str, fields: Mapping[Any, bytes]) -> str:
        """One bulk entry with any fields; its stream id."""
        entry_id: Any = self.redis.xadd(self.keys.model(model_id).bulk, {**fields})
        return str(entry_id.decode())

    def stored(self, model_id: str, request_id: str, within: float = 10.0) -> v1.PredictResponse:
        """The reply that a key holds, once it is there."""
        key = self.keys.model(model_id).reply(request_id)

        def response() -> bytes:
            raw: Any = self.redis.get(key)
            return wire.ReplyState.FromString(raw).response if raw else b""

        return v1.PredictResponse.FromString(eventually(response, within))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.odd.open()
        self._stack.close()
        self.redis.close()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def ask(model_id: str, *inputs: Native, **fields: Any) -> v1.PredictRequest:
    """A request by position."""
    return v1.PredictRequest(model_id=model_id, inputs=[value_of(item) for item in inputs], **fields)


def named(model_id: str, features: Mapping[str, Native], **fields: Any) -> v1.PredictRequest:
    """A request by name."""
    return v1.PredictRequest(model_id=model_id, features={n: value_of(v) for n, v in features.items()}, **fields)


def outputs(response: v1.PredictResponse) -> list[dict[str, Native]]:
    """One dict of outputs per row, for an answer that is not packed."""
    return [{name: native(value) for name, value in row.outputs.items()} for row in response.predictions]


@dataclass(frozen=True, slots=True)
class Failure:
    """What a call that failed says."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: Mapping[str, str]
    violations: Mapping[str, str]
    """field -> description."""
    retry_s: float | None


def failure(error: Any) -> Failure:
    """The status of a gRPC error with its details."""
    status = rpc_status.from_call(error)
    reason, metadata, violations, retry_s = "", {}, {}, None
    for detail in status.details if status is not None else ():
        info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, metadata = info.reason, dict(info.metadata)
        elif detail.Unpack(bad):
            violations = {v.field: v.description for v in bad.field_violations}
        elif detail.Unpack(retry):
            retry_s = retry.retry_delay.ToMilliseconds() / 1000
    return Failure(error.code(), error.details() or "", reason, metadata, violations, retry_s)
