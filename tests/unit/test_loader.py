"""Loaders: what they put where, and one sentence for everything that is no kernel."""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime.errors import UserError
from runtime.loader import Boot, Start, flat, load, multiboot
from tests.helpers.images import Maker, Piece, code_kernel, multiboot_header, write_file

RAM = 4 << 20


class Ram:
    """Guest RAM that refuses what a loader must never do."""

    def __init__(self, size: int = RAM) -> None:
        self.data = bytearray(size)

    def write(self, address: int, data: bytes) -> None:
        assert 0 <= address <= address + len(data) <= len(self.data)
        self.data[address : address + len(data)] = data


def boot(path: Path, ram: Ram, append: str = "", initrd: Path | None = None) -> Start:
    return load(path, Boot(len(ram.data), ram.write, append, initrd))


def refused(path: Path, ram: Ram | None = None, **more: object) -> str:
    with pytest.raises(UserError) as caught:
        boot(path, ram or Ram(), **more)  # type: ignore[arg-type]
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.startswith(str(path))
    return sentence


# What is loaded --------------------------------------------------------------------


def test_bare_elf32(tmp_path: Path) -> None:
    ram = Ram()
    kernel = Maker([Piece(b"code", 0x100000, 0x2000), Piece(b"low", 0x8000)], entry=0x100002)
    start = boot(write_file(tmp_path, kernel.build()), ram)
    assert (start.mode, start.entry) == (32, 0x100002)
    assert ram.data[0x100000:0x100004] == b"code"
    assert ram.data[0x8000:0x8003] == b"low"


def test_virtual_entry_becomes_physical(tmp_path: Path) -> None:
    kernel = Maker([Piece(b"codecode", 0x100000, virtual=0x80100000)], entry=0x80100004)
    assert boot(write_file(tmp_path, kernel.build()), Ram()).entry == 0x100004


def test_bare_elf64_is_entered_in_long_mode_with_an_identity_map(tmp_path: Path) -> None:
    ram = Ram()
    start = boot(write_file(tmp_path, Maker(bits=64).build()), ram)
    assert (start.mode, start.entry, start.cr3) == (64, 0x100000, flat.TABLES)
    for address in (0, 0x100000, 0x3FFFFFFF, 0x40000000, 0xFEE00123):
        assert walk(ram, start.cr3, address) == address


def walk(ram: Ram, cr3: int, address: int) -> int:
    """4-level paging, SDM vol. 3, 4.5."""
    table = cr3
    for shift in (39, 30):
        entry = struct.unpack_from("<Q", ram.data, table + (address >> shift & 511) * 8)[0]
        assert entry & 1
        table = entry & ~0xFFF
    entry = struct.unpack_from("<Q", ram.data, table + (address >> 21 & 511) * 8)[0]
    assert entry & 0x81 == 0x81
    return int(entry & ~0x1FFFFF) | address & 0x1FFFFF


def test_multiboot_elf_gets_its_information(tmp_path: Path) -> None:
    ram = Ram()
    initrd = write_file(tmp_path, b"module" * 1000, "disk.img")
    path = write_file(tmp_path, code_kernel(b"\xf4", flags=3))
    start = boot(path, ram, "verbose=1", initrd)
    assert (start.mode, start.eax, start.entry) == (32, 0x2BADB002, 0x10000C)
    info = struct.unpack_from("<7I", ram.data, start.ebx)
    assert info[0] & 0x4D == 0x4D
    assert info[1] == 639
    assert info[2] == (RAM - (1 << 20)) >> 10
    assert text(ram, info[4]) == f"{path} verbose=1"
    assert info[5] == 1
    first, last, name, _ = struct.unpack_from("<4I", ram.data, info[6])
    assert first % 4096 == 0
    assert ram.data[first:last] == b"module" * 1000
    assert text(ram, name) == str(initrd)
    length, at = struct.unpack_from("<II", ram.data, start.ebx + 44)
    entries = [struct.unpack_from("<IQQI", ram.data, at + i) for i in range(0, length, 24)]
    assert all(entry[0] == 20 for entry in entries)
    assert [entry[1:] for entry in entries] == multiboot.memory_map(RAM)
    assert (0x100000, RAM - 0x100000, 1) in [entry[1:] for entry in entries]


