"""The block device: requests through a ring on files, and drivers that mean harm."""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.errors import UserError
from runtime.virtio import blk
from runtime.virtio.blk import BlockDevice
from runtime.virtio.vring import Vring, legacy_layout
from tests.helpers.leaks import no_leaks
from tests.helpers.virtio import Bench, Driver, Ram, StillQueue, plugged

SECTORS = 64
READ, WRITE, SCSI, FLUSH, GET_ID = 0, 1, 2, 4, 8


def header(kind: int, sector: int = 0) -> bytes:
    return struct.pack("<IIQ", kind, 0, sector)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    image = tmp_path / "disk"
    image.write_bytes(random.Random(3).randbytes(SECTORS * 512))
    return image


@pytest.fixture
def bench(path: Path) -> Iterator[Bench]:
    with no_leaks(), plugged(BlockDevice(path)) as made:
        yield made


def test_what_it_offers(path: Path) -> None:
    device = BlockDevice(path)
    assert device.features == 1 << 2 | 1 << 9
    assert device.config == struct.pack("<QII", SECTORS, 0, 254)
    device.close()
    device.close()


def test_read(bench: Bench, path: Path) -> None:
    data, written = bench.ask([header(READ, 3)], [1024, 1])
    assert (data, written) == (path.read_bytes()[1536:2560] + b"\0", 1025)


def test_write_flush_and_read_again(bench: Bench, path: Path) -> None:
    data = random.Random(5).randbytes(4096)
    assert bench.ask([header(WRITE, 8), data], [1]) == (b"\0", 1)
    assert bench.ask([header(FLUSH)], [1]) == (b"\0", 1)
    assert path.read_bytes()[4096:8192] == data
    assert bench.ask([header(READ, 8)], [4096, 1]) == (data + b"\0", 4097)


def test_flush_is_fdatasync(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    assert bench.ask([header(FLUSH)], [1]) == (b"\0", 1)
    assert len(synced) == 1


def test_header_and_status_may_be_cut_in_any_way(bench: Bench, path: Path) -> None:
    whole = header(WRITE, 1) + b"a" * 512
    assert bench.ask([whole[:3], whole[3:15], b"", whole[15:40], whole[40:]], [0, 1]) == (b"\0", 1)
    assert path.read_bytes()[512:1024] == b"a" * 512
    # One writable buffer: the status is its last byte.
    data, written = bench.ask([header(READ, 1)], [513])
    assert (data, written) == (b"a" * 512 + b"\0", 513)


@pytest.mark.parametrize("kind", [SCSI, SCSI | WRITE, SCSI | FLUSH])
def test_scsi_commands_are_unsupported(bench: Bench, path: Path, kind: int) -> None:
    before = path.read_bytes()
    assert bench.ask([header(kind), b"x" * 512], [32, 1]) == (bytes(32) + b"\2", 1)
    assert path.read_bytes() == before


def test_any_other_type_is_a_read(bench: Bench, path: Path) -> None:
    data, written = bench.ask([header(GET_ID)], [20, 1])
    assert (data, written) == (path.read_bytes()[:20] + b"\0", 21)


def test_read_beyond_the_end_is_short(bench: Bench, path: Path) -> None:
    data, written = bench.ask([header(READ, SECTORS - 1)], [1024, 1])
    assert (data[:512], data[-1], written) == (path.read_bytes()[-512:], 0, 513)
    assert bench.ask([header(READ, 1 << 40)], [512, 1])[1] == 1


def test_write_beyond_the_end_kills_the_guest_and_not_the_file(path: Path) -> None:
    before = path.read_bytes()
    with plugged(BlockDevice(path), may_fail=True) as bench:
        bench.drivers[0].add([header(WRITE, SECTORS - 1), b"x" * 1024], [1])
        bench.kick()
        bench.until(lambda: bench.failures)
    assert bench.failures == [
        "block queue 0: a write of 1024 bytes at sector 63 goes beyond the end of the disk"
    ]
    assert path.read_bytes() == before


def test_rest_of_an_odd_file(tmp_path: Path) -> None:
    """lguest: capacity in whole sectors, but the limit is the file's length."""
    image = tmp_path / "odd"
    image.write_bytes(b"a" * 1000)
    device = BlockDevice(image)
    assert device.config[:8] == struct.pack("<Q", 1)
    with plugged(device) as bench:
        data, written = bench.ask([header(READ, 1)], [512, 1])
        assert (data, written) == (b"a" * 488 + bytes(24) + b"\0", 489)
        assert bench.ask([header(WRITE, 1), b"b" * 488], [1]) == (b"\0", 1)
    assert image.read_bytes() == b"a" * 512 + b"b" * 488


def test_read_only(path: Path) -> None:
    before = path.read_bytes()
    path.chmod(0o400)
    device = BlockDevice(path, read_only=True)
    assert device.features == 1 << 2 | 1 << 5 | 1 << 9
    with plugged(device) as bench:
        assert bench.ask([header(WRITE), b"x" * 512], [1]) == (b"\1", 1)
        assert bench.ask([header(WRITE)], [1]) == (b"\1", 1)
        assert bench.ask([header(FLUSH)], [1]) == (b"\0", 1)
        assert bench.ask([header(READ)], [512, 1]) == (before[:512] + b"\0", 513)
    assert path.read_bytes() == before


@pytest.mark.parametrize("call", ["pread", "pwrite", "fdatasync"])
def test_errors_of_the_host_are_io_errors(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fail)
    kind = {"pread": READ, "pwrite": WRITE, "fdatasync": FLUSH}[call]
    data, written = bench.ask([header(kind), b"x" * 512], [512, 1])
    assert (data[-1], written) == (1, 1)
    monkeypatch.undo()
    assert bench.ask([header(READ)], [512, 1])[1] == 513


def test_short_writes_go_on(bench: Bench, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:100], at))
    data = random.Random(1).randbytes(1024)
    assert bench.ask([header(WRITE, 2), data], [1]) == (b"\0", 1)
    assert path.read_bytes()[1024:2048] == data
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: 0)
    assert bench.ask([header(WRITE, 2), data], [1]) == (b"\1", 1)


