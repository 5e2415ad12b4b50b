"""When the recovery of a model is over: nothing can come again that is in the log already."""

from __future__ import annotations

import time

from consumers.sink.intake import EventIntake
from consumers.sink.position import entry_order
from consumers.sink.streams import EventStreams

LOOK_S = 1.0


class Recoveries:
    """Watches the lanes of models in recovery.

    It is over once no request waits that is as old as the newest in the log, and all events were taken that stood in
    the stream by then.
    """

    def __init__(self, streams: EventStreams, intake: EventIntake) -> None:
        self._streams = streams
        self._intake = intake
        self._last_entries: dict[str, str] = {}
        """Models without such a request, and the last of the events that stood there then."""
        self._looked_at = 0.0

    def forget(self, model_id: str) -> None:
        """What was seen of a stream that may be another one now, or have lost something."""
        self._last_entries.pop(model_id, None)

    def end(self) -> None:
        """Ends those that are over; looks at most once a second. Raises what redis-py raises."""
        recovering = self._intake.recovering
        if not recovering or time.monotonic() < self._looked_at + LOOK_S:
            return
        self._looked_at = time.monotonic()
        for model_id, until_ms in recovering.items():
            if model_id not in self._last_entries:
                oldest_ms, last_entry = self._streams.waiting(model_id)
                if oldest_ms is not None and oldest_ms <= until_ms:
                    continue
                self._last_entries[model_id] = last_entry
            position = self._intake.positions[model_id]
            if entry_order(position.entry_id) >= entry_order(self._last_entries[model_id]):
                self.forget(model_id)
                self._intake.recovered(model_id)
