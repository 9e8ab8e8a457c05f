"""The device page: what the Guest finds there, and what its NOTIFYs do."""

from __future__ import annotations

import os
import random
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import HostError, UserError
from runtime.lguest.devices import EARLY_MAX, PAGE, DevicePage, Wiring
from runtime.virtio.blk import BlockDevice
from runtime.virtio.console import ConsoleDevice
from runtime.virtio.device import Device
from runtime.virtio.net import NetDevice
from runtime.virtio.net_stream import StreamBackend
from runtime.virtio.rng import RngDevice
from runtime.virtio.service import QueueService
from runtime.virtio.vring import legacy_layout
from tests.helpers.leaks import descriptors, no_leaks
from tests.helpers.virtio import Driver, Ram

MEM = 1 << 20
PAGES = 256 * PAGE
DRIVER_READY = 3  # what Linux has written when features are final: ACKNOWLEDGE, DRIVER


class Toy:
    """A device with as many queues, features and configuration bytes as a test wants."""

    name = "toy"

    def __init__(self, queues: int = 1, features: int = 0, config: bytes = b"") -> None:
        self.kind, self.features, self.config = 9, features, config
        self.services = (self.serve,) * queues
        self.events: list[Any] = []

    def serve(self, queue: QueueService) -> None:
        chain = queue.wait_for_chain()
        chain.write(chain.read(chain.unread)[::-1])
        queue.used(chain)

    def start(self, features: int, queues: Sequence[QueueService]) -> None:
        self.events.append(("start", features))

    def reset(self) -> None:
        self.events.append("reset")

    def close(self) -> None:
        self.events.append("close")


class Machine:
    """What a device page is wired to, written down; `notify` goes the way of a hypercall."""

    def __init__(self, devices: Sequence[Device], **more: Any) -> None:
        self.ram = Ram(MEM + PAGES)
        self.bound: dict[int, int] = {}
        self.failures: list[str] = []
        self.broken: list[Exception] = []
        self.warnings: list[str] = []
        self.console = bytearray()
        self.interrupts: dict[int, threading.Semaphore] = {
            irq: threading.Semaphore(0) for irq in range(32)
        }
        self.page = DevicePage(
            self.ram,
            MEM,
            devices,
            Wiring(
                interrupt=lambda irq: self.interrupts[irq].release(),
                fail=self.failures.append,
                broken=self.broken.append,
                bind=self.bind,
                unbind=self.bound.pop,
                early_console=self.console.extend,
                warn=self.warnings.append,
            ),
            **more,
        )

    def bind(self, address: int, fd: int) -> None:
        if address in self.bound:
            raise HostError("bound twice")
        self.bound[address] = fd

    def notify(self, address: int) -> bool:
        if address in self.bound:
            os.eventfd_write(self.bound[address], 1)
            return True
        return self.page.notify(address)

    def set_status(self, descriptor: int, status: int) -> bool:
        self.ram.put(descriptor + 4, "B", status)
        return self.notify(descriptor)


@contextmanager
def machine(*devices: Device, **more: Any) -> Iterator[Machine]:
    with no_leaks():
        made = Machine(devices, **more)
        yield made
        made.page.close()
        assert made.bound == {}
        assert made.broken == []
        assert not [t for t in threading.enumerate() if t.name.startswith("virtio-")]


def parse(ram: Ram) -> list[dict[str, Any]]:
    """As a guest's lguest_bus code scans the page."""
    found = []
    at = MEM
    while ram.read(at, 1) != b"\0":
        kind, queues, features, config, status = ram.read(at, 5)
        here = {"at": at, "kind": kind, "status": status}
        here["queues"] = [
            struct.unpack("<HHI", ram.read(at + 5 + 8 * number, 8)) for number in range(queues)
        ]
        bits = at + 5 + 8 * queues
        here["offered"] = int.from_bytes(ram.read(bits, features), "little")
        here["accepted_at"] = bits + features
        here["accepted"] = ram.read(bits + features, features)
        here["config"] = ram.read(bits + 2 * features, config)
        at = bits + 2 * features + config
        here["size"] = at - here["at"]
        found.append(here)
    return found


# Layout -------------------------------------------------------------------------------------


