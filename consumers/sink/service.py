"""The EventLog service: reads of what the sink has committed, by filters alone."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import duckdb
import grpc
import structlog
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from consumers.audit.segment import Segment
from consumers.sink.database import EventDatabase
from consumers.sink.erasing import Erase, NotRebuilt
from consumers.sink.files import FileReads
from consumers.sink.query import Filter, InvalidQuery, sequence_of, to_event
from consumers.sink.reading import PAGE, Reading
from consumers.sink.sealing import Unsound
from contract.trust import KeyUnusable
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc

log = structlog.get_logger()

Alarms = Callable[[], Mapping[str, str]]
"""model_id -> why nothing more of it is recorded, and what to do."""
Seal = Callable[[str], Sequence[Segment]]
"""Seals what is in no segment, of a model or of all; raises Unsound."""

THREADS = 16
MAX_FOLLOWERS = 8
"""Each follower holds a thread as long as it follows; the others stay for those who ask."""
FARTHEST = 200_000
"""Longest stretch of commits that one statement of a follower looks through, where segments are among them."""
MAX_REASON = 1000
"""Longest entity id, and longest reason for an erasure, in characters."""
LOOK_S = 0.5
STOP_S = 2.0


class ListenError(Exception):
    """An address that can't be listened on; the message names it and says why."""


class EventLogServer:
    """The service on its own small server."""

    def __init__(
        self, database: EventDatabase, alarms: Alarms = dict, seal: Seal | None = None, erase: Erase | None = None
    ) -> None:
        self._service = EventLog(database, alarms, seal, erase)
        self._server = grpc.server(
            ThreadPoolExecutor(THREADS, thread_name_prefix="event-log"),
            options=(("grpc.so_reuseport", 0),),
            maximum_concurrent_rpcs=4 * THREADS,
        )
        v1_grpc.add_EventLogServicer_to_server(self._service, self._server)

    def listen(self, address: str) -> str:
        """`unix:/path` or `host:port`, port 0 for a free one; the address that it took. Raises ListenError."""
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError:
            port = 0
        if not port:
            raise ListenError(
                f"the event log can't listen on {address}: the address is in use or not this machine's; "
                "name another one, unix:/path or host:port"
            )
        self._server.start()
        return address if address.startswith("unix:") else f"{address.rpartition(':')[0]}:{port}"

    def stop(self) -> None:
        """Ends the calls of all who follow, and lets the others finish for a moment."""
        self._service.stopping.set()
        self._server.stop(STOP_S).wait()


