"""events seal and events reconcile: the log's files, and whether it has everything that was accepted."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from millstream.cli.errors import FALSE, NOT_FOUND, UNAVAILABLE, CommandFailed
from millstream.cli.log_place import EventLogOption, open_log
from millstream.cli.options import JsonOption, PrefixOption, QuietOption, RedisOption, StateDirOption
from millstream.cli.place import EVENT_LOG, REDIS, REGISTRY, Place, called
from millstream.cli.registry_call import RegistryOption
from millstream.cli.screen import Screen, some

if TYPE_CHECKING:
    import redis

    from consumers.audit.log_files import LogFiles
    from consumers.audit.numbers import InLog
    from consumers.audit.reconcile import Counts, Reconciled
    from contract.keys import Keys

_STEP_S = 0.2

ModelArgument = Annotated[str, typer.Argument(metavar="[MODEL]", help="Only this model.")]


def seal(
    model: ModelArgument = "",
    state_dir: StateDirOption = None,
    event_log: EventLogOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Seal what is in no segment yet, instead of waiting until it is due.

    [bold]Example[/bold]

      millstream events seal churn
    """
    from consumers.audit.segment import Segment
    from protos import millstream_v1_pb2 as v1
    from protos import millstream_v1_pb2_grpc as v1_grpc

    screen = Screen(as_json=as_json, quiet=quiet)
    place = Place.of(state_dir, event_log=event_log)
    address = place.address(EVENT_LOG)
    with place.channel(EVENT_LOG) as channel:
        stub: Any = v1_grpc.EventLogStub(channel)
        answer = called(EVENT_LOG, address, lambda: stub.Seal(v1.SealRequest(model_id=model)))
        if model and not answer.manifests:
            known = called(EVENT_LOG, address, lambda: stub.ListSegments(v1.ListSegmentsRequest(model_id=model)))
            if not any(each.model_id == model for each in known.positions):
                raise CommandFailed(f"the event log has nothing of a model {model!r}", NOT_FOUND)
    sealed = [Segment.decode(manifest) for manifest in answer.manifests]
    if as_json:
        for segment in sealed:
            screen.line(asdict(segment))
    elif sealed:
        rows = [(each.model_id, each.file, each.rows, each.size) for each in sealed]
        screen.table(("model", "file", "events", "bytes"), rows)
    screen.note(some(len(sealed), "segment") if sealed else "there was nothing to seal")


