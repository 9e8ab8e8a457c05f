"""When a vCPU of the lguest machine looks at what others want, and that it misses nothing."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from switcher import binding
from tests.helpers.block import Block
from vcpu.guest import run_guest
from vcpu.lguest.cpu import LguestCpu

ffi = binding.ffi
RAM = 1 << 20


def make_cpu(b: Block, engine: Any = None) -> LguestCpu:
    ram = ffi.new("char[]", RAM)
    b.c.pfn_limit = RAM // 4096
    engine = engine or SimpleNamespace(handle=ffi.NULL)
    cpu = LguestCpu(SimpleNamespace(ffi=ffi, lib=b.lib), b.c, 0, engine, os.getppid(), ram)
    cpu._keep = (*cpu._keep, ram)
    return cpu


@pytest.fixture
def b(lib: Any) -> Block:
    return Block(lib, 2, RAM)


def test_it_looks_once_and_then_only_when_kicked(b: Block) -> None:
    cpu = make_cpu(b)
    assert cpu.look()  # at the start there may be anything
    assert not cpu.look()
    b.set_interrupt(1, 3)  # somebody else's
    assert not cpu.look()


WISHES: dict[str, Callable[[Block], object]] = {
    "irq": lambda b: b.set_interrupt(0, 3),
    "pause": lambda b: b.pause(0, 1),
    "death": lambda b: b.kill_guest(b.lib.SMP_DEAD_STOPPED, 0, 0, b"enough"),
    "start": lambda b: b.vcpu_up(0, 0x1000, 0),
}


@pytest.mark.parametrize("wish", WISHES)
def test_every_wish_makes_it_look(b: Block, wish: str) -> None:
    cpu = make_cpu(b)
    cpu.look()
    WISHES[wish](b)
    assert cpu.look()
    assert b.v(0).events == (b.lib.SMP_EVENT_STOP if wish == "pause" else 0)


def test_a_pause_that_is_over_leaves_nothing_to_wake_for(b: Block) -> None:
    """Or else a halted vCPU would never sleep again: smp_sleep() returns while there are events."""
    cpu = make_cpu(b)
    cpu.look()
    b.pause(0, 1)
    assert cpu.look()
    b.pause(0, 0)
    assert cpu.look()
    assert b.v(0).events == 0
    assert not cpu.look()


def test_it_looks_again_while_an_interrupt_waits(b: Block) -> None:
    cpu = make_cpu(b)
    cpu.data = None  # before INIT
    b.set_interrupt(0, 3)
    assert cpu.look()
    assert cpu.pending_irqs() == 0
    assert cpu.look()  # nobody has kicked since
    assert cpu.pending_irqs() == 0
    b.clear_irq(0, 3)
    assert cpu.look()
    assert cpu.pending_irqs() == 0
    assert not cpu.look()


def test_what_comes_behind_the_look_is_left_to_bring_the_guest_out(b: Block) -> None:
    """A pause that comes while an interrupt is delivered: its event must not be taken with it."""
    cpu = make_cpu(b)
    cpu.look()
    b.pause(0, 1)
    cpu.deliver_interrupt()
    assert cpu.pending_irqs() == 0
    assert b.v(0).events == b.lib.SMP_EVENT_STOP
    assert cpu.look()
    assert cpu.pause_wanted


def test_a_pause_between_two_rounds_is_not_lost(b: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes just after this one has ended; the Guest is entered with its event."""
    entered = []

    class Engine:
        handle = ffi.NULL

        def run(self) -> int:
            entered.append(b.v(0).events)
            b.kill_guest(b.lib.SMP_DEAD_STOPPED, 0, 0, b"enough")
            return int(b.lib.SMP_EXIT_DEAD)

    cpu = make_cpu(b, Engine())
    cpu.data, cpu._up, cpu.halted = None, True, False
    b.pause(0, 1)

    def freeze() -> None:
        b.pause(0, 0)
        b.pause(0, 1)

    monkeypatch.setattr(cpu, "freeze", freeze)
    run_guest(cpu)
    assert entered == [b.lib.SMP_EVENT_STOP]
