"""The closed loop: N users, each of whom asks the next question after the answer to the last one.

What it can say: how fast the system answers N callers who wait. What it can't: how it stands more than it can do,
since the users slow down with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
import grpc.aio

from loadgen.asking import PREDICT, Progress, bodies, callers, shown, stopped_first
from loadgen.report import Report, Tally
from protos import millstream_v1_pb2 as v1


async def closed_loop(
    address: str,
    users: int,
    requests: Sequence[v1.PredictRequest],
    *,
    seconds: float | None = None,
    count: int | None = None,
    channels: int = 4,
    timeout_s: float = 30.0,
    ramp_s: float = 0.0,
    method: str = PREDICT,
    tally: Tally | None = None,
    stop: asyncio.Event | None = None,
    on_progress: Progress | None = None,
) -> Report:
    """Runs `users` users for `seconds`, or until `count` requests were asked, whichever comes first.

    The requests are asked in turn, over and over; a request id in one of them is left out, or every repeat would get
    the first answer. The users begin evenly over the first `ramp_s` seconds. `on_progress` gets the number of requests
    that ended and the seconds since the start; who passes a `tally` reads more from it meanwhile. Once `stop` is set
    the run ends, and what is under way is not waited for. Raises ValueError where neither bound or no request is given.
    """
    if seconds is None and count is None:
        raise ValueError("expected seconds or count, got neither: the run would never end")
    if not requests or users < 1 or channels < 1:
        raise ValueError(f"expected at least one request, user and channel, got {len(requests)}, {users}, {channels}")
    asks = bodies(requests, method)
    tally = tally or Tally()
    asked = 0
    start = time.perf_counter()
    until = start + seconds if seconds is not None else float("inf")
    most = count if count is not None else float("inf")

    async def user(number: int, ask: Any) -> None:
        nonlocal asked
        if ramp_s:
            await asyncio.sleep(ramp_s * number / users)
        turn = number
        while asked < most and (began := time.perf_counter()) < until:
            asked += 1
            body = asks[turn % len(asks)]
            tally.under_way += 1
            try:
                await ask(body.raw, timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                tally.error(error.code().name)
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    await asyncio.sleep(0.05)  # Nobody is there: a real caller would not spin either.
            else:
                tally.answer(time.perf_counter() - began, body.model_id)
            finally:
                tally.under_way -= 1
            turn += users

    async def crowd() -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(users):
                group.create_task(user(number, opened[number % len(opened)]))

    async with callers(address, min(channels, users), method) as opened, shown(tally, on_progress):
        stopped = await stopped_first(stop, crowd())
        spent = time.perf_counter() - start
    return tally.report(spent, users, stopped=stopped)
