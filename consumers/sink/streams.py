"""The events streams in Redis: looked at, read on, and trimmed behind what is committed.

    look  ->  read, again and again  ->  look, where the server or an epoch is not the one that was looked at

Connections come back by themselves, and not always to the server that they were to: it may have been restarted with
less, emptied, or be another one. So each read asks behind itself who answered, and each trim asks before it.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from typing import Any

import redis
import structlog
from redis.exceptions import ResponseError

from consumers.sink.position import Position, Seen
from contract.keys import Keys

log = structlog.get_logger()

Entry = tuple[bytes, Any]

READ_ENTRIES = 32
"""Most entries of a stream in one read; an entry holds at most 512 events and 4 MB."""

_LOOK = """#!lua flags=allow-oom
-- KEYS 1 counts, 2 events; ARGV 1 an epoch where there is none, or '' to give none
-- Answers epoch or '', completed, highest id ever, entries.
local length, last = redis.call('XLEN', KEYS[2]), '0-0'
local epoch = redis.call('HGET', KEYS[1], 'epoch') or ''
if epoch == '' and ARGV[1] ~= '' then
  epoch = ARGV[1]
  redis.call('HSET', KEYS[1], 'epoch', epoch)
end
if redis.call('EXISTS', KEYS[2]) == 1 then
  local about = redis.call('XINFO', 'STREAM', KEYS[2])
  for i = 1, #about, 2 do
    if about[i] == 'last-generated-id' then
      last = about[i + 1]
    end
  end
end
return {epoch, redis.call('HGET', KEYS[1], 'completed') or '0', last, length}
"""

_TRIM = """#!lua flags=allow-oom
-- KEYS 1 counts, 2 events; ARGV 1 run id of the server that was read, 2 epoch, 3 least id that is kept
if not string.find(redis.call('INFO', 'server'), 'run_id:' .. ARGV[1], 1, true)
  or (redis.call('HGET', KEYS[1], 'epoch') or '') ~= ARGV[2] then
  return 0
end
return redis.call('XTRIM', KEYS[2], 'MINID', '=', ARGV[3])
"""

_WAITING = """#!lua
-- KEYS 1 requests, 2 bulk, 3 events
-- Answers the first id of either lane or '', and the highest id of events that stands there or '0-0'.
local first = {}
for lane = 1, 2 do
  local entry = redis.call('XRANGE', KEYS[lane], '-', '+', 'COUNT', 1)[1]
  first[lane] = entry and entry[1] or ''
