"""Logging: structlog, JSON when not on a terminal, to standard error.

Event names are those of `agentpool.protocol.events` where an event is also in the stream; every line carries pool,
worker and agent where it has them.
"""

import logging
import sys
from typing import Any

import msgspec
import structlog

__all__ = ["configure"]


def configure(level: str = "info", format: str = "auto", **bound: Any) -> None:
    """Set logging up for this process; `bound` fields stand on every line. May be called again."""
    readable = format == "console" or (format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if readable else structlog.processors.JSONRenderer(serializer=_encode)
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**bound)


def _encode(value: Any, **_: Any) -> str:
    """Encode a log line; what has no JSON form is shown as its repr, so that logging never raises."""
    return msgspec.json.encode(value, enc_hook=repr).decode()
