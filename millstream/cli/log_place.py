"""The event log as files, for a command: from the sink that runs, or from the state directory while none does."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from millstream.cli.errors import NOT_FOUND, UNAVAILABLE, CommandFailed
from millstream.cli.place import DEFAULT_STATE_DIR, EVENT_LOG, Place, called
from millstream.cli.screen import Screen

if TYPE_CHECKING:
    from consumers.audit.log_files import LogFiles

EventLogOption = Annotated[
    str,
    typer.Option("--event-log", metavar="HOST:PORT", help="Talk to this event log instead.", rich_help_panel="Where"),
]


@contextmanager
def open_log(
    place: Place,
    screen: Screen,
    model_id: str = "",
    *,
    since: datetime | None = None,
    until: datetime | None = None,
) -> Iterator[LogFiles]:
    """The files of the log, in a folder that is gone afterwards; segments that can't be read are named on stderr.

    The times leave out segments without a request in [since, until); of the others all rows are there.
    Raises CommandFailed where there is no log, it can't be read, or it has nothing of that model.
    """
    with tempfile.TemporaryDirectory(prefix="millstream-log-") as folder:
        files = _files(place, screen, Path(folder), model_id, since, until)
        for skipped in files.skipped:
            print(skipped, file=sys.stderr)
        if model_id and not _has(files, model_id):
            raise CommandFailed(f"the event log has nothing of a model {model_id!r}", NOT_FOUND)
        yield files


def _files(
    place: Place, screen: Screen, folder: Path, model_id: str, since: datetime | None, until: datetime | None
) -> LogFiles:
    from consumers.audit.log_files import LogUnusable
    from consumers.audit.reading import fetch, open_stopped
    from millstream.local.state_dir import StateDir

    times: dict[str, Any] = {"since_us": micros(since), "until_us": micros(until)}
    state = StateDir(place.state_dir or DEFAULT_STATE_DIR)
    running = place.runs(EVENT_LOG)
    if not running and not state.events.exists():
        state.require_running()  # which says what there is instead
    try:
        if not running:
            return open_stopped(state.events, folder, model_id, **times)
        from protos import millstream_v1_pb2_grpc as v1_grpc

        with place.channel(EVENT_LOG) as channel, _shown(screen) as on_progress:
            stub = v1_grpc.EventLogStub(channel)
            address = place.address(EVENT_LOG)
            return cast(
                "LogFiles",
                called(EVENT_LOG, address, lambda: fetch(stub, folder, model_id, **times, on_progress=on_progress)),
            )
    except LogUnusable as error:
        raise CommandFailed(str(error), UNAVAILABLE) from None


def micros(time: datetime | None) -> int | None:
    """Since the Unix epoch; None for no time."""
    return None if time is None else (time - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)


def _has(files: LogFiles, model_id: str) -> bool:
    if any(each.model_id == model_id for each in files.positions) or model_id in files.sealed_up_to:
        return True
    with files.connect() as connection:
        return bool(connection.execute("SELECT 1 FROM events WHERE model_id = ? LIMIT 1", [model_id]).fetchall())


@contextmanager
def _shown(screen: Screen) -> Iterator[Callable[[str, int], None]]:
    """What is downloaded, on a terminal."""
    if not screen.watched:
        yield lambda _name, _bytes: None
        return
    from rich.console import Console
    from rich.progress import DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}", markup=False), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("reading the event log")
        yield lambda name, size: bars.update(task, description=name, advance=size)
