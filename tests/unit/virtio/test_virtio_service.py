"""The thread of a queue: wake-ups, interrupts, stopping, failing; with real processes too."""

from __future__ import annotations

import os
import select
import threading
import time
from typing import Any

import pytest

from runtime import memory
from runtime.errors import HostError
from runtime.memory import DmaRam, GuestRam, SharedBlock
from runtime.virtio import service as service_module
from runtime.virtio.rng import RngDevice
from runtime.virtio.service import QueueService
from runtime.virtio.vring import Vring, VringError, legacy_layout
from switcher import binding
from tests.helpers.block import Block, Processes
from tests.helpers.leaks import no_leaks
from tests.helpers.virtio import Bench, Driver, plugged

NUM = 16


class Echo:
    """A device that writes back what it reads, in capitals."""

    kind, name, features, config = 99, "echo", 0, b""

    def __init__(self) -> None:
        self.services = (self.serve,)
        self.gate = threading.Event()
        self.gate.set()

    def start(self, features: int, queues: Any) -> None:
        pass

    def reset(self) -> None:
        pass

    def close(self) -> None:
        pass

    def serve(self, queue: QueueService) -> None:
        chain = queue.wait_for_chain()
        self.gate.wait(30)
        if chain.unread > 1 << 12:
            raise VringError("too loud")
        data = chain.read(chain.unread)
        if data == b"bug":
            raise ZeroDivisionError("a mistake of ours")
        chain.write(data.upper())
        queue.used(chain)


def service_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("virtio-")]


def test_requests_and_nothing_left_behind() -> None:
    with no_leaks():
        with plugged(Echo(), num=NUM) as bench:
            assert bench.ask([b"some", b"thing"], [4, 8]) == (b"SOMETHING\0\0\0", 9)
            assert len(service_threads()) == 1
        assert service_threads() == []


