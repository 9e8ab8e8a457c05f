"""GDT, IDT and TSS of one vCPU: what the Guest asked for, and what the CPU gets.

The tables that the CPU reads are in the vCPU's state page, where the Guest cannot
write; they are written here, and only while the Guest does not run.
"""

from __future__ import annotations

from typing import Any

from switcher.binding import constants as c
from vcpu.lguest.memory import signed

GUEST_PL = c["LGUEST_PL"]
HYPERCALL = c["LGUEST_TRAP_ENTRY"]
VECTORS, GDT_ENTRIES = 256, 32
FIRST_EXTERNAL = 32
LINUX_SYSCALL = 0x80
NMI, INVALID_OPCODE, DEVICE_NOT_AVAILABLE, DOUBLE_FAULT = 2, 6, 7, 8
PROTECTION, PAGE_FAULT, SPURIOUS = 13, 14, 15

KERNEL_CS = c["LGUEST_GDT_KERNEL_CS"] << 3 | GUEST_PL
KERNEL_DS = c["LGUEST_GDT_KERNEL_DS"] << 3 | GUEST_PL
SWITCHER_CS = c["LGUEST_GDT_CS"] << 3
SWITCHER_DS = c["LGUEST_GDT_DS"] << 3
FLAT_CODE, FLAT_DATA = 0x00CF9B00, 0x00CF9300  # 4 GiB, 32 bits, present, accessed; ring 0
LIMIT = 0x0000FFFF
DPL_SHIFT = 13
DPL_BITS, ACCESSED, SEGMENT = 3 << DPL_SHIFT, 0x100, 0x1000
GATE_INTERRUPT, GATE_TRAP = 0xE, 0xF
GATE_PRESENT = 0x8000

IGNORED_GDT = frozenset(
    c[f"LGUEST_GDT_{name}"] for name in ("TSS", "CS", "DS", "DOUBLEFAULT")
)  # fmt: skip
"""Entries that the Switcher needs: the Guest may write them, and nobody looks."""
NEVER_THE_GUESTS = frozenset((NMI, DOUBLE_FAULT, SPURIOUS, HYPERCALL))

TSS_ESP0, TSS_SS0, TSS_ESP1, TSS_SS1, TSS_IOMAP = 1, 2, 3, 4, 25
"""Indices of 32-bit words (SDM vol. 3, figure 7-2)."""
NO_IOMAP = 104 << 16
"""The I/O map begins behind the limit: no port is open to ring 3."""


class GuestMistakeError(Exception):
    """The Guest asked for what it must not have; the message is lguest's sentence."""


def gate_type(high: int) -> int:
    """0xE: interrupt gate, 0xF: trap gate."""
    return high >> 8 & 0xF


