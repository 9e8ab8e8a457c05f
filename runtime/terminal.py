"""A terminal that belongs to the Guest: every key goes there, Ctrl-C too; three of them end it.

So it was with lguest.  A guest whose console is a terminal line of its own has
use for Ctrl-C, and its user needs a way out that no guest can take away.
"""

from __future__ import annotations

import os
import signal
import termios
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

from runtime.console import Input, character_mode, stdin_input

CTRL_C = 0x03
WANTED = 3
WINDOW_SECONDS = 1.0
"""Three Ctrl-C count if the third comes so soon after the first."""


class CtrlCCounter:
    """Calls `enough()` at the third Ctrl-C within a second with nothing typed in between.

    lguest wanted each in a read by itself.  We count bytes: on a busy host we may
    read late, and then all three at once.  `clock` in seconds.
    """

    def __init__(
        self, enough: Callable[[], object], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._enough = enough
        self._clock = clock
        self._times: list[float] = []  # when the last ones came, at most two

    def hear(self, data: bytes) -> None:
        """What was read, in order, as soon as it was read."""
        now = self._clock()
        for byte in data:
            if byte != CTRL_C:
                self._times.clear()
                continue
            self._times = [then for then in self._times if now - then <= WINDOW_SECONDS]
            self._times.append(now)
            if len(self._times) == WANTED:
                self._times.clear()
                self._enough()


def raw_stdin() -> Input | None:
    """Standard input as `stdin_input()` finds it; on a terminal three Ctrl-C are a SIGINT.

    On a pipe they are bytes like all others.
    """
    source = stdin_input()
    if source is not None and source.heard is None and os.isatty(source.fd):
        # The very signal that the terminal would have sent for the first one.
        source.heard = CtrlCCounter(lambda: signal.raise_signal(signal.SIGINT)).hear
    return source


def raw_mode(fd: int = 0) -> AbstractContextManager[None]:
    """A terminal that changes no byte and makes no signal of any; restored in every case."""
    changing = termios.IGNCR | termios.ISTRIP | termios.PARMRK
    return character_mode(fd, input_off=changing, local_off=termios.ISIG)
