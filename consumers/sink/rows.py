"""Events as columns: what one transaction of the sink inserts.

    stream entry (n, pb)  ->  Link: a numpy array for each column  ->  many of them joined  ->  INSERT

Column by column and not row by row, since that is what costs least in Python and what DuckDB reads fastest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import orjson
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from consumers.sink.schema import TIMES, lane_name, status_name
from consumers.sink.values import WrittenRows, write_all_inputs, write_all_outputs
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

Column = NDArray[Any]

Names = Callable[[str, bytes], Sequence[str]]
"""(model_id, version digest) -> feature names in index order; empty where they are not known."""

_FIRST_US, _LAST_US = -62_135_596_800_000_000, 253_402_300_800_000_000
"""The years 1 to 9999; a time outside of them is none."""

_ORIGINS = {wire.REQUEST: "request", wire.REDIS: "redis", wire.FILE: "file", wire.DEFAULT: "default"}
_PREDICTED = frozenset((wire.OK, wire.SHADOW))


def no_names(_model_id: str, _digest: bytes) -> Sequence[str]:
    """For where no catalogue can be asked."""
    return ()


class MalformedLink(ValueError):
    """An entry of an events stream that can't be read; the message says what was expected and what came."""


def _merging_batch() -> type[Message]:
    """EventBatch with one event instead of many: the same bytes parse as both, and here the events merge.

    https://protobuf.dev/programming-guides/encoding/#last-one-wins
    """
    label, kind = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.TYPE_MESSAGE
    event = FieldDescriptorProto(
        name="event", number=2, label=label, type=kind, type_name=f".{wire.Event.DESCRIPTOR.full_name}"
    )
    file = FileDescriptorProto(
        name="consumers/merging_batch.proto",
        package="millstream.sink.v1",
        dependency=[wire.DESCRIPTOR.name],
        syntax="proto3",
        message_type=[DescriptorProto(name="MergingBatch", field=[event])],
    )
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    return GetMessageClass(pool.FindMessageTypeByName("millstream.sink.v1.MergingBatch"))


_MergingBatch = _merging_batch()


def _merged(raw: bytes) -> wire.Event:
    merged: Any = _MergingBatch.FromString(raw)
    event: wire.Event = merged.event
    return event


@dataclass(frozen=True, slots=True)
class Link:
    """One entry of an events stream: the events of one call of the exit, as columns."""

    model_id: str
    entry_id: str
    number: int
    """The model's running number after this entry."""
    events: int
    size: int
    """Bytes it had in the stream."""
    columns: Mapping[str, Column]
    """Without those that none of its events has."""

    def column(self, name: str) -> Column:
        """One value for each event, None where it has none."""
        found = self.columns.get(name)
        return np.full(self.events, None, dtype=object) if found is None else found

    @classmethod
    def decode(cls, model_id: str, entry_id: str, fields: Mapping[bytes, bytes], names: Names = no_names) -> Self:
        """Raises MalformedLink."""
        number = read_number(fields)
        if number is None:
            raise MalformedLink(f"expected a running number in field n, got {fields.get(b'n', b'nothing')[:40]!r}")
        raw = fields.get(b"pb")
        if raw is None:
            raise MalformedLink("expected an EventBatch in field pb, got no such field")
        try:
            batch = wire.EventBatch.FromString(raw)
            merged = _merged(raw)
        except DecodeError:
            raise MalformedLink(f"expected an EventBatch in field pb, got {len(raw)} bytes that are none") from None
        if not batch.events:
            raise MalformedLink("expected at least one event in field pb, got none")
        events = list(batch.events)
        columns = _columns(model_id, entry_id, batch.header, events, merged, names)
        columns["number"] = np.arange(number - len(events) + 1, number + 1, dtype=np.int64)
        return cls(model_id, entry_id, number, len(events), len(raw), columns)

    def without(self, rows: frozenset[int]) -> Self:
        """The same with these of its events left out."""
        keep = np.array([row not in rows for row in range(self.events)], dtype=np.bool_)
        columns = {name: column[keep] for name, column in self.columns.items()}
        return replace(self, events=self.events - len(rows), columns=columns)


def joined(links: Sequence[Link], first_sequence: int) -> dict[str, Column]:
    """The rows of these links, at least one of them, numbered on from `first_sequence`."""
    columns = {
        name: np.concatenate([link.column(name) for link in links])
        for name in {name: None for link in links for name in link.columns}
    }
    for name in TIMES:
        micros = columns[name]
        columns[name] = np.where((micros > _FIRST_US) & (micros < _LAST_US), micros, 0)
    columns["sequence"] = np.arange(first_sequence, first_sequence + len(columns["number"]), dtype=np.int64)
    return columns


def read_number(fields: Mapping[bytes, bytes]) -> int | None:
    """The running number of an entry, where it has one that a Redis counter can hold."""
    raw = fields.get(b"n", b"")
    return int(raw) if raw.isdigit() and len(raw) < 19 else None


