"""ISA interrupt lines: which IOAPIC pin an IRQ drives (the MP table says the same)."""

from __future__ import annotations

from collections.abc import Callable

from runtime.devices.ioapic import IoApic

ISA_IRQS = 16
TIMER_IRQ, TIMER_PIN = 0, 2
CASCADE_IRQ = 2
SERIAL_IRQ = 4


def isa_pin(irq: int) -> int:
    """The IOAPIC pin of ISA interrupt `irq`: one to one, but the timer is on pin 2."""
    return TIMER_PIN if irq == TIMER_IRQ else irq


def isa_line(ioapic: IoApic, irq: int) -> Callable[[bool], None]:
    """A function that drives ISA interrupt `irq`."""
    pin = isa_pin(irq)

    def drive(level: bool) -> None:
        ioapic.set_line(pin, level)

    return drive
