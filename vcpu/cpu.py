"""What run_guest() works with: one vCPU's words in the control block, as verbs."""

from __future__ import annotations

import os
from typing import Any, Protocol

from runtime.errors import HostError


class Enterable(Protocol):
    """The engine, as far as run_guest() is concerned."""

    def run(self) -> int:
        """Enter the Guest; `enum smp_exit`."""


class VCpu:
    """One vCPU.  Owner of its state word while the worker lives."""

    def __init__(
        self, switcher: Any, control: Any, index: int, engine: Enterable, host_pid: int
    ) -> None:
        self._lib = switcher.lib
        self._ffi = switcher.ffi
        self._control = control
        self._page = switcher.lib.smp_vcpu(control, index)
        self._engine = engine
        self._host_pid = host_pid
        self.index = index
        self.pending_notify: int | None = None

    look_again_after_sleep = False
    """Whether the loop goes back to its top after a sleep, or enters the Guest."""

    def do_hypercalls(self) -> None:
        """The lguest machine's (vcpu/lguest); the pc has none."""

    def look(self) -> bool:
        """May somebody want something of this vCPU?  On the pc it seldom comes out for less."""
        return True

    def deliver_interrupt(self) -> None:
        """Likewise: on the pc the Switcher does it when the Guest is entered."""

    @property
    def dead(self) -> bool:
        """Somebody has killed the Guest."""
        return bool(self._control.dead)

    @property
    def pause_wanted(self) -> bool:
        """The Host wants this vCPU to stand still."""
        return bool(self._page.pause)

    @property
    def orphaned(self) -> bool:
        """The signal that matters to a vCPU: its Host is gone."""
        return os.getppid() != self._host_pid

    @property
    def halted(self) -> bool:
        """HLT (or waiting for SIPI), and not woken yet."""
        return bool(self._page.halted)

    def send_notify(self) -> None:
        """To the eventfd bound to that address, else it is a mistake of the Guest's."""
        address, self.pending_notify = self.pending_notify, None
        if not self._lib.smp_notify(self._control, 0, address):
            self.kill_guest(f"bad notify {address:#x}: no device is there")

    def freeze(self) -> None:
        """PAUSED, until resumed or dead."""
        self._lib.smp_pause_wait(self._control, self.index)

    def sleep(self) -> None:
        """HALTED, until something is pending for this vCPU."""
        self._lib.smp_set_state(self._control, self.index, self._lib.SMP_HALTED)
        self._lib.smp_sleep(self._control, self.index, -1)
        self._page.counters.halt_sleeps += 1

    def switch_to_guest(self) -> int:
        """Into the Guest and back; why it came back (`enum smp_exit`)."""
        if self._page.state != self._lib.SMP_RUNNING:
            self._lib.smp_set_state(self._control, self.index, self._lib.SMP_RUNNING)
        return self._engine.run()

    def handle_exit(self, reason: int) -> None:
        """What only the loop can decide; halts, stops and death are seen at its top."""
        lib = self._lib
        if reason == lib.SMP_EXIT_NOTIFY:
            self.pending_notify = int(self._page.request.address)
        elif reason == lib.SMP_EXIT_ERROR:
            words = self._ffi.string(self._page.last_error).decode("utf-8", "replace")
            raise HostError(words or "the engine failed")
        elif reason not in (lib.SMP_EXIT_HALT, lib.SMP_EXIT_STOP, lib.SMP_EXIT_DEAD):
            raise HostError(f"the engine came back for no reason we know ({reason})")

    def kill_guest(self, text: str) -> None:
        """The Guest did something that it must not do."""
        lib = self._lib
        lib.smp_kill_guest(self._control, lib.SMP_DEAD_KILLED, self.index, 0, text.encode())
