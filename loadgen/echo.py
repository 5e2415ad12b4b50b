"""A bare grpc.aio server that answers Predict with the bytes it got: what gRPC alone costs on this machine.

python -m loadgen.echo --listen 127.0.0.1:0        # prints its address; ends when its stdin is closed
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import grpc
import grpc.aio

from loadgen.asking import PREDICT


async def _echo(request: bytes, _context: Any) -> bytes:
    return request


async def start_echo(listen: str = "127.0.0.1:0") -> tuple[grpc.aio.Server, str]:
    """A running echo server and the address it listens on."""
    server = grpc.aio.server()
    service, method = PREDICT[1:].split("/")
    echo: Any = grpc.unary_unary_rpc_method_handler(_echo)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: echo}),))
    port = server.add_insecure_port(listen)
    await server.start()
    return server, f"{listen.rpartition(':')[0]}:{port}"


async def _serve(listen: str) -> None:
    server, address = await start_echo(listen)
    print(address, flush=True)
    # Whoever started this holds the other end, so that it can't be left behind.
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


def main() -> None:
    """Serves until stdin is closed."""
    parser = argparse.ArgumentParser(prog="python -m loadgen.echo", description="A bare grpc.aio echo server.")
    parser.add_argument("--listen", default="127.0.0.1:0", help="HOST:PORT; port 0 takes a free one")
    asyncio.run(_serve(parser.parse_args().listen))


if __name__ == "__main__":
    main()
