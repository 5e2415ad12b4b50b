"""Asking the registry, and what its commands share."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from millstream.cli.place import REGISTRY, Place, called

RegistryOption = Annotated[
    str, typer.Option("--registry", metavar="HOST:PORT", help="Talk to this registry instead.", rich_help_panel="Where")
]
ModelArgument = Annotated[str | None, typer.Argument(metavar="[MODEL]", help="Only this model.")]


def ask_registry(state_dir: Path | None, registry: str, ask: Callable[[Any], Any]) -> Any:
    """The answer of a registry; `ask` gets its stub. Raises PredictionError."""
    from protos import millstream_v1_pb2_grpc as v1_grpc

    place = Place.of(state_dir, registry=registry)
    with place.channel(REGISTRY) as channel:
        stub = v1_grpc.RegistryStub(channel)
        return called(REGISTRY, place.address(REGISTRY), lambda: ask(stub))


def whoami() -> str:
    """Who an act is done by: user@host. The registry believes it; it is for the history."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container whose user has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
