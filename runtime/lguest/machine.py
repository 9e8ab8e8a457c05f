"""The `lguest` machine: what is wired to what.

Nothing is on a bus here: the Guest finds its devices on the device page and rings their
queues by NOTIFY, straight to the service's eventfd.  A NOTIFY that no eventfd claims
comes to `answer()`: a device's status, the early console, or a mistake.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.control import ControlBlock
from runtime.errors import HostError, UserError
from runtime.exits import Reason
from runtime.lguest.devices import DEVICE_PAGES, PAGE, DevicePage, Wiring
from runtime.lguest.options import BlockWish, DeviceWish, RngWish, SocketWish, TapWish
from runtime.memory import GuestRam
from runtime.virtio.blk import BlockDevice
from runtime.virtio.console import ConsoleDevice
from runtime.virtio.device import Device
from runtime.virtio.net_options import open_net
from runtime.virtio.rng import RngDevice
from switcher.pages import SwitcherError, map_switcher, unmap_switcher

NOTIFY = 0
"""The kind of a binding that is no port and no MMIO (`struct smp_binding`)."""

Call = Callable[[Callable[[], None]], None]


def block_size(ram_size: int) -> int:
    """Bytes of shared memory for `ram_size` bytes of RAM: the device pages follow it."""
    return ram_size + DEVICE_PAGES * PAGE


def open_device(wish: DeviceWish) -> Device:
    """The device for one option; raises UserError."""
    match wish:
        case BlockWish():
            return BlockDevice(wish.path, read_only=wish.readonly)
        case TapWish() | SocketWish():
            return open_net(wish.text)
        case RngWish():
            return RngDevice()


class LguestMachine:
    """The devices of one `lguest` machine; built by the Host before the workers are forked."""

    name = "lguest"

    def __init__(
        self,
        control: ControlBlock,
        ram: GuestRam,
        ram_size: int,
        devices: tuple[DeviceWish, ...],
        put: Callable[[int], None],
        call: Call,
        log: Any,
    ) -> None:
        """`ram_size`: bytes, without the device pages; `put`: a byte for the console, in the
        Host's loop; `call`: runs an order in that loop, from any thread.

        Raises UserError, HostError.
        """
        self._control = control
        self._lib: Any = control.switcher.lib
        self._put = put
        self.console = ConsoleDevice(self._put_all, call)
        self._map_switcher()
        try:
            self._page = DevicePage(
                ram, ram_size, self._open_devices(devices), self._make_wiring(log)
            )
        except BaseException:
            unmap_switcher(control.pointer)
            raise
        control.pointer.machine = self._lib.SMP_MACHINE_LGUEST
        control.pointer.pfn_limit = self._page.pfn_limit

    def _map_switcher(self) -> None:
        ffi, pointer = self._control.switcher.ffi, self._control.pointer
        size = ffi.new("uint32_t *")
        text = self._lib.smp_switcher_text(size)
        try:
            map_switcher(pointer, bytes(ffi.buffer(text, size[0])))
        except SwitcherError as error:
            raise HostError(str(error)) from error

    def _open_devices(self, wishes: tuple[DeviceWish, ...]) -> list[Device]:
        """In the order of the options, which is that of their irqs; the console is the last."""
        opened: list[Device] = []
        try:
            opened += map(open_device, wishes)
        except BaseException:
            for device in opened:
                device.close()
            raise
        return [*opened, self.console]

    def _make_wiring(self, log: Any) -> Wiring:
        lib, control = self._lib, self._control

        def bind(address: int, fd: int) -> None:
            result = lib.smp_bind(control.pointer, NOTIFY, address, fd)
            if result:
                raise HostError(f"cannot bind {address:#x} (error {result})")

        def broken(error: Exception) -> None:
            log.error("a device failed", exc_info=error)
            control.kill(Reason.HOST, f"a device failed: {type(error).__name__}: {error}")

        return Wiring(
            interrupt=lambda irq: lib.smp_device_interrupt(control.pointer, irq),
            fail=lambda text: control.kill(Reason.KILLED, text),
            broken=broken,
            bind=bind,
            unbind=lambda address: lib.smp_unbind(control.pointer, NOTIFY, address),
            early_console=self._put_all,
            warn=log.warning,
        )

    def _put_all(self, data: bytes) -> None:
        for byte in data:
            self._put(byte)

    def start(self, entry: int) -> None:
        """The first vCPU begins at `entry` (physical)."""
        if not self._lib.smp_vcpu_up(self._control.pointer, 0, entry, 0):
            raise UserError("the machine has been started already")

    # Platform -----------------------------------------------------------------------

    @property
    def fds(self) -> frozenset[int]:
        """The eventfds of the queues."""
        return self._page.worker_fds

    def answer(self, _vcpu: int, kind: int, address: int, _size: int, _data: int) -> int:
        """A NOTIFY that no eventfd claims.  There are no ports, so nothing is read or written."""
        if kind == self._lib.SMP_REQ_NOTIFY:
            self._page.notify(address)
        return 0

    def post(self, kind: int, address: int, size: int, data: int) -> None:
        """There are no ports."""

    def finish(self) -> None:
        """The vCPUs have stopped: so do the services, and the console's last words go out."""
        self._page.stop()
        self.console.finish()

    def close(self) -> None:
        """Give everything back."""
        self._page.close()
        unmap_switcher(self._control.pointer)