class EventLog(v1_grpc.EventLogServicer):
    """Query, Count, Follow and Seal; cursors of its own for each call."""

    def __init__(self, database: EventDatabase, alarms: Alarms, seal: Seal | None, erase: Erase | None = None) -> None:
        self._database = database
        self._alarms = alarms
        self._seal = seal
        self._erase = erase
        self._followers = threading.BoundedSemaphore(MAX_FOLLOWERS)
        self._files = FileReads(database.folder, self._cursor)
        self.stopping = threading.Event()

    def Query(self, request: v1.EventQuery, context: grpc.ServicerContext) -> Iterator[v1.ModelEvent]:
        """Rows of the log, newest first unless asked otherwise."""
        asked = _filter(request, context)
        with self._reading(context) as reading:
            for row in reading.rows(asked):
                yield to_event(row)

    def Count(self, request: v1.EventQuery, context: grpc.ServicerContext) -> v1.EventCount:
        """How many rows match; the limit does not count."""
        asked = _filter(request, context)
        with self._reading(context) as reading:
            found = reading.counted(asked)
        counted = v1.EventCount(distinct_requests=found.distinct_requests)
        for model_id, status, events in found.by_model_and_status:
            counted.events += events
            counted.by_model[model_id] += events
            counted.by_status[status] += events
        for told in (self._alarms(), found.left_out):
            for model_id, text in told.items():
                if asked.about(model_id):
                    before = counted.alarms[model_id]
                    counted.alarms[model_id] = f"{before}; {text}" if before else text
        return counted

    def Seal(self, request: v1.SealRequest, context: grpc.ServicerContext) -> v1.SealResponse:
        """Seals what is in no segment yet, now."""
        if self._seal is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "this event log does not seal")
        try:
            sealed = self._seal(request.model_id)
        except Unsound as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except (duckdb.Error, OSError) as error:
            _fail(context, error)
        return v1.SealResponse(manifests=[segment.encode() for segment in sealed])

    def Erase(self, request: v1.EraseRequest, context: grpc.ServicerContext) -> v1.EraseResponse:
        """Empties an entity's events, for good."""
        if self._erase is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "this event log does not erase")
        for field in ("entity_id", "reason"):
            if not 0 < len(getattr(request, field).strip()) <= MAX_REASON:
                context.abort(
                    grpc.StatusCode.INVALID_ARGUMENT, f"{field}: expected a text of at most {MAX_REASON} characters"
                )
        try:
            erased = self._erase(request.entity_id, request.model_id, request.reason.strip())
        except (Unsound, NotRebuilt) as error:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except (duckdb.Error, OSError, KeyUnusable) as error:
            _fail(context, error)
        return v1.EraseResponse(events=erased.events, segments=erased.segments)

    def Follow(self, request: v1.EventQuery, context: grpc.ServicerContext) -> Iterator[v1.ModelEvent]:
        """Rows from now on, or from `since`, in order of commit; `limit` ends it after so many."""
        asked = _filter(request, context)
        if not self._followers.acquire(blocking=False):
            context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MAX_FOLLOWERS} callers follow the event log already; end one of them, or ask again with Query",
            )
        try:
            yield from self._follow(asked, 0 if request.HasField("since") else self._database.sequence, context)
        finally:
            self._followers.release()

    def _follow(self, asked: Filter, seen: int, context: grpc.ServicerContext) -> Iterator[v1.ModelEvent]:
        # A caller who has these knows that nothing committed from now on is missed.
        context.send_initial_metadata(())
        sent, stretch = 0, PAGE
        while context.is_active():
            if self.stopping.is_set():
                context.abort(grpc.StatusCode.UNAVAILABLE, "the event sink is stopping; follow again when it is back")
            newest = self._database.wait_beyond(seen, LOOK_S)
            while seen < newest and context.is_active():
                with self._reading(context) as reading:
                    up_to = min(newest, seen + stretch) if reading.sealed_after(asked, seen) else newest
                    rows = reading.committed(asked, seen, up_to)
                for row in rows:
                    yield to_event(row)
                    sent += 1
                    if sent == asked.limit:
                        return
                full = len(rows) == PAGE
                seen = sequence_of(rows[-1]) if full else up_to
                stretch = PAGE if full else min(2 * stretch, FARTHEST)

    def ListSegments(self, request: v1.ListSegmentsRequest, context: grpc.ServicerContext) -> v1.ListSegmentsResponse:
        """The sealed segments, and how far the log is."""
        return self._files.list_segments(request, context)

    def ReadSegment(self, request: v1.ReadSegmentRequest, context: grpc.ServicerContext) -> Iterator[v1.FilePiece]:
        """A sealed segment's file."""
        return self._files.read_segment(request, context)

    def ReadLive(self, request: v1.ReadLiveRequest, context: grpc.ServicerContext) -> Iterator[v1.FilePiece]:
        """The rows that are in no segment, as a file."""
        return self._files.read_live(request, context)

    @contextlib.contextmanager
    def _reading(self, context: grpc.ServicerContext) -> Iterator[Reading]:
        """Cursors that a caller who goes away interrupts; what fails in one ends the call without its insides."""
        with contextlib.ExitStack() as cursors:
            try:
                yield Reading(self._database.segments, lambda: cursors.enter_context(self._cursor(context)))
            except duckdb.Error as error:
                _ended(context, error)

    @contextlib.contextmanager
    def _cursor(self, context: grpc.ServicerContext) -> Iterator[duckdb.DuckDBPyConnection]:
        """One cursor of the same kind."""
        try:
            cursor = self._database.cursor()
        except duckdb.Error as error:
            _fail(context, error)
        context.add_callback(_interrupting(cursor))
        try:
            yield cursor
        except duckdb.Error as error:
            _ended(context, error)
        finally:
            with contextlib.suppress(duckdb.Error):
                cursor.close()


def _interrupting(cursor: duckdb.DuckDBPyConnection) -> Callable[[], None]:
    def interrupt() -> None:
        with contextlib.suppress(duckdb.Error):
            cursor.interrupt()

    return interrupt


def _filter(request: v1.EventQuery, context: grpc.ServicerContext) -> Filter:
    """Ends the call with INVALID_ARGUMENT and the field where the question can't be asked."""
    try:
        return Filter.of(request)
    except InvalidQuery as error:
        invalid = error
    violation = error_details_pb2.BadRequest.FieldViolation(field=invalid.field, description=invalid.message)
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message=str(invalid))
    status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    return context.abort_with_status(rpc_status.to_status(status))


def _ended(context: grpc.ServicerContext, error: duckdb.Error) -> NoReturn:
    """A statement that failed, or that a caller who went away interrupted."""
    if isinstance(error, duckdb.InterruptException):
        context.abort(grpc.StatusCode.CANCELLED, "the caller went away")
    _fail(context, error)


def _fail(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """An answer that says nothing of the inside, and the same number in the log beside all of it."""
    number = uuid.uuid4().hex[:12]
    log.error("a question to the event log failed", error=str(error), error_id=number)
    context.abort(grpc.StatusCode.INTERNAL, f"the event log could not answer; its log says more under {number}")
