"""control.c, biglock.c: layout, death, kick and sleep, pause, in and out of the Guest, the lock."""

from __future__ import annotations

import errno
import itertools
import mmap
import os
import random
import signal
import struct
import time
from collections.abc import Callable
from typing import Any

import pytest

from switcher import binding
from tests.helpers.block import Block, Processes, until

ffi = binding.ffi
SECOND = 1_000_000_000
Make = Callable[..., Block]


class Counter:
    """A shared number that only plain, lossy reads and writes touch."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 4096)

    def get(self, at: int = 0) -> int:
        return struct.unpack_from("Q", self.memory, at * 8)[0]

    def set(self, value: int, at: int = 0) -> None:
        struct.pack_into("Q", self.memory, at * 8, value)


# ---- layout ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vcpus", "ram", "state"),
    [(0, 4096, 0), (17, 4096, 0), (1, 0, 0), (1, 4097, 0), (1, 1 << 41, 0), (1, 4096, 1 << 25),
     (1, 2**64 - 4096, 0), (2**32 - 1, 4096, 0)],
)  # fmt: skip
def test_impossible_machines_have_no_layout(lib: Any, vcpus: int, ram: int, state: int) -> None:
    assert lib.smp_control_size(vcpus, ram, state) == 0
    buffer = ffi.new("char[65536]")
    control = ffi.cast("struct smp_control *", buffer)
    assert lib.smp_control_init(control, 65536, vcpus, ram, state, 1) == -errno.EINVAL


@pytest.mark.parametrize("vcpus", [1, 2, 16])
def test_parts_do_not_overlap(block: Make, vcpus: int) -> None:
    b = block(vcpus, ram=64 << 20, cpu_state=12345)
    c, pages = b.c, (64 << 20) // 4096
    parts = [
        (0, ffi.sizeof("struct smp_control")),
        (c.vcpu_offset, vcpus * c.vcpu_stride),
        (c.cpu_offset, vcpus * c.cpu_stride),
        (c.port_offset, 65536),
        (c.shadow_offset, 65536),
        (c.posted_offset, binding.SMP_POSTED * ffi.sizeof("struct smp_posted")),
        (c.page_offset, pages * 8),
        (c.granule_offset, pages * 8),
        (c.size, 0),
    ]
    for (start, length), (following, _) in itertools.pairwise(parts):
        assert start % 4096 == 0
        assert start + length <= following
    assert c.vcpu_stride >= ffi.sizeof("struct smp_vcpu")
    assert c.vcpu_stride % 4096 == 0
    assert c.cpu_stride >= 12345
    assert c.size <= b.size


def test_a_block_too_small_is_refused(lib: Any) -> None:
    size = lib.smp_control_size(2, 1 << 20, 4096)
    memory = mmap.mmap(-1, size)
    control = ffi.cast("struct smp_control *", ffi.from_buffer(memory))
    assert lib.smp_control_init(control, size - 1, 2, 1 << 20, 4096, 1) == -errno.EINVAL
    assert lib.smp_control_init(control, size, 2, 1 << 20, 4096, 0) == -errno.EINVAL
    assert lib.smp_control_init(control, size, 2, 1 << 20, 4096, 1) == 0
    assert control.magic == binding.SMP_MAGIC
    assert [lib.smp_vcpu(control, i).pause for i in (0, 1)] == [1, 1]
    assert control.dead_vcpu == binding.SMP_MAX_VCPUS


def test_time_goes_forward(block: Make) -> None:
    b = block()
    tsc, now = b.guest_tsc(), b.lib.smp_now_ns()
    assert tsc < 1 << 40
    assert b.guest_tsc() > tsc
    assert abs(now - time.monotonic_ns()) < SECOND


# ---- death ----------------------------------------------------------------------------------


def test_first_writer_wins(block: Make, processes: Processes) -> None:
    for _ in range(20):
        b, start, won = block(4), Counter(), Counter()

        def killer(index: int, b: Block = b, start: Counter = start, won: Counter = won) -> None:
            while not start.get():
                pass
            text = b"killer %d" % index
            won.set(b.kill_guest(binding.SMP_DEAD_KILLED, index, 100 + index, text), index)

        for index in range(4):
            processes.fork(lambda index=index: killer(index))
        start.set(1)
        assert processes.join() == [0] * 4
        winners = [index for index in range(4) if won.get(index)]
        assert len(winners) == 1
        assert b.c.dead_vcpu == winners[0]
        assert b.c.dead_code == 100 + winners[0]
        assert ffi.string(b.c.dead_text) == b"killer %d" % winners[0]
        assert b.c.dead_ready == 1


def test_death_needs_a_reason_and_cuts_its_text(block: Make) -> None:
    b = block()
    assert b.kill_guest(binding.SMP_ALIVE, 0, 0, ffi.NULL) == 0
    assert b.c.dead == 0
    assert b.kill_guest(binding.SMP_DEAD_KILLED, 0, 0, b"x" * 1000) == 1
    assert ffi.string(b.c.dead_text) == b"x" * (binding.SMP_TEXT - 1)


def waits(b: Block) -> dict[str, Callable[[], object]]:
    """Every way in which a vCPU process can wait."""
    data = ffi.new("uint64_t *")

    def fill() -> None:
        for _ in range(binding.SMP_POSTED + 1):
            b.post(0, binding.SMP_POST_PIO_WRITE, 0x3F8, 1, 0)

    def paused() -> None:
        b.v(0).pause = 1
        b.pause_wait(0)

    def parked() -> None:
        b.c.exclusive = 2
        assert b.enter_guest(0) == -1

    def stopper() -> None:
        b.v(1).in_guest = 1
        b.enter_guest(0)
        assert b.exclusive_begin(0) == -1

    return {
        "sleep": lambda: b.sleep(0, -1),
        "pause": paused,
        "mailbox": lambda: b.ask_host(0, binding.SMP_REQ_PIO_READ, 0x80, 1, data),
        "full ring": fill,
        "parked": parked,
        "stopper": stopper,
        "state": lambda: b.wait_state(1, b.v(1).state, -1),
    }


@pytest.mark.parametrize(
    "kind", ["sleep", "pause", "mailbox", "full ring", "parked", "stopper", "state"]
)
def test_death_ends_every_wait(block: Make, processes: Processes, kind: str) -> None:
    b = block()
    processes.fork(waits(b)[kind])
    time.sleep(0.1)
    ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    assert ended is None, "it did not wait"
    b.kill_guest(binding.SMP_DEAD_POWEROFF, 0, 0, b"")
    assert processes.join() == [0]
    assert b.wait_host(0), "the Host was not told"


@pytest.mark.parametrize(
    "kind", ["sleep", "pause", "mailbox", "full ring", "parked", "stopper", "state"]
)
def test_no_wait_begins_in_a_dead_guest(block: Make, processes: Processes, kind: str) -> None:
    b = block()
    b.kill_guest(binding.SMP_DEAD_POWEROFF, 0, 0, b"")
    processes.fork(waits(b)[kind])
    assert processes.join() == [0]


def test_a_killer_killed_halfway_stops_nobody_from_ending(
    block: Make, processes: Processes
) -> None:
    b = block()
    for wait in ("sleep", "mailbox", "parked"):
        processes.fork(waits(b)[wait])
    time.sleep(0.05)
    b.c.dead = binding.SMP_DEAD_KILLED  # as smp_kill_guest, up to its first instruction
    assert processes.join() == [0, 0, 0]


def test_the_host_is_told_of_death_even_if_it_was_signalled(block: Make) -> None:
    b = block()
    b.c.posted_signalled = 1  # by a worker that was killed before it rang
    b.kill_guest(binding.SMP_DEAD_WORKER, 0, 0, b"")
    assert b.wait_host(0)


# ---- kick and sleep -------------------------------------------------------------------------


def test_kick_stores_into_the_target_cpu_state_only(block: Make) -> None:
    b = block(2)
    b.v(1).kick_offset = 100
    b.kick(0)
    b.kick(1)
    for index, expected in ((0, b"\0\0"), (1, b"\xff\xff")):
        at = b.c.cpu_offset + index * b.c.cpu_stride
        assert b.memory[at + 100 : at + 102] == expected
        assert b.memory[at : at + 100] == bytes(100)
        assert b.memory[at + 102 : at + 4096] == bytes(4096 - 102)


def test_every_kick_changes_the_word_that_sleepers_compare(block: Make) -> None:
    """It is what sends a sleeper back that was kicked between its last look and its sleep; the
    window is too narrow for the ping-pong below to hit it for sure."""
    b = block()
    before = b.v(0).wake, b.v(1).wake
    for _ in range(3):
        b.kick(1)
    b.event(1, binding.SMP_EVENT_STOP)
    assert (b.v(0).wake, b.v(1).wake) == (before[0], before[1] + 4)


def sleep_awhile(b: Block, index: int) -> None:
    """Sleep for what must come.  On a lost wake-up it is found pending, but only in the end."""
    begun = time.monotonic()
    assert b.sleep(index, 25 * SECOND) == 1
    assert time.monotonic() - begun < 25, "a wake-up was lost"


def test_no_wake_up_is_lost(block: Make, processes: Processes, patient_lib: Any) -> None:
    """Ping-pong: each side sleeps until the other has sent.  A lost one is a minute's sleep."""
    b, rounds = block(2, lib=patient_lib), 20_000

    def player(index: int) -> None:
        noise = random.Random(index)
        for _ in range(rounds):
            if index == 0:
                b.event(1, binding.SMP_EVENT_STOP)
            sleep_awhile(b, index)
            assert b.v(index).events == binding.SMP_EVENT_STOP
            b.v(index).events = 0
            for _ in range(noise.randrange(20)):  # shift the two against each other
                pass
            if index == 1:
                b.event(0, binding.SMP_EVENT_STOP)

    for index in range(2):
        processes.fork(lambda index=index: player(index))
    assert processes.join(60) == [0, 0]