class Tables:
    """`state` is the vCPU's `struct lguest_ro_state *`, `base` the window's virtual address."""

    def __init__(self, lib: Any, state: Any, base: int, stack: int) -> None:
        self._lib = lib
        self._state = state
        self._base = base
        self._syscall_vector = LINUX_SYSCALL
        self.idt: list[tuple[int, int]] = [(0, 0)] * VECTORS
        self.gdt: list[tuple[int, int]] = [(0, 0)] * GDT_ENTRIES
        self._reset(stack)

    def _reset(self, stack: int) -> None:
        """setup_default_idt_entries() and setup_guest_gdt(); `stack`: the end of the registers."""
        for vector in range(VECTORS):
            self._set_default_gate(vector, GUEST_PL if vector == HYPERCALL else 0)
        ring_1 = GUEST_PL << DPL_SHIFT
        for slot in range(GDT_ENTRIES):
            self._put_descriptor(slot, 0, 0)
        for slot, high in (
            (c["LGUEST_GDT_KERNEL_CS"], FLAT_CODE | ring_1),
            (c["LGUEST_GDT_KERNEL_DS"], FLAT_DATA | ring_1),
        ):
            self.gdt[slot] = (LIMIT, high)
            self._put_descriptor(slot, LIMIT, high)
        self._put_descriptor(c["LGUEST_GDT_CS"], LIMIT, FLAT_CODE)
        self._put_descriptor(c["LGUEST_GDT_DS"], LIMIT, FLAT_DATA)
        tss = self._state.tss
        for index in range(len(tss)):
            tss[index] = 0
        tss[TSS_ESP0], tss[TSS_SS0], tss[TSS_IOMAP] = stack, SWITCHER_DS, NO_IOMAP

    def _put_descriptor(self, slot: int, low: int, high: int) -> None:
        self._state.guest_gdt[2 * slot] = low
        self._state.guest_gdt[2 * slot + 1] = high

    def _put_gate(self, vector: int, low: int, high: int) -> None:
        self._state.guest_idt[2 * vector] = low
        self._state.guest_idt[2 * vector + 1] = high

    def _set_default_gate(self, vector: int, dpl: int) -> None:
        """To the Switcher's entry of that trap: an interrupt gate into ring 0."""
        entry = self._base + self._lib.smp_switcher_entry(vector)
        self._put_gate(
            vector,
            SWITCHER_CS << 16 | entry & 0xFFFF,
            entry & 0xFFFF0000 | GATE_PRESENT | dpl << DPL_SHIFT | GATE_INTERRUPT << 8,
        )

    # IDT --------------------------------------------------------------------------

    def load_idt_entry(self, vector: int, low: int, high: int) -> None:
        """LHCALL_LOAD_IDT_ENTRY; raises GuestMistakeError."""
        if vector in NEVER_THE_GUESTS:
            return
        if vector >= VECTORS:
            raise GuestMistakeError(f"Setting idt entry {vector}")
        gate = (0, 0)
        if high & GATE_PRESENT:
            if gate_type(high) not in (GATE_INTERRUPT, GATE_TRAP):
                raise GuestMistakeError(f"bad IDT type {gate_type(high)}")
            # Handler, present, privilege and type; the code segment is always the kernel's.
            gate = (KERNEL_CS << 16 | low & 0xFFFF, high & 0xFFFFEF00)
        self.idt[vector] = gate
        self._copy_trap(vector)

    def _copy_trap(self, vector: int) -> None:
        """copy_traps(): straight to the Guest, or by the Switcher.

        Only trap gates go direct: an interrupt gate would disable interrupts, and the
        Guest's are never really off.  The others take the Guest's privilege level, so
        that it can let its users have INT3 and the like.
        """
        if not self.goes_direct(vector):
            return
        low, high = self.idt[vector]
        if gate_type(high) == GATE_TRAP:
            self._put_gate(vector, low, high)
        else:
            self._set_default_gate(vector, high >> DPL_SHIFT & 3)

    def goes_direct(self, vector: int) -> bool:
        """direct_trap(): may the Guest take it without the Host?

        Not page faults (cr2), protection faults (emulation), device not available (TS),
        hypercalls, and no interrupt but the system call.
        """
        if vector >= FIRST_EXTERNAL and vector not in (LINUX_SYSCALL, self._syscall_vector):
            return False
        return vector not in (PAGE_FAULT, PROTECTION, DEVICE_NOT_AVAILABLE, HYPERCALL)

    # GDT --------------------------------------------------------------------------

    def load_gdt_entry(self, slot: int, low: int, high: int) -> None:
        """LHCALL_LOAD_GDT_ENTRY; raises GuestMistakeError."""
        if slot >= GDT_ENTRIES:
            raise GuestMistakeError(f"too many gdt entries {signed(slot)}")
        self._set_descriptor(slot, low, high)

    def load_tls(self, words: tuple[int, ...]) -> None:
        """LHCALL_LOAD_TLS: three descriptors."""
        for number in range(len(words) // 2):
            slot = c["LGUEST_GDT_TLS"] + number
            self._set_descriptor(slot, words[2 * number], words[2 * number + 1])

    def _set_descriptor(self, slot: int, low: int, high: int) -> None:
        """fixup_gdt_table() and copy_gdt().

        Nobody gets ring 0: a Guest that leaves the privilege level 0 means its own.  The
        accessed bit is set beforehand, because the CPU could not set it in a read-only
        page.  Gates and other system descriptors, which no guest of lguest's used, would
        be a way into the Switcher's code segment: they are not handed on.
        """
        if slot in IGNORED_GDT:
            self.gdt[slot] = (low, high)
            return
        if not high & DPL_BITS:
            high |= GUEST_PL << DPL_SHIFT
        high |= ACCESSED
        self.gdt[slot] = (low, high)
        self._put_descriptor(slot, *((low, high) if high & SEGMENT else (0, 0)))

    # TSS --------------------------------------------------------------------------

    def set_stack(self, segment: int, pointer: int) -> None:
        """The stack for traps from ring 3 that go direct."""
        self._state.tss[TSS_SS1], self._state.tss[TSS_ESP1] = segment, pointer

    def set_syscall_vector(self, vector: int) -> None:
        """The one vector above 31 that may go direct, beside Linux' own."""
        self._syscall_vector = vector
