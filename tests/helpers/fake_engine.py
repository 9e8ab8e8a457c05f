"""A Guest written in Python: everything of a machine is real but the engine.

`fake_switcher(monkeypatch)` makes machines use it; the function given to
`play` is the Guest: it gets a `Cpu`, and runs in the vCPU's own process each
time the Guest is entered.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

import runtime.machine
import vcpu.worker
from runtime.machine import Machine
from switcher import binding


class FakeLib:
    """libswitcher.so, and the engine's functions that the Host calls."""

    def __init__(self, lib: Any) -> None:
        self._lib = lib

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lib, name)

    def smp_cpu_state_size(self) -> int:
        return 0

    def smp_read_regs(self, *_: object) -> int:
        return -1


class Cpu:
    """What a Python Guest can do."""

    def __init__(self, lib: Any, control: Any, ram: Any, index: int) -> None:
        self.lib, self.control, self.ram, self.index = lib, control, ram, index
        self.entries = 0

    def outb(self, port: int, value: int, size: int = 1) -> None:
        self.lib.smp_pio_write(self.control, self.index, port, size, value)

    def inb(self, port: int, size: int = 1) -> int:
        return int(self.lib.smp_pio_read(self.control, self.index, port, size))

    def print(self, text: bytes) -> None:
        for byte in text:
            self.outb(0x3F8, byte)

    def leave(self, value: int) -> None:
        self.outb(0xF4, value)

    def halt(self) -> int:
        """What HLT comes back with."""
        self.lib.smp_vcpu(self.control, self.index).halted = 1
        return int(self.lib.SMP_EXIT_HALT)


Guest = Callable[[Cpu], int | None]


def play(monkeypatch: pytest.MonkeyPatch, guest: Guest) -> None:
    """`guest` is what runs; None from it means "come back for no particular reason"."""
    fake = binding.Binding(
        binding.ffi, FakeLib(binding.open_native()), binding.NATIVE, binding.NATIVE, True
    )

    class Engine:
        def __init__(self, _: Any, control: Any, ram: Any, _size: int, index: int) -> None:
            self.uc = SimpleNamespace(name=f"engine {index}")
            self.cpu = Cpu(fake.lib, control, ram, index)

        def run(self) -> int:
            self.cpu.entries += 1
            fake.lib.smp_vcpu(self.cpu.control, self.cpu.index).halted = 0
            reason = guest(self.cpu)
            if reason is None:
                dead = bool(self.cpu.control.dead)
                reason = fake.lib.SMP_EXIT_DEAD if dead else fake.lib.SMP_EXIT_STOP
            return int(reason)

    monkeypatch.setattr(vcpu.worker, "Engine", Engine)
    monkeypatch.setattr(runtime.machine, "preload", lambda _: None)
    monkeypatch.setattr(Machine, "_load_switcher", lambda _: fake)
