"""Ways out of the machine: debug exit, power-off, and the three resets of a PC."""

from __future__ import annotations

from collections.abc import Callable

DEBUG_EXIT, DEBUG_EXIT_SIZE = 0xF4, 4
PM_CONTROL, PM_CONTROL_SIZE = 0x604, 2
KEYBOARD, KEYBOARD_SIZE = 0x60, 5
SYSTEM_CONTROL = 0x92
RESET_CONTROL = 0xCF9

SLEEP_ENABLE = 1 << 13
KEYBOARD_STATUS = 4
PULSE_RESET = 0xFE
FAST_RESET = 0x01
A20 = 0x02
RESET_CPU = 0x04


class DebugExit:
    """Port 0xf4 as QEMU's isa-debug-exit with iosize=4: the value written ends the machine."""

    width = 4

    def __init__(self, leave: Callable[[int], None]) -> None:
        self._leave = leave

    def read(self, offset: int, size: int) -> int:
        """QEMU reads zero here."""
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        """The byte, word or double word is the code."""
        self._leave(value)


class PowerOff:
    """Port 0x604, ACPI's PM1a_CNT as on QEMU: SLP_EN with any type powers off."""

    width = 2

    def __init__(self, leave: Callable[[], None]) -> None:
        self._leave = leave

    def read(self, offset: int, size: int) -> int:
        """SCI_EN."""
        return 1 if offset == 0 else 0

    def write(self, offset: int, size: int, value: int) -> None:
        """`outw(0x604, 0x2000)`."""
        if (value << (8 * offset) if size == 1 else value) & SLEEP_ENABLE:
            self._leave()


class KeyboardController:
    """Ports 0x60..0x64: an 8042 without a keyboard, there for the reset line it drives."""

    width = 1

    def __init__(self, restart: Callable[[], None]) -> None:
        self._restart = restart

    def read(self, offset: int, size: int) -> int:
        """Status: buffers empty, so nobody waits for it; data: nothing."""
        return 0 if offset in (0, KEYBOARD_STATUS) else 0xFF

    def write(self, offset: int, size: int, value: int) -> None:
        """0xfe to 0x64 pulses the reset line."""
        if offset == KEYBOARD_STATUS and value == PULSE_RESET:
            self._restart()


class SystemControl:
    """Port 0x92: fast A20 (always on, latched) and fast reset."""

    width = 1

    def __init__(self, restart: Callable[[], None]) -> None:
        self._restart = restart
        self._value = A20

    def read(self, offset: int, size: int) -> int:
        """The latch."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Bit 0 rising resets."""
        rose = value & ~self._value & FAST_RESET
        self._value = value
        if rose:
            self._restart()


class ResetControl:
    """Port 0xcf9: bit 2 rising resets."""

    width = 1

    def __init__(self, restart: Callable[[], None]) -> None:
        self._restart = restart
        self._value = 0

    def read(self, offset: int, size: int) -> int:
        """The latch."""
        return self._value

    def write(self, offset: int, size: int, value: int) -> None:
        """Bits 1 and 3 only choose the kind of reset."""
        rose = value & ~self._value & RESET_CPU
        self._value = value & 0x0E
        if rose:
            self._restart()
