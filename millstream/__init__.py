"""The front door: the client, the command line, everything on one machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingest.producer import Producer
    from millstream.client import AsyncClient, Client

__all__ = ["AsyncClient", "Client", "Producer", "__version__"]
__version__ = "0.1.0"

_HOMES = {"Client": "millstream.client", "AsyncClient": "millstream.client", "Producer": "ingest.producer"}


def __getattr__(name: str) -> Any:
    # On first use: importing one part of Millstream must not load gRPC and Redis for all of it.
    if name not in _HOMES:
        raise AttributeError(f"module 'millstream' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
