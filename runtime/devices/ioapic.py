"""The I/O APIC (Intel 82093AA data sheet; SDM vol. 3, 11.6 for the messages it sends).

24 pins, edge and level with remote IRR.  An edge on a masked pin is ignored;
a level pin that is still asserted when its EOI arrives is delivered again, and
one that nobody took when some local APIC changes.  Both come from the local
APICs through the posted ring.
"""

from __future__ import annotations

from collections.abc import Callable

BASE = 0xFEC00000
SIZE = 0x1000
PINS = 24
VERSION = 0x11 | (PINS - 1) << 16

IOREGSEL, IOWIN = 0x00, 0x10
REG_ID, REG_VERSION, REG_ARBITRATION, REG_REDIRECTION = 0x00, 0x01, 0x02, 0x10

MASKED = 1 << 16
LEVEL = 1 << 15
REMOTE_IRR = 1 << 14
ACTIVE_LOW = 1 << 13
STATUS = 1 << 12
LOGICAL = 1 << 11
READ_ONLY = REMOTE_IRR | STATUS
WRITABLE_LOW = 0x1AFFF
DELIVER_FIXED, DELIVER_LOWEST, DELIVER_SMI, DELIVER_EXTINT = 0, 1, 2, 7

Deliver = Callable[[int, bool, int, int, bool], int]
"""`(destination, logical, delivery mode, vector, level)` → how many vCPUs took it."""
WantTaker = Callable[[bool], None]
"""Did nobody take a level interrupt?  After True `retry()` is called when somebody might."""


class IoApic:
    """The one I/O APIC of the machine.

    `deliver` is the Switcher's `smp_deliver`, `want_taker` its `smp_want_taker`.
    """

    width = 4

    def __init__(self, deliver: Deliver, want_taker: WantTaker, apic_id: int = 0) -> None:
        self._deliver = deliver
        self._want_taker = want_taker
        self._id = apic_id << 24
        self._select = 0
        self._entries = [MASKED] * PINS
        self._lines = [False] * PINS

    def read(self, offset: int, size: int) -> int:
        """IOREGSEL or IOWIN; other offsets read zero."""
        if offset == IOREGSEL:
            return self._select
        if offset == IOWIN:
            return self._read_register()
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """IOREGSEL or IOWIN."""
        if offset == IOREGSEL:
            self._select = value & 0xFF
        elif offset == IOWIN:
            self._write_register(value)

    def set_line(self, pin: int, level: bool) -> None:
        """A device drives `pin`; polarity is already taken off (True: asserted)."""
        rose = level and not self._lines[pin]
        self._lines[pin] = level
        entry = self._entries[pin]
        if entry & LEVEL:
            self._service_level(pin)
        elif rose and not entry & MASKED:
            self._send(pin)

    def eoi(self, vector: int) -> None:
        """A local APIC ended a level-triggered interrupt `vector`."""
        for pin, entry in enumerate(self._entries):
            if entry & LEVEL and entry & REMOTE_IRR and entry & 0xFF == vector:
                self._entries[pin] &= ~REMOTE_IRR
                self._service_level(pin)

    def retry(self) -> None:
        """A local APIC has changed: what nobody took may find somebody now."""
        self._want_taker(False)
        for pin, entry in enumerate(self._entries):
            if entry & LEVEL:
                self._service_level(pin)

    def _service_level(self, pin: int) -> None:
        entry = self._entries[pin]
        if not self._lines[pin] or entry & (MASKED | REMOTE_IRR):
            return
        if entry >> 8 & 7 not in (DELIVER_FIXED, DELIVER_LOWEST):
            self._send(pin)
            return
        taken = self._send(pin)
        if not taken:
            self._want_taker(True)
            taken = self._send(pin)  # to one that changed before it could know
        if taken:
            self._entries[pin] |= REMOTE_IRR

    def _send(self, pin: int) -> int:
        entry = self._entries[pin]
        mode = entry >> 8 & 7
        if mode in (DELIVER_SMI, DELIVER_EXTINT):
            return 0  # no SMM; the PIC never has an interrupt to hand over
        return self._deliver(
            entry >> 56, bool(entry & LOGICAL), mode, entry & 0xFF, bool(entry & LEVEL)
        )

    def _read_register(self) -> int:
        if self._select in (REG_ID, REG_ARBITRATION):
            return self._id
        if self._select == REG_VERSION:
            return VERSION
        pin, high = divmod(self._select - REG_REDIRECTION, 2)
        if 0 <= pin < PINS:
            return self._entries[pin] >> (32 if high else 0) & 0xFFFFFFFF
        return 0

    def _write_register(self, value: int) -> None:
        if self._select == REG_ID:
            self._id = value & 0x0F000000
            return
        pin, high = divmod(self._select - REG_REDIRECTION, 2)
        if not 0 <= pin < PINS:
            return
        entry = self._entries[pin]
        if high:
            self._entries[pin] = entry & 0xFFFFFFFF | (value & 0xFF000000) << 32
        else:
            kept = entry & READ_ONLY if value & LEVEL else 0  # edge: no remote IRR, it falls
            self._entries[pin] = entry & ~0xFFFFFFFF | value & WRITABLE_LOW | kept
        if self._entries[pin] & LEVEL:
            self._service_level(pin)
