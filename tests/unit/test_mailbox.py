"""mailbox.c: requests to the Host, the posted ring; with real processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from switcher import binding
from tests.helpers.block import Block, Processes, until

ffi = binding.ffi
Make = Callable[..., Block]


def serve(b: Block, vcpus: int, answers: int, seen: list[Any] | None = None) -> None:
    """A Host: until so many requests are answered with ~address, the ring drained before each."""
    while answers:
        assert b.wait_host(20), "the Host was not told"
        while entry := b.take():
            if seen is not None:
                seen.append(entry)
        for index in range(vcpus):
            if b.asked(index):
                request = b.v(index).request
                if seen is not None:
                    while entry := b.take():
                        seen.append(entry)
                    seen.append(("asked", index, request.address))
                b.answer(index, ~request.address & 0xFFFFFFFF)
                answers -= 1


def test_every_question_gets_its_answer(
    block: Make, processes: Processes, patient_lib: Any
) -> None:
    b, rounds = block(3, lib=patient_lib), 3000

    def worker(index: int) -> None:
        data = ffi.new("uint64_t *")
        b.enter_guest(index)
        for turn in range(rounds):
            data[0] = turn
            address = index << 16 | turn
            assert b.ask_host(index, binding.SMP_REQ_MMIO_READ, address, 4, data) == 0
            assert data[0] == ~address & 0xFFFFFFFF
        assert b.v(index).in_guest == 1
        assert b.v(index).state == binding.SMP_RUNNING

    for index in range(3):
        processes.fork(lambda index=index: worker(index))
    serve(b, 3, 3 * rounds)
    assert processes.join() == [0] * 3
    assert all(b.v(index).request.mail == binding.SMP_MAIL_IDLE for index in range(3))


def test_who_asks_is_out_of_the_guest(block: Make, processes: Processes) -> None:
    b = block()

    def worker() -> None:
        b.enter_guest(0)
        assert b.ask_host(0, binding.SMP_REQ_PIO_READ, 0x60, 2, ffi.new("uint64_t *")) == 0

    processes.fork(worker)
    until(lambda: b.asked(0))
    request = b.v(0).request
    assert (request.kind, request.address, request.size) == (binding.SMP_REQ_PIO_READ, 0x60, 2)
    assert b.v(0).in_guest == 0
    assert b.v(0).state == binding.SMP_IN_HOST
    b.answer(0, 5)
    assert processes.join() == [0]


def test_the_dead_get_all_ones(block: Make) -> None:
    b = block()
    b.kill_guest(binding.SMP_DEAD_POWEROFF, 0, 0, b"")
    data = ffi.new("uint64_t *")
    for size, expected in ((1, 0xFF), (2, 0xFFFF), (4, 0xFFFFFFFF), (8, 2**64 - 1)):
        assert b.ask_host(0, binding.SMP_REQ_PIO_READ, 0, size, data) == -1
        assert data[0] == expected


def test_an_answer_nobody_asked_for_is_dropped(block: Make) -> None:
    b = block()
    b.answer(0, 1)
    assert b.v(0).request.mail == binding.SMP_MAIL_IDLE


# ---- posted writes ---------------------------------------------------------------------------


def test_four_producers_lose_nothing_and_keep_their_order(
    block: Make, processes: Processes, patient_lib: Any
) -> None:
    b, each = block(4, lib=patient_lib), 10_000

    def producer(index: int) -> None:
        b.enter_guest(index)
        for turn in range(each):
            b.post(index, binding.SMP_POST_PIO_WRITE, 0x3F8, 1, turn)

    for index in range(4):
        processes.fork(lambda index=index: producer(index))
    until(lambda: b.c.posted_tail > binding.SMP_POSTED)  # the ring is full: they wait
    following = [0] * 4
    while sum(following) < 4 * each:
        entry = b.take()
        if entry is None:
            assert b.wait_host(20), "the Host was not told"
            continue
        kind, vcpu, address, data = entry
        assert (kind, address) == (binding.SMP_POST_PIO_WRITE, 0x3F8)
        assert data == following[vcpu]
        following[vcpu] += 1
    assert processes.join() == [0] * 4
    assert b.take() is None


def test_what_happens_before_is_taken_before(block: Make, processes: Processes) -> None:
    """Two vCPUs take turns, ordered by the Guest's own means: so must their bytes be."""
    b, rounds = block(2), 3000

    def player(index: int) -> None:
        for turn in range(rounds):
            while b.v(0).start_eax != 2 * turn + index:
                os.sched_yield()
            b.post(index, binding.SMP_POST_PIO_WRITE, 0x3F8, 1, 2 * turn + index)
            b.v(0).start_eax = 2 * turn + index + 1

    for index in range(2):
        processes.fork(lambda index=index: player(index))
    expected = 0
    while expected < 2 * rounds:
        entry = b.take()
        if entry is None:
            assert b.wait_host(20)
            continue
        assert entry[3] == expected
        expected += 1
    assert processes.join() == [0, 0]


