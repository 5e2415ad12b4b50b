"""status: what runs, what waits and what is behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from millstream.cli.errors import FALSE, UNAVAILABLE, CommandFailed
from millstream.cli.options import AddressOption, JsonOption, QuietOption, RedisOption, StateDirOption
from millstream.cli.place import EVENT_LOG, GATEWAY, REDIS, REGISTRY, Place
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    import redis

    from contract.keys import ModelKeys
    from contract.presence import Presence
    from protos import millstream_wire_v1_pb2 as wire

HEALTH_S = 3.0
LANES = ("requests", "bulk")


def status(
    prefix: str = typer.Option("ms", "--prefix", help="First part of every key.", rich_help_panel="Where"),
    state_dir: StateDirOption = None,
    address: AddressOption = "",
    redis_url: RedisOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what runs, what waits and what is behind; ends with code 1 where the gateway does not serve.

    `waiting` counts rows, `backlog` entries of a lane, `held` those that workers have read and not finished, `sink
    behind` entries of events that the event log has not committed.

    [bold]Examples[/bold]

      millstream status
      millstream status --address HOST:PORT --redis-url redis://HOST:6379
    """
    screen = Screen(as_json=as_json, quiet=quiet)
    place = Place.of(state_dir, gateway=address, redis=redis_url)
    addresses = {part: _address(place, part) for part in (GATEWAY, REDIS, EVENT_LOG, REGISTRY)}
    if not any(addresses.values()):
        raise CommandFailed("nothing to ask: give --state-dir, --address or --redis-url", UNAVAILABLE)
    health = _health(addresses[GATEWAY]) if addresses[GATEWAY] else ""
    seen = _look(addresses[REDIS], prefix) if addresses[REDIS] else Seen()
    if as_json:
        screen.line({"gateway": health, "addresses": _shown(addresses), **seen.to_json()})
    else:
        _show(screen, health, _shown(addresses), seen)
    if addresses[GATEWAY] and health != "SERVING":
        raise typer.Exit(FALSE)


@dataclass(frozen=True, slots=True)
class ModelState:
    """One model's numbers; lanes by their name."""

    model_id: str
    live: str
    versions: dict[str, str]
    digests: dict[str, str]
    """Hex digest of each version."""
    backlog: dict[str, int]
    held: dict[str, int]
    rows_waiting: dict[str, int]
    accepted: int
    completed: int
    duplicates: int
    dead: int
    sink_behind: int

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything Redis tells of a running Millstream."""

    models: tuple[ModelState, ...] = ()
    processes: tuple[Presence, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "models": [model.to_json() for model in self.models],
            "processes": [
                {
                    "role": each.role,
                    "name": each.name,
                    "pid": each.pid,
                    "catalogue_revision": each.revision,
                    "loaded": sorted(each.loaded),
                    "failed": dict(each.failed),
                    "rows_per_s": dict(each.rows_per_s),
                }
                for each in self.processes
            ],
        }


def _address(place: Place, part: str) -> str:
    # With addresses named on the command line only those parts are asked.
    if not place.knows(part):
        return ""
    try:
        return place.address(part)
    except CommandFailed:
        return ""


def _shown(addresses: dict[str, str]) -> dict[str, str]:
    import re

    return {part: re.sub(r"(//[^/@]*:)[^/@]+@", r"\1***@", address) for part, address in addresses.items()}


def _health(address: str) -> str:
    """SERVING, NOT_SERVING, or `unreachable` with the reason."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from millstream.calls import channel_options

    with grpc.insecure_channel(address, options=channel_options(address)) as channel:
        try:
            reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=HEALTH_S)
        except grpc.RpcError as error:
            return f"unreachable ({error.details()})"
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


