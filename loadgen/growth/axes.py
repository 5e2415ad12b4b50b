"""What grows, and how each is measured: Millstream as users start it, with h2load beside it on the same cores."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from threadpoolctl import threadpool_limits

from contract.connection import connect
from contract.keys import Keys
from ingest.producer import Producer
from loadgen.asking import PREDICT
from loadgen.bench import questions
from loadgen.bench.environments import own_python
from loadgen.bench.generators import H2load, Measured
from loadgen.bench.launches import Launch, Place, state_dir
from loadgen.bench.models import OUTPUT, BenchModel
from loadgen.bench.peers import PEERS, Peer
from loadgen.bench.questions import Question
from loadgen.bench.server import Server, free_ports, running
from loadgen.growth.points import Axis, Point
from loadgen.push import push
from protos import millstream_v1_pb2 as v1

Say = Callable[[str], None]

BUSY = 256
"""Requests in flight where a server is to be busy."""
DIRECT_RUNS = 15


@dataclass(frozen=True, slots=True)
class Run:
    """How long each point is measured, and who is told."""

    light: BenchModel
    heavy: BenchModel
    seconds: float
    say: Say


def workers(run: Run, counts: Sequence[int] = (1, 2, 4)) -> Axis:
    """More worker processes."""
    axis = Axis(
        "workers",
        "Workers",
        "worker processes",
        f"`millstream up --workers N`, {BUSY} requests in flight. The heavy model is computed by scikit-learn itself "
        "(`MILLSTREAM_COMPILE_MODELS=false`), so that predicting is the work.",
    )
    for model in (run.light, run.heavy):
        for count in counts:
            with _up(replace(model, workers=count)) as server:
                _point(run, axis, f"{model.name} model", count, server, BUSY)
    return axis


def gateways(run: Run, counts: Sequence[int] = (1, 2)) -> Axis:
    """More gateway processes, the load divided among them."""
    axis = Axis(
        "gateways",
        "Gateways",
        "gateway processes",
        f"Beside the gateway of `millstream up` others run with `millstream gateway`; {BUSY} requests in flight are "
        "divided among them, light model.",
    )
    for count in counts:
        with _up(run.light) as server, _more_gateways(server, count - 1) as others:
            addresses = [server.address, *others]
            seen: list[Measured | Exception] = _side_by_side(run, server, addresses, BUSY // count)
            failed = [str(each) for each in seen if isinstance(each, Exception)]
            axis.problems += failed
            measured = [each for each in seen if isinstance(each, Measured)]
            if not failed:
                values = {
                    "requests/s": sum(each.rate for each in measured),
                    "p50 ms": float(np.mean([each.p50_ms for each in measured])),
                    "p99 ms": max(each.p99_ms for each in measured),
                }
                _note(run, axis, Point("light model", count, values))
    return axis


def rows(run: Run, counts: Sequence[int] = (1, 10, 100, 1_000, 10_000)) -> Axis:
    """More rows in one request, one caller alone, beside calling the model directly."""
    axis = Axis(
        "rows",
        "Rows per request",
        "rows per request",
        "One request of N packed rows after the other, and in between the same estimator called directly in a process "
        "of its own thread on the same matrix. The heavy model is computed by scikit-learn itself on both sides.",
    )
    for model in (run.light, run.heavy):
        estimator = _estimator(model)
        with _up(model) as server:
            for count in counts:
                matrix = np.random.default_rng(count).normal(size=(count, len(model.row)))
                served, direct = _beside(run, server.address, model, matrix, estimator)
                values = {"p50 ms": served, "direct ms": direct, "ratio": served / direct}
                _note(run, axis, Point(f"{model.name} model", count, values))
    return axis


def models(run: Run, counts: Sequence[int] = (1, 10, 100)) -> Axis:
    """More models in service, one of them asked."""
    axis = Axis(
        "models",
        "Models",
        "models in service",
        "The light model under N names; one of them is asked with 64 requests in flight, the others rest. Memory is "
        "that of the whole process tree at rest (PSS).",
    )
    for count in counts:
        with _up(run.light, copies=count) as server:
            rest = server.memory().pss / 2**20
            _point(run, axis, "light model", count, server, 64, {"memory MB": rest})
    return axis


def backlog(run: Run, counts: Sequence[int] = (0, 100_000, 1_000_000)) -> Axis:
    """More entries waiting in the bulk lane while somebody asks in the interactive one."""
    axis = Axis(
        "backlog",
        "Backlog",
        "entries waiting in the bulk lane",
        "That many requests are pushed onto the heavy model's bulk lane; then 16 requests are in flight on its "
        "interactive lane. Redis's memory is read before them. The heavy model is computed by scikit-learn itself.",
    )
    for count in counts:
        with _up(run.heavy) as server:
            if count:
                with Producer(server.addresses()["redis"]) as producer:
                    push(producer, run.heavy.name, [run.heavy.row], count)
            with connect(server.addresses()["redis"]) as client:
                waiting: Any = client.xlen(Keys("ms").model(run.heavy.name).bulk)
            more = {"waiting": float(waiting), "redis MB": (server.redis_bytes() or 0) / 2**20}
            _point(run, axis, "heavy model", count, server, 16, more, warm=False)
    return axis


AXES: dict[str, Callable[[Run], Axis]] = {
    "workers": workers,
    "gateways": gateways,
    "rows": rows,
    "models": models,
    "backlog": backlog,
}


# ---------------------------------------------------------------- servers


def _peer(copies: int) -> Peer:
    """Millstream on its native engine where it is installed; with copies of the model under other names."""
    native = next(peer for peer in PEERS if peer.name == "millstream")
    chosen = native if not native.lacks else next(peer for peer in PEERS if peer.name == "millstream-grpcio")
    if copies == 1:
        return chosen

    def launch(place: Place, model: BenchModel) -> Launch:
        for number in range(1, copies):
            replace(model, name=f"{model.name}_{number}").write_version(place.folder / "store")
        return chosen.launch(place, model)

    return replace(chosen, launch=launch)


@contextmanager
def _up(model: BenchModel, copies: int = 1) -> Iterator[Server]:
    with running(_peer(copies), model, own_python()) as server:
        server.settle(8.0)
        yield server


@contextmanager
def _more_gateways(server: Server, count: int) -> Iterator[list[str]]:
    """Their addresses."""
    argv = [str(own_python()), "-m", "millstream", "gateway", "--redis-url", server.addresses()["redis"]]
    argv += ["--state-dir", str(state_dir(server.place.folder))]
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    children = []
    try:
        for address in addresses:
            with (server.place.folder / f"gateway-{address[-5:]}.log").open("wb") as said:
                children.append(subprocess.Popen([*argv, "--listen", address], stdout=said, stderr=said))
        for address in addresses:
            _until_answered(server.question, address)
        yield addresses
    finally:
        for child in children:
            child.terminate()
        for child in children:
            child.wait(20)


def _until_answered(question: Question, address: str, within: float = 30.0) -> None:
    until = time.monotonic() + within
    while True:
        try:
            question.ask(address)
        except questions.NoAnswer:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
        else:
            return


# ---------------------------------------------------------------- measuring


def _point(
    run: Run,
    axis: Axis,
    series: str,
    at: int,
    server: Server,
    in_flight: int,
    more: dict[str, float] | None = None,
    *,
    warm: bool = True,
) -> None:
    with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
        if warm:
            H2load().run(server.question, server.address, in_flight, 1.0, Path(scratch))
        seen = H2load().run(server.question, server.address, in_flight, run.seconds, Path(scratch))
    errors = seen.errors + seen.silent_errors(server.shortest_answer)
    if errors:
        axis.problems.append(f"{series}, {at:,}: {errors:,} requests failed")
    values = {"requests/s": seen.rate, "p50 ms": seen.p50_ms, "p99 ms": seen.p99_ms, **(more or {})}
    _note(run, axis, Point(series, at, values))


def _note(run: Run, axis: Axis, point: Point) -> None:
    rounded = {name: float(f"{value:.4g}") for name, value in point.values.items()}
    axis.points.append(replace(point, values=rounded))
    run.say(f"  {point.series}, {point.at:,}: " + ", ".join(f"{name} {value:,g}" for name, value in rounded.items()))


def _side_by_side(run: Run, server: Server, addresses: Sequence[str], each: int) -> list[Measured | Exception]:
    seen: list[Measured | Exception] = []

    def load(address: str) -> None:
        try:
            with tempfile.TemporaryDirectory(prefix="growth-") as scratch:
                seen.append(H2load().run(server.question, address, each, run.seconds, Path(scratch)))
        except Exception as error:  # noqa: BLE001 - whatever it was, the run tells it
            seen.append(error)

    threads = [threading.Thread(target=load, args=(address,)) for address in addresses]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seen


def _estimator(model: BenchModel) -> Any:
    import joblib

    return joblib.load(model.artifact)


def _beside(run: Run, address: str, model: BenchModel, matrix: np.ndarray, estimator: Any) -> tuple[float, float]:
    """Median milliseconds of a request with these rows, and of the direct call, taken in turn."""
    raw = np.ascontiguousarray(matrix, dtype="<f8").tobytes()
    packed = v1.Rows(matrix=v1.Matrix(rows=len(matrix), float64=raw))
    request = v1.PredictRequest(model_id=model.name, rows=packed).SerializeToString()
    served: list[float] = []
    direct: list[float] = []
    until = time.monotonic() + run.seconds
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(address, options=options) as channel:
        ask: Any = channel.unary_unary(PREDICT)
        _checked(ask(request, timeout=30.0), estimator.predict_proba(matrix)[:, 1])
        # One thread, as a worker has it.
        with threadpool_limits(1):
            while len(served) < DIRECT_RUNS or time.monotonic() < until:
                began = time.perf_counter()
                ask(request, timeout=30.0)
                asked = time.perf_counter()
                estimator.predict_proba(matrix)
                direct.append(time.perf_counter() - asked)
                served.append(asked - began)
    return float(np.median(served)) * 1000, float(np.median(direct)) * 1000


def _checked(reply: bytes, expected: np.ndarray) -> None:
    columns = v1.PredictResponse.FromString(reply).columns
    answered = next(column.column.doubles.values for column in columns if column.name == OUTPUT)
    if not np.allclose(answered, expected, rtol=questions.TOLERANCE):
        raise questions.WrongAnswer("the rows were answered with other values than the model's own")