def _columns(
    model_id: str, entry_id: str, header: wire.Header, events: Sequence[wire.Event], some: wire.Event, names: Names
) -> dict[str, Column]:
    """All gathered columns but the numbers.

    `some` is all events merged into one: a field that is unset in it is unset in each, so that fields which few events
    have are read only where there are any. Reading is what costs.
    """
    some_entry = some.entry
    count = len(events)
    entries = [event.entry for event in events]
    responses = [event.response for event in events]
    statuses = [event.status for event in events]
    all_ok = set(statuses) == {wire.OK}
    inputs = write_all_inputs(entries)
    outputs = write_all_outputs(responses)
    zeros, false = np.zeros(count, np.int64), np.zeros(count, np.bool_)

    def same(value: str) -> Column:
        return np.full(count, value or None, dtype=object)

    def texts(values: Sequence[str | bytes | None]) -> Column:
        column = np.empty(count, dtype=object)
        column[:] = values
        return column

    def integers(values: Sequence[int]) -> Column:
        return np.array(values, dtype=np.int64)

    def flags(values: Sequence[bool]) -> Column:
        return np.array(values, dtype=np.bool_)

    asked = [entry.user_request_us for entry in entries]
    request_ids = [entry.request_id for entry in entries]
    versions = [entry.version for entry in entries]
    digests = [entry.digest for entry in entries]
    one_version = set(versions) == {header.version} and set(digests) == {header.digest}
    plain = (
        one_version
        and 0 not in asked
        and not (any(inputs.lossy) or any(outputs.lossy))
        and request_ids == [response.request_id for response in responses]
    )
    columns = {
        "model_id": same(model_id),
        "user_request_timestamp": integers(asked),
        "inputs": texts(inputs.texts),
        "predicted_at_timestamp": np.full(count, header.predicted_us, dtype=np.int64)
        if all_ok
        else integers([_predicted_us(header, event) for event in events]),
        "outputs": texts(outputs.texts),
        "status": same("OK") if all_ok else texts([status_name(status) for status in statuses]),
        "request_id": texts(request_ids),
        "version": same(header.version)
        if one_version
        else texts([version or header.version or None for version in versions]),
        "digest": same(header.digest.hex())
        if one_version
        else texts([(digest or header.digest).hex() or None for digest in digests]),
        "lane": texts([lane_name(event.lane) for event in events]) if some.lane else same(lane_name(0)),
        "worker": same(header.worker),
        "deliveries": integers([event.deliveries for event in events]),
        "admitted_timestamp": integers([entry.admitted_us for entry in entries]),
        "delivered_timestamp": integers([event.delivered_us for event in events]),
        "deadline_timestamp": integers([entry.deadline_us for entry in entries]) if some_entry.deadline_us else zeros,
        "entry_id": texts([event.entry_id or None for event in events]),
        "event_entry_id": same(entry_id),
        "batch_id": same(header.batch_id),
        "batch_rows": np.full(count, header.batch_rows, dtype=np.int64),
        "batch_position": integers([event.batch_position for event in events]) if some.batch_position else zeros,
        "rows": integers(inputs.rows),
        "inputs_form": texts(inputs.forms),
        "outputs_form": texts(outputs.forms),
        "engine": same(header.engine),
        "runtime_id": same(header.runtime_id),
        "degraded": flags([entry.degraded for entry in entries]) if some_entry.degraded else false,
        "packed": flags([entry.packed for entry in entries]) if some_entry.packed else false,
        "discard_reply": flags([entry.discard_reply for entry in entries]) if some_entry.discard_reply else false,
        "reply_ttl_s": integers([entry.reply_ttl_s for entry in entries]) if some_entry.reply_ttl_s else zeros,
    }
    if some_entry.entity_id:
        columns["entity_id"] = texts([entry.entity_id or None for entry in entries])
    if some_entry.hydrated:
        columns["origins"] = texts([_origins(model_id, entry, header.digest, names) for entry in entries])
    if some_entry.caller:
        columns["caller"] = texts([entry.caller or None for entry in entries])
    if some_entry.trace:
        columns["trace"] = texts([entry.trace or None for entry in entries])
    if some_entry.body_sha256:
        columns["body_sha256"] = texts([entry.body_sha256 or None for entry in entries])
    if some.refused_body:
        columns["refused_body"] = texts([event.refused_body or None for event in events])
    if some_entry.gateway:
        columns["gateway"] = texts([entry.gateway or None for entry in entries])
    if not plain:
        columns["exact"] = texts(_exact(header, events, inputs, outputs))
    if some.response.HasField("error"):
        columns.update(_errors(responses))
    return columns


def _predicted_us(header: wire.Header, event: wire.Event) -> int:
    """When the predict call of this event ended; the header's time is not that of one which was never computed."""
    if event.status in _PREDICTED:
        return header.predicted_us
    return event.response.predicted_at_timestamp.ToMicroseconds()


def _exact(
    header: wire.Header, events: Sequence[wire.Event], inputs: WrittenRows, outputs: WrittenRows
) -> list[bytes | None]:
    """The serialized event where its columns alone do not say what it held."""
    shared = (header.version, header.digest)
    return [
        event.SerializeToString()
        if lossy_inputs
        or lossy_outputs
        or not (entry := event.entry).user_request_us
        or (entry.version, entry.digest) != shared
        or entry.request_id != event.response.request_id
        else None
        for event, lossy_inputs, lossy_outputs in zip(events, inputs.lossy, outputs.lossy, strict=True)
    ]


def _errors(responses: Sequence[v1.PredictResponse]) -> dict[str, Column]:
    """Why requests have no answer."""
    reason, message, violations, code = (np.full(len(responses), None, dtype=object) for _ in range(4))
    for row, response in enumerate(responses):
        if response.HasField("error"):
            error = response.error
            reason[row], message[row], code[row] = error.reason or None, error.message or None, error.code
            listed = [{"field": v.field, "description": v.description} for v in error.violations]
            violations[row] = orjson.dumps(listed).decode() if listed else None
    return {"error_reason": reason, "error_message": message, "error_violations": violations, "error_code": code}


def _origins(model_id: str, entry: wire.Entry, digest: bytes, names: Names) -> str | None:
    """Feature name -> where its value came from, for what the caller did not send."""
    hydrated = entry.hydrated
    if not hydrated:
        return None
    known = names(model_id, entry.digest or digest)
    origins = {
        known[h.index] if h.index < len(known) else str(h.index): _ORIGINS.get(h.origin, str(h.origin))
        for h in hydrated
    }
    return orjson.dumps(origins).decode()
