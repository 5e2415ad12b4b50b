"""Engines: the gRPC servers a gateway can run on; the services are the same objects on each.

grpcio is always there. The native one (extra `fast`) keeps HTTP/2 outside the GIL and calls the same handlers.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any, Literal

import grpc
import grpc.aio

Engine = Literal["auto", "grpcio", "native"]


class EngineMissing(Exception):
    """The engine that was asked for is not installed; the message says how to get it."""


def chosen(engine: Engine) -> Literal["grpcio", "native"]:
    """The engine in force: auto takes the native one where it is installed. Raises EngineMissing."""
    there = find_spec("pygrpc_native") is not None
    if engine == "auto":
        return "native" if there else "grpcio"
    if engine == "native" and not there:
        raise EngineMissing("the native engine is not installed: pip install 'millstream[fast]', or --engine grpcio")
    return engine


def server(engine: Literal["grpcio", "native"], max_message_bytes: int) -> grpc.aio.Server:
    """A server that was not started yet."""
    options: Sequence[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", -1),
    ]
    if engine == "native":
        from gateway.native import NativeServer

        return NativeServer(options)
    # Two gateways on one port would each get half of the callers, unnoticed.
    return grpc.aio.server(options=[*options, ("grpc.so_reuseport", 0)])
