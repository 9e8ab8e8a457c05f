"""One thread a queue, woken by the queue's eventfd: lguest's service threads.

    queue = QueueService("block.0", serve_request, ...)    # the eventfd: before workers fork
    queue.start(ring)                                      # the thread: after
    queue.stop()                                           # bounded; may be started again
    queue.close()

`serve_request(queue)` is called again and again in the thread.  It takes a
request with `wait_for_chain()`, does it, and gives it back with `used()`.

Who may touch what.  The eventfd is rung by workers (it is bound to the queue's
address), by `kick()` and by `stop()`; only the thread reads it.  It may ring
for nothing: whoever waits looks at what it waits for before every sleep, and
the eventfd keeps count of what rang meanwhile, so no ring is lost.  The ring
belongs to the thread while that runs.  The rest belongs to the thread that
starts and stops (the Host's), which must not hold the Big Lock then: the
interrupts that a service sends may want it.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable

from runtime import nursery
from runtime.errors import HostError
from runtime.virtio.vring import Chain, Vring, VringError

STOP_SECONDS = 10.0
"""How long a service may take to leave once it was asked to; then the Host gives up."""

Service = Callable[["QueueService"], None]


class Stopped(Exception):
    """The service was asked to stop: raised by whatever waits, and caught by the thread."""


class QueueService:
    """One virtqueue, its eventfd and its thread.

    `interrupt()` interrupts the Guest; `fail(text)` kills it, for what its
    driver did; `broken(error)` is told of any other exception: a mistake of
    ours.  All three are called in the thread.
    """

    def __init__(
        self,
        name: str,
        service: Service,
        interrupt: Callable[[], object],
        fail: Callable[[str], object],
        broken: Callable[[Exception], object],
    ) -> None:
        self.name = name
        self._service = service
        self._interrupt = interrupt
        self._fail = fail
        self._broken = broken
        self._thread: threading.Thread | None = None
        self._stopping = False
        self._pending_used = False
        self._ring: Vring | None = None
        with nursery.no_births():
            self.fd = nursery.adopt(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    # From the Host's thread ---------------------------------------------------------

    def start(self, ring: Vring) -> None:
        """Serve `ring` from now on; raises HostError when the system has no thread for us."""
        self._ring = ring
        self._stopping = False
        self._pending_used = False
        # A daemon, so that no failure of ours can keep the process from ending.
        thread = threading.Thread(target=self._run, name=f"virtio-{self.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:
            raise HostError(f"{self.name}: its service cannot start: {error}") from error
        self._thread = thread

    def kick(self) -> None:
        """What the service waits for may have come; from any thread that knows it is not closed."""
        if self.fd >= 0:
            with contextlib.suppress(BlockingIOError):  # full: then it is told already
                os.eventfd_write(self.fd, 1)

    def ask_to_stop(self) -> None:
        """Do not wait for it yet: several can leave at the same time."""
        self._stopping = True
        self.kick()

    def stop(self) -> None:
        """The thread is gone when this returns; raises HostError if it does not go."""
        self.ask_to_stop()
        if self._thread is None:
            return
        self._thread.join(STOP_SECONDS)
        if self._thread.is_alive():
            raise HostError(f"{self.name}: its service does not stop")
        self._thread = None
        self._ring = None

    def close(self) -> None:
        """Stop, and give the eventfd back; nothing may be bound to it any more.

        When the thread does not go (HostError) it may still read the eventfd,
        so that stays.
        """
        self.stop()
        if self.fd >= 0:
            nursery.close_fd(self.fd)
            self.fd = -1

    # The thread ---------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                self._service(self)
        except Stopped:
            return
        except VringError as error:
            self._fail(f"{self.name}: {error}")
        except Exception as error:  # ours: it must not die in silence with this thread
            self._broken(error)

    @property
    def ring(self) -> Vring:
        """What is served now."""
        if self._ring is None:
            raise Stopped
        return self._ring

    def wait_for_chain(self) -> Chain:
        """The next request, as soon as there is one."""
        ring = self.ring
        while True:
            self.check()
            chain = ring.pop()
            if chain is not None:
                return chain
            if not ring.enable_notifications():
                self.sleep()
            ring.disable_notifications()

    def used(self, chain: Chain) -> None:
        """The request is done; `chain.written` says how much was written."""
        self.ring.push(chain)
        self._pending_used = True

    def interrupt_guest(self) -> None:
        """Interrupt the Guest if something was used since the last time and it wants to know."""
        if self._pending_used:
            self._pending_used = False
            if self.ring.wants_interrupt:
                self._interrupt()

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until `condition()`; whoever makes it true calls `kick()` afterwards."""
        self.check()
        while not condition():
            self.sleep()

    def sleep(self, fd: int = -1, events: int = 0, timeout: float | None = None) -> bool:
        """Until something rings, or `fd` has one of `events` (select.POLL...); True if it has.

        At most `timeout` seconds.  Raises Stopped.  Before we sleep the Guest
        learns what was used so far: until then interrupts are saved up, one for
        all requests that came together.
        """
        self.check()
        self.interrupt_guest()
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        if fd >= 0:
            poll.register(fd, events)
        ready = dict(poll.poll(None if timeout is None else timeout * 1000))
        if self.fd in ready:
            os.eventfd_read(self.fd)  # does not wait: nobody else reads it
        self.check()
        return fd in ready

    def check(self) -> None:
        """Raises Stopped if the service was asked to stop: for work that takes long."""
        if self._stopping:
            raise Stopped
