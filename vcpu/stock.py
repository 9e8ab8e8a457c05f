"""One slow vCPU on the stock Unicorn wheel, where our engine is not built.

Everything that the patched engine does in C is done here with Unicorn's own
hooks: ports, the APICs' MMIO, CPUID, HLT, and the delivery of interrupts and
exceptions through the Guest's IDT.  Enough for 32-bit kernels; what it cannot
do is said, not guessed:

 * one vCPU only (the wheel drops atomicity, docs/building.md);
 * protected mode without long mode, no task gates, no virtual-8086 mode;
 * page faults report P and U/S in their error code, but never W/R;
 * RDMSR and WRMSR are found when their block first runs; code that is patched
   into one later gets the wheel's own MSRs.

Interrupts are looked at where a translated block begins: there, and only
there, stopping the wheel does not repeat an instruction.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from runtime.sizes import PAGE
from vcpu.engine import unicorn_module
from vcpu.traps import (
    CR0_ET,
    CR0_PE,
    EFLAGS_FIXED,
    EFLAGS_IF,
    NMI_VECTOR,
    PAGE_FAULT,
    Traps,
)

SYS_FUTEX = 202
FUTEX_WAKE_OP = 5
FUTEX_OP_ANDN = 3

HLT, STI = 0xF4, 0xFB
WITH_ERROR_CODE = frozenset({8, 10, 11, 12, 13, 14, 17})
RDMSR, WRMSR = b"\x0f\x32", b"\x0f\x30"
LAPIC_MSRS = frozenset({0x1B, 0x6E0})
"""IA32_APIC_BASE and IA32_TSC_DEADLINE; a fault they report is ignored here."""
FLAT_GDT = struct.pack("<QQQ", 0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF)
SCRATCH = 0x500
DEVICES_END = 1 << 32
CPUID_APIC, CPUID_MONITOR, CPUID_X2APIC = 1 << 9, 1 << 3, 1 << 21
CPUID_HYPERVISOR = 1 << 31
CRYSTAL_HZ = 1_000_000_000


class StockEngine(Traps):
    """The same face as vcpu.engine.Engine: `uc`, and `run()`."""

    def __init__(self, switcher: Any, control: Any, ram: Any, ram_size: int, index: int) -> None:
        """The start state is 32-bit: Machine has refused others."""
        unicorn = unicorn_module()
        self._lib = switcher.lib
        self._ffi = switcher.ffi
        self._control = control
        self._index = index
        self._page = switcher.lib.smp_vcpu(control, index)
        uc = unicorn.Uc(unicorn.UC_ARCH_X86, unicorn.UC_MODE_32)
        super().__init__(uc, unicorn.x86_const, unicorn.UcError)
        address = int(self._ffi.cast("uintptr_t", ram))
        self.uc.mem_map_ptr(0, ram_size, unicorn.UC_PROT_ALL, address)
        self._map_devices(ram_size)
        self._hook_code = unicorn.UC_HOOK_CODE
        self._add_hooks(unicorn)
        self._look = True  # something may be pending: look at the next block
        self._wake = -1  # the value of `wake` when we last looked
        self._stopped = False  # the last stop was ours, not HLT
        self._block = (0, 0)  # start and size of the block that runs
        self._seen: set[tuple[int, int]] = set()  # blocks searched for MSR instructions
        self._msr_hooks: set[int] = set()
        self._exception: int | None = None
        self._reset()

    def _reset(self) -> None:
        # The Guest's TSC is the host's: RDTSC cannot be hooked everywhere.
        self._control.tsc_start = 0
        x, page = self._x, self._page
        self._set(x.UC_X86_REG_CR0, CR0_PE | CR0_ET)
        # Flat segments: the wheel fills the hidden parts from a GDT, which may go again.
        before = bytes(self.uc.mem_read(SCRATCH, len(FLAT_GDT)))
        self.uc.mem_write(SCRATCH, FLAT_GDT)
        self.uc.reg_write(x.UC_X86_REG_GDTR, (0, SCRATCH, len(FLAT_GDT) - 1, 0))
        self._set(x.UC_X86_REG_CS, 8)
        for name in ("SS", "DS", "ES", "FS", "GS"):
            self._set(getattr(x, f"UC_X86_REG_{name}"), 16)
        self.uc.mem_write(SCRATCH, before)
        self.uc.reg_write(x.UC_X86_REG_GDTR, (0, 0, 0, 0))
        self._set(x.UC_X86_REG_EFLAGS, EFLAGS_FIXED)
        self._set(x.UC_X86_REG_EAX, page.start_eax)
        self._set(x.UC_X86_REG_EBX, page.start_ebx)
        self._set(x.UC_X86_REG_ESI, page.start_esi)
        self._set(x.UC_X86_REG_EIP, page.start_eip)

    # The loop -----------------------------------------------------------------------

    def run(self) -> int:
        """Enter the Guest; `enum smp_exit`."""
        lib, page = self._lib, self._page
        page.counters.runs += 1
        while True:
            if self._control.dead:
                return int(lib.SMP_EXIT_DEAD)
            self._wake = page.wake
            if self._take_events():
                return int(lib.SMP_EXIT_STOP)
            self._deliver_pending()
            if page.halted:
                page.masked = int(not self._flags() & EFLAGS_IF)
                return int(lib.SMP_EXIT_HALT)
            if not self._control.dead:
                self._go()

    def _go(self) -> None:
        """Until something wants attention, HLT, or an exception (which is delivered)."""
        self._stopped = False
        self._exception = None
        try:
            self.uc.emu_start(self._get(self._x.UC_X86_REG_EIP), DEVICES_END)
        except self._error as error:
            if self._exception is None:
                self._kill(f"the stock engine cannot go on at {self._where()}: {error}")
                return
        failed = getattr(self.uc, "_hook_exception", None)
        if failed is not None:
            self.uc._hook_exception = None
            raise failed
        if self._exception is not None:
            self._raise(self._exception)
        elif not self._stopped:
            start, size = self._block
            end = start + size
            halted = self._get(self._x.UC_X86_REG_EIP) == end & 0xFFFFFFFF
            if halted and self._read(end - 1, 1)[0] == HLT:
                self._page.halted = 1
                self._page.counters.halts += 1
            else:
                self._kill(f"the stock engine stopped for no reason we know at {self._where()}")

    def _on_block(self, uc: Any, address: int, size: int, _: object) -> None:
        previous, self._block = self._block, (address, size)
        if (address, size) not in self._seen and self._hook_msrs(address, size):
            self._stopped = True
            uc.emu_stop()
            return
        if not self._look and self._page.wake == self._wake:
            return
        if address == previous[0] + previous[1] and self._read(address - 1, 1)[0] == STI:
            return  # the instruction behind STI runs first (SDM vol. 2, STI)
        waiting = self._lib.smp_lapic_pending(self._control, self._index) >= 0
        wanted = self._page.events or self._page.pause or self._control.dead
        if wanted or (waiting and self._flags() & EFLAGS_IF):
            self._stopped = True
            uc.emu_stop()
        elif not waiting:
            self._wake = self._page.wake
            self._look = False

    # Interrupts ---------------------------------------------------------------------

    def _take_events(self) -> bool:
        """Do what events say; True when run_guest() has to look."""
        lib, page = self._lib, self._page
        events = int(page.events)
        if events:
            self._clear_events(events)
        if events & lib.SMP_EVENT_TIMER:
            lib.smp_lapic_timer_event(self._control, self._index)
        if events & lib.SMP_EVENT_NMI:
            page.counters.nmis += 1
            page.halted = 0
            self._interrupt(NMI_VECTOR)
        return bool(events & lib.SMP_EVENT_STOP or page.pause)

    def _clear_events(self, mask: int) -> None:
        """Atomic AND NOT on a shared word: the kernel's FUTEX_WAKE_OP does that for Python too."""
        word = int(self._ffi.cast("uintptr_t", self._ffi.addressof(self._page, "events")))
        operation = FUTEX_OP_ANDN << 28 | mask << 12
        pointer = ctypes.c_void_p(word)
        syscall = ctypes.CDLL(None).syscall
        syscall(SYS_FUTEX, pointer, FUTEX_WAKE_OP, 0, None, pointer, operation)

    def _deliver_pending(self) -> None:
        self._look = True
        if self._lib.smp_lapic_pending(self._control, self._index) < 0:
            return
        if self._flags() & EFLAGS_IF:
            self._page.halted = 0
            self._interrupt(int(self._lib.smp_lapic_ack(self._control, self._index)))

    def _on_exception(self, uc: Any, number: int, _: object) -> None:
        self._exception = number
        uc.emu_stop()

    def _raise(self, vector: int) -> None:
        """An exception, or INT n: the wheel tells neither apart nor gives the error code."""
        self._page.counters.exceptions += 1
        code = self._page_fault_code() if vector == PAGE_FAULT else 0
        self._interrupt(vector, code if vector in WITH_ERROR_CODE else None)

    # Ports, MMIO, CPUID ----------------------------------------------------------------

    def _map_devices(self, ram_size: int) -> None:
        lapic = int(self._lib.SMP_LAPIC_BASE)
        for start, end in ((ram_size, lapic), (lapic + PAGE, DEVICES_END)):
            self.uc.mmio_map(start, end - start, self._mmio_read, start, self._mmio_write, start)
        self.uc.mmio_map(lapic, PAGE, self._lapic_read, None, self._lapic_write, None)

    def _mmio_read(self, _: Any, offset: int, size: int, base: int) -> int:
        address = base + offset
        return int(self._lib.smp_mmio_read(self._control, self._index, address, size))

    def _mmio_write(self, _: Any, offset: int, size: int, value: int, base: int) -> None:
        self._lib.smp_mmio_write(self._control, self._index, base + offset, size, value)
        self._look = True

    def _lapic_read(self, _: Any, offset: int, _size: int, _data: object) -> int:
        self._page.counters.mmio_lapic += 1
        word = int(self._lib.smp_lapic_read(self._control, self._index, offset & ~3))
        return word >> (8 * (offset & 3))

    def _lapic_write(self, _: Any, offset: int, _size: int, value: int, _data: object) -> None:
        self._page.counters.mmio_lapic += 1
        self._lib.smp_lapic_write(self._control, self._index, offset, value & 0xFFFFFFFF)
        self._look = True

    def _add_hooks(self, unicorn: Any) -> None:
        x = self._x
        self.uc.hook_add(unicorn.UC_HOOK_BLOCK, self._on_block)
        self.uc.hook_add(unicorn.UC_HOOK_INTR, self._on_exception)
        self.uc.hook_add(unicorn.UC_HOOK_INSN_INVALID, self._on_invalid)
        for hook, instruction in (
            (self._on_in, x.UC_X86_INS_IN),
            (self._on_out, x.UC_X86_INS_OUT),
            (self._on_cpuid, x.UC_X86_INS_CPUID),
        ):
            self.uc.hook_add(unicorn.UC_HOOK_INSN, hook, None, 1, 0, instruction)

    def _on_invalid(self, uc: Any, _: object) -> bool:
        self._exception = 6
        uc.emu_stop()
        return True

    def _on_in(self, _: Any, port: int, size: int, _data: object) -> int:
        self._look = True
        return int(self._lib.smp_pio_read(self._control, self._index, port & 0xFFFF, size))

    def _on_out(self, _: Any, port: int, size: int, value: int, _data: object) -> None:
        self._look = True
        mask = (1 << (8 * size)) - 1
        self._lib.smp_pio_write(self._control, self._index, port & 0xFFFF, size, value & mask)

    def _on_cpuid(self, _: Any, _data: object) -> bool:
        """Leaves that a kernel needs for the APIC and the TSC; the rest is the wheel's (False)."""
        x = self._x
        self._page.counters.cpuid += 1
        leaf = self._get(x.UC_X86_REG_EAX)
        khz = int(self._control.tsc_khz)
        answers = {
            0: (0x16, 0x756E6547, 0x6C65746E, 0x49656E69),  # GenuineIntel
            1: (0x000306A9, 1 << 16, CPUID_HYPERVISOR | 1, 0x0781FBFF | CPUID_APIC),
            0x15: (CRYSTAL_HZ // 1000, khz, CRYSTAL_HZ, 0),
            0x16: (khz // 1000, khz // 1000, 100, 0),
        }
        if leaf not in answers:
            return False
        names = (x.UC_X86_REG_EAX, x.UC_X86_REG_EBX, x.UC_X86_REG_ECX, x.UC_X86_REG_EDX)
        for register, value in zip(names, answers[leaf], strict=True):
            self._set(register, value)
        return True

    def _hook_msrs(self, address: int, size: int) -> bool:
        """Hook RDMSR and WRMSR in a block that is new; True if it must be translated again."""
        self._seen.add((address, size))
        code = self._read(address, size)
        found = {
            address + at
            for at in range(size - 1)
            if code[at : at + 2] in (RDMSR, WRMSR) and address + at not in self._msr_hooks
        }
        for at in found:
            # Bytes that only look like one are never the start of an instruction.
            self.uc.hook_add(self._hook_code, self._on_msr, None, at, at)
        self._msr_hooks |= found
        if found:
            self.uc.ctl_remove_cache(address, address + size)
        return bool(found)

    def _on_msr(self, _uc: Any, address: int, _size: int, _data: object) -> None:
        x, lib = self._x, self._lib
        msr = self._get(x.UC_X86_REG_ECX)
        if msr not in LAPIC_MSRS:
            return
        self._page.counters.msr += 1
        fault = self._ffi.new("int *")
        if self._read(address, 2) == RDMSR:
            value = int(lib.smp_lapic_msr_read(self._control, self._index, msr, fault))
            self._set(x.UC_X86_REG_EAX, value & 0xFFFFFFFF)
            self._set(x.UC_X86_REG_EDX, value >> 32)
        else:
            value = self._get(x.UC_X86_REG_EDX) << 32 | self._get(x.UC_X86_REG_EAX)
            lib.smp_lapic_msr_write(self._control, self._index, msr, value, fault)
            self._look = True
        self._set(x.UC_X86_REG_EIP, address + 2)

    # Registers and memory ----------------------------------------------------------------

    def _kill(self, text: str) -> None:
        lib = self._lib
        lib.smp_kill_guest(self._control, lib.SMP_DEAD_KILLED, self._index, 0, text.encode())
