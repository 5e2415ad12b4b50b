"""A request as the caller sent it, whichever way it came.

gRPC message ─┐
              ├─> Request ─> Admission.draft ─> (hydrate) ─> Draft.complete ─> Admitted
JSON entry  ──┘
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import struct
import sys
from collections.abc import Mapping, Sequence, Sized
from functools import lru_cache
from typing import Any, NamedTuple

import orjson
from google.protobuf.message import DecodeError

from contract.errors import Reason, Refused, Violation, invalid
from contract.strict_json import StrictJsonError, parse_json
from protos import millstream_v1_pb2 as v1

Native = float | int | bool | str | None
"""A feature's value in Python; None is null."""

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
STREAM_ID = re.compile(r"[0-9]+-[0-9]+")
ENTITY_ID_BYTES = 256
REPLAY_LENGTH = 128
EVERY_REPLAY = "*"
"""What a query says for all replays, so none is called that."""
_FIELDS = {"model_id", "version", "inputs", "features", "rows", "entity_id", "request_id", "discard_reply", "replay"}
_EXACT = 2**53
MOST_VALUES = 10_000
"""No signature has more features, so a longer row is refused before anybody looks at each of its values."""
_MODEL_ID, _VERSION, _INPUT, _REQUEST_ID = 0x0A, 0x12, 0x1A, 0x3A
_NUMBER, _INTEGER = 0x09, 0x10
"""Tags of a PredictRequest's fields, and of a Value's."""
_NUMBER_BYTES = 3 + 8
"""An input that is a number: its tag, the length of the Value, the tag of `number`, the number."""
_RUN_BYTES = 4 * _NUMBER_BYTES
"""From so many on it is worth looking for numbers that follow one another."""
_INTEGER_BYTES, _ROW_BYTES = 6, 512 + MOST_VALUES * _NUMBER_BYTES
"""Longer integers and requests are left to protobuf."""
_MOST = int(sys.float_info.max)


def native(value: v1.Value) -> Native:
    """The Python value of a message; None where no kind is set."""
    kind = value.WhichOneof("kind")
    return getattr(value, kind) if kind else None


def value_of(item: Native) -> v1.Value:
    """The message of a Python value.

    Raises ValueError for an integer beyond 64 bits, TypeError for anything but a number, a boolean, a string or None.
    """
    if item is None:
        return v1.Value()
    if isinstance(item, bool):
        return v1.Value(boolean=item)
    if isinstance(item, int):
        return v1.Value(integer=item)
    if isinstance(item, float):
        return v1.Value(number=item)
    if isinstance(item, str):
        return v1.Value(text=item)
    if hasattr(item, "item"):  # a numpy scalar
        return value_of(item.item())
    raise TypeError(f"a feature is a number, a boolean, a string or null, not {type(item).__name__}")


