"""Dead letters: what could not be served, and the way back.

    ms:{M}:dead  ->  read, show  ->  put back onto the bulk lane as a new request, or dropped

A letter goes back in one script with its removal, so that it is never lost and never put back twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import redis
from google.protobuf import json_format
from google.protobuf.message import DecodeError, Message

from contract.completion import BULK, pending_state
from contract.connection import run
from contract.errors import Reason, Refused
from contract.keys import Keys
from contract.request import REQUEST_ID, STREAM_ID, Native, Request, RequestIds
from contract.scripts import RETRY_DEAD
from contract.strict_json import StrictJsonError, parse_json
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

PAGE = 500
MOST_SHOWN_ROWS = 100

_FIRST, _LAST = "-", "+"


class NotRetried(Exception):
    """A letter that can't go back as it is; the message says why."""


class Retried(NamedTuple):
    """Where a letter went: its new entry in the bulk lane, and the id its result is asked for by."""

    entry_id: str
    request_id: str


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One entry that could not be served."""

    model_id: str
    id: str
    """In the stream of dead letters; its first half is when, in milliseconds since the Unix epoch."""
    reason: str
    lane: str
    """requests or bulk."""
    entry_id: str
    crashes: int
    field: str
    """pb or json, where it was a request."""
    body: bytes

    @classmethod
    def read(cls, model_id: str, letter_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
        """From an entry of the stream."""

        def text(name: str) -> str:
            return fields.get(name.encode(), b"").decode(errors="replace")

        crashes = text("crashes")
        return cls(
            model_id=model_id,
            id=letter_id.decode(),
            reason=text("reason"),
            lane=text("lane"),
            entry_id=text("entry_id"),
            crashes=int(crashes) if crashes.isdecimal() else 0,
            field=text("field"),
            body=fields.get(b"body", b""),
        )

    @property
    def at_ms(self) -> int:
        """When it died, in milliseconds since the Unix epoch."""
        return int(self.id.partition("-")[0])

    @property
    def poison(self) -> bool:
        """Whether it ended worker processes, and would again."""
        return self.reason == Reason.MODEL_CRASHED.text

    @property
    def request_id(self) -> str:
        """The id its result was asked for by, as far as one can be read."""
        content = self._content()
        found = content.request_id if isinstance(content, wire.Entry | v1.PredictRequest) else ""
        if isinstance(content, dict) and isinstance(content.get("request_id"), str):
            found = content["request_id"]
        if not REQUEST_ID.fullmatch(found):
            return self.entry_id if self.lane == "bulk" else ""
        return found

    def decoded(self) -> Any:
        """The body as plain values; rows as lists, at most a hundred of them. Text where it is no request."""
        content = self._content()
        if isinstance(content, wire.Entry | v1.PredictRequest):
            return _plain(content)
        return self.body.decode(errors="replace") if content is None else content

    def request(self) -> Request:
        """The request that it was, to be asked once more: routed anew, with the inputs as they were.

        Raises NotRetried where the body is none.
        """
        content = self._content()
        try:
            if isinstance(content, wire.Entry):
                return Request.from_bytes(_asked_again(content).SerializeToString())
            if isinstance(content, v1.PredictRequest) and content.model_id in ("", self.model_id):
                return Request.from_bytes(self.body)._replace(model_id=self.model_id)
            if isinstance(content, dict):
                return Request.from_json(self.body, self.model_id)
        except Refused as refused:
            raise NotRetried(f"{self.id} is no request: {refused.message}") from None
        raise NotRetried(f"{self.id} is no request of {self.model_id}, so there is nothing to ask again")

    def payload(self, request: Request, request_id: str) -> bytes:
        """The field of a bulk entry that asks `request` under an id."""
        if self.field == "json":
            # As it was written: a gRPC message has no rows by position of mixed types.
            return json.dumps({**self._content(), "request_id": request_id}, ensure_ascii=False).encode()
        return request._replace(request_id=request_id).to_message().SerializeToString()

    def _content(self) -> Any:
        """An Entry, a PredictRequest or what the JSON says; None for what is neither."""
        try:
            if self.field == "json":
                return parse_json(self.body)
            if self.field == "pb" and self.body:
                return (v1.PredictRequest if self.lane == "bulk" else wire.Entry).FromString(self.body)
        except (DecodeError, StrictJsonError):
            pass
        return None


class DeadLetters:
    """The dead letters of all models; raises what Redis raises when it is gone."""

    def __init__(self, client: redis.Redis, prefix: str = "ms", *, pending_ttl_s: int = 86_400) -> None:
        self._client = client
        self._keys = Keys(prefix)
        self._pending_ttl_s = pending_ttl_s
        self._ids = RequestIds()

    def models(self) -> list[str]:
        """Every model that has some, whether it is in the catalogue or not."""
        head, tail = self._keys.model("*").dead.split("*")
        found: Iterator[bytes] = self._client.scan_iter(match=f"{head}*{tail}", count=5000, _type="stream")
        return sorted(name.decode().removeprefix(head).removesuffix(tail) for name in set(found))

    def newest(self, model_id: str, limit: int) -> list[DeadLetter]:
        """The newest letters of a model, newest first."""
        found: Any = self._client.xrevrange(self._keys.model(model_id).dead, count=limit)
        return [DeadLetter.read(model_id, letter_id, fields) for letter_id, fields in found]

    def all(self, model_id: str) -> Iterator[DeadLetter]:
        """All letters of a model that are there now, oldest first; what dies meanwhile is left out."""
        stream = self._keys.model(model_id).dead
        newest: Any = self._client.xrevrange(stream, count=1)
        start = _FIRST
        while newest:
            page: Any = self._client.xrange(stream, min=start, max=newest[0][0], count=PAGE)
            yield from (DeadLetter.read(model_id, letter_id, fields) for letter_id, fields in page)
            if len(page) < PAGE:
                return
            start = "(" + page[-1][0].decode()

    def find(self, model_id: str, letter_id: str) -> DeadLetter | None:
        """One letter by its id."""
        found: Any = self._client.xrange(self._keys.model(model_id).dead, min=letter_id, max=letter_id)
        return DeadLetter.read(model_id, *found[0]) if found else None

    def retry(self, letter: DeadLetter) -> Retried | None:
        """Puts it back onto the bulk lane and takes it off the dead letters; None where somebody else had.

        It keeps its request id where no reply is remembered under it any more, else it gets a fresh one. Raises
        NotRetried where it is no request.
        """
        request = letter.request()
        names = self._keys.model(letter.model_id)
        own = request.request_id if _may_be_own(request.request_id) else ""
        fresh = self._ids.next()
        answer: Any = run(
            self._client,
            RETRY_DEAD,
            [names.dead, names.bulk, names.rows_bulk, names.count, names.reply(own or fresh), names.reply(fresh)],
            [
                letter.id,
                request.row_count,
                self._pending_ttl_s,
                letter.payload(request, own) if own else b"",
                pending_state(request.body_sha256(), BULK),
                letter.payload(request, fresh),
                letter.field,
            ],
        )
        return Retried(answer[0].decode(), own if answer[1] else fresh) if answer else None

    def drop(self, model_id: str, letter_id: str) -> bool:
        """Removes one for good; whether it was still there."""
        return bool(self._client.xdel(self._keys.model(model_id).dead, letter_id))


def _may_be_own(request_id: str) -> bool:
    return bool(REQUEST_ID.fullmatch(request_id)) and not STREAM_ID.fullmatch(request_id)


def _asked_again(entry: wire.Entry) -> v1.PredictRequest:
    """What a gateway had admitted, as a request without a version: the model may have been mended since.

    One row of a matrix goes as `rows` too, since a matrix does not tell a boolean from a number.
    """
    request = v1.PredictRequest(
        model_id=entry.model_id, entity_id=entry.entity_id, request_id=entry.request_id, replay=entry.replay
    )
    if entry.WhichOneof("rows") == "matrix":
        request.rows.matrix.CopyFrom(entry.matrix)
    else:
        request.rows.columns.CopyFrom(entry.columns)
    return request


def _plain(message: Message) -> dict[str, Any]:
    """A message as plain values, its packed rows as lists."""
    rows = _rows(message)
    message = type(message).FromString(message.SerializeToString())
    for name in ("matrix", "columns", "rows"):
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    content: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    for name in ("digest", "body_sha256"):
        if raw := getattr(message, name, b""):
            content[name] = raw.hex()
    return {**content, "rows": rows} if rows is not None else content


def _rows(message: Any) -> list[list[Native]] | None:
    holder = message if isinstance(message, wire.Entry) else message.rows
    form = holder.WhichOneof("rows" if isinstance(message, wire.Entry) else "form")
    if form == "matrix":
        matrix = holder.matrix
        raw = matrix.float64[: len(matrix.float64) // 8 * 8]
        table = np.frombuffer(raw, dtype="<f8")
        width = max(1, len(table) // max(1, matrix.rows))
        return [table[start : start + width].tolist() for start in range(0, len(table), width)][:MOST_SHOWN_ROWS]
    if form == "columns":
        columns = [_column(column) for column in holder.columns.columns]
        return [list(row) for row in zip(*columns, strict=False)][:MOST_SHOWN_ROWS]
    return None


def _column(column: v1.Column) -> list[Native]:
    kind = column.WhichOneof("kind")
    values: list[Native] = list(getattr(column, kind).values) if kind else []
    for row in column.nulls:
        if row < len(values):
            values[row] = None
    return values
