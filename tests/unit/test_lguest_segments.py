"""GDT and IDT of the lguest machine: lguest's rules, entry by entry."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switcher import binding
from switcher.pages import SWITCHER_ADDRESS
from vcpu.lguest.segments import GuestMistakeError, Tables

WORD = st.integers(0, (1 << 32) - 1)
STACK = SWITCHER_ADDRESS + 0x2000
ENTRY = 0x40
"""Where the tests' Switcher has the entry of every trap."""
RING_1_CODE = 0x00CFBB00
PRESENT, DPL_1, DPL_3 = 0x8000, 0x2000, 0x6000
INTERRUPT_GATE, TRAP_GATE = 0x0E00, 0x0F00


class World:
    """Tables and the state page that they fill."""

    def __init__(self) -> None:
        self.state: Any = binding.ffi.new("struct lguest_ro_state *")
        lib = SimpleNamespace(smp_switcher_entry=lambda _vector: ENTRY)
        self.tables = Tables(lib, self.state, SWITCHER_ADDRESS, STACK)

    def gate(self, vector: int) -> tuple[int, int]:
        idt = self.state.guest_idt
        return idt[2 * vector], idt[2 * vector + 1]

    def goes_to_host(self, vector: int) -> bool:
        low, high = self.gate(vector)
        return low >> 16 == 0x50 and high & 0xFFFF0000 == SWITCHER_ADDRESS & 0xFFFF0000

    def dpl(self, vector: int) -> int:
        return self.gate(vector)[1] >> 13 & 3

    def descriptor(self, slot: int) -> tuple[int, int]:
        gdt = self.state.guest_gdt
        return gdt[2 * slot], gdt[2 * slot + 1]


def test_at_first_everything_comes_to_the_host_and_int_1f_may_be_called() -> None:
    world = World()
    assert all(world.goes_to_host(vector) for vector in range(256))
    assert {vector: world.dpl(vector) for vector in range(256) if world.dpl(vector)} == {0x1F: 1}


def test_at_first_the_gdt_has_the_kernels_flat_segments() -> None:
    world = World()
    assert world.descriptor(12) == (0xFFFF, RING_1_CODE)
    assert world.descriptor(13) == (0xFFFF, 0x00CFB300)
    assert world.state.tss[1] == STACK


@pytest.mark.parametrize("vector", [0, 1, 3, 4, 5, 6, 9, 10, 11, 12, 16, 17, 19, 0x80])
def test_trap_gates_go_direct(vector: int) -> None:
    world = World()
    world.tables.load_idt_entry(vector, 0x00605678, 0xC1234000 | PRESENT | DPL_3 | TRAP_GATE | 0x77)
    low, high = world.gate(vector)
    # Our code segment, the low byte of the type word cleared.
    assert (low, high) == (0x00615678, 0xC1230000 | 0x4000 | PRESENT | DPL_3 | TRAP_GATE)


@pytest.mark.parametrize("vector", [7, 13, 14, 32, 0x21, 0x81, 255])
def test_these_never_go_direct_and_keep_ring_0(vector: int) -> None:
    world = World()
    world.tables.load_idt_entry(vector, 0x00605678, 0xC1230000 | PRESENT | DPL_3 | TRAP_GATE)
    assert world.goes_to_host(vector)
    assert world.dpl(vector) == 0
    assert world.tables.idt[vector][1] & PRESENT  # but reflected they will be


def test_an_interrupt_gate_goes_by_the_host_with_the_guests_privilege() -> None:
    world = World()
    world.tables.load_idt_entry(3, 0x00605678, 0xC1230000 | PRESENT | DPL_3 | INTERRUPT_GATE)
    assert world.goes_to_host(3)
    assert world.dpl(3) == 3


@pytest.mark.parametrize("vector", [2, 8, 15, 0x1F])
def test_some_are_never_the_guests(vector: int) -> None:
    world = World()
    before = world.gate(vector)
    world.tables.load_idt_entry(vector, 0x00605678, 0xC1230000 | PRESENT | TRAP_GATE)
    assert world.tables.idt[vector] == (0, 0)
    assert world.gate(vector) == before


def test_not_present_is_nothing_whatever_its_type() -> None:
    world = World()
    world.tables.load_idt_entry(5, 0xFFFFFFFF, 0xFFFF0000 | DPL_3 | 0x0500)
    assert world.tables.idt[5] == (0, 0)


@given(vector=WORD, low=WORD, high=WORD)
def test_any_gate_is_taken_ignored_or_a_sentence(vector: int, low: int, high: int) -> None:
    world = World()
    try:
        world.tables.load_idt_entry(vector, low, high)
    except GuestMistakeError as mistake:
        if vector > 255:
            assert str(mistake) == f"Setting idt entry {vector}"
        else:
            assert high & PRESENT
            assert high >> 8 & 0xF not in (0xE, 0xF)
            assert str(mistake) == f"bad IDT type {high >> 8 & 0xF}"
    for number in range(256):
        low, high = world.gate(number)
        if not world.goes_to_host(number):
            assert (low >> 16, high >> 8 & 0xF) == (0x61, 0xF)


@given(slot=st.integers(0, 40) | WORD, low=WORD, high=WORD)
def test_no_descriptor_gives_ring_0_or_the_switchers_own(slot: int, low: int, high: int) -> None:
    world = World()
    switchers = {number: world.descriptor(number) for number in (10, 11, 16, 31)}
    try:
        world.tables.load_gdt_entry(slot, low, high)
    except GuestMistakeError as mistake:
        assert slot > 31
        assert str(mistake).startswith("too many gdt entries ")
        return
    assert {number: world.descriptor(number) for number in switchers} == switchers
    if slot in switchers:
        assert world.tables.gdt[slot] == (low, high)
        return
    kept = world.tables.gdt[slot]
    assert kept[0] == low
    assert kept[1] | 0x2100 == high | 0x2100
    assert kept[1] >> 13 & 3
    assert kept[1] & 0x100
    assert world.descriptor(slot) == (kept if high & 0x1000 else (0, 0))


def test_too_many_is_printed_signed() -> None:
    with pytest.raises(GuestMistakeError, match=r"^too many gdt entries -1$"):
        World().tables.load_gdt_entry(0xFFFFFFFF, 0, 0)


def test_tls_fills_6_to_8() -> None:
    world = World()
    world.tables.load_tls((1, 0x00CFF300, 2, 0x00CFF300, 3, 0x00CFF300))
    assert [world.descriptor(slot)[0] for slot in (5, 6, 7, 8, 9)] == [0, 1, 2, 3, 0]
