"""lguest_address_ok(), lgread(), lgwrite(), guest_pa() and pin_page(), without a Guest."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switcher import binding
from switcher.pages import SWITCHER_ADDRESS
from vcpu.lguest.memory import (
    ACCESSED,
    BAD_ADDRESS,
    DIRTY,
    LARGE,
    PRESENT,
    USER,
    WRITABLE,
    Memory,
)

PAGE = 4096
PAGES = 8
ADDRESS = st.integers(0, (1 << 32) - 1) | st.integers(PAGES * PAGE - 8, PAGES * PAGE + 8)


@dataclass
class World:
    """A Memory over a few pages, and what killed the Guest."""

    memory: Memory
    ram: Any
    kills: list[str] = field(default_factory=list)

    def put(self, address: int, value: int) -> None:
        self.ram[address : address + 4] = struct.pack("<I", value)

    def word(self, address: int) -> int:
        return int(struct.unpack("<I", bytes(self.ram[address : address + 4]))[0])


def make_world(pages: int = PAGES) -> World:
    ffi = binding.ffi
    ram = ffi.new("char[]", pages * PAGE)
    view = memoryview(ffi.buffer(ram, pages * PAGE))

    def store(_control: Any, _ram: Any, address: int, value: int) -> None:
        view[address : address + 4] = struct.pack("<I", value)

    def add(_ram: Any, address: int, bits: int) -> None:
        value = struct.unpack("<I", bytes(view[address : address + 4]))[0]
        view[address : address + 4] = struct.pack("<I", value | bits)

    def write(_control: Any, _ram: Any, address: int, data: bytes, length: int) -> None:
        view[address : address + length] = data

    lib = SimpleNamespace(smp_lguest_store=store, smp_lguest_or=add, smp_dma_write=write)
    switcher = SimpleNamespace(ffi=ffi, lib=lib)
    control = SimpleNamespace(ram_size=pages * PAGE, pfn_limit=pages, keep=ram)
    kills: list[str] = []
    return World(Memory(switcher, control, ram, kills.append), view, kills)


@given(ADDRESS, st.integers(0, 8192))
def test_what_is_ok_is_inside_and_does_not_end_with_the_last_byte(
    address: int, length: int
) -> None:
    world = make_world()
    assert world.memory.address_ok(address, length) == (address + length < PAGES * PAGE)


@given(ADDRESS, st.integers(0, 300))
def test_reads_are_the_bytes_or_zeros_and_a_sentence(address: int, length: int) -> None:
    world = make_world()
    world.ram[:] = bytes(range(1, 256)) * (PAGES * PAGE // 255) + bytes(PAGES * PAGE % 255)
    data = world.memory.read(address, length)
    assert len(data) == length
    if world.kills:
        assert data == bytes(length)
        shown = f"{address:#x}" if address else "0"
        assert world.kills == [f"bad read address {shown} len {length}"]
    else:
        assert data == bytes(world.ram[address : address + length])


@given(ADDRESS)
def test_a_word_is_written_inside_or_nowhere(address: int) -> None:
    world = make_world()
    world.memory.write_word(address, 0xDDCCBBAA)
    if world.kills:
        assert world.kills == [f"bad write address {address:#x} len 4"]
        assert not any(world.ram)
    else:
        assert world.word(address) == 0xDDCCBBAA
        assert sum(map(bool, world.ram)) == 4


@given(ADDRESS, st.lists(st.integers(0, (1 << 32) - 1), min_size=3, max_size=6))
def test_a_frame_is_pushed_as_word_by_word(address: int, values: list[int]) -> None:
    at_once, each = make_world(), make_world()
    at_once.memory.push(address, values)
    for number, value in enumerate(values, 1):
        each.memory.write_word((address - 4 * number) % (1 << 32), value)
    assert at_once.kills == each.kills
    assert bytes(at_once.ram) == bytes(each.ram)


def paged() -> World:
    """Directory in page 1, table in page 2, which maps 0x400000.. to nothing yet."""
    world = make_world()
    world.memory.pgdir = PAGE
    world.put(PAGE + 4, 2 * PAGE | PRESENT | WRITABLE | USER)
    return world


def test_linear_addresses_are_physical() -> None:
    assert make_world().memory.guest_pa(0x1234) == 0x1234


def test_translation() -> None:
    world = paged()
    world.put(2 * PAGE + 4, 3 * PAGE | PRESENT)
    assert world.memory.guest_pa(0x401ABC) == 3 * PAGE | 0xABC
    assert not world.kills


@pytest.mark.parametrize("address", [0x0, 0x402000, 0xFFFFF000])
def test_what_is_not_mapped_kills(address: int) -> None:
    world = paged()
    assert world.memory.guest_pa(address) == BAD_ADDRESS
    assert world.kills == [f"Bad address {address:#x}" if address else "Bad address 0"]


def test_pinning_makes_accessed_and_dirty() -> None:
    world = paged()
    world.put(2 * PAGE + 4, 3 * PAGE | PRESENT | WRITABLE)
    assert world.memory.pin(0x401FFC)
    assert world.word(2 * PAGE + 4) == 3 * PAGE | PRESENT | WRITABLE | ACCESSED | DIRTY


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (0, None),
        (3 * PAGE | PRESENT, None),  # read-only
        (3 * PAGE | PRESENT | WRITABLE | LARGE, "bad page table entry"),
        (PAGES * PAGE | PRESENT | WRITABLE, "bad page table entry"),
    ],
)
def test_what_cannot_be_pinned(entry: int, sentence: str | None) -> None:
    world = paged()
    world.put(2 * PAGE + 4, entry)
    assert not world.memory.pin(0x401000)
    assert world.kills == ([sentence] if sentence else [])
    assert world.word(2 * PAGE + 4) == entry


@pytest.mark.parametrize("bad", [LARGE | PRESENT, PAGES * PAGE | PRESENT, 0x800 | PRESENT])
def test_a_bad_directory_entry_kills(bad: int) -> None:
    world = paged()
    world.put(PAGE + 4, bad)
    assert not world.memory.pin(0x401000)
    assert world.kills == ["bad page directory entry"]


def test_the_switchers_pages_cannot_be_pinned() -> None:
    assert not make_world().memory.pin(SWITCHER_ADDRESS)


@given(st.lists(st.tuples(st.integers(0, PAGES * PAGE // 4 - 1), st.integers(0, (1 << 32) - 1))),
       ADDRESS, ADDRESS)  # fmt: skip
def test_no_table_makes_us_leave_the_guests_memory(
    words: list[tuple[int, int]], pgdir: int, virtual: int
) -> None:
    world = make_world()
    for index, value in words:
        world.put(4 * index, value)
    world.memory.pgdir = pgdir
    world.memory.guest_pa(virtual)
    world.memory.pin(virtual)
