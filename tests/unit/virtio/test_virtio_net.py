"""Network cards on a UNIX socket and on a TAP device: packets both ways, and ends that vanish."""

from __future__ import annotations

import fcntl
import os
import random
import select
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from runtime import nursery
from runtime.errors import UserError
from runtime.virtio import net, net_tap
from runtime.virtio.net import FRAME_MAX, HEADER_SIZE, NetDevice
from runtime.virtio.net_options import open_net, parse_mac
from runtime.virtio.net_stream import StreamBackend
from runtime.virtio.net_tap import TapBackend
from runtime.virtio.service import QueueService
from tests.helpers.leaks import no_leaks
from tests.helpers.virtio import Bench, plugged

RX, TX = 0, 1
NO_OFFLOADS = bytes(HEADER_SIZE)


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "cable")


def make_frame(number: int, length: int) -> bytes:
    body = struct.pack(">12xHI", 0x88B5, number) + random.Random(number).randbytes(length - 22)
    return body + struct.pack(">I", zlib.crc32(body))


def number_of(frame: bytes) -> int:
    assert zlib.crc32(frame[:-4]) == int.from_bytes(frame[-4:], "big"), "a broken frame"
    return int.from_bytes(frame[14:18], "big")


class Nic:
    """The driver of one card: keeps receive buffers out, sends frames."""

    def __init__(self, bench: Bench, buffers: int = 16, room: int = 4096) -> None:
        self.bench, self.buffers, self.room = bench, buffers, room

    def refill(self) -> None:
        driver = self.bench.drivers[RX]
        while len(driver.waiting) < self.buffers:
            driver.add([], [HEADER_SIZE, self.room])
        self.bench.kick(RX)

    def send(self, *frames: bytes) -> None:
        driver = self.bench.drivers[TX]
        for frame in frames:
            while len(driver.free) < 3:
                self.bench.wait(TX)
            driver.add([NO_OFFLOADS, frame[:20], frame[20:]], [])
            self.bench.kick(TX)

    def receive(self) -> bytes:
        self.refill()
        request = self.bench.wait(RX)
        data = self.bench.drivers[RX].data(request)[: request.written]
        assert data[:HEADER_SIZE] == NO_OFFLOADS
        return data[HEADER_SIZE:]


def connect(path: str) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX)
    peer.settimeout(20)
    peer.connect(path)
    return peer


def on_wire(frame: bytes) -> bytes:
    return len(frame).to_bytes(4, "big") + frame


def read_exactly(peer: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        piece = peer.recv(length - len(data))
        assert piece, "the card hung up"
        data += piece
    return data


def read_frame(peer: socket.socket) -> bytes:
    return read_exactly(peer, int.from_bytes(read_exactly(peer, 4), "big"))


# What it offers -------------------------------------------------------------------------


def test_features_and_configuration(path: str) -> None:
    with no_leaks():
        device = NetDevice(StreamBackend(path, listen=True), bytes.fromhex("525400123456"))
        assert (device.kind, device.features) == (1, 1 << 5 | 1 << 28)
        assert device.config == bytes.fromhex("52540012345600000000")
        device.close()
        device = NetDevice(StreamBackend(path, listen=False))
        assert device.features == 1 << 28
        device.close()


# Two machines and a cable -----------------------------------------------------------------


@pytest.mark.parametrize("indirect", [False, True])
def test_bursts_both_ways_between_two_machines(path: str, indirect: bool) -> None:
    count = 1500
    with no_leaks(), ExitStack() as stack:
        # The one that connects starts first: its peer is absent for a while.
        ends = [NetDevice(StreamBackend(path, listen=False))]
        nics = [Nic(stack.enter_context(plugged(ends[0], num=64, indirect=indirect)))]
        nics[0].send(make_frame(0, 64))  # into the void
        ends.append(NetDevice(StreamBackend(path, listen=True)))
        nics.append(Nic(stack.enter_context(plugged(ends[1], num=64, indirect=indirect))))
        for nic in nics:
            nic.refill()  # cards look for their peer while they wait for packets
            nic.bench.until(lambda nic=nic: nic.bench.device._backend._peer)
        got: list[list[int]] = [[], []]
        failures: list[BaseException] = []

        def life(which: int) -> None:
            chance = random.Random(which)
            sent = 0
            try:
                while sent < count or len(got[which]) < count:
                    for _ in range(min(chance.randrange(1, 40), count - sent)):
                        sent += 1
                        nics[which].send(make_frame(sent, chance.randrange(60, 1515)))
                    while len(got[which]) < min(sent, count):
                        got[which].append(number_of(nics[which].receive()))
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=life, args=(which,)) for which in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert failures == []
        assert got == [list(range(1, count + 1))] * 2
    assert not os.path.exists(path)


