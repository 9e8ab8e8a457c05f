"""Interrupts: which is due, the frame on the Guest's stack, the Guest's words about them.

The Guest's interrupt flag is a word in its `struct lguest_data`; the CPU's own is always
set while it runs.  Nobody tells us when the Guest sets that word (its `sti` does not make
a hypercall), so what could not be delivered is looked at again soon.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from vcpu.lguest.segments import (
    DOUBLE_FAULT,
    FIRST_EXTERNAL,
    GATE_INTERRUPT,
    GATE_PRESENT,
    GUEST_PL,
    KERNEL_CS,
    VECTORS,
    gate_type,
)

if TYPE_CHECKING:
    from vcpu.lguest.cpu import LguestCpu

EFLAGS_IF = 0x200
RETRY_NS = 100_000
"""How soon an interrupt is tried again that the Guest had disabled."""
TICK_NS = 4_000_000
"""How late at most.  lguest had the host's tick (250 Hz on many): every trap was an occasion."""
WORD = 0xFFFFFFFF
NANOSECONDS = 1_000_000_000
WITH_ERROR_CODE = frozenset((DOUBLE_FAULT, 10, 11, 12, 13, 14, 17))


def deliver_one(cpu: LguestCpu) -> None:
    """At most one interrupt, the lowest that is pending and not blocked; nothing before INIT."""
    pending = cpu.pending_irqs()
    if cpu.dead:
        return
    if not pending:
        # A blocked one may be unblocked by a store, unless the Guest sleeps.
        if cpu.irqs_wait and cpu.initialised and not cpu.halted:
            cpu.look_again(TICK_NS)
        return
    irq = (pending & -pending).bit_length() - 1
    if not _try_deliver(cpu, irq):
        cpu.look_again(_patience(cpu))
        return
    cpu.retry_ns = RETRY_NS
    if pending & (pending - 1):
        cpu.look_again(RETRY_NS)


def _patience(cpu: LguestCpu) -> int:
    """How long to leave a Guest alone that wants no interrupt now.

    Twice as long as last time if it came out for nothing but our looking: on a host that is
    slow or busy it might not get on at all otherwise.
    """
    looked = FIRST_EXTERNAL <= cpu.regs.trapnum < VECTORS
    cpu.retry_ns = min(2 * cpu.retry_ns, TICK_NS) if looked else RETRY_NS
    return cpu.retry_ns


def _try_deliver(cpu: LguestCpu, irq: int) -> bool:
    """try_deliver_interrupt(); False: the Guest does not want interrupts now."""
    data = cpu.data
    # In the middle of its iret the Guest asked to be left alone.
    if cpu.noirq_start <= cpu.regs.eip < cpu.noirq_end:
        return False
    if cpu.halted:
        data.irq_enabled = EFLAGS_IF  # its HLT was "sti; hlt"
        cpu.halted = False
    elif not data.irq_enabled:
        data.irq_pending = EFLAGS_IF
        return False
    low, high = cpu.tables.idt[FIRST_EXTERNAL + irq]
    if high & GATE_PRESENT:  # else it stays pending; if the Guest was halted, it no longer is
        cpu.clear_irq(irq)
        cpu.count_interrupt()
        set_guest_interrupt(cpu, low, high)
    write_timestamp(cpu)
    # lguest meant to clear irq_pending here when no other interrupt waits, and by a mistake
    # never did: once set it stays, and so it does here.
    return True


def deliver_trap(cpu: LguestCpu, vector: int) -> bool:
    """Reflect trap `vector` to the Guest's handler; False if it has none."""
    if vector >= VECTORS:
        return False
    low, high = cpu.tables.idt[vector]
    if not high & GATE_PRESENT:
        return False
    cpu.count_reflected()
    code = cpu.regs.errcode if vector in WITH_ERROR_CODE else None
    set_guest_interrupt(cpu, low, high, code)
    return True


def set_guest_interrupt(cpu: LguestCpu, low: int, high: int, code: int | None = None) -> None:
    """Push the frame and point the registers at the handler of this gate.

    The start of the stack is translated once and walked down physically, as lguest does.
    """
    eip, cs, eflags, esp, ss = cpu.frame
    data, memory = cpu.data, cpu.memory
    seen = eflags
    if data is not None and not data.irq_enabled & EFLAGS_IF:
        seen &= ~EFLAGS_IF
    pushed = [seen, cs, eip] if code is None else [seen, cs, eip, code]
    if ss & 3 != GUEST_PL:
        pushed = [ss, esp, *pushed]
        esp, ss = cpu.esp1, cpu.ss1
    memory.push(memory.guest_pa(esp), pushed)
    handler = low & 0xFFFF | high & 0xFFFF0000
    cpu.frame = (handler, KERNEL_CS, eflags, (esp - 4 * len(pushed)) & WORD, ss)
    if gate_type(high) == GATE_INTERRUPT:
        if data is not None:
            data.irq_enabled = 0
        else:
            cpu.kill_guest("Disabling interrupts")


def write_timestamp(cpu: LguestCpu) -> None:
    """The wall clock, for a Guest without a reliable TSC."""
    seconds, nanoseconds = divmod(time.time_ns(), NANOSECONDS)
    cpu.data.time_sec, cpu.data.time_nsec = seconds & WORD, nanoseconds