def test_interrupts_wake_a_sleeper(block: Make, processes: Processes, patient_lib: Any) -> None:
    b, rounds = block(2, lib=patient_lib), 5_000
    for index in range(2):
        b.lapic_write(index, 0xF0, 0x1FF)
        b.l(index).wait_sipi = 0

    def player(index: int) -> None:
        for _ in range(rounds):
            if index == 0:
                b.deliver(1, 0, binding.SMP_DELIVER_FIXED, 0x40, 0)
            sleep_awhile(b, index)
            assert b.lapic_ack(index) == 0x40
            b.lapic_write(index, 0xB0, 0)
            if index == 1:
                b.deliver(0, 0, binding.SMP_DELIVER_FIXED, 0x40, 0)

    for index in range(2):
        processes.fork(lambda index=index: player(index))
    assert processes.join(60) == [0, 0]


def test_what_ends_a_sleep(block: Make) -> None:
    b = block()
    brief = 2_000_000
    b.lapic_write(0, 0xF0, 0x1FF)
    assert b.sleep(0, brief) == 0
    for event in (1, 2, 4, 8, 16, 32):
        b.v(0).events = event
        assert b.sleep(0, brief) == 1
    b.v(0).events = 0
    b.deliver(0, 0, binding.SMP_DELIVER_FIXED, 0x40, 0)
    assert b.sleep(0, brief) == 1
    b.v(0).masked = 1  # cli; hlt
    assert b.sleep(0, brief) == 0
    b.v(0).masked = 0
    b.lapic_set_tpr(0, 0x40)
    assert b.sleep(0, brief) == 0
    b.lapic_set_tpr(0, 0)
    b.l(0).wait_sipi = 1
    assert b.sleep(0, brief) == 0
    b.v(0).events = binding.SMP_EVENT_NMI
    assert b.sleep(0, brief) == 0, "an NMI waits for the SIPI"
    b.v(0).events = binding.SMP_EVENT_SIPI
    assert b.sleep(0, brief) == 1
    b.v(0).events = 0
    b.v(0).pause = 1
    assert b.sleep(0, brief) == 1
    assert b.v(0).sleeping == 0


