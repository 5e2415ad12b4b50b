"""What is promised while processes and servers die.

MILLSTREAM_FAULT_SECONDS is how long the tests under load go on, 12 by default; those that repeat a fault do so once for
every 12 seconds of it. `MILLSTREAM_FAULT_SECONDS=60 python -m pytest tests/faults` is the long run.
"""

from __future__ import annotations

import os

ORDINARY_S = 12.0
# Taken out: a Millstream process refuses settings it does not know.
SECONDS = float(os.environ.pop("MILLSTREAM_FAULT_SECONDS", ORDINARY_S))
REPEATS = max(1, round(SECONDS / ORDINARY_S))
TIMEOUT_S = 180 * REPEATS
"""Of one test."""
