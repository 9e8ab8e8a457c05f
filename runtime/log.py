"""The log: structlog on stderr, rendered in the Host; workers send only last words."""

from __future__ import annotations

import contextlib
import logging
import sys
from typing import Any, TextIO, cast

import structlog

LEVELS = ("debug", "info", "warning", "error")


class _Stderr:
    """Standard error for a log: full or closed, it costs the line, never the machine's verdict."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()


def make_log(level: str = "warning") -> Any:
    """A logger of its own (no process-wide configuration) that writes lines to stderr."""
    number = getattr(logging, level.upper())
    return structlog.wrap_logger(
        structlog.WriteLogger(cast("TextIO", _Stderr())),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        context_class=dict,
        cache_logger_on_first_use=True,
    ).bind()
