"""A process on a terminal of its own."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import signal
import termios
import time
from collections.abc import Callable

from tests.helpers.launch import ROOT


class Session:
    """A command in the checkout, on a new terminal."""

    def __init__(self, command: list[str]) -> None:
        self.seen = b""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.chdir(ROOT)
            os.execv(command[0], command)
        self.before = termios.tcgetattr(self.terminal)

    def until(self, happened: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not happened():
            assert time.monotonic() < deadline, self.seen
            self.look(0.05)

    def look(self, seconds: float) -> None:
        if select.select([self.terminal], [], [], seconds)[0]:
            with contextlib.suppress(OSError):  # its other end is closed
                self.seen += os.read(self.terminal, 4096)

    def expect(self, text: bytes) -> None:
        self.until(lambda: text in self.seen)

    def type(self, data: bytes) -> None:
        os.write(self.terminal, data)

    def end(self) -> int:
        """The exit status; the terminal must be as it was."""
        status: list[int] = []

        def ended() -> bool:
            done, raw = os.waitpid(self.pid, os.WNOHANG)
            if done:
                status.append(os.waitstatus_to_exitcode(raw))
            return bool(done)

        self.until(ended)
        self.pid = 0
        self.look(0)
        assert termios.tcgetattr(self.terminal) == self.before
        return status[0]

    def close(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self.terminal)