def test_one_interrupt_for_all_that_came_together() -> None:
    echo = Echo()
    with plugged(echo, num=NUM) as bench:
        echo.gate.clear()
        for _ in range(NUM // 2):
            bench.drivers[0].add([b"x"], [1])
        bench.kick()
        echo.gate.set()
        for _ in range(NUM // 2):
            bench.wait()
        bench.until(lambda: bench.drivers[0].wants_kick())  # it sleeps
        assert bench.interrupt_counts == [1]


def test_interrupts_that_nobody_wants_are_not_sent() -> None:
    with plugged(Echo(), num=NUM) as bench:
        bench.drivers[0].set_no_interrupt(True)
        bench.drivers[0].add([b"x"], [1])
        bench.kick()
        bench.until(lambda: bench.drivers[0].take())
        bench.until(lambda: bench.drivers[0].wants_kick())
        assert bench.interrupt_counts == [0]
        # Nothing was used since: a kick for nothing interrupts nobody either.
        bench.drivers[0].set_no_interrupt(False)
        bench.services[0].kick()
        assert bench.ask([b"y"], [1]) == (b"Y", 1)
        assert bench.interrupt_counts == [1]


def test_while_busy_it_wants_no_kicks() -> None:
    echo = Echo()
    with plugged(echo, num=NUM) as bench:
        bench.until(lambda: bench.drivers[0].wants_kick())
        echo.gate.clear()
        bench.drivers[0].add([b"x"], [1])
        bench.kick()
        bench.until(lambda: not bench.drivers[0].wants_kick())
        bench.drivers[0].add([b"y"], [1])
        bench.kick()  # does not ring
        echo.gate.set()
        assert [bench.drivers[0].data(bench.wait()) for _ in range(2)] == [b"X", b"Y"]


def test_bad_driver_is_a_sentence_and_ends_the_service() -> None:
    with plugged(Echo(), num=NUM, may_fail=True) as bench:
        bench.drivers[0].add([bytes(4097)], [])
        bench.kick()
        bench.until(lambda: bench.failures)
        assert bench.failures == ["echo queue 0: too loud"]
        bench.until(lambda: not service_threads())


def test_bug_of_ours_is_told() -> None:
    bench = Bench(Echo(), num=NUM)
    bench.start()
    bench.drivers[0].add([b"bug"], [])
    bench.kick()
    bench.until(lambda: bench.broken)
    bench.close()
    assert isinstance(bench.broken[0], ZeroDivisionError)
    assert bench.failures == []


def test_reset_and_start_again() -> None:
    with no_leaks(), plugged(Echo(), num=NUM) as bench:
        for turn in range(5):
            for _ in range(NUM + 3):
                assert bench.ask([b"%d a" % turn], [3]) == (b"%d A" % turn, 3)
            bench.services[0].kick()  # a ring too many is still there when it starts again
            bench.reset()
            assert service_threads() == []
            bench.services[0].kick()
            bench.start()


def test_stop_is_bounded_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "STOP_SECONDS", 0.05)
    echo = Echo()
    bench = Bench(echo, num=NUM)
    bench.start()
    echo.gate.clear()
    bench.drivers[0].add([b"x"], [1])
    bench.kick()
    bench.until(lambda: not bench.drivers[0].wants_kick())
    with pytest.raises(HostError, match="echo queue 0: its service does not stop"):
        bench.services[0].stop()
    echo.gate.set()
    monkeypatch.setattr(service_module, "STOP_SECONDS", 30)
    bench.close()
    bench.services[0].close()  # twice is once


def test_full_eventfd_is_no_error() -> None:
    bench = Bench(Echo(), num=NUM)
    os.eventfd_write(bench.services[0].fd, (1 << 64) - 2)
    bench.services[0].kick()  # nobody has read it yet
    bench.start()
    assert bench.ask([b"x"], [1]) == (b"X", 1)
    bench.close()


def test_other_descriptor_and_timeout() -> None:
    receive, send = os.pipe()
    seen: list[bool] = []

    class Watch(Echo):
        def serve(self, queue: QueueService) -> None:
            seen.append(queue.sleep(receive, select.POLLIN, timeout=0.01))
            if seen[-1]:
                os.read(receive, 1)

    with plugged(Watch(), num=NUM) as bench:
        bench.until(lambda: seen)
        os.write(send, b"!")
        bench.until(lambda: True in seen)
    assert seen[0] is False
    os.close(receive)
    os.close(send)


# As it is in a machine: the Guest in another process, its NOTIFY through the Switcher -----


@pytest.mark.parametrize("batch", [1, 5])
def test_no_wakeup_is_lost_between_processes(lib: Any, processes: Processes, batch: int) -> None:
    """A vCPU's process and the service thread race at full speed for the flag and the index."""
    requests, ram_size, address = 10_000, 1 << 20, 0x4001000
    block = SharedBlock(ram_size, "guest memory")
    control = Block(lib, 1, ram=ram_size)
    switcher = type("Switcher", (), {"lib": lib, "ffi": binding.ffi})()
    pointer = binding.ffi.cast("void *", binding.ffi.from_buffer(block.map))
    killed: list[str] = []
    ram = DmaRam(block, killed.append, switcher, control.c, pointer)
    layout = legacy_layout(0x1000, NUM, 4096)
    bell = os.eventfd(0)  # the Guest's interrupt
    broken: list[Exception] = []
    echo = Echo()
    queue = QueueService(
        "echo", echo.serve, lambda: os.eventfd_write(bell, 1), killed.append, broken.append
    )
    assert lib.smp_bind(control.c, 0, address, queue.fd) == 0

    def guest() -> None:
        # Its stores are followed by a fence (smp_dma_write), as a driver's mb() is.
        driver = Driver(ram, NUM, layout, 0x10000, 1024)
        done = 0
        while done < requests:
            for number in range(batch):
                driver.add([b"request %d" % (done + number)], [16])
            if driver.wants_kick():
                assert lib.smp_notify(control.c, 0, address) == 1
            for _ in range(batch):
                while (request := driver.take()) is None:
                    assert select.select([bell], [], [], 20)[0], "the interrupt was lost"
                    os.eventfd_read(bell)
                text = driver.data(request)[: request.written]
                assert text == b"REQUEST %d" % done, text
                done += 1

    processes.fork(guest)
    queue.start(Vring(ram, NUM, layout.desc, layout.avail, layout.used))
    assert processes.join(60) == [0]
    assert killed == [] and broken == []
    queue.close()
    os.close(bell)
    ram.close()
    del pointer
    control.unbind(0, address)


def test_closed_memory_is_our_mistake_not_the_guests(lib: Any) -> None:
    """Whoever closes memory before the services hears of it; nothing hangs or crashes."""
    block = SharedBlock(1 << 20, "guest memory")
    control = Block(lib, 1, ram=1 << 20)
    switcher = type("Switcher", (), {"lib": lib, "ffi": binding.ffi})()
    pointer = binding.ffi.cast("void *", binding.ffi.from_buffer(block.map))
    ram: GuestRam = memory.DmaRam(block, print, switcher, control.c, pointer)
    layout = legacy_layout(0, NUM, 4096)
    broken: list[Exception] = []
    failures: list[str] = []
    queue = QueueService("rng", RngDevice().services[0], print, failures.append, broken.append)
    queue.start(Vring(ram, NUM, layout.desc, layout.avail, layout.used))
    assert isinstance(ram, DmaRam)
    ram.close()
    queue.kick()
    deadline = time.monotonic() + 20
    while not broken and time.monotonic() < deadline:
        select.select([], [], [], 0.001)
    queue.close()
    assert isinstance(broken[0], HostError)
    assert failures == []
