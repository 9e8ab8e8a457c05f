"""The control block from Python's side.

The layout is declared in switcher/native/control.h and nowhere else; this
module maps it, and turns its words into names and dicts.  Words marked
[atomic] there are only read here; every change goes through the Switcher's
functions.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from runtime.errors import HostError
from runtime.exits import Reason, Registers
from runtime.memory import SharedBlock

GPR_NAMES = (
    *("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"),
    *("r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"),
)
SEGMENT_NAMES = ("es", "cs", "ss", "ds", "fs", "gs")
_SITE_NAMES = ("lifecycle", "bus", "irq", "notify", "other")
CALIBRATION_NS = 10_000_000
"""How long the TSC is compared with the clock: 10 ms give better than 1 in 10,000."""

_first_sample: tuple[int, int] | None = None  # (TSC, ns), taken once per process


def sample_clock(switcher: Any) -> None:
    """Take the first clock sample early, so that `tsc_khz()` need not wait for its 10 ms."""
    global _first_sample
    if _first_sample is None:
        _first_sample = (int(switcher.lib.smp_host_tsc()), int(switcher.lib.smp_now_ns()))


def tsc_khz(switcher: Any) -> int:
    """The host TSC's frequency in kHz, measured against CLOCK_MONOTONIC."""
    sample_clock(switcher)
    if _first_sample is None:
        raise HostError("the TSC cannot be read")
    tsc, now = _first_sample
    while True:
        tsc_2, now_2 = int(switcher.lib.smp_host_tsc()), int(switcher.lib.smp_now_ns())
        if now_2 - now >= CALIBRATION_NS:
            return max(1, (tsc_2 - tsc) * 1_000_000 // (now_2 - now))


@dataclass(frozen=True)
class Verdict:
    """What `smp_kill_guest()` recorded; `vcpu` is None when nobody's."""

    reason: Reason
    vcpu: int | None
    code: int
    text: str


def _state_size(switcher: Any) -> int:
    return int(switcher.lib.smp_cpu_state_size()) if switcher.is_patched else 0


def control_size(switcher: Any, vcpus: int, ram_size: int) -> int:
    """Bytes of a machine's control block."""
    return int(switcher.lib.smp_control_size(vcpus, ram_size, _state_size(switcher)))


class ControlBlock:
    """The control block of one machine, owned by the Host."""

    def __init__(self, switcher: Any, vcpus: int, ram_size: int) -> None:
        """Create, size and initialise it; raises UserError (no room) or HostError."""
        self.switcher = switcher
        self._lib = switcher.lib
        self._ffi = switcher.ffi
        self.vcpus = vcpus
        self.ram_size = ram_size
        state_size = _state_size(switcher)
        size = control_size(switcher, vcpus, ram_size)
        self._block = SharedBlock(size, "control block")
        self._buffer = self._ffi.from_buffer(self._block.map)
        self.pointer: Any = self._ffi.cast("struct smp_control *", self._buffer)
        result = self._lib.smp_control_init(
            self.pointer, size, vcpus, ram_size, state_size, tsc_khz(switcher)
        )
        if result != 0:
            self.close()
            raise HostError(f"the control block cannot be initialised (error {result})")

    def close(self) -> None:
        """Unmap it; the pointer is dead afterwards."""
        self.pointer = None
        self._ffi.release(self._buffer)
        self._block.close()

    def hide_from_later_workers(self) -> None:
        """Workers of other machines need no copy of this mapping."""
        self._block.hide_from_later_workers()

    def vcpu(self, index: int) -> Any:
        """`struct smp_vcpu *`."""
        return self._lib.smp_vcpu(self.pointer, index)

    # Life and death -----------------------------------------------------------

    @property
    def is_dead(self) -> bool:
        """Whether anybody has killed the Guest."""
        return bool(self.pointer.dead)

    def kill(self, reason: Reason, text: str, vcpu: int | None = None, code: int = 0) -> bool:
        """Kill the Guest; False when somebody was first."""
        number = int(getattr(self._lib, f"SMP_DEAD_{reason.name}"))
        who = self._lib.SMP_MAX_VCPUS if vcpu is None else vcpu
        short = clip(text, self._lib.SMP_TEXT)
        return bool(self._lib.smp_kill_guest(self.pointer, number, who, code, short))

    def verdict(self) -> Verdict:
        """Why the Guest is dead."""
        names: dict[int, str] = self._ffi.typeof("enum smp_dead").elements
        control = self.pointer
        reason = Reason.from_name(names[int(control.dead)])
        if reason is not Reason.ALIVE and not control.dead_ready:
            return Verdict(reason, None, 0, "(who decided it died before saying why)")
        who = int(control.dead_vcpu)
        text = self._ffi.string(control.dead_text).decode("utf-8", "replace")
        vcpu = who if who < self.vcpus else None
        return Verdict(reason, vcpu, int(control.dead_code), text)

    # vCPUs --------------------------------------------------------------------

    def state(self, index: int) -> str:
        """`paused`, `running`, `halted`, `in_host`, `stopped` or `crashed`."""
        names: dict[int, str] = self._ffi.typeof("enum smp_state").elements
        return names[int(self.vcpu(index).state)].removeprefix("SMP_").lower()

    def doing(self, index: int) -> str:
        """What the Guest had this vCPU do: `running`, `halted` or `waiting for SIPI`."""
        page = self.vcpu(index)
        if page.lapic.wait_sipi:
            return "waiting for SIPI"
        return "halted" if page.halted else "running"

    def mark_crashed(self, index: int) -> None:
        """For a worker that can no longer speak."""
        self._lib.smp_set_state(self.pointer, index, self._lib.SMP_CRASHED)

    def pause(self, index: int, *, on: bool) -> None:
        """Ask a vCPU to pause or to go on; the answer is its state."""
        self._lib.smp_pause(self.pointer, index, int(on))

    def wait_paused(self, index: int, deadline: float) -> bool:
        """Wait until the vCPU has paused or ended; False at `deadline` (time.monotonic)."""
        lib = self._lib
        settled = (lib.SMP_PAUSED, lib.SMP_STOPPED, lib.SMP_CRASHED)
        while (state := int(self.vcpu(index).state)) not in settled:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            lib.smp_wait_state(self.pointer, index, state, int(left * 1e9))
        return True

    def last_error(self, index: int) -> str:
        """The worker's last words, empty when it left none."""
        return str(self._ffi.string(self.vcpu(index).last_error).decode("utf-8", "replace"))

    def counters(self, index: int) -> dict[str, int]:
        """Exits per reason and other counts of one vCPU."""
        counters = self.vcpu(index).counters
        fields = self._ffi.typeof("struct smp_counters").fields
        return {name: int(getattr(counters, name)) for name, _ in fields}

    def locks(self) -> dict[str, dict[str, int]]:
        """The Big Lock's counts and times in ns, by call site."""
        fields = self._ffi.typeof("struct smp_lock_stats").fields
        return {
            site: {name: int(getattr(self.pointer.locks[number], name)) for name, _ in fields}
            for number, site in enumerate(_SITE_NAMES)
        }

    def registers(self, index: int) -> Registers | None:
        """The vCPU's registers as the engine last stored them; None when it cannot tell."""
        if not self.switcher.is_patched:
            return None
        regs = self._ffi.new("struct smp_regs *")
        if self._lib.smp_read_regs(self.pointer, index, regs) != 0:
            return None
        values = {"rip": int(regs.rip), "rflags": int(regs.rflags)}
        values.update((name, int(regs.gpr[i])) for i, name in enumerate(GPR_NAMES))
        for i, name in enumerate(SEGMENT_NAMES):
            values[name] = int(regs.seg_selector[i])
        for name in ("cr0", "cr2", "cr3", "cr4", "efer", "cpl", "gdt_base", "idt_base", "halted"):
            values[name] = int(getattr(regs, name))
        return Registers(values)

    # Ports and MMIO -----------------------------------------------------------

    def set_port(self, port: int, *, sync: bool, posted: bool, shadow: int | None) -> None:
        """`runtime.devices.bus.PortTable` for the Switcher."""
        lib = self._lib
        attributes = (
            (lib.SMP_PORT_SYNC if sync else 0)
            | (lib.SMP_PORT_POSTED if posted else 0)
            | (lib.SMP_PORT_SHADOW if shadow is not None else 0)
        )
        lib.smp_set_port(self.pointer, port, attributes, shadow or 0)

    def set_mmio_ranges(self, ranges: list[tuple[int, int]]) -> None:
        """Which physical ranges go to the Host's devices; before the workers are forked."""
        if len(ranges) > self._lib.SMP_MMIO_RANGES:
            raise HostError(f"{len(ranges)} MMIO ranges are more than the control block holds")
        for number, (base, size) in enumerate(ranges):
            self.pointer.mmio[number].base = base
            self.pointer.mmio[number].size = size
        self.pointer.mmio_ranges = len(ranges)


def clip(text: str, room: int) -> bytes:
    """`text` as UTF-8 that fits `room` bytes with its zero, one line, whole characters only."""
    line = " ".join(text.split())
    return line.encode("utf-8", "replace")[: room - 1].decode("utf-8", "ignore").encode()
