"""The worker: reads a batch, predicts, and completes it through the exit.

One thread does all three in turn, since handing a batch from thread to thread costs more than a light model takes. A
second loads versions; two more are the heartbeat. None of them touches an entry.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import structlog
from redis.exceptions import RedisError, ResponseError

from consumers.model.model import LoadedModel, PredictFailed
from consumers.model.runtime import runtime
from consumers.worker.answers import Answers
from consumers.worker.crowds import Crowds
from consumers.worker.exits import Exits
from consumers.worker.heartbeat import Heartbeat
from consumers.worker.intake import Hydrate, Intake
from consumers.worker.lanes import BLOCK_MS, Batch, Lanes
from consumers.worker.leases import Leases, hand_over
from consumers.worker.lone import LoneAttempts
from consumers.worker.memory import has_room
from consumers.worker.pace import Most, Paces
from consumers.worker.shadow import Shadow
from consumers.worker.shelf import Shelf
from consumers.worker.slot import Slot
from consumers.worker.tally import Tally
from consumers.worker.work import Work, answered, parts, rows_of_entries
from contract.catalog import Catalog
from contract.clock import now_us
from contract.collector import seldom
from contract.completion import BULK, Item
from contract.connection import LOST, Argument, connect, run
from contract.errors import Reason, Refused
from contract.keys import Keys
from contract.line import Line
from contract.presence import process_name
from contract.scripts import EVEN_FULL
from contract.settings import Settings, tolerances
from contract.trust import public_key
from protos import millstream_wire_v1_pb2 as wire

log = structlog.get_logger()


class Worker:
    """One worker process; `run` works until `stop` is set and finishes what it holds."""

    def __init__(self, settings: Settings, redis_url: str, key_file: Path, hydrate: Hydrate) -> None:
        self._settings = settings
        self._keys = Keys(settings.prefix)
        self.name = process_name()
        self._stop = threading.Event()
        self._ended = threading.Event()
        """Set once the last batch is done: until then its lease is renewed, however long it was told to stop before."""
        self._left = threading.Event()
        self._catalog = Catalog(public_key(key_file), max_rows=settings.max_rows)
        # A blocking read needs a socket timeout above its block.
        self._line = Line(redis_url, timeout_s=BLOCK_MS / 1000 + 5.0)
        self._beat_client = connect(redis_url)
        self._load_client = connect(redis_url)
        most = Most(settings.batch_rows, settings.batch_rows * settings.slow_batch_factor)
        self._paces = Paces(settings.batch_target_ms / 1000, most)
        self._tally = Tally(time.monotonic())
        self._lanes = Lanes(self._line, self._load_client, self._keys, settings, self.name)
        self._lanes.crowds = Crowds(self._paces.call_s)
        self._lanes.room = self._paces.room
        self._leases = Leases(self._keys, settings, self.name)
        self._lone = LoneAttempts(self._line, self._keys, settings, self.name)
        self._slot = Slot.of(settings)
        self._shelf = Shelf(
            self._load_client,
            self._keys,
            self._catalog,
            settings.models,
            compiles=settings.compile_models,
            tolerances=tolerances(settings.compile_tolerance),
            slot=self._slot,
        )
        self._intake = Intake(self._line, self._keys, settings, self._catalog, hydrate)
        self._exits = Exits(self._line, self._keys, self._leases, self.name, lambda: self._stop.is_set())
        self._shadow = Shadow(self._line, self._keys, settings, self._catalog, self._shelf, self._exits, self.name)
        self._heartbeat = Heartbeat(
            self._beat_client,
            self._keys,
            settings,
            self.name,
            leases=self._leases,
            shelf=self._shelf,
            lanes=self._lanes,
            paces=self._paces,
            tally=self._tally,
            shadow=self._shadow,
        )
        self._began = 0.0
        """When the work began that the next predict call is a part of: checking and completing count too, and reading
        where something waited already, since that is the pace at which a backlog goes."""

    def run(
        self,
        stop: threading.Event,
        *,
        on_ready: Callable[[], None],
        on_beat: Callable[[float], None] = lambda _within: None,
    ) -> None:
        """Works; `on_ready` is called once everything that was in the catalogue at start is loaded.

        `on_beat` is called with the seconds within which it will be called again: before each version that is loaded,
        and over and over once it serves.
        """
        self._stop = stop
        self._heartbeat.on_beat = on_beat
        self._until_reached(self._shelf.refresh)
        self._until_reached(lambda: self._shadow.tidy(self._load_client))
        known, lent = runtime(), runtime(self._slot.big_threads)
        self._exits.runtimes = {self._slot.big_threads: lent.runtime_id, 1: known.runtime_id}
        for each in (known, lent):
            runtimes = self._keys.runtimes
            shown: list[Argument] = ["HSET", runtimes, each.runtime_id, each.body]
            self._until_reached(partial(run, self._load_client, EVEN_FULL, [runtimes], shown))
        beat = threading.Thread(target=self._heartbeat.beat_until, args=(self._ended,), name="heartbeat", daemon=True)
        followed = (stop, self._catalogue_changed)
        load = threading.Thread(target=self._shelf.follow, args=followed, name="loader", daemon=True)
        beat.start()
        load.start()
        # Shown before the first read: who reaps a dead worker finds its consumer by this.
        self._until_reached(self._heartbeat.show)
        # Before it serves: the first call already may never let anybody else run.
        self._heartbeat.tell()
        on_ready()
        watched = (self._left, stop, self._leave_late)
        threading.Thread(target=self._heartbeat.watch_until, args=watched, name="watch", daemon=True).start()
        log.info("worker reads", consumer=self.name, models=self._shelf.ready)
        in_order = False
        try:
            with seldom():
                self._work_forever()
            in_order = True
        finally:
            stop.set()
            self._ended.set()
            for thread in (beat, load):
                thread.join(timeout=2.0)
            while not self._leave(in_order=in_order) and in_order and (self._lone.owes or self._shadow.owes):
                # Until Redis is back, or the time for stopping is over: a name left behind would count as a crash.
                self._left.wait(0.2)
            self._left.set()
            self._line.close()
            self._beat_client.close()
            self._load_client.close()

    def _work_forever(self) -> None:
        pause, retry, more = 0.05, False, False
        self._began = time.perf_counter()
        while not self._stop.is_set() or self._lanes.holds:
            batches = self._lanes.take()
            try:
                self._lanes.serve(self._shelf.ready)
                if not batches:
                    # In turn with reading: a dead worker's entries must not hold up what comes in.
                    retry = not retry
                    if retry:
                        batches = self._lone.look(self._shelf.ready)
                        more = bool(batches)
                    # Where one was found there may be more, which a read that waits would hold up.
                    batches = batches or self._lanes.read(wait=not more and not self._shadow.waiting)
                if self._lanes.waited:
                    self._began = time.perf_counter()
                if not batches and not self._shelf.ready:
                    self._stop.wait(0.05)
                if not batches and not more and self._shadow.waiting:
                    # Room that is idle: no lane has anything that nobody reads.
                    self._shadow.compute()
                    self._began = time.perf_counter()
                for batch in batches:
                    self._leases.hold(batch.model_id, batch.lane, [d.entry_id for d in batch.deliveries])
                for place, batch in enumerate(batches):
                    if place and batch.lane == BULK:
                        self._interactive_first()
                    self._serve(batch, goes_on=batch is batches[-1])
                    if batch.lone:
                        self._lone.completed(batch.model_id)
                pause = 0.05
            except (*LOST, ResponseError) as error:
                log.warning("a batch was not served; trying again", error=str(error), wait_s=pause)
                for batch in batches:
                    # What was not completed is left to its lease, and then tried alone by whoever lives.
                    self._leases.drop(batch.model_id, batch.lane, [d.entry_id for d in batch.deliveries])
                if isinstance(error, LOST):
                    self._lone.hold_off()
                    self._shadow.lost()
                self._stop.wait(pause)
                self._began = time.perf_counter()
                pause = min(pause * 2, 2.0)

    def _serve(self, batch: Batch, *, goes_on: bool = False) -> None:
        """Everything that happens to one batch; each of its entries leaves through the exit.

        `goes_on`: the next batch may be read as soon as this one leaves.
        """
        works = self._intake.works(batch)
        held = {d.entry_id for d in batch.deliveries}
        self._leases.drop(batch.model_id, batch.lane, held - {work.entry_id for work in works})
        groups: dict[bytes, list[Work]] = {}
        refused: list[Item] = []
        for work in works:
            if batch.crashes >= self._settings.max_crashes:
                text = f"this request ended {batch.crashes} worker processes and is not tried again"
                work.dead = Reason.MODEL_CRASHED.text
                self._tally.add_outcome(work.entry.digest, 1, failed=1)
                refused.append(work.refuse(Refused(Reason.MODEL_CRASHED, text), self._settings, wire.POISON))
            elif work.refused is not None:
                refused.append(work.refuse(work.refused, self._settings, work.status))
            else:
                groups.setdefault(work.entry.digest, []).append(work)
        if refused:
            self._exits.complete(batch.model_id, batch.lane, wire.Header(model_id=batch.model_id), refused)
        most = max(self._settings.batch_rows, 0 if batch.lane == BULK else self._paces.room(batch.model_id))
        calls = [(digest, part) for digest, group in groups.items() for part in parts(group, most)]
        for place, (digest, part) in enumerate(calls):
            if place and batch.lane == BULK:
                self._interactive_first()
            last = place == len(calls) - 1
            self._predict(batch, self._shelf.get(digest), part, goes_on=goes_on and last)

    def _interactive_first(self) -> None:
        """Between two predict calls for bulk: whoever waits comes first."""
        while not self._stop.is_set() and (batches := self._lanes.read_interactive()):
            for batch in batches:
                ids = [d.entry_id for d in batch.deliveries]
                self._leases.hold(batch.model_id, batch.lane, ids)
                try:
                    self._serve(batch)
                except (*LOST, ResponseError):
                    self._leases.drop(batch.model_id, batch.lane, ids)
                    raise
        self._began = time.perf_counter()

    def _predict(self, batch: Batch, model: LoadedModel | None, works: list[Work], *, goes_on: bool = False) -> None:
        """One predict call and its completion; a call that raises is split until the bad rows stand alone."""
        start = now_us()
        expired = [work for work in works if work.expired(start)]
        if expired:
            refused = Refused(Reason.DEADLINE_PASSED, "the deadline passed before a worker came to it")
            items = [work.refuse(refused, self._settings, wire.EXPIRED) for work in expired]
            self._exits.complete(batch.model_id, batch.lane, wire.Header(model_id=batch.model_id), items)
            works = [work for work in works if not work.expired(start)]
            if not works:
                return
        first = works[0].entry
        head = wire.Header(model_id=batch.model_id, version=first.version, digest=first.digest)
        if model is None and batch.model_id in self._shelf.left and not batch.lone:
            # Read in the moment in which it became another's: its lease runs out, and who serves the model tries it.
            self._leases.drop(batch.model_id, batch.lane, [work.entry_id for work in works])
            return
        if model is None:
            text = f"version {first.version} is loaded by no worker any more"
            items = [
                work.refuse(Refused(Reason.VERSION_UNAVAILABLE, text), self._settings, wire.FAILED) for work in works
            ]
            self._exits.complete(batch.model_id, batch.lane, head, items)
            return
        try:
            began = time.perf_counter()
            columns = model.predict(rows_of_entries(works))
            predicted = time.perf_counter()
        except (PredictFailed, ValueError) as error:
            if isinstance(error.__cause__, MemoryError) and not has_room():
                # Nobody's fault but one's, and all would fail here: others try each of them alone.
                raise error.__cause__ from None
            if len(works) > 1:
                middle = len(works) // 2
                self._predict(batch, model, works[:middle])
                self._predict(batch, model, works[middle:])
                return
            self._tally.add_outcome(first.digest, 1, failed=1)
            refused = Refused(Reason.MODEL_FAILED, str(error)[:500])
            self._exits.complete(
                batch.model_id, batch.lane, head, [works[0].refuse(refused, self._settings, wire.FAILED)]
            )
            return
        head.predicted_us = now_us()
        head.engine = model.engine
        head.runtime_id = self._exits.runtimes[model.threads]
        answers = Answers(batch.model_id, first.version, columns, head.predicted_us)
        items, row = answered(works, answers, self._settings)
        head.batch_rows = row
        self._tally.add_outcome(first.digest, len(works))
        goes_on = goes_on and not self._lone.due and not self._stop.is_set()
        after = self._lanes.after(batch) if goes_on else None
        completed = self._exits.complete(batch.model_id, batch.lane, head, items, after)
        self._shadow.offer(batch.model_id, works, completed)
        ended = time.perf_counter()
        self._paces.learn(batch.model_id, row, predicted - began, ended - self._began)
        self._tally.add_rows(batch.model_id, row)
        self._lanes.answered(batch)
        self._began = ended

    def _catalogue_changed(self) -> None:
        self._shadow.tidy(self._load_client)
        self._heartbeat.show()

    def _until_reached(self, act: Callable[[], object]) -> None:
        """Does it once Redis can be reached."""
        told = False
        while not self._stop.is_set():
            try:
                act()
                return
            except (*LOST, ResponseError) as error:
                if not told:
                    log.warning("waiting for Redis", error=str(error))
                    told = True
                self._stop.wait(0.2)

    def _leave(self, *, in_order: bool) -> bool:
        """Takes the presence away and removes the consumers; whether Redis could be reached.

        A worker that an exception ends dies like any other: what it tried alone counts.
        """
        try:
            if in_order:
                self._lone.give_back(self._beat_client)
                self._shadow.give_back(self._beat_client)
            self._heartbeat.leave()
            hand_over(self._beat_client, self._keys, list(self._catalog.records), self.name)
        except (RedisError, OSError) as error:
            log.warning("leaving the group failed", error=str(error))
            return False
        return True

    def _leave_late(self) -> None:
        """Stops in order though a batch is not done: what this worker holds goes back to the pool, as it is."""
        log.warning("the last batch takes too long; it is handed over", drain_s=self._settings.drain_s)
        self._leave(in_order=True)
        sys.stderr.flush()
        os._exit(0)
