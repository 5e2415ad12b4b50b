"""Events as columns: what one transaction of the sink inserts.

    stream entry (n, pb)  ->  Link: a numpy array for each column  ->  many of them joined  ->  INSERT

Column by column and not row by row, since that is what costs least in Python and what DuckDB reads fastest.

From a row alone the event's bytes can be built again (consumers/audit/rebuild.py). Where its columns do not give every
byte, `exact` has them all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import orjson
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from consumers.audit import chain
from consumers.audit.canonical import PREDICTED, join_header
from consumers.sink.exact import COMPUTED, FIRST_US, LAST_US, Gathered, exact_column
from consumers.sink.merging import merged
from consumers.sink.pieces import cut
from consumers.sink.schema import TIMES, lane_name, status_name
from consumers.sink.values import write_all_inputs, write_all_outputs
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

Column = NDArray[Any]

Names = Callable[[str, bytes], Sequence[str]]
"""(model_id, version digest) -> feature names in index order; empty where they are not known."""

_ORIGINS = {wire.REQUEST: "request", wire.REDIS: "redis", wire.FILE: "file", wire.DEFAULT: "default"}


def no_names(_model_id: str, _digest: bytes) -> Sequence[str]:
    """For where no catalogue can be asked."""
    return ()


class MalformedLink(ValueError):
    """An entry of an events stream that can't be read; the message says what was expected and what came."""


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
    header: bytes
    """As it stood in the stream."""
    digests: tuple[bytes, ...]
    """Of each event, as it stood in the stream."""

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
            # No column has what this version does not know.
            batch.DiscardUnknownFields()
            canonical = batch.SerializeToString(deterministic=True)
            some = merged(canonical)
            pieces = cut(raw)
        except (DecodeError, ValueError):
            raise MalformedLink(f"expected an EventBatch in field pb, got {len(raw)} bytes that are none") from None
        if not batch.events:
            raise MalformedLink("expected at least one event in field pb, got none")
        events = list(batch.events)
        if len(pieces.events) != len(events):
            text = f"expected the bytes of {len(events)} events in field pb, found those of {len(pieces.events)}"
            raise MalformedLink(text)
        columns, odd = _columns(model_id, entry_id, batch.header, events, some, names)
        columns["number"] = np.arange(number - len(events) + 1, number + 1, dtype=np.int64)
        exact = exact_column(odd, events, pieces.events, canonical=canonical == raw)
        if exact is not None:
            columns["exact"] = exact
        digests = tuple([chain.digest(piece) for piece in pieces.events])
        return cls(model_id, entry_id, number, len(events), len(raw), columns, pieces.header, digests)

    def without(self, rows: frozenset[int]) -> Self:
        """The same with these of its events left out."""
        keep = np.array([row not in rows for row in range(self.events)], dtype=np.bool_)
        columns = {name: column[keep] for name, column in self.columns.items()}
        digests = tuple([each for row, each in enumerate(self.digests) if row not in rows])
        return replace(self, events=self.events - len(rows), columns=columns, digests=digests)

    def numbered(self, first: int) -> Self:
        """The same with its events numbered on from `first`."""
        numbers = np.arange(first, first + self.events, dtype=np.int64)
        return replace(self, columns={**self.columns, "number": numbers})

    def after(self, before: bytes) -> bytes:
        """The chain's value after it."""
        return chain.link(
            before, self.entry_id, self.header, zip(self.columns["number"].tolist(), self.digests, strict=True)
        )


def chained(links: Sequence[Link], before: Mapping[str, bytes]) -> tuple[list[bytes], dict[str, bytes]]:
    """The chain's value after each of these links, and after the last one of each model.

    `before` has the value that a model's chain goes on from, where it has one.
    """
    values: list[bytes] = []
    last: dict[str, bytes] = {}
    for link in links:
        model_id = link.model_id
        last[model_id] = link.after(last.get(model_id) or before.get(model_id, chain.BEGINNING))
        values.append(last[model_id])
    return values, last


