"""Hypercalls: `int $0x1f` with a number in EAX and arguments in EBX, ECX, EDX, ESI.

Nothing is returned, and there are no errors: a Guest that asks for nonsense is killed
with lguest's sentence.  The async ring in `struct lguest_data` is drained by every
synchronous call, before that call is done.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from switcher.pages import SWITCHER_ADDRESS
from vcpu.lguest import smp
from vcpu.lguest.interrupts import write_timestamp
from vcpu.lguest.memory import ACCESSED, ADDRESSES, DIRTY, ENTRIES, PRESENT, hexadecimal, signed
from vcpu.lguest.segments import GUEST_PL, LINUX_SYSCALL, GuestMistakeError

if TYPE_CHECKING:
    from vcpu.lguest.cpu import LguestCpu

Call = Callable[["LguestCpu", int, int, int, int], None]

INIT = 1
RING = 64
FREE = 0xFF
NOTHING_QUEUED = bytes([FREE]) * RING
CALL = struct.Struct("<5I")
"""lguest's `struct hcall_args`, a number and four arguments: in the ring, and the first words of
the registers (eax, ebx, ecx, edx, esi)."""
MESSAGE = 128
RESTART = 2
POWER_DOWN = "Power down"
STACK_PAGES_MAX = 2
TLS_WORDS = 6
PAGE = 4096


def do_hypercalls(cpu: LguestCpu) -> None:
    """What the Guest asked for when it last came out, if it came out for that; the ring first."""
    if not cpu.hypercall_wanted:
        return
    if cpu.data is None:
        _initialise(cpu)
        cpu.hypercall_wanted = False
        return
    status = cpu.ring_status.tobytes()
    if status != NOTHING_QUEUED:
        _do_ring(cpu, status)
    # A NOTIFY in the ring has to be served first; this call then waits for the next round.
    if cpu.pending_notify is None:
        do_hypercall(cpu, CALL.unpack_from(cpu.words))
        cpu.hypercall_wanted = False


def _do_ring(cpu: LguestCpu, status: bytes) -> None:
    """do_async_hcalls(): `status` is one look at the 64 bytes; what was there then, in order."""
    done = 0
    while done < RING and cpu.pending_notify is None:
        slot = cpu.next_hcall
        if status[slot] == FREE:
            break
        cpu.next_hcall = (slot + 1) % RING
        done += 1
        do_hypercall(cpu, CALL.unpack_from(cpu.ring_calls, CALL.size * slot))
        cpu.ring_status[slot] = FREE
    cpu.count_async(done)


def do_hypercall(cpu: LguestCpu, words: tuple[int, ...]) -> None:
    """One call; a mistake kills the Guest."""
    number, a, b, c, d = words
    call = CALLS.get(number)
    try:
        if call is not None:
            call(cpu, a, b, c, d)
        elif not smp.do_hypercall(cpu, number, (a, b, c, d)):
            cpu.kill_guest(f"Bad hypercall {signed(number)}")
    except GuestMistakeError as mistake:
        cpu.kill_guest(str(mistake))


def _initialise(cpu: LguestCpu) -> None:
    """LHCALL_LGUEST_INIT, the only call that may be the first."""
    regs = cpu.regs
    if regs.eax != INIT:
        cpu.kill_guest(f"hypercall {signed(regs.eax)} before INIT")
        return
    if not cpu.memory.address_ok(regs.ebx, cpu.data_size):
        cpu.kill_guest("bad guest page (null)")  # lguest prints a pointer that it has not set
        return
    data = cpu.attach_data(regs.ebx)
    data.tsc_khz = cpu.tsc_khz
    # One other vector could be the system call's, by a parameter of lguest's module.
    if data.syscall_vec != LINUX_SYSCALL:
        cpu.kill_guest("bad syscall vector")
    cpu.noirq_start, cpu.noirq_end = data.noirq_start, data.noirq_end
    write_timestamp(cpu)
    cpu.kernel_address = data.kernel_address
    data.reserve_mem = ADDRESSES - SWITCHER_ADDRESS
    if cpu.kernel_address >= SWITCHER_ADDRESS:
        cpu.kill_guest(f"bad kernel address {hexadecimal(cpu.kernel_address)}")
    cpu.flush_all()


# The calls, in lguest's order ----------------------------------------------------------


def _nothing(_cpu: LguestCpu, *_arguments: int) -> None:
    """FLUSH_ASYNC and SEND_INTERRUPTS: that the Guest came out is what they are for."""


def _init_again(cpu: LguestCpu, *_arguments: int) -> None:
    cpu.kill_guest("already have lguest_data")


def _shutdown(cpu: LguestCpu, message: int, reason: int, *_rest: int) -> None:
    """128 bytes at `message` say why.

    Linux restarts with an address that is out of bounds (__pa(NULL)), and lguest let a restart
    win over whatever killed the Guest in the same call: so the reason comes first.
    """
    if reason == RESTART:
        cpu.restart()
        return
    text = cpu.memory.read(message, MESSAGE)[: MESSAGE - 1].split(b"\0")[0]
    words = text.decode("utf-8", "replace")
    if words == POWER_DOWN:
        cpu.power_off()  # what lguest's Launcher showed as "CRASH: Power down"
    else:
        cpu.kill_guest(f"CRASH: {words}")


def _new_pgtable(cpu: LguestCpu, pgdir: int, *_rest: int) -> None:
    cpu.new_pgdir(pgdir)


def _flush_tlb(cpu: LguestCpu, everything: int, *_rest: int) -> None:
    cpu.flush_all(pin=bool(everything))


def _set_stack(cpu: LguestCpu, segment: int, pointer: int, pages: int, _rest: int) -> None:
    """LHCALL_SET_STACK: the kernel's stack for traps from ring 3."""
    if segment & 3 != GUEST_PL:
        cpu.kill_guest(f"bad stack segment {signed(segment)}")
    if pages > STACK_PAGES_MAX:
        cpu.kill_guest(f"bad stack pages {pages}")
    if cpu.dead:
        return
    cpu.set_stack(segment, pointer, pages)


