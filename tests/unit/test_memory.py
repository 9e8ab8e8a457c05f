"""Shared memory that cannot be left behind, checked guest RAM, sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime import memory
from runtime.errors import UserError
from runtime.sizes import MIB, align_up, check_ram_size, format_size, parse_size


def leftovers() -> list[str]:
    mine = f"{memory.PREFIX}-{os.getpid()}-"
    return [name for name in os.listdir(memory.SHM_DIR) if name.startswith(mine)]


def test_block_is_zeroed_shared_and_unlinked() -> None:
    block = memory.SharedBlock(2 * MIB, "memory")
    assert leftovers() == []
    assert not any(block.map[:])
    child = os.fork()
    if child == 0:
        block.map[5] = 42
        os._exit(0)
    os.waitpid(child, 0)
    assert block.map[5] == 42
    block.close()


def test_full_shm_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_free_bytes", lambda: MIB)
    with pytest.raises(UserError, match=r"guest memory needs 65M of /dev/shm, where 1M are free; "):
        memory.SharedBlock(64 * MIB, "guest memory")


def test_no_space_while_filling_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_fd: int, _start: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match="guest memory needs 3M of /dev/shm"):
        memory.SharedBlock(2 * MIB, "guest memory")
    assert leftovers() == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_sweep_takes_only_what_the_dead_left(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [
        f"smpguest-{dead.pid}-abc",
        f"smpguest-{os.getpid()}-abc",
        "smpguest-1-abc",
        "smpguest-notes",
        f"other-{dead.pid}-abc",
    ]
    for name in names:
        (tmp_path / name).touch()
    assert memory.sweep_leftovers(tmp_path) == names[:1]
    assert sorted(os.listdir(tmp_path)) == sorted(names[1:])


@pytest.mark.parametrize(
    ("address", "length"),
    [(MIB, 1), (MIB - 1, 2), (-1, 1), (0, MIB + 1), ((1 << 64) - 1, 2), (5, -1)],
)
def test_access_outside_ram_kills_and_reads_zeros(address: int, length: int) -> None:
    block = memory.SharedBlock(MIB, "memory")
    block.map[:] = b"\xff" * MIB
    killed: list[str] = []
    ram = memory.GuestRam(block, killed.append)
    assert not any(ram.read(address, length))
    assert killed == [f"bad read address {address:#x} len {length}"]
    if length > 0:
        ram.write(address, bytes(length))
        assert killed[1:] == [f"bad write address {address:#x} len {length}"]
    assert block.map[:] == b"\xff" * MIB
    block.close()


def test_access_inside_ram() -> None:
    block = memory.SharedBlock(MIB, "memory")
    killed: list[str] = []
    ram = memory.GuestRam(block, killed.append)
    ram.write(MIB - 3, b"abc")
    assert ram.read(MIB - 4, 4) == b"\0abc"
    assert ram.read(MIB, 0) == b""
    assert killed == []
    block.close()


@pytest.mark.parametrize(
    ("text", "size"),
    [("64M", 64 * MIB), ("1G", 1 << 30), ("512k", 1 << 19), ("4096", 4096), ("2MiB", 2 * MIB)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "64X", "0x10", "٣", "9" * 40])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(UserError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "^0 bytes of memory is too little; the least is 2M$"),
        (1, "^1 byte of memory is too little"),
        (MIB, "^1M of memory is too little"),
        (4 << 30, "^4G of memory is too much; the most is 3G"),
        (64 * MIB + 1, "^67108865 bytes of memory is not a whole number"),
    ],
)
def test_ram_sizes_that_cannot_be(size: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_ram_size(size)


def test_align_up() -> None:
    assert [align_up(value, 4096) for value in (0, 1, 4096, 4097)] == [0, 4096, 4096, 8192]
