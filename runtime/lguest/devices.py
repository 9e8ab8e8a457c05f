"""The device page of the lguest machine: how its devices are found, set up and notified.

The page at the end of RAM holds `struct lguest_device_desc`s, packed back to
back without alignment; type 0 ends them.  Each is

    type, number of queues, feature bytes, config bytes, status     a byte each
    per queue: entries u16, irq u16, page u32                       lguest_vqconfig
    feature bits offered, feature bits accepted                     feature bytes each
    configuration

The queues' rings are in the pages behind it, 3 pages each.  Everything is in
guest memory, which the Guest may change: what we told it there we never read
back, save its status and the features that it accepted.

The Guest speaks to us by NOTIFY alone (`DevicePage.notify()`).  The NOTIFYs of a
queue do not come here: once the features are final each queue's address is
bound to its service's eventfd.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from runtime.errors import HostError, UserError
from runtime.virtio.device import Device
from runtime.virtio.service import QueueService
from runtime.virtio.vring import F_INDIRECT, Ram, Vring, legacy_layout

PAGE = 4096
DEVICE_PAGES = 256
"""Pages behind RAM for the descriptors and the rings; all machines have them in their block."""
VRING_NUM = 256
VRING_ALIGN = 4096
VRING_PAGES = (legacy_layout(0, VRING_NUM, VRING_ALIGN).size + PAGE - 1) // PAGE
LGUEST_IRQS = 32
"""Irqs 1 to 31 are for devices; 0 is the timer."""

STATUS_OFFSET = 4
STATUS_FAILED = 0x80

EARLY_MAX = 65536
"""Bytes of early console in one NOTIFY.  lguest wrote up to the end of memory; Linux sends 16."""
EARLY_PIECE = 256

_DESC = struct.Struct("<BBBBB")
_VQCONFIG = struct.Struct("<HHI")


@dataclass(frozen=True)
class Wiring:
    """What the device page wants from the machine.

    `interrupt(irq)` interrupts the Guest, `fail(text)` kills it, `broken(error)`
    is told of a failure of ours: these three from any thread.  `bind(address,
    fd)` makes a NOTIFY of `address` ring the eventfd (HostError when it cannot);
    after `unbind(address)` nobody rings it any more.  `early_console(data)`
    takes console output, `warn(text)` is for the log.
    """

    interrupt: Callable[[int], object]
    fail: Callable[[str], object]
    broken: Callable[[Exception], object]
    bind: Callable[[int, int], object]
    unbind: Callable[[int], object]
    early_console: Callable[[bytes], object]
    warn: Callable[[str], object]


@dataclass
class _Queue:
    address: int
    irq: int
    service: QueueService


@dataclass
class _Slot:
    """One device and where its descriptor is."""

    device: Device
    name: str  # block.0
    address: int
    feature_len: int
    queues: list[_Queue] = field(default_factory=list)
    running: bool = False

    @property
    def accepted(self) -> int:
        """The address of the features that the driver accepted."""
        return self.address + _DESC.size + _VQCONFIG.size * len(self.queues) + self.feature_len

    @property
    def size(self) -> int:
        return self.accepted + self.feature_len + len(self.device.config) - self.address


class DevicePage:
    """The devices of one machine, in the order in which the Guest finds them.

    lguest gave irqs (from 1) and ring pages in the order of the options, and
    put the console last; so does whoever makes the list.  `mem` is the size of
    RAM: the page's address.  Raises UserError when the devices do not fit.  The
    devices are ours from now on: `close()` closes them too.

    Everything here is for the Host's thread, without the Big Lock: services
    that we wait for may want it.
    """

    def __init__(
        self,
        ram: Ram,
        mem: int,
        devices: Sequence[Device],
        wiring: Wiring,
        *,
        irqs: int = LGUEST_IRQS,
    ) -> None:
        self._ram = ram
        self._mem = mem
        self._wiring = wiring
        self._slots: list[_Slot] = []
        self._closing = ExitStack()  # devices and eventfds
        for device in devices:
            self._closing.callback(device.close)
        try:
            self._lay_out(devices, irqs)
            for slot in self._slots:
                ram.write(slot.address, _descriptor(slot))
        except BaseException:
            self._closing.close()
            raise

    @property
    def guest_limit(self) -> int:
        """The first address behind the device pages in use; what a NOTIFY must be below."""
        rings = sum(len(slot.queues) for slot in self._slots)
        return self._mem + PAGE * (1 + VRING_PAGES * rings)

    @property
    def pfn_limit(self) -> int:
        """The first page that does not exist."""
        return self.guest_limit // PAGE

    @property
    def worker_fds(self) -> frozenset[int]:
        """The eventfds that workers ring, and therefore keep."""
        return frozenset(queue.service.fd for slot in self._slots for queue in slot.queues)

    def stop(self) -> None:
        """Stop every service; raises HostError if one does not stop."""
        self._stop(self._slots)

    def close(self) -> None:
        """Stop every service, unbind, close the devices.

        Raises HostError if a service does not stop; the others are stopped and closed.
        """
        try:
            self._stop(self._slots)
        finally:
            self._closing.close()
            self._slots = []

    # Layout -------------------------------------------------------------------------

    def _lay_out(self, devices: Sequence[Device], irqs: int) -> None:
        address, page, irq = self._mem, self._mem // PAGE + 1, 1
        for number, device in enumerate(devices):
            length = (device.features.bit_length() + 7) // 8
            slot = _Slot(device, f"{device.name}.{number}", address, length)
            self._slots.append(slot)
            for service in device.services:
                if irq >= irqs:
                    raise UserError(
                        f"too many devices: their queues need more than {irqs - 1} irqs"
                    )
                slot.queues.append(_Queue(page * PAGE, irq, self._make_service(slot, irq, service)))
                page += VRING_PAGES
                irq += 1
            address += slot.size
        # One byte must remain for the type 0 that ends the list.
        if address - self._mem >= PAGE:
            raise UserError("too many devices: their descriptors do not fit one page")
        if page - self._mem // PAGE > DEVICE_PAGES:
            raise UserError(f"too many devices: their rings need more than {DEVICE_PAGES} pages")

    def _make_service(
        self, slot: _Slot, irq: int, service: Callable[[QueueService], None]
    ) -> QueueService:
        wiring = self._wiring
        made = QueueService(
            f"{slot.name} queue {len(slot.queues)}",
            service,
            lambda: wiring.interrupt(irq),
            wiring.fail,
            wiring.broken,
        )
        self._closing.callback(made.close)
        return made

    # NOTIFY -------------------------------------------------------------------------

    def notify(self, address: int) -> bool:
        """The Guest notified us of `address`, and no eventfd is bound to it.

        False: the Guest was killed for it.
        """
        for slot in self._slots:
            if address == slot.address:
                return self._status_changed(slot)
            for queue in slot.queues:
                if address != queue.address:
                    continue
                if not slot.running:
                    return self._fail(f"Notification on {slot.name} before setup!")
                queue.service.kick()  # asked for just before it was bound, by another vCPU
                return True
        if address >= self.guest_limit:
            return self._fail(f"Bad NOTIFY {address:#x}")
        for piece in self._text(address):
            self._wiring.early_console(piece)
        return True

    def _text(self, address: int) -> Iterator[bytes]:
        """The NUL-terminated string at `address`, without the NUL."""
        end = min(self.guest_limit, address + EARLY_MAX)
        while address < end:
            piece = self._ram.read(address, min(EARLY_PIECE, end - address))
            text, nul, _ = piece.partition(b"\0")
            if text:
                yield text
            if nul:
                return
            address += len(piece)

    def _status_changed(self, slot: _Slot) -> bool:
        """Status 0 is a reset; FAILED is one with a warning; anything else: features are final.

        Linux says so before DRIVER_OK, which it then writes without telling us.
        """
        status = self._ram.read(slot.address + STATUS_OFFSET, 1)[0]
        if status == 0:
            self._reset(slot)
        elif status & STATUS_FAILED:
            self._wiring.warn(f"the Guest's driver gave up device {slot.name}")
            if slot.running:
                self._reset(slot)
        elif slot.running:
            return self._fail(f"Device {slot.name} features finalized twice")
        else:
            self._start(slot)
        return True

    def _reset(self, slot: _Slot) -> None:
        self._stop([slot])
        self._ram.write(slot.accepted, bytes(slot.feature_len))
        for queue in slot.queues:
            self._ram.write(queue.address, bytes(VRING_PAGES * PAGE))

    def _start(self, slot: _Slot) -> None:
        """Threads first, then the bindings: a bound queue is served."""
        raw = self._ram.read(slot.accepted, slot.feature_len)
        # lguest never looked whether it had offered what was accepted.
        features = int.from_bytes(raw, "little") & slot.device.features
        slot.device.start(features, [queue.service for queue in slot.queues])
        slot.running = True
        for queue in slot.queues:
            layout = legacy_layout(queue.address, VRING_NUM, VRING_ALIGN)
            ring = Vring(
                self._ram,
                VRING_NUM,
                layout.desc,
                layout.avail,
                layout.used,
                indirect=bool(features >> F_INDIRECT & 1),
            )
            queue.service.start(ring)
            self._wiring.bind(queue.address, queue.service.fd)

    def _stop(self, slots: Sequence[_Slot]) -> None:
        """Unbind, and wait until the services have left; all of `slots` at the same time.

        lguest left a dead queue's eventfd registered, and a queue set up again
        was never woken, as the old one answered first.  No guest can depend on
        a queue that is dead, and those that reload a driver depend on one that
        lives; so we unbind.
        """
        running = [slot for slot in slots if slot.running]
        queues = [queue for slot in running for queue in slot.queues]
        for queue in queues:
            self._wiring.unbind(queue.address)
            queue.service.ask_to_stop()
        with contextlib.ExitStack() as stack:  # all of them, also when one does not stop
            for queue in queues:
                stack.callback(queue.service.stop)
        for slot in running:
            slot.running = False
            slot.device.reset()

    def _fail(self, text: str) -> bool:
        self._wiring.fail(text)
        return False


def _descriptor(slot: _Slot) -> bytes:
    device = slot.device
    length, config = slot.feature_len, device.config
    if len(config) > 255:
        raise HostError(f"{slot.name}: a configuration of {len(config)} bytes does not fit")
    return b"".join(
        [
            _DESC.pack(device.kind, len(slot.queues), length, len(config), 0),
            *[_VQCONFIG.pack(VRING_NUM, q.irq, q.address // PAGE) for q in slot.queues],
            device.features.to_bytes(length, "little"),
            bytes(length),
            config,
        ]
    )
