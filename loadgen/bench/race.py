"""The race: in each round every server is started in another order, measured alone at every load, and stopped."""

from __future__ import annotations

import random
import resource
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from redis.exceptions import RedisError

from loadgen.bench import process_tree
from loadgen.bench.generators import GeneratorFailed
from loadgen.bench.models import BenchModel
from loadgen.bench.peers import Peer
from loadgen.bench.results import Cell, Results, Start
from loadgen.bench.server import NotStarted, Server, running

SETTLE_S = 8.0
TRIAL_GONE_S = 6.0
WARM_UP_S = 1.0
WARM_UP_IN_FLIGHT = 64
LOOP = 200_000
SAMPLE_EVERY_S = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and for how long."""

    in_flight: tuple[int, ...]
    rounds: int
    seconds: float
    seed: int = 0
    sample_redis: bool = False

    def loads(self, peer: Peer) -> list[int]:
        """Of the loads, those that the peer is measured at."""
        return [load for load in self.in_flight if not peer.in_flight or load in peer.in_flight]

    def expected_s(self, peers: Sequence[Peer], models: Sequence[BenchModel]) -> float:
        """About how long it takes: a start, a warm-up and a stop are about 7 s, what stands around a load 0.7 s."""
        runs = [peer for model in models for peer in peers if model.name in peer.models and self.loads(peer)]
        return self.rounds * sum(7.0 + len(self.loads(peer)) * (self.seconds + 0.7) for peer in runs)


def race(
    plan: Plan,
    runners: Sequence[tuple[Peer, Path]],
    models: Sequence[BenchModel],
    results: Results,
    say: Say,
    saved: Callable[[], None],
) -> None:
    """Measures all of them into `results`; `saved` is called after each server, so that a broken run leaves something.

    A server that does not come up, or fails under load, is noted and left out of that round.
    """
    order = random.Random(plan.seed)
    for number in range(1, plan.rounds + 1):
        starts = [
            (peer, python, model)
            for model in models
            for peer, python in runners
            if model.name in peer.models and plan.loads(peer)
        ]
        order.shuffle(starts)
        for peer, python, model in starts:
            say(f"round {number} of {plan.rounds}: {peer.title}, {model.title}")
            with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
                start, cells = _measure(plan, peer, python, model, number, Path(scratch), say)
            results.starts.append(start)
            results.cells.extend(cells)
            if start.problem:
                say(f"  left out: {start.problem}")
            saved()


def _measure(
    plan: Plan, peer: Peer, python: Path, model: BenchModel, number: int, scratch: Path, say: Say
) -> tuple[Start, list[Cell]]:
    """One start of one server."""
    cells: list[Cell] = []
    began, rest, answered, recorded, problem = 0.0, process_tree.Memory(0, 0), 0, None, ""
    try:
        with running(peer, model, python) as server:
            began = server.started_after_s
            server.settle(SETTLE_S)
            if peer.ours:
                # The process in which the model was tried goes away a little later.
                time.sleep(TRIAL_GONE_S)
            rest = server.memory()
            load = min(plan.loads(peer), key=lambda load: abs(load - WARM_UP_IN_FLIGHT))
            warm = peer.generator.run(server.question, server.address, load, WARM_UP_S, scratch)
            answered = warm.answered
            server.settle(SETTLE_S)
            for load in plan.loads(peer):
                cell = _cell(plan, server, load, number, scratch)
                cells.append(cell)
                answered += cell.answered
                say(
                    f"  {load:>5} in flight: {cell.rate:>9,.0f} req/s   p50 {cell.p50_ms:>8.2f}   "
                    f"p99 {cell.p99_ms:>8.2f} ms   {sum(cell.cpu_us.values()):>7.0f} µs CPU   {cell.errors} errors"
                )
            recorded = server.recorded(answered)
            if recorded is not None and recorded < answered:
                problem = f"{answered:,} were answered, and the event log holds {recorded:,} with status OK"
    except (NotStarted, GeneratorFailed) as error:
        problem = str(error)
    except (grpc.RpcError, RedisError, OSError) as error:
        problem = f"{type(error).__name__}: {error}"
    # What a server said names files; where this checkout stands is nobody else's business.
    problem = problem.replace(str(Path.cwd()), ".")
    return Start(peer.name, model.name, number, began, rest.rss, rest.pss, answered, recorded, problem), cells


def _cell(plan: Plan, server: Server, load: int, number: int, scratch: Path) -> Cell:
    calibration = calibrate()
    series: list[tuple[float, int]] = []
    before, busy = server.cpu_s(), process_tree.machine_busy_s()
    own = _own_cpu_s()
    began = time.monotonic()
    with _sampled(server, series) if plan.sample_redis else _nothing():
        seen = server.peer.generator.run(server.question, server.address, load, plan.seconds, scratch)
    silent = seen.silent_errors(server.shortest_answer)
    if seen.answered - silent <= 0:
        raise GeneratorFailed(f"with {load:,} in flight nothing was answered, and {seen.errors + silent:,} failed")
    memory = server.memory()
    # What is behind finishes now and counts too: a request is not paid for before it is recorded.
    rested = server.settle(SETTLE_S)
    spent = server.cpu_s()
    spent.subtract(before)
    took = time.monotonic() - began
    elsewhere = process_tree.machine_busy_s() - busy - process_tree.total(spent)
    elsewhere -= seen.generator_cpu_s + _own_cpu_s() - own
    answered = seen.answered - silent
    per_answer = 1e6 / answered
    return Cell(
        peer=server.peer.name,
        model=server.model.name,
        in_flight=load,
        round=number,
        seconds=round(seen.seconds, 3),
        answered=answered,
        errors=seen.errors + silent,
        rate=round(answered / seen.seconds, 1),
        p50_ms=seen.p50_ms,
        p95_ms=seen.p95_ms,
        p99_ms=seen.p99_ms,
        max_ms=seen.max_ms,
        cpu_us={role: round(cpu * per_answer, 2) for role, cpu in sorted(spent.items())},
        generator_cpu_us=round(seen.generator_cpu_s * per_answer, 2),
        rss_bytes=memory.rss,
        pss_bytes=memory.pss,
        redis_bytes=server.redis_bytes(),
        calibration_ms=round(calibration * 1000, 2),
        elsewhere_cores=round(max(0.0, elsewhere / took), 2),
        rested=rested,
        redis_series=tuple(series),
    )


def calibrate() -> float:
    """Seconds that a loop of fixed length takes now: the median of five."""
    took = []
    for _ in range(5):
        began = time.perf_counter()
        count = 0
        while count < LOOP:
            count += 1
        took.append(time.perf_counter() - began)
    return sorted(took)[2]


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def _sampled(server: Server, series: list[tuple[float, int]]) -> Iterator[None]:
    """Reads Redis's memory every few seconds until the block is left."""
    over = threading.Event()
    began = time.monotonic()

    def sample() -> None:
        while not over.is_set():
            used = server.redis_bytes()
            if used is None:
                return
            series.append((round(time.monotonic() - began, 1), used))
            over.wait(SAMPLE_EVERY_S)

    thread = threading.Thread(target=sample, name="redis memory")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _nothing() -> Iterator[None]:
    yield