def _look(url: str, prefix: str) -> Seen:
    from redis.exceptions import RedisError

    from contract.connection import connect, living
    from contract.keys import Keys
    from protos import millstream_wire_v1_pb2 as wire

    keys = Keys(prefix)
    client = connect(url)
    try:
        sealed: Any = client.hgetall(keys.catalog)
        records = [
            wire.ModelRecord.FromString(wire.SignedRecord.FromString(raw).record) for _, raw in sorted(sealed.items())
        ]
        models = tuple(_model(client, keys.model(record.model_id), record) for record in records)
        roles = ("gateway", "worker", "sink", "registry")
        return Seen(models, tuple(each for role in roles for each in living(client, keys, role)))
    except (RedisError, OSError) as error:
        where = next(iter(_shown({REDIS: url}).values()))
        raise CommandFailed(f"Redis at {where} can't be asked: {error}", UNAVAILABLE) from None
    finally:
        client.close()


def _model(client: redis.Redis, names: ModelKeys, record: wire.ModelRecord) -> ModelState:
    from contract.keys import GROUP
    from protos import millstream_wire_v1_pb2 as wire

    pipe = client.pipeline(transaction=False)
    for stream in (names.requests, names.bulk, names.dead, names.events):
        pipe.xlen(stream)
    pipe.get(names.rows_requests)
    pipe.get(names.rows_bulk)
    pipe.hgetall(names.count)
    pipe.xpending(names.requests, GROUP)
    pipe.xpending(names.bulk, GROUP)
    # A group that nobody made yet is no trouble: nothing was read.
    requests, bulk, dead, events, rows_requests, rows_bulk, counts, held_requests, held_bulk = [
        None if isinstance(answer, Exception) else answer for answer in pipe.execute(raise_on_error=False)
    ]
    counted = {name.decode(): int(value) for name, value in (counts or {}).items()}
    return ModelState(
        model_id=record.model_id,
        live=record.routing.production,
        versions={v.version: wire.VersionState.Name(v.state).lower() for v in record.versions},
        digests={v.version: v.digest.hex() for v in record.versions},
        backlog={"requests": requests or 0, "bulk": bulk or 0},
        held={"requests": (held_requests or {}).get("pending", 0), "bulk": (held_bulk or {}).get("pending", 0)},
        rows_waiting={"requests": int(rows_requests or 0), "bulk": int(rows_bulk or 0)},
        accepted=counted.get("accepted", 0),
        completed=counted.get("completed", 0),
        duplicates=counted.get("duplicates", 0),
        dead=dead or 0,
        sink_behind=events or 0,
    )


def _show(screen: Screen, health: str, addresses: dict[str, str], seen: Seen) -> None:
    parts = [(part, addresses[part] or "", health if part == GATEWAY else "") for part in addresses]
    screen.table(("part", "address", "health"), parts)
    if not addresses[REDIS]:
        screen.note("name --redis-url to see models and workers too")
        return
    screen.table(
        ("model", "live", "waiting", "backlog", "bulk backlog", "held", "accepted", "completed", "dead", "sink behind"),
        [
            (
                model.model_id,
                model.live or "none",
                sum(model.rows_waiting.values()),
                model.backlog["requests"],
                model.backlog["bulk"],
                sum(model.held.values()),
                model.accepted,
                model.completed,
                model.dead,
                model.sink_behind,
            )
            for model in seen.models
        ],
    )
    names = {digest: f"{m.model_id} {v}" for m in seen.models for v, digest in m.digests.items()}
    screen.table(
        ("role", "process", "pid", "loaded", "rows/s", "failed"),
        [
            (
                each.role,
                each.name,
                each.pid,
                ", ".join(sorted(names.get(digest, digest[:12]) for digest in each.loaded)),
                ", ".join(f"{model_id} {rate:,.0f}" for model_id, rate in sorted(each.rows_per_s.items())),
                "; ".join(f"{names.get(digest, digest[:12])}: {why}" for digest, why in each.failed.items()),
            )
            for each in seen.processes
        ],
    )
    if not any(each.role == "worker" for each in seen.processes):
        screen.note("no worker is alive: nothing will be answered")