def test_sleep_takes_its_time(block: Make) -> None:
    b = block()
    for timeout in (0, 1_000_000, 120_000_000):
        begun = time.monotonic_ns()
        assert b.sleep(0, timeout) == 0
        assert time.monotonic_ns() - begun >= timeout


def test_a_signal_ends_a_sleep(block: Make) -> None:
    b = block()
    old = signal.signal(signal.SIGALRM, lambda *_: None)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        begun = time.monotonic()
        assert b.sleep(0, 100 * SECOND) == 1
        assert time.monotonic() - begun < 50
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


# ---- state and pause ------------------------------------------------------------------------


def test_pause_and_resume(block: Make, processes: Processes, patient_lib: Any) -> None:
    b = block(lib=patient_lib)
    b.set_state(0, binding.SMP_RUNNING)

    def worker() -> None:
        while True:
            sleep_awhile(b, 0)
            events, b.v(0).events = b.v(0).events, 0
            if events & binding.SMP_EVENT_NMI:
                return
            if b.v(0).pause:
                b.pause_wait(0)

    processes.fork(worker)
    for _ in range(500):
        b.pause(0, 1)
        assert b.wait_state(0, binding.SMP_RUNNING, 50 * SECOND) == 1
        assert b.v(0).state == binding.SMP_PAUSED
        b.pause(0, 0)
        assert b.wait_state(0, binding.SMP_PAUSED, 50 * SECOND) == 1
    b.event(0, binding.SMP_EVENT_NMI)
    assert processes.join() == [0]