def _set_pte(cpu: LguestCpu, pgdir: int, virtual: int, entry: int, _rest: int) -> None:
    """LHCALL_SET_PTE: the Guest has written `entry` for `virtual` in `pgdir`.

    lguest updated its shadow entry at once if the new one was in use already (accessed or
    dirty), and checked it for that; else it forgot the shadow.  Our TLB forgets it always.
    """
    if virtual >= SWITCHER_ADDRESS:
        cpu.kill_guest("attempt to set pte into Switcher pages")
        return
    kernel = virtual >= cpu.kernel_address
    if not kernel and not cpu.knows(pgdir):
        return
    memory = cpu.memory
    if entry & PRESENT and entry & (ACCESSED | DIRTY) and memory.pgdir is not None:
        base = memory.pgdir if kernel else pgdir
        if memory.read_word(memory.directory_slot(virtual, base)) & PRESENT:
            memory.entry_ok(entry)
    cpu.flush_page(virtual)


def _set_pgd(cpu: LguestCpu, pgdir: int, index: int, *_rest: int) -> None:
    """LHCALL_SET_PGD; index 1024 passes, as it did."""
    if index > ENTRIES:
        cpu.kill_guest(f"Attempt to set pgd {index}/{ENTRIES}")
        return
    if cpu.knows(pgdir):
        cpu.flush_all(pin=False)


def _load_idt_entry(cpu: LguestCpu, vector: int, low: int, high: int, _rest: int) -> None:
    cpu.tables.load_idt_entry(vector, low, high)


def _load_gdt_entry(cpu: LguestCpu, slot: int, low: int, high: int, _rest: int) -> None:
    cpu.tables.load_gdt_entry(slot, low, high)


def _load_tls(cpu: LguestCpu, address: int, *_rest: int) -> None:
    """The second argument, a CPU's number, was never looked at."""
    cpu.tables.load_tls(cpu.memory.words(address, TLS_WORDS))


def _ts(cpu: LguestCpu, on: int, *_rest: int) -> None:
    cpu.set_ts(on)


def _set_clockevent(cpu: LguestCpu, delta: int, *_rest: int) -> None:
    """One shot, `delta` ns from now; 0 stops it."""
    cpu.set_clock(delta)


def _halt(cpu: LguestCpu, *_rest: int) -> None:
    cpu.halted = True


def _notify(cpu: LguestCpu, address: int, *_rest: int) -> None:
    """0 means nothing."""
    cpu.pending_notify = address or None


CALLS: dict[int, Call] = {
    0: _nothing,  # FLUSH_ASYNC
    1: _init_again,
    2: _shutdown,
    4: _new_pgtable,
    5: _flush_tlb,
    6: _load_idt_entry,
    7: _set_stack,
    8: _ts,
    9: _set_clockevent,
    10: _halt,
    14: _set_pte,
    15: _set_pgd,
    16: _load_tls,
    17: _notify,
    18: _load_gdt_entry,
    19: _nothing,  # SEND_INTERRUPTS
}
"""3, 11, 12 were never given out; 13 (SET_PMD) is for PAE hosts."""
