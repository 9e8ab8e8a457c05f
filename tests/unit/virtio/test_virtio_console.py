"""The console and the entropy device: no byte is lost, whoever is slow."""

from __future__ import annotations

import queue as queues
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runtime.virtio.console import OUTPUT_MAX, WAITING_MAX, ConsoleDevice
from runtime.virtio.rng import RngDevice
from tests.helpers.leaks import no_leaks
from tests.helpers.virtio import Bench, plugged

INPUT, OUTPUT = 0, 1
Order = Callable[[], None]


class Loop:
    """A Host's loop that a test turns by hand, or a thread."""

    def __init__(self) -> None:
        self.orders: queues.SimpleQueue[Order | None] = queues.SimpleQueue()
        self.output = bytearray()
        self.device = ConsoleDevice(self.put, self.orders.put)
        self.threads: set[str] = set()

    def put(self, data: bytes) -> None:
        self.threads.add(threading.current_thread().name)
        self.output += data

    def turn(self, timeout: float = 20) -> bool:
        order = self.orders.get(timeout=timeout)
        if order is not None:
            order()
        return order is not None

    def run(self) -> threading.Thread:
        def body() -> None:
            while self.turn():
                pass

        thread = threading.Thread(target=body, name="loop")
        thread.start()
        return thread


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def bench(loop: Loop) -> Iterator[Bench]:
    with no_leaks(), plugged(loop.device) as made:
        yield made


def test_no_features_no_configuration(loop: Loop) -> None:
    assert (loop.device.kind, loop.device.features, loop.device.config) == (3, 0, b"")


def test_output_goes_out_in_the_loop(bench: Bench, loop: Loop) -> None:
    thread = loop.run()
    for text in (b"hello, ", b"", b"world\n"):
        assert bench.ask([text[:3], text[3:]], [], OUTPUT) == (b"", 0)
    loop.orders.put(None)
    thread.join()
    assert loop.output == b"hello, world\n"
    assert loop.threads == {"loop"}


def test_input_comes_in_with_an_interrupt_a_read(bench: Bench, loop: Loop) -> None:
    for _ in range(3):
        bench.drivers[INPUT].add([], [4])
    bench.kick(INPUT)
    loop.device.receive(b"ab")
    first = bench.wait(INPUT)
    assert (bench.drivers[INPUT].data(first), first.written) == (b"ab\0\0", 2)
    loop.device.receive(b"cdefgh")
    assert [bench.drivers[INPUT].data(bench.wait(INPUT)) for _ in range(2)] == [
        b"cdef",
        b"gh\0\0",
    ]
    assert bench.interrupt_counts[INPUT] == 3


def test_input_waits_for_the_guest(loop: Loop) -> None:
    device = loop.device
    assert device.input_room == WAITING_MAX
    device.receive(b"early")  # no driver yet
    assert device.input_room == WAITING_MAX - 5
    with plugged(device) as bench:
        data, written = bench.ask([], [2, 10], INPUT)
        assert (data[:written], device.input_room) == (b"early", WAITING_MAX)
        bench.reset()
        device.receive(b"between two drivers")
        bench.start()
        data, written = bench.ask([], [100], INPUT)
        assert data[:written] == b"between two drivers"


def test_full_input_calls_the_loop_when_there_is_room(bench: Bench, loop: Loop) -> None:
    loop.device.receive(bytes(WAITING_MAX))
    assert loop.device.input_room == 0
    assert bench.ask([], [1000], INPUT)[1] == 1000
    assert loop.turn()  # somebody called
    assert loop.device.input_room == 1000
    assert bench.ask([], [1000], INPUT)[1] == 1000
    assert loop.orders.empty()  # and only when there was none


