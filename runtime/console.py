"""The Guest's console outside: where its output goes, where its input comes from.

Nothing here blocks: output that the reader does not take is kept, and the
UART tells the Guest that the line is busy when too much of it waits.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import stat
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from runtime import nursery
from runtime.errors import UserError

BUSY_ABOVE = 1 << 20
"""Bytes of waiting output at which the UART's line becomes busy."""
FREE_BELOW = 1 << 19
DROP_ABOVE = 16 << 20
"""A guest that ignores a busy line loses what it prints beyond this."""
CAPTURE_MAX = 64 << 20
"""How much of what the Guest printed `Exit.console` has: the newest."""
TRIM = 1 << 20
CHUNK = 4096
CLOSED = (errno.EPIPE, errno.ECONNRESET, errno.EIO)
"""What a write fails with when the reader of a pipe, a socket or a terminal is gone."""


class ConsoleClosedError(Exception):
    """Nobody reads the console any more; `signum` is the signal this amounts to."""

    def __init__(self, signum: int) -> None:
        super().__init__("the console was closed")
        self.signum = signum


class ConsoleFailedError(Exception):
    """The console cannot be written: the disk is full, for example; `str()` says why."""


class Output(Protocol):
    """Where console bytes go."""

    def put(self, byte: int) -> None:
        """One byte from the UART; buffered, never raises."""

    def flush(self) -> None:
        """Pass on what can be passed on without waiting; raises Console…Error."""

    def backlog(self) -> int:
        """Bytes still waiting."""

    def fileno(self) -> int | None:
        """A descriptor to watch for writability while there is a backlog."""

    def close(self) -> None:
        """Forget the rest."""


