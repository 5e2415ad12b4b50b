"""status: what runs, what waits and what is behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from millstream.cli.errors import FALSE, UNAVAILABLE, USAGE, CommandFailed
from millstream.cli.options import AddressOption, JsonOption, PrefixOption, QuietOption, RedisOption, StateDirOption
from millstream.cli.place import EVENT_LOG, GATEWAY, REDIS, REGISTRY, Place
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import redis

    from contract.keys import ModelKeys
    from contract.presence import Presence
    from protos import millstream_wire_v1_pb2 as wire

HEALTH_S = 3.0
LANES = ("requests", "bulk")
ROLES = ("gateway", "worker", "sink", "registry")


def status(
    prefix: PrefixOption = "ms",
    state_dir: StateDirOption = None,
    address: AddressOption = "",
    redis_url: RedisOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what runs, what waits and what is behind; ends with code 1 where the gateway does not serve.

    Of each model: `rows` and `entries` that wait, those of the `bulk` lane among them; `held`, entries that workers
    have read and not finished; `oldest`, how long the oldest entry has waited, by Redis' clock; `rows/s`, answered over
    the last seconds; `dead`, letters; `behind`, entries of events that the event log has not committed.

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
    """Entries."""
    held: dict[str, int]
    """Those of them that workers have read and not finished."""
    rows_waiting: dict[str, int]
    oldest_s: dict[str, float | None]
    """Age of the oldest entry that is not finished; None where there is none."""
    rows_per_s: float
    """Answered over the last seconds, by all workers."""
    capacity_rows_per_s: float
    """What the workers could do if they all worked on this model alone."""
    accepted: int
    completed: int
    duplicates: int
    shadow: str
    """The version that computes copies of requests; empty: none does."""
    copies: int
    """That shadows computed, ever."""
    copies_dropped: int
    """By the living workers, for want of idle room."""
    dead: int
    sink_behind: int
    """Entries of events that the event log has not committed."""
    alarm: str
    """Why the event log records nothing of it any more; empty: it does."""

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
                    "served_rows_per_s": dict(each.served),
                    "alarm": dict(each.alarm),
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
    except CommandFailed as error:
        if error.exit_code == USAGE:
            raise
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
        processes = tuple(each for role in ROLES for each in living(client, keys, role))
        models = tuple(_model(client, keys.model(record.model_id), record, processes) for record in records)
        return Seen(models, processes)
    except (RedisError, OSError) as error:
        where = next(iter(_shown({REDIS: url}).values()))
        raise CommandFailed(f"Redis at {where} can't be asked: {error}", UNAVAILABLE) from None
    finally:
        client.close()


def _model(
    client: redis.Redis, names: ModelKeys, record: wire.ModelRecord, processes: Sequence[Presence]
) -> ModelState:
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
    pipe.xrange(names.requests, count=1)
    pipe.xrange(names.bulk, count=1)
    # Ages are told by the clock that made the entries' ids.
    pipe.time()
    # A group that nobody made yet is no trouble: nothing was read.
    requests, bulk, dead, events, rows_requests, rows_bulk, counts, held_requests, held_bulk, *firsts, now = [
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
        oldest_s={lane: _age(first, now) for lane, first in zip(LANES, firsts, strict=True)},
        rows_per_s=round(sum(each.served.get(record.model_id, 0.0) for each in processes), 1),
        capacity_rows_per_s=round(sum(each.rows_per_s.get(record.model_id, 0.0) for each in processes), 1),
        accepted=counted.get("accepted", 0),
        completed=counted.get("completed", 0),
        duplicates=counted.get("duplicates", 0),
        shadow=record.routing.shadow,
        copies=counted.get("copies", 0),
        copies_dropped=sum(each.shadowed.get(record.model_id, (0, 0))[1] for each in processes),
        dead=dead or 0,
        sink_behind=events or 0,
        alarm="; ".join(each.alarm[record.model_id] for each in processes if record.model_id in each.alarm),
    )


def _age(first: Any, now: Any) -> float | None:
    """How long ago the first entry of a stream was appended, in seconds; ids may lie in the future by hand."""
    if not first or not now:
        return None
    appended_ms: int = int(first[0][0].partition(b"-")[0])
    age_s: float = now[0] + now[1] / 1e6 - appended_ms / 1000
    return max(0.0, round(age_s, 3))


def _waited(ages: Iterable[float | None]) -> str:
    """The greatest of ages as people read it."""
    known = [age for age in ages if age is not None]
    if not known:
        return ""
    age = max(known)
    if age < 100:
        return f"{age:.1f} s"
    minutes = int(age // 60)
    if minutes < 100:
        return f"{minutes} min"
    return f"{minutes // 60} h" if minutes < 100 * 60 else f"{minutes // (24 * 60)} d"


def _show(screen: Screen, health: str, addresses: dict[str, str], seen: Seen) -> None:
    from contract.presence import ALL

    parts = [(part, addresses[part] or "", health if part == GATEWAY else "") for part in addresses]
    screen.table(("part", "address", "health"), parts)
    if not addresses[REDIS]:
        screen.note("name --redis-url to see models and workers too")
        return
    screen.table(
        ("model", "live", "rows", "entries", "bulk", "held", "oldest", "rows/s", "dead", "behind"),
        [
            (
                model.model_id,
                model.live or "none",
                sum(model.rows_waiting.values()),
                sum(model.backlog.values()),
                model.backlog["bulk"],
                sum(model.held.values()),
                _waited(model.oldest_s.values()),
                round(model.rows_per_s),
                model.dead,
                model.sink_behind,
            )
            for model in seen.models
        ],
    )
    names = {digest: f"{m.model_id} {v}" for m in seen.models for v, digest in m.digests.items()}
    screen.table(
        ("role", "process", "pid", "loaded", "failed"),
        [
            (
                each.role,
                each.name,
                each.pid,
                ", ".join(sorted(names.get(digest, digest[:12]) for digest in each.loaded)),
                "; ".join(f"{names.get(digest, digest[:12])}: {why}" for digest, why in each.failed.items()),
            )
            for each in seen.processes
        ],
    )
    for model in seen.models:
        if model.shadow:
            told = f"{model.copies} copies of requests were computed, {model.copies_dropped} dropped"
            screen.note(f"shadow: {model.model_id} {model.shadow}: {told}")
        if model.alarm:
            screen.note(f"alarm: the event log does not record {model.model_id}: {model.alarm}")
    for each in seen.processes:
        if ALL in each.alarm:
            screen.note(f"alarm: {each.role}: {each.alarm[ALL]}")
    if not any(each.role == "worker" for each in seen.processes):
        screen.note("no worker is alive: nothing will be answered")
