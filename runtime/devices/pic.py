"""The two 8259A interrupt controllers: latches only (Intel 8259A data sheet).

Kernels set them up and mask them before they use the IOAPIC, and some read the
mask back to see whether there is a PIC at all.  Nothing is ever delivered.
"""

from __future__ import annotations

MASTER, SLAVE, SIZE = 0x20, 0xA0, 2
ELCR, ELCR_SIZE = 0x4D0, 2
POSTED = frozenset({0, 1})

ICW1, ICW1_NEEDS_ICW4, ICW1_SINGLE = 0x10, 0x01, 0x02


class Pic:
    """One 8259A: command at offset 0, data at offset 1."""

    width = 1

    def __init__(self) -> None:
        self._mask = 0
        self._expected: list[str] = []

    def read(self, offset: int, size: int) -> int:
        """Data: the mask.  Command: IRR or ISR, both empty."""
        return self._mask if offset == 1 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """ICW1 starts the initialisation; OCW1 is the mask; OCW2 and OCW3 change nothing."""
        if offset == 0:
            if value & ICW1:
                self._mask = 0
                self._expected = ["ICW2"]
                if not value & ICW1_SINGLE:
                    self._expected.append("ICW3")
                if value & ICW1_NEEDS_ICW4:
                    self._expected.append("ICW4")
        elif self._expected:
            self._expected.pop(0)
        else:
            self._mask = value


class Elcr:
    """Edge/level control registers: readable latches."""

    width = 1

    def __init__(self) -> None:
        self._value = [0, 0]

    def read(self, offset: int, size: int) -> int:
        """The latch."""
        return self._value[offset]

    def write(self, offset: int, size: int, value: int) -> None:
        """IRQ 0, 1, 2, 8 and 13 are always edge-triggered."""
        self._value[offset] = value & (0xF8, 0xDE)[offset]
