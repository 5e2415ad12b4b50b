"""What every replay begins with: the log as files, the versions that answered, and the records of what predicted."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli.errors import NOT_FOUND, USAGE, CommandFailed
from millstream.cli.events import (
    STATUSES,
    EntityOption,
    RequestOption,
    SinceOption,
    StatusOption,
    UntilOption,
    VersionOption,
)
from millstream.cli.log_place import micros, open_log
from millstream.cli.moments import moment
from millstream.cli.place import DEFAULT_STATE_DIR, REDIS, REGISTRY, Place, called
from millstream.cli.registry_call import ModelArgument
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    import duckdb

    from consumers.audit.log_files import LogFiles
    from consumers.replay.calls import Selection
    from consumers.replay.versions import Fetch, Versions
    from contract.settings import Settings
    from millstream.stored_versions import Known

__all__ = [
    "EntityOption",
    "LimitOption",
    "ModelArgument",
    "ReplayLog",
    "ReplayOption",
    "RequestOption",
    "SinceOption",
    "StatusOption",
    "StoreOption",
    "UntilOption",
    "VersionOption",
    "open_replay",
    "selected",
]

_FILTER, _WHERE = "Filter", "Where"


ReplayOption = Annotated[
    str,
    typer.Option(
        "--replay", metavar="NAME", help="Of this replay, or `all` of them too; else real requests alone.",
        rich_help_panel=_FILTER,
    ),
]  # fmt: skip
LimitOption = Annotated[
    int, typer.Option("--limit", metavar="N", min=0, help="Most events, the oldest of a model first; 0: all.")
]
StoreOption = Annotated[
    str,
    typer.Option(
        "--store",
        metavar="DIR|URL",
        envvar="MILLSTREAM_STORE_URL",
        help="Where versions are that Redis has no more (default: where the registry finds them).",
        rich_help_panel=_WHERE,
    ),
]

SHARED = timedelta(hours=1)
"""Requests of one predict call were asked for within this: whoever shares one with an event at the edge of the time
that is asked for is read too."""


@dataclass(frozen=True, slots=True)
class ReplayLog:
    """An open log, what was asked of it, and the versions that answered."""

    connection: duckdb.DuckDBPyConnection
    selection: Selection
    wanted: Mapping[str, int]
    """model_id -> events that are asked for, at least one."""
    versions: Versions
    runtimes: Mapping[str, str | bytes]
    """runtime_id -> its record, JSON."""

    @property
    def events(self) -> int:
        return sum(self.wanted.values())


def selected(
    model: str | None,
    *,
    version: str = "",
    status: str = "",
    entity: str = "",
    request_id: str = "",
    since: str = "",
    until: str = "",
    replay: str = "",
) -> Selection:
    """What the options ask for. Raises CommandFailed."""
    from consumers.replay.calls import Selection

    if status and status.upper() not in STATUSES:
        raise CommandFailed(f"--status: expected one of {', '.join(STATUSES)}; got {status!r}", USAGE)
    first = moment(since, "--since") if since else None
    end = moment(until, "--until") if until else None
    if first is not None and end is not None and end < first:
        raise CommandFailed(f"--until: expected a time that is not before --since; got {until!r}", USAGE)
    return Selection(
        model_id=model or "",
        version=version,
        status=status.upper(),
        entity_id=entity,
        request_id=request_id,
        since_us=micros(first),
        until_us=micros(end),
        replay="*" if replay == "all" else replay,
    )


@contextmanager
def open_replay(place: Place, screen: Screen, selection: Selection, *, store: str = "") -> Iterator[ReplayLog]:
    """Everything that a replay needs, until the block is left. `place` may name event log, Redis and registry.

    Raises CommandFailed where there is no log, no such model, or nothing of what is asked for.
    """
    one_thread()
    from consumers.audit.log_files import quoted
    from consumers.replay.calls import wanted_events

    since = _time(selection.since_us, -SHARED)
    until = _time(selection.until_us, SHARED)
    with ExitStack() as stack:
        files = stack.enter_context(open_log(place, screen, selection.model_id, since=since, until=until))
        connection = stack.enter_context(files.connect())
        if files.live is not None:
            connection.execute(f"SET temp_directory = {quoted(str(files.live.parent))}")
        connection.execute("SET parquet_metadata_cache = true")
        wanted = wanted_events(connection, selection)
        if not wanted:
            raise CommandFailed("the event log has no events of what was asked for", NOT_FOUND)
        versions, runtimes = _sources(stack, place, screen, files, store)
        yield ReplayLog(connection, selection, wanted, versions, runtimes)


def one_thread() -> None:
    """BLAS and OpenMP with one thread, as a worker has them: read when they are loaded, so before anything else."""
    from millstream.roles import THREAD_LIMITS

    for limit in THREAD_LIMITS:
        os.environ.setdefault(limit, "1")


def _sources(
    stack: ExitStack, place: Place, screen: Screen, files: LogFiles, store: str
) -> tuple[Versions, Mapping[str, str | bytes]]:
    """Where versions and runtime records are had from: Redis where it runs, then the store and the log itself."""
    from consumers.replay.versions import Versions
    from millstream.cli.roles import settings_of

    settings = settings_of(state_dir=place.state_dir, store_url=store or None)
    runtimes: dict[str, str | bytes] = {}
    for segment in files.segments:
        runtimes.update(segment.segment.runtimes)
    runtimes.update(files.standing.runtimes)
    fetches: list[Fetch] = []
    if address := _address(place, REDIS):
        fetches += _redis(stack, screen, settings, address, runtimes)
    fetches += _store(place, screen, settings)
    return Versions(*fetches), runtimes


def _redis(
    stack: ExitStack, screen: Screen, settings: Settings, address: str, runtimes: dict[str, str | bytes]
) -> list[Fetch]:
    from redis.exceptions import RedisError

    from consumers.replay.versions import in_redis
    from contract.catalog import Catalog
    from contract.connection import connect
    from contract.keys import Keys
    from contract.trust import KeyUnusable, public_key
    from millstream.roles import public_key_file

    keys = Keys(settings.prefix)
    client = stack.enter_context(connect(address))
    try:
        found: Any = client.hgetall(keys.runtimes)
        runtimes.update({name.decode(): record for name, record in found.items()})
        return [in_redis(client, keys, Catalog(public_key(public_key_file(settings))))]
    except RedisError as error:
        screen.note(f"Redis can't be asked for versions: {error}")
    except KeyUnusable as error:
        screen.note(f"versions in Redis are not used: {error}; name it in MILLSTREAM_REGISTRY_PUBLIC_KEY")
    return []


def _store(place: Place, screen: Screen, settings: Settings) -> list[Fetch]:
    from millstream.local.state_dir import StateDir
    from millstream.stored_versions import in_catalogue, in_store

    state = StateDir(settings.state_dir)
    url = settings.store_url
    known: Known
    if _address(place, REGISTRY):
        known, listed = _by_registry(place)
        url = url or listed
    elif state.registry.exists():
        known = in_catalogue(state.registry)
    elif url:
        screen.note(
            f"no registry is there to ask: versions are taken from {url} where their digest is the one in the log. "
            "Loading a model runs its code, so let both be yours"
        )
        known = _vouched
    else:
        return []
    if not url:
        models = state.path / "models"
        if not models.is_dir():
            return []
        url = str(models)
    return [in_store(settings.model_copy(update={"store_url": url}), known, screen.note)]


def _by_registry(place: Place) -> tuple[Known, str]:
    """Asks the registry that runs; and the store that it looks into."""
    from millstream.stored_versions import never_recorded
    from protos import millstream_v1_pb2 as v1
    from protos import millstream_v1_pb2_grpc as v1_grpc

    address = place.address(REGISTRY)
    with place.channel(REGISTRY) as channel:
        stub: Any = v1_grpc.RegistryStub(channel)
        listed = called(REGISTRY, address, lambda: stub.ListVersions(v1.ListVersionsRequest(), timeout=30))
    digests = {(each.model_id, each.digest) for each in listed.versions}

    def known(model_id: str, digest: str) -> str:
        return "" if (model_id, digest) in digests else never_recorded("the registry")

    return known, str(listed.store)


def _vouched(_model_id: str, _digest: str) -> str:
    return ""


def _address(place: Place, part: str) -> str:
    """Where a part is, as named or as the state directory says; empty where it is neither.

    Where other parts were named and no state directory, the default one is of something else.
    """
    from millstream.local.state_dir import StateDir

    if part in dict(place.named):
        return place.address(part)
    if place.state_dir is None and not place.knows(part):
        return ""
    running = StateDir(place.state_dir or DEFAULT_STATE_DIR).running()
    return running.addresses.get(part, "") if running is not None else ""


def _time(micros: int | None, apart: timedelta) -> datetime | None:
    if micros is None:
        return None
    try:
        return datetime.fromtimestamp(micros / 1e6, UTC) + apart
    except (OverflowError, ValueError):
        return None
