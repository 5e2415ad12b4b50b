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

from loadgen.asking import Progress, bodies, callers, shown
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
    source = random.Random(seed)
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
    on_progress: Progress | None = None,
) -> Report:
    """Asks `rate` requests a second for `seconds`, then waits for the last answers.

    The requests are asked in turn, over and over, without their ids. Raises ValueError as `arrivals`, or where there is
    no request.
    """
    if not requests or channels < 1:
        raise ValueError(f"expected at least one request and channel, got {len(requests)}, {channels}")
    due = list(arrivals(rate, seconds, rate_end, seed))
    asks = bodies(requests)
    tally = Tally()
    under_way: set[asyncio.Task[None]] = set()

    async def one(ask: Any, body: bytes, due_at: float) -> None:
        try:
            await ask(body, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            tally.error(error.code().name)
        else:
            tally.answer(time.perf_counter() - due_at)

    async with callers(address, channels) as opened, shown(tally, on_progress):
        start = time.perf_counter()
        for number, at in enumerate(due):
            wait = start + at - time.perf_counter()
            if wait > 0 or number % 64 == 0:  # where it is late it still lets the answers in
                await asyncio.sleep(max(0.0, wait))
            tally.lag(time.perf_counter() - start - at)
            if len(under_way) >= most_under_way:
                tally.error(NOT_ASKED)
                continue
            task = asyncio.create_task(one(opened[number % channels], asks[number % len(asks)], start + at))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        await asyncio.gather(*under_way)
        spent = time.perf_counter() - start
    return tally.report(spent, offered_per_s=len(due) / seconds)
