"""The `lguest` machine: what is wired to what.

Nothing is on a bus here: the Guest finds its devices on the device page, and rings them by
NOTIFY.  One that no eventfd claims comes to `answer`: a device's status, the early
console, or a mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.control import ControlBlock
from runtime.exits import Reason
from runtime.memory import GuestRam
from switcher.pages import map_switcher, unmap_switcher

PAGE = 4096
DEVICE_PAGES = 256
"""Behind RAM: the page of descriptors, then the queues'."""
EARLY_CONSOLE_MAX = 4096


class _NoInput:
    """Until the console device is there."""

    input_room = 0

    def receive(self, data: bytes) -> None:
        pass

    def set_line_busy(self, busy: bool) -> None:
        pass


class LguestMachine:
    """The devices of one `lguest` machine; built by the Host before the workers are forked."""

    name = "lguest"

    def __init__(
        self, control: ControlBlock, ram_size: int, ram: GuestRam, transmit: Callable[[int], None], devices: tuple[Any, ...] = (), log: Any = None
    ) -> None:
        """`ram_size`: bytes of RAM, without the device pages.  Raises SwitcherError."""
        self._control = control
        self._transmit = transmit
        self._ram = ram
        self.fds: frozenset[int] = frozenset()
        self._lib: Any = control.switcher.lib
        self._limit = ram_size
        self.console = _NoInput()
        control.pointer.machine = self._lib.SMP_MACHINE_LGUEST
        control.pointer.pfn_limit = ram_size // PAGE + 1
        size = control.switcher.ffi.new("uint32_t *")
        text = self._lib.smp_switcher_text(size)
        map_switcher(control.pointer, bytes(control.switcher.ffi.buffer(text, size[0])))

    def start(self, entry: int) -> None:
        """The first vCPU begins at `entry` (physical)."""
        self._lib.smp_vcpu_up(self._control.pointer, 0, entry, 0)

    def answer(self, vcpu: int, kind: int, address: int, _size: int, _data: int) -> int:
        """A NOTIFY that no eventfd claims."""
        if kind == self._lib.SMP_REQ_NOTIFY:
            self._early_console(vcpu, address)
        return 0

    def _early_console(self, vcpu: int, address: int) -> None:
        if address >= self._limit:
            self._control.kill(Reason.KILLED, f"Bad NOTIFY {address:#x}", vcpu=vcpu)
            return
        text = self._ram.read(address, min(EARLY_CONSOLE_MAX, self._limit - address))
        for byte in text.split(b"\0")[0]:
            self._transmit(byte)

    def post(self, kind: int, address: int, size: int, data: int) -> None:
        """There are no ports."""

    def close(self) -> None:
        """Unmap the Switcher."""
        unmap_switcher(self._control.pointer)
