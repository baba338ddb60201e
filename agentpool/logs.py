"""Logging: structlog, JSON when not on a terminal, to standard error.

Modules that also run inside users' programs (`periodic`, the subscription) log through the standard library, which is
silent about anything below a warning until somebody sets it up; here such lines get the same form as ours.

Event names are those of `agentpool.protocol.events` where an event is also in the stream; every line carries pool,
worker and agent where it has them.
"""

import contextlib
import json
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
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    stream: Any = _Enduring(sys.stderr)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.clear_contextvars()
    structlog.contextvars.bind_contextvars(**bound)
    _adopt_standard_logging(threshold, shared, renderer, stream)


class _Enduring:
    """A stream whose end ends nobody: the terminal was closed, the pipe's reader left, the disk is full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        """Write, or do without."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)

    def flush(self) -> None:
        """Flush, or do without."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def _adopt_standard_logging(threshold: int, shared: list[Any], renderer: Any, stream: Any) -> None:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
            foreign_pre_chain=[structlog.stdlib.ExtraAdder(), *shared],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(threshold)
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _encode(value: Any, **_: Any) -> str:
    """Encode a log line; what has no JSON form is shown as its repr, so that logging never raises."""
    try:
        return msgspec.json.encode(value, enc_hook=repr).decode()
    except Exception:  # noqa: BLE001 (undecodable file names, a __repr__ that raises: a line is better than an error)
        return json.dumps(value, default=lambda unknown: f"<{type(unknown).__name__}>", skipkeys=True)
