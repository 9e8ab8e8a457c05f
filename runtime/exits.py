"""How a machine ended: the reason, the exit status it means, and what was counted.

The reasons are `enum smp_dead` of control.h; their names come from that
declaration, their meaning for a shell is fixed here.
"""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass, field
from typing import Any

from runtime.errors import STATUS_GUEST, STATUS_HOST

STATUS_TIMEOUT = 124


class Reason(enum.Enum):
    """Why the Guest is dead: the names of `enum smp_dead` without their prefix."""

    ALIVE = "alive"
    POWEROFF = "poweroff"
    DEBUG_EXIT = "debug_exit"
    RESTART = "restart"
    KILLED = "killed"
    WORKER = "worker"
    HOST = "host"
    TIMEOUT = "timeout"
    INTERRUPTED = "interrupted"
    STOPPED = "stopped"

    @classmethod
    def from_name(cls, name: str) -> Reason:
        """`SMP_DEAD_KILLED` (or `SMP_ALIVE`) as a Reason."""
        return cls(name.removeprefix("SMP_").removeprefix("DEAD_").lower())


def exit_status(reason: Reason, code: int) -> int:
    """The exit status for `reason`; `code` is the Guest's value, or the signal number.

    A write of *v* to the debug-exit port gives `(v << 1) | 1`, as QEMU does;
    signals give 128 + number, as shells do.
    """
    if reason is Reason.DEBUG_EXIT:
        return ((code << 1) | 1) & 0xFF
    if reason is Reason.INTERRUPTED:
        return 128 + (code or signal.SIGINT)
    if reason is Reason.KILLED:
        return STATUS_GUEST
    if reason is Reason.TIMEOUT:
        return STATUS_TIMEOUT
    if reason in (Reason.WORKER, Reason.HOST):
        return STATUS_HOST
    return 0


@dataclass(frozen=True)
class Registers:
    """The registers of one vCPU, in SDM names, as its worker last left them."""

    values: dict[str, int]

    @property
    def rip(self) -> int:
        """The instruction pointer."""
        return self.values["rip"]

    @property
    def where(self) -> str:
        """CS:RIP."""
        return f"{self.values['cs']:04x}:{self.rip:#x}"

    def lines(self) -> list[str]:
        """A readable dump, four registers a line."""
        items = [f"{name:>6}=0x{value:x}" for name, value in self.values.items()]
        return [" ".join(items[i : i + 4]) for i in range(0, len(items), 4)]


@dataclass(frozen=True)
class Exit:
    """What `Machine.run()` returns.

    `code` is the debug-exit value or a signal number, `text` one sentence,
    `vcpu` the vCPU that decided or asked for it (None: nobody's), `console` what
    the Guest printed when the console was captured, `counters` one dict a vCPU,
    `registers` one set a vCPU (None where the engine cannot tell), `doings` what
    each vCPU was at (`running`, `halted`, `waiting for SIPI`), `results` what the
    user's hooks returned, by vCPU, `locks` the Big Lock's times by call site.
    Times in seconds.  docs/stats.md explains the counters.
    """

    reason: Reason
    status: int
    code: int = 0
    text: str = ""
    vcpu: int | None = None
    console: bytes = b""
    counters: tuple[dict[str, int], ...] = ()
    registers: tuple[Registers | None, ...] = ()
    doings: tuple[str, ...] = ()
    results: dict[int, Any] = field(default_factory=dict)
    locks: dict[str, dict[str, int]] = field(default_factory=dict)
    wall_seconds: float = 0.0
    cpu_seconds: dict[str, float] = field(default_factory=dict)

    @property
    def death(self) -> Registers | None:
        """The registers of the vCPU that decided, when they are known."""
        if self.vcpu is None or self.vcpu >= len(self.registers):
            return None
        return self.registers[self.vcpu]

    def vcpu_lines(self) -> list[str]:
        """Where each vCPU stood at the end, a line each."""
        places = [regs and f" at {regs.where}" for regs in self.registers]
        return [
            f"vCPU {index}: {doing}{place or ''}"
            for index, (doing, place) in enumerate(zip(self.doings, places, strict=True))
        ]

    def as_dict(self) -> dict[str, Any]:
        """For `--stats` (docs/stats.md): plain JSON types, without console and hooks' results."""
        return {
            "reason": self.reason.value,
            "status": self.status,
            "code": self.code,
            "text": self.text,
            "vcpu": self.vcpu,
            "wall_seconds": self.wall_seconds,
            "cpu_seconds": self.cpu_seconds,
            "vcpus": [
                {"index": index, "doing": doing, "counters": counters}
                for index, (doing, counters) in enumerate(
                    zip(self.doings, self.counters, strict=True)
                )
            ],
            "big_lock": self.locks,
        }
