"""The log: structlog on stderr, rendered in the Host; workers send only last words."""

from __future__ import annotations

import contextlib
import sys
from typing import Any, TextIO, cast

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


class Log:
    """Writes lines to stderr.

    structlog comes with the first of them: importing it takes longer than starting a machine.
    """

    def __init__(self, level: str) -> None:
        self._least = LEVELS.index(level)
        self._lines: Any = None

    def debug(self, event: str, **values: object) -> None:
        """For who looks into the machinery."""
        self._say("debug", event, values)

    def info(self, event: str, **values: object) -> None:
        """What a user may like to know."""
        self._say("info", event, values)

    def warning(self, event: str, **values: object) -> None:
        """Something was lost, and it goes on."""
        self._say("warning", event, values)

    def error(self, event: str, **values: object) -> None:
        """Why the machine ends, or a part of it does not work."""
        self._say("error", event, values)

    def exception(self, event: str, **values: object) -> None:
        """An error, with the traceback of the exception that is handled now."""
        self._say("error", event, values | {"exc_info": True})

    def _say(self, level: str, event: str, values: dict[str, object]) -> None:
        if LEVELS.index(level) < self._least:
            return
        if self._lines is None:
            self._lines = _lines()
        getattr(self._lines, level)(event, **values)


def _lines() -> Any:
    """structlog's logger: one of its own, no process-wide configuration."""
    import structlog

    return structlog.wrap_logger(
        structlog.WriteLogger(cast("TextIO", _Stderr())),
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False),
            structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        context_class=dict,
        cache_logger_on_first_use=True,
    ).bind()
