"""The driver's side of virtqueues, memory to put them in, and a bench to plug devices into."""

from __future__ import annotations

import random
import select
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from runtime.virtio.device import Device
from runtime.virtio.service import QueueService, Stopped
from runtime.virtio.vring import Layout, Vring, VringError, legacy_layout
from runtime.virtio.vring import Ram as Memory

PATIENCE = 30.0
NEXT, WRITE, INDIRECT = 1, 2, 4


class Ram:
    """Memory in which an access outside is a failure of the test: a ring checks before."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.data = bytearray(size)

    def read(self, address: int, length: int) -> bytes:
        assert address >= 0 and length >= 0 and address + length <= self.size, (address, length)
        return bytes(self.data[address : address + length])

    def write(self, address: int, data: bytes | memoryview) -> None:
        assert address >= 0 and address + len(data) <= self.size, (address, len(data))
        self.data[address : address + len(data)] = data

    def put(self, address: int, layout: str, *values: int) -> None:
        self.write(address, struct.pack("<" + layout, *values))

    def u16(self, address: int) -> int:
        return int.from_bytes(self.read(address, 2), "little")


def desc(address: int, length: int, flags: int = 0, following: int = 0) -> bytes:
    return struct.pack("<QIHH", address, length, flags, following)


@dataclass
class Request:
    """What the driver gave away under `head`, and after its return how much was written."""

    head: int
    descriptors: list[int]
    writable: list[tuple[int, int]]
    written: int = -1


class Driver:
    """A driver as section 2.7.13 has it; its data lies in `[heap, heap + num * stride)`."""

    def __init__(
        self,
        ram: Memory,
        num: int,
        layout: Layout,
        heap: int,
        stride: int = 8192,
        *,
        indirect: bool = False,
        seed: int = 1,
    ) -> None:
        self.ram, self.num, self.layout = ram, num, layout
        self.heap, self.stride, self.indirect = heap, stride, indirect
        self.random = random.Random(seed)
        self.free = list(range(num))
        self.random.shuffle(self.free)
        self.waiting: dict[int, Request] = {}
        self.avail_index = 0
        self.used_index = 0

    # Giving away --------------------------------------------------------------------

    def add(self, readable: Sequence[bytes], writable: Sequence[int]) -> Request:
        """Make one chain available (nobody is told)."""
        parts = len(readable) + len(writable)
        table = self.indirect and parts > 1
        taken = [self.free.pop() for _ in range(1 if table else parts)]
        head = taken[0]
        at = self.heap + head * self.stride
        end = at + self.stride
        table_at = at
        if table:
            at += 16 * parts
        buffers: list[tuple[int, int, int]] = []
        for data in readable:
            at += self.random.randrange(4)
            self.ram.write(at, data)
            buffers.append((at, len(data), 0))
            at += len(data)
        for length in writable:
            at += self.random.randrange(4)
            buffers.append((at, length, WRITE))
            at += length
        assert at <= end, "the request does not fit the driver's heap"
        indices = list(range(parts)) if table else taken
        base = table_at if table else self.layout.desc
        for place, (address, length, flags) in enumerate(buffers):
            last = place == parts - 1
            following = 0 if last else indices[place + 1]
            entry = desc(address, length, flags | (0 if last else NEXT), following)
            self.ram.write(base + 16 * indices[place], entry)
        if table:
            self.ram.write(self.layout.desc + 16 * head, desc(table_at, 16 * parts, INDIRECT))
        self._put(self.layout.avail + 4 + 2 * (self.avail_index % self.num), "H", head)
        self.avail_index = (self.avail_index + 1) & 0xFFFF
        self._put(self.layout.avail + 2, "H", self.avail_index)
        request = Request(head, taken, [(a, n) for a, n, flags in buffers if flags])
        self.waiting[head] = request
        return request

    def wants_kick(self) -> bool:
        return not self._u16(self.layout.used) & 1

    def set_no_interrupt(self, on: bool) -> None:
        self._put(self.layout.avail, "H", int(on))

    # Getting back -------------------------------------------------------------------

    def take(self) -> Request | None:
        """The next chain that the device gave back."""
        if self._u16(self.layout.used + 2) == self.used_index:
            return None
        at = self.layout.used + 4 + 8 * (self.used_index % self.num)
        head, written = struct.unpack("<II", self.ram.read(at, 8))
        self.used_index = (self.used_index + 1) & 0xFFFF
        request = self.waiting.pop(head)
        request.written = written
        self.free += request.descriptors
        self.random.shuffle(self.free)
        return request

    def data(self, request: Request) -> bytes:
        """All that the device could write, written or not."""
        return b"".join(self.ram.read(address, length) for address, length in request.writable)

    def _put(self, address: int, layout: str, value: int) -> None:
        self.ram.write(address, struct.pack("<" + layout, value))

    def _u16(self, address: int) -> int:
        return int.from_bytes(self.ram.read(address, 2), "little")


class StillQueue(QueueService):
    """A queue without a thread: where it would sleep it stops."""

    def sleep(self, fd: int = -1, events: int = 0, timeout: float | None = None) -> bool:
        self.interrupt_guest()
        raise Stopped

    def serve(self, ring: Vring) -> str | None:
        """Everything that is available; the sentence if the driver did wrong."""
        self._ring = ring
        try:
            for _ in range(ring.num + 1):
                self._service(self)
        except Stopped:
            return None
        except VringError as error:
            return str(error)
        raise AssertionError("more requests than the ring has room for")


class Bench:
    """A device with its services running and a driver for each queue."""

    def __init__(
        self,
        device: Device,
        *,
        num: int = 256,
        stride: int = 8192,
        features: int | None = None,
        indirect: bool = False,
    ) -> None:
        self.device = device
        block = (legacy_layout(0, num, 4096).size + 4095) // 4096 * 4096
        queues = len(device.services)
        self.ram = Ram(queues * (block + num * stride))
        self.failures: list[str] = []
        self.broken: list[Exception] = []
        self.interrupts = [threading.Semaphore(0) for _ in device.services]
        self.interrupt_counts = [0] * queues
        self.services: list[QueueService] = []
        self.drivers: list[Driver] = []
        self.rings: list[Vring] = []
        self.features = device.features if features is None else features
        self._indirect = indirect
        for number, service in enumerate(device.services):
            base = number * (block + num * stride)
            layout = legacy_layout(base, num, 4096)
            made = QueueService(
                f"{device.name} queue {number}",
                service,
                lambda number=number: self._interrupt(number),
                self.failures.append,
                self.broken.append,
            )
            self.services.append(made)
            self.rings.append(Vring(self.ram, num, *layout[:3], indirect=indirect))
            self.drivers.append(
                Driver(self.ram, num, layout, base + block, stride, indirect=indirect)
            )

    def _interrupt(self, number: int) -> None:
        self.interrupt_counts[number] += 1
        self.interrupts[number].release()

    def start(self) -> None:
        self.device.start(self.features, self.services)
        for service, ring in zip(self.services, self.rings, strict=True):
            service.start(ring)

    def reset(self) -> None:
        """What a transport does: rings and drivers are new, the device and its services remain."""
        for service in self.services:
            service.stop()
        self.device.reset()
        for number, old in enumerate(self.drivers):
            self.ram.write(old.layout.desc, bytes(old.layout.size))
            self.rings[number] = Vring(self.ram, old.num, *old.layout[:3], indirect=self._indirect)
            self.drivers[number] = Driver(
                self.ram, old.num, old.layout, old.heap, old.stride, indirect=self._indirect
            )

    def close(self) -> None:
        for service in self.services:
            service.close()
        self.device.close()

    def kick(self, number: int = 0) -> None:
        """Only if the device wants that, as a driver does."""
        if self.drivers[number].wants_kick():
            self.services[number].kick()

    def wait(self, number: int = 0) -> Request:
        """The next request that comes back, waiting for interrupts as a driver does."""
        while (request := self.drivers[number].take()) is None:
            assert self.interrupts[number].acquire(timeout=PATIENCE), "no interrupt came"
        return request

    def ask(
        self, readable: Sequence[bytes], writable: Sequence[int], number: int = 0
    ) -> tuple[bytes, int]:
        """One request from beginning to end: what could be written, and how much was."""
        self.drivers[number].add(readable, writable)
        self.kick(number)
        request = self.wait(number)
        return self.drivers[number].data(request), request.written

    def until(self, condition: Callable[[], object]) -> None:
        """For what no interrupt tells."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "it does not come to pass"
            select.select([], [], [], 0.001)


@contextmanager
def plugged(
    device: Device,
    *,
    num: int = 256,
    stride: int = 8192,
    features: int | None = None,
    indirect: bool = False,
    may_fail: bool = False,
) -> Iterator[Bench]:
    """A bench with its services running; at the end neither the Guest nor we may have failed."""
    bench = Bench(device, num=num, stride=stride, features=features, indirect=indirect)
    try:
        bench.start()
        yield bench
    finally:
        bench.close()
    assert bench.broken == []
    assert may_fail or bench.failures == []
