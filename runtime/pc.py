"""The `pc` machine: which devices there are, where, and how they are wired."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runtime.biglock import BigLock, Site
from runtime.control import ControlBlock
from runtime.devices import cmos, ioapic, pic, power, uart
from runtime.devices.bus import Bus
from runtime.devices.irq import SERIAL_IRQ, isa_line
from runtime.exits import Reason
from runtime.tables import mptable

COM1 = 0x3F8


class PcMachine:
    """The devices of one `pc`; built by the Host before the workers are forked.

    Nobody claims port 0x80 on purpose: its writes are delays, and are dropped
    in the Switcher for free.
    """

    name = "pc"

    def __init__(
        self, control: ControlBlock, ram_size: int, transmit: Callable[[int], None]
    ) -> None:
        lib: Any = control.switcher.lib
        self.asker: int | None = None
        """The vCPU whose access the Host answers: it asked for the end, if that comes of it."""

        def deliver(destination: int, logical: bool, mode: int, vector: int, level: bool) -> int:
            return int(
                lib.smp_deliver(
                    control.pointer, destination, int(logical), mode, vector, int(level)
                )
            )

        def want_taker(wanted: bool) -> None:
            lib.smp_want_taker(control.pointer, int(wanted))

        def leave(value: int) -> None:
            control.kill(Reason.DEBUG_EXIT, f"debug exit with {value:#x}", self.asker, value)

        def restart() -> None:
            control.kill(Reason.RESTART, "the Guest asked for a restart", self.asker)

        def power_off() -> None:
            control.kill(Reason.POWEROFF, "the Guest powered off", self.asker)

        self.bus = bus = Bus(control)
        self.ioapic = ioapic.IoApic(deliver, want_taker, mptable.ioapic_id(control.vcpus))
        self.uart = uart.Uart(
            transmit,
            isa_line(self.ioapic, SERIAL_IRQ),
            lambda offset, value: bus.publish(COM1 + offset, value),
        )
        bus.add_mmio("ioapic", ioapic.BASE, ioapic.SIZE, self.ioapic, ram_size)
        bus.add_ports("com1", COM1, uart.PORTS, self.uart, uart.POSTED)
        bus.add_ports("pic1", pic.MASTER, pic.SIZE, pic.Pic(), pic.POSTED)
        bus.add_ports("pic2", pic.SLAVE, pic.SIZE, pic.Pic(), pic.POSTED)
        bus.add_ports("elcr", pic.ELCR, pic.ELCR_SIZE, pic.Elcr())
        bus.add_ports("cmos", cmos.BASE, cmos.SIZE, cmos.Cmos(ram_size), cmos.POSTED)
        bus.add_ports(
            "keyboard", power.KEYBOARD, power.KEYBOARD_SIZE, power.KeyboardController(restart)
        )
        bus.add_ports("system control", power.SYSTEM_CONTROL, 1, power.SystemControl(restart))
        bus.add_ports("reset control", power.RESET_CONTROL, 1, power.ResetControl(restart))
        bus.add_ports("debug exit", power.DEBUG_EXIT, power.DEBUG_EXIT_SIZE, power.DebugExit(leave))
        bus.add_ports(
            "power management", power.PM_CONTROL, power.PM_CONTROL_SIZE, power.PowerOff(power_off)
        )
        control.set_mmio_ranges(bus.mmio_ranges)
        self.console = self.uart
        self.fds: frozenset[int] = frozenset()
        self._lib = lib
        self._lock = BigLock(control.switcher, control.pointer, Site.BUS)

    def answer(self, vcpu: int, kind: int, address: int, size: int, data: int) -> int:
        """Port I/O or MMIO that a vCPU waits for."""
        lib, bus = self._lib, self.bus
        self.asker = vcpu
        with self._lock:
            if kind == lib.SMP_REQ_PIO_READ:
                return bus.pio_read(address, size)
            if kind == lib.SMP_REQ_PIO_WRITE:
                bus.pio_write(address, size, data)
            elif kind == lib.SMP_REQ_MMIO_READ:
                return bus.mmio_read(address, size)
            elif kind == lib.SMP_REQ_MMIO_WRITE:
                bus.mmio_write(address, size, data)
        return 0

    def post(self, kind: int, address: int, size: int, data: int) -> None:
        """What nobody waits for; the caller has the Big Lock."""
        if kind == self._lib.SMP_POST_PIO_WRITE:
            self.bus.pio_write(address, size, data)
        elif kind == self._lib.SMP_POST_EOI:
            self.ioapic.eoi(address)
        else:
            self.ioapic.retry()

    def finish(self) -> None:
        """Nothing of it runs by itself."""

    def close(self) -> None:
        """Nothing to give back."""

    def write_tables(self, put: Callable[[int, bytes], None], vcpus: int) -> None:
        """What firmware would have left in memory."""
        mptable.write(put, vcpus, ioapic.BASE)
