"""The event sink: moves every model event from Redis into the event database, once.

    read on from the position in DuckDB  ->  one transaction: rows and position  ->  trim what is behind it

The position moves with the rows or not at all, so a sink that dies anywhere repeats nothing and loses nothing. The
entries it has not committed stay in Redis. A model whose stream does not go on from its position is left alone, with an
alarm, while the others are recorded.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import structlog
from redis.exceptions import RedisError

from consumers.audit.heads import Keep, signing_key
from consumers.sink.catalog import EventCatalog
from consumers.sink.database import Batch, EventDatabase
from consumers.sink.erasing import Erasing
from consumers.sink.heading import Heading
from consumers.sink.intake import EventIntake
from consumers.sink.position import Position
from consumers.sink.recovery import Recoveries
from consumers.sink.service import EventLogServer
from consumers.sink.streams import READ_ENTRIES, Entry, EventStreams
from consumers.sink.upkeep import Upkeep
from contract.connection import connect, show
from contract.keys import Keys
from contract.presence import BEAT_S, Presence, process_name
from contract.settings import Settings

log = structlog.get_logger()

BLOCK_MS = 500
GROUP_S, FOLLOWED_GROUP_S = 0.5, 0.2
"""Commits are at least this far apart: under load many entries share one, and when idle the first waits for none.

