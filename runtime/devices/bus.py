"""The device bus: who answers which port and which physical address.

Devices register before the Guest runs; ranges are checked and may not
overlap.  The Switcher learns of every port through a `PortTable`, so that
accesses to nobody's ports never leave the vCPU, writes that need no answer
are posted, and reads without side effect are answered from a shadow.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from runtime.errors import HostError

PORTS = 0x10000
ALL_ONES = {1: 0xFF, 2: 0xFFFF, 4: 0xFFFFFFFF, 8: 0xFFFFFFFFFFFFFFFF}


class Device(Protocol):
    """What a device offers: registers at byte offsets from the base of its range.

    `width` is its widest access in bytes; wider ones are split by the bus,
    lowest address first.  Neither method raises for anything the Guest does.
    """

    width: int

    def read(self, offset: int, size: int) -> int:
        """The register at `offset`; more bits than `size` bytes are cut off by the bus."""

    def write(self, offset: int, size: int, value: int) -> None:
        """`value` has no more than `size` bytes."""


class PortTable(Protocol):
    """How the Switcher is told what to do with a port (control.h, SMP_PORT_*)."""

    def set_port(self, port: int, *, sync: bool, posted: bool, shadow: int | None) -> None:
        """Takes effect at the next access of any vCPU."""


class NoPortTable:
    """For tests, and for buses whose ports no Switcher sees."""

    def set_port(self, port: int, *, sync: bool, posted: bool, shadow: int | None) -> None:
        """Nothing to tell."""


@dataclass(frozen=True)
class Claim:
    """One registered range: `[base, base + size)`."""

    name: str
    base: int
    size: int
    device: Device

    @property
    def end(self) -> int:
        """The first address behind the range."""
        return self.base + self.size


class Bus:
    """Ports and MMIO ranges, and the accesses to them."""

    def __init__(self, table: PortTable) -> None:
        self._table = table
        self._ports: dict[int, Claim] = {}
        self._posted: set[int] = set()
        self._shadows: dict[int, int] = {}
        self._mmio: list[Claim] = []

    # Registration -------------------------------------------------------------

    def add_ports(
        self, name: str, base: int, size: int, device: Device, posted: Collection[int] = ()
    ) -> None:
        """`device` answers ports `[base, base + size)`; writes at offsets `posted` need no answer.

        Raises HostError for a range outside the I/O space or already taken.
        """
        claim = Claim(name, base, size, device)
        if size <= 0 or base < 0 or claim.end > PORTS:
            raise HostError(f"{name}: ports {base:#x}..{claim.end:#x} are not in the I/O space")
        for port in range(base, claim.end):
            if port in self._ports:
                raise HostError(
                    f"{name}: port {port:#x} already belongs to {self._ports[port].name}"
                )
        for port in range(base, claim.end):
            self._ports[port] = claim
            if port - base in posted:
                self._posted.add(port)
            self.publish(port, self._shadows.get(port))

    def add_mmio(self, name: str, base: int, size: int, device: Device, ram_size: int = 0) -> None:
        """`device` answers physical addresses `[base, base + size)`.

        Raises HostError for an empty range, one that RAM covers, or one already taken.
        """
        claim = Claim(name, base, size, device)
        if size <= 0 or base < ram_size or claim.end > 1 << 52:
            raise HostError(f"{name}: {base:#x}..{claim.end:#x} is not free physical address space")
        for other in self._mmio:
            if base < other.end and other.base < claim.end:
                raise HostError(f"{name}: {base:#x}..{claim.end:#x} overlaps {other.name}")
        self._mmio.append(claim)

    def publish(self, port: int, value: int | None) -> None:
        """From now on reads of `port` give `value` without asking us; None: ask us again."""
        if value is None:
            self._shadows.pop(port, None)
        else:
            self._shadows[port] = value
        self._table.set_port(port, sync=True, posted=port in self._posted, shadow=value)

    @property
    def mmio_ranges(self) -> list[tuple[int, int]]:
        """(base, size) of every MMIO range, for the Switcher."""
        return [(claim.base, claim.size) for claim in self._mmio]

    # Accesses of the Guest ----------------------------------------------------

    def pio_read(self, port: int, size: int) -> int:
        """IN: the value; nobody's bytes are all ones."""
        claim = self._ports.get(port)
        if claim is not None and size <= claim.device.width and port + size <= claim.end:
            return claim.device.read(port - claim.base, size) & ALL_ONES[size]
        if size == 1:
            return 0xFF
        half = size // 2
        return self.pio_read(port, half) | self.pio_read((port + half) % PORTS, half) << (8 * half)

    def pio_write(self, port: int, size: int, value: int) -> None:
        """OUT: nobody's bytes go nowhere."""
        claim = self._ports.get(port)
        if claim is not None and size <= claim.device.width and port + size <= claim.end:
            claim.device.write(port - claim.base, size, value & ALL_ONES[size])
        elif size > 1:
            half = size // 2
            self.pio_write(port, half, value & ALL_ONES[half])
            self.pio_write((port + half) % PORTS, half, value >> (8 * half))

    def mmio_read(self, address: int, size: int) -> int:
        """A load from device space; nobody's bytes are all ones."""
        claim = self._find(address, size)
        if claim is not None and size <= claim.device.width:
            return claim.device.read(address - claim.base, size) & ALL_ONES[size]
        if size == 1:
            return 0xFF
        half = size // 2
        return self.mmio_read(address, half) | self.mmio_read(address + half, half) << (8 * half)

    def mmio_write(self, address: int, size: int, value: int) -> None:
        """A store to device space; nobody's bytes go nowhere."""
        claim = self._find(address, size)
        if claim is not None and size <= claim.device.width:
            claim.device.write(address - claim.base, size, value & ALL_ONES[size])
        elif size > 1:
            half = size // 2
            self.mmio_write(address, half, value & ALL_ONES[half])
            self.mmio_write(address + half, half, value >> (8 * half))

    def _find(self, address: int, size: int) -> Claim | None:
        for claim in self._mmio:
            if claim.base <= address and address + size <= claim.end:
                return claim
        return None
