"""The bus and the small devices."""

from __future__ import annotations

import random

import pytest

from runtime.devices import cmos, pic, power
from runtime.devices.bus import Bus
from runtime.errors import HostError


class Table:
    """What the Switcher would be told."""

    def __init__(self) -> None:
        self.ports: dict[int, tuple[bool, bool, int | None]] = {}

    def set_port(self, port: int, *, sync: bool, posted: bool, shadow: int | None) -> None:
        self.ports[port] = (sync, posted, shadow)


class Latches:
    """A device of plain registers that records its accesses."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.accesses: list[tuple[str, int, int]] = []

    def read(self, offset: int, size: int) -> int:
        self.accesses.append(("r", offset, size))
        return 0x1111111111111111 * (offset + 1)

    def write(self, offset: int, size: int, value: int) -> None:
        self.accesses.append(("w", offset, value))


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def bus(table: Table) -> Bus:
    return Bus(table)


# The bus ------------------------------------------------------------------------------


@pytest.mark.parametrize(("base", "size"), [(0x104, 1), (0x100, 8), (0xFE, 3), (0x107, 1)])
def test_overlapping_ports_are_refused(bus: Bus, base: int, size: int) -> None:
    bus.add_ports("first", 0x100, 8, Latches(1))
    with pytest.raises(HostError, match="already belongs to first"):
        bus.add_ports("second", base, size, Latches(1))


@pytest.mark.parametrize(("base", "size"), [(0xFFFF, 2), (-1, 2), (5, 0), (0x10000, 1)])
def test_ports_outside_are_refused(bus: Bus, base: int, size: int) -> None:
    with pytest.raises(HostError, match="not in the I/O space"):
        bus.add_ports("odd", base, size, Latches(1))


def test_neighbours_are_not_overlaps(bus: Bus) -> None:
    bus.add_ports("first", 0x100, 8, Latches(1))
    bus.add_ports("second", 0x108, 8, Latches(1))
    bus.add_ports("third", 0xF8, 8, Latches(1))
    assert bus.pio_read(0x108, 1) == 0x11


def test_overlapping_mmio_is_refused(bus: Bus) -> None:
    bus.add_mmio("first", 0xFEC00000, 0x1000, Latches(4), 1 << 20)
    with pytest.raises(HostError, match="overlaps first"):
        bus.add_mmio("second", 0xFEC00FFF, 1, Latches(4), 1 << 20)
    with pytest.raises(HostError, match="not free"):
        bus.add_mmio("third", 0x1000, 0x1000, Latches(4), 1 << 20)
    assert bus.mmio_ranges == [(0xFEC00000, 0x1000)]


def test_nobody_reads_all_ones(bus: Bus) -> None:
    assert bus.pio_read(0x80, 4) == 0xFFFFFFFF
    assert bus.mmio_read(0xFEC00000, 8) == 0xFFFFFFFFFFFFFFFF
    bus.pio_write(0x80, 4, 1)
    bus.mmio_write(0xFEC00000, 8, 1)


def test_wide_accesses_are_split_low_first(bus: Bus) -> None:
    device = Latches(1)
    bus.add_ports("bytes", 0x100, 3, device)
    bus.pio_write(0x100, 4, 0x44332211)
    assert device.accesses == [("w", 0, 0x11), ("w", 1, 0x22), ("w", 2, 0x33)]
    assert bus.pio_read(0x100, 4) == 0xFF332211


def test_port_numbers_wrap(bus: Bus) -> None:
    device = Latches(1)
    bus.add_ports("first", 0, 1, device)
    assert bus.pio_read(0xFFFF, 2) == 0x11FF


def test_values_are_cut_to_their_size(bus: Bus) -> None:
    device = Latches(4)
    bus.add_ports("wide", 0x100, 4, device)
    assert bus.pio_read(0x100, 2) == 0x1111
    bus.pio_write(0x100, 1, 0x1234)
    assert device.accesses[-1] == ("w", 0, 0x34)


def test_switcher_is_told(bus: Bus, table: Table) -> None:
    bus.publish(0x101, 0x60)
    bus.add_ports("device", 0x100, 2, Latches(1), posted={0})
    assert table.ports == {0x100: (True, True, None), 0x101: (True, False, 0x60)}
    bus.publish(0x101, None)
    assert table.ports[0x101] == (True, False, None)


# PIC ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("icw1", "words"), [(0x11, 3), (0x10, 2), (0x13, 2), (0x12, 1)])
def test_pic_initialisation_then_mask(icw1: int, words: int) -> None:
    chip = pic.Pic()
    chip.write(1, 1, 0xAA)
    chip.write(0, 1, icw1)
    for _ in range(words):
        chip.write(1, 1, 0x20)
        assert chip.read(1, 1) == 0
    chip.write(1, 1, 0xFB)
    assert chip.read(1, 1) == 0xFB


def test_pic_has_nothing_pending() -> None:
    chip = pic.Pic()
    chip.write(0, 1, 0x0B)
    assert chip.read(0, 1) == 0


# CMOS ---------------------------------------------------------------------------------

NOON = 1_700_000_000.0 + 0.5  # 2023-11-14 22:13:20 UTC, a Tuesday


class Chip(cmos.Cmos):
    def __init__(self, now: float = NOON, ram_size: int = 64 << 20) -> None:
        self.now = now
        super().__init__(ram_size, lambda: self.now)

    def get(self, register: int) -> int:
        self.write(0, 1, register)
        return self.read(1, 1)

    def set(self, register: int, value: int) -> None:
        self.write(0, 1, register)
        self.write(1, 1, value)


def test_clock_in_bcd() -> None:
    chip = Chip()
    assert [chip.get(r) for r in (0, 2, 4, 7, 8, 9, 0x32)] == [
        *(0x20, 0x13, 0x22, 0x14, 0x11, 0x23, 0x20)
    ]
    assert chip.get(6) == 3
    assert chip.get(0x0D) & 0x80


def test_clock_in_binary_and_12_hours() -> None:
    chip = Chip()
    chip.set(0x0B, 0x04)
    assert chip.get(4) == 0x80 | 10
    assert chip.get(9) == 23


def test_update_in_progress() -> None:
    chip = Chip()
    assert not chip.get(0x0A) & 0x80
    chip.now = 1_700_000_000.9999
    assert chip.get(0x0A) & 0x80


def test_setting_the_clock() -> None:
    chip = Chip()
    chip.set(0x0B, 0x82)
    for register, value in ((0, 0x01), (2, 0x02), (4, 0x03), (7, 0x04), (8, 0x05), (9, 0x30)):
        chip.set(register, value)
    assert chip.get(0) == 0x01
    chip.set(0x0B, 0x02)
    chip.now += 10
    assert [chip.get(r) for r in (0, 2, 4, 7, 8, 9)] == [0x11, 0x02, 0x03, 0x04, 0x05, 0x30]


@pytest.mark.parametrize("value", [0xFF, 0x99, 0x00])
def test_nonsense_in_the_clock_is_harmless(value: int) -> None:
    chip = Chip()
    for register in (0, 2, 4, 6, 7, 8, 9, 0x32):
        chip.set(register, value)
    assert 0 <= chip.get(8) <= 0xFF


@pytest.mark.parametrize("binary", [False, True])
def test_clock_set_to_the_end_of_time(*, binary: bool) -> None:
    chip = Chip()
    chip.set(0x0B, 0x86 if binary else 0x82)
    last = (99, 99, 12, 31, 23, 59, 59)
    for register, value in zip((0x32, 9, 8, 7, 4, 2, 0), last, strict=True):
        chip.set(register, value if binary else (value // 10 << 4) | value % 10)
    chip.set(0x0B, 0x06 if binary else 0x02)
    chip.now += 10
    assert 0 <= chip.get(9) <= 0xFF


@pytest.mark.parametrize("seed", range(20))
def test_no_value_of_a_guest_raises(seed: int) -> None:
    """All registers, nonsense and extremes, with time passing between."""
    rng = random.Random(seed)
    chip = Chip()
    edges = (0x00, 0x01, 0x09, 0x12, 0x23, 0x31, 0x59, 0x99, 23, 31, 59, 99, 0x80, 0xFF)
    clock = (0, 2, 4, 6, 7, 8, 9, 0x0B, 0x32)
    for _ in range(3000):
        register = rng.choice(clock) if rng.random() < 0.7 else rng.randrange(256)
        if rng.random() < 0.6:
            chip.set(register, rng.choice(edges) if rng.random() < 0.8 else rng.randrange(256))
        else:
            assert 0 <= chip.get(register) <= 0xFF
        if rng.random() < 0.1:
            chip.now += rng.choice((0.001, 1, 3600, 86400, 1e6))


def test_memory_size() -> None:
    chip = Chip(ram_size=64 << 20)
    assert chip.get(0x15) | chip.get(0x16) << 8 == 640
    assert chip.get(0x17) | chip.get(0x18) << 8 == 63 << 10
    assert chip.get(0x34) | chip.get(0x35) << 8 == 48 << 4


def test_shutdown_byte_and_ram() -> None:
    chip = Chip()
    chip.set(0x8F, 0x0A)  # bit 7 is the NMI mask
    assert chip.get(0x0F) == 0x0A
    assert chip.read(0, 1) == 0xFF


# Ways out -----------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "value"), [(1, 0x21), (2, 0x4321), (4, 0x87654321)])
def test_debug_exit_sizes(bus: Bus, size: int, value: int) -> None:
    left: list[int] = []
    bus.add_ports("exit", power.DEBUG_EXIT, power.DEBUG_EXIT_SIZE, power.DebugExit(left.append))
    bus.pio_write(0xF4, size, 0x87654321)
    assert left == [value]


@pytest.mark.parametrize("size", [2, 1])
def test_power_off(bus: Bus, size: int) -> None:
    left: list[str] = []
    bus.add_ports("pm", 0x604, 2, power.PowerOff(lambda: left.append("off")))
    bus.pio_write(0x604, 2, 0x1C00)
    bus.pio_write(0x604, 1, 0x20)
    assert left == []
    bus.pio_write(0x604 if size == 2 else 0x605, size, 0x2000 if size == 2 else 0x20)
    assert left == ["off"]


def test_three_resets(bus: Bus) -> None:
    resets: list[str] = []
    bus.add_ports("kbd", 0x60, 5, power.KeyboardController(lambda: resets.append("kbd")))
    bus.add_ports("92", 0x92, 1, power.SystemControl(lambda: resets.append("92")))
    bus.add_ports("cf9", 0xCF9, 1, power.ResetControl(lambda: resets.append("cf9")))
    for port, value in ((0x64, 0xFE), (0x92, 0x03), (0xCF9, 0x06)):
        bus.pio_write(port, 1, value)
    assert resets == ["kbd", "92", "cf9"]
    for port, value in ((0x60, 0xFE), (0x64, 0xAA), (0x92, 0x03), (0xCF9, 0x02)):
        bus.pio_write(port, 1, value)
    assert len(resets) == 3
    assert bus.pio_read(0x92, 1) == 0x03
    assert bus.pio_read(0x64, 1) & 3 == 0