def test_page_of_a_machine_with_everything(tmp_path: Path) -> None:
    (tmp_path / "disk").write_bytes(bytes(512 * 20))
    mac = bytes.fromhex("525400123456")
    devices: list[Device] = [
        NetDevice(StreamBackend(str(tmp_path / "cable"), listen=True), mac),
        BlockDevice(tmp_path / "disk"),
        RngDevice(),
        ConsoleDevice(print, print),
    ]
    with machine(*devices) as m:
        net, block, rng, console = parse(m.ram)
        page = MEM // PAGE
        assert (net["kind"], net["queues"]) == (1, [(256, 1, page + 1), (256, 2, page + 4)])
        assert (net["offered"], net["config"][:6]) == (1 << 5 | 1 << 28, mac)
        # The sizes that a 3.10 guest printed.
        assert (block["kind"], block["size"]) == (2, 33)
        assert (block["queues"], block["offered"]) == ([(256, 3, page + 7)], 1 << 2 | 1 << 9)
        assert block["config"] == struct.pack("<QII", 20, 0, 254)
        assert (rng["kind"], rng["size"], rng["queues"]) == (4, 13, [(256, 4, page + 10)])
        assert (console["kind"], console["size"]) == (3, 21)
        assert console["queues"] == [(256, 5, page + 13), (256, 6, page + 16)]
        assert all(device["status"] == 0 for device in (net, block, rng, console))
        assert m.page.pfn_limit == page + 1 + 18
        assert m.page.guest_limit == MEM + 19 * PAGE
        assert len(m.page.worker_fds) == 6


def test_no_devices() -> None:
    with machine() as m:
        assert parse(m.ram) == []
        assert m.page.pfn_limit == MEM // PAGE + 1


@pytest.mark.parametrize(
    ("devices", "more", "text"),
    [
        ([Toy(31)], {"irqs": 31}, "their queues need more than 30 irqs"),
        ([Toy(16), Toy(16)], {}, "their queues need more than 31 irqs"),
        ([Toy(86)], {"irqs": 1000}, "their rings need more than 256 pages"),
        # One byte more than in test_as_many_as_fit: a full page has no end.
        (
            [*[Toy(1, 0, bytes(250)) for _ in range(15)], Toy(1, 0, bytes(138))],
            {},
            "their descriptors do not fit one page",
        ),
    ],
)
def test_too_many_devices(devices: list[Toy], more: dict[str, int], text: str) -> None:
    with no_leaks(), pytest.raises(UserError, match=f"too many devices: {text}"):
        Machine(devices, **more)
    assert all(device.events == ["close"] for device in devices)


def test_as_many_as_fit() -> None:
    with machine(Toy(31)) as m:
        assert [irq for _, irq, _ in parse(m.ram)[0]["queues"]] == list(range(1, 32))
    with machine(Toy(85), irqs=1000) as m:
        assert m.page.guest_limit == MEM + PAGES
    # 15 of 263 bytes and 150 more: the last byte of the page ends the list.
    with machine(*[Toy(1, 0, bytes(250)) for _ in range(15)], Toy(1, 0, bytes(137))) as m:
        assert len(parse(m.ram)) == 16


# Life of a device ------------------------------------------------------------------------------


def start(m: Machine, device: dict[str, Any], features: int = 0) -> None:
    """In the order of Linux: reset, features, final."""
    assert m.set_status(device["at"], 0)
    length = len(device["accepted"])
    m.ram.write(device["accepted_at"], features.to_bytes(length, "little"))
    assert m.set_status(device["at"], DRIVER_READY)


def make_driver(m: Machine, device: dict[str, Any], queue: int = 0, **more: Any) -> Driver:
    num, _, pfn = device["queues"][queue]
    return Driver(m.ram, num, legacy_layout(pfn * PAGE, num, PAGE), 0x1000, 512, **more)


def ask(m: Machine, device: dict[str, Any], driver: Driver, data: bytes, queue: int = 0) -> bytes:
    _, irq, pfn = device["queues"][queue]
    driver.add([data[:3], data[3:]], [len(data)])
    if driver.wants_kick():
        assert m.notify(pfn * PAGE)
    while (request := driver.take()) is None:
        assert m.interrupts[irq].acquire(timeout=20), "no interrupt came"
    return driver.data(request)


