"""The bare echo of loadgen.echo on Millstream's native engine: what that engine alone costs on this machine.

python -m loadgen.bench.native_echo --listen 127.0.0.1:50051        # ends when its stdin is closed
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import Any

import grpc
import uvloop

from loadgen.asking import PREDICT


async def _echo(request: bytes, _context: Any) -> bytes:
    return request


async def _serve(listen: str) -> None:
    import pygrpc_native.aio

    server: Any = pygrpc_native.aio.server()
    service, method = PREDICT[1:].split("/")
    echo: Any = grpc.unary_unary_rpc_method_handler(_echo)
    # By method: what it knows by service alone it passes on to a grpcio server behind it.
    server.add_registered_method_handlers(service, {method: echo})
    server.add_insecure_port(listen)
    await server.start()
    await asyncio.to_thread(sys.stdin.read)
    await server.stop(None)


def main() -> None:
    """Serves until stdin is closed."""
    parser = argparse.ArgumentParser(prog="python -m loadgen.bench.native_echo", description="A bare echo server.")
    parser.add_argument("--listen", required=True, help="HOST:PORT")
    # As the gateway runs it.
    uvloop.run(_serve(parser.parse_args().listen))


if __name__ == "__main__":
    main()
