"""The closed loop: N users, each of whom asks the next question after the answer to the last one.

What it can say: how fast the system answers N callers who wait. What it can't: how it stands more than it can do,
since the users slow down with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
import grpc.aio

from loadgen.report import Report, Tally
from millstream.client import channel_options
from protos import millstream_v1_pb2 as v1

PREDICT = "/millstream.v1.Predictor/Predict"
_PROGRESS_S = 0.2


async def closed_loop(
    address: str,
    users: int,
    requests: Sequence[v1.PredictRequest],
    *,
    seconds: float | None = None,
    count: int | None = None,
    channels: int = 4,
    timeout_s: float = 30.0,
    on_progress: Callable[[int, float], None] | None = None,
) -> Report:
    """Runs `users` users for `seconds`, or until `count` requests were asked, whichever comes first.

    The requests are asked in turn, over and over; a request id in one of them is left out, or every repeat would get
    the first answer. `on_progress` gets the number of requests that ended and the seconds since the start. Raises
    ValueError where neither bound or no request is given.
    """
    if seconds is None and count is None:
        raise ValueError("expected seconds or count, got neither: the run would never end")
    if not requests or users < 1 or channels < 1:
        raise ValueError(f"expected at least one request, user and channel, got {len(requests)}, {users}, {channels}")
    # Serialized once: what is measured is the server and not this loop.
    bodies = [_body(request) for request in requests]
    tally = Tally()
    opened = [
        # A pool of its own each, or gRPC would put all of them on one connection.
        grpc.aio.insecure_channel(address, options=[*channel_options(address), ("grpc.use_local_subchannel_pool", 1)])
        for _ in range(min(channels, users))
    ]
    asked = 0
    start = time.perf_counter()
    until = start + seconds if seconds is not None else float("inf")
    most = count if count is not None else float("inf")

    async def user(number: int) -> None:
        nonlocal asked
        ask: Any = opened[number % len(opened)].unary_unary(PREDICT)
        turn = number
        while asked < most and (began := time.perf_counter()) < until:
            asked += 1
            try:
                await ask(bodies[turn % len(bodies)], timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                tally.error(error.code().name)
                if error.code() == grpc.StatusCode.UNAVAILABLE:
                    await asyncio.sleep(0.05)  # Nobody is there: a real caller would not spin either.
            else:
                tally.answer(time.perf_counter() - began)
            turn += users

    async def progress(show: Callable[[int, float], None]) -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            show(tally.ended, time.perf_counter() - start)

    try:
        async with asyncio.TaskGroup() as group:
            ticker = group.create_task(progress(on_progress)) if on_progress else None
            crowd = [group.create_task(user(number)) for number in range(users)]
            await asyncio.gather(*crowd)
            if ticker:
                ticker.cancel()
    finally:
        spent = time.perf_counter() - start
        for channel in opened:
            await channel.close(None)
    return tally.report(spent, users)


def _body(request: v1.PredictRequest) -> bytes:
    if not request.request_id:
        return request.SerializeToString()
    own = v1.PredictRequest()
    own.CopyFrom(request)
    own.request_id = ""
    return own.SerializeToString()