def test_slow_reader_holds_the_guest_back(bench: Bench, loop: Loop) -> None:
    """Nobody turns the loop: the Guest gets rid of what our buffer takes, and then waits."""
    driver = bench.drivers[OUTPUT]
    piece = 8000
    sent = bytearray()
    for number in range(OUTPUT_MAX // piece + 4):
        sent += bytes([number]) * piece
        driver.add([bytes([number]) * piece], [])
    bench.kick(OUTPUT)
    for _ in range(OUTPUT_MAX // piece):
        bench.wait(OUTPUT)
    bench.until(lambda: len(loop.device._output) == OUTPUT_MAX)
    assert driver.take() is None
    assert loop.orders.qsize() == 1  # one call for all of it
    loop.turn()
    for _ in range(4):
        bench.wait(OUTPUT)
    loop.turn()
    assert loop.output == sent


def test_busy_line(bench: Bench, loop: Loop) -> None:
    loop.device.set_line_busy(True)
    bench.ask([b"one"], [], OUTPUT)
    assert loop.orders.empty()
    loop.device.set_line_busy(False)
    assert loop.output == b""  # not in this round of the loop
    loop.turn()
    assert loop.output == b"one"
    bench.ask([b"two"], [], OUTPUT)
    loop.device.set_line_busy(True)  # after the call, before the loop's turn
    loop.turn()
    assert loop.output == b"one"
    bench.ask([b"three"], [], OUTPUT)
    assert loop.orders.empty()
    loop.device.set_line_busy(False)
    loop.device.set_line_busy(False)
    loop.turn()
    assert loop.orders.empty()
    assert loop.output == b"onetwothree"
    bench.ask([b"."], [], OUTPUT)
    loop.turn()
    assert loop.output == b"onetwothree."


def test_last_words(loop: Loop) -> None:
    """What the Guest was rid of before it ended is not lost, busy or not."""
    with plugged(loop.device) as bench:
        loop.device.set_line_busy(True)
        bench.ask([b"last words"], [], OUTPUT)
    loop.device.receive(b"too late")  # and nobody to kick
    loop.device.finish()
    assert loop.output == b"last words"


def test_megabytes_both_ways_with_slow_ends(bench: Bench, loop: Loop) -> None:
    """The Guest echoes what it gets; the line is busy now and then, buffers are of any size."""
    chance = random.Random(5)
    total = 300_000
    source = chance.randbytes(total)
    done = threading.Event()

    def host() -> None:
        fed = 0
        while len(loop.output) < total:
            room = min(loop.device.input_room, chance.randrange(1, 3000))
            if room and fed < total:
                loop.device.receive(source[fed : fed + room])
                fed += room
            if chance.random() < 0.2:
                loop.device.set_line_busy(True)
                loop.device.set_line_busy(False)
            try:
                loop.turn(timeout=0.001)
            except queues.Empty:
                continue
        done.set()

    thread = threading.Thread(target=host)
    thread.start()
    driver = bench.drivers[INPUT]
    got = 0
    while got < total:
        while len(driver.free) > 250:
            driver.add([], [chance.randrange(1, 4000)])
        bench.kick(INPUT)
        request = bench.wait(INPUT)
        data = driver.data(request)[: request.written]
        assert data == source[got : got + len(data)] and data
        got += len(data)
        bench.ask([data], [], OUTPUT)
    assert done.wait(30)
    thread.join()
    assert bytes(loop.output) == source


@pytest.mark.parametrize(
    ("number", "readable", "writable", "text"),
    [
        (INPUT, [b"x"], [1], "a request for input has readable parts"),
        (OUTPUT, [b"x"], [1], "a request for output has writable parts"),
    ],
)
def test_wrong_direction_kills(
    loop: Loop, number: int, readable: Any, writable: Any, text: str
) -> None:
    with plugged(loop.device, may_fail=True) as bench:
        bench.drivers[number].add(readable, writable)
        bench.kick(number)
        bench.until(lambda: bench.failures)
    assert bench.failures == [f"console queue {number}: {text}"]


# Entropy ------------------------------------------------------------------------------------


def test_randomness_fills_the_whole_buffer_and_differs() -> None:
    with no_leaks(), plugged(RngDevice(), stride=1 << 18) as bench:
        seen = set()
        for _ in range(20):
            data, written = bench.ask([], [13, 0, 51])
            assert written == 64
            seen.add(data)
        assert len(seen) == 20
        data, written = bench.ask([], [200_000])
        assert written == 200_000
        pieces = {data[at : at + 1000] for at in range(0, 200_000, 1000)}
        assert len(pieces) == 200
        assert bench.ask([], [0])[1] == 0


def test_randomness_is_not_taken() -> None:
    with plugged(RngDevice(), may_fail=True) as bench:
        bench.drivers[0].add([b"x"], [8])
        bench.kick()
        bench.until(lambda: bench.failures)
    assert bench.failures == ["rng queue 0: a request for randomness has readable parts"]