def test_random_requests_against_a_model(bench: Bench, path: Path) -> None:
    """Several at a time, all cut at random; the file and what is read are a bytearray's."""
    chance = random.Random(11)
    model = bytearray(path.read_bytes())
    driver = bench.drivers[0]
    for _ in range(200):
        expected: list[tuple[Any, bytes]] = []
        for _ in range(chance.randrange(1, 8)):
            sector = chance.randrange(SECTORS)
            length = chance.randrange(1, min(9, SECTORS - sector + 1)) * 512
            at = sector * 512
            if chance.random() < 0.5:
                data = chance.randbytes(length)
                cut = chance.randrange(length)
                request = driver.add([header(WRITE, sector), data[:cut], data[cut:]], [1])
                model[at : at + length] = data
                expected.append((request, b"\0"))
            else:
                cut = chance.randrange(length)
                request = driver.add([header(READ, sector)], [cut, length - cut, 1])
                expected.append((request, bytes(model[at : at + length]) + b"\0"))
        bench.kick()
        for request, data in expected:  # in the order in which they were given away
            assert bench.wait() is request
            assert driver.data(request) == data
            assert request.written == len(data)
    assert path.read_bytes() == bytes(model)


@pytest.mark.parametrize(
    ("readable", "writable", "text"),
    [
        ([], [1], "header has 0 bytes"),
        ([b"x" * 15], [1], "header has 15 bytes"),
        ([header(READ)], [], "no room for its status"),
        ([header(FLUSH)], [0], "no room for its status"),
        ([header(READ, (1 << 64) - 1)], [512, 1], "at sector 18446744073709551615, where no disk"),
        ([header(READ, 1 << 54)], [512, 1], "at sector 18014398509481984, where no disk"),
        ([header(WRITE, (1 << 64) - 1), b"x"], [1], "goes beyond the end"),
    ],
)
def test_requests_that_kill(
    path: Path, readable: list[bytes], writable: list[int], text: str
) -> None:
    with plugged(BlockDevice(path), may_fail=True) as bench:
        bench.drivers[0].add(readable, writable)
        bench.kick()
        bench.until(lambda: bench.failures)
    assert text in bench.failures[0]


