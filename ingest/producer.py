"""The producer: pushes requests straight onto a model's bulk lane, thousands a second, and reads results later.

    with Producer("redis://127.0.0.1:6379") as producer:
        request_id = producer.send("churn", [25, 120])
        producer.send_many("churn", ([age, clicks] for age, clicks in people))
        producer.result("churn", request_id, wait=5)

Every request gets its id here, before it is sent. So where the answer of Redis is lost, the same request is simply
sent again: workers recognise the id while its reply is kept, and it is predicted and recorded once. Where no reply is
kept (`discard_reply`), that ends with its answer: a repeat that comes later is a new request.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, NamedTuple, Self

import orjson
import redis
from redis.exceptions import RedisError, ResponseError

from contract.connection import LOST, connect
from contract.errors import Violation
from contract.keys import Keys
from contract.request import Request, RequestIds
from ingest.answer import Answer, NotFound, Overloaded, Pending, PredictionError, Unavailable, outcome
from ingest.question import by_name, by_position, refusal
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.25


class _Entry(NamedTuple):
    request_id: str
    body: bytes
    field: str = "json"


class Producer:
    """Appends to `ms:{model}:bulk` and reads reply keys; safe to share among threads.

    `patience` is how many seconds a send goes on trying while Redis is full or away; 0: one attempt. Raises
    Unavailable and Overloaded after that.
    """

    def __init__(self, redis_url: str, prefix: str = "ms", *, timeout: float = 5.0, patience: float = 10.0) -> None:
        self._where = _without_password(redis_url)
        self._redis: redis.Redis = connect(redis_url, timeout_s=timeout)
        self._keys = Keys(prefix)
        self._ids = RequestIds()
        self._patience = patience
        self._known: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()

    def send(
        self,
        model_id: str,
        inputs: Any = None,
        *,
        features: Any = None,
        entity_id: str = "",
        request_id: str = "",
        discard_reply: bool = False,
    ) -> str:
        """Appends one request and returns its id; the inputs are checked by the worker that reads it.

        One row as `inputs`, by position, or `features`, by name, or an `entity_id` whose features are fetched.
        `discard_reply`: nobody reads the reply, only the event log keeps it. Raises InvalidInput, NotFound for a model
        that is not in the catalogue, Overloaded, Unavailable.
        """
        form = {
            "inputs": inputs, "features": features, "entity_id": entity_id, "request_id": request_id,
            "discard_reply": discard_reply,
        }  # fmt: skip
        entry = self._entry(model_id, form)
        self.check_model(model_id, entry.request_id)
        self._append(model_id, [entry])
        return entry.request_id

    def send_many(
        self,
        model_id: str,
        requests: Iterable[Any],
        *,
        batch: int = 500,
        discard_reply: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> list[str]:
        """Appends many requests, `batch` to a round trip, and returns their ids in order.

        Each is a list of inputs, or a dict of the arguments of `send` (`{"entity_id": "101"}`). `on_progress` gets the
        number sent so far. Raises what `send` raises; what was appended before stays.
        """
        if batch < 1:
            raise refusal([Violation("batch", f"expected at least 1, got {batch}")])
        self.check_model(model_id)
        sent: list[str] = []
        remaining = iter(requests)
        while items := list(islice(remaining, batch)):
            entries = [self._entry(model_id, _form(item, discard_reply)) for item in items]
            self._append(model_id, entries)
            sent += [entry.request_id for entry in entries]
            if on_progress:
                on_progress(len(sent))
        return sent

    def send_entries(self, model_id: str, entries: Sequence[tuple[str, bytes]]) -> str:
        """Appends requests that are JSON already, each (its id, `json` field), in one round trip.

        Returns the stream id of the last. Raises what `send` raises.
        """
        self.check_model(model_id)
        return self._append(model_id, [_Entry(*entry) for entry in entries])

    def send_messages(self, model_id: str, requests: Sequence[v1.PredictRequest]) -> str:
        """Appends requests that are gRPC messages already, each with an id of its own (`pb` field), in one round trip.

        Returns the stream id of the last. Raises what `send` raises.
        """
        self.check_model(model_id)
        wrong = [Violation("request_id", "expected one") for request in requests if not request.request_id]
        if wrong:
            raise refusal(wrong, "")
        return self._append(model_id, [_Entry(each.request_id, each.SerializeToString(), "pb") for each in requests])

    def backlog(self, model_id: str) -> tuple[int, str]:
        """How many entries stand in the bulk lane, and the stream id of the oldest, "" where there is none."""
        stream = self._keys.model(model_id).bulk
        pipe = self._redis.pipeline(transaction=False)
        pipe.xlen(stream)
        pipe.xrange(stream, count=1)
        try:
            waiting, oldest = pipe.execute()
        except (*LOST, RedisError) as error:
            raise self._refused(error, "") from None
        return waiting, oldest[0][0].decode() if oldest else ""

    def last_entry(self, model_id: str) -> str:
        """The stream id of the newest entry in the bulk lane, "" where there is none."""
        try:
            newest: Any = self._redis.xrevrange(self._keys.model(model_id).bulk, count=1)
        except (*LOST, RedisError) as error:
            raise self._refused(error, "") from None
        return newest[0][0].decode() if newest else ""

    def states(self, model_id: str, request_ids: Sequence[str]) -> list[wire.ReplyState | None]:
        """What stands in the reply keys of these requests, None where there is none, in one round trip."""
        names = self._keys.model(model_id)
        try:
            raws: Any = self._redis.mget([names.reply(request_id) for request_id in request_ids])
        except (*LOST, RedisError) as error:
            raise self._refused(error, "") from None
        return [None if raw is None else wire.ReplyState.FromString(raw) for raw in raws]

    def result(self, model_id: str, request_id: str, *, wait: float = 0.0) -> Answer | Pending:
        """The answer to a request, or Pending where there is none after `wait` seconds.

        Raises the error the request ended with, and NotFound where the id is unknown, its reply expired, or none was
        kept.
        """
        until, pause = time.monotonic() + wait, _FIRST_PAUSE_S
        while True:
            found = self._look(model_id, request_id)
            if isinstance(found, PredictionError):
                raise found
            left = until - time.monotonic()
            if isinstance(found, Answer) or left <= 0:
                return found
            time.sleep(min(pause, left))
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _look(self, model_id: str, request_id: str) -> Answer | Pending | PredictionError:
        names = self._keys.model(model_id)
        pipe = self._redis.pipeline(transaction=False)
        # The lane first: an entry leaves it only after its reply is there, so an empty lane and then no reply is final.
        pipe.xlen(names.bulk)
        pipe.get(names.reply(request_id))
        try:
            waiting, raw = pipe.execute()
        except (*LOST, RedisError) as error:
            raise self._refused(error, request_id) from None
        if raw is None:
            if waiting:
                return Pending(request_id, model_id)
            text = (
                f"no result of {request_id!r} for {model_id}: the id is unknown, or its reply was not kept or expired"
            )
            return NotFound(text, reason="RESULT_UNKNOWN", request_id=request_id)
        state = wire.ReplyState.FromString(raw)
        if not state.response:
            return Pending(request_id, model_id)
        return outcome(v1.PredictResponse.FromString(state.response))

    def check_model(self, model_id: str, request_id: str = "", *, patience: float | None = None) -> None:
        """Looks once per model whether it is there: a misspelt name would make a stream that nobody reads.

        `patience` in place of the producer's own. Raises InvalidInput, NotFound, Unavailable.
        """
        if model_id in self._known:
            return
        if not _MODEL_ID.fullmatch(model_id):
            raise refusal(
                [Violation("model_id", f"expected 1 to 128 of A-Z a-z 0-9 _ . -, got {model_id[:80]!r}")], request_id
            )
        try:
            found = self._hkeys(self._keys.catalog, self._patience if patience is None else patience)
            names = sorted(name.decode() if isinstance(name, bytes) else name for name in found)
        except redis.exceptions.NoPermissionError:
            names = [model_id]  # A producer that may do nothing but append.
        except (*LOST, RedisError) as error:
            raise self._refused(error, request_id) from None
        if model_id not in names:
            there = ", ".join(names[:20]) or "none"
            raise NotFound(f"no model {model_id!r}; there is: {there}", reason="MODEL_UNKNOWN", request_id=request_id)
        self._known.add(model_id)

    def _hkeys(self, name: str, patience: float) -> Any:
        """The fields of a hash, asked for again while that may help. Raises what redis-py raises."""
        until, pause = time.monotonic() + patience, _FIRST_PAUSE_S
        while True:
            try:
                return self._redis.hkeys(name)
            except (*LOST, RedisError) as error:
                if not _passes(error) or time.monotonic() + pause > until:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _entry(self, model_id: str, form: Mapping[str, Any]) -> _Entry:
        request_id = form.get("request_id") or self._ids.next()
        body: dict[str, Any] = {"request_id": request_id}
        forms = [name for name in ("inputs", "features") if form.get(name) is not None]
        wrong = [
            Violation(str(name), "unknown; known are inputs, features, entity_id, request_id and discard_reply")
            for name in form
            if name not in ("inputs", "features", "entity_id", "request_id", "discard_reply")
        ]
        if len(forms) > 1:
            wrong.append(Violation("features", "send one of inputs and features; both came"))
        elif not forms and not form.get("entity_id"):
            wrong.append(Violation("inputs", "nothing was sent; expected inputs, features or an entity_id"))
        if form.get("inputs") is not None:
            body["inputs"] = by_position(form["inputs"], request_id)
        if form.get("features") is not None:
            body["features"] = by_name(form["features"], request_id)
        if form.get("entity_id"):
            body["entity_id"] = form["entity_id"]
        if form.get("discard_reply"):
            body["discard_reply"] = True
        wrong += Request(model_id, entity_id=form.get("entity_id") or "", request_id=request_id).check_ids()
        named = body.get("features") or {
            f"inputs[{place}]": item for place, item in enumerate(body.get("inputs") or ())
        }
        for name, item in named.items():
            if hasattr(item, "item"):
                item = item.item()
            if item is not None and not isinstance(item, float | int | str):
                wrong.append(
                    Violation(name, f"expected a number, a boolean, a string or None, got {type(item).__name__}")
                )
            elif isinstance(item, float) and item - item != 0:
                wrong.append(Violation(name, f"expected a finite number, got {item}; a missing value is None"))
        if wrong:
            raise refusal(wrong, request_id)
        try:
            return _Entry(request_id, orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY))
        except (TypeError, ValueError) as error:
            raise refusal([Violation("inputs", str(error))], request_id) from None

    def _append(self, model_id: str, entries: Sequence[_Entry]) -> str:
        """Appends all of them, again and again those that Redis did not confirm; the stream id of the last."""
        stream = self._keys.model(model_id).bulk
        last_progress, pause = time.monotonic(), _FIRST_PAUSE_S
        left = list(entries)
        last = ""
        while True:
            unconfirmed, error, newest = self._attempt(stream, left)
            last = newest or last
            if error is None:
                return last
            if len(unconfirmed) < len(left):
                last_progress, pause = time.monotonic(), _FIRST_PAUSE_S
            left = unconfirmed
            if not _passes(error) or time.monotonic() + pause > last_progress + self._patience:
                raise self._refused(error, left[0].request_id if len(entries) == 1 else "")
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE_S)

    def _attempt(self, stream: str, entries: list[_Entry]) -> tuple[list[_Entry], Exception | None, str]:
        """One round trip: the entries that were not confirmed, the first reason, the stream id of the last that was."""
        pipe = self._redis.pipeline(transaction=False)
        for entry in entries:
            pipe.xadd(stream, {entry.field: entry.body})
        try:
            answers = pipe.execute(raise_on_error=False)
        except (*LOST, RedisError) as error:
            return entries, error, ""
        newest = next((a.decode() for a in reversed(answers) if not isinstance(a, Exception)), "")
        failed = [(entry, a) for entry, a in zip(entries, answers, strict=True) if isinstance(a, Exception)]
        return [entry for entry, _ in failed], failed[0][1] if failed else None, newest

    def _refused(self, error: Exception, request_id: str) -> PredictionError:
        text = str(error)
        if isinstance(error, redis.exceptions.OutOfMemoryError):
            return Overloaded(
                "Redis is full: requests wait to be read; send more slowly, add workers or raise maxmemory",
                reason="STORE_FULL",
                request_id=request_id,
                retry_after=1.0,
            )
        if isinstance(error, LOST) and not isinstance(error, redis.exceptions.AuthenticationError):
            return Unavailable(
                f"Redis does not answer at {self._where} ({text}); a request may be sent again under its id",
                reason="STORE_UNAVAILABLE",
                request_id=request_id,
            )
        return Unavailable(f"Redis at {self._where} refused: {text}", reason="STORE_UNAVAILABLE", request_id=request_id)


def _passes(error: Exception) -> bool:
    """Whether trying again may help: a server that is away, starting, full or a replica about to be promoted."""
    if isinstance(error, LOST):
        return not isinstance(error, redis.exceptions.AuthenticationError)
    return isinstance(error, redis.exceptions.OutOfMemoryError | redis.exceptions.ReadOnlyError) or (
        isinstance(error, ResponseError) and str(error).startswith(("MASTERDOWN", "NOREPLICAS", "TRYAGAIN"))
    )


def _form(item: Any, discard_reply: bool) -> dict[str, Any]:
    form = dict(item) if isinstance(item, Mapping) else {"inputs": item}
    if discard_reply:
        form.setdefault("discard_reply", True)
    return form


def _without_password(url: str) -> str:
    return re.sub(r"//[^@/]*@", "//", url).partition("?")[0]
