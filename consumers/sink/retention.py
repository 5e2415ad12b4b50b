"""Retention: which sealed segments are old or many enough to go, and their removal.

Whole segments go, from a model's old end alone. The chain's value after the last one that went stays, in `anchors`:
what is left is proven from there on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import duckdb
import structlog

from consumers.audit.segment import Segment
from consumers.sink.position import entry_order
from consumers.sink.segments import Segments

log = structlog.get_logger()

_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept; 0: no limit."""

    days: float = 0.0
    size: int = 0
    """Bytes of all segments together."""

    def expired(self, segments: Sequence[Segment], now_ms: int) -> Iterator[Segment]:
        """Those that go, the oldest first; each model's are in the order of their commit."""
        if not self.days and not self.size:
            return
        left = sum(segment.size for segment in segments)
        of_models: dict[str, list[Segment]] = {}
        for segment in reversed(segments):
            of_models.setdefault(segment.model_id, []).append(segment)
        while of_models:
            oldest = min((waiting[-1] for waiting in of_models.values()), key=_newest_ms)
            too_old = self.days > 0 and now_ms - _newest_ms(oldest) > self.days * _DAY_MS
            if not too_old and not (self.size and left > self.size):
                return
            yield oldest
            left -= oldest.size
            of_models[oldest.model_id].pop()
            if not of_models[oldest.model_id]:
                del of_models[oldest.model_id]


def _newest_ms(segment: Segment) -> int:
    """When its last entry was appended."""
    return entry_order(segment.last_entry)[0]


def remove(cursor: duckdb.DuckDBPyConnection, segments: Segments, expired: Iterable[Segment]) -> int:
    """Takes them from the log, each in a transaction with its anchor, and then from the disk; how many.

    Raises duckdb.Error; a file that a crash leaves behind goes at the next start.
    """
    count = 0
    for segment in expired:
        cursor.begin()
        try:
            cursor.execute(
                "INSERT OR REPLACE INTO anchors (model_id, number, chain, removed_at, sequence) "
                "VALUES (?, ?, ?, now(), ?)",
                [segment.model_id, segment.last_number, bytes.fromhex(segment.chain_after), segment.last_sequence],
            )
            cursor.execute(
                "DELETE FROM segments WHERE model_id = ? AND first_sequence = ?",
                [segment.model_id, segment.first_sequence],
            )
            cursor.commit()
        except BaseException:
            with contextlib.suppress(duckdb.Error):
                cursor.rollback()
            raise
        unlink(segments, segment)
        log.info("retention removed a segment", model_id=segment.model_id, file=segment.file, events=segment.rows)
        count += 1
    return count


def unlink(segments: Segments, segment: Segment) -> None:
    """Removes a segment's files; one that can't be removed now goes at the next start."""
    path = segments.path(segment)
    for file in (path, path.with_name(segment.manifest)):
        with contextlib.suppress(OSError):
            file.unlink()
