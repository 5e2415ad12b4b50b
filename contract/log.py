"""structlog, set up once where a process starts: a console for people, one JSON object a line for programs."""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from contract.settings import Settings


def set_up_log(settings: Settings, role: str) -> None:
    """Lines go to stderr with the role bound; request_id, model_id and version are the field names everywhere."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    console = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        shared.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    else:
        shared += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=shared,
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)
    logging.basicConfig(
        level=max(level, logging.WARNING), stream=sys.stderr, format="%(levelname)s %(name)s %(message)s"
    )
