"""Lanes: how a worker reads, model by model, the interactive lanes first.

A pass looks at all lanes in one round trip and reads from the first that has something, starting behind the model that
was read last. While one model alone is asked, its next batch is read in the round trip in which the last one leaves.
When all are empty, one blocking read over all of them takes a single entry, and a new pass begins.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import redis
from redis.exceptions import ResponseError

from consumers.worker.crowds import Crowds
from contract.completion import BULK, INTERACTIVE
from contract.connection import Argument, ensure_groups
from contract.keys import GROUP, Keys
from contract.line import Line
from contract.settings import Settings
from protos import millstream_wire_v1_pb2 as wire

BLOCK_MS = 250
QUIET_S = 0.0004
"""A read that waited longer than this found the lanes empty, so the next one waits at once instead of looking first:
one round trip less for a single caller. It comes back sooner where more has come meanwhile, and then a pass follows."""

LOOK_S = 0.001
"""Between two looks at who is waited for."""


class Delivery(NamedTuple):
    """One entry as it was read."""

    entry_id: bytes
    fields: dict[bytes, bytes]
    deliveries: int = 1


class Batch(NamedTuple):
    """Entries of one lane of one model, read together."""

    model_id: str
    lane: wire.Lane
    deliveries: Sequence[Delivery]
    lone: bool = False
    """A claimed entry on an attempt of its own."""
    crashes: int = 0


class After(NamedTuple):
    """What is asked in one round trip with something else, behind it."""

    commands: Sequence[Sequence[Argument]]
    answered: Callable[[list[Any]], None]
    """Gets the answer of each; a ResponseError for one that was refused."""


class Lanes:
    """Both lanes of every model a worker serves."""

    def __init__(self, line: Line, client: redis.Redis, keys: Keys, settings: Settings, consumer: str) -> None:
        self._line = line
        self._client = client
        self._keys = keys
        self._settings = settings
        self._consumer = consumer
        self._models: list[str] = []
        self._look: list[tuple[str, str]] = []
        self._next = 0
        self._quiet = False
        self._backlog = 0
        """Where the model that was read last had its entries, when it was looked at last."""
        self._others = False
        """Whether callers of another model waited then, so that it is their turn."""
        self._taken: list[Batch] = []
        self.waited = True
        """Whether the last read waited, for what was not there yet."""
        self.room: Callable[[str], int] = lambda _model: settings.batch_rows
        """Rows of a model that take the target time of a batch."""
        self.crowds = Crowds(lambda _model: 0.0)
        """Who is waited for, of models whose calls are slow."""
        self.workers: Mapping[str, int] = {}
        """Living workers that serve each model, who share what waits; not known at first."""

    @property
    def served(self) -> Sequence[str]:
        """Models that are read, or may be read just now."""
        return self._models

    def serve(self, models: Sequence[str]) -> None:
        """From now on these models are read."""
        if list(models) != self._models:
            for model_id in set(models) - set(self._models):
                ensure_groups(self._client, self._keys, model_id)
            self._models = list(models)
            keys = [self._keys.model(model_id) for model_id in models]
            self._look = [("XLEN", stream) for each in keys for stream in (each.requests, each.bulk)]
            self._next = 0

    def take(self) -> list[Batch]:
        """What was read with the exit of the last batch; once."""
        taken, self._taken = self._taken, []
        return taken

    @property
    def holds(self) -> bool:
        """Whether there is something to take."""
        return bool(self._taken)

    def after(self, batch: Batch) -> After | None:
        """How the next batch is read in the round trip in which this one leaves.

        None where it is another model's turn, or where it would be too small: a slow model's callers come again, and
        after a read that had to wait there is little to do.
        """
        model_id = batch.model_id
        if batch.lane == BULK or batch.lone or model_id not in self._models:
            return None
        if self.waited or self._others or self.crowds.slow(model_id):
            return None
        stream = self._keys.model(model_id).requests
        reading = self._reading(model_id, stream, self._backlog)

        def answered(answers: list[Any]) -> None:
            read, *lengths = answers
            if not isinstance(read, ResponseError):
                self._taken = _batches(read, {stream: (model_id, INTERACTIVE)})
            # What was refused is found by the next pass too, which says so.
            self._others = any(isinstance(answer, ResponseError) for answer in answers)
            if not self._others:
                self._looked(model_id, lengths)

        return After([reading, *self._look], answered)

    def answered(self, batch: Batch) -> None:
        """This one has left; who waited for it may come again."""
        # Nobody waits for a bulk batch: with one after the other, a wait that began anew with each would never end.
        if batch.lane != BULK and not batch.lone:
            self.crowds.answered(batch.model_id)

    def read(self, *, wait: bool = True) -> list[Batch]:
        """What is next: one batch, or after a wait one entry of each lane that had one, or nothing.

        Raises what Redis raises when it is gone.
        """
        models = self._models
        if not models:
            return []
        self.waited = False
        try:
            if wait and self._quiet:
                return self._wait(models)
            while not (batches := self._pass(models)) and self.crowds.expected:
                time.sleep(LOOK_S)
            return batches or (self._wait(models) if wait else [])
        except ResponseError as error:
            if "NOGROUP" not in str(error):
                raise
            # The server was flushed or restored: the groups begin again, at 0.
            for model_id in models:
                ensure_groups(self._client, self._keys, model_id)
            return []

    def read_interactive(self) -> list[Batch]:
        """The next batch of an interactive lane, where there is one; for who is busy with bulk. Raises as `read`."""
        return self._pass(self._models, (INTERACTIVE,)) if self._models else []

    def _pass(self, models: list[str], lanes: Sequence[wire.Lane] = (INTERACTIVE, BULK)) -> list[Batch]:
        lengths = self._line.ask(self._look)
        for lane in lanes:
            offset = 1 if lane == BULK else 0
            for step in range(len(models)):
                place = (self._next + step) % len(models)
                backlog = lengths[2 * place + offset]
                if not backlog or (lane == INTERACTIVE and self.crowds.awaits(models[place], backlog)):
                    continue
                batches = self._read_lane(models[place], lane, backlog)
                if batches:
                    self._next = (place + 1) % len(models)
                    self._looked(models[place], lengths)
                    return batches
        return []

    def _looked(self, model_id: str, lengths: Sequence[int]) -> None:
        """Keeps what was seen of the interactive lanes when this model was read."""
        asked = lengths[::2]
        self._backlog = asked[self._models.index(model_id)]
        self._others = len(asked) - asked.count(0) > (self._backlog > 0)

    def _read_lane(self, model_id: str, lane: wire.Lane, backlog: int) -> list[Batch]:
        keys = self._keys.model(model_id)
        stream = keys.bulk if lane == BULK else keys.requests
        if lane == INTERACTIVE:
            self.crowds.read(model_id, backlog)
        answer = self._line.ask([self._reading(model_id, stream, backlog)])[0]
        return _batches(answer, {stream: (model_id, lane)})

    def _reading(self, model_id: str, stream: str, backlog: int) -> Sequence[Argument]:
        # COUNT holds per stream and the first reader takes everything: leave the others their share.
        share = math.ceil(backlog / max(1, self.workers.get(model_id, 1)))
        room = self.room(model_id)
        if stream == self._keys.model(model_id).bulk:
            # Who comes first has to wait for a call that is under way.
            room = min(self._settings.batch_rows, room)
        count = max(1, min(room, share))
        return ("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", count, "STREAMS", stream, ">")

    def _wait(self, models: list[str]) -> list[Batch]:
        streams: dict[str, tuple[str, wire.Lane]] = {}
        for model_id in models:
            keys = self._keys.model(model_id)
            streams[keys.requests] = (model_id, INTERACTIVE)
        for model_id in models:
            streams[self._keys.model(model_id).bulk] = (model_id, BULK)
        head = ("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", 1, "BLOCK", BLOCK_MS, "STREAMS")
        self.waited = True
        began = time.perf_counter()
        answer = self._line.ask([(*head, *streams, *([">"] * len(streams)))])[0]
        self._quiet = time.perf_counter() - began > QUIET_S
        return _batches(answer, streams)


def _batches(answer: Any, streams: dict[str, tuple[str, wire.Lane]]) -> list[Batch]:
    # RESP2 answers a list of pairs, RESP3 a map.
    return [
        Batch(*streams[stream.decode()], [delivery(entry) for entry in entries])
        for stream, entries in dict(answer or {}).items()
    ]


def delivery(entry: Any, deliveries: int = 1) -> Delivery:
    """From a stream entry as Redis answers it."""
    entry_id, flat = entry
    # Fields may be nil for an entry that was deleted under the group.
    return Delivery(entry_id, dict(zip(flat[::2], flat[1::2], strict=True)) if flat else {}, deliveries)
