"""When an lguest vCPU looks at its interrupts again, and what it must not swallow meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from switcher import binding
from tests.helpers.block import Block
from vcpu.lguest.interrupts import RETRY_NS, TICK_NS, deliver_one

Make = Callable[..., Block]
PAUSE = binding.constants["SMP_EVENT_STOP"]
KICK, HYPERCALL = 0x20, 0x1F


@dataclass
class Cpu:
    """As much of an LguestCpu as delivering needs; its Guest has interrupts off."""

    pending: int = 0
    irqs_wait: bool = False
    halted: bool = False
    dead: bool = False
    initialised: bool = True
    noirq_start: int = 0
    noirq_end: int = 0
    retry_ns: int = RETRY_NS
    regs: Any = field(default_factory=lambda: SimpleNamespace(eip=0, trapnum=HYPERCALL))
    data: Any = field(default_factory=lambda: SimpleNamespace(irq_enabled=0, irq_pending=0))
    looks: list[int] = field(default_factory=list)

    def pending_irqs(self) -> int:
        return self.pending

    def look_again(self, delta_ns: int) -> None:
        self.looks.append(delta_ns)


def deliver(cpu: Cpu, trap: int) -> int:
    """When it looks again."""
    cpu.regs.trapnum = trap
    cpu.looks.clear()
    deliver_one(cpu)  # type: ignore[arg-type]
    return sum(cpu.looks)


def test_a_guest_that_gets_nowhere_is_left_alone_for_longer() -> None:
    cpu = Cpu(pending=1)
    assert deliver(cpu, HYPERCALL) == RETRY_NS
    waits = [deliver(cpu, KICK) for _ in range(10)]
    assert waits[:3] == [2 * RETRY_NS, 4 * RETRY_NS, 8 * RETRY_NS]
    assert waits[-1] == TICK_NS
    assert deliver(cpu, HYPERCALL) == RETRY_NS  # it got somewhere


def test_a_blocked_interrupt_is_looked_at_with_the_tick() -> None:
    assert deliver(Cpu(irqs_wait=True), KICK) == TICK_NS
    assert deliver(Cpu(), KICK) == 0
    assert deliver(Cpu(irqs_wait=True, halted=True), KICK) == 0  # it cannot unblock it now
    assert deliver(Cpu(irqs_wait=True, initialised=False), KICK) == 0


def test_taking_the_events_does_not_swallow_a_pause(lib: Any, block: Make) -> None:
    b = block(1)
    page = lib.smp_vcpu(b.c, 0)
    lib.smp_pause(b.c, 0, 0)
    lib.smp_take_irqs(b.c, 0)
    lib.smp_pause(b.c, 0, 1)
    lib.smp_take_irqs(b.c, 0)
    assert page.events == PAUSE
    lib.smp_pause(b.c, 0, 0)
    lib.smp_take_irqs(b.c, 0)
    assert page.events == 0