def test_wire_format_is_length_and_frame(path: str) -> None:
    with plugged(NetDevice(StreamBackend(path, listen=True))) as bench:
        nic, frame = Nic(bench), make_frame(1, 100)
        nic.refill()
        with connect(path) as peer:
            for byte in on_wire(frame):  # the worst cut there is
                peer.send(bytes([byte]))
            assert nic.receive() == frame
            peer.sendall(on_wire(frame) + on_wire(b"runt") + on_wire(b"") + on_wire(frame))
            assert [nic.receive(), nic.receive()] == [frame, frame]
            nic.send(frame, frame)
            assert read_exactly(peer, 208) == on_wire(frame) * 2


def test_packets_wait_for_buffers(path: str) -> None:
    """The driver has none for a while; the sender is held back, and nothing is lost."""
    frames = [make_frame(number, 1400) for number in range(800)]
    with plugged(NetDevice(StreamBackend(path, listen=True))) as bench:
        nic = Nic(bench, buffers=4)
        nic.refill()
        with connect(path) as peer:
            sender = threading.Thread(target=lambda: peer.sendall(b"".join(map(on_wire, frames))))
            sender.start()
            bench.until(lambda: len(bench.interrupts) and bench.rings[RX]._returned == 4)
            sender.join(0.05)
            assert sender.is_alive()  # back-pressure reached it
            assert [nic.receive() for _ in frames] == frames
            sender.join(20)


def test_peer_that_does_not_read_holds_the_guest_back(path: str) -> None:
    with plugged(NetDevice(StreamBackend(path, listen=True)), num=64) as bench:
        nic, driver = Nic(bench), bench.drivers[TX]
        nic.refill()
        with connect(path) as peer:
            bench.until(lambda: bench.device._backend._peer)  # type: ignore[attr-defined]
            sent = 0
            while True:
                while driver.take():
                    pass
                if len(driver.free) < 3:
                    if not bench.interrupts[TX].acquire(timeout=0.2):
                        break
                    continue
                sent += 1
                nic.send(make_frame(sent, 1500))
            assert driver.waiting
            for number in range(1, sent + 1):
                assert number_of(read_frame(peer)) == number
            while driver.waiting:
                bench.wait(TX)


def cut_a_frame(bench: Bench) -> Any:
    """Leave the card waiting in the middle of frame 1; returns its back end."""
    backend: Any = bench.device._backend  # type: ignore[attr-defined]
    bench.until(lambda: backend._peer)
    backend._peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    bench.drivers[TX].add([NO_OFFLOADS, make_frame(1, 60_000)], [])
    bench.kick(TX)
    bench.until(lambda: 0 < len(backend._unsent) < 60_000)
    return backend


