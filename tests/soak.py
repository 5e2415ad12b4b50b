"""The soak: everything that `millstream up` starts, under load, while its processes are killed again and again.

    python -m tests.soak --minutes 10

Callers ask over gRPC with ids of their own and ask again under the same id until they are answered; a producer pushes
onto the bulk lanes. At the end what was acknowledged is held against the event log, id by id. The fsync policy is
`always`: under `everysec` a killed server may lose its last second, which is what that policy says.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import grpc
import grpc.aio
import joblib

from contract.connection import connect
from contract.keys import Keys
from contract.request import native
from ingest.answer import PredictionError
from ingest.producer import Producer
from loadgen.samples import samples
from millstream.local.state_dir import StateDir
from millstream.stock import write_stock
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc
from tests.conditions import eventually
from tests.servers import LOOPBACK, ROOT, Server, free_port
from tests.slow_model import SlowModel
from tests.soak_report import Overload, Soak, write

USERS = 64
THINK_S = 0.1
PUSH_S, PUSH_ROWS = 0.2, 40
KILL_S = (2.0, 6.0)
WORKERS = 2
TIMEOUT_S = 20.0
DRAIN_S = 120.0
SLOW, SLOW_ROW_S = "slow", 0.01
ROLES = ("worker", "gateway", "sink", "registry", "server")
REFUSED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.DEADLINE_EXCEEDED)
"""Ask again: the request may have been accepted or not."""


class House(Server):
    """`millstream up` on a folder of its own."""

    name = "up"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.state = StateDir(folder / "state")
        self.address = f"{LOOPBACK}:{free_port()}"

    def command(self) -> list[str]:
        words = ["--state-dir", str(self.state.path), "--store", str(self.folder / "store"), "--listen", self.address]
        env = ["/usr/bin/env", f"PYTHONPATH={ROOT}"]
        return [*env, sys.executable, "-m", "millstream", "up", *words, "--workers", str(WORKERS), "--fsync", "always"]

    def answers(self) -> bool:
        return "serving" in self.log.read_text()

    @property
    def redis_url(self) -> str:
        return self.state.require_running().addresses["redis"]

    def pids(self, role: str) -> list[int]:
        """The living processes of a role; the server's own, not its keeper's."""
        found = []
        for pid in _below(self.pid):
            with suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if role == "server":
                    named = b"valkey" in words[0] or b"redis-server" in words[0]
                else:
                    named = words[1:4] == [b"-m", b"millstream", role.encode()]
                if named:
                    found.append(pid)
        return found


def _below(pid: int) -> list[int]:
    """All descendants."""
    parents: dict[int, list[int]] = {}
    for proc in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((proc / "stat").read_text().rpartition(")")[2].split()[1])
            parents.setdefault(parent, []).append(int(proc.name))
    found, look = [], [pid]
    while look:
        children = parents.get(look.pop(), [])
        found += children
        look += children
    return found


@dataclass(slots=True)
class Books:
    """What was asked, and what the callers were told."""

    seconds: float = 0.0
    killed: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    answered: dict[str, str] = field(default_factory=dict)
    """Request id -> OK, or the reason of the error it was answered with."""
    pushed: set[str] = field(default_factory=set)
    again: Counter[str] = field(default_factory=Counter)
    """Status of an attempt that was made again -> how often."""


async def ask_on(house: House, requests: Sequence[v1.PredictRequest], books: Books, number: int, until: float) -> None:
    """One caller: the next question after the answer to the last."""
    source = random.Random(number)
    async with grpc.aio.insecure_channel(house.address, options=[("grpc.max_reconnect_backoff_ms", 500)]) as channel:
        stub: Any = v1_grpc.PredictorStub(channel)
        turn = 0
        while time.monotonic() < until:
            turn += 1
            request = v1.PredictRequest()
            request.CopyFrom(source.choice(requests))
            request.request_id = f"caller-{number}-{turn}"
            books.asked += 1
            await _answer(stub, request, books, until + DRAIN_S)
            await asyncio.sleep(source.expovariate(1 / THINK_S))


async def _answer(stub: Any, request: v1.PredictRequest, books: Books, until: float) -> None:
    while time.monotonic() < until:
        try:
            await stub.Predict(request, timeout=TIMEOUT_S)
            books.answered[request.request_id] = "OK"
            return
        except grpc.aio.AioRpcError as error:
            if error.code() not in REFUSED:
                books.answered[request.request_id] = error.code().name
                return
            books.again[error.code().name] += 1
            await asyncio.sleep(0.1)


async def push_on(house: House, requests: Sequence[v1.PredictRequest], books: Books, until: float) -> None:
    """A producer: pushes onto the bulk lanes, again under the same ids where it got no answer."""
    source, turn = random.Random(0), 0
    with Producer(house.redis_url, patience=60.0) as producer:
        while time.monotonic() < until:
            turn += 1
            model_id = source.choice(sorted({request.model_id for request in requests}))
            rows = [request for request in requests if request.model_id == model_id]
            entries = [
                {"inputs": [native(value) for value in source.choice(rows).inputs], "request_id": f"bulk-{turn}-{n}"}
                for n in range(PUSH_ROWS)
            ]
            try:
                books.pushed.update(await asyncio.to_thread(producer.send_many, model_id, entries, discard_reply=False))
            except PredictionError as error:
                books.again[f"push: {type(error).__name__}"] += 1
            await asyncio.sleep(PUSH_S)


async def kill_on(house: House, books: Books, until: float) -> None:
    """SIGKILL, to one process after another."""
    source = random.Random(os.getpid())
    turns: list[str] = []
    while time.monotonic() < until:
        await asyncio.sleep(source.uniform(*KILL_S))
        # Each has its turn, in another order each time.
        turns = turns or source.sample(ROLES, len(ROLES))
        role = turns.pop()
        pids = await asyncio.to_thread(house.pids, role)
        if pids and time.monotonic() < until:
            with suppress(ProcessLookupError):
                os.kill(source.choice(pids), signal.SIGKILL)
                books.killed[role] += 1


async def soak(house: House, seconds: float) -> Books:
    """The load and the faults; returns once every caller is answered."""
    books = Books()
    async with grpc.aio.insecure_channel(house.address) as channel:
        stub: Any = v1_grpc.PredictorStub(channel)
        models = (await stub.ListModels(v1.ListModelsRequest())).models
        requests = []
        for model in models:
            if model.model_id != SLOW:
                requests += samples(await stub.GetModel(v1.GetModelRequest(model_id=model.model_id)), 50)
    began = time.monotonic()
    until = began + seconds
    async with asyncio.TaskGroup() as tasks:
        for number in range(USERS):
            tasks.create_task(ask_on(house, requests, books, number, until))
        tasks.create_task(push_on(house, requests, books, until))
        tasks.create_task(kill_on(house, books, until))
    books.seconds = time.monotonic() - began
    return books


async def overload(house: House, seconds: float) -> Overload:
    """A model of known pace: as many callers as it can answer, then five times as many requests as that."""
    request = v1.PredictRequest(model_id=SLOW)
    request.inputs.add().number = 1.0
    took: dict[str, list[float]] = {}

    async with grpc.aio.insecure_channel(house.address) as channel:
        stub: Any = v1_grpc.PredictorStub(channel)

        async def one() -> None:
            began = time.perf_counter()
            try:
                await stub.Predict(request, timeout=1.0)
                code = "OK"
            except grpc.aio.AioRpcError as error:
                code = error.code().name
            took.setdefault(code, []).append(time.perf_counter() - began)

        async def user(until: float) -> None:
            while time.monotonic() < until:
                await one()

        for _ in range(2):  # the first time the pace is learnt
            took.clear()
            began = time.monotonic()
            await asyncio.gather(*[user(began + seconds / 2) for _ in range(8 * WORKERS)])
            peak = len(took.get("OK", [])) / (time.monotonic() - began)
        took.clear()
        began = time.monotonic()
        calls, fired = set(), 0
        while (spent := time.monotonic() - began) < seconds:
            while fired < spent * 5 * peak:
                fired += 1
                calls.add(asyncio.create_task(one()))
            await asyncio.sleep(0.005)
        await asyncio.gather(*calls)
    return Overload(peak, {code: len(each) for code, each in took.items()}, seconds, took.get("RESOURCE_EXHAUSTED", []))


def write_slow(store: Path) -> None:
    """The slow model's version folder."""
    folder = store / SLOW / "1.0.0"
    folder.mkdir(parents=True)
    joblib.dump(SlowModel(SLOW_ROW_S), folder / "model.joblib")
    signature = {
        "model_id": SLOW,
        "version": "1.0.0",
        "trained_date": "2026-01-31",
        "status": "production",
        "azure_location": "tests",
        "expected_features": [{"index": 0, "name": "x", "type": "float", "example": 1.0}],
        "outputs": [{"name": "out", "call": "predict"}],
    }
    (folder / "signature.json").write_text(json.dumps(signature))


