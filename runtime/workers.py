"""The vCPU workers from the Host's side: birth, sentinel, report, burial."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from runtime import closures, nursery
from runtime.errors import HostError
from vcpu import worker

READ_SIZE = 1 << 16


class Worker:
    """One worker process; owned by its Host, touched from the thread that runs the machine."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.report_fd = -1
        self.reported_at: float | None = None  # when its end of the pipe was closed
        self.buried = False
        self._message = bytearray()
        self._process: Any = None
        self._pidfd = -1

    def start(self, make_setup: Callable[[int], worker.Setup]) -> None:
        """Fork it; `make_setup` gets the writing end of its report pipe.

        Raises HostError when the system has no room for another process.
        """

        def order() -> None:
            receive, send = os.pipe2(os.O_CLOEXEC)
            try:
                os.set_blocking(receive, False)
                nursery.adopt(receive)
                self.report_fd = receive
                process = closures.fork_context.Process(
                    target=worker.main,
                    args=(make_setup(send),),
                    name=f"smpguest-vcpu{self.index}",
                    daemon=True,
                )
                # Until the newborn ignores them, signals to the group must not reach it.
                blocked = signal.pthread_sigmask(signal.SIG_BLOCK, worker.IGNORED)
                try:
                    process.start()
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
                self._process = process
                try:
                    self._pidfd = nursery.adopt(os.pidfd_open(process.pid))
                except OSError:
                    process.kill()
                    raise
                nursery.adopt(process.sentinel)
            finally:
                os.close(send)

        try:
            nursery.fork(order)
        except OSError as error:
            self.bury()
            raise HostError(
                f"vCPU {self.index}'s worker cannot be started: {error.strerror}"
            ) from error

    @property
    def started(self) -> bool:
        """Whether there is a process."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """Its process ID."""
        return int(self._process.pid)

    @property
    def sentinel(self) -> int:
        """Readable once it has ended.

        Not multiprocess's sentinel: a child that a user's hook left behind keeps that one silent.
        """
        return self._pidfd

    def read_report(self) -> bool:
        """Take what has arrived of its message, at most one piece; False: nothing more was there.

        Never waits.
        """
        try:
            piece = os.read(self.report_fd, READ_SIZE)
        except BlockingIOError:
            return False
        if piece:
            self._message += piece
        else:
            self.reported_at = time.monotonic()
        return bool(piece)

    def read_rest(self) -> None:
        """After its end: all that it sent.

        The pipe's end may never come: a child that a user's hook left behind has it open.
        """
        while self.reported_at is None and self.read_report():
            pass

    def report(self) -> worker.Report | None:
        """Its message (call it after its end), if it lived to finish it."""
        if not self._message:
            return None
        try:
            message = closures.loads(bytes(self._message))
        except Exception:  # cut off by its death, or a class that cannot be rebuilt here
            return None
        return message if isinstance(message, worker.Report) else None

    def ended_how(self) -> str | None:
        """`was killed by SIGKILL`, `ended with status 1`, or None while it lives."""
        code = self._process.exitcode
        if code is None:
            return None
        if code >= 0:
            return f"ended with status {code}"
        try:
            return f"was killed by {signal.Signals(-code).name}"
        except ValueError:
            return f"was killed by signal {-code}"

    def kill(self) -> None:
        """SIGKILL."""
        with contextlib.suppress(OSError):
            self._process.kill()

    def wait(self) -> None:
        """Until it has ended."""
        self._process.join()

    def bury(self) -> None:
        """Wait for its end (it has ended or been killed) and close what was ours of it."""
        if self._process is not None:
            self._process.join()
            nursery.disown(self._process.sentinel)
            self._process.close()
            self._process = None
        if self._pidfd >= 0:
            nursery.close_fd(self._pidfd)
            self._pidfd = -1
        if self.report_fd >= 0:
            nursery.close_fd(self.report_fd)
            self.report_fd = -1
