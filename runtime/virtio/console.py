"""The console device (virtio 1.x, section 5.3): queue 0 is input, queue 1 output.

Towards the Host it looks as the UART does: `receive()`, `input_room`,
`set_line_busy()`.  Behind these are two threads, one a queue, and neither ever
drops a byte: output that the Host cannot pass on stays in our buffer, then in
the ring, and then the Guest waits; input that the Guest has no buffers for
stays here, and then with its sender.

Who may touch what: the two byte buffers and the flags beside them are shared by
the services and the Host's loop, under `_lock`, which nobody holds while
waiting or calling out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from runtime.virtio.device import CONSOLE
from runtime.virtio.service import QueueService, Service
from runtime.virtio.vring import VringError

WAITING_MAX = 4096
"""Bytes of input taken from the sender ahead of the Guest."""
OUTPUT_MAX = 65536
"""Bytes of output taken from the Guest ahead of the Host's loop."""

INPUT, OUTPUT = 0, 1


class ConsoleDevice:
    """One console.

    `put(data)` takes output, in the Host's loop only; `call(order)` makes that
    loop run `order()` soon, and may be called from any thread (Host.call).
    """

    kind = CONSOLE
    name = "console"
    features = 0
    config = b""

    def __init__(
        self, put: Callable[[bytes], object], call: Callable[[Callable[[], None]], None]
    ) -> None:
        self._put = put
        self._call = call
        self._lock = threading.Lock()
        self._waiting = bytearray()  # input that the Guest has not taken
        self._output = bytearray()  # output that the Host has not taken
        self._called = False  # the Host's loop will run _hand_over() anyway
        self._line_busy = False
        self._queues: Sequence[QueueService] = ()
        self.services: Sequence[Service] = (self._serve_input, self._serve_output)

    def start(self, features: int, queues: Sequence[QueueService]) -> None:
        """From now on there is somebody to kick."""
        self._queues = queues

    def reset(self) -> None:
        """What waits to go in or out still waits: it is the Host's, not the driver's."""
        self._queues = ()

    def close(self) -> None:
        """Nothing to give back."""

    # The Host's side ----------------------------------------------------------------

    @property
    def input_room(self) -> int:
        """How many bytes `receive()` takes now; when it grows from 0 the loop is called."""
        return max(0, WAITING_MAX - len(self._waiting))

    def receive(self, data: bytes) -> None:
        """Input from outside, at most `input_room` bytes.  From any thread."""
        with self._lock:
            self._waiting += data
        self._kick(INPUT)

    def take_unread(self) -> bytes:
        """All input that the Guest has not read; it is the caller's again."""
        with self._lock:
            unread = bytes(self._waiting)
            self._waiting.clear()
        return unread

    def set_line_busy(self, busy: bool) -> None:
        """Back-pressure: while busy no output is handed over.  In the Host's loop."""
        with self._lock:
            self._line_busy = busy
            call = not busy and bool(self._output) and not self._called
            self._called |= call
        if call:
            # In a round of its own: the Host has flushed its output in this one.
            self._call(self._hand_over)

    def finish(self) -> None:
        """The machine ends: hand over what is still here, busy or not.  In the Host's thread."""
        with self._lock:
            self._line_busy = False
        self._hand_over()

    def _hand_over(self) -> None:
        """In the Host's loop: the output goes on its way, and the Guest may send more."""
        with self._lock:
            self._called = False
            if self._line_busy or not self._output:
                return
            data = bytes(self._output)
            self._output.clear()
        self._put(data)
        self._kick(OUTPUT)

    def _kick(self, queue: int) -> None:
        queues = self._queues
        if queues:
            queues[queue].kick()

    # The Guest's side ---------------------------------------------------------------

    def _serve_output(self, queue: QueueService) -> None:
        chain = queue.wait_for_chain()
        if chain.room:
            raise VringError("a request for output has writable parts")
        while chain.unread:
            queue.wait_until(lambda: len(self._output) < OUTPUT_MAX)
            # Only this thread adds, so the room is still there.
            data = chain.read(OUTPUT_MAX - len(self._output))
            with self._lock:
                self._output += data
                # While the line is busy, set_line_busy(False) will hand over.
                call = not (self._called or self._line_busy)
                self._called |= call
            if call:
                self._call(self._hand_over)
        queue.used(chain)

    def _serve_input(self, queue: QueueService) -> None:
        """One interrupt for each piece of input, at once: somebody is typing."""
        chain = queue.wait_for_chain()
        if chain.unread:
            raise VringError("a request for input has readable parts")
        queue.wait_until(lambda: bool(self._waiting))
        with self._lock:
            was_full = len(self._waiting) >= WAITING_MAX
            piece = bytes(self._waiting[: chain.room])
            del self._waiting[: chain.room]
        chain.write(piece)
        queue.used(chain)
        queue.interrupt_guest()
        if was_full and piece:
            self._call(_nothing)  # the Host watches the sender again


def _nothing() -> None:
    """For `call`: what counts is that the loop makes a round."""