def text(ram: Ram, at: int) -> str:
    return ram.data[at : ram.data.index(0, at)].decode()


def test_multiboot_address_form_wins_over_elf(tmp_path: Path) -> None:
    ram = Ram()
    load_at, size = 0x200000, 0x40
    header = multiboot_header(
        1 << 16, (load_at + 16, load_at, load_at + size, load_at + 256, load_at)
    )
    image = b"\x7fELF" + b"A" * 12 + header
    image = image.ljust(size, b"B") + b"not loaded"
    start = boot(write_file(tmp_path, image), ram)
    assert start.entry == load_at
    assert ram.data[load_at : load_at + size] == image[:size]
    assert not any(ram.data[load_at + size : load_at + 256])


def test_multiboot_information_avoids_low_kernels(tmp_path: Path) -> None:
    header = multiboot_header()
    kernel = Maker([Piece(header + b"\xf4", 0x9000, 0x3000)], entry=0x900C)
    start = boot(write_file(tmp_path, kernel.build()), Ram())
    assert not 0x9000 <= start.ebx < 0xC000


# What is refused ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (Maker(machine=183), "another architecture (AArch64"),
        (Maker(machine=62), "another architecture"),
        (Maker(endian=2), "big-endian"),
        (Maker(kind=1), "not linked"),
        (Maker(kind=3), "shared object"),
        (Maker(entry=0x500000), "entry point 0x500000 outside"),
        (Maker([Piece(b"x", 0x100000, RAM)]), "does not fit in RAM"),
        (Maker([Piece(b"x" * 9), Piece(b"y", 0x100008)]), "overlaps"),
        (Maker([Piece(b"x" * 9, memory_size=3)]), "larger in the file"),
        (Maker([Piece(b"x", 0xF5A00)]), "firmware"),
        (Maker([Piece(b"x", 0x400)]), "firmware"),
        (Maker([Piece(b"x", 0x100000, RAM)]), "try a larger --memory"),
        (Maker([Piece(b"x", 0xFFFFFFFF, 2)], entry=0xFFFFFFFF), "does not fit in RAM"),
        (Maker([Piece(b"x", (1 << 64) - 1, 2)], bits=64), "what counts is its physical address"),
    ],
)
def test_bad_elf(tmp_path: Path, kernel: Maker, reason: str) -> None:
    assert reason in refused(write_file(tmp_path, kernel.build()))


@pytest.mark.parametrize("bits", [32, 64])
def test_linker_that_puts_the_headers_below_1_mib(tmp_path: Path, bits: int) -> None:
    """What plain `ld -Ttext 0x100000` makes is refused; with the advice it boots."""
    (tmp_path / "code.s").write_text(".globl _start\n_start: hlt\n")

    def build(name: str, *advice: str) -> Path:
        target = {32: "elf_i386", 64: "elf_x86_64"}[bits]
        options = ("-z", "max-page-size=4096", "-z", "separate-code", "-Ttext", "0x100000", *advice)
        for command in (
            ("as", f"--{bits}", "-o", "code.o", "code.s"),
            ("ld", "-m", target, *options, "-o", name, "code.o"),
        ):
            subprocess.run(command, cwd=tmp_path, check=True)
        return tmp_path / name

    assert "holds the ELF headers, which `ld -n` (`gcc -Wl,-n`)" in refused(build("plain"))
    assert boot(build("advised", "-n"), Ram()).entry == 0x100000


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"#!/bin/sh\n", "is not a kernel"),
        (b"\x7fELF", "is truncated"),
        (Maker().build()[:60], "is truncated"),
        (bytes(0x202) + b"HdrS" + bytes(100), "bzImage"),
        (multiboot_header() + bytes(64), "no ELF file and gives no load address"),
        (multiboot_header(0x10) + bytes(64), "demands multiboot features"),
        (multiboot_header(1 << 16, (0x100000, 0x200000, 0, 0, 0x200000)), "lies before"),
        (multiboot_header(1 << 16, (0x100000, 0x100000, 0x110000, 0, 0x100000)), "is truncated"),
        (multiboot_header(1 << 16, (0x100000, 0x100000, 0xFF, 0, 0x100000)), "end lies before"),
        (multiboot_header(1 << 16, (0x100000, 0x100000, 0, 0x100001, 0x100000)), "bss ends"),
        (multiboot_header(1 << 16, (0x100000, 0x100000, 0, 0, 0x300000)), "entry point"),
        (multiboot_header(1 << 16), "is truncated"),
    ],
)
def test_bad_file(tmp_path: Path, data: bytes, reason: str) -> None:
    assert reason in refused(write_file(tmp_path, data))