A commit costs about 6 ms of CPU whatever it holds, mostly DuckDB's planning, and 5 µs more for each event. Who follows
the log is not kept waiting for that.
"""
GATHER_S = 0.05
"""Longest time that reading on keeps what was read from its commit."""
GATHER_BYTES = 64 * 2**20
LONGEST_PAUSE_S = 5.0
NOTHING = Batch((), (), {})


class Sink:
    """The only process that opens the event database.

    Raises EventDatabaseError where it can't be opened.
    """

    def __init__(
        self,
        settings: Settings,
        keys: Keys,
        redis_url: str,
        database: Path,
        *,
        accept_gap: bool = False,
        keep_segments: Keep | None = None,
        keep_heads: Keep | None = None,
    ) -> None:
        key_file = settings.heads_key or database.parent / "keys" / "sink.key"
        signer = signing_key(key_file) if keep_heads is not None else None
        self._settings = settings
        self._keys = keys
        self._reader = connect(redis_url, timeout_s=BLOCK_MS / 1000 + 5)
        self._beats = connect(redis_url)
        self._presence = Presence("sink", process_name(), pid=os.getpid())
        self._catalog = EventCatalog(keys)
        self._streams = EventStreams(self._reader, keys)
        self._database = EventDatabase(database)
        self._heading = (
            Heading(self._database, keep_heads, signer, every_s=settings.heads_every_s)
            if keep_heads is not None and signer is not None
            else None
        )
        wake = self._heading.wake if self._heading is not None else lambda: None
        self._upkeep = Upkeep(settings, self._database, keep_segments, on_sealed=wake)
        self._erasing = Erasing(
            self._database,
            self._upkeep.sealing,
            key=lambda: signing_key(key_file),
            on_erased=wake,
        )
        self._intake = EventIntake(self._database, accept_gap=accept_gap)
        self._untrimmed = dict(self._intake.positions)
        self._recoveries = Recoveries(self._streams, self._intake)
        self._ended = threading.Event()
        self._server: EventLogServer | None = None
        self._is_behind = False
        """Whether there was more than was taken, when it was looked at last."""
        self._committed_at = 0.0
        self._runtimes: Mapping[str, str] = {}
        """Those that the database has."""

    @property
    def name(self) -> str:
        """What its presence is shown under."""
        return self._presence.name

    def serve(self, address: str) -> str:
        """Answers EventLog calls on `unix:/path` or `host:port`, port 0 for a free one; the address that it took.

        Raises ListenError.
        """
        # What is not recorded is worse than what is not sealed.
        self._server = EventLogServer(
            self._database,
            lambda: {**self._upkeep.notes, **self._intake.alarms},
            self._upkeep.seal,
            self._erasing.erase,
        )
        return self._server.listen(address)

    def begin(self, stop: threading.Event) -> dict[str, str]:
        """Reads what stands in the streams now, without waiting; the alarms that it found, by model.

        Where Redis does not answer there are none yet.
        """
        try:
            self._catalog.refresh(self._beats)
            self._gather(stop, block=None)
        except (RedisError, OSError) as error:
            log.warning("Redis does not answer; the sink tries again until it does", error=str(error))
        return dict(self._intake.alarms)

    def run(self, stop: threading.Event) -> None:
        """Reads and commits until `stop` is set; then finishes what it has read."""
        beat = threading.Thread(target=self._beat, name="beat", daemon=True)
        beat.start()
        self._upkeep.start()
        if self._heading is not None:
            self._heading.start()
        self._commit(self._intake.batch(), stop)
        pause = 0.0
        while not stop.is_set():
            try:
                self._trim()
                self._recoveries.end()
                self._wait_for_group(stop)
                self._gather(stop, block=BLOCK_MS)
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
            self._keep_runtimes()
            self._commit(self._intake.batch(), stop)
            if pause:
                stop.wait(pause)

    def close(self) -> None:
        """Ends the service and lets go of the database; what is committed is trimmed once more."""
        self._ended.set()
        if self._server is not None:
            self._server.stop()
        self._upkeep.stop()
        if self._heading is not None:
            self._heading.stop()
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
        apart = FOLLOWED_GROUP_S if self._database.followed else GROUP_S
        rest = self._committed_at + apart - time.monotonic()
        # With more there than one commit takes, a rest would put a bound to how much is recorded in a second.
        if rest > 0 and not self._is_behind:
            stop.wait(rest)

    def _gather(self, stop: threading.Event, block: int | None) -> None:
        """Takes what is there, and waits for the first entry where there is nothing."""
        intake = self._intake
        deadline = time.monotonic() + GATHER_S
        self._look()
        while True:
            starts = self._starts()
            found = self._streams.read(starts, block)
            full, whole = False, True
            for model_id, entries in found.items():
                full = full or len(entries) >= READ_ENTRIES
                whole = self._take(model_id, entries) and whole
            if not starts and block:
                stop.wait(block / 1000)
            enough = intake.events >= self._settings.sink_batch_events or intake.bytes >= GATHER_BYTES
            if not (full and whole) or enough or time.monotonic() > deadline:
                self._is_behind = full or not whole
                return
            block = None

    def _models(self) -> frozenset[str]:
        return self._catalog.models | self._intake.positions.keys()

    def _look(self) -> None:
        """At streams that are new here, or may be others than before. Nothing of them is gathered yet."""
        if unseen := self._streams.unseen(self._models()):
            marked = {model_id: self._intake.marks(model_id) for model_id in unseen}
            for model_id, seen in self._streams.look(marked).items():
                self._recoveries.forget(model_id)
                self._intake.look(model_id, seen)

    def _starts(self) -> dict[str, str]:
        """From where each model that can be recorded is read."""
        positions, alarms = self._intake.positions, self._intake.alarms
        return {
            model_id: positions.get(model_id, Position()).entry_id
            for model_id in self._streams.readable(self._models())
            if model_id not in alarms
        }

    def _take(self, model_id: str, entries: Sequence[Entry]) -> bool:
        """Whether it took them all."""
        return all(
            self._intake.take(model_id, entry_id.decode(), fields, self._catalog.names) for entry_id, fields in entries
        )

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

    def _keep_runtimes(self) -> None:
        """Copies records that are new; where they can't be written it is tried again with the next commit."""
        known = self._catalog.runtimes
        if known is self._runtimes:
            return
        new = {runtime_id: record for runtime_id, record in known.items() if runtime_id not in self._runtimes}
        try:
            if new:
                self._database.keep_runtimes(new)
            self._runtimes = known
        except duckdb.Error as error:
            log.warning("runtime records can't be written yet", error=str(error).splitlines()[0])

    def _again(self, batch: Batch) -> Batch:
        """The batch, or nothing where a commit that looked failed has written it after all."""
        try:
            if written := batch.is_in(self._database.positions()):
                self._database.recount()
        except duckdb.Error:
            try:
                self._database.reopen()
                written = batch.is_in(self._database.positions())
            except Exception as error:  # noqa: BLE001 - whatever keeps it shut, the next attempt comes
                log.warning("the event database does not open", error=str(error))
                return batch
        return NOTHING if written else batch

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
        """Removes what is committed, on a full server too."""
        if self._untrimmed:
            self._untrimmed = self._streams.trim(self._untrimmed)

    # ------------------------------------------------------------------ beside it

    def _shown(self) -> Presence:
        return replace(self._presence, revision=self._catalog.revision, alarm=self._intake.alarms)

    def _beat(self) -> None:
        """Shows that it lives and learns of new models, each second."""
        known = True
        while True:
            try:
                self._catalog.refresh(self._beats)
                show(self._beats, self._shown().beat(self._keys))
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
    accept_gap: bool = False,
    on_alarm: Callable[[str], None] = lambda _text: None,
    keep_segments: Keep | None = None,
    keep_heads: Keep | None = None,
) -> None:
    """The life of a sink process; `stop` ends it in order. `listen` empty: nobody can ask it.

    `accept_gap` lets what is missing at its start be a row; else `on_alarm` is told of each model that is not recorded.
    `keep_segments` is given each sealed segment and its manifest, to put them elsewhere too; `keep_heads` signed heads.

    Raises EventDatabaseError, ListenError or KeyUnusable where it can't start.
    """
    sink = Sink(
        settings,
        Keys(settings.prefix),
        redis_url,
        database,
        accept_gap=accept_gap,
        keep_segments=keep_segments,
        keep_heads=keep_heads,
    )
    try:
        address = sink.serve(listen) if listen else ""
        log.info("the event sink runs", database=str(database), listen=address)
        for model_id, text in sorted(sink.begin(stop).items()):
            on_alarm(f"{model_id}: {text}")
        on_ready()
        sink.run(stop)
    finally:
        sink.close()