class Request(NamedTuple):
    """What was asked, nothing of it checked against a signature yet. (A tuple: one is made per request.)"""

    model_id: str
    version: str = ""
    inputs: Sequence[Native] | None = None
    features: Mapping[str, Native] | None = None
    packed: v1.Rows | None = None
    """Many rows as a gRPC caller packs them."""
    rows: Sequence[Sequence[Native]] | None = None
    """Many rows as JSON has them, each by position."""
    entity_id: str = ""
    request_id: str = ""
    discard_reply: bool = False
    replay: str = ""
    """The replay that it is part of; empty for a real one."""

    @classmethod
    def from_bytes(cls, raw: bytes) -> Request:
        """From a serialized PredictRequest. Raises Refused."""
        return _row(raw) or cls.from_any_bytes(raw)

    @classmethod
    def from_any_bytes(cls, raw: bytes) -> Request:
        """The same by protobuf, whatever stands in it."""
        try:
            message = v1.PredictRequest.FromString(raw)
        except DecodeError:
            raise Refused(Reason.MALFORMED, "the bytes are no millstream.v1.PredictRequest") from None
        inputs, features = message.inputs, message.features
        if len(inputs) > MOST_VALUES or len(features) > MOST_VALUES:
            _bound("inputs", inputs, MOST_VALUES, "values")
            _bound("features", features, MOST_VALUES, "features")
        return cls(
            message.model_id,
            message.version,
            [native(value) for value in inputs] if inputs else None,
            {name: native(value) for name, value in features.items()} if features else None,
            message.rows if message.HasField("rows") else None,
            None,
            message.entity_id,
            message.request_id,
            message.discard_reply,
            message.replay,
        )

    def to_message(self) -> v1.PredictRequest:
        """The gRPC message that asks the same."""
        message = v1.PredictRequest(
            model_id=self.model_id,
            version=self.version,
            inputs=[value_of(item) for item in self.inputs or ()],
            features={name: value_of(item) for name, item in (self.features or {}).items()},
            entity_id=self.entity_id,
            request_id=self.request_id,
            discard_reply=self.discard_reply,
            replay=self.replay,
        )
        if self.packed is not None:
            message.rows.CopyFrom(self.packed)
        return message

    @classmethod
    def from_json(cls, raw: bytes, model_id: str, max_rows: int | None = None) -> Request:
        """From the `json` field of a bulk entry of the model's own stream. Raises Refused with all violations."""
        try:
            body: Any = parse_json(raw)
        except StrictJsonError as error:
            raise Refused(Reason.MALFORMED, f"the entry is no JSON: {error}") from None
        if not isinstance(body, dict):
            raise Refused(Reason.MALFORMED, f"the entry is {_kind(body)}, an object is expected")
        _bound("inputs", body.get("inputs"), MOST_VALUES, "values")
        _bound("features", body.get("features"), MOST_VALUES, "features")
        _bound("rows", body.get("rows"), max_rows, "rows in one request")
        known = ", ".join(sorted(_FIELDS))
        wrong = [Violation(name[:200], f"unknown field; known are {known}") for name in body if name not in _FIELDS]
        texts = {}
        for name in ("model_id", "version", "entity_id", "request_id", "replay"):
            text = body.get(name, "")
            if isinstance(text, str):
                texts[name] = text
            else:
                wrong.append(Violation(name, f"expected a string, got {_kind(text)}"))
        if texts.get("model_id") not in ("", None, model_id):
            text = f"this is the stream of {model_id!r}, the entry says {texts['model_id'][:200]!r}"
            wrong.append(Violation("model_id", text))
        inputs = body.get("inputs")
        if inputs is not None and not _is_row(inputs):
            wrong.append(Violation("inputs", "expected a list of numbers, booleans, strings or nulls"))
        features = body.get("features")
        if features is not None and not (isinstance(features, dict) and _is_row(list(features.values()))):
            wrong.append(Violation("features", "expected an object of numbers, booleans, strings or nulls"))
        rows = body.get("rows")
        if rows is not None and not (isinstance(rows, list) and all(_is_row(row) for row in rows)):
            wrong.append(Violation("rows", "expected a list of lists of numbers, booleans, strings or nulls"))
        discard = body.get("discard_reply", False)
        if not isinstance(discard, bool):
            wrong.append(Violation("discard_reply", f"expected true or false, got {_kind(discard)}"))
        if wrong:
            raise invalid(wrong)
        return cls(
            model_id=model_id,
            version=texts["version"],
            inputs=inputs,
            features=features,
            rows=rows,
            entity_id=texts["entity_id"],
            request_id=texts["request_id"],
            discard_reply=discard,
            replay=texts["replay"],
        )

    @property
    def row_count(self) -> int:
        """Rows that are asked for; one unless they were sent as many."""
        if self.rows is not None:
            return len(self.rows)
        if self.packed is not None:
            return self.packed.matrix.rows if self.packed.WhichOneof("form") == "matrix" else self.packed.columns.rows
        return 1

    def body_sha256(self) -> bytes:
        """SHA-256 of what was asked, the same for every way it can be written: 45 and 45.0, gRPC and JSON."""
        body = [
            self.model_id,
            self.version,
            self.entity_id,
            None if self.inputs is None else [_plain(item) for item in self.inputs],
            {name: _plain(item) for name, item in self.features.items()} if self.features else None,
            None if self.rows is None else [[_plain(item) for item in row] for row in self.rows],
        ]
        if self.replay:
            body.append(self.replay)  # a replay must never be answered with what a real request got
        digest = hashlib.sha256(orjson.dumps(body, option=orjson.OPT_SORT_KEYS, default=str))
        if self.packed is not None:
            digest.update(self.packed.SerializeToString(deterministic=True))
        return digest.digest()

    def check_ids(self) -> list[Violation]:
        """What is wrong with the ids, which become parts of keys, and with the name of the replay."""
        wrong = []
        if self.request_id and not REQUEST_ID.fullmatch(self.request_id):
            wrong.append(Violation("request_id", "expected 1 to 128 printable ASCII characters without spaces"))
        elif self.request_id and STREAM_ID.fullmatch(self.request_id):
            wrong.append(Violation("request_id", "ids of the form 123-4 belong to stream entries; add a letter"))
        if len(self.entity_id.encode()) > ENTITY_ID_BYTES:
            wrong.append(Violation("entity_id", f"expected at most {ENTITY_ID_BYTES} bytes"))
        if self.replay and (
            len(self.replay) > REPLAY_LENGTH or not self.replay.isprintable() or self.replay == EVERY_REPLAY
        ):
            text = f"expected 1 to {REPLAY_LENGTH} printable characters that are not {EVERY_REPLAY} alone"
            wrong.append(Violation("replay", text))
        return wrong


