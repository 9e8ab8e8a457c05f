"""The Host's loop: one thread, one selector, nothing that waits anywhere else.

It answers the workers' mailboxes and posts, moves console bytes, notices the
death of a worker, and keeps the time-out.  The order inside one round is the
order of the Guest's accesses: what a vCPU posted comes before what it then
asked.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from runtime import nursery
from runtime.biglock import BigLock, Site
from runtime.console import (
    BUSY_ABOVE,
    FREE_BELOW,
    ConsoleClosedError,
    ConsoleFailedError,
    FdOutput,
    Input,
    Output,
)
from runtime.control import ControlBlock
from runtime.errors import HostError
from runtime.exits import Reason
from runtime.notify import Doorbells
from runtime.platform import Platform
from runtime.workers import Worker

END_SECONDS = 1.0
"""How long workers have to leave once the Guest is dead, or have reported; then SIGKILL."""
RESULT_SECONDS = 30.0
"""How long what the hooks returned may compute once the Guest is dead; then SIGKILL."""
START_SECONDS = 60.0
"""How long workers have to become ready, users' hooks included (on a loaded host)."""
FLUSH_SECONDS = 1.0
"""How long a slow reader of the console is waited for at the end."""

Handler = Callable[[], None]


class Host:
    """The running side of one machine; everything here belongs to the thread that runs it."""

    def __init__(
        self,
        control: ControlBlock,
        machine: Platform,
        doorbells: Doorbells,
        console: Output,
        source: Input | None,
        log: Any,
    ) -> None:
        self._control = control
        self._lib: Any = control.switcher.lib
        self._ffi: Any = control.switcher.ffi
        self._machine = machine
        self._doorbells = doorbells
        self._console = console
        self._source = source  # while it has more
        self._sender = source
        self._log = log
        self._lock = BigLock(control.switcher, control.pointer, Site.BUS)
        self._posted = self._ffi.new("struct smp_posted *")
        self._orders: deque[Handler] = deque()  # from other threads, see call()
        self._order_lock = threading.RLock()  # re-entrant: signal handlers call wake()
        self._closed = False
        self._hurried = False
        self._line_busy = False
        self._console_failed = False
        self.console_failure = ""  # in a sentence
        with nursery.opening("what the Host waits with"):
            self._selector = selectors.DefaultSelector()
            nursery.adopt(self._selector.fileno())
            self._bell = nursery.adopt(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
            self._ready = nursery.adopt(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        control.pointer.host_fd = self._bell
        self.workers: list[Worker] = []
        self._ready_count = 0
        self._register(self._bell, self._on_bell)
        self._register(self._ready, self._on_ready)
        for fd in doorbells.fds:
            self._register(fd, partial(doorbells.rang, fd))

    # Births and burials ---------------------------------------------------------

    @property
    def ready_fd(self) -> int:
        """The eventfd by which workers say that they are ready."""
        return self._ready

    @property
    def worker_fds(self) -> frozenset[int]:
        """What a worker of this machine keeps open."""
        return frozenset({self._bell, self._ready}) | self._doorbells.fds

    def watch(self, worker: Worker) -> None:
        """From now on this worker's death and report are noticed."""
        self.workers.append(worker)
        self._register(worker.sentinel, partial(self._on_end, worker))
        self._register(worker.report_fd, partial(self._on_report, worker))

    def wait_ready(self) -> None:
        """Until all workers have said that they are ready; raises HostError if one is late."""
        deadline = time.monotonic() + START_SECONDS
        with self._woken_by_signals():
            while self._ready_count < len(self.workers) and not self._control.is_dead:
                if not self._round(deadline):
                    raise HostError(
                        f"the vCPU workers did not start in {START_SECONDS:g} seconds: "
                        "a hook that does not return, or a host that is far too busy"
                    )

    def run(self, deadline: float | None) -> None:
        """The loop, until the Guest is dead (at `deadline`, time.monotonic seconds, we kill it)."""
        self._move_console()
        with self._woken_by_signals():
            while not self._control.is_dead:
                if not self._round(deadline):
                    self._control.kill(Reason.TIMEOUT, "the time given by --timeout ran out")

    def end(self) -> None:
        """The Guest is dead: everybody leaves, or is killed; then the last console bytes."""
        began = time.monotonic()
        self._unwatch_source()
        while alive := self._alive():
            first = min(self._last_moment(worker, began) for worker in alive)
            if self._round_whatever_happens(first):
                continue
            for worker in alive:
                if self._last_moment(worker, began) <= time.monotonic():
                    self._put_down(worker)
        for worker in self.workers:
            worker.read_rest()
        try:
            self._drain()
            self._machine.finish()
            self._flush_console()
        except Exception:  # a device of ours, or the user's console function
            self._log.exception("the Host failed while the machine ended")
        if self._sender is not None and self._control.verdict().reason is Reason.RESTART:
            self._sender.give_back(self._machine.console.take_unread())
        if isinstance(self._console, FdOutput):
            lost = self._console.drain(time.monotonic() + FLUSH_SECONDS)
            if lost:
                self._log.warning("console output lost: its reader did not keep up", bytes=lost)

    def _last_moment(self, worker: Worker, began: float) -> float:
        """Until when (time.monotonic seconds) the end that began at `began` waits for it."""
        if worker.reported_at is not None:
            return max(began, worker.reported_at) + END_SECONDS
        return began + (RESULT_SECONDS if self._computes(worker) else END_SECONDS)

    def _computes(self, worker: Worker) -> bool:
        """Whether it computes results that somebody waits for."""
        return not self._hurried and self._control.state(worker.index) == "stopped"

    def hurry(self) -> None:
        """From now on nobody waits for what hooks compute."""
        self._hurried = True

    def _put_down(self, worker: Worker) -> None:
        if worker.reported_at is None and self._computes(worker):
            self._log.error(
                f"what vCPU {worker.index}'s hooks returned did not compute their results "
                f"in {RESULT_SECONDS:g} seconds"
            )
        else:
            self._log.warning("worker did not leave in time", vcpu=worker.index)
        worker.kill()
        worker.wait()
        self._on_end(worker)

    def close(self) -> None:
        """Give everything back; workers must have ended."""
        for worker in self.workers:
            worker.bury()
        self.workers = []
        with self._order_lock:
            self._closed = True
            nursery.close_fd(self._bell)
        nursery.close_fd(self._ready)
        nursery.disown(self._selector.fileno())
        self._selector.close()

    def _alive(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.buried]

    @contextmanager
    def _woken_by_signals(self) -> Iterator[None]:
        """A signal that comes just before we wait ends the wait, so that its handler can run.

        Python runs handlers between two instructions of its own: one that came
        after the last of these and before the system call would otherwise wait
        with us.  Only the main thread gets signals.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        with nursery.opening("a pipe for signals"):
            receive, send = map(nursery.adopt, os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK))
        before = signal.set_wakeup_fd(send, warn_on_full_buffer=False)
        self._register(receive, partial(self._on_signal, receive))
        try:
            yield
        finally:
            self._selector.unregister(receive)
            signal.set_wakeup_fd(before)
            for fd in (receive, send):
                nursery.close_fd(fd)

    @staticmethod
    def _on_signal(receive: int) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(receive, 4096)

    # From other threads ---------------------------------------------------------

    def call(self, order: Handler) -> None:
        """Have `order` run in the loop, from any thread; dropped if closed."""
        self._orders.append(order)
        self.wake()

    def wake(self) -> None:
        """Make the loop look."""
        with self._order_lock:
            if not self._closed:
                os.eventfd_write(self._bell, 1)

    # One round --------------------------------------------------------------------

    def _register(self, fd: int, handler: Handler) -> None:
        self._selector.register(fd, selectors.EVENT_READ, handler)

    def _round(self, deadline: float | None) -> bool:
        """Wait for events and handle them; False when `deadline` came first."""
        timeout = None if deadline is None else deadline - time.monotonic()
        if timeout is not None and timeout <= 0:
            return False
        for key, _ in self._selector.select(timeout):
            handler: Handler = key.data
            handler()
        self._move_console()
        return True

    def _round_whatever_happens(self, deadline: float) -> bool:
        """A round of a machine that ends anyway: our own failures must not keep it from that."""
        try:
            return self._round(deadline)
        except Exception:  # a device of ours, or the user's console function
            self._log.exception("the Host failed while the machine ended")
            return True

    def _on_bell(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._bell)
        # Pairs with the senders' "fill the slot or mailbox, then ring unless already rung":
        # the flag is cleared first, so what comes after our look rings again.
        self._lib.smp_host_woken(self._control.pointer)
        while self._orders:
            self._orders.popleft()()
        self._serve()

    def _serve(self) -> None:
        more = self._drain()
        for index in range(self._control.vcpus):
            if self._lib.smp_asked(self._control.pointer, index):
                # What this vCPU posted before it asked is at most one ring long.
                more = self._drain() or more
                self._answer(index)
        if more:
            self.wake()

    def _drain(self) -> bool:
        """Do the posted writes in their order, at most one ring's length; True if more may wait."""
        take, slot, control = self._lib.smp_post_take, self._posted, self._control.pointer
        post = self._machine.post
        with self._lock:
            for _ in range(self._lib.SMP_POSTED):
                if not take(control, slot):
                    return False
                post(slot.kind, slot.address, slot.size, slot.data)
        return True

    def _answer(self, index: int) -> None:
        request = self._control.vcpu(index).request
        kind, address, size, data = request.kind, request.address, request.size, request.data
        answer = self._machine.answer(index, kind, address, size, data)
        self._lib.smp_answer(self._control.pointer, index, answer)

    def _on_ready(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._ready_count += os.eventfd_read(self._ready)

    def _on_report(self, worker: Worker) -> None:
        worker.read_report()
        if worker.reported_at is not None:
            self._selector.unregister(worker.report_fd)

    def _on_end(self, worker: Worker) -> None:
        how = worker.ended_how()
        if how is None:
            return
        self._selector.unregister(worker.sentinel)
        worker.buried = True
        control, index = self._control, worker.index
        if control.state(index) != "stopped":
            control.mark_crashed(index)
        if control.is_dead:
            self._log.debug("worker left", vcpu=index, how=how)
            return
        registers = control.registers(index)
        where = f" at rip {registers.rip:#x}" if registers is not None else ""
        text = control.last_error(index) or f"vCPU {index}'s worker {how}{where}"
        control.kill(Reason.WORKER, text, vcpu=index)

    # Console ----------------------------------------------------------------------

    def send(self, data: bytes) -> None:
        """Console input from the Python API, in the loop; says what finds no room."""
        room = self._machine.console.input_room
        with self._lock:
            self._machine.console.receive(data[:room])
        if len(data) > room:
            self._log.warning(
                "console input lost: the guest did not read what came before",
                bytes=len(data) - room,
            )

    def _unwatch_source(self) -> None:
        if self._source is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(self._source.fd)
            self._source = None

    def _read_source(self) -> None:
        if self._source is None:
            return
        room = self._machine.console.input_room
        if room:
            data = self._source.read(room)
            with self._lock:
                self._machine.console.receive(data)
        if self._source.ended:
            self._unwatch_source()

    def _move_console(self) -> None:
        """After a round: output on its way, and the watches as the backlogs want them."""
        if self._source is not None and not self._control.is_dead:
            if self._source.at_once:
                self._read_source()
            else:
                room = self._machine.console.input_room > 0
                self._want(self._source.fd, selectors.EVENT_READ, self._read_source, wanted=room)
        self._flush_console()
        backlog = self._console.backlog()
        busy = backlog > (FREE_BELOW if self._line_busy else BUSY_ABOVE)
        if busy != self._line_busy:
            self._line_busy = busy
            with self._lock:
                self._machine.console.set_line_busy(busy)
        fd = self._console.fileno()
        if fd is not None:
            self._want(fd, selectors.EVENT_WRITE, lambda: None, wanted=backlog > 0)

    def _flush_console(self) -> None:
        if self._console_failed:
            return
        self._console_failed = True  # unless we come back from there
        try:
            self._console.flush()
        except ConsoleClosedError as closed:
            self._control.kill(
                Reason.INTERRUPTED, "nobody reads the console any more", code=closed.signum
            )
        except ConsoleFailedError as failed:
            self.console_failure = f"the console cannot be written: {failed}"
            self._control.kill(Reason.HOST, self.console_failure)
        self._console_failed = False

    def _want(self, fd: int, events: int, handler: Handler, *, wanted: bool) -> None:
        watched = fd in self._selector.get_map()
        if wanted and not watched:
            self._selector.register(fd, events, handler)
        elif watched and not wanted:
            self._selector.unregister(fd)
