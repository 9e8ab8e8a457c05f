"""What every virtio device has, whichever machine it is plugged into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from runtime.virtio.service import QueueService, Service

NET, BLOCK, CONSOLE, RNG = 1, 2, 3, 4
"""Device IDs (virtio 1.x, section 5); lguest's descriptor types are the same."""


class Device(Protocol):
    """A device without its transport: that has the rings, the status and the interrupts.

    `features` are the bits it offers, as one number; `config` its configuration
    space; `services` what serves its queues, by queue number.
    """

    kind: int
    name: str
    features: int
    config: bytes
    services: Sequence[Service]

    def start(self, features: int, queues: Sequence[QueueService]) -> None:
        """The driver has chosen `features` (of those offered); services start after this."""

    def reset(self) -> None:
        """The services have stopped; what the driver had set up is forgotten."""

    def close(self) -> None:
        """Give everything back.  The services have stopped."""


def feature_bits(*bits: int) -> int:
    """Bit numbers as one number."""
    return sum(1 << bit for bit in bits)
