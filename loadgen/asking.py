"""What both loops share: connections of their own, requests that are serialized once, and live progress."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from loadgen.report import Tally
from millstream.client import channel_options
from protos import millstream_v1_pb2 as v1

PREDICT = "/millstream.v1.Predictor/Predict"
Progress = Callable[[int, float], None]
"""Called with the number of requests that ended and the seconds since the start."""
_PROGRESS_S = 0.2


@asynccontextmanager
async def callers(address: str, channels: int) -> AsyncIterator[list[Any]]:
    """One Predict call of serialized requests for each of as many connections."""
    opened = [
        # A pool of its own each, or gRPC would put all of them on one connection.
        grpc.aio.insecure_channel(address, options=[*channel_options(address), ("grpc.use_local_subchannel_pool", 1)])
        for _ in range(channels)
    ]
    try:
        yield [channel.unary_unary(PREDICT) for channel in opened]
    finally:
        for channel in opened:
            await channel.close(None)


def bodies(requests: Sequence[v1.PredictRequest]) -> list[bytes]:
    """Serialized once: what is measured is the server and not the loop. Without ids, or every repeat would get the
    first answer."""
    return [_body(request) for request in requests]


def _body(request: v1.PredictRequest) -> bytes:
    if not request.request_id:
        return request.SerializeToString()
    own = v1.PredictRequest()
    own.CopyFrom(request)
    own.request_id = ""
    return own.SerializeToString()


@asynccontextmanager
async def shown(tally: Tally, on_progress: Progress | None) -> AsyncIterator[None]:
    """Tells how far a run is, five times a second, while it goes on."""
    if on_progress is None:
        yield
        return
    start = time.perf_counter()

    async def tell() -> None:
        while True:
            await asyncio.sleep(_PROGRESS_S)
            on_progress(tally.ended, time.perf_counter() - start)

    ticker = asyncio.create_task(tell())
    try:
        yield
    finally:
        ticker.cancel()
