"""Where to find a running Millstream: the addresses on the command line, or those its state directory tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream.cli.errors import UNAVAILABLE, USAGE, CommandFailed

if TYPE_CHECKING:
    import grpc

    from millstream.client import Client

DEFAULT_STATE_DIR = Path("millstream-state")
GATEWAY, REDIS, EVENT_LOG, REGISTRY = "gateway", "redis", "event_log", "registry"
"""Names of the addresses in running.json."""

_REDIS_URLS = ("redis://", "rediss://", "unix://")
_PARTS = {GATEWAY: "gateway", REDIS: "Redis", EVENT_LOG: "event log", REGISTRY: "registry"}


@dataclass(frozen=True, slots=True)
class Place:
    """A state directory, and the addresses that were named instead of it."""

    state_dir: Path | None = None
    named: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, state_dir: Path | None, **addresses: str) -> Place:
        """`addresses` by the names in running.json; an empty one was not given."""
        return cls(state_dir, tuple((name, address) for name, address in addresses.items() if address))

    def address(self, part: str) -> str:
        """The address of a part. Raises NotRunning where nothing runs, CommandFailed where that part has none."""
        named = dict(self.named)
        if part in named:
            if part != REDIS and not named[part].startswith("unix:") and ":" not in named[part]:
                raise CommandFailed(f"expected HOST:PORT for the {_PARTS[part]}, got {named[part]!r}", USAGE)
            if part == REDIS and not named[part].startswith(_REDIS_URLS):
                wanted = "redis://HOST:PORT, rediss://HOST:PORT or unix:///path"
                raise CommandFailed(f"--redis-url: expected {wanted}, got {named[part]!r}", USAGE)
            return named[part]
        from millstream.local.state_dir import StateDir

        state = StateDir(self.state_dir or DEFAULT_STATE_DIR)
        address = state.require_running().addresses.get(part, "")
        if not address:
            raise CommandFailed(f"what runs in {state.path} names no address of a {_PARTS[part]}", UNAVAILABLE)
        return address

    def runs(self, part: str) -> bool:
        """Whether that part was named, or a living `up` owns the state directory and tells where it is."""
        from millstream.local.state_dir import StateDir

        if part in dict(self.named):
            return True
        running = StateDir(self.state_dir or DEFAULT_STATE_DIR).running()
        return running is not None and bool(running.addresses.get(part))

    def knows(self, part: str) -> bool:
        """Whether the part was named, or everything is to be looked up."""
        return part in dict(self.named) or not self.named

    def client(self, timeout: float = 30.0) -> Client:
        """A client of the gateway."""
        from millstream.client import Client

        return Client(self.address(GATEWAY), timeout=timeout)

    def channel(self, part: str) -> grpc.Channel:
        """A channel to the event log or the registry."""
        import grpc

        from millstream.calls import channel_options

        address = self.address(part)
        return grpc.insecure_channel(address, options=channel_options(address))


def called(part: str, address: str, call: Any) -> Any:
    """The result of a gRPC call, its failure told as one of that part. Raises PredictionError."""
    import grpc

    from millstream.calls import error_from_call

    try:
        return call()
    except grpc.RpcError as error:
        raise error_from_call(error, address=f"{address} ({_PARTS[part]})") from None
