"""What all loops share: connections of their own, requests serialized once, live progress, and a way to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc.aio

from loadgen.report import Tally
from millstream.client import channel_options
from protos import millstream_v1_pb2 as v1

PREDICT = "/millstream.v1.Predictor/Predict"
SUBMIT = "/millstream.v1.Predictor/Submit"
Progress = Callable[[int, float], None]
"""Called with the number of requests that ended and the seconds since the start."""
_PROGRESS_S = 0.2
_MOMENT_S = 1.0
_SETTLE_S = 0.2


class Body(NamedTuple):
    """A serialized request, and the model it asks."""

    model_id: str
    raw: bytes


@asynccontextmanager
async def callers(address: str, channels: int, method: str = PREDICT) -> AsyncIterator[list[Any]]:
    """One call of serialized requests for each of as many connections; it answers with serialized responses."""
    opened = [
        # A pool of its own each, or gRPC would put all of them on one connection.
        grpc.aio.insecure_channel(address, options=[*channel_options(address), ("grpc.use_local_subchannel_pool", 1)])
        for _ in range(channels)
    ]
    try:
        yield [channel.unary_unary(method) for channel in opened]
    finally:
        for channel in opened:
            await channel.close(None)


def bodies(requests: Sequence[v1.PredictRequest], method: str = PREDICT) -> list[Body]:
    """Serialized once: what is measured is the server and not the loop. Without ids, or every repeat would get the
    first answer; on the bulk lane without replies, since nobody reads them."""
    return [_body(request, discard=method == SUBMIT) for request in requests]


def _body(request: v1.PredictRequest, *, discard: bool) -> Body:
    if request.request_id or discard:
        own = v1.PredictRequest()
        own.CopyFrom(request)
        own.request_id = ""
        own.discard_reply = discard
        request = own
    return Body(request.model_id, request.SerializeToString())


@asynccontextmanager
async def shown(tally: Tally, on_progress: Progress | None) -> AsyncIterator[None]:
    """Notes each second of a run while it goes on, and tells how far it is, five times a second."""
    start = time.perf_counter()

    async def tell() -> None:
        noted = 0.0
        while True:
            await asyncio.sleep(_PROGRESS_S)
            spent = time.perf_counter() - start
            if spent >= noted + _MOMENT_S:
                tally.tick(spent)
                noted = spent
            if on_progress is not None:
                on_progress(tally.ended, spent)

    ticker = asyncio.create_task(tell())
    try:
        yield
    finally:
        ticker.cancel()


async def stopped_first(stop: asyncio.Event | None, work: Coroutine[Any, Any, None]) -> bool:
    """Does the work; whether `stop` was set meanwhile, which cancels it. Raises what the work raises."""
    task = asyncio.create_task(work)
    if stop is None:
        stop = asyncio.Event()
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        return stop.is_set()
    finally:
        waiting.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # gRPC tells of cancelled calls a moment later; where this loop is closed by then, the next one is hit.
            await asyncio.sleep(_SETTLE_S)
