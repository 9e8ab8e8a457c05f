"""A network cable that is a UNIX stream socket: to another machine, or to passt.

On the wire each frame follows its length, 4 bytes, big endian: what QEMU's
`-netdev stream` and passt speak.  There are no virtio headers, so no offloads.

The other end may be absent, come late, go, and come back.  Without it frames
are lost, as from an unplugged cable, and the Guest notices nothing else.  When
it is there but does not read, we wait, and then the Guest does.

Who may touch what: the receiving thread owns the connection: it alone makes and
closes it.  The transmitting thread uses it under `_sending`, across its waits
too; so to close it the receiver shuts it down first, which ends such a wait.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import struct
import threading

from runtime import nursery
from runtime.errors import UserError
from runtime.virtio.net import FRAME_MAX, FRAME_MIN, HEADER_SIZE
from runtime.virtio.service import QueueService

RETRY_SECONDS = 0.5
"""How often we look whether somebody listens at last."""
RECEIVE_SIZE = 65536

_LENGTH = struct.Struct(">I")
_NO_OFFLOADS = bytes(HEADER_SIZE)


class StreamBackend:
    """One cable.  Raises UserError when the socket cannot be made."""

    features = 0

    def __init__(self, path: str, *, listen: bool) -> None:
        self._path = path
        self._peer: socket.socket | None = None
        self._sending = threading.Lock()
        self._received = bytearray()  # came, and is not a whole frame yet, or not asked for
        self._unsent = memoryview(b"")  # the rest of a frame of which a part has gone
        self._listener = _listen(path) if listen else None

    def start(self, features: int) -> None:
        """Nothing to choose."""

    def close(self) -> None:
        """Hang up; a socket that we made is gone."""
        self._hang_up()
        if self._listener is not None:
            _close(self._listener)
            self._listener = None
            with contextlib.suppress(OSError):
                os.unlink(self._path)

    # Receiving ----------------------------------------------------------------------

    def receive(self, queue: QueueService) -> bytes:
        """The next frame, behind an empty header."""
        while True:
            queue.check()
            frame = self._cut_frame()
            if frame is not None:
                return _NO_OFFLOADS + frame
            if self._peer is None:
                self._find_peer(queue)
            else:
                self._take(queue, self._peer)

    def _cut_frame(self) -> bytes | None:
        """The first whole frame of what came; None if there is none yet."""
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            if length > FRAME_MAX:
                self._hang_up()  # no peer of ours: from here on nothing would make sense
                return None
            end = _LENGTH.size + length
            if len(self._received) < end:
                return None
            frame = bytes(self._received[_LENGTH.size : end])
            del self._received[:end]
            if length >= FRAME_MIN:
                return frame
        return None

    def _take(self, queue: QueueService, peer: socket.socket) -> None:
        try:
            data = peer.recv(RECEIVE_SIZE)
        except BlockingIOError:
            queue.sleep(peer.fileno(), select.POLLIN)
            return
        except OSError:
            data = b""
        if data:
            self._received += data
        else:
            self._hang_up()

    # The connection -----------------------------------------------------------------

    def _find_peer(self, queue: QueueService) -> None:
        with nursery.no_births():
            peer = self._connect() if self._listener is None else self._accept(self._listener)
            if peer is not None:
                nursery.adopt(peer.fileno())
        if peer is not None:
            with self._sending:
                self._peer = peer
        elif self._listener is not None:
            queue.sleep(self._listener.fileno(), select.POLLIN)
        else:
            queue.sleep(timeout=RETRY_SECONDS)  # nothing rings when a socket begins to listen

    def _connect(self) -> socket.socket | None:
        peer = _socket()
        try:
            peer.connect(self._path)
        except (OSError, ValueError):
            peer.close()
            return None
        return peer

    @staticmethod
    def _accept(listener: socket.socket) -> socket.socket | None:
        try:
            peer, _ = listener.accept()
        except OSError:  # nobody, or gone again
            return None
        peer.setblocking(False)
        return peer

    def _hang_up(self) -> None:
        if self._peer is None:
            return
        with contextlib.suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)
        with self._sending:
            _close(self._peer)
            self._peer = None
            self._unsent = memoryview(b"")
        self._received.clear()

    # Transmitting -------------------------------------------------------------------

    def send(self, queue: QueueService, packet: bytes) -> None:
        """The frame of `packet`; without a peer it is lost."""
        with self._sending:
            # A frame that a reset interrupted has to be finished first: the peer waits for it.
            self._send_rest(queue)
            frame = packet[HEADER_SIZE:]
            self._unsent = memoryview(_LENGTH.pack(len(frame)) + frame)
            self._send_rest(queue)

    def _send_rest(self, queue: QueueService) -> None:
        while self._unsent:
            if self._peer is None:
                self._unsent = memoryview(b"")
                return
            try:
                sent = self._peer.send(self._unsent, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                queue.sleep(self._peer.fileno(), select.POLLOUT)
                continue
            except OSError:  # it has gone; the receiving thread will see that and hang up
                self._unsent = memoryview(b"")
                return
            self._unsent = self._unsent[sent:]


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # Python adds SOCK_CLOEXEC
    made.setblocking(False)
    return made


def _close(ours: socket.socket) -> None:
    nursery.disown(ours.fileno())
    ours.close()


def _listen(path: str) -> socket.socket:
    with nursery.no_births():
        listener = _socket()
        nursery.adopt(listener.fileno())
        try:
            _unlink_stale(path)
            listener.bind(path)
            listener.listen(1)
        except (OSError, ValueError) as error:
            _close(listener)
            why = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise UserError(f"cannot listen at {path}: {why}") from error
    return listener


def _unlink_stale(path: str) -> None:
    """Take away a socket at which nobody listens any more; anything else there is left alone."""
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            return  # bind() will complain
    except FileNotFoundError:
        return
    with _socket() as probe:
        if probe.connect_ex(path) == errno.ECONNREFUSED:
            os.unlink(path)
