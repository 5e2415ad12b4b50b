"""Intake: stream entries become work.

The interactive lane holds entries that a gateway admitted. The bulk lane holds whatever a producer wrote, so the worker
does for it what a gateway does: claims the id, admits, hydrates and routes, for the whole batch at once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from google.protobuf.message import DecodeError

from consumers.worker.lanes import Batch, Delivery
from consumers.worker.work import Work
from contract.admission import Admitted, Draft, Stored
from contract.catalog import Catalog
from contract.clock import now_us
from contract.completion import BULK, pending_state, routed
from contract.connection import Argument
from contract.errors import Reason, Refused
from contract.keys import GROUP, Keys
from contract.line import Line
from contract.record import Version, route
from contract.request import REPLAY_LENGTH, REQUEST_ID, STREAM_ID, Request
from contract.scripts import CLAIM_IDS
from contract.settings import Settings
from contract.strict_json import StrictJsonError, parse_json
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

Hydrate = Callable[[Sequence[Draft]], Sequence[Stored]]
"""Finds the stored features that drafts want; one answer for each."""

DUPLICATE, REUSED = 0, -1


class Intake:
    """Turns batches into work; one per worker."""

    def __init__(self, line: Line, keys: Keys, settings: Settings, catalog: Catalog, hydrate: Hydrate) -> None:
        self._line = line
        self._keys = keys
        self._settings = settings
        self._catalog = catalog
        self._hydrate = hydrate

    def works(self, batch: Batch) -> list[Work]:
        """The work of a batch; without the bulk entries that turned out to be duplicates, which are gone already."""
        if batch.lane == BULK:
            return self._bulk(batch)
        delivered = now_us()
        return [_admitted(batch, delivery, delivered) for delivery in batch.deliveries]

    def _bulk(self, batch: Batch) -> list[Work]:
        delivered = now_us()
        asked: list[tuple[Request | None, Work]] = []
        for delivery in batch.deliveries:
            request, work = _bulk_request(batch, delivery, delivered, self._settings)
            if request is not None:
                self._route(work, request)
            asked.append((request, work))
        kept = self._claim(batch.model_id, asked)

        drafts: list[tuple[Work, Request, Draft]] = []
        for request, work in kept:
            if request is None or work.version is None:
                continue
            try:
                checked = work.version.admission.draft(request)
                if isinstance(checked, Draft):
                    drafts.append((work, request, checked))
                else:
                    _admit(work, checked)
            except Refused as refused:
                _refuse(work, refused)
        self._complete(drafts)
        for _, work in kept:
            work.raw = work.entry.SerializeToString()
        return [work for _, work in kept]

    def _route(self, work: Work, request: Request) -> None:
        """The version that would answer it now; the claim decides whether another one was recorded before."""
        try:
            record = self._catalog.record(work.entry.model_id)
            _pin(work, route(record, request.version, request.entity_id, work.entry.request_id))
        except Refused as refused:
            _refuse(work, refused)

    def _claim(self, model_id: str, asked: list[tuple[Request | None, Work]]) -> list[tuple[Request | None, Work]]:
        """Those that are this batch's to answer, each by the version that was recorded at its first read."""
        keys = self._keys.model(model_id)
        names = [keys.bulk, keys.rows_bulk, keys.count, keys.dead, keys.crashes, keys.lone]
        arguments: list[Argument] = [GROUP, self._settings.pending_ttl_s]
        for _, work in asked:
            names.append(keys.reply(work.entry.request_id))
            routing = routed(work.version.digest, work.version.version) if work.version is not None else b""
            arguments += (work.entry_id, work.rows, pending_state(work.entry.body_sha256, BULK), routing)
        answers: list[int | bytes] = self._line.run(CLAIM_IDS, names, arguments)
        kept = []
        for (request, work), answer in zip(asked, answers, strict=True):
            if isinstance(answer, bytes):
                self._keep_to(work, wire.ReplyState.FromString(answer))
            if answer not in (DUPLICATE, REUSED):
                kept.append((request, work))
        return kept

    def _keep_to(self, work: Work, first: wire.ReplyState) -> None:
        """Pins a redelivered entry to the version of its first read, whatever the routing says by now."""
        if work.version is not None and work.version.digest == first.digest:
            return
        record = self._catalog.records.get(work.entry.model_id)
        version = record.versions.get(first.version) if record is not None else None
        if version is not None and version.digest == first.digest:
            work.refused = None
            _pin(work, version)
            return
        work.version = None
        work.entry.version, work.entry.digest = first.version, first.digest
        text = f"version {first.version}, which it was routed to at its first read, is gone"
        _refuse(work, Refused(Reason.VERSION_UNAVAILABLE, text))

    def _complete(self, drafts: list[tuple[Work, Request, Draft]]) -> None:
        """Hydrates all drafts of a batch with one fetch."""
        if not drafts:
            return
        stored = self._hydrate([draft for _, _, draft in drafts])
        for (work, _, draft), found in zip(drafts, stored, strict=True):
            try:
                _admit(work, draft.complete(found.values, store_failed=found.failed))
            except Refused as refused:
                _refuse(work, refused)


