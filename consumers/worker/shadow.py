"""The shadow: a version on trial that computes copies of live work, in idle room, and answers nobody.

    live work leaves the exit -> a copy is kept -> no lane has anything -> this worker's name is put down -> predicted
                              (the oldest are dropped)                          -> the name is taken away -> the exit
                                                                                -> the process died: the name stays

A name that stays is a crash, as it is with lone attempts, but it counts against the version and not against the
request: where enough of them stand, nobody computes copies on that version any more.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import redis
import structlog
from redis.exceptions import ResponseError

from consumers.model.model import LoadedModel, PredictFailed
from consumers.worker.answers import Answers
from consumers.worker.copies import Copies, Copy, Form, form_of
from consumers.worker.exits import Exits
from consumers.worker.memory import has_room
from consumers.worker.pace import Most, Pace
from consumers.worker.shelf import Shelf
from consumers.worker.work import Work, answered, rows_of_entries
from contract.catalog import Catalog
from contract.clock import now_us
from contract.completion import Item, Way
from contract.connection import LOST
from contract.errors import Reason, Refused
from contract.keys import Keys
from contract.line import Line
from contract.record import LIVE, ModelRecord, Version
from contract.settings import Settings
from protos import millstream_wire_v1_pb2 as wire

COPY = b"copy"
MOST_ROWS = 64
"""Of one predict call: whoever comes meanwhile waits for it."""
REST = 9
"""Times as long as a slow call took, no copy is computed after it: of the requests that come one in ten meets it."""
HOLD_OFF_S = 0.1
"""After Redis could not be asked, or while somebody else tries alone what ended a worker before."""

log = structlog.get_logger()


class Shadow:
    """One worker's. Used by the thread that predicts; `failed`, `counts`, `stuck_s` and `tidy` are for others too."""

    def __init__(
        self, line: Line, keys: Keys, settings: Settings, catalog: Catalog, shelf: Shelf, exits: Exits, worker: str
    ) -> None:
        self._line = line
        self._keys = keys
        self._settings = settings
        self._catalog = catalog
        self._shelf = shelf
        self._exits = exits
        self._worker = worker
        self._target_s = settings.batch_target_ms / 1000
        self._copies = Copies(settings.shadow_queue_rows)
        self._done: dict[str, int] = {}
        self._forms: dict[bytes, Form] = {}
        """By version digest."""
        self._pace: dict[bytes, Pace] = {}
        self._named: set[tuple[str, str]] = set()
        """(model_id, field) of where this worker's name may stand."""
        self._unfit: set[bytes] = set()
        """Digests of which it was said that they take other features."""
        self._breaks = 0
        self._hold_until = 0.0
        self._refused = False
        """Whether Redis did not take the last copies."""
        self._since = 0.0
        self._lock = threading.Lock()
        self.failed: Mapping[str, str] = {}
        """Hex digest of a shadow -> why nobody computes copies on it."""

    # ------------------------------------------------------------------ what is kept

    def offer(self, model_id: str, works: Sequence[Work], passed: Sequence[int]) -> None:
        """Live work of one model that was answered; copies are kept of what this worker was the one to complete."""
        if self._exits.breaks != self._breaks:
            self.lost()
        record = self._catalog.records.get(model_id)
        shadow = shadow_of(record)
        if record is None or shadow is None or shadow.digest.hex() in self.failed:
            return
        entry = works[0].entry
        pinned = record.versions.get(entry.version)
        if pinned is None or entry.digest in (b"", shadow.digest) or pinned.digest != entry.digest:
            return
        form = self._form(pinned)
        if form != self._form(shadow):
            self._say_unfit(pinned, shadow)
            self._copies.dropped[model_id] += sum(passed)
            return
        self._copies.add(Copy.of(work, form) for work, one in zip(works, passed, strict=True) if one)

    def lost(self) -> None:
        """Redis was gone. What it lost of this worker's exits is completed again, and copied again: no copy is kept."""
        self._breaks = self._exits.breaks
        for model_id in self._copies.models:
            self._copies.drop(model_id)

    @property
    def waiting(self) -> bool:
        """Whether there are copies to compute now."""
        return bool(self._copies) and time.monotonic() >= self._hold_until

    def counts(self) -> dict[str, tuple[int, int]]:
        """model_id -> copies that this worker computed, and those that came to nothing."""
        dropped = self._copies.dropped.copy()
        done = self._done.copy()
        return {model_id: (done.get(model_id, 0), dropped[model_id]) for model_id in done.keys() | dropped.keys()}

    @property
    def stuck_s(self) -> float:
        """Seconds since a call began that has not come back."""
        return time.monotonic() - since if (since := self._since) else 0.0

    # ------------------------------------------------------------------ what is computed

    def compute(self) -> None:
        """One small batch of copies, where nothing else waits. What can't be told to Redis is dropped."""
        first = self._copies.first
        if first is None:
            return
        model_id = first.model_id
        version = shadow_of(self._catalog.records.get(model_id))
        model = self._shelf.get(version.digest) if version is not None else None
        if version is None or model is None or first.form != self._form(version):
            self._copies.drop(model_id)
            return
        taken, done = 0, 0
        try:
            if not self._put_name_down(model_id, version):
                return
            pace = self._pace.get(version.digest)
            room = pace.room(Most.always(min(MOST_ROWS, self._settings.batch_rows))) if pace else 1
            works = [copy.work(version.version, version.digest) for copy in self._copies.take(room)]
            taken = len(works)
            began = time.monotonic()
            calls = self._predicted(model_id, version, model, works)
            self._hold_until = (ended := time.monotonic()) + rest_s(ended - began, self._target_s)
            self._take_name_away()
            for head, items in calls:
                self._exits.copy(model_id, head, items)
                done += len(items)
            self._refused = False
        except (*LOST, ResponseError) as error:
            if not self._refused:
                log.warning("copies are dropped: Redis does not take them", model_id=model_id, error=str(error))
            self._refused = True
            if isinstance(error, LOST):
                self.lost()
            self._hold_until = time.monotonic() + HOLD_OFF_S
        self._done[model_id] = self._done.get(model_id, 0) + done
        self._copies.dropped[model_id] += taken - done

    def _predicted(
        self, model_id: str, version: Version, model: LoadedModel, works: list[Work]
    ) -> list[tuple[wire.Header, list[Item]]]:
        """What its predict calls made of the copies, a call each; one that raises is split as with live work."""
        head = wire.Header(model_id=model_id, version=version.version, digest=version.digest)
        self._since = time.monotonic()
        try:
            columns = model.predict(rows_of_entries(works))
            seconds = time.monotonic() - self._since
        except (PredictFailed, ValueError) as error:
            if isinstance(error.__cause__, MemoryError) and not has_room():
                raise error.__cause__ from None
            if len(works) > 1:
                middle = len(works) // 2
                first = self._predicted(model_id, version, model, works[:middle])
                return first + self._predicted(model_id, version, model, works[middle:])
            refused = Refused(Reason.MODEL_FAILED, str(error)[:500])
            return [(head, _copies([works[0].refuse(refused, self._settings, wire.SHADOW)]))]
        finally:
            self._since = 0.0
        head.predicted_us = now_us()
        head.engine = model.engine
        head.runtime_id = self._exits.runtimes[model.threads]
        answers = Answers(model_id, version.version, columns, head.predicted_us)
        items, rows = answered(works, answers, self._settings, wire.SHADOW)
        head.batch_rows = rows
        pace = self._pace.get(version.digest) or Pace(self._target_s)
        self._pace[version.digest] = pace.after(rows, seconds, seconds)
        return [(head, _copies(items))]

    # ------------------------------------------------------------------ what ended workers

    def _put_name_down(self, model_id: str, version: Version) -> bool:
        """Whether it may be computed: too many names of the dead forbid it, one lets only one worker try at a time."""
        if self._named:
            self._take_name_away()
        digest, key = version.digest.hex(), self._keys.model(model_id).shadow
        field = f"{digest} {self._worker}"
        self._named.add((model_id, field))
        _, fields = self._line.ask([("HSET", key, field, now_us()), ("HKEYS", key)])
        others = [name for other, name in map(_split, fields) if other == digest and name != self._worker]
        dead = self._dead(others)
        if not dead or (len(dead) < self._settings.max_crashes and len(dead) == len(others)):
            return True
        self._take_name_away()
        if len(dead) >= self._settings.max_crashes:
            why = f"it ended {len(dead)} worker processes while it computed copies of requests"
            log.error("a shadow is not computed any more", version=version.name, why=why)
            with self._lock:
                self.failed = {**self.failed, digest: why}
            self._copies.drop(model_id)
        self._hold_until = time.monotonic() + HOLD_OFF_S
        return False

    def _take_name_away(self) -> None:
        """This worker lives."""
        self._line.ask([("HDEL", self._keys.model(model_id).shadow, field) for model_id, field in self._named])
        self._named.clear()

    def _dead(self, names: Sequence[str]) -> list[str]:
        """Those of them that do not show themselves any more."""
        if not names:
            return []
        alive = self._line.ask([("EXISTS", self._keys.presence("worker", name)) for name in names])
        return [name for name, lives in zip(names, alive, strict=True) if not lives]

    @property
    def owes(self) -> bool:
        """Whether its name may stand somewhere."""
        return bool(self._named)

    def give_back(self, client: redis.Redis) -> None:
        """This worker ends though it lives: it takes its name away. Raises what Redis raises."""
        for model_id, field in list(self._named):
            client.hdel(self._keys.model(model_id).shadow, field)
            self._named.discard((model_id, field))

    def tidy(self, client: redis.Redis) -> None:
        """The catalogue changed: what is no shadow any more has its crashes forgotten, so that it may be one again.

        Raises what Redis raises.
        """
        records = list(self._catalog.records.values())
        shadows = {r.model_id: shadow.digest.hex() if (shadow := shadow_of(r)) else "" for r in records}
        pipe = client.pipeline(transaction=False)
        for model_id in shadows:
            pipe.hkeys(self._keys.model(model_id).shadow)
        for (model_id, digest), fields in zip(shadows.items(), pipe.execute(raise_on_error=False), strict=True):
            if not isinstance(fields, Exception) and (over := [f for f in fields if _split(f)[0] != digest]):
                client.hdel(self._keys.model(model_id).shadow, *over)
        with self._lock:
            self.failed = {digest: why for digest, why in self.failed.items() if digest in shadows.values()}

    # ------------------------------------------------------------------ forms

    def _form(self, version: Version) -> Form:
        form = self._forms.get(version.digest)
        if form is None:
            form = self._forms[version.digest] = form_of(version.signature)
        return form

    def _say_unfit(self, pinned: Version, shadow: Version) -> None:
        if shadow.digest not in self._unfit:
            self._unfit.add(shadow.digest)
            text = "a shadow takes other features than the version that answers, so it can't compute copies"
            log.warning(text, shadow=shadow.name, version=pinned.version)


def shadow_of(record: ModelRecord | None) -> Version | None:
    """The version of a model that gets copies, where there is one."""
    if record is None or not record.routing.shadow:
        return None
    version = record.versions.get(record.routing.shadow)
    return version if version is not None and version.state == LIVE else None


def rest_s(seconds: float, target_s: float) -> float:
    """How long a shadow is left alone whose call took so long, where a call should take `target_s`."""
    return REST * seconds if seconds > target_s else 0.0


def _copies(items: Iterable[Item]) -> list[Item]:
    """As they leave: what was completed is not completed again, and nobody is told."""
    return [item._replace(way=Way(COPY, item.way.lane, rows=0), state=b"", wake=b"") for item in items]


def _split(field: Any) -> tuple[str, str]:
    """Digest and worker."""
    digest, _, name = field.decode().partition(" ")
    return digest, name