def joined(links: Sequence[Link], first_sequence: int, chains: Sequence[bytes]) -> dict[str, Column]:
    """The rows of these links, at least one of them, numbered on from `first_sequence`.

    `chains` has the chain's value after each link.
    """
    columns = {
        name: np.concatenate([link.column(name) for link in links])
        for name in {name: None for link in links for name in link.columns}
    }
    for name in TIMES:
        micros = columns[name]
        columns[name] = np.where((micros > FIRST_US) & (micros < LAST_US), micros, 0)
    count = len(columns["number"])
    columns["sequence"] = np.arange(first_sequence, first_sequence + count, dtype=np.int64)
    columns["chain"] = np.full(count, None, dtype=object)
    stop = 0
    for link, value in zip(links, chains, strict=True):
        start, stop = stop, stop + link.events
        columns["chain"][stop - 1] = value
        if link.header != _header(columns, start, stop):
            exact_headers = columns.setdefault("exact_header", np.full(count, None, dtype=object))
            exact_headers[stop - 1] = link.header
    return columns


def _header(columns: Mapping[str, Column], start: int, stop: int) -> bytes:
    """The header that these rows give."""
    last = stop - 1
    predicted, statuses = 0, columns["status"]
    for row in range(last, start - 1, -1):
        if statuses[row] in PREDICTED:
            predicted = int(columns["predicted_at_timestamp"][row])
            break
    return join_header(
        columns["model_id"][last],
        columns["version"][last],
        columns["digest"][last],
        columns["worker"][last],
        columns["batch_id"][last],
        int(columns["batch_rows"][last]),
        columns["engine"][last],
        columns["runtime_id"][last],
        predicted,
    )


def read_number(fields: Mapping[bytes, bytes]) -> int | None:
    """The running number of an entry, where it has one that a Redis counter can hold."""
    raw = fields.get(b"n", b"")
    return int(raw) if raw.isdigit() and len(raw) < 19 else None


def _columns(
    model_id: str, entry_id: str, header: wire.Header, events: Sequence[wire.Event], some: wire.Event, names: Names
) -> tuple[dict[str, Column], set[int]]:
    """All gathered columns but the numbers and `exact`; and the rows in which they do not say everything.

    `some` is all events merged into one: a field that is unset in it is unset in each, so that fields which few events
    have are read only where there are any. Reading is what costs.
    """
    some_entry = some.entry
    count = len(events)
    entries = [event.entry for event in events]
    responses = [event.response for event in events]
    statuses = [event.status for event in events]
    kinds = set(statuses)
    all_ok = kinds == {wire.OK}
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
    gathered = Gathered(
        model_id, header, events, entries, responses, statuses, request_ids, versions, digests, asked, some
    )
    columns = {
        "model_id": same(model_id),
        "user_request_timestamp": integers(asked),
        "inputs": texts(inputs.texts),
        "predicted_at_timestamp": np.full(count, header.predicted_us, dtype=np.int64)
        if kinds <= COMPUTED
        else integers(gathered.predicted()),
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
        columns["hydrated"] = texts([_hydrated(entry) for entry in entries])
    if some_entry.caller:
        columns["caller"] = texts([entry.caller or None for entry in entries])
    if some_entry.trace:
        columns["trace"] = texts([entry.trace or None for entry in entries])
    if some_entry.replay:
        columns["replay"] = texts([entry.replay or None for entry in entries])
    if some_entry.body_sha256:
        columns["body_sha256"] = texts([entry.body_sha256 or None for entry in entries])
    if some.refused_body:
        columns["refused_body"] = texts([event.refused_body or None for event in events])
    if some_entry.gateway:
        columns["gateway"] = texts([entry.gateway or None for entry in entries])
    if some.response.HasField("error"):
        columns.update(_errors(responses))
    return columns, gathered.odd((inputs.lossy, outputs.lossy), [columns[name] for name in TIMES])


def _hydrated(entry: wire.Entry) -> bytes | None:
    """The `Hydrated` fields of an entry, as bytes."""
    hydrated = entry.hydrated
    return wire.Entry(hydrated=hydrated).SerializeToString(deterministic=True) if hydrated else None


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