def test_stop_does_not_wait_for_a_long_request(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blk, "PIECE", 1)
    bench = Bench(BlockDevice(path), stride=1 << 15)
    stopping: list[bool] = []
    real = os.pread

    def slow(fd: int, length: int, at: int) -> bytes:
        if at == 10:
            bench.services[0].ask_to_stop()
            stopping.append(True)
        return real(fd, length, at)

    monkeypatch.setattr(os, "pread", slow)
    bench.start()
    bench.drivers[0].add([header(READ)], [8192, 1])
    bench.kick()
    bench.until(lambda: stopping)
    bench.close()
    assert bench.drivers[0].take() is None
    assert bench.failures == [] and bench.broken == []


# Opening --------------------------------------------------------------------------------


def test_one_writer_or_many_readers(path: Path) -> None:
    with no_leaks():
        writer = BlockDevice(path)
        for read_only in (False, True):
            with pytest.raises(UserError, match=f"disk {path} is in use by another machine"):
                BlockDevice(path, read_only=read_only)
        writer.close()
        readers = [BlockDevice(path, read_only=True) for _ in range(2)]
        with pytest.raises(UserError, match="in use"):
            BlockDevice(path)
        for reader in readers:
            reader.close()
        BlockDevice(path).close()


def test_files_that_are_no_disks(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with no_leaks():
        with pytest.raises(UserError, match="cannot be opened: No such file or directory"):
            BlockDevice(tmp_path / "absent")
        with pytest.raises(UserError, match="cannot be opened: Is a directory"):
            BlockDevice(tmp_path)
        with pytest.raises(UserError, match="is neither a file nor a block device"):
            BlockDevice(tmp_path, read_only=True)
        with pytest.raises(UserError, match="is neither a file nor a block device"):
            BlockDevice(fifo)
        with pytest.raises(UserError, match="cannot be opened: embedded null byte"):
            BlockDevice("a\0b")


def test_empty_disk(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    with plugged(BlockDevice(tmp_path / "empty")) as bench:
        assert bench.device.config[:8] == bytes(8)
        assert bench.ask([header(READ)], [512, 1])[1] == 1


# Anything at all -------------------------------------------------------------------------

heads = st.builds(
    lambda kind, sector: struct.pack("<IIQ", kind, 0, sector),
    st.one_of(st.integers(0, 15), st.integers(0, (1 << 32) - 1)),
    st.one_of(st.integers(0, SECTORS + 2), st.integers(0, (1 << 64) - 1)),
)


@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.one_of(heads, st.binary(max_size=20)),
            st.lists(st.integers(0, 700), max_size=3),
            st.lists(st.integers(0, 700), max_size=3),
        ),
        max_size=6,
    )
)
def test_hostile_requests(tmp_path_factory: pytest.TempPathFactory, requests: Any) -> None:
    image = tmp_path_factory.mktemp("blk") / "disk"
    image.write_bytes(bytes(SECTORS * 512))
    layout = legacy_layout(0, 64, 4096)
    ram = Ram(0x4000 + 64 * 8192)
    driver = Driver(ram, 64, layout, 0x4000)
    for head, more, rooms in requests:
        driver.add([head, *[bytes(length) for length in more]], rooms)
    device = BlockDevice(image)
    queue = StillQueue("blk", device.services[0], int, print, print)
    try:
        text = queue.serve(Vring(ram, 64, layout.desc, layout.avail, layout.used))
    finally:
        queue.close()
        device.close()
    assert (
        text is not None
        or len(driver.free) + sum(len(request.descriptors) for request in driver.waiting.values())
        == 64
    )
    assert image.stat().st_size == SECTORS * 512