def reconcile(
    model: ModelArgument = "",
    wait: Annotated[
        float, typer.Option("--wait", metavar="SECONDS", min=0, help="Longest wait until the log has caught up.")
    ] = 10.0,
    prefix: PrefixOption = "ms",
    state_dir: StateDirOption = None,
    event_log: EventLogOption = "",
    redis_url: RedisOption = "",
    registry: RegistryOption = "",
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Compare the log with what Redis counted: is every accepted request there, once?

    Ends with code 1 where something does not add up, and says what.

    [bold]Examples[/bold]

      millstream events reconcile
      millstream events reconcile churn --json
    """
    from contract.keys import Keys

    screen = Screen(as_json=as_json, quiet=quiet)
    place = Place.of(state_dir, event_log=event_log, redis=redis_url, registry=registry)
    keys = Keys(prefix)
    with _redis(place) as client:
        books = list(_books(client, keys, place, screen, model, wait))
    if as_json:
        for each in books:
            screen.line(_json(each))
    else:
        screen.table(_COLUMNS, [_row(each) for each in books])
        for each in books:
            _tell(screen, each)
    if not all(each.adds_up for each in books):
        raise typer.Exit(FALSE)


def _books(
    client: redis.Redis, keys: Keys, place: Place, screen: Screen, model: str, wait: float
) -> Iterator[Reconciled]:
    from consumers.audit.reconcile import read_counts, reconcile

    models = [model] if model else sorted(name.decode() for name in client.hkeys(keys.catalog))  # type: ignore[union-attr]
    before = read_counts(client, keys, models)
    alarms = _wait_until_recorded(place, before.values(), wait)
    # Without the model, so that one that nobody ever asked is told from one that there is not.
    with open_log(place, screen) as files:
        recorded = {each.model_id for each in files.positions}
        if model and not (model in recorded or before[model].accepted or client.hexists(keys.catalog, model)):
            raise CommandFailed(f"neither the event log nor Redis has a model {model!r}", NOT_FOUND)
        others = sorted(recorded - before.keys()) if not model else []
        before |= read_counts(client, keys, others)
        logs = {model_id: _in_log(files, model_id) for model_id in sorted(before)}
    after = read_counts(client, keys, before)
    known, knows_all = _digests(place, client, keys, screen)
    for model_id, log in logs.items():
        alarm = alarms.get(model_id, "")
        yield reconcile(before[model_id], log, after[model_id], known, knows_all=knows_all, alarm=alarm)


def _in_log(files: LogFiles, model_id: str) -> InLog:
    import duckdb

    from consumers.audit.numbers import in_log

    try:
        return in_log(files, model_id)
    except duckdb.Error as error:
        sound = files.sound()  # most likely a file that was altered
        if len(sound.segments) == len(files.segments):
            raise CommandFailed(f"the event log can't be read: {str(error).splitlines()[0]}", UNAVAILABLE) from None
        for skipped in sound.skipped[len(files.skipped) :]:
            print(skipped, file=sys.stderr)
        return in_log(sound, model_id)


def _wait_until_recorded(place: Place, counts: Iterable[Counts], wait: float) -> Mapping[str, str]:
    """Until the log has what was completed, or the time is over; then the sink's alarms by model."""
    from protos import millstream_v1_pb2 as v1
    from protos import millstream_v1_pb2_grpc as v1_grpc

    if not place.runs(EVENT_LOG):
        return {}
    completed = {each.model_id: each.completed for each in counts}
    address = place.address(EVENT_LOG)
    deadline = time.monotonic() + wait
    with place.channel(EVENT_LOG) as channel:
        stub: Any = v1_grpc.EventLogStub(channel)
        while True:
            found = called(EVENT_LOG, address, lambda: stub.ListSegments(v1.ListSegmentsRequest()))
            reached = {each.model_id: each.number for each in found.positions}
            if all(reached.get(model_id, 0) >= number for model_id, number in completed.items()):
                return {}
            if time.monotonic() >= deadline:
                counted = called(EVENT_LOG, address, lambda: stub.Count(v1.EventQuery(), timeout=60))
                return dict(counted.alarms)
            time.sleep(_STEP_S)


@contextmanager
def _redis(place: Place) -> Iterator[redis.Redis]:
    from redis.exceptions import RedisError

    from contract.connection import connect

    client = connect(place.address(REDIS))
    try:
        yield client
    except (RedisError, OSError) as error:
        raise CommandFailed(f"Redis does not answer: {error}", UNAVAILABLE) from None
    finally:
        client.close()


def _digests(place: Place, client: redis.Redis, keys: Keys, screen: Screen) -> tuple[Collection[str], bool]:
    """Of the versions that the registry knows, or at least those in the catalogue; and whether these are all."""
    from ingest.answer import PredictionError
    from protos import millstream_v1_pb2 as v1
    from protos import millstream_v1_pb2_grpc as v1_grpc
    from protos import millstream_wire_v1_pb2 as wire

    if place.runs(REGISTRY):
        try:
            with place.channel(REGISTRY) as channel:
                stub: Any = v1_grpc.RegistryStub(channel)
                asked = v1.ListVersionsRequest()
                found = called(REGISTRY, place.address(REGISTRY), lambda: stub.ListVersions(asked, timeout=30))
            return {each.digest for each in found.versions}, True
        except (PredictionError, CommandFailed) as error:
            screen.note(f"the registry was not asked about versions: {error}")
    known = set()
    sealed: Any = client.hvals(keys.catalog)
    for raw in sealed:
        record = wire.ModelRecord.FromString(wire.SignedRecord.FromString(raw).record)
        known |= {version.digest.hex() for version in record.versions}
    return known, False


_COLUMNS = (
    *("model", "accepted", "requests", "bulk", "completed", "copies", "live", "sealed", "removed", "explained"),
    *("missing", "adds up"),
)


def _row(each: Reconciled) -> tuple[object, ...]:
    counts, log = each.counts, each.log
    explained, missing = (sum(hole.events for hole in holes) for holes in (log.explained, log.holes))
    return (
        *(counts.model_id, counts.accepted, counts.requests, counts.bulk, counts.completed, counts.copies),
        *(log.live, log.sealed, log.removed, explained, missing, "yes" if each.adds_up else "NO"),
    )


def _tell(screen: Screen, each: Reconciled) -> None:
    model_id = each.counts.model_id
    for problem in each.problems:
        screen.text(f"{model_id}: {problem}")
    for hole in each.log.explained:
        screen.note(f"{model_id}: {hole}")
    if each.log.removed:
        screen.note(f"{model_id}: events up to {each.log.removed} were removed when their time was over")
    if each.unchecked:
        screen.note(f"{model_id}: {each.unchecked} versions were not checked, since no registry answered")


def _json(each: Reconciled) -> dict[str, Any]:
    log = each.log
    return {
        **asdict(each.counts),
        "reached": log.number,
        "live": log.live,
        "sealed": log.sealed,
        "removed_up_to": log.removed,
        "by_status": log.by_status,
        "explained": [asdict(hole) for hole in log.explained],
        "holes": [asdict(hole) for hole in log.holes],
        "unreadable": list(log.unreadable),
        "unknown_versions": list(each.unknown),
        "unchecked_versions": each.unchecked,
        "problems": list(each.problems),
        "adds_up": each.adds_up,
    }