def test_no_file(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "nothing")
    assert "is a directory" in refused(tmp_path)
    assert "not a file" in refused(Path(os.devnull))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file(tmp_path: Path) -> None:
    path = write_file(tmp_path, Maker().build())
    path.chmod(0)
    assert "permission denied" in refused(path)


def test_options_that_have_nowhere_to_go(tmp_path: Path) -> None:
    path = write_file(tmp_path, Maker().build())
    assert "--append" in refused(path, append="x")
    assert "--initrd" in refused(path, initrd=path)


def test_initrd_mistakes_name_the_initrd(tmp_path: Path) -> None:
    path = write_file(tmp_path, code_kernel(b"\xf4"))
    big = write_file(tmp_path, bytes(RAM), "big.img")
    for initrd, reason in ((big, "does not fit behind the kernel"), (tmp_path / "no", "not exist")):
        with pytest.raises(UserError, match=reason) as caught:
            boot(path, Ram(), initrd=initrd)
        assert str(initrd) in str(caught.value)


def test_command_line_too_long(tmp_path: Path) -> None:
    path = write_file(tmp_path, code_kernel(b"\xf4"))
    assert "command line" in refused(path, append="x" * 700_000)
    assert boot(path, Ram(), append="x" * 100_000).ebx


# Whatever the bytes: loaded or one sentence ---------------------------------------------


def mutate(make: Callable[[], bytes], edits: list[tuple[int, int]], cut: int | None) -> bytes:
    data = bytearray(make())
    for at, value in edits:
        data[at % len(data)] = value
    return bytes(data[: None if cut is None else cut % len(data)])


KERNELS: dict[str, Callable[[], bytes]] = {
    "elf32": lambda: Maker([Piece(b"x" * 64), Piece(b"y" * 64, 0x8000)]).build(),
    "elf64": lambda: Maker([Piece(b"x" * 64), Piece(b"y" * 64, 0x8000)], bits=64).build(),
    "multiboot": lambda: code_kernel(b"\xf4" * 20, 3),
    "addresses": lambda: (
        multiboot_header(1 << 16, (0x100000, 0x100000, 0, 0x100200, 0x100020)) + bytes(100)
    ),
}


@pytest.mark.parametrize("name", KERNELS)
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(st.tuples(st.integers(0, 250), st.integers(0, 255)), max_size=6),
    cut=st.none() | st.integers(0, 250),
)
def test_damaged_images(
    tmp_path: Path, name: str, edits: list[tuple[int, int]], cut: int | None
) -> None:
    path = write_file(tmp_path, mutate(KERNELS[name], edits, cut))
    try:
        start = boot(path, Ram(2 << 20), append="" if name.startswith("elf") else "a b")
    except UserError as error:
        assert str(path) in str(error)
    else:
        assert 0 <= start.entry < 1 << 64
