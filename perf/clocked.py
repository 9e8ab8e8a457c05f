"""The Launcher, with a source of random numbers that tells the time instead.

    python -m perf.clocked run --machine lguest --rng --append clock build/guests/lguest/cost.elf

guests/cost.c asks it: each request is answered with the Guest's TSC when the service took it,
and when the interrupt for the one before was sent.  Host and Guest read the same counter (the
Guest's begins at 0: `tsc_start` in the control block), so the Guest can subtract.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from unittest.mock import patch

import launcher
import runtime.machine
from runtime.lguest.machine import LguestMachine
from runtime.lguest.options import DeviceWish
from runtime.virtio.device import Device
from runtime.virtio.rng import RngDevice
from runtime.virtio.service import QueueService

ANSWER = struct.Struct("<2Q")


class ClockDevice(RngDevice):
    """To the Guest it is a source of random numbers."""

    def __init__(self, now: Callable[[], int]) -> None:
        super().__init__()
        self.services = (self._tell,)
        self._now = now
        self._interrupted = 0

    def _tell(self, queue: QueueService) -> None:
        chain = queue.wait_for_chain()
        taken = self._now()
        chain.write(ANSWER.pack(taken, self._interrupted))
        queue.used(chain)
        self._interrupted = self._now()
        queue.interrupt_guest()


class ClockedMachine(LguestMachine):
    """The lguest machine with a clock in the place of its source of random numbers."""

    def _open_devices(self, wishes: tuple[DeviceWish, ...]) -> list[Device]:
        lib, pointer = self._lib, self._control.pointer

        def now() -> int:
            return int(lib.smp_guest_tsc(pointer))

        opened = super()._open_devices(wishes)
        return [ClockDevice(now) if isinstance(it, RngDevice) else it for it in opened]


def main() -> int:
    """The Launcher's status."""
    with patch.object(runtime.machine, "LguestMachine", ClockedMachine):
        return launcher.main()


if __name__ == "__main__":
    sys.exit(main())
