"""The SMP extension (docs/lguest-smp.md): what lguest prepared for and never had."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from vcpu.lguest.segments import GuestMistakeError

if TYPE_CHECKING:
    from vcpu.lguest.cpu import LguestCpu

SMP_INIT, CPU_UP, CPU_DOWN, SEND_IPI, SET_AFFINITY = range(32, 37)
VERSION = 1
ALL_OTHERS = 0xFFFFFFFF
IRQS = 32


def do_hypercall(cpu: LguestCpu, number: int, arguments: tuple[int, int, int, int]) -> bool:
    """One of the extension's calls; False if it is none, or the Guest has not asked for them.

    Raises GuestMistakeError.
    """
    if number == SMP_INIT:
        if arguments[0] != VERSION:
            raise GuestMistakeError(f"SMP extension version {arguments[0]}")
        cpu.want_smp()
        return True
    call = _CALLS.get(number) if cpu.smp_wanted else None
    if call is None:
        return False
    call(cpu, *arguments)
    return True


def _cpu_up(cpu: LguestCpu, target: int, eip: int, argument: int, _rest: int) -> None:
    if not cpu.start_other(target, eip, argument):
        raise GuestMistakeError(f"Cannot start CPU {target}")


def _cpu_down(cpu: LguestCpu, told: int, *_rest: int) -> None:
    if cpu.index == 0:
        raise GuestMistakeError("CPU 0 cannot stop")
    cpu.go_down()
    if told:  # only now may somebody start it again
        cpu.memory.write_word(told, 1)


def _send_ipi(cpu: LguestCpu, target: int, irq: int, *_rest: int) -> None:
    if not 0 < irq < IRQS or not (target < cpu.vcpus or target == ALL_OTHERS):
        raise GuestMistakeError(f"Bad IPI {irq} to CPU {target}")
    if target != ALL_OTHERS:
        cpu.send_ipi(target, irq)
        return
    for index in range(cpu.vcpus):
        if index != cpu.index:
            cpu.send_ipi(index, irq)


def _set_affinity(cpu: LguestCpu, irq: int, target: int, *_rest: int) -> None:
    if not 0 < irq < IRQS or target not in range(cpu.vcpus):
        raise GuestMistakeError(f"Bad affinity of irq {irq} to CPU {target}")
    cpu.route_irq(irq, target)


_CALLS: dict[int, Callable[[LguestCpu, int, int, int, int], None]] = {
    CPU_UP: _cpu_up,
    CPU_DOWN: _cpu_down,
    SEND_IPI: _send_ipi,
    SET_AFFINITY: _set_affinity,
}
