"""Events as columns, whatever they are made of: parsed, and read field by field.

Reading a field of a message is what costs. What nearly all events are made of is not parsed (sliced.py), and comes to
the same columns as here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from consumers.sink.exact import COMPUTED, Gathered, exact_column
from consumers.sink.schema import TIMES, lane_name, status_name
from consumers.sink.values import write_all_inputs, write_all_outputs
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

Column = NDArray[Any]
Columns = dict[str, Column | str | bytes | int | None]
"""An array with a value for each event, or one that all of them have."""

Names = Callable[[str, bytes], Sequence[str]]
"""(model_id, version digest) -> feature names in index order; empty where they are not known."""

_ORIGINS = {wire.REQUEST: "request", wire.REDIS: "redis", wire.FILE: "file", wire.DEFAULT: "default"}


def parsed_columns(
    model_id: str, header: wire.Header, events: Sequence[wire.Event], pieces: Sequence[bytes], names: Names
) -> Columns:
    """All columns that these events of one link say; at least one event.

    `pieces` are their bytes as they stood in the stream.
    """
    serialized = [_known(event) for event in events]
    # All of them merged into one: a field that is unset in it is unset in each, so that fields which few events have
    # are read only where there are any. https://protobuf.dev/programming-guides/encoding/#last-one-wins
    some = wire.Event.FromString(b"".join(serialized))
    some_entry = some.entry
    entries = [event.entry for event in events]
    responses = [event.response for event in events]
    statuses = [event.status for event in events]
    kinds = set(statuses)
    inputs = write_all_inputs(entries)
    outputs = write_all_outputs(responses)
    asked = [entry.user_request_us for entry in entries]
    request_ids = [entry.request_id for entry in entries]
    versions = [entry.version for entry in entries]
    digests = [entry.digest for entry in entries]
    one_version = set(versions) == {header.version} and set(digests) == {header.digest}
    gathered = Gathered(
        model_id, header, events, entries, responses, statuses, request_ids, versions, digests, asked, some
    )
    columns: Columns = {
        "user_request_timestamp": _integers(asked),
        "inputs": texts(inputs.texts),
        "predicted_at_timestamp": header.predicted_us if kinds <= COMPUTED else _integers(gathered.predicted()),
        "outputs": texts(outputs.texts),
        "status": status_name(statuses[0]) if len(kinds) == 1 else texts(list(map(status_name, statuses))),
        "request_id": texts(request_ids),
        "version": header.version or None
        if one_version
        else texts([version or header.version or None for version in versions]),
        "digest": header.digest.hex() or None
        if one_version
        else texts([(digest or header.digest).hex() or None for digest in digests]),
        "lane": texts([lane_name(event.lane) for event in events]) if some.lane else lane_name(0),
        "deliveries": _integers([event.deliveries for event in events]),
        "admitted_timestamp": _integers([entry.admitted_us for entry in entries]),
        "delivered_timestamp": _integers([event.delivered_us for event in events]),
        "deadline_timestamp": _integers([entry.deadline_us for entry in entries]) if some_entry.deadline_us else 0,
        "entry_id": texts([event.entry_id or None for event in events]),
        "batch_position": _integers([event.batch_position for event in events]) if some.batch_position else 0,
        "rows": _integers(inputs.rows),
        "inputs_form": texts(inputs.forms),
        "outputs_form": texts(outputs.forms),
        "degraded": _flags([entry.degraded for entry in entries]) if some_entry.degraded else False,
        "packed": _flags([entry.packed for entry in entries]) if some_entry.packed else False,
        "discard_reply": _flags([entry.discard_reply for entry in entries]) if some_entry.discard_reply else False,
        "reply_ttl_s": _integers([entry.reply_ttl_s for entry in entries]) if some_entry.reply_ttl_s else 0,
    }
    if some_entry.entity_id:
        columns["entity_id"] = texts([entry.entity_id or None for entry in entries])
    if some_entry.hydrated:
        columns["origins"] = texts([origins(model_id, entry, header.digest, names) for entry in entries])
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
    times = [
        column if isinstance(column := columns[name], np.ndarray) else np.full(len(events), column, dtype=np.int64)
        for name in TIMES
    ]
    odd = gathered.odd((inputs.lossy, outputs.lossy), times)
    exact = exact_column(odd, serialized, pieces)
    if exact is not None:
        columns["exact"] = exact
    return columns


def texts(values: Sequence[str | bytes | None]) -> Column:
    """A column of texts or of bytes."""
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def _integers(values: Sequence[int]) -> Column:
    return np.array(values, dtype=np.int64)


def _flags(values: Sequence[bool]) -> Column:
    return np.array(values, dtype=np.bool_)


def _known(event: wire.Event) -> bytes:
    """The canonical bytes of what this version knows of an event: no column has what it does not know."""
    event.DiscardUnknownFields()
    return event.SerializeToString(deterministic=True)


def origins(model_id: str, entry: wire.Entry, digest: bytes, names: Names) -> str | None:
    """Feature name -> where its value came from, for what the caller did not send. `digest` is that of the header."""
    hydrated = entry.hydrated
    if not hydrated:
        return None
    known = names(model_id, entry.digest or digest)
    found = {
        known[h.index] if h.index < len(known) else str(h.index): _ORIGINS.get(h.origin, str(h.origin))
        for h in hydrated
    }
    return orjson.dumps(found).decode()


def _hydrated(entry: wire.Entry) -> bytes | None:
    """The `Hydrated` fields of an entry, as bytes."""
    hydrated = entry.hydrated
    return wire.Entry(hydrated=hydrated).SerializeToString(deterministic=True) if hydrated else None


def _errors(responses: Sequence[v1.PredictResponse]) -> Columns:
    """Why requests have no answer."""
    reason, message, violations, code = (np.full(len(responses), None, dtype=object) for _ in range(4))
    for row, response in enumerate(responses):
        if response.HasField("error"):
            error = response.error
            reason[row], message[row], code[row] = error.reason or None, error.message or None, error.code
            listed = [{"field": v.field, "description": v.description} for v in error.violations]
            violations[row] = orjson.dumps(listed).decode() if listed else None
    return {"error_reason": reason, "error_message": message, "error_violations": violations, "error_code": code}