class Capture:
    """Keeps the newest CAPTURE_MAX bytes: `Exit.console`."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.lost = 0

    def put(self, byte: int) -> None:
        """Keep it."""
        self.data.append(byte)
        if len(self.data) >= CAPTURE_MAX + TRIM:
            self._trim()

    def _trim(self) -> None:
        surplus = max(0, len(self.data) - CAPTURE_MAX)
        del self.data[:surplus]
        self.lost += surplus

    def newest(self) -> bytes:
        """What was kept; `lost` is how much came before that."""
        self._trim()
        return bytes(self.data)

    def flush(self) -> None:
        """Nothing waits."""

    def backlog(self) -> int:
        """Nothing waits."""
        return 0

    def fileno(self) -> int | None:
        """Nothing to watch."""
        return None

    def close(self) -> None:
        """Nothing to close."""


class Callback(Capture):
    """Hands pieces to a function of the user's, in the Host's thread."""

    def __init__(self, function: Callable[[bytes], object]) -> None:
        super().__init__()
        self._function = function

    def flush(self) -> None:
        """Hand over what came since the last time."""
        if self.data:
            piece = bytes(self.data)
            self.data.clear()
            self._function(piece)


class FdOutput:
    """A file descriptor, usually stdout: raw bytes, as soon as they come.

    Pipes and terminals are opened anew through /proc, because O_NONBLOCK on the
    descriptor that we were given would change it for everybody who has it.
    """

    def __init__(self, fd: int) -> None:
        self._buffer = bytearray()
        self._dropped = 0
        self._own = False
        self._fd = fd
        self._closed_signal = signal.SIGHUP if os.isatty(fd) else signal.SIGPIPE
        try:
            mode = os.fstat(fd).st_mode
        except OSError as error:
            raise UserError(f"cannot write the console: {error.strerror}") from error
        self._waits = stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            with contextlib.suppress(OSError), nursery.no_births():
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
                self._fd = nursery.adopt(os.open(f"/proc/self/fd/{fd}", flags))
                self._own = True

    def put(self, byte: int) -> None:
        """Buffer it, unless far too much waits already."""
        if len(self._buffer) < DROP_ABOVE:
            self._buffer.append(byte)
        else:
            self._dropped += 1

    def flush(self) -> None:
        """Write until nothing is left or the reader is full."""
        while self._buffer:
            if self._waits and not self._own and not self._writable():
                return
            try:
                # No more than a pipe takes at once when the descriptor itself may block.
                size = len(self._buffer) if self._own or not self._waits else CHUNK
                written = os.write(self._fd, memoryview(self._buffer)[:size])
            except BlockingIOError:
                return
            except OSError as error:
                self._buffer.clear()
                if error.errno in CLOSED:
                    raise ConsoleClosedError(self._closed_signal) from error
                raise ConsoleFailedError(error.strerror) from error
            del self._buffer[:written]

    def _writable(self) -> bool:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        return bool(poll.poll(0))

    def backlog(self) -> int:
        """Bytes that the reader has not taken."""
        return len(self._buffer)

    def fileno(self) -> int | None:
        """Watch it while there is a backlog."""
        return self._fd if self._waits else None

    def drain(self, deadline: float) -> int:
        """Wait for the reader until `deadline` (time.monotonic seconds); bytes given up."""
        with contextlib.suppress(ConsoleClosedError, ConsoleFailedError):
            self.flush()
            while self._buffer and (left := deadline - time.monotonic()) > 0:
                poll = select.poll()
                poll.register(self._fd, select.POLLOUT)
                poll.poll(left * 1000)
                self.flush()
        return len(self._buffer) + self._dropped

    def close(self) -> None:
        """Close what we opened."""
        if self._own:
            self._own = False
            nursery.close_fd(self._fd)


class Input:
    """A file descriptor that feeds the UART: a terminal, a pipe, a socket or a file."""

    heard: Callable[[bytes], object] | None = None
    """Told of each piece as it is read (raw_stdin listens for Ctrl-C)."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.ended = False
        self._given_back = b""
        found = os.fstat(fd)
        self._file = found.st_dev, found.st_ino
        self._pollable = not stat.S_ISREG(found.st_mode)

    @property
    def at_once(self) -> bool:
        """Whether `read()` may be called without waiting for the descriptor."""
        return bool(self._given_back) or not self._pollable

    def give_back(self, data: bytes) -> None:
        """The Guest was restarted before it read this: the next one begins with it."""
        self._given_back = data + self._given_back
        self.ended = False

    def same_file(self, other: Input) -> bool:
        """Whether both read the same pipe, terminal or file."""
        return (self.fd, self._file) == (other.fd, other._file)

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes; call it when the descriptor is readable.  Empty at the end."""
        if self._given_back:
            data, self._given_back = self._given_back[:limit], self._given_back[limit:]
            return data
        try:
            data = os.read(self.fd, limit)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError:
            data = b""
        if not data:
            self.ended = True
        if self.heard is not None:
            self.heard(data)
        return data


_stdin: Input | None = None  # the process's: over a restart it has what was given back


def stdin_input(fd: int = 0) -> Input | None:
    """Standard input when it can speak: a terminal in whose foreground we are, a pipe, a file."""
    global _stdin
    if not _can_speak(fd):
        return None
    found = Input(fd)
    if _stdin is None or not _stdin.same_file(found):
        _stdin = found
    return _stdin


def _can_speak(fd: int) -> bool:
    try:
        mode = os.fstat(fd).st_mode
        if os.isatty(fd):
            return os.tcgetpgrp(fd) == os.getpgrp()
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISREG(mode)


@contextmanager
def character_mode(fd: int = 0, input_off: int = 0, local_off: int = 0) -> Iterator[None]:
    """A terminal without line editing and echo (Ctrl-C still a signal), restored in every case.

    `input_off`, `local_off`: bits of c_iflag and c_lflag that are to be off as well.
    """
    if not os.isatty(fd) or os.tcgetpgrp(fd) != os.getpgrp():
        yield
        return
    before = termios.tcgetattr(fd)

    def enter() -> None:
        wanted = termios.tcgetattr(fd)
        wanted[0] &= ~(termios.ICRNL | termios.INLCR | termios.IXON | input_off)
        wanted[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN | local_off)
        wanted[6][termios.VMIN] = 1
        wanted[6][termios.VTIME] = 0
        termios.tcsetattr(fd, termios.TCSANOW, wanted)

    # After Ctrl-Z and fg the shell has restored its own settings.
    previous = signal.signal(signal.SIGCONT, lambda _number, _frame: enter())
    try:
        enter()
        yield
    finally:
        signal.signal(signal.SIGCONT, previous)
        # We may be in the background by now, where this would stop us.
        background = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
        with contextlib.suppress(termios.error):
            termios.tcsetattr(fd, termios.TCSANOW, before)
        signal.signal(signal.SIGTTOU, background)
