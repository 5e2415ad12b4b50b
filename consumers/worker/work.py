"""Work: one entry in a worker's hands, and the ways it can end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np

from consumers.model.model import Rows
from consumers.worker.answers import Answers
from contract.completion import BULK, INTERACTIVE, Item, Way, done_state, event, wake
from contract.errors import Refused
from contract.record import Version
from contract.settings import Settings
from protos import millstream_v1_pb2 as v1
from protos import millstream_wire_v1_pb2 as wire

FINISH = b"finish"


@dataclass(slots=True)
class Work:
    """One entry: what it asks for, and where it came from. Made for each request, so slotted and not frozen."""

    lane: wire.Lane
    entry_id: bytes
    entry: wire.Entry
    raw: bytes
    """The serialized entry; what the event log gets."""
    rows: int
    delivered_us: int
    deliveries: int = 1
    version: Version | None = None
    """For a bulk entry: where it was routed at its first read."""
    refused: Refused | None = None
    status: wire.Status = wire.INVALID
    dead: str = ""
    refused_body: bytes = field(default=b"", repr=False)

    def expired(self, now_us: int) -> bool:
        """Whether its deadline has passed, so that nobody waits for the answer."""
        return 0 < self.entry.deadline_us < now_us

    def finish(
        self, response: bytes, settings: Settings, status: wire.Status, *, position: int = 0, failed: bool = False
    ) -> Item:
        """How it leaves through the exit."""
        entry = self.entry
        lane, entry_id = self.lane, self.entry_id
        ttl: int | bytes
        if entry.discard_reply or status == wire.EXPIRED:
            # What was never computed is no answer for who sends it again under its id.
            ttl = b""
        elif lane == BULK:
            ttl = settings.reply_ttl_bulk_s
        else:
            ttl = entry.reply_ttl_s or settings.reply_ttl_s
        request_id, gateway = entry.request_id, entry.gateway
        return Item(
            _way(lane, self.rows, ttl, gateway, self.dead),
            entry_id,
            event(
                self.raw,
                response,
                status,
                lane,
                entry_id,
                self.delivered_us,
                self.deliveries,
                position,
                self.refused_body,
            ),
            b"" if ttl == b"" else done_state(entry.body_sha256, lane, entry_id, response),
            wake(request_id.encode(), response, failed=failed) if gateway else b"",
            request_id,
        )

    def refuse(self, refused: Refused, settings: Settings, status: wire.Status) -> Item:
        """How it leaves without an answer."""
        entry = self.entry
        response = v1.PredictResponse(
            request_id=entry.request_id, model_id=entry.model_id, version=entry.version, error=refused.to_error()
        )
        if entry.user_request_us:
            response.user_request_timestamp.FromMicroseconds(entry.user_request_us)
        return self.finish(response.SerializeToString(), settings, status, failed=True)


@lru_cache(maxsize=64)
def _way(lane: wire.Lane, rows: int, ttl: int | bytes, gateway: str, dead: str) -> Way:
    return Way(FINISH, 2 if lane == BULK else 1, rows, ttl, gateway, dead.encode())


def parts(works: Sequence[Work], most: int) -> Iterator[list[Work]]:
    """Predict calls of at most `most` rows; limits count rows, and a larger request goes alone."""
    part: list[Work] = []
    rows = 0
    for work in works:
        if part and rows + work.rows > most:
            yield part
            part, rows = [], 0
        part.append(work)
        rows += work.rows
    if part:
        yield part


def answered(
    works: Sequence[Work], answers: Answers, settings: Settings, status: wire.Status = wire.OK
) -> tuple[list[Item], int]:
    """How the works of one predict call leave with its answers, and how many rows it had."""
    items: list[Item] = []
    row = 0
    for work in works:
        entry = work.entry
        response = answers.response(
            entry.request_id.encode(),
            row,
            work.rows,
            entry.user_request_us,
            packed=entry.packed,
            degraded=entry.degraded,
        )
        items.append(work.finish(response, settings, status, position=row))
        row += work.rows
    return items, row


def rows_of_entries(works: list[Work]) -> Rows:
    """The rows of several works of one version, in order, as a model takes them: joined without a loop over rows."""
    if works[0].entry.WhichOneof("rows") == "matrix":
        joined = b"".join([work.entry.matrix.float64 for work in works])
        return np.frombuffer(joined, dtype="<f8").reshape(sum(work.rows for work in works), -1)
    width = len(works[0].entry.columns.columns)
    return [_column([work.entry.columns.columns[place] for work in works]) for place in range(width)]


def _column(parts: list[v1.Column]) -> np.ndarray | list[str | None]:
    kind = parts[0].WhichOneof("kind")
    if kind == "strings":
        texts: list[str | None] = []
        for part in parts:
            start = len(texts)
            texts += part.strings.values
            for row in part.nulls:
                texts[start + row] = None
        return texts
    values: list[float | int | bool] = []
    for part in parts:
        values += getattr(part, str(kind)).values
    return np.array(values, dtype={"doubles": np.float64, "integers": np.int64, "booleans": np.bool_}[str(kind)])


__all__ = ["BULK", "INTERACTIVE", "Work", "answered", "parts", "rows_of_entries"]
