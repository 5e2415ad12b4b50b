"""Recorded requests: the last ones that a version answered, from the event log, as another version would admit them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import grpc
import orjson

from contract.admission import Admission, Draft
from contract.errors import Refused
from contract.request import Native, Request
from contract.signature_parts import Feature, Value
from protos import millstream_v1_pb2 as v1
from protos import millstream_v1_pb2_grpc as rpc

READY_S = 5.0
"""A sink that starts at the same moment is waited for so long."""
WITHIN_S = 30.0
MOST_BYTES = 2**23
"""Of inputs and outputs together, as JSON; what is older is left out."""
_MESSAGE_BYTES = 64 * 2**20


class NoEventLog(Exception):
    """The event log did not answer; the message says how."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One row that was answered."""

    inputs: Sequence[Native]
    """In the order of the features of the version that answered."""
    outputs: Mapping[str, Value]


async def recorded_rows(address: str, model_id: str, version: str, digest: str, most: int) -> list[Recorded]:
    """The last rows that a version answered in real requests, the newest first. Raises NoEventLog.

    Of a request with more rows than are wanted the first ones are taken.
    """
    rows: list[Recorded] = []
    size = 0
    # More than are wanted: some were erased, or are of another version of that name.
    query = v1.EventQuery(model_id=model_id, version=version, status="OK", limit=2 * most)
    options = (("grpc.max_receive_message_length", _MESSAGE_BYTES), ("grpc.enable_http_proxy", 0))
    try:
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            with anyio.fail_after(READY_S):
                await channel.channel_ready()
            call: Any = rpc.EventLogStub(channel).Query(query, timeout=WITHIN_S)
            async for event in call:
                length = len(event.inputs_json) + len(event.outputs_json)
                if length > MOST_BYTES:
                    continue  # no single request may stand for all others
                size += length
                if size > MOST_BYTES or len(rows) >= most:
                    call.cancel()
                    break
                if not event.replay and event.digest == digest and not event.HasField("erased_at"):
                    rows += _rows(event)
    except TimeoutError:
        raise NoEventLog(f"the event log at {address} does not answer") from None
    except grpc.aio.AioRpcError as error:
        late = "" if error.code() == grpc.StatusCode.UNAVAILABLE else f": {error.details()}"
        raise NoEventLog(f"the event log at {address} does not answer{late}") from None
    except ValueError as error:
        raise NoEventLog(f"the event log at {address} answered what can't be read: {error}") from None
    return rows[:most]


def _rows(event: v1.ModelEvent) -> list[Recorded]:
    """The rows of one event; none where it lacks inputs or outputs, such as one that was erased. Raises ValueError."""
    if not event.inputs_json or not event.outputs_json:
        return []
    inputs, outputs = orjson.loads(event.inputs_json), orjson.loads(event.outputs_json)
    if not isinstance(inputs, list) or not isinstance(outputs, list):
        return []
    return [Recorded(row, answer) for row, answer in zip(inputs, outputs, strict=False)]


@dataclass(frozen=True, slots=True)
class Fitting:
    """Recorded rows as a version takes them."""

    rows: v1.Rows
    """Those that it admits."""
    then: list[Mapping[str, Value]]
    """What was answered to each of these."""
    unfit: int
    """How many others there are."""
    why: str
    """Why the first of those is not admitted."""


def fitting(admission: Admission, features: Sequence[Feature], recorded: Sequence[Recorded]) -> Fitting:
    """Recorded rows, by the names of their features, through the admission of the version that is to answer them.

    `features` are those of the version that answered. A feature that is new takes its default: what is stored for an
    entity now says nothing of then.
    """
    admitted: list[v1.Matrix | v1.Columns] = []
    then: list[Mapping[str, Value]] = []
    why = ""
    for each in recorded:
        try:
            pairs = zip(features, each.inputs, strict=True)
            named = {feature.name: _as_sent(feature, value) for feature, value in pairs}
            draft = admission.draft(Request(admission.signature.model_id, features=named))
            admitted.append((draft.complete({}) if isinstance(draft, Draft) else draft).rows)
            then.append(each.outputs)
        except Refused as refused:
            first = next(iter(refused.violations), None)
            why = why or (f"{first.field}: {first.description}" if first else str(refused))
        except ValueError:
            why = why or f"{len(each.inputs)} features are recorded; the version that answered has {len(features)}"
    return Fitting(_joined(admitted), then, len(recorded) - len(then), why)


def _as_sent(feature: Feature, value: Native) -> Native:
    """What stood in a row of numbers alone: there integers and booleans are float64."""
    if isinstance(value, float) and feature.type in ("int", "bool"):
        return bool(value) if feature.type == "bool" else int(value)
    return value


def _joined(parts: Sequence[v1.Matrix | v1.Columns]) -> v1.Rows:
    """Single rows as one message."""
    matrices = [part for part in parts if isinstance(part, v1.Matrix)]
    if matrices:
        return v1.Rows(matrix=v1.Matrix(rows=len(parts), float64=b"".join(each.float64 for each in matrices)))
    joined = v1.Columns(rows=len(parts))
    for row, part in enumerate(parts):
        if isinstance(part, v1.Columns):
            for place, column in enumerate(part.columns):
                if row == 0:
                    joined.columns.add()
                whole = joined.columns[place]
                kind = str(column.WhichOneof("kind"))
                getattr(whole, kind).values.extend(getattr(column, kind).values)
                whole.nulls.extend(row for _ in column.nulls)
    return v1.Rows(columns=joined)