def _admitted(batch: Batch, delivery: Delivery, delivered: int) -> Work:
    """An entry of the interactive lane."""
    raw = delivery.fields.get(b"pb", b"")
    try:
        entry = wire.Entry.FromString(raw)
    except DecodeError:
        entry = wire.Entry()
    form = entry.WhichOneof("rows")
    rows = entry.matrix.rows if form == "matrix" else entry.columns.rows
    work = Work(batch.lane, delivery.entry_id, entry, raw, rows, delivered, delivery.deliveries)
    if form is None or entry.model_id != batch.model_id or not entry.request_id:
        # Only gateways write here; this is something else.
        work.entry = wire.Entry(request_id=delivery.entry_id.decode(), model_id=batch.model_id)
        work.raw = work.entry.SerializeToString()
        work.rows = 0
        work.refused_body = raw
        _refuse(work, Refused(Reason.MALFORMED, "the entry was written by no gateway of this Millstream"))
    return work


def _bulk_request(batch: Batch, delivery: Delivery, delivered: int, settings: Settings) -> tuple[Request | None, Work]:
    """What a bulk entry asks, None where it can't be understood; and the work it makes."""
    most = settings.max_message_bytes
    entry = wire.Entry(request_id=delivery.entry_id.decode(), model_id=batch.model_id)
    # When Redis appended it: a producer's own clock is not asked.
    entry.user_request_us = int(delivery.entry_id.partition(b"-")[0]) * 1000
    work = Work(batch.lane, delivery.entry_id, entry, b"", 1, delivered, delivery.deliveries)
    fields = delivery.fields
    body = next(iter(fields.values()), b"")
    request: Request | None = None
    try:
        if len(body) > most:
            # Of numbers this large a worker would be busy for longer than a batch may take.
            raise Refused(Reason.MALFORMED, f"the entry has {len(body):,} bytes, at most {most:,} are read")
        if set(fields) == {b"json"}:
            request = Request.from_json(body, batch.model_id, settings.max_rows)
        elif set(fields) == {b"pb"}:
            request = Request.from_bytes(body)
            if request.model_id not in ("", batch.model_id):
                text = f"this is the stream of {batch.model_id!r}, the entry says {request.model_id[:200]!r}"
                raise Refused(Reason.MALFORMED, text)
            request = request._replace(model_id=batch.model_id)
        else:
            names = ", ".join(name.decode(errors="replace")[:40] for name in list(fields)[:10]) or "none"
            raise Refused(Reason.MALFORMED, f"expected one field, json or pb, got {names}")
        entry.request_id = _own_id(request.request_id) or entry.request_id
        entry.entity_id = request.entity_id[:256]
        entry.discard_reply = request.discard_reply
        entry.replay = request.replay[:REPLAY_LENGTH]
        entry.body_sha256 = request.body_sha256()
        entry.packed = request.rows is not None or request.packed is not None
        work.rows = request.row_count
        work.refused_body = body
    except Refused as refused:
        request = None
        if len(body) <= most:
            entry.request_id = _own_id(_id_within(fields)) or entry.request_id
        entry.body_sha256 = hashlib.sha256(body).digest()
        work.refused_body = body
        work.dead = refused.reason.text
        _refuse(work, refused)
    return request, work


def _own_id(request_id: str) -> str:
    """An id that may become part of a key and can't be another entry's; else nothing."""
    return request_id if REQUEST_ID.fullmatch(request_id) and not STREAM_ID.fullmatch(request_id) else ""


def _id_within(fields: dict[bytes, bytes]) -> str:
    """The id in an entry that can't be served, where that much of it can be read: its producer asks for it by that."""
    try:
        if set(fields) == {b"json"}:
            body = parse_json(fields[b"json"])
            found = body.get("request_id") if isinstance(body, dict) else None
            return found if isinstance(found, str) else ""
        if set(fields) == {b"pb"}:
            return v1.PredictRequest.FromString(fields[b"pb"]).request_id
    except (StrictJsonError, DecodeError):
        pass
    return ""


def _admit(work: Work, admitted: Admitted) -> None:
    entry = work.entry
    entry.MergeFromString(admitted.rows_field)
    entry.hydrated.extend(wire.Hydrated(index=index, origin=origin) for index, origin in admitted.hydrated)
    entry.degraded = admitted.degraded
    entry.admitted_us = now_us()
    work.refused_body = b""


_FAILURES = (
    Reason.MODEL_UNKNOWN,
    Reason.VERSION_UNKNOWN,
    Reason.VERSION_UNAVAILABLE,
    Reason.FEATURES_UNAVAILABLE,
)
"""Reasons that are no fault of the request's form."""


def _pin(work: Work, version: Version) -> None:
    work.version = version
    work.entry.version, work.entry.digest = version.version, version.digest


def _refuse(work: Work, refused: Refused) -> None:
    work.refused = refused
    work.status = wire.FAILED if refused.reason in _FAILURES else wire.INVALID
    if refused.reason is Reason.MALFORMED:
        work.dead = refused.reason.text
