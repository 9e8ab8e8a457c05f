"""CMOS RAM and real-time clock (Motorola MC146818A), ports 0x70 and 0x71.

Time is the wall clock in UTC plus what the Guest set it to.  Alarms and
periodic interrupts are not built; their flags never come up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

BASE, SIZE = 0x70, 2
POSTED = frozenset({0})

SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR = 0x00, 0x02, 0x04, 0x06, 0x07, 0x08, 0x09
STATUS_A, STATUS_B, STATUS_C, STATUS_D = 0x0A, 0x0B, 0x0C, 0x0D
SHUTDOWN = 0x0F
BASE_MEMORY, EXTENDED_MEMORY, EXTENDED_MEMORY_2, HIGH_MEMORY, CENTURY = 0x15, 0x17, 0x30, 0x34, 0x32
A_UPDATING, A_DIVIDER = 0x80, 0x26
B_SET, B_BINARY, B_24H = 0x80, 0x04, 0x02
D_VALID = 0x80
FIRST_YEAR, LAST_YEAR = 1000, 9000
"""What the Guest may set; far from the ends of datetime, so that time can pass."""
UPDATE_SECONDS = 244e-6
"""UIP is up for this long before each second."""
_CLOCK = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)


class Cmos:
    """`ram_size` in bytes fills the memory-size registers; `clock` gives seconds since 1970."""

    width = 1

    def __init__(self, ram_size: int, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._index = 0
        self._ram = bytearray(128)
        self._offset = timedelta()
        self._setting: dict[int, int] = {}
        self._ram[STATUS_A] = A_DIVIDER
        self._ram[STATUS_B] = B_24H
        self._ram[STATUS_D] = D_VALID
        extended = min((ram_size - (1 << 20)) >> 10, 0xFFFF)
        high = min(max(ram_size - (16 << 20), 0) >> 16, 0xFFFF)
        for at, value in (
            (BASE_MEMORY, 640),
            (EXTENDED_MEMORY, extended),
            (EXTENDED_MEMORY_2, extended),
            (HIGH_MEMORY, high),
        ):
            self._ram[at : at + 2] = value.to_bytes(2, "little")

    def read(self, offset: int, size: int) -> int:
        """0x70 cannot be read; 0x71 is the register selected."""
        if offset == 0:
            return 0xFF
        if self._index in _CLOCK:
            return self._read_clock(self._index)
        if self._index == STATUS_A:
            fraction = self._clock() % 1.0
            updating = fraction > 1.0 - UPDATE_SECONDS and not self._ram[STATUS_B] & B_SET
            return self._ram[STATUS_A] | (A_UPDATING if updating else 0)
        return self._ram[self._index]

    def write(self, offset: int, size: int, value: int) -> None:
        """0x70 selects (bit 7, the NMI mask, is dropped); 0x71 writes."""
        if offset == 0:
            self._index = value & 0x7F
        elif self._index in _CLOCK:
            self._write_clock(self._index, value)
        elif self._index == STATUS_A:
            self._ram[STATUS_A] = value & 0x7F
        elif self._index == STATUS_B:
            self._write_status_b(value)
        elif self._index not in (STATUS_C, STATUS_D):
            self._ram[self._index] = value

    # The clock ------------------------------------------------------------------

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC) + self._offset

    def _encode(self, value: int) -> int:
        return value if self._ram[STATUS_B] & B_BINARY else (value // 10 << 4) | value % 10

    def _decode(self, value: int) -> int:
        return value if self._ram[STATUS_B] & B_BINARY else (value >> 4) * 10 + (value & 0x0F)

    def _hour(self, hour: int) -> int:
        if self._ram[STATUS_B] & B_24H:
            return self._encode(hour)
        return self._encode((hour + 11) % 12 + 1) | (0x80 if hour >= 12 else 0)

    def _read_clock(self, register: int) -> int:
        if register in self._setting:
            return self._setting[register]
        now = self._now()
        if register == HOURS:
            return self._hour(now.hour)
        return self._encode(
            {
                SECONDS: now.second,
                MINUTES: now.minute,
                WEEKDAY: now.isoweekday() % 7 + 1,
                DAY: now.day,
                MONTH: now.month,
                YEAR: now.year % 100,
                CENTURY: now.year // 100,
            }[register]
        )

    def _write_clock(self, register: int, value: int) -> None:
        self._setting[register] = value
        if not self._ram[STATUS_B] & B_SET:
            self._apply()

    def _write_status_b(self, value: int) -> None:
        was_setting = self._ram[STATUS_B] & B_SET
        if was_setting and not value & B_SET:
            self._apply()
        self._ram[STATUS_B] = value

    def _apply(self) -> None:
        """The registers written become the time from now on; nonsense is ignored."""
        now = self._now()
        fields = {
            register: self._setting.get(register, self._read_clock(register)) for register in _CLOCK
        }
        self._setting = {}
        hour = fields[HOURS]
        if self._ram[STATUS_B] & B_24H:
            hour = self._decode(hour)
        else:
            hour = self._decode(hour & 0x7F) % 12 + (12 if hour & 0x80 else 0)
        year = self._decode(fields[CENTURY]) * 100 + self._decode(fields[YEAR])
        if not FIRST_YEAR <= year <= LAST_YEAR:
            return
        try:
            wanted = datetime(
                year,
                self._decode(fields[MONTH]),
                self._decode(fields[DAY]),
                hour,
                self._decode(fields[MINUTES]),
                self._decode(fields[SECONDS]),
                now.microsecond,
                UTC,
            )
            self._offset += wanted - now
        except (ValueError, OverflowError):
            return
