"""The EventLog service: reads of what the sink has committed, by filters alone."""

from __future__ import annotations

import contextlib
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import duckdb
import grpc
import structlog
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from consumers.sink.database import EventDatabase
from consumers.sink.query import Filter, InvalidQuery, Statement, sequence_of, to_event
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as v1_grpc

log = structlog.get_logger()

Alarms = Callable[[], Mapping[str, str]]
"""model_id -> why nothing more of it is recorded, and what to do."""

THREADS = 16
MAX_FOLLOWERS = 8
"""Each follower holds a thread as long as it follows; the others stay for those who ask."""
ROWS = 500
"""Rows read at once: what a call holds in memory, and how often it looks whether its caller is still there."""
LOOK_S = 0.5
STOP_S = 2.0


class ListenError(Exception):
    """An address that can't be listened on; the message names it and says why."""


class EventLogServer:
    """The service on its own small server."""

    def __init__(self, database: EventDatabase, alarms: Alarms = dict) -> None:
        self._service = EventLog(database, alarms)
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
    """Query, Count and Follow; one cursor for each call."""

    def __init__(self, database: EventDatabase, alarms: Alarms) -> None:
        self._database = database
        self._alarms = alarms
        self._followers = threading.BoundedSemaphore(MAX_FOLLOWERS)
        self.stopping = threading.Event()

    def Query(self, request: v1.EventQuery, context: grpc.ServicerContext) -> Iterator[v1.ModelEvent]:
        """Rows of the log, newest first unless asked otherwise."""
        asked = _filter(request, context)
        with self._cursor(context) as cursor:
            for row in _rows(cursor, asked.rows()):
                yield to_event(row)

    def Count(self, request: v1.EventQuery, context: grpc.ServicerContext) -> v1.EventCount:
        """How many rows match; the limit does not count."""
        asked = _filter(request, context)
        counted = v1.EventCount()
        with self._cursor(context) as cursor:
            # One snapshot for both questions, so that the numbers belong together.
            cursor.begin()
            for model_id, status, events in _rows(cursor, asked.counts()):
                counted.events += events
                counted.by_model[model_id] += events
                counted.by_status[status] += events
            [(counted.distinct_requests,)] = _rows(cursor, asked.distinct())
            cursor.commit()
        for model_id, text in self._alarms().items():
            if asked.about(model_id):
                counted.alarms[model_id] = text
        return counted

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
        sent = 0
        while context.is_active():
            if self.stopping.is_set():
                context.abort(grpc.StatusCode.UNAVAILABLE, "the event sink is stopping; follow again when it is back")
            newest = self._database.wait_beyond(seen, LOOK_S)
            while seen < newest and context.is_active():
                with self._cursor(context) as cursor:
                    rows = list(_rows(cursor, asked.committed(seen, newest, ROWS)))
                for row in rows:
                    yield to_event(row)
                    sent += 1
                    if sent == asked.limit:
                        return
                seen = sequence_of(rows[-1]) if len(rows) == ROWS else newest

    @contextlib.contextmanager
    def _cursor(self, context: grpc.ServicerContext) -> Iterator[duckdb.DuckDBPyConnection]:
        """A cursor that a caller who goes away interrupts; what fails in it ends the call without its insides."""
        try:
            cursor = self._database.cursor()
        except duckdb.Error as error:
            _fail(context, error)
        context.add_callback(_interrupting(cursor))
        try:
            yield cursor
        except duckdb.InterruptException:
            context.abort(grpc.StatusCode.CANCELLED, "the caller went away")
        except duckdb.Error as error:
            _fail(context, error)
        finally:
            with contextlib.suppress(duckdb.Error):
                cursor.close()


def _interrupting(cursor: duckdb.DuckDBPyConnection) -> Callable[[], None]:
    def interrupt() -> None:
        with contextlib.suppress(duckdb.Error):
            cursor.interrupt()

    return interrupt


def _rows(cursor: duckdb.DuckDBPyConnection, statement: Statement) -> Iterator[tuple[Any, ...]]:
    cursor.execute(statement.sql, statement.parameters)
    while rows := cursor.fetchmany(ROWS):
        yield from rows


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


def _fail(context: grpc.ServicerContext, error: Exception) -> NoReturn:
    """An answer that says nothing of the inside, and the same number in the log beside all of it."""
    number = uuid.uuid4().hex[:12]
    log.error("a question to the event log failed", error=str(error), error_id=number)
    context.abort(grpc.StatusCode.INTERNAL, f"the event log could not answer; its log says more under {number}")