def test_wait_state_times_out_and_works_on_the_dead(block: Make, processes: Processes) -> None:
    b = block()
    begun = time.monotonic()
    assert b.wait_state(0, binding.SMP_PAUSED, SECOND // 10) == 0
    assert time.monotonic() - begun >= 0.1
    b.kill_guest(binding.SMP_DEAD_POWEROFF, 0, 0, b"")

    def stops_late() -> None:
        time.sleep(0.1)
        b.set_state(0, binding.SMP_STOPPED)

    processes.fork(stops_late)
    assert b.wait_state(0, binding.SMP_PAUSED, 5 * SECOND) == 1
    assert b.wait_state(0, binding.SMP_STOPPED, -1) == 0, "for ever, of a dead Guest"
    assert processes.join() == [0]


# ---- in the Guest, or out of it -------------------------------------------------------------


def test_exclusive_means_alone(block: Make, processes: Processes, patient_lib: Any) -> None:
    b, rounds = block(3, lib=patient_lib), 1500
    inside, left = Counter(), Counter()

    def vcpu(index: int) -> None:
        b.enter_guest(index)
        for turn in range(rounds):
            if turn % 3 == index:
                inside.set(0, index)
                assert b.exclusive_begin(index) == 0
                for _ in range(3):
                    assert [inside.get(i) for i in range(3)] == [0, 0, 0]
                b.exclusive_end(index)
            inside.set(1, index)
            inside.set(0, index)
            if b.c.exclusive not in (0, index + 1):
                b.leave_guest(index)
                assert b.enter_guest(index) == 0
        b.leave_guest(index)
        left.set(1, index)

    for index in range(3):
        processes.fork(lambda index=index: vcpu(index))
    assert processes.join(60) == [0, 0, 0]
    assert b.c.exclusive == 0
    assert sum(b.v(index).counters.exclusive for index in range(3)) == rounds


def test_a_stopper_killed_in_the_middle_holds_up_nobody_for_good(
    block: Make, processes: Processes
) -> None:
    b = block(2)

    def stopper() -> None:
        b.enter_guest(1)
        b.exclusive_begin(1)
        time.sleep(60)

    pid = processes.fork(stopper)
    until(lambda: b.c.exclusive == 2)
    processes.kill(pid)
    processes.fork(lambda: b.enter_guest(0))
    time.sleep(0.05)
    b.kill_guest(binding.SMP_DEAD_WORKER, 1, 0, b"")  # as the Host does on noticing
    assert processes.join() == [0]


# ---- the Big Lock ---------------------------------------------------------------------------


def test_the_lock_excludes(block: Make, processes: Processes) -> None:
    b, counter, rounds = block(), Counter(), 3000

    def work() -> None:
        for _ in range(rounds):
            assert b.lock(binding.SMP_SITE_BUS) == 0
            counter.set(counter.get() + 1)
            assert b.unlock() == 0

    for _ in range(4):
        processes.fork(work)
    assert processes.join(60) == [0] * 4
    assert counter.get() == 4 * rounds
    stats = b.c.locks[binding.SMP_SITE_BUS]
    assert stats.count == 4 * rounds
    assert stats.recovered == 0
    assert stats.hold_ns >= stats.max_hold_ns > 0
    assert b.c.mutex_owner == 0


def test_the_lock_survives_its_holder(block: Make, processes: Processes) -> None:
    b = block()

    def holder() -> None:
        b.lock(binding.SMP_SITE_IRQ)
        time.sleep(60)

    pid = processes.fork(holder)
    until(lambda: b.c.mutex_owner == pid)
    processes.kill(pid)
    assert b.lock(binding.SMP_SITE_OTHER) == 1
    assert b.unlock() == 0
    assert b.lock(binding.SMP_SITE_OTHER) == 0
    assert b.unlock() == 0
    assert b.c.locks[binding.SMP_SITE_OTHER].recovered == 1


def test_who_waits_for_a_killed_holder_goes_on(block: Make, processes: Processes) -> None:
    b = block()

    def holder() -> None:
        b.lock(binding.SMP_SITE_IRQ)
        time.sleep(60)

    ready = Counter()

    def waiter() -> None:
        ready.set(1)
        assert b.lock(binding.SMP_SITE_BUS) == 1
        assert b.unlock() == 0

    pid = processes.fork(holder)
    until(lambda: b.c.mutex_owner == pid)
    processes.fork(waiter)
    until(ready.get)
    time.sleep(0.2)
    processes.kill(pid)
    assert processes.join() == [0]
    assert b.c.locks[binding.SMP_SITE_BUS].contended == 1


def test_kills_at_random_instants_never_wedge_the_lock(block: Make, processes: Processes) -> None:
    b, noise = block(), random.Random(1)

    def work() -> None:
        while True:
            b.lock(binding.SMP_SITE_BUS)
            b.unlock()

    for _ in range(60):
        pids = [processes.fork(work) for _ in range(2)]
        time.sleep(noise.random() * 0.01)
        for pid in pids:
            processes.kill(pid)
        assert b.lock(binding.SMP_SITE_OTHER) in (0, 1)
        assert b.unlock() == 0


def test_wrong_use_of_the_lock_is_an_error_not_a_hang(block: Make, processes: Processes) -> None:
    b = block()
    assert b.unlock() == -errno.EPERM
    assert b.lock(99) == 0
    assert b.lock(0) == -errno.EDEADLK

    def stranger() -> None:
        assert b.unlock() == -errno.EPERM

    processes.fork(stranger)
    assert processes.join() == [0]
    assert b.unlock() == 0
    assert b.c.locks[binding.SMP_SITE_OTHER].count == 1
