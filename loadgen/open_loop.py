"""The open loop: requests come at a rate, whether the ones before were answered or not.

What it can say: how long callers wait who do not know of one another, and how the system stands more than it can do. A
request's time runs from the moment it was due, so that a stall is felt by all who came during it and not by one of
them alone ("coordinated omission", https://github.com/giltene/wrk2).
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any

import grpc.aio

from loadgen.asking import PREDICT, Body, Progress, bodies, callers, shown, stopped_first
from loadgen.report import Report, Tally
from protos import millstream_v1_pb2 as v1

NOT_ASKED = "NOT_ASKED"
"""Counted beside the gRPC statuses: so many were under way already that this one was not asked."""


def arrivals(rate: float, seconds: float, rate_end: float | None = None, seed: int = 0) -> Iterator[float]:
    """Seconds from the start at which requests are due: a Poisson process of `rate` per second.

    With `rate_end` the rate rises or falls evenly to that until the end. The same for the same seed. Raises ValueError
    where no request would ever come.
    """
    end = rate if rate_end is None else rate_end
    if rate < 0 or end < 0 or rate + end == 0 or seconds <= 0:
        raise ValueError(f"expected a rate and seconds above 0, got {rate:g} to {end:g} a second for {seconds:g} s")
    return _arrivals(rate, end, seconds, random.Random(seed))


def _arrivals(rate: float, end: float, seconds: float, source: random.Random) -> Iterator[float]:
    slope = (end - rate) / seconds
    expected, most = 0.0, (rate + end) / 2 * seconds
    while (expected := expected + source.expovariate(1.0)) < most:
        # How many are expected until t is rate * t + slope * t^2 / 2; this is its inverse.
        yield 2 * expected / (rate + math.sqrt(max(0.0, rate * rate + 2 * slope * expected)))


async def open_loop(
    address: str,
    rate: float,
    requests: Sequence[v1.PredictRequest],
    *,
    seconds: float,
    rate_end: float | None = None,
    channels: int = 4,
    timeout_s: float = 30.0,
    most_under_way: int = 20_000,
    seed: int = 0,
    method: str = PREDICT,
    tally: Tally | None = None,
    stop: asyncio.Event | None = None,
    on_progress: Progress | None = None,
) -> Report:
    """Asks `rate` requests a second for `seconds`, then waits for the last answers.

    The requests are asked in turn, over and over, without their ids. `tally`, `stop` and `on_progress` as in
    `closed_loop`. Raises ValueError as `arrivals`, or where there is no request.
    """
    if not requests or channels < 1:
        raise ValueError(f"expected at least one request and channel, got {len(requests)}, {channels}")
    due = arrivals(rate, seconds, rate_end, seed)
    asks = bodies(requests, method)
    tally = tally or Tally()
    asked = 0

    async def one(ask: Any, body: Body, due_at: float) -> None:
        try:
            await ask(body.raw, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            tally.error(error.code().name)
        else:
            tally.answer(time.perf_counter() - due_at, body.model_id)
        finally:
            tally.under_way -= 1

    async def ask_all() -> None:
        nonlocal asked
        async with asyncio.TaskGroup() as group:
            for number, at in enumerate(due):
                wait = start + at - time.perf_counter()
                if wait > 0 or number % 64 == 0:  # where it is late it still lets the answers in
                    await asyncio.sleep(max(0.0, wait))
                tally.lag(time.perf_counter() - start - at)
                asked += 1
                if tally.under_way >= most_under_way:
                    tally.error(NOT_ASKED)
                    continue
                tally.under_way += 1
                group.create_task(one(opened[number % channels], asks[number % len(asks)], start + at))

    async with callers(address, channels, method) as opened, shown(tally, on_progress):
        start = time.perf_counter()
        stopped = await stopped_first(stop, ask_all())
        spent = time.perf_counter() - start
    return tally.report(spent, offered_per_s=asked / (spent if stopped else seconds), stopped=stopped)
