"""How much a single caller waits on an idle system, beside a bare gRPC echo in the same run.

    python -m loadgen.idle --address 127.0.0.1:50051 --model credit_risk

Rounds of both alternate, since a machine drifts; so only the ratio means something elsewhere.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import grpc
import grpc.aio
from rich.console import Console
from rich.table import Table

from loadgen.asking import PREDICT
from loadgen.samples import samples
from millstream.client import AsyncClient, PredictionError, channel_options


@dataclass(frozen=True, slots=True)
class Idle:
    """Medians of one request in flight, in microseconds, one per round."""

    predict_us: tuple[float, ...]
    echo_us: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many echoes one prediction takes, as the median over the rounds."""
        return median(p / e for p, e in zip(self.predict_us, self.echo_us, strict=True))


async def measure(
    address: str,
    model_id: str,
    *,
    rounds: int = 10,
    each: int = 200,
    on_round: Callable[[int], None] | None = None,
) -> Idle:
    """Asks `each` times per round, one in flight, the gateway and a bare echo in turn.

    Raises PredictionError where the gateway can't be asked.
    """
    async with AsyncClient(address) as client:
        model = await client.model(model_id)
        first = samples(model, 1)[0]
        await client.predict(model_id, [getattr(v, v.WhichOneof("kind")) for v in first.inputs])
    body = first.SerializeToString()
    echo = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "loadgen.echo", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert echo.stdin is not None and echo.stdout is not None  # noqa: PT018 - both were asked for
    try:
        echo_address = (await echo.stdout.readline()).decode().strip()
        async with (
            grpc.aio.insecure_channel(address, options=channel_options(address)) as asked,
            grpc.aio.insecure_channel(echo_address, options=channel_options(echo_address)) as echoed,
        ):
            predict: Any = asked.unary_unary(PREDICT)
            bare: Any = echoed.unary_unary(PREDICT)
            await _median_us(predict, body, each)
            await _median_us(bare, body, each)
            predict_us, echo_us = [], []
            for number in range(rounds):
                predict_us.append(await _median_us(predict, body, each))
                echo_us.append(await _median_us(bare, body, each))
                if on_round:
                    on_round(number + 1)
    finally:
        echo.stdin.close()
        await echo.wait()
    return Idle(tuple(predict_us), tuple(echo_us))


async def _median_us(call: Any, body: bytes, n: int) -> float:
    times = []
    for _ in range(n):
        began = time.perf_counter()
        await call(body, timeout=30)
        times.append(time.perf_counter() - began)
    return median(times) * 1e6


def main() -> int:
    """Prints the table; exit code 5 where the gateway can't be asked."""
    parser = argparse.ArgumentParser(prog="python -m loadgen.idle", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--address", default="127.0.0.1:50051", help="the gateway, HOST:PORT")
    parser.add_argument("--model", default="credit_risk", help="a model that is live")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--each", type=int, default=200, help="requests per round")
    chosen = parser.parse_args()
    try:
        seen = asyncio.run(measure(chosen.address, chosen.model, rounds=chosen.rounds, each=chosen.each))
    except PredictionError as error:
        print(error.message, file=sys.stderr)
        return 5
    table = Table(title=f"one request in flight, medians of {chosen.rounds} rounds of {chosen.each}")
    for name in ("", "p50 µs", "least", "most"):
        table.add_column(name, justify="right" if name else "left")
    for name, times in (("predict", seen.predict_us), ("bare echo", seen.echo_us)):
        table.add_row(name, *(f"{value:,.0f}" for value in (median(times), min(times), max(times))))
    table.add_row("ratio", f"{seen.ratio:.2f}", "", "")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