def test_posts_come_before_the_question_that_follows_them(
    block: Make, processes: Processes
) -> None:
    b, rounds = block(1), 500

    def worker() -> None:
        data = ffi.new("uint64_t *")
        for turn in range(rounds):
            b.post(0, binding.SMP_POST_PIO_WRITE, 0x3F8, 1, turn)
            b.ask_host(0, binding.SMP_REQ_PIO_READ, turn, 1, data)

    processes.fork(worker)
    seen: list[Any] = []
    serve(b, 1, rounds, seen)
    assert processes.join() == [0]
    posts = [(binding.SMP_POST_PIO_WRITE, 0, 0x3F8, turn) for turn in range(rounds)]
    asked = [("asked", 0, turn) for turn in range(rounds)]
    assert seen == [item for pair in zip(posts, asked, strict=True) for item in pair]


def test_a_hole_stops_the_host_only_until_the_guest_is_dead(block: Make) -> None:
    b = block()
    b.post(0, binding.SMP_POST_PIO_WRITE, 1, 1, 1)
    b.c.posted_tail += 1  # a producer took a ticket and was killed
    b.post(0, binding.SMP_POST_PIO_WRITE, 1, 1, 2)
    assert b.take()[3] == 1
    assert b.take() is None
    b.kill_guest(binding.SMP_DEAD_WORKER, 1, 0, b"")
    assert b.take()[3] == 2
    assert b.take() is None


def test_a_full_ring_waits_outside_the_guest(block: Make, processes: Processes) -> None:
    b = block()

    def producer() -> None:
        b.enter_guest(0)
        for turn in range(binding.SMP_POSTED + 1):
            b.post(0, binding.SMP_POST_PIO_WRITE, 1, 1, turn)
        assert b.v(0).in_guest == 1

    processes.fork(producer)
    until(lambda: b.c.posted_tail == binding.SMP_POSTED + 1 and not b.v(0).in_guest)
    assert b.take()[3] == 0
    assert processes.join() == [0]


def test_tickets_survive_the_wrap(block: Make) -> None:
    b = block()
    b.c.posted_tail = b.c.posted_head = 2**32 - 3
    for turn in range(8):
        b.post(0, binding.SMP_POST_EOI, turn, 4, 0)
    assert [b.take()[2] for _ in range(8)] == list(range(8))
    assert b.take() is None


def test_the_host_is_rung_once_between_two_looks(block: Make) -> None:
    b = block()
    for turn in range(100):
        b.post(0, binding.SMP_POST_PIO_WRITE, 1, 1, turn)
    assert b.c.posted_signalled == 1
    assert b.wait_host(0)
    assert not b.wait_host(0)
    b.post(0, binding.SMP_POST_PIO_WRITE, 1, 1, 0)
    assert b.wait_host(0)


def test_a_thread_of_the_host_may_be_the_consumer(block: Make, processes: Processes) -> None:
    """cffi lets go of the interpreter's lock: a waiting worker's process can serve itself."""
    b = block(1)
    host = threading.Thread(target=serve, args=(b, 1, 1))
    host.start()
    data = ffi.new("uint64_t *")
    assert b.ask_host(0, binding.SMP_REQ_PIO_READ, 7, 4, data) == 0
    host.join(10)
    assert data[0] == ~7 & 0xFFFFFFFF