@pytest.mark.parametrize("same_peer", [True, False])
def test_reset_in_the_middle_of_a_frame(path: str, same_peer: bool) -> None:
    """It stops at once; the peer gets the rest before the next frame, a new peer does not."""
    device = NetDevice(StreamBackend(path, listen=True))
    with plugged(device, num=16, stride=1 << 17) as bench, ExitStack() as stack:
        Nic(bench, buffers=4).refill()
        peer = stack.enter_context(connect(path))
        backend = cut_a_frame(bench)
        bench.reset()
        if not same_peer:
            peer.close()
        bench.start()
        nic = Nic(bench, buffers=4)
        nic.refill()
        if not same_peer:
            bench.until(lambda: backend._peer is None)
            peer = stack.enter_context(connect(path))
            bench.until(lambda: backend._peer)
        nic.send(make_frame(2, 200))
        if same_peer:
            assert number_of(read_frame(peer)) == 1
        assert number_of(read_frame(peer)) == 2


def test_hanging_up_ends_the_wait_of_the_sender(path: str) -> None:
    """The peer neither reads nor makes sense."""
    device = NetDevice(StreamBackend(path, listen=True))
    with plugged(device, num=16, stride=1 << 17) as bench:
        Nic(bench, buffers=4).refill()
        with connect(path) as peer:
            backend = cut_a_frame(bench)
            peer.sendall(b"\xff" * 4)
            bench.wait(TX)
            bench.until(lambda: backend._peer is None)


@pytest.mark.parametrize("listen", [True, False])
def test_peer_may_come_and_go(path: str, listen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.virtio.net_stream.RETRY_SECONDS", 0.01)
    with no_leaks(), plugged(NetDevice(StreamBackend(path, listen=listen))) as bench:
        nic = Nic(bench)
        nic.refill()
        backend: Any = bench.device._backend  # type: ignore[attr-defined]
        for turn in range(5):
            nic.send(make_frame(1000 + turn, 64))  # nobody there: lost, and the buffer comes back
            bench.wait(TX)
            if listen:
                peer = connect(path)
            else:
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(path)
                    listener.listen()
                    peer, _ = listener.accept()
                os.unlink(path)
            with peer:
                peer.settimeout(20)
                bench.until(lambda: backend._peer)
                nic.send(make_frame(turn, 64))
                bench.wait(TX)
                assert number_of(read_frame(peer)) == turn
                peer.sendall(on_wire(make_frame(turn, 90)) + b"\0\0\1")  # goes in mid-frame
                assert number_of(nic.receive()) == turn
            bench.until(lambda: backend._peer is None)


def test_peer_goes_while_we_wait_to_send(path: str) -> None:
    with plugged(NetDevice(StreamBackend(path, listen=True)), num=64) as bench:
        nic = Nic(bench)
        nic.refill()
        backend: Any = bench.device._backend  # type: ignore[attr-defined]
        with connect(path):
            bench.until(lambda: backend._peer)
            backend._peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            for number in range(20):
                bench.drivers[TX].add([NO_OFFLOADS, make_frame(number, 7000)], [])
            bench.kick(TX)
            bench.until(lambda: len(backend._unsent) > 0)
        for _ in range(20):
            bench.wait(TX)
        bench.until(lambda: backend._peer is None)


def test_peer_that_speaks_nonsense_is_hung_up(path: str) -> None:
    with plugged(NetDevice(StreamBackend(path, listen=True))) as bench:
        nic = Nic(bench)
        nic.refill()
        with connect(path) as peer:
            peer.sendall((FRAME_MAX + 1).to_bytes(4, "big") + b"x" * 100)
            assert peer.recv(1) == b""
        with connect(path) as peer:  # the next one is welcome
            peer.sendall(on_wire(make_frame(5, 80)))
            assert number_of(nic.receive()) == 5


# Drivers that mean harm ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "readable", "writable", "text"),
    [
        (RX, [b"x"], [100], "a receive buffer has readable parts"),
        (RX, [], [9], "a receive buffer has 9 bytes, less than a header"),
        (TX, [NO_OFFLOADS, b"x"], [1], "a packet to transmit has writable parts"),
        (TX, [b"x" * 9], [], "a packet of 9 bytes has no whole header"),
    ],
)
def test_buffers_that_kill(
    path: str, number: int, readable: list[bytes], writable: list[int], text: str
) -> None:
    device = NetDevice(StreamBackend(path, listen=True))
    with plugged(device, may_fail=True) as bench:
        bench.drivers[number].add(readable, writable)
        bench.kick(number)
        bench.until(lambda: bench.failures)
    assert bench.failures == [f"net queue {number}: {text}"]


