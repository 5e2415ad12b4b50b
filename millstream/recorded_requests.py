"""Recorded requests as they are asked again: rows of an event log, oldest first, as messages with every feature.

row of the log  ->  its inputs to the last bit  ->  PredictRequest: one row by position, or as many as there were

What was fetched or filled in then is sent along, so that the stored features of today change nothing.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import duckdb
import numpy as np

from consumers.model.rows import Rows
from consumers.replay.calls import Selection
from consumers.replay.recorded import RecordedEvent, Unreadable, count
from contract.request import Native, value_of
from loadgen.replay import Recorded
from protos import millstream_v1_pb2 as v1

Features = Sequence[v1.FeatureSpec]
FeaturesOf = Callable[[str, str], Features | None]
"""(model_id, version, empty for the live one) -> its features; None where the model or version is not served."""

_TEXTS = ("model_id", "request_id", "status", "version", "digest", "entity_id")
_CHUNK = 500


class RecordedRequests:
    """An iterable over everything that was asked for, once; what can't be asked again is counted and left out."""

    def __init__(
        self,
        connection: duckdb.DuckDBPyConnection,
        selection: Selection,
        features_of: FeaturesOf,
        *,
        limit: int = 0,
        pin: bool = False,
    ) -> None:
        self._connection = connection
        self._selection = selection
        self._features_of = features_of
        self._limit = limit
        self._pin = pin
        self._cursor = connection.cursor()
        self._interrupted = False
        self._features: dict[tuple[str, str], Features | None] = {}
        self.left_out: Counter[str] = Counter()
        """Why -> how many."""

    def count(self) -> int:
        """How many were asked for, those among them that will be left out too. Raises duckdb.Error."""
        where, parameters = self._where()
        found = self._connection.execute(f"SELECT count(*) FROM events WHERE {where}", parameters).fetchall()  # noqa: S608
        events = int(found[0][0])
        return min(events, self._limit or events)

    def __iter__(self) -> Iterator[Recorded]:
        """Ends early once it is interrupted. Raises duckdb.Error."""
        try:
            yield from self._read()
        except duckdb.InterruptException:
            if not self._interrupted:
                raise

    def interrupt(self) -> None:
        """Ends the reading, of whichever thread: sorting a large log takes its time."""
        self._interrupted = True
        self._cursor.interrupt()

    def _read(self) -> Iterator[Recorded]:
        where, parameters = self._where()
        texts = ", ".join(f"coalesce({name}, '')" for name in _TEXTS)
        sql = (
            f"SELECT {texts}, sequence, number, coalesce(rows, 0), coalesce(packed, false), "  # noqa: S608
            "coalesce(epoch_us(user_request_timestamp), 0), erased_at IS NOT NULL, coalesce(error_reason, ''), "
            f"CAST(inputs AS VARCHAR), inputs_form, CAST(outputs AS VARCHAR), exact FROM events WHERE {where} "
            "ORDER BY user_request_timestamp, sequence" + (f" LIMIT {self._limit:d}" if self._limit else "")
        )
        rows = self._cursor.execute(sql, parameters)
        first_us = None
        while found := rows.fetchmany(_CHUNK):
            for row in found:
                event, packed = _event(row)
                first_us = event.asked_us if first_us is None else first_us
                if (request := self._request(event, packed=packed)) is not None:
                    yield Recorded((event.asked_us - first_us) / 1e6, request, self._answer(event))

    def _where(self) -> tuple[str, list[Any]]:
        where, parameters = self._selection.where()
        # A shadow's copy is the same request once more.
        return (where if self._selection.status else f"{where} AND status <> 'SHADOW'"), parameters

    def _request(self, event: RecordedEvent, *, packed: bool) -> v1.PredictRequest | None:
        try:
            if event.is_erased:
                raise Unreadable("its inputs were erased")
            if event.inputs_text is None and not event.exact:
                raise Unreadable("it was refused, so there are no inputs")
            then, now = self._served(event.model_id, event.version), self._served(event.model_id, "")
            if now is None:
                raise Unreadable(f"no model {event.model_id} is served there")
            if self._pin and then is None:
                raise Unreadable(f"version {event.version} of {event.model_id} is not served there any more")
            # Where the version is gone nobody can say which features it had: as many as the live one has, then.
            alike = self._pin or then is None or _shape(then) == _shape(now)
            request = v1.PredictRequest(
                model_id=event.model_id, version=event.version if self._pin else "", entity_id=event.entity_id
            )
            _fill(request, event.inputs(), then or now, packed=packed, by_name=not alike)
        except Unreadable as why:
            self.left_out[_plain(why)] += 1
            return None
        return request

    def _answer(self, event: RecordedEvent) -> Sequence[dict[str, Native]]:
        try:
            return [dict(row) for row in event.outputs()] if event.was_predicted else []
        except Unreadable:
            return []

    def _served(self, model_id: str, version: str) -> Features | None:
        key = (model_id, version)
        if key not in self._features:
            self._features[key] = self._features_of(model_id, version)
        return self._features[key]


