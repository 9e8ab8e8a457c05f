"""bus.c: ports, memory-mapped devices, eventfd bindings."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from switcher import binding
from tests.helpers.block import Block, Processes, until

Make = Callable[..., Block]
SYNC, POSTED, SHADOW = binding.SMP_PORT_SYNC, binding.SMP_PORT_POSTED, binding.SMP_PORT_SHADOW


@contextmanager
def host(b: Block, answer: int) -> Iterator[list[tuple[int, int, int, int]]]:
    """A Host that gives every request the same answer and notes (kind, address, size, data)."""
    asked: list[tuple[int, int, int, int]] = []
    stop = threading.Event()

    def loop() -> None:
        while not stop.is_set():
            b.wait_host(0.01)
            if b.asked(0):
                request = b.v(0).request
                asked.append((request.kind, request.address, request.size, request.data))
                b.answer(0, answer)

    thread = threading.Thread(target=loop)
    thread.start()
    yield asked
    stop.set()
    thread.join()


def test_nobody_is_there(block: Make) -> None:
    b = block()
    for size, ones in ((1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF)):
        assert b.pio_read(0, 0x1234, size) == ones
        assert b.pio_read(0, 0xFFFF, size) == ones
        b.pio_write(0, 0xFFFF, size, 0)
    assert b.mmio_read(0, 0xD0000000, 8) == 2**64 - 1
    b.mmio_write(0, 0xD0000000, 8, 0)
    counters = b.v(0).counters
    assert (counters.pio_native, counters.mmio_none) == (9, 2)
    assert not b.wait_host(0)


def test_shadow_answers_reads(block: Make) -> None:
    b = block()
    b.set_port(0x3FD, SHADOW | SYNC, 0x60)
    b.set_port(0x3FE, SHADOW, 0xB0)
    assert b.pio_read(0, 0x3FD, 1) == 0x60
    assert b.pio_read(0, 0x3FD, 2) == 0xB060
    assert b.pio_read(0, 0x3FD, 4) == 0xFFFFB060
    b.set_port(0x3FD, SHADOW, 0x61)
    assert b.pio_read(0, 0x3FD, 1) == 0x61
    b.set_port(0x10000, SHADOW, 0)  # no such port


def test_posted_writes_and_sync_reads(block: Make) -> None:
    b = block()
    b.set_port(0x3F8, POSTED | SYNC, 0)
    b.pio_write(0, 0x3F8, 1, 0x141)
    assert b.take() == (binding.SMP_POST_PIO_WRITE, 0, 0x3F8, 0x41)
    with host(b, 0xABCD) as asked:
        assert b.pio_read(0, 0x3F8, 1) == 0xCD
    assert asked == [(binding.SMP_REQ_PIO_READ, 0x3F8, 1, 0)]
    counters = b.v(0).counters
    assert (counters.pio_posted, counters.pio_sync, counters.pio_native) == (1, 1, 0)


def test_a_shadowed_port_without_sync_drops_writes(block: Make) -> None:
    b = block()
    b.set_port(0x61, SHADOW, 1)
    b.pio_write(0, 0x61, 1, 5)
    assert b.take() is None
    assert not b.asked(0)


def test_mixed_accesses_go_to_the_host_whole(block: Make) -> None:
    b = block()
    b.set_port(0x70, SHADOW, 1)
    b.set_port(0x71, SYNC, 0)
    with host(b, 0x12345678) as asked:
        assert b.pio_read(0, 0x70, 2) == 0x5678
        b.pio_write(0, 0x70, 2, 0xFFFF1234)
    assert asked == [
        (binding.SMP_REQ_PIO_READ, 0x70, 2, 0),
        (binding.SMP_REQ_PIO_WRITE, 0x70, 2, 0x1234),
    ]


def test_a_memory_mapped_device(block: Make) -> None:
    b = block()
    b.c.mmio[0].base, b.c.mmio[0].size = 0xFEC00000, 0x20
    b.c.mmio[1].base, b.c.mmio[1].size = 2**64 - 16, 16
    b.c.mmio_ranges = 2
    with host(b, 7) as asked:
        assert b.mmio_read(0, 0xFEC00010, 4) == 7
        b.mmio_write(0, 0xFEC0001C, 4, 9)
        assert b.mmio_read(0, 2**64 - 8, 8) == 7
        for address, size in ((0xFEC0001D, 4), (0xFEBFFFFF, 1), (0xFEC00020, 1), (2**64 - 4, 8)):
            assert b.mmio_read(0, address, size) == 2 ** (8 * size) - 1
    assert asked == [
        (binding.SMP_REQ_MMIO_READ, 0xFEC00010, 4, 0),
        (binding.SMP_REQ_MMIO_WRITE, 0xFEC0001C, 4, 9),
        (binding.SMP_REQ_MMIO_READ, 2**64 - 8, 8, 0),
    ]
    assert b.v(0).counters.mmio_host == 3
    assert b.v(0).counters.mmio_none == 4


# ---- bindings -------------------------------------------------------------------------------


@pytest.fixture
def eventfd() -> Iterator[int]:
    fd = os.eventfd(0)
    yield fd
    os.close(fd)


def test_a_bound_write_goes_to_its_eventfd(block: Make, eventfd: int) -> None:
    b = block()
    assert b.bind(binding.SMP_REQ_PIO_WRITE, 0xC050, eventfd) == 0
    b.set_port(0xC050, SYNC, 0)
    b.pio_write(0, 0xC050, 2, 1)
    b.pio_write(0, 0xC050, 2, 1)
    assert os.eventfd_read(eventfd) == 2
    assert not b.asked(0)
    assert b.v(0).counters.notify_eventfd == 2
    assert b.c.bindings[0].count == 2
    assert b.c.mutex_owner == 0


def test_bindings_know_kind_and_address(block: Make, eventfd: int) -> None:
    b = block()
    assert b.bind(0, 0x1000, eventfd) == 0
    assert b.notify(0, 0x1000) == 1
    assert b.notify(0, 0x1001) == 0
    assert b.notify(binding.SMP_REQ_MMIO_WRITE, 0x1000) == 0
    assert b.bind(0, 0x1000, eventfd) == -errno.EEXIST
    b.unbind(0, 0x2000)
    b.unbind(0, 0x1000)
    assert b.notify(0, 0x1000) == 0
    assert os.eventfd_read(eventfd) == 1


def test_slots_are_reused_and_run_out(block: Make, eventfd: int) -> None:
    b = block()
    for _ in range(2):
        for address in range(binding.SMP_BINDINGS):
            assert b.bind(0, address, eventfd) == 0
        assert b.bind(0, 999, eventfd) == -errno.ENOSPC
        for address in range(binding.SMP_BINDINGS):
            b.unbind(0, address)
    assert b.bind(0, 1, 1_000_000) == -errno.EBADF
    assert b.bind(0, 1, -1) == -errno.EBADF


def test_a_full_eventfd_does_not_block(block: Make, eventfd: int) -> None:
    b = block()
    assert b.bind(0, 1, eventfd) == 0
    os.eventfd_write(eventfd, 2**64 - 2)
    assert b.notify(0, 1) == 1


def test_a_notify_that_waited_for_the_lock_looks_again(
    block: Make, processes: Processes, eventfd: int
) -> None:
    b = block()
    assert b.bind(0, 1, eventfd) == 0
    b.lock(binding.SMP_SITE_OTHER)

    def notifier() -> None:
        b.v(0).start_eax = 1
        assert b.notify(0, 1) == 0

    processes.fork(notifier)
    until(lambda: b.v(0).start_eax)
    time.sleep(0.2)
    b.c.bindings[0].used = 0  # what smp_unbind does under the lock
    b.unlock()
    assert processes.join() == [0]
    os.set_blocking(eventfd, False)
    with pytest.raises(BlockingIOError):
        os.eventfd_read(eventfd)


def test_after_unbind_nobody_writes(block: Make, processes: Processes, eventfd: int) -> None:
    b = block()

    def notifier() -> None:
        while not b.c.dead:
            b.notify(0, 1)

    for _ in range(2):
        processes.fork(notifier)
    for _ in range(200):
        assert b.bind(0, 1, eventfd) == 0
        until(lambda: b.c.bindings[0].count)
        b.unbind(0, 1)
        os.eventfd_read(eventfd)
        os.set_blocking(eventfd, False)
        with pytest.raises(BlockingIOError):
            os.eventfd_read(eventfd)
    b.kill_guest(binding.SMP_DEAD_STOPPED, 0, 0, b"")
    assert processes.join() == [0, 0]