def test_frames_that_do_not_fit_are_dropped(path: str) -> None:
    with plugged(NetDevice(StreamBackend(path, listen=True)), num=16, stride=1 << 17) as bench:
        nic = Nic(bench, buffers=1, room=1514)
        nic.refill()
        with connect(path) as peer:
            peer.sendall(on_wire(make_frame(1, 1515)) + on_wire(make_frame(2, 1514)))
            assert number_of(nic.receive()) == 2
            bench.drivers[TX].add([NO_OFFLOADS, bytes(FRAME_MAX + 1)], [])
            nic.send(make_frame(3, 60))
            assert number_of(read_frame(peer)) == 3


# Options ------------------------------------------------------------------------------------


def test_options(path: str) -> None:
    with no_leaks():
        device = open_net(f"listen:{path},mac=52:54:0:12:34:56")
        assert device.config[:6] == bytes.fromhex("525400123456")
        assert device.features >> 5 & 1
        device.close()
        device = open_net(f"unix:{path}")
        assert not device.features >> 5 & 1
        device.close()


@pytest.mark.parametrize(
    ("wish", "text"),
    [
        ("unix:", "names no socket"),
        ("listen:,mac=52:54:00:00:00:01", "names no socket"),
        ("bridge:", "names no address"),
        ("", "names no address"),
        ("nonsense", "'nonsense' is neither an IPv4 address nor bridge:, unix: or listen:"),
        ("1.2.3.4.5", "is neither an IPv4 address"),
        ("192.0.2.1:52:54:00", "'52:54:00' is not a MAC address"),
        ("unix:x,mac=52:54:00:00:00:0g", "is not a MAC address"),
        ("unix:x,mac=1:0:0:0:0:0", "is a multicast address"),
        ("bridge:a-very-long-bridge-name", "is too long for the name of a bridge"),
        ("listen:/nonexistent/directory/cable", "cannot listen at .*: No such file or directory"),
        ("listen:" + "x" * 200, "cannot listen at x*: AF_UNIX path too long"),
    ],
)
def test_options_that_make_no_sense(wish: str, text: str) -> None:
    before = set(nursery._private_fds)
    with no_leaks(), pytest.raises(UserError, match=text):
        open_net(wish)
    assert nursery._private_fds == before


def test_mac_may_leave_out_zeros() -> None:
    assert parse_mac("2:0:A:b:FF:1") == bytes([2, 0, 10, 11, 255, 1])


def test_stale_socket_is_replaced_and_a_live_one_is_not(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)
    with no_leaks():
        first = StreamBackend(path, listen=True)
        with pytest.raises(UserError, match=r"cannot listen at .*: Address already in use"):
            StreamBackend(path, listen=True)
        first.close()
    Path(path).write_text("precious")
    with pytest.raises(UserError, match="Address already in use"):
        StreamBackend(path, listen=True)
    assert Path(path).read_text() == "precious"


# TAP ----------------------------------------------------------------------------------------


@pytest.fixture
def tap() -> Iterator[TapBackend]:
    try:
        made = TapBackend(address="192.0.2.1")
    except UserError as error:
        pytest.skip(str(error))
    yield made
    made.close()


@pytest.fixture
def wire(tap: TapBackend) -> Iterator[socket.socket]:
    """The host's side of the TAP device, frame by frame."""
    try:
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x88B5))
    except PermissionError as error:
        pytest.skip(str(error))
    with raw:
        raw.bind((tap.name, 0x88B5))
        raw.settimeout(20)
        yield raw


def test_tap_has_what_lguest_had(tap: TapBackend) -> None:
    device = NetDevice(tap, bytes.fromhex("525400123456"))
    bits = {bit for bit in range(32) if device.features >> bit & 1}
    assert bits == {0, 1, 5, 7, 8, 9, 11, 12, 13, 28}


