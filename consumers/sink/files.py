"""The event log as files, for those who ask the sink: its segments, and the rows that are in none of them."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

import duckdb
import grpc

from consumers.audit.copying import copy_live, read_segments
from consumers.audit.segment import MalformedManifest
from consumers.audit.standing import Standing
from protos import millstream_v1_pb2 as v1

PIECE = 2**20
PREFIX = ".live-"
"""What the name of a copy of live rows begins with; it is there while somebody reads it."""

Cursors = Callable[[grpc.ServicerContext], AbstractContextManager[duckdb.DuckDBPyConnection]]
"""A cursor for one call, which a caller who goes away interrupts."""


class FileReads:
    """ListSegments, ReadSegment and ReadLive."""

    def __init__(self, folder: Path, cursors: Cursors) -> None:
        self._folder = folder
        """Of the segments; the database may write there."""
        self._cursors = cursors
        with contextlib.suppress(OSError):  # what a sink that was killed left behind
            for left in folder.glob(f"{PREFIX}*"):
                left.unlink()

    def list_segments(self, request: v1.ListSegmentsRequest, context: grpc.ServicerContext) -> v1.ListSegmentsResponse:
        """What is sealed, and what stands beside the events, in one transaction."""
        with self._cursors(context) as cursor:
            cursor.begin()
            try:
                segments = read_segments(cursor, request.model_id)
                standing = Standing.read(cursor, request.model_id)
            except MalformedManifest as error:
                context.abort(grpc.StatusCode.DATA_LOSS, str(error))
            finally:
                cursor.rollback()
        response = v1.ListSegmentsResponse(
            manifests=[segment.encode() for segment in segments], folder=str(self._folder.absolute())
        )
        standing.put(response)
        return response

    def read_segment(self, request: v1.ReadSegmentRequest, context: grpc.ServicerContext) -> Iterator[v1.FilePiece]:
        """The file of a segment that is listed; no other file can be named."""
        with self._cursors(context) as cursor:
            known = {segment.file for segment in read_segments(cursor, request.model_id) if request.model_id}
        if request.file not in known:
            context.abort(
                grpc.StatusCode.NOT_FOUND,
                f"there is no segment {request.file[:100]!r} of {request.model_id[:100]!r}; it may have been removed",
            )
        try:
            file = (self._folder / request.model_id / request.file).open("rb")
        except OSError as error:
            context.abort(grpc.StatusCode.DATA_LOSS, f"its file can't be read: {error.strerror}")
        with file:
            yield from _pieces(file, context)

    def read_live(self, request: v1.ReadLiveRequest, context: grpc.ServicerContext) -> Iterator[v1.FilePiece]:
        """A copy of the rows that are in no segment; its file has no name any more while it is sent."""
        path = self._folder / f"{PREFIX}{uuid.uuid4().hex}.parquet"
        try:
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._cursors(context) as cursor:
                positions = copy_live(cursor, path, request.model_id)
            file = path.open("rb")
        except OSError as error:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the live rows can't be copied: {error.strerror}")
        finally:
            path.unlink(missing_ok=True)
        with file:
            yield v1.FilePiece(positions=[each.to_message() for each in positions])
            yield from _pieces(file, context)


def _pieces(file: BinaryIO, context: grpc.ServicerContext) -> Iterator[v1.FilePiece]:
    while context.is_active() and (content := file.read(PIECE)):
        yield v1.FilePiece(content=content)
