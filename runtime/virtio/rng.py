"""The entropy device (virtio 1.x, section 5.4): one queue of buffers to fill."""

from __future__ import annotations

import os
from collections.abc import Sequence

from runtime.virtio.device import RNG
from runtime.virtio.service import QueueService, Service
from runtime.virtio.vring import VringError

PIECE = 65536


class RngDevice:
    """Fills buffers with what getrandom() gives."""

    kind = RNG
    name = "rng"
    features = 0
    config = b""

    def __init__(self) -> None:
        self.services: Sequence[Service] = (self._fill,)

    def start(self, features: int, queues: Sequence[QueueService]) -> None:
        """Nothing to choose."""

    def reset(self) -> None:
        """Nothing to forget."""

    def close(self) -> None:
        """Nothing to give back."""

    def _fill(self, queue: QueueService) -> None:
        chain = queue.wait_for_chain()
        if chain.unread:
            raise VringError("a request for randomness has readable parts")
        # The whole buffer, as lguest did, however long it is.
        while chain.room:
            queue.check()
            chain.write(os.urandom(min(chain.room, PIECE)))
        queue.used(chain)
