"""Traps that came out through the Switcher: lguest_arch_handle_trap()."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vcpu.lguest.interrupts import deliver_trap
from vcpu.lguest.memory import hexadecimal
from vcpu.lguest.segments import (
    DEVICE_NOT_AVAILABLE,
    FIRST_EXTERNAL,
    GUEST_PL,
    HYPERCALL,
    INVALID_OPCODE,
    PAGE_FAULT,
    PROTECTION,
    VECTORS,
)

if TYPE_CHECKING:
    from vcpu.lguest.cpu import LguestCpu

CLI, OPERAND_SIZE = 0xFA, 0x66
IN_BYTE, IN_DX, OUT_BYTE, OUT_DX = 0xE4, 0xEC, 0xE6, 0xEE  # the lowest bit: not just AL
LENGTHS = {IN_BYTE: 2, IN_DX: 1, OUT_BYTE: 2, OUT_DX: 1}
WRMSR, RDMSR = b"\x0f\x30", b"\x0f\x32"
VMCALL, INT_1F = b"\x0f\x01\xc1", b"\xcd\x1f\x90"  # the latter with a NOP
WORD = 0xFFFFFFFF


def handle_trap(cpu: LguestCpu) -> None:
    """Do what the trap asks for, or reflect it to the Guest, or kill the Guest."""
    regs = cpu.regs
    vector = regs.trapnum
    if vector == HYPERCALL:
        cpu.hypercall_wanted = True
        return
    if FIRST_EXTERNAL <= vector < VECTORS:
        cpu.must_look = True  # an interrupt of the Host's: a kick
        return
    if vector == PROTECTION:
        if regs.errcode == 0 and _emulate(cpu):
            return
    elif vector == INVALID_OPCODE:
        if _rewrite_hypercall(cpu):
            return
    elif vector == PAGE_FAULT:
        # The engine has done what demand_page() does: it is really not there.
        if cpu.initialised:
            cpu.data.cr2 = cpu.fault_address
    elif vector == DEVICE_NOT_AVAILABLE and not cpu.ts:
        return
    if not deliver_trap(cpu, vector):
        value = cpu.fault_address if vector == PAGE_FAULT else regs.errcode
        cpu.kill_guest(f"unhandled trap {vector} at {hexadecimal(regs.eip)} ({hexadecimal(value)})")


def _rewrite_hypercall(cpu: LguestCpu) -> bool:
    """Before 3.1 some or all hypercalls were VMCALL, and the Host made INT of them.

    (Linux 3.0: only the one for pending interrupts.)
    """
    if cpu.regs.cs & 3 != GUEST_PL:
        return False
    at = cpu.memory.guest_pa(cpu.regs.eip)
    if cpu.memory.read(at, len(VMCALL)) != VMCALL:
        return False
    cpu.memory.write(at, INT_1F)
    return True


def _emulate(cpu: LguestCpu) -> bool:
    """emulate_insn(): a CLI in the kernel is nothing, nobody is at any port.

    Kernels execute a few of these before they have replaced them by hypercalls.
    """
    regs, memory = cpu.regs, cpu.memory
    # lguest translated eip first, and a user whose code segment does not begin at 0 killed the
    # Guest, for want of a page there.
    if regs.cs & 3 != GUEST_PL:
        return False
    at = memory.guest_pa(regs.eip)
    opcode, length, short = memory.read(at, 1)[0], 0, False
    if opcode == CLI:
        regs.eip = (regs.eip + 1) & WORD
        return True
    if opcode == OPERAND_SIZE:
        short, length = True, 1
        opcode = memory.read(at + 1, 1)[0]
    kind = opcode & ~1
    if kind not in LENGTHS:
        return not cpu.initialised and _emulate_msr(cpu, memory.read(at, 2))
    if kind in (IN_BYTE, IN_DX):
        wide = 0xFFFF if short else WORD
        regs.eax = regs.eax | (wide if opcode & 1 else 0xFF)
    regs.eip = (regs.eip + length + LENGTHS[kind]) & WORD
    return True


def _emulate_msr(cpu: LguestCpu, code: bytes) -> bool:
    """No MSR has a meaning; only before INIT, when nobody can handle the fault.

    Linux 3.9 and later look for microcode in the very first instructions, before they ask
    where they are (CONFIG_MICROCODE_EARLY).  lguest died of that on an Intel host.
    """
    if code not in (RDMSR, WRMSR):
        return False
    regs = cpu.regs
    if code == RDMSR:
        regs.eax = regs.edx = 0
    regs.eip = (regs.eip + len(code)) & WORD
    return True