def _event(row: Sequence[Any]) -> tuple[RecordedEvent, bool]:
    model_id, request_id, status, version, digest, entity_id, sequence, number, rows, packed, asked_us, *rest = row
    is_erased, error, inputs_text, inputs_form, outputs_text, exact = rest
    event = RecordedEvent(
        sequence=sequence, model_id=model_id, number=number, request_id=request_id, status=status, version=version,
        digest=digest, engine="", runtime_id="", batch_id="", batch_rows=0, position=0, rows=rows, asked_us=asked_us,
        entity_id=entity_id, is_erased=is_erased, error=error, wanted=True, inputs_text=inputs_text,
        inputs_form=inputs_form, outputs_text=outputs_text, exact=exact,
    )  # fmt: skip
    return event, packed


def _shape(features: Features) -> list[tuple[str, str]]:
    return [(feature.name, feature.type) for feature in features]


def _plain(why: Unreadable) -> str:
    """Without the event's number, so that reasons can be counted."""
    text = str(why)
    return "its inputs do not fit together" if text.startswith("inputs of event") else text


def _fill(request: v1.PredictRequest, rows: Rows, features: Features, *, packed: bool, by_name: bool) -> None:
    """Puts the rows into the form that they were sent in. Raises Unreadable."""
    width = rows.shape[1] if isinstance(rows, np.ndarray) else len(rows)
    if width != len(features):
        raise Unreadable(f"it has {width} features, and what is served takes {len(features)}")
    if packed or count(rows) != 1:
        if by_name:
            raise Unreadable("it has many rows, and the version that is live takes other features")
        request.rows.CopyFrom(_packed(rows))
        return
    values = [_value(column[0], feature) for column, feature in zip(_columns(rows), features, strict=True)]
    if by_name:
        for feature, value in zip(features, values, strict=True):
            request.features[feature.name].CopyFrom(value_of(value))
    else:
        request.inputs.extend(map(value_of, values))


def _columns(rows: Rows) -> Sequence[Any]:
    return list(rows.T) if isinstance(rows, np.ndarray) else rows


def _value(item: Any, feature: v1.FeatureSpec) -> Native:
    """One value in the feature's type: a matrix has floats alone."""
    value: Native = item.item() if hasattr(item, "item") else item
    if isinstance(value, float):
        if math.isnan(value):
            return None
        if feature.type == "bool":
            return value != 0
        if feature.type == "int":
            return int(value)
    return value


def _packed(rows: Rows) -> v1.Rows:
    if isinstance(rows, np.ndarray):
        return v1.Rows(matrix=v1.Matrix(rows=len(rows), float64=rows.astype("<f8").tobytes()))
    columns = v1.Columns(rows=count(rows))
    for items in rows:
        column = columns.columns.add()
        if not isinstance(items, np.ndarray):
            column.strings.values.extend(item or "" for item in items)
            column.nulls.extend(row for row, item in enumerate(items) if item is None)
        elif items.dtype == np.bool_:
            column.booleans.values.extend(items.tolist())
        elif items.dtype == np.int64:
            column.integers.values.extend(items.tolist())
        else:
            nulls = np.isnan(items)
            column.doubles.values.extend(np.where(nulls, 0.0, items).tolist())
            column.nulls.extend(np.flatnonzero(nulls).tolist())
    return v1.Rows(columns=columns)