def _row(raw: bytes) -> Request | None:
    """The request in a serialized PredictRequest, read where its fields stand: a message object for it and each value
    takes longer than all else that is done with it.

    None where anything but model, version, numbers by position and the caller's id is in it, or stands in another
    order than they are written in, or is longer than usual; that is protobuf's to read.
    """
    model_id = version = request_id = ""
    at, end = 0, len(raw)
    if end > _ROW_BYTES:
        return None
    inputs: list[Native] = []
    try:
        if raw[0] == _MODEL_ID and raw[1] < 128:
            at = 2 + raw[1]
            model_id = raw[2:at].decode()
        if raw[at] == _VERSION and raw[at + 1] < 128:
            start, at = at + 2, at + 2 + raw[at + 1]
            version = raw[start:at].decode()
        if end - at >= _RUN_BYTES and raw[at] == _INPUT:
            count = _run(raw[at:])
            inputs += _unpacker(count).unpack_from(raw, at)
            at += _NUMBER_BYTES * count
        while at < end and raw[at] == _INPUT:
            size, kind = raw[at + 1], raw[at + 2]
            if kind == _NUMBER and size == 9:
                inputs += _DOUBLE.unpack_from(raw, at + 3)
            elif kind == _INTEGER and 2 <= size <= _INTEGER_BYTES:
                number = _varint(raw[at + 3 : at + 2 + size])
                inputs.append(number >> 1 ^ -(number & 1))
            else:
                return None
            at += 2 + size
        if at < end and raw[at] == _REQUEST_ID and raw[at + 1] < 128:
            start, at = at + 2, at + 2 + raw[at + 1]
            request_id = raw[start:at].decode()
    except (IndexError, ValueError, struct.error):
        return None
    if at != end or not inputs or len(inputs) > MOST_VALUES:
        return None
    return Request(model_id, version, inputs, None, None, None, "", request_id)


def _run(values: bytes) -> int:
    """How many numbers, and nothing else, it begins with."""
    tags, sizes, kinds = values[::_NUMBER_BYTES], values[1::_NUMBER_BYTES], values[2::_NUMBER_BYTES]
    return min(
        len(values) // _NUMBER_BYTES,
        len(tags) - len(tags.lstrip(b"\x1a")),
        len(sizes) - len(sizes.lstrip(b"\x09")),
        len(kinds) - len(kinds.lstrip(b"\x09")),
    )


def _varint(raw: bytes) -> int:
    """An unsigned integer in base 128. Raises ValueError where it does not end where the bytes do."""
    if raw[0] < 128 and len(raw) == 1:
        return raw[0]
    number = 0
    for byte in reversed(raw):
        number = number << 7 | byte & 127
    if raw[-1] > 127 or any(byte < 128 for byte in raw[:-1]):
        raise ValueError("no varint")
    return number


_DOUBLE = struct.Struct("<d")


@lru_cache(maxsize=64)
def _unpacker(count: int) -> struct.Struct:
    return struct.Struct("<" + "3xd" * count)


def _bound(name: str, sent: object, most: int | None, what: str) -> None:
    """Refuses what is longer than anything that could be served. Raises Refused."""
    if most is not None and isinstance(sent, Sized) and not isinstance(sent, str) and len(sent) > most:
        raise invalid([Violation(name, f"expected at most {most} {what}, got {len(sent)}")])


def _is_row(row: object) -> bool:
    return isinstance(row, list) and all(item is None or isinstance(item, float | int | str) for item in row)


def _kind(item: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(item), "a number")


def _plain(item: Native) -> object:
    if isinstance(item, float):
        if item.is_integer() and abs(item) <= _EXACT and not (item == 0 and str(item)[0] == "-"):
            return int(item)
        # orjson writes NaN and infinities as null, which is another request.
        return item if item - item == 0 else str(item)
    if isinstance(item, int) and not isinstance(item, bool) and abs(item) > _EXACT:
        # Whoever writes a float without its point means the same; an integer that no float holds is itself alone.
        return float(item) if abs(item) <= _MOST and int(float(item)) == item else str(item)
    return item


class RequestIds:
    """Ids for requests that brought none: 96 random bits, so that nobody guesses another's."""

    def __init__(self) -> None:
        self._pool: list[str] = []

    def next(self) -> str:
        while not self._pool:
            # One system call for many ids.
            raw = base64.urlsafe_b64encode(os.urandom(12 * 256)).decode()
            # On a command line a leading "-" would make an option of it.
            self._pool = [raw[start : start + 16] for start in range(0, len(raw), 16) if raw[start] != "-"]
        return self._pool.pop()
