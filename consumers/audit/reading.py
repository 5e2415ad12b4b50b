"""Getting the files of a log: from the sink while it runs, from its database while none does.

running    ReadLive, then ListSegments, then the files of segments: where they stand, or downloaded and checked
stopped    the database read-only, its live rows copied out, and the segments beside it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import duckdb
import grpc

from consumers.audit.copying import copy_live, read_segments
from consumers.audit.log_files import LogFiles, LogUnusable, SegmentFile, Skipped, quoted, unlike
from consumers.audit.segment import MalformedManifest, Segment
from consumers.audit.standing import Recorded, Standing, positions_of
from protos import millstream_v1_pb2 as v1

Progress = Callable[[str, int], None]
"""Told the name of what is being downloaded, and how many more bytes of it came."""

EVENTS = "events"
"""The folder of segments, beside the event database."""
LIVE = "live.parquet"
_TRIES = 3


def fetch(
    stub: Any,
    folder: Path,
    model_id: str = "",
    *,
    since_us: int | None = None,
    until_us: int | None = None,
    on_progress: Progress = lambda _name, _bytes: None,
) -> LogFiles:
    """The files of a log whose sink runs; `stub` is one of EventLog, `folder` takes what is downloaded.

    The times leave out segments without a request in [since, until), in microseconds; of the others all rows are there.
    Raises grpc.RpcError, LogUnusable.
    """
    live, positions = _fetch_live(stub, folder / LIVE, model_id, on_progress)
    response = stub.ListSegments(v1.ListSegmentsRequest(model_id=model_id))
    for _ in range(_TRIES):
        inside, outside = _inside(map(_decoded, response.manifests), since_us, until_us)
        found = [_fetched(stub, each, Path(response.folder), folder, on_progress) for each in inside]
        listed = response
        if not any(isinstance(each, Skipped) for each in found):
            break
        # A segment may have been written anew or removed meanwhile, and then the list is another one.
        response = stub.ListSegments(v1.ListSegmentsRequest(model_id=model_id))
        if response.manifests == listed.manifests:
            break
    kept, skipped = _readable(found)
    return LogFiles(kept, live, skipped, outside, positions, Standing.of_message(listed))


def open_stopped(
    database: Path,
    folder: Path,
    model_id: str = "",
    *,
    since_us: int | None = None,
    until_us: int | None = None,
) -> LogFiles:
    """The files of a log that no sink has open; `folder` takes a copy of its live rows. Nothing beside it is written.

    The times are those of `fetch`. Raises LogUnusable.
    """
    if not database.is_file():
        raise LogUnusable(f"there is no event log {database}")
    live = folder / LIVE
    try:
        with duckdb.connect(str(database), read_only=True, config={"threads": 1}) as connection:
            connection.execute(f"SET temp_directory = {quoted(str(folder))}")
            connection.execute("SET TimeZone = 'UTC'")
            positions = copy_live(connection, live, model_id)
            segments = read_segments(connection, model_id)
            standing = Standing.read(connection, model_id)
    except duckdb.Error as error:
        text = str(error)
        why = (
            "another process has it open; where that is a sink, name its address with --event-log HOST:PORT"
            if "lock" in text.lower()
            else text.splitlines()[0]
        )
        raise LogUnusable(f"the event log {database} can't be read: {why}") from None
    except MalformedManifest as error:
        raise LogUnusable(f"the event log {database} can't be read: {error}") from None
    inside, outside = _inside(segments, since_us, until_us)
    kept, skipped = _readable(_placed(each, database.parent / EVENTS) for each in inside)
    return LogFiles(kept, live, skipped, outside, positions, standing)


def _inside(
    segments: Iterable[Segment], since_us: int | None, until_us: int | None
) -> tuple[list[Segment], tuple[Segment, ...]]:
    """Those that may hold what was asked for, and the others."""
    inside: list[Segment] = []
    outside: list[Segment] = []
    for segment in segments:
        before = since_us is not None and segment.last_request_us < since_us
        after = until_us is not None and segment.first_request_us >= until_us
        (outside if before or after else inside).append(segment)
    return inside, tuple(outside)


def _decoded(manifest: str) -> Segment:
    try:
        return Segment.decode(manifest)
    except MalformedManifest as error:
        raise LogUnusable(f"the event log answered what is no manifest of a segment: {error}") from None


def _placed(segment: Segment, folder: Path) -> SegmentFile | Skipped:
    file = SegmentFile(segment, folder / segment.model_id / segment.file)
    why = unlike(file)
    return Skipped(segment, why) if why else file


def _fetched(stub: Any, segment: Segment, there: Path, folder: Path, on_progress: Progress) -> SegmentFile | Skipped:
    """The file where the sink has it, if that is a folder of this machine; else a copy."""
    here = _placed(segment, there)
    if isinstance(here, SegmentFile):
        return here
    path = folder / segment.model_id / segment.file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise LogUnusable(f"the event log named a segment that is no file name: {segment.model_id}/{segment.file}")
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = sha256()
    try:
        with path.open("wb") as file:
            asked = v1.ReadSegmentRequest(model_id=segment.model_id, file=segment.file)
            for content in _pieces(stub.ReadSegment(asked), segment.file, on_progress):
                digest.update(content)
                file.write(content)
    except grpc.RpcError as error:
        if error.code() not in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.DATA_LOSS):
            raise
        return Skipped(segment, error.details() or "the event log does not have its file")
    if digest.hexdigest() != segment.sha256:
        return Skipped(segment, f"expected SHA-256 {segment.sha256}, got {digest.hexdigest()}")
    return SegmentFile(segment, path)


def _fetch_live(stub: Any, path: Path, model_id: str, on_progress: Progress) -> tuple[Path, tuple[Recorded, ...]]:
    positions: list[v1.LogPosition] = []
    call = stub.ReadLive(v1.ReadLiveRequest(model_id=model_id))
    with path.open("wb") as file:
        for content in _pieces(call, path.name, on_progress, positions):
            file.write(content)
    return path, positions_of(positions)


def _pieces(
    call: Any, name: str, on_progress: Progress, positions: list[v1.LogPosition] | None = None
) -> Iterator[bytes]:
    try:
        for piece in call:
            if positions is not None:
                positions.extend(piece.positions)
            on_progress(name, len(piece.content))
            yield piece.content
    finally:
        call.cancel()


def _readable(found: Iterable[SegmentFile | Skipped]) -> tuple[tuple[SegmentFile, ...], tuple[Skipped, ...]]:
    """Leaves out files without a Parquet footer, or with one that says other rows than the manifest."""
    either = list(found)
    kept = [each for each in either if isinstance(each, SegmentFile)]
    skipped = [each for each in either if isinstance(each, Skipped)]
    try:
        rows = _rows([each.path for each in kept])
    except duckdb.Error:
        rows = {}
    sound = []
    for each in kept:
        try:
            counted = rows.get(each.path) if each.path in rows else _rows([each.path])[each.path]
        except duckdb.Error as error:
            skipped.append(Skipped(each.segment, f"it is no Parquet file: {str(error).splitlines()[0]}"))
            continue
        if counted != each.segment.rows:
            skipped.append(Skipped(each.segment, f"expected {each.segment.rows} rows, its footer says {counted}"))
        else:
            sound.append(each)
    return tuple(sound), tuple(skipped)


def _rows(paths: list[Path]) -> dict[Path, int]:
    """What the footers say, by file. Raises duckdb.Error."""
    if not paths:
        return {}
    files = ", ".join(quoted(str(path)) for path in paths)
    with duckdb.connect(config={"threads": 1}) as connection:
        found = connection.execute(f"SELECT file_name, num_rows FROM parquet_file_metadata([{files}])").fetchall()  # noqa: S608 - quoted
    return {Path(name): int(rows) for name, rows in found}