def drained(house: House) -> None:
    """Waits until every lane is empty and the sink has everything."""
    keys = Keys()

    def empty() -> bool:
        with suppress(Exception), connect(house.redis_url) as client:
            models: Any = client.hkeys(keys.catalog)
            each = [keys.model(model.decode()) for model in models]
            return not sum(int(client.xlen(name)) for k in each for name in (k.requests, k.bulk, k.events))
        return False

    eventually(empty, within=DRAIN_S)


def compared(house: House, books: Books, after: Overload) -> Soak:
    """The callers' books against the event log.

    A request that expired or was withdrawn was never computed: its id is free again, and asked again it is another
    entry with an event of its own.
    """
    with duckdb.connect(str(house.state.events), read_only=True) as log:
        rows = log.execute(
            """SELECT request_id, count(*) FROM events
               WHERE status NOT IN ('CANCELLED', 'EXPIRED') AND model_id <> ? GROUP BY ALL""",
            [SLOW],
        ).fetchall()
        entries = log.execute(
            "SELECT any_value(request_id) FROM events GROUP BY model_id, lane, entry_id HAVING count(*) > 1"
        ).fetchall()
        statuses = dict(
            log.execute("SELECT status, count(*) FROM events WHERE model_id <> ? GROUP BY ALL", [SLOW]).fetchall()
        )
        [(gaps,)] = log.execute("SELECT count(*) FROM gaps").fetchall()
    recorded = dict(rows)
    promised = set(books.answered) | books.pushed
    return Soak(
        seconds=books.seconds,
        killed=dict(books.killed),
        asked=books.asked,
        answered=Counter(books.answered.values()),
        pushed=len(books.pushed),
        again=dict(books.again),
        statuses=statuses,
        lost=sorted(promised - set(recorded)),
        twice=sorted(
            {request_id for request_id, count in recorded.items() if count > 1} | {each for (each,) in entries}
        ),
        unanswered=books.asked - len(books.answered),
        gaps=gaps,
        overload=after,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--report", type=Path, default=ROOT / "docs/soak.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        folder = Path(name)
        write_stock(folder / "store")
        write_slow(folder / "store")
        house = House(folder)
        house.start(within=120.0)
        try:
            books = asyncio.run(soak(house, options.minutes * 60))
            drained(house)
            after = asyncio.run(overload(house, 10.0))
            drained(house)
        finally:
            house.stop()
        found = compared(house, books, after)
    text = write(found, f"python -m tests.soak --minutes {options.minutes:g}", options.report)
    print(text)
    return 0 if found.kept else 1


if __name__ == "__main__":
    sys.exit(main())