end
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)[1]
return {first[1], first[2], last and last[1] or '0-0'}
"""


class EventStreams:
    """The events streams of all models, on a connection of one thread; each call raises what redis-py raises."""

    def __init__(self, client: redis.Redis, keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._server = ""
        """Run id of the server that was looked at."""
        self._epochs: dict[str, str] = {}
        """Of the models that were looked at on it."""
        self._foreign: set[str] = set()
        """Models whose events key is of another type."""

    def unseen(self, models: Iterable[str]) -> list[str]:
        """Which of them must be looked at before they are read."""
        return [model_id for model_id in models if model_id not in self._epochs and model_id not in self._foreign]

    def readable(self, models: Iterable[str]) -> list[str]:
        """Which of them were looked at."""
        return [model_id for model_id in models if model_id in self._epochs]

    def look(self, marked: Mapping[str, bool]) -> dict[str, Seen]:
        """How these models' streams stand; those that are marked get an epoch where they have none."""
        pipe = self._client.pipeline(transaction=False)
        pipe.info("server")
        for model_id, mark in marked.items():
            names = self._keys.model(model_id)
            pipe.eval(_LOOK, 2, names.count, names.events, str(secrets.randbits(62)) if mark else "")
        server, *answers = pipe.execute(raise_on_error=False)
        self._answered(server)
        foreign = {m for m, a in zip(marked, answers, strict=True) if isinstance(a, ResponseError) and _wrong_type(a)}
        for model_id in foreign:
            log.error("the events of a model are under a key of another type and are not read", model_id=model_id)
        looked = {m: a for m, a in zip(marked, answers, strict=True) if m not in foreign}
        for answer in looked.values():
            if isinstance(answer, Exception):
                raise answer
        seen = {
            model_id: Seen(epoch.decode(), int(completed), last_entry.decode(), length)
            for model_id, (epoch, completed, last_entry, length) in looked.items()
        }
        self._foreign |= foreign
        self._epochs |= {model_id: each.epoch for model_id, each in seen.items()}
        return seen

    def _answered(self, server: Any) -> bool:
        """Whether it is the server that was looked at; where it is another one, nothing was."""
        if isinstance(server, Exception):
            raise server
        if server.get("run_id", "") == self._server:
            return True
        self._server = server.get("run_id", "")
        self._epochs.clear()
        self._foreign.clear()
        return False

    def read(self, starts: Mapping[str, str], block: int | None) -> dict[str, list[Entry]]:
        """What is behind these ids, by model; waits up to `block` milliseconds for the first entry.

        Of a stream that may be another one by now there is nothing; `unseen` then has it.
        """
        models = {self._keys.model(model_id).events.encode(): model_id for model_id in self.readable(starts)}
        watched = list(self._epochs)
        pipe = self._client.pipeline(transaction=False)
        if models:
            ids: dict[Any, Any] = {stream: starts[model_id] for stream, model_id in models.items()}
            pipe.xread(ids, count=READ_ENTRIES, block=block)
        # Behind the read: who answers now is who answered then.
        pipe.info("server")
        for model_id in watched:
            pipe.hget(self._keys.model(model_id).count, "epoch")
        answers = pipe.execute(raise_on_error=False)
        found = answers.pop(0) if models else None
        server, *epochs = answers
        if not self._answered(server):
            return {}
        for model_id, epoch in zip(watched, epochs, strict=True):
            if isinstance(epoch, Exception) or (epoch or b"").decode() != self._epochs[model_id]:
                del self._epochs[model_id]
        if isinstance(found, ResponseError) and _wrong_type(found):
            self._epochs.clear()  # the next look finds out whose key it is
            return {}
        if isinstance(found, Exception):
            raise found
        return {
            models[stream]: entries for stream, entries in _entries(found).items() if models[stream] in self._epochs
        }

    def trim(self, positions: Mapping[str, Position]) -> dict[str, Position]:
        """Removes what is committed, exactly; what could not be tried is answered.

        Only from the stream that the position is of: ids of another one say nothing about what is in the log.
        """
        tried = self.readable(positions)
        left = {model_id: positions[model_id] for model_id in self.unseen(positions)}
        if not tried:
            return left
        pipe = self._client.pipeline(transaction=False)
        for model_id in tried:
            names, at = self._keys.model(model_id), positions[model_id]
            pipe.eval(_TRIM, 2, names.count, names.events, self._server, at.epoch, at.after)
        for model_id, answer in zip(tried, pipe.execute(raise_on_error=False), strict=True):
            if isinstance(answer, Exception):
                left[model_id] = positions[model_id]
        return left

    def waiting(self, model_id: str) -> tuple[int | None, str]:
        """When the oldest request that is not completed was appended, in milliseconds, None where there is none; and
        the last entry of the events that were appended before that was asked."""
        names = self._keys.model(model_id)
        answer: Any = self._client.eval(_WAITING, 3, names.requests, names.bulk, names.events)
        requests, bulk, last = (each.decode() for each in answer)
        oldest = [int(entry_id.partition("-")[0]) for entry_id in (requests, bulk) if entry_id]
        return (min(oldest) if oldest else None), last


def _wrong_type(error: ResponseError) -> bool:
    return "WRONGTYPE" in str(error)


def _entries(answer: Any) -> dict[bytes, list[Entry]]:
    if not answer:
        return {}
    if isinstance(answer, dict):  # RESP3: one list of reads for each stream
        return {stream: [entry for read in reads for entry in read] for stream, reads in answer.items()}
    return dict(answer)
