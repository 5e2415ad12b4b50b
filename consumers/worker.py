"""The worker: reads a batch, predicts, and completes it through the exit.

One thread does all three in turn, since handing a batch from thread to thread costs more than a light model takes. A
second loads versions, a third renews leases and shows the worker's presence; neither touches an entry.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import structlog
from redis.exceptions import RedisError, ResponseError

from consumers.answers import Answers
from consumers.intake import Hydrate, Intake
from consumers.lanes import BLOCK_MS, Batch, Lanes, delivery
from consumers.leases import Leases, hand_over
from consumers.model import LoadedModel, PredictFailed
from consumers.pace import Pace
from consumers.runtime import runtime
from consumers.shelf import Shelf
from consumers.work import Work, rows_of_entries
from contract.catalog import Catalog
from contract.clock import now_us
from contract.completion import BULK, INTERACTIVE, Item, exit_calls, header
from contract.connection import LOST, Argument, connect, living, show
from contract.errors import Reason, Refused
from contract.keys import GROUP, Keys
from contract.line import Line
from contract.presence import BEAT_S, Presence, process_name
from contract.scripts import EXIT, RETRY
from contract.settings import Settings
from contract.trust import public_key
from protos import millstream_wire_v1_pb2 as wire

CATALOG_S = 0.1
RETRY_S = 0.1

log = structlog.get_logger()


class Worker:
    """One worker process; `run` works until `stop` is set and finishes what it holds."""

    def __init__(self, settings: Settings, redis_url: str, key_file: Path, hydrate: Hydrate) -> None:
        self._settings = settings
        self._keys = Keys(settings.prefix)
        self.name = process_name()
        self._catalog = Catalog(public_key(key_file), max_rows=settings.max_rows)
        # A blocking read needs a socket timeout above its block.
        self._line = Line(redis_url, timeout_s=BLOCK_MS / 1000 + 5.0)
        self._beat_client = connect(redis_url)
        self._load_client = connect(redis_url)
        self._lanes = Lanes(self._line, self._load_client, self._keys, settings, self.name)
        self._lanes.room = self._room
        self._leases = Leases(self._keys, settings, self.name)
        self._shelf = Shelf(self._load_client, self._keys, self._catalog, settings.models)
        self._intake = Intake(self._line, self._keys, settings, self._catalog, hydrate)
        self._pace: dict[str, Pace] = {}
        self._began = 0.0
        """When the work began that the next predict call is a part of: checking and completing count too, and reading
        where something waited already, since that is the pace at which a backlog goes."""
        self._batch_number = 0
        self._runtime_id = ""
        self._retry_at = 0.0
        self._stop = threading.Event()
        self._ended = threading.Event()
        """Set once the last batch is done: until then its lease is renewed, however long it was told to stop before."""

    def run(self, stop: threading.Event, *, on_ready: Callable[[], None]) -> None:
        """Works; `on_ready` is called once everything that was in the catalogue at start is loaded."""
        self._stop = stop
        self._until_reached(self._shelf.refresh)
        known = runtime()
        self._runtime_id = known.runtime_id
        self._until_reached(lambda: self._load_client.hset(self._keys.runtimes, known.runtime_id, known.body))
        threads = [
            threading.Thread(target=self._beat_forever, name="heartbeat", daemon=True),
            threading.Thread(target=self._load_forever, name="loader", daemon=True),
        ]
        for thread in threads:
            thread.start()
        # Shown before the first read: who reaps a dead worker finds its consumer by this.
        self._until_reached(self._beat)
        on_ready()
        log.info("worker reads", consumer=self.name, models=self._shelf.ready)
        try:
            self._work_forever()
        finally:
            stop.set()
            self._ended.set()
            for thread in threads:
                thread.join(timeout=2.0)
            self._leave()

    # ------------------------------------------------------------------ the main path

    def _work_forever(self) -> None:
        pause, retry, more = 0.05, False, False
        while not self._stop.is_set():
            batches: list[Batch] = []
            try:
                self._lanes.serve(self._shelf.ready)
                # In turn with reading: a dead worker's entries must not hold up what comes in.
                retry = not retry
                if retry:
                    batches = self._retries()
                    more = bool(batches)
                # Where one was found there may be more, which a read that waits would hold up.
                batches = batches or self._lanes.read(wait=not more)
                if self._lanes.waited:
                    self._began = time.perf_counter()
                if not batches and not self._shelf.ready:
                    self._stop.wait(0.05)
                for batch in batches:
                    self._leases.hold(batch.model_id, batch.lane, [d.entry_id for d in batch.deliveries])
                for place, batch in enumerate(batches):
                    if place and batch.lane == BULK:
                        self._interactive_first()
                    self._serve(batch)
                pause = 0.05
            except (*LOST, ResponseError) as error:
                log.warning("a batch was not served; trying again", error=str(error), wait_s=pause)
                for batch in batches:
                    # What was not completed is left to its lease, and then tried alone by whoever lives.
                    self._leases.drop(batch.model_id, batch.lane, [d.entry_id for d in batch.deliveries])
                self._stop.wait(pause)
                self._began = time.perf_counter()
                pause = min(pause * 2, 2.0)

    def _serve(self, batch: Batch) -> None:
        """Everything that happens to one batch; each of its entries leaves through the exit."""
        works = self._intake.works(batch)
        held = {d.entry_id for d in batch.deliveries}
        self._leases.drop(batch.model_id, batch.lane, held - {work.entry_id for work in works})
        groups: dict[bytes, list[Work]] = {}
        refused: list[Item] = []
        for work in works:
            if batch.crashes >= self._settings.max_crashes:
                text = f"this request ended {batch.crashes} worker processes and is not tried again"
                work.dead = Reason.MODEL_CRASHED.text
                refused.append(work.refuse(Refused(Reason.MODEL_CRASHED, text), self._settings, wire.POISON))
            elif work.refused is not None:
                refused.append(work.refuse(work.refused, self._settings, work.status))
            else:
                groups.setdefault(work.entry.digest, []).append(work)
        if refused:
            self._exit(batch.model_id, batch.lane, wire.Header(model_id=batch.model_id), refused)
        begun = False
        for digest, group in groups.items():
            model = self._shelf.get(digest)
            for part in self._parts(group):
                if begun and batch.lane == BULK:
                    self._interactive_first()
                begun = True
                self._predict(batch, model, part)

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

    def _parts(self, works: list[Work]) -> Iterator[list[Work]]:
        """Predict calls of at most the row limit; limits count rows, and a larger request goes alone."""
        part: list[Work] = []
        rows = 0
        for work in works:
            if part and rows + work.rows > self._settings.batch_rows:
                yield part
                part, rows = [], 0
            part.append(work)
            rows += work.rows
        if part:
            yield part

    def _predict(self, batch: Batch, model: LoadedModel | None, works: list[Work]) -> None:
        """One predict call and its completion; a call that raises is split until the bad rows stand alone."""
        start = now_us()
        expired = [work for work in works if work.expired(start)]
        if expired:
            refused = Refused(Reason.DEADLINE_PASSED, "the deadline passed before a worker came to it")
            items = [work.refuse(refused, self._settings, wire.EXPIRED) for work in expired]
            self._exit(batch.model_id, batch.lane, wire.Header(model_id=batch.model_id), items)
            works = [work for work in works if not work.expired(start)]
            if not works:
                return
        first = works[0].entry
        head = wire.Header(model_id=batch.model_id, version=first.version, digest=first.digest)
        if model is None:
            text = f"version {first.version} is loaded by no worker any more"
            items = [
                work.refuse(Refused(Reason.VERSION_UNAVAILABLE, text), self._settings, wire.FAILED) for work in works
            ]
            self._exit(batch.model_id, batch.lane, head, items)
            return
        try:
            began = time.perf_counter()
            columns = model.predict(rows_of_entries(works))
            predicted = time.perf_counter()
        except (PredictFailed, ValueError) as error:
            if len(works) > 1:
                middle = len(works) // 2
                self._predict(batch, model, works[:middle])
                self._predict(batch, model, works[middle:])
                return
            refused = Refused(Reason.MODEL_FAILED, str(error)[:500])
            self._exit(batch.model_id, batch.lane, head, [works[0].refuse(refused, self._settings, wire.FAILED)])
            return
        head.predicted_us = now_us()
        head.engine = model.engine
        answers = Answers(batch.model_id, first.version, columns, head.predicted_us)
        items, row = [], 0
        for work in works:
            entry = work.entry
            response = answers.response(
                entry.request_id.encode(),
                row,
                work.rows,
                entry.user_request_us,
                packed=entry.packed,
                degraded=entry.degraded,
            )
            items.append(work.finish(response, self._settings, wire.OK, position=row))
            row += work.rows
        head.batch_rows = row
        self._exit(batch.model_id, batch.lane, head, items)
        ended = time.perf_counter()
        pace = self._pace_of(batch.model_id)
        self._pace[batch.model_id] = pace.after(row, predicted - began, ended - self._began)
        self._began = ended

    def _exit(self, model_id: str, lane: wire.Lane, head: wire.Header, items: Sequence[Item]) -> None:
        """Completes; tries until Redis has answered, since the exit's gate makes a second call harmless."""
        self._batch_number += 1
        head.worker = self.name
        head.batch_id = f"{self.name}-{self._batch_number}"
        head.runtime_id = self._runtime_id
        raw = header(head)
        pause = 0.05
        for names, arguments in exit_calls(self._keys.model(model_id), raw, items):
            while True:
                try:
                    self._line.run(EXIT, names, arguments)
                    break
                except LOST as error:
                    log.warning("completing failed; trying again", model_id=model_id, error=str(error), wait_s=pause)
                    if not self._ended.wait(pause) and self._stop.is_set() and pause >= 1.0:
                        raise
                    pause = min(pause * 2, 2.0)
        self._leases.drop(model_id, lane, [item.entry_id for item in items])

    def _retries(self) -> list[Batch]:
        """An abandoned entry for an attempt alone, where there is one; looked for every tenth of a second."""
        now = time.monotonic()
        if now < self._retry_at:
            return []
        lease_ms = int(self._settings.lease_s * 1000)
        for model_id in self._shelf.ready:
            keys = self._keys.model(model_id)
            for lane, stream in ((INTERACTIVE, keys.requests), (BULK, keys.bulk)):
                arguments: list[Argument] = [GROUP, self.name, lease_ms, self._settings.max_crashes]
                answer = self._line.run(RETRY, [stream, keys.crashes, keys.lone], arguments)
                if answer and len(answer) > 1:
                    entry_id, fields, crashes, deliveries = answer
                    one = delivery((entry_id, fields), deliveries)
                    log.info("retrying alone", model_id=model_id, entry=entry_id.decode(), crashes=crashes)
                    return [Batch(model_id, lane, [one], lone=True, crashes=crashes)]
        self._retry_at = now + max(RETRY_S, 0.005 * len(self._shelf.ready))
        return []

    # ------------------------------------------------------------------ beside it

    def _room(self, model_id: str) -> int:
        return self._pace_of(model_id).room(self._settings.batch_rows)

    def _pace_of(self, model_id: str) -> Pace:
        return self._pace.get(model_id) or Pace(self._settings.batch_target_ms / 1000)

    def _load_forever(self) -> None:
        while not self._stop.wait(CATALOG_S):
            try:
                if self._shelf.refresh():
                    self._beat()
            except (RedisError, OSError) as error:
                log.debug("the catalogue can't be read", error=str(error))
            except Exception:
                # Whatever one version does while it loads must not end the loading of others.
                log.exception("loading failed")

    def _beat_forever(self) -> None:
        beat_at = 0.0
        while not self._ended.wait(min(self._settings.heartbeat_s, BEAT_S)):
            if self._leases.stuck_s > self._settings.batch_limit_s:
                log.error(
                    "a batch is past its time limit; this worker ends itself", limit_s=self._settings.batch_limit_s
                )
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                self._leases.renew(self._beat_client)
                if time.monotonic() >= beat_at:
                    self._beat()
                    self._lanes.workers = max(1, len(living(self._beat_client, self._keys, "worker")))
                    beat_at = time.monotonic() + BEAT_S * 0.9
            except (RedisError, OSError) as error:
                log.debug("a heartbeat failed", error=str(error))

    def _presence(self) -> Presence:
        paces = self._pace.copy()  # the main thread adds to it meanwhile
        return Presence(
            role="worker",
            name=self.name,
            revision=self._shelf.revision,
            loaded=self._shelf.loaded,
            failed=self._shelf.failed,
            rows_per_s={model_id: pace.rows_per_s(self._settings.batch_rows) for model_id, pace in paces.items()},
            rough=tuple(model_id for model_id, pace in paces.items() if pace.rough(self._settings.batch_rows)),
            pid=os.getpid(),
            models=self._settings.models,
        )

    def _beat(self) -> None:
        show(self._beat_client, self._presence().beat(self._keys))

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

    def _leave(self) -> None:
        """Takes the presence away and removes the consumers, which hold nothing any more."""
        try:
            show(self._beat_client, self._presence().leave(self._keys))
            hand_over(self._beat_client, self._keys, list(self._catalog.records), self.name)
        except (RedisError, OSError) as error:
            log.warning("leaving the group failed", error=str(error))
        self._line.close()
        self._beat_client.close()
        self._load_client.close()
