"""The event sink: moves every model event from Redis into the event database, once.

    read on from the position in DuckDB  ->  one transaction: rows and position  ->  trim what is behind it

The position moves with the rows or not at all, so a sink that dies anywhere repeats nothing and loses nothing. The
entries it has not committed stay in Redis.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import structlog
from redis.exceptions import RedisError, ResponseError

from consumers.event_catalog import EventCatalog
from consumers.event_database import Batch, EventDatabase, Position
from consumers.event_intake import EventIntake
from consumers.event_log import EventLogServer
from contract.connection import connect, show
from contract.keys import Keys
from contract.presence import BEAT_S, Presence, process_name
from contract.settings import Settings

log = structlog.get_logger()

BLOCK_MS = 500
GROUP_S = 0.2
"""Commits are at least this far apart: under load many entries share one, and when idle the first waits for none.

A commit costs about 5 ms of CPU whatever it holds, mostly DuckDB's planning, and 4 µs more for each event.
"""
GATHER_S = 0.05
"""Longest time that reading on keeps what was read from its commit."""
READ_ENTRIES = 32
"""Most entries of a stream in one read; an entry holds at most 512 events and 4 MB."""
GATHER_BYTES = 64 * 2**20
LONGEST_PAUSE_S = 5.0


class Sink:
    """The only process that opens the event database.

    Raises EventDatabaseError where it can't be opened.
    """

    def __init__(self, settings: Settings, keys: Keys, redis_url: str, database: Path) -> None:
        self._settings = settings
        self._keys = keys
        self._reader = connect(redis_url, timeout_s=BLOCK_MS / 1000 + 5)
        self._beats = connect(redis_url)
        self._presence = Presence("sink", process_name(), pid=os.getpid())
        self._catalog = EventCatalog(keys)
        self._database = EventDatabase(database)
        self._intake = EventIntake(self._database)
        self._untrimmed = dict(self._intake.positions)
        self._foreign: set[str] = set()
        self._ended = threading.Event()
        self._server: EventLogServer | None = None
        self._committed_at = 0.0

    @property
    def name(self) -> str:
        """What its presence is shown under."""
        return self._presence.name

    def serve(self, address: str) -> str:
        """Answers EventLog calls on `unix:/path` or `host:port`, port 0 for a free one; the address that it took.

        Raises ListenError.
        """
        self._server = EventLogServer(self._database)
        return self._server.listen(address)

    def run(self, stop: threading.Event) -> None:
        """Reads and commits until `stop` is set; then finishes what it has read."""
        beat = threading.Thread(target=self._beat, name="beat", daemon=True)
        beat.start()
        pause = 0.0
        while not stop.is_set():
            try:
                self._trim()
                self._wait_for_group(stop)
                self._gather(stop)
                if pause:
                    log.info("Redis answers again; reading on")
                pause = 0.0
            except RedisError as error:
                if not pause:
                    log.warning("Redis does not answer; the sink tries again until it does", error=str(error))
                pause = min(1.0, pause * 2 or 0.05)
            except OSError as error:
                log.warning("the connection to Redis broke; trying again", error=str(error))
                pause = min(1.0, pause * 2 or 0.05)
            self._commit(self._intake.batch(), stop)
            if pause:
                stop.wait(pause)

    def close(self) -> None:
        """Ends the service and lets go of the database; what is committed is trimmed once more."""
        self._ended.set()
        if self._server is not None:
            self._server.stop()
        try:
            self._trim()
            show(self._beats, self._presence.leave(self._keys))
        except (RedisError, OSError):
            log.info("Redis does not answer; its streams are trimmed at the next start")
        self._database.close()
        self._reader.close()
        self._beats.close()

    # ------------------------------------------------------------------ reading

    def _wait_for_group(self, stop: threading.Event) -> None:
        rest = self._committed_at + GROUP_S - time.monotonic()
        if rest > 0:
            stop.wait(rest)

    def _gather(self, stop: threading.Event) -> None:
        """Takes what is there, and waits for the first entry where there is nothing."""
        intake = self._intake
        deadline = time.monotonic() + GATHER_S
        block: int | None = BLOCK_MS
        while True:
            streams = self._streams()
            if not streams:
                stop.wait(0.1)
                return
            found = self._read(streams, block)
            full = False
            for stream, entries in found.items():
                model_id = streams[stream]
                full = full or len(entries) >= READ_ENTRIES
                for entry_id, fields in entries:
                    intake.take(model_id, entry_id.decode(), fields, self._catalog.names)
            enough = intake.events >= self._settings.sink_batch_events or intake.bytes >= GATHER_BYTES
            if not full or enough or time.monotonic() > deadline:
                return
            block = None

    def _streams(self) -> dict[bytes, str]:
        models = self._catalog.models | self._intake.positions.keys()
        return {self._keys.model(model_id).events.encode(): model_id for model_id in models - self._foreign}

    def _read(self, streams: Mapping[bytes, str], block: int | None) -> Mapping[bytes, list[tuple[bytes, Any]]]:
        positions = self._intake.positions
        starts: dict[Any, Any] = {
            stream: positions.get(model_id, Position()).entry_id for stream, model_id in streams.items()
        }
        try:
            answer: Any = self._reader.xread(starts, count=READ_ENTRIES, block=block)
        except ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            self._set_aside(streams)
            return {}
        if not answer:
            return {}
        if isinstance(answer, dict):  # RESP3: one list of reads for each stream
            return {stream: [entry for read in reads for entry in read] for stream, reads in answer.items()}
        return dict(answer)

    def _set_aside(self, streams: Mapping[bytes, str]) -> None:
        """One key of a wrong type would stop the reading of all; the others go on."""
        for stream, model_id in streams.items():
            if self._reader.type(stream) not in (b"stream", b"none"):
                log.error("the events key of a model is no stream and is not read", model_id=model_id, key=stream)
                self._foreign.add(model_id)

    # ------------------------------------------------------------------ writing

    def _commit(self, batch: Batch, stop: threading.Event) -> None:
        """Tries until it is in the database; gives up only when stopping, and then nothing of it is, nor trimmed."""
        if not batch.positions:
            return
        pause, give_up = 0.0, None
        while batch.positions:
            try:
                self._database.commit(batch)
                break
            except (duckdb.DataError, duckdb.IntegrityError) as error:
                self._apart(batch, error, stop)
                return
            except duckdb.Error as error:
                if not pause:
                    log.error("events can't be written; trying again until they are", error=str(error).splitlines()[0])
                pause = min(LONGEST_PAUSE_S, pause * 2 or 0.1)
            if stop.is_set():
                give_up = give_up or time.monotonic() + self._settings.drain_s
                if time.monotonic() > give_up:
                    log.error("stopping without the last events; they stay in Redis", events=batch.events)
                    return
                time.sleep(pause)
            else:
                stop.wait(pause)
            batch = self._again(batch)
        if pause:
            log.info("events are written again")
        self._committed_at = time.monotonic()
        self._untrimmed.update(batch.positions)

    def _again(self, batch: Batch) -> Batch:
        """The batch without what a commit that looked failed has written after all."""
        try:
            return batch.beyond(self._database.positions())
        except duckdb.Error:
            pass
        try:
            self._database.reopen()
            return batch.beyond(self._database.positions())
        except Exception as error:  # noqa: BLE001 - whatever keeps it shut, the next attempt comes
            log.warning("the event database does not open", error=str(error))
            return batch

    def _apart(self, batch: Batch, error: duckdb.Error, stop: threading.Event) -> None:
        """A value that DuckDB refuses costs its own entry alone: each is tried by itself, a refused one is a gap."""
        for part in batch.apart():
            try:
                self._database.commit(part)
            except (duckdb.DataError, duckdb.IntegrityError) as refused:
                log.error("an event entry was refused by the database", error=str(refused).splitlines()[0])
                self._commit(part.refused(str(refused).splitlines()[0]), stop)
            except duckdb.Error:
                self._commit(part, stop)
            else:
                self._untrimmed.update(part.positions)
        log.info("the others of its batch were written one by one", first_error=str(error).splitlines()[0])

    def _trim(self) -> None:
        """Removes what is committed, exactly. XTRIM frees memory and so runs on a full server too."""
        if not self._untrimmed:
            return
        pipe = self._reader.pipeline(transaction=False)
        for model_id, position in self._untrimmed.items():
            pipe.xtrim(self._keys.model(model_id).events, minid=position.after, approximate=False)
        answers = pipe.execute(raise_on_error=False)
        self._untrimmed = {
            model_id: position
            for (model_id, position), answer in zip(self._untrimmed.items(), answers, strict=True)
            if isinstance(answer, ResponseError) and model_id not in self._foreign
        }

    # ------------------------------------------------------------------ beside it

    def _beat(self) -> None:
        """Shows that it lives and learns of new models, each second."""
        known = True
        while True:
            try:
                self._catalog.refresh(self._beats)
                show(self._beats, replace(self._presence, revision=self._catalog.revision).beat(self._keys))
                known = True
            except (RedisError, OSError) as error:
                if known:
                    log.warning("the sink can't show that it lives", error=str(error))
                known = False
            if self._ended.wait(BEAT_S):
                return


def run_sink(
    settings: Settings,
    *,
    redis_url: str,
    database: Path,
    listen: str,
    on_ready: Callable[[], None],
    stop: threading.Event,
) -> None:
    """The life of a sink process; `stop` ends it in order. `listen` empty: nobody can ask it.

    Raises EventDatabaseError or ListenError where it can't start.
    """
    sink = Sink(settings, Keys(settings.prefix), redis_url, database)
    try:
        address = sink.serve(listen) if listen else ""
        log.info("the event sink runs", database=str(database), listen=address)
        on_ready()
        sink.run(stop)
    finally:
        sink.close()