def test_start_serve_reset_and_start_again() -> None:
    toy = Toy(2, features=0b1010)
    with machine(RngDevice(), toy) as m:
        device = parse(m.ram)[1]
        for turn in range(3):
            start(m, device, 0b1000)
            assert sorted(m.bound) == [pfn * PAGE for _, _, pfn in device["queues"]]
            assert set(m.bound.values()) <= m.page.worker_fds
            for queue in range(2):
                driver = make_driver(m, device, queue)
                for number in range(20):
                    text = b"%d request %d" % (turn, number)
                    assert ask(m, device, driver, text, queue) == text[::-1]
            assert m.set_status(device["at"], 0)
            assert m.bound == {}
            assert m.ram.read(device["accepted_at"], 1) == b"\0"
            rings = m.ram.read(device["queues"][0][2] * PAGE, 6 * PAGE)
            assert rings == bytes(len(rings))
        assert toy.events == [("start", 0b1000), "reset"] * 3
    assert toy.events[-1] == "close"
    assert m.failures == []


def test_features_that_were_not_offered_are_not_accepted() -> None:
    toy = Toy(features=0b1010)
    with machine(toy) as m:
        start(m, parse(m.ram)[0], 0xFF)
        assert toy.events == [("start", 0b1010)]


@pytest.mark.parametrize("accepted", [False, True])
def test_indirect_descriptors_only_when_accepted(accepted: bool) -> None:
    with machine(Toy(features=1 << 28)) as m:
        device = parse(m.ram)[0]
        start(m, device, 1 << 28 if accepted else 0)
        driver = make_driver(m, device, indirect=True)
        if accepted:
            assert ask(m, device, driver, b"abcdef") == b"fedcba"
            return
        driver.add([b"a", b"b"], [])
        m.notify(device["queues"][0][2] * PAGE)
        wait_for(lambda: m.failures)
    assert m.failures == ["toy.0 queue 0: an indirect descriptor, which was not negotiated"]


def wait_for(condition: Any) -> None:
    pause = threading.Event()
    for _ in range(20_000):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("it does not come to pass")


def test_features_finalized_twice_kills() -> None:
    with machine(Toy()) as m:
        device = parse(m.ram)[0]
        start(m, device)
        assert not m.set_status(device["at"], 7)
        assert m.failures == ["Device toy.0 features finalized twice"]


def test_failed_is_a_warning_and_a_reset() -> None:
    toy = Toy()
    with machine(toy) as m:
        device = parse(m.ram)[0]
        ring = device["queues"][0][2] * PAGE
        m.ram.write(ring, b"mine")
        assert m.set_status(device["at"], 0x80 | 1)  # never started: nothing to reset
        assert m.ram.read(ring, 4) == b"mine"
        assert toy.events == []
        start(m, device)
        assert m.set_status(device["at"], 0x80 | 3)
        assert toy.events == [("start", 0), "reset"]
        assert m.warnings == ["the Guest's driver gave up device toy.0"] * 2
        assert m.bound == {}


def test_notify_of_a_queue_before_setup_kills() -> None:
    with machine(Toy(), Toy(2)) as m:
        assert not m.notify(parse(m.ram)[1]["queues"][1][2] * PAGE)
        assert m.failures == ["Notification on toy.1 before setup!"]


def test_notify_that_was_asked_for_just_before_it_was_bound() -> None:
    with machine(Toy()) as m:
        device = parse(m.ram)[0]
        start(m, device)
        driver = make_driver(m, device)
        wait_for(driver.wants_kick)  # it sleeps
        request = driver.add([b"abc"], [3])
        assert m.page.notify(device["queues"][0][2] * PAGE)
        wait_for(driver.take)
        assert driver.data(request) == b"cba"


def test_guest_that_changes_its_descriptor_moves_nothing() -> None:
    """We never read back what we told it."""
    with machine(Toy(features=1)) as m:
        device = parse(m.ram)[0]
        status_at = device["at"] + 4
        m.ram.write(device["at"], b"\xff" * device["size"])
        m.ram.put(status_at, "B", 3)
        assert m.notify(device["at"])
        driver = make_driver(m, device)
        assert ask(m, device, driver, b"hello") == b"olleh"


