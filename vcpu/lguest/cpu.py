"""One vCPU of the lguest machine: lguest's `struct lg_cpu`, as verbs for run_guest().

The Guest's registers are at the end of this vCPU's registers page whenever the Guest is
out: the Switcher's text has put them there, and takes them from there (switcher/native/text.c).
"""

from __future__ import annotations

import struct
from collections import deque
from typing import Any

from switcher.binding import constants as c
from switcher.binding import ffi
from switcher.pages import PAGE, SWITCHER_ADDRESS, registers_page, state_page
from vcpu.cpu import VCpu
from vcpu.engine import Engine
from vcpu.lguest import hypercalls, interrupts, traps
from vcpu.lguest.memory import Memory, hexadecimal
from vcpu.lguest.segments import KERNEL_CS, KERNEL_DS, Tables

EFLAGS_START = 0x202
CACHED_PGDIRS = 4
UP = 2
TRAP = c["SMP_EXIT_TRAP"]
FRAME = struct.Struct("<5I")
FRAME_AT = ffi.offsetof("struct lguest_regs", "eip")
"""eip, cs, eflags, esp, ss: the last words of the registers."""


class LguestCpu(VCpu):
    """Owner of the vCPU's registers and state pages while its worker lives."""

    def __init__(
        self, switcher: Any, control: Any, index: int, engine: Engine, host_pid: int, ram: Any
    ) -> None:
        super().__init__(switcher, control, index, engine, host_pid)
        ffi = switcher.ffi
        self._ram = ram
        self._engine_handle = engine.handle
        page = registers_page(control, index)
        registers = ffi.from_buffer(page)
        offset = PAGE - ffi.sizeof("struct lguest_regs")
        self.regs: Any = ffi.cast("struct lguest_regs *", ffi.addressof(registers, offset))
        state = ffi.from_buffer(state_page(control, index))
        self._state: Any = ffi.cast("struct lguest_ro_state *", state)
        self._keep = (registers, state)
        self.words = page[offset:]
        self._counters = self._page.counters
        self._all = [switcher.lib.smp_vcpu(control, i) for i in range(control.vcpus)]
        self.data_size: int = ffi.sizeof("struct lguest_data")
        self.memory = Memory(switcher, control, ram, self.kill_guest)
        self.vcpus = int(control.vcpus)
        self.tsc_khz = int(control.tsc_khz)
        self.hypercall_wanted = False
        self.must_look = True
        """Something was left to do at the last look, or the Guest was brought out for it."""
        self._wake = -1  # as it was at the last look
        self._up = False

    # Birth, start, stop -----------------------------------------------------------

    def start(self) -> None:
        """The state in which lguest starts a CPU (lguest_arch_setup_regs)."""
        own_pages = SWITCHER_ADDRESS + PAGE * (1 + 2 * self.index)
        self.tables = Tables(self._lib, self._state, SWITCHER_ADDRESS, own_pages + PAGE)
        self._lib.smp_lguest_reset(self._engine_handle)
        size = self._ffi.sizeof("struct lguest_regs")
        self._ffi.memmove(self.regs, bytes(size), size)
        regs = self.regs
        regs.ds = regs.es = regs.ss = KERNEL_DS
        regs.cs = KERNEL_CS
        regs.eflags = EFLAGS_START
        regs.eip = self._page.start_eip
        regs.esi = self._page.start_esi  # the boot parameters; on the first vCPU they are at 0
        self.memory.pgdir = None
        self._known: deque[int] = deque(maxlen=CACHED_PGDIRS)
        self.data: Any = None
        self.noirq_start = self.noirq_end = self.kernel_address = 0
        self.next_hcall = 0
        self.pending_notify = None
        self.hypercall_wanted = False
        self.ts = 0
        self.retry_ns = interrupts.RETRY_NS
        self.ss1 = self.esp1 = self._stack_pages = 0
        self._page.irqs_pending = 0
        self._up = True
        self.halted = False

    def go_down(self) -> None:
        """CPU_DOWN: stand still until somebody starts this vCPU again."""
        self.set_clock(0)
        self._up = False
        self.halted = True
        self._page.up = 0

    @property
    def initialised(self) -> bool:
        """LGUEST_INIT was done."""
        return self.data is not None

    def attach_data(self, address: int) -> Any:
        """The Guest's `struct lguest_data` is there (checked by the caller)."""
        self.data = data = self._ffi.cast("struct lguest_data *", self._ram + address)
        self.ring_status = memoryview(self._ffi.buffer(data.hcall_status)).cast("B")
        self.ring_calls = memoryview(self._ffi.buffer(data.hcalls))
        return data

    # What run_guest() asks ----------------------------------------------------------

    halted = True
    """HALT, or not started."""

    def do_hypercalls(self) -> None:
        """If the Guest came out for one."""
        hypercalls.do_hypercalls(self)

    def look(self) -> bool:
        """Has anybody kicked since the last look, or was not everything done then?

        Whoever wants something of a vCPU leaves word first and then counts up its `wake`
        (smp_kick), so one word that has not changed says that there is nothing new.  The events
        are taken here, before anything else is looked at: what comes later brings the Guest out.
        """
        wake = self._page.wake
        if wake == self._wake and not self.must_look:
            return False
        self._wake = wake
        self._lib.smp_take_irqs(self._control, self.index)
        self.must_look = self._page.events != 0  # a pause stays there until it is over
        return True

    def send_notify(self) -> None:
        """To the eventfd bound to that address, else to the Launcher, who answers when done."""
        address, self.pending_notify = self.pending_notify, None
        counters = self._counters
        if self._lib.smp_notify(self._control, 0, address):
            counters.notify_eventfd += 1
            return
        counters.notify_launcher += 1
        answer = self._ffi.new("uint64_t *")
        self._lib.smp_ask_host(
            self._control, self.index, self._lib.SMP_REQ_NOTIFY, address, 4, answer
        )

    def deliver_interrupt(self) -> None:
        """One at most."""
        if self._up:
            interrupts.deliver_one(self)

    def sleep(self) -> None:
        """HALTED, until there is an interrupt to deliver, or to be started."""
        lib = self._lib
        if self._up:
            if self.pending_irqs():
                return
        elif self._page.up == UP:
            self.start()
            return
        if self._page.state != lib.SMP_HALTED:
            lib.smp_set_state(self._control, self.index, lib.SMP_HALTED)
        self._counters.halt_sleeps += 1
        lib.smp_sleep(self._control, self.index, -1)

    look_again_after_sleep = True

    def switch_to_guest(self) -> int:
        """Through the Switcher and back."""
        return self._engine.run()

    def handle_exit(self, reason: int) -> None:
        """A trap, or what every machine has."""
        if reason == TRAP:
            traps.handle_trap(self)
        else:
            super().handle_exit(reason)

    # Interrupts ----------------------------------------------------------------------

    def pending_irqs(self) -> int:
        """The bitmap of those that are pending and not blocked; 0 before INIT."""
        pending: int = self._page.irqs_pending
        if not pending:
            return 0
        self.must_look = True
        if self.data is None:
            return 0
        return pending & ~int(self.data.blocked_interrupts)

    @property
    def irqs_wait(self) -> bool:
        """Is any pending, blocked or not?"""
        return bool(self._page.irqs_pending)

    def clear_irq(self, irq: int) -> None:
        """It is being delivered."""
        self._lib.smp_clear_irq(self._control, self.index, irq)

    def look_again(self, delta_ns: int) -> None:
        """Come out of the Guest after that time, to try again."""
        self._lib.smp_look_again(self._control, self.index, delta_ns)

    def set_clock(self, delta_ns: int) -> None:
        """The one-shot clock, irq 0; 0 stops it."""
        self._lib.smp_set_clock(self._control, self.index, delta_ns)

    def count_interrupt(self) -> None:
        """For --stats."""
        self._counters.interrupts += 1

    def count_async(self, calls: int) -> None:
        """For --stats."""
        self._counters.async_hypercalls += calls

    def count_reflected(self) -> None:
        """For --stats."""
        self._counters.reflected += 1

    # The interrupted Guest --------------------------------------------------------------

    @property
    def frame(self) -> tuple[int, ...]:
        """Where the Guest was interrupted: eip, cs, eflags, esp, ss."""
        return FRAME.unpack_from(self.words, FRAME_AT)

    @frame.setter
    def frame(self, words: tuple[int, int, int, int, int]) -> None:
        FRAME.pack_into(self.words, FRAME_AT, *words)

    # Page tables -----------------------------------------------------------------------

    @property
    def fault_address(self) -> int:
        """Of the last page fault."""
        return int(self._lib.smp_lguest_cr2(self._engine_handle))

    def knows(self, pgdir: int) -> bool:
        """Is it one of the page directories that this vCPU has used lately?"""
        return pgdir & ~0xFFF in self._known

    def new_pgdir(self, pgdir: int) -> None:
        """Switch; the first time this ends the linear mode."""
        self._lib.smp_lguest_new_pgdir(self._engine_handle, pgdir)
        self.memory.pgdir = pgdir
        if not self.knows(pgdir):
            self._known.append(pgdir & ~0xFFF)
            self._pin_stack()

    def flush_all(self, *, pin: bool = True) -> None:
        """Forget all translations of addresses, kernel and user."""
        self._lib.smp_lguest_flush(self._engine_handle)
        if pin:
            self._pin_stack()

    def flush_page(self, virtual: int) -> None:
        """Forget one."""
        self._lib.smp_lguest_flush_page(self._engine_handle, virtual)

    def set_stack(self, segment: int, pointer: int, pages: int) -> None:
        """Where traps from ring 3 push; `pointer` is virtual."""
        self.ss1, self.esp1, self._stack_pages = segment, pointer, pages
        self.tables.set_stack(segment, pointer)
        self._pin_stack()

    def _pin_stack(self) -> None:
        """The kernel's stack must be mapped and writable: the CPU pushes there by itself."""
        for page in range(self._stack_pages):
            virtual = (self.esp1 - 1 - page * PAGE) & 0xFFFFFFFF
            if not self.memory.pin(virtual):
                self.kill_guest(f"bad stack page {hexadecimal(virtual)}")

    def set_ts(self, on: int) -> None:
        """CR0.TS while the Guest runs."""
        self.ts = on
        self._lib.smp_lguest_set_ts(self._engine_handle, int(on != 0))

    # Ends ----------------------------------------------------------------------------------

    def power_off(self) -> None:
        """The Guest wants to end."""
        self._end(self._lib.SMP_DEAD_POWEROFF, "the Guest powered off")

    def restart(self) -> None:
        """-ERESTART."""
        self._end(self._lib.SMP_DEAD_RESTART, "the Guest asked for a restart")

    def _end(self, reason: int, text: str) -> None:
        self._lib.smp_kill_guest(self._control, reason, self.index, 0, text.encode())

    # SMP (vcpu/lguest/smp.py) -----------------------------------------------------------------

    @property
    def smp_wanted(self) -> bool:
        """Some vCPU has called SMP_INIT."""
        return bool(self._control.smp_wanted)

    def want_smp(self) -> None:
        """From now on the Guest may."""
        self._control.smp_wanted = 1

    def start_other(self, index: int, eip: int, argument: int) -> bool:
        """False if there is no such vCPU, or it runs already."""
        return bool(self._lib.smp_vcpu_up(self._control, index, eip, argument))

    def send_ipi(self, index: int, irq: int) -> None:
        """Ignored by a vCPU that does not run."""
        if self._all[index].up:
            self._lib.smp_set_interrupt(self._control, index, irq)

    def route_irq(self, irq: int, index: int) -> None:
        """A device's interrupts go there."""
        self._control.irq_vcpu[irq] = index
