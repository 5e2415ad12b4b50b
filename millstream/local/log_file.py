"""The supervising process's own log: its console is for the person who started it, and says only what they need."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import structlog


@contextlib.contextmanager
def logged_to(path: Path, level: str) -> Iterator[None]:
    """Appends what this process logs to the file, one JSON object a line; afterwards it goes where it went before.

    `level` is debug, info, warning or error. Raises OSError where the file can't be written.
    """
    least = logging.getLevelNamesMapping()[level.upper()]
    before = structlog.get_config()
    with path.open("a", encoding="utf-8") as file:
        others = logging.StreamHandler(file)
        others.setLevel(max(least, logging.WARNING))
        others.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s %(message)s"))
        structlog.configure(
            processors=[
                structlog.contextvars.merge_contextvars,
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
            ],
            wrapper_class=structlog.make_filtering_bound_logger(least),
            logger_factory=structlog.WriteLoggerFactory(file),
            # A logger that keeps the file would write to it after it was closed.
            cache_logger_on_first_use=False,
        )
        logging.getLogger().addHandler(others)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(others)
            structlog.configure(**before)