def test_tap_both_ways(tap: TapBackend, wire: socket.socket) -> None:
    with plugged(NetDevice(tap)) as bench:
        nic = Nic(bench, buffers=128)
        nic.refill()
        for number in range(1, 200):
            nic.send(make_frame(number, 60 + number))
            assert number_of(wire.recv(4096)) == number
        for number in range(1, 200):
            wire.send(make_frame(number, 60 + number))
            # The host's own packets (IPv6 neighbours) have no header of ours either way.
            while (frame := nic.receive())[12:14] != b"\x88\xb5":
                pass
            assert number_of(frame) == number


def test_tap_refuses_a_header_and_lives(tap: TapBackend, wire: socket.socket) -> None:
    with plugged(NetDevice(tap)) as bench:
        bench.drivers[TX].add([b"\xff" * HEADER_SIZE, make_frame(1, 60)], [])
        Nic(bench).send(make_frame(2, 60))
        assert number_of(wire.recv(4096)) == 2


def test_tap_offloads_are_those_that_the_driver_knows(
    tap: TapBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    real = fcntl.ioctl

    def ioctl(fd: int, request: int, argument: Any) -> Any:
        if request == net_tap.TUNSETOFFLOAD:
            asked.append(argument)
        return real(fd, request, argument)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    tap.start(tap.features)
    tap.start(1 << net.F_GUEST_CSUM | 1 << net.F_GUEST_TSO4)
    tap.start(1 << net.F_GUEST_TSO4)  # means nothing without checksums
    NetDevice(tap).reset()
    assert asked == [15, 3, 0, 0]


def test_tap_that_is_full_or_ailing(
    tap: TapBackend, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    slept: list[tuple[Any, ...]] = []

    class Sleeper(QueueService):
        def sleep(self, fd: int = -1, events: int = 0, timeout: float | None = None) -> bool:
            slept.append((fd == tap._fd, events, timeout))
            return True

    def once(error: OSError, then: Callable[..., Any]) -> Callable[..., Any]:
        errors = [error]

        def call(*arguments: Any) -> Any:
            if errors:
                raise errors.pop()
            return then(*arguments)

        return call

    queue = Sleeper("net", print, int, print, print)
    monkeypatch.setattr(os, "write", once(BlockingIOError(), lambda fd, data: len(data)))
    tap.send(queue, b"packet")
    monkeypatch.setattr(os, "write", once(OSError(5, "Input/output error"), print))
    tap.send(queue, b"packet")
    monkeypatch.setattr(os, "read", once(BlockingIOError(), lambda fd, size: b"packet"))
    assert tap.receive(queue) == b"packet"
    monkeypatch.setattr(os, "read", once(OSError(5, "Input/output error"), lambda *_: b"late"))
    assert tap.receive(queue) == b"late"
    assert slept == [(True, select.POLLOUT, None), (True, select.POLLIN, None), (False, 0, 1.0)]
    monkeypatch.undo()
    queue.close()


def test_bridge_that_does_not_exist(tap: TapBackend) -> None:
    with (
        no_leaks(),
        pytest.raises(UserError, match="cannot put a TAP device into bridge nobr0: "),
    ):
        TapBackend(bridge="nobr0")


def test_tap_without_rights_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise PermissionError(1, "Operation not permitted")

    with no_leaks():
        monkeypatch.setattr(os, "open", refuse)
        with pytest.raises(UserError, match=r"cannot open /dev/net/tun: .* \(it needs CAP_NET_A"):
            TapBackend(address="192.0.2.1")
        monkeypatch.setattr(os, "open", lambda *_: os.memfd_create("tun"))
        monkeypatch.setattr(fcntl, "ioctl", refuse)
        with pytest.raises(UserError, match=r"cannot set up a TAP device: .* \(it needs CAP_NET_A"):
            TapBackend(address="192.0.2.1")
