"""The network device (virtio 1.x, section 5.1): queue 0 receives, queue 1 transmits.

The other end of the cable is a back end: a TAP device (net_tap.py), or a UNIX
stream socket to another machine or to passt (net_stream.py).  Packets that come
while the driver has no buffer for them stay in the back end, whose sender
waits or drops as it sees fit; we drop only what no driver could take.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Protocol

from runtime.virtio.device import NET, feature_bits
from runtime.virtio.service import QueueService, Service
from runtime.virtio.vring import F_INDIRECT, VringError

F_CSUM, F_GUEST_CSUM, F_MAC = 0, 1, 5
F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_ECN = 7, 8, 9
F_HOST_TSO4, F_HOST_TSO6, F_HOST_ECN = 11, 12, 13

HEADER_SIZE = 10
"""struct virtio_net_hdr as legacy drivers have it: without num_buffers."""
FRAME_MIN = 14
FRAME_MAX = 65535 + 18
"""An Ethernet header, a VLAN tag, and the longest IP packet (offloads make such)."""

_CONFIG = struct.Struct("<6sHH")  # MAC, status, most pairs of queues; only MAC is ever offered


class Backend(Protocol):
    """The other end; a packet is a struct virtio_net_hdr and a frame.

    `features` are the offloads that it understands in that header.  `receive`
    and `send` are called by two threads, one each.
    """

    features: int

    def start(self, features: int) -> None:
        """The driver knows `features`: nothing else may be in the headers it gets."""

    def receive(self, queue: QueueService) -> bytes:
        """The next packet; waits with `queue.sleep()`."""

    def send(self, queue: QueueService, packet: bytes) -> None:
        """Waits with `queue.sleep()` while the other end takes no more."""

    def close(self) -> None:
        """The services have stopped."""


class NetDevice:
    """One network card; without a `mac` the driver makes one up."""

    kind = NET
    name = "net"

    def __init__(self, backend: Backend, mac: bytes | None = None) -> None:
        self._backend = backend
        self.features = backend.features | feature_bits(F_INDIRECT)
        if mac is not None:
            self.features |= feature_bits(F_MAC)
        self.config = _CONFIG.pack(mac or bytes(6), 0, 0)
        self.services: Sequence[Service] = (self._serve_receive, self._serve_transmit)

    def start(self, features: int, queues: Sequence[QueueService]) -> None:
        """The back end may use the offloads that the driver knows."""
        self._backend.start(features)

    def reset(self) -> None:
        """No driver, no offloads."""
        self._backend.start(0)

    def close(self) -> None:
        """Pull the cable."""
        self._backend.close()

    def _serve_receive(self, queue: QueueService) -> None:
        chain = queue.wait_for_chain()
        if chain.unread:
            raise VringError("a receive buffer has readable parts")
        if chain.room < HEADER_SIZE:
            raise VringError(f"a receive buffer has {chain.room} bytes, less than a header")
        packet = self._backend.receive(queue)
        while len(packet) > chain.room:
            # Longer than the driver expects frames to be: every card drops these.
            packet = self._backend.receive(queue)
        chain.write(packet)
        queue.used(chain)

    def _serve_transmit(self, queue: QueueService) -> None:
        chain = queue.wait_for_chain()
        if chain.room:
            raise VringError("a packet to transmit has writable parts")
        if chain.unread < HEADER_SIZE:
            raise VringError(f"a packet of {chain.unread} bytes has no whole header")
        if chain.unread <= HEADER_SIZE + FRAME_MAX:  # else there is no such frame
            self._backend.send(queue, chain.read(chain.unread))
        queue.used(chain)