def test_driver_that_breaks_the_ring_kills() -> None:
    with machine(Toy()) as m:
        device = parse(m.ram)[0]
        start(m, device)
        base = device["queues"][0][2] * PAGE
        m.ram.put(base + 0x1000, "HHH", 0, 1, 999)
        m.notify(base)
        wait_for(lambda: m.failures)
        assert m.failures == ["toy.0 queue 0: descriptor 999 was made available in a queue of 256"]
        assert m.set_status(device["at"], 0)  # the Guest is dead; this must not hang or raise


def test_services_stop_before_the_devices_are_closed() -> None:
    """The machine's end: what the Guest was rid of can still be passed on in between."""
    toy = Toy(2)
    with machine(toy) as m:
        start(m, parse(m.ram)[0])
        m.page.stop()
        assert m.bound == {}
        assert not [t for t in threading.enumerate() if t.name.startswith("virtio-")]
        assert toy.events == [("start", 0), "reset"]
    assert toy.events == [("start", 0), "reset", "close"]


def test_devices_and_eventfds_go_even_if_a_service_does_not_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = threading.Event()

    class Stubborn(Toy):
        def serve(self, queue: QueueService) -> None:
            gate.wait(20)
            super().serve(queue)

    monkeypatch.setattr("runtime.virtio.service.STOP_SECONDS", 0.02)
    devices = [Stubborn(), Toy()]
    m = Machine(devices)
    for device in parse(m.ram):
        start(m, device)
    before = len(descriptors())
    with pytest.raises(HostError, match=r"toy.0 queue 0: its service does not stop"):
        m.page.close()
    assert len(descriptors()) == before - 1  # the stubborn thread's own stays
    assert m.bound == {}
    assert [toy.events[-1] for toy in devices] == ["close", "close"]
    gate.set()
    wait_for(lambda: not [t for t in threading.enumerate() if t.name.startswith("virtio-")])


# Early console, and addresses that mean nothing ---------------------------------------------


def test_early_console() -> None:
    with machine(Toy()) as m:
        m.ram.write(0x5000, b"Linux version 3.\0" + b"garbage" * 100)
        assert m.notify(0x5000)
        m.ram.write(0x8001, b"x" * 1000 + b"\0")
        assert m.notify(0x8001)
        assert m.notify(0x9000)  # an empty string
        assert m.console == b"Linux version 3." + b"x" * 1000


def test_early_console_is_bounded() -> None:
    with machine(Toy()) as m:
        m.ram.write(0, b"y" * MEM)
        assert m.notify(7)
        assert m.console == b"y" * EARLY_MAX
        m.console.clear()
        m.ram.write(m.page.guest_limit - 5, b"z" * 10)
        assert m.notify(m.page.guest_limit - 5)
        assert m.console == b"z" * 5


@pytest.mark.parametrize("offset", [0, 1, PAGES, (1 << 32) - 1 - MEM - 4 * PAGE])
def test_notify_of_nothing_kills(offset: int) -> None:
    with machine(Toy()) as m:
        address = m.page.guest_limit + offset
        assert not m.notify(address)
        assert m.failures == [f"Bad NOTIFY {address:#x}"]


# Anything at all ----------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, (1 << 32) - 1), st.integers(0, 255)),
        max_size=30,
    )
)
def test_hostile_notifies(steps: list[tuple[int, int, int]]) -> None:
    """Whatever is written and notified: a sentence or nothing, and all of it ends."""
    toys = [Toy(2, features=1 << 28), Toy(1)]
    m = Machine(toys)
    try:
        devices = parse(m.ram)
        addresses = [d["at"] for d in devices]
        addresses += [pfn * PAGE for d in devices for _, _, pfn in d["queues"]]
        for what, address, value in steps:
            target = addresses[address % len(addresses)]
            if what == 0:
                m.notify(address)
            elif what == 1:
                m.notify(target)
            elif what == 2:
                m.set_status(addresses[address % 2], value)
            elif what == 3:
                start_or_die = addresses[address % 2]
                m.set_status(start_or_die, 0)
                m.set_status(start_or_die, 3)
            elif what == 4:
                noise = random.Random(address).randbytes(64)
                m.ram.write(target + address % (2 * PAGE), noise)
            else:
                m.ram.put(target + PAGE + 2, "H", value)
            assert all("\n" not in text for text in m.failures)
    finally:
        m.page.close()
    assert m.bound == {} and m.broken == []
